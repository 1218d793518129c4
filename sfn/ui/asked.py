"""What pages ask in the background of the Hub and of this machine, and fill in when it comes. Draws nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sfn import hub
from sfn.errors import HubError
from sfn.ui import cached

if TYPE_CHECKING:
    from sfn.lookups import Lookup

_OFFLINE_S = 60.0  # a failure this long ago still counts as being offline
_MACHINE_FRESH_S = 30.0


def listing(repo: str, revision: str | None = None, fresh_s: float = 600.0) -> Lookup:
    """(`hub.Listing`, `hub.Weights`) of a model on the Hub."""

    def ask() -> tuple[hub.Listing, hub.Weights]:
        found = hub.find(repo, revision)
        return found, hub.weights(found)

    return cached.lookups().ask(("listing", repo, revision), ask, fresh_s)


def search(words: str) -> Lookup:
    """`hub.search`."""
    return cached.lookups().ask(("search", words.lower()), lambda: hub.search(words))


def children(repo: str) -> Lookup:
    """`hub.children`."""
    return cached.lookups().ask(("children", repo), lambda: hub.children(repo))


def on_this_machine() -> Lookup:
    """`hub.on_this_machine`."""
    return cached.lookups().ask("on this machine", hub.on_this_machine, _MACHINE_FRESH_S)


def machine() -> Lookup:
    """`sfn.abilities.machine`."""

    def ask() -> object:
        from sfn import abilities

        return abilities.machine()

    return cached.lookups().ask("machine", ask, _MACHINE_FRESH_S)


def forget_downloads() -> None:
    """What was fetched or deleted is to be seen at the next look."""
    cached.lookups().forget(lambda key: key in ("on this machine", "machine") or key[0] == "listing")


def busy() -> bool:
    """Whether anything is being asked."""
    return cached.lookups().busy()


def offline() -> str:
    """Why the Hub is not asked, or could not be at the last try; "" where it answers."""
    from sfn.hub import access

    if access.offline():
        return "Offline: HF_HUB_OFFLINE is set. What is on this machine, or in the results database, works as ever."
    if any(_unreached(known) for known in cached.lookups().recent(_OFFLINE_S)):
        return "Offline: the Hub cannot be reached. What is on this machine, or in the results database, works as ever."
    return ""


def _unreached(known: Lookup) -> bool:
    if isinstance(known.value, tuple) and known.value and isinstance(known.value[0], hub.Listing):
        return known.value[0].offline
    return isinstance(known.problem, HubError) and known.problem.kind in ("network", "certificate")
