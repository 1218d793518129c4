"""Choosing A and B one by one: by searching the Hub, of what is on this machine, by pasting a name, URL or folder.

Each side is a fragment of its own, so that typing redraws its list alone. What is proposed (the base that B's card
names, models that were fine-tuned from A) is a button like any other.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from sfn import hub, paper_pairs
from sfn.errors import HubError
from sfn.places import cache_folder
from sfn.ui import asked, cached, failures, opening, state, words

if TYPE_CHECKING:
    from sfn.hub import Found
    from sfn.lookups import Lookup

_POLL_S = 0.5
_PICKED = "_model_picked"
_LABELS = {"a": "A, the base model", "b": "B, fine-tuned from A"}
_PLACEHOLDER = "search the Hub, or paste a name, a page's address, a folder"
_UNREACHED = ("network", "offline", "certificate")
_FEWEST = 2  # letters from which the Hub is asked
_SHOWN = 6
_HEIGHT = 220


@dataclass(frozen=True, slots=True)
class _Offer:
    """One model that can be chosen. group: the heading it stands under; note: what is known of it."""

    group: str
    name: str
    note: str = ""


def draw() -> None:
    """Draw both sides."""
    for side, place in zip("ab", st.columns(2, gap="medium"), strict=True):
        with place:
            st.fragment(_side, run_every=_POLL_S if asked.busy() else None)(side, asked.busy())
    if said := asked.offline():
        st.caption(said)


def _side(side: str, was_busy: bool) -> None:
    with failures.shown():
        if st.session_state.pop(_PICKED, None):
            st.rerun()
        _chosen(side)
        text = st.text_input(
            f"Find {_LABELS[side]}", key=_field(side), live="300ms", type="search", placeholder=_PLACEHOLDER,
            label_visibility="collapsed",
        ).strip()  # fmt: skip
        with st.container(height=_HEIGHT, border=False, key=f"offers_{side}", gap=None):
            _offers(side, text)
        if asked.busy() != was_busy:
            st.rerun()  # all of it, so that the polling begins or ends


def _field(side: str) -> str:
    return f"find_{side}"


def _pick(side: str, name: str) -> None:
    state.put(side, name)
    st.session_state[_field(side)] = ""
    st.session_state[_PICKED] = True


# ---------------------------------------------------------------- what is chosen


def _chosen(side: str) -> None:
    """The model that is chosen, and what is known of it before it is opened."""
    name = state.get(side)
    found = hub.meant(name)
    shown = (found.repo if found else name) or f"{_LABELS[side]}: not chosen yet"
    st.html(f'<div class="sfn-pair">{words.side(side.upper(), shown)}<div class="sfn-muted">{_about(name)}</div></div>')
    if problem := _problem(name):
        failures.failure(problem)


def _about(name: str) -> str:
    found = hub.meant(name)
    if found is None:
        unused = "&nbsp;" if opening.incomplete() else "the bundled pair is in use until both are chosen"
        return "a folder on this machine" if name else unused
    known = asked.listing(found.repo, found.revision)
    if known.state == "asking":
        return "asking the Hub …"
    if known.value is None:
        return "&nbsp;"
    listing, weights = known.value
    there = "on this machine" if not weights.missing_bytes else f"{words.size(weights.missing_bytes)} not downloaded"
    commit = f"commit {listing.commit[:10]}"
    parts = [
        commit,
        words.size(weights.size_bytes),
        listing.licence or "no licence named",
        "gated" if listing.gated else "",
        there,
    ]
    return html.escape(" · ".join(filter(None, parts)))


def _problem(name: str) -> Exception | None:
    """Why the chosen model cannot be had, as far as that is known without opening it."""
    from sfn.errors import CheckpointError

    if not name:
        return None
    found = hub.meant(name)
    if found is not None:
        return asked.listing(found.repo, found.revision).problem
    problem = cached.folder_problem(name)
    return CheckpointError(problem) if problem else None


# ---------------------------------------------------------------- what is offered


def _offers(side: str, text: str) -> None:
    group, drawn, own = "", set(), hub.meant(state.get(side))
    for offer in (*_pasted(text), *(_matching(side, text) if text else _unasked(side))):
        chosen = offer.name == state.get(side) or (own is not None and offer.name == own.repo)
        if offer.name in drawn or (chosen and not text):  # a new commit of what is chosen is offered elsewhere
            continue
        drawn.add(offer.name)
        if offer.group != group:
            group = offer.group
            st.html(f'<div class="sfn-head">{html.escape(group)}</div>')
        note = f" :gray[:small[{failures.escaped(offer.note)}]]" if offer.note else ""
        label = f"{failures.escaped(words.model(offer.name))}{note}"
        key = f"take_{side}_{len(drawn)}_{offer.name}"
        st.button(label, key=key, type="tertiary", help=_help(offer), on_click=_pick, args=(side, offer.name))
    if text:
        _searching(text, bool(drawn))
    elif not drawn:
        st.html('<div class="sfn-muted">Nothing is on this machine yet. Type a part of a model\'s name.</div>')


def _help(offer: _Offer) -> str | None:
    """The whole name where the label has it cut."""
    return failures.escaped(offer.name) if words.model(offer.name) != offer.name else None


def _pasted(text: str) -> Iterator[_Offer]:
    """The model that the text itself means."""
    if not text:
        return
    try:
        folder = Path(text).expanduser()
        if folder.is_dir():
            yield _Offer("This folder", text)
            return
    except (OSError, RuntimeError, ValueError):
        pass
    try:
        found = hub.address(text)
    except HubError as error:
        failures.failure(error)
        return
    if found is not None:
        yield _Offer("This model on the Hub", str(found))
    elif text.startswith(("/", "~", ".")):
        st.html(f'<div class="sfn-muted">There is no folder {html.escape(text)} on this machine.</div>')


def _unasked(side: str) -> Iterator[_Offer]:
    yield from _proposals(side)
    yield from _recent(side)
    yield from _here("")


def _matching(side: str, text: str) -> Iterator[_Offer]:
    wanted = text.lower().split()

    def fits(offer: _Offer) -> bool:
        return all(word in offer.name.lower() for word in wanted)

    yield from filter(fits, _recent(side))
    yield from filter(fits, _here(text))
    if len(text) >= _FEWEST and "://" not in text and not text.startswith(("/", "~", ".")):
        local = _local_repos()
        for found in asked.search(text).value or ():
            yield _Offer("On the Hub", found.repo, _note(found, local))


def _searching(text: str, any_drawn: bool) -> None:
    if len(text) < _FEWEST or "://" in text or text.startswith(("/", "~", ".")):
        return
    known: Lookup = asked.search(text)
    if known.state == "asking":
        st.html('<div class="sfn-muted">searching the Hub …</div>')
    elif getattr(known.problem, "kind", "") in _UNREACHED:
        st.html('<div class="sfn-muted">The Hub cannot be reached: only what is on this machine is offered.</div>')
    elif known.problem is not None:
        failures.failure(known.problem)
    elif not any_drawn:
        st.html('<div class="sfn-muted">No model of this name generates text and comes as safetensors.</div>')


def _proposals(side: str) -> Iterator[_Offer]:
    """What goes with the other side: B's base, or reasoning children of A."""
    other = hub.meant(state.get("b" if side == "a" else "a"))
    if other is None:
        return
    if side == "a":
        for repo in paper_pairs.bases_of(other.repo):
            yield _Offer("Proposed: the base of this B", repo, "as in the paper")
        known = asked.listing(other.repo, other.revision)
        for repo in known.value[0].base_models if known.value else ():
            if hub.meant(repo) is not None:
                yield _Offer("Proposed: the base of this B", repo, "named on its model card")
        return
    for repo in paper_pairs.children_of(other.repo):
        yield _Offer("Proposed: fine-tuned from this A", repo, "as in the paper")
    for found in asked.children(other.repo).value or ():
        yield _Offer("Proposed: fine-tuned from this A", found.repo, _note(found, _local_repos()))


def _recent(side: str) -> Iterator[_Offer]:
    """Models that were opened before on this side, the newest first."""
    bundled = cached.bundled_folders()
    names = dict.fromkeys(
        pair.summary.get(side) or (pair.a_folder if side == "a" else pair.b_folder) for pair in cached.recent_pairs()
    )
    for name in [name for name in names if name and name not in bundled][:_SHOWN]:
        yield _Offer("Recently used", name)


def _here(text: str) -> Iterator[_Offer]:
    """Models of the Hub's cache, and merged checkpoints that were written here."""
    found = asked.on_this_machine().value or ()
    for model in found[: None if text else _SHOWN]:
        yield _Offer("On this machine", f"{model.repo}@{model.commit}", words.size(model.size_bytes))
    for folder in _merged():
        yield _Offer("On this machine", str(folder), "merged")


def _merged() -> Iterable[Path]:
    place = cache_folder() / "merged"
    if not place.is_dir():
        return ()
    return [folder for folder in sorted(place.iterdir()) if (folder / "config.json").is_file()][:_SHOWN]


def _local_repos() -> frozenset[str]:
    return frozenset(model.repo for model in asked.on_this_machine().value or ())


def _note(found: Found, local: frozenset[str]) -> str:
    parts = [
        words.count(found.parameters) if found.parameters else "",
        f"{words.count(found.downloads)} downloads a month",
        "gated" if found.gated else "",
        "on this machine" if found.repo in local else "",
    ]
    return " · ".join(filter(None, parts))


def problems(a: str, b: str) -> bool:
    """Whether one of the two is known not to be there, so that its reason stands beside it already."""
    return any(_problem(name) is not None for name in (a, b)) and bool(opening.folders())
