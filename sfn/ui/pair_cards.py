"""The bundled pair and the paper's pairs as cards: one click chooses both models.

What never changes is drawn at once; sizes, licences and what is on this machine fill in as the Hub answers.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING

import streamlit as st

from sfn import hub, paper_pairs
from sfn.ui import asked, failures, state, words

if TYPE_CHECKING:
    from sfn.lookups import Lookup
    from sfn.paper_pairs import PaperPair

_COLUMNS = 3
_POLL_S = 0.7
_CHOSEN = "_card_chosen"
_BYTES = 2  # of a parameter as these models are stored
_MEMORY = "Of a GPU, or of a CPU, in bfloat16: weights, a tenth and 1 GB; in float32 about {}"
_OVER, _OVER_BYTES = 1.1, 1e9  # see `sfn.needs.run_memory_bytes`, which knows more once the headers are read


@dataclass(frozen=True, slots=True)
class _Card:
    """What a card says. known, asked: its two lines of facts, safe HTML."""

    key: str
    a: str
    b: str
    known: str
    asked: str
    chosen: bool
    choice: tuple[str, str]


def is_card(a: str, b: str) -> bool:
    """Whether these names are one of the cards, at whatever commit."""
    return not (a or b) or any((pair.a, pair.b) == (_repo(a), _repo(b)) for pair in paper_pairs.PAIRS)


def _repo(name: str) -> str:
    found = hub.meant(name)
    return found.repo if found else name


def draw() -> None:
    """Draw all cards; those that wait for the Hub fill in by themselves."""
    busy = any(_ask(name).state == "asking" for pair in paper_pairs.PAIRS for name in (pair.a, pair.b))
    st.fragment(_draw, run_every=_POLL_S if busy else None)(busy)


def _ask(repo: str) -> Lookup:
    return asked.listing(repo)


def _draw(was_busy: bool) -> None:
    with failures.shown():
        if was_busy and not asked.busy():
            st.rerun()
        if st.session_state.pop(_CHOSEN, None):
            st.rerun()
        here = (_repo(state.get("a")), _repo(state.get("b")))
        cards = [_bundled(here), *(_paper(number, pair, here) for number, pair in enumerate(paper_pairs.PAIRS))]
        for first in range(0, len(cards), _COLUMNS):
            for place, card in zip(st.columns(_COLUMNS, gap="small"), cards[first : first + _COLUMNS], strict=False):
                with place:
                    _card(card)
        if said := asked.offline():
            st.caption(said)


def _card(card: _Card) -> None:
    names = words.side("A", card.a) + words.side("B", card.b)
    facts = f'<div class="sfn-muted">{card.known}</div><div class="sfn-muted">{card.asked}</div>'
    kind = "chosen" if card.chosen else "other"
    with st.container(border=True, key=f"card_{kind}_{card.key}", gap=None):
        st.html(f'<div class="sfn-pair">{names}{facts}</div>')
        label = failures.escaped(f"Choose {card.a} and {card.b}")
        st.button(label, key=f"choose_{card.key}", on_click=_choose, args=card.choice)


def _choose(a: str, b: str) -> None:
    state.put("a", a)
    state.put("b", b)
    st.session_state[_CHOSEN] = True


def _bundled(here: tuple[str, str]) -> _Card:
    return _Card(
        "bundled", "tiny-base", "tiny-reasoner", "1.38 M · 6 layers · comes with SfN<br>a toy: sums, a few stories",
        "A answers at once, B thinks first", here == ("", ""), ("", ""),
    )  # fmt: skip


def _paper(number: int, pair: PaperPair, here: tuple[str, str]) -> _Card:
    whole = 2 * pair.parameters * _BYTES
    memory = pair.parameters * _BYTES * _OVER + _OVER_BYTES
    output = words.size(whole * pair.o_proj_share)
    known = (
        f"{words.count(pair.parameters)} · {pair.layers} layers · "
        f'<span title="{_MEMORY.format(words.size(2 * memory))}">runs in {words.size(memory)}</span><br>'
        f'<span title="What Delta reads, of both sides">reads {output} for o_proj, {words.size(whole)} for all</span>'
    )
    return _Card(
        str(number), _short(pair.a), _short(pair.b), known, _of_hub(pair), here == (pair.a, pair.b), (pair.a, pair.b)
    )


def _short(repo: str) -> str:
    return repo.partition("/")[2].replace("DeepSeek-", "")


def _of_hub(pair: PaperPair) -> str:
    found = [_ask(pair.a), _ask(pair.b)]
    if any(one.state == "asking" for one in found):
        return "asking the Hub …"
    problem = next((one for one in found if one.state == "failed"), None)
    if problem is not None:
        return f'<span title="{html.escape(problem.error)}">not known now: {_why(problem)}</span>'
    (a, weights_a), (b, weights_b) = (one.value for one in found)
    size, missing = (
        sum(getattr(one, name) for one in (weights_a, weights_b)) for name in ("size_bytes", "missing_bytes")
    )
    licences = " → ".join(dict.fromkeys(html.escape(one.licence or "no licence named") for one in (a, b)))
    gated = " · gated" if a.gated or b.gated else ""
    there = "on this machine" if not missing else "partly here" if missing < size else "not downloaded"
    to_fetch = f'<span title="To run them, this is fetched">{there}, {words.size(missing)}</span>' if missing else there
    return f"{licences}{gated} · {to_fetch}"


def _why(problem: Lookup) -> str:
    kind = getattr(problem.problem, "kind", "")
    return {
        "network": "the Hub cannot be reached", "offline": "offline", "certificate": "the Hub cannot be reached",
        "missing": "not on the Hub", "gated": "gated", "rate limit": "the Hub takes no more requests",
    }.get(kind, "the Hub refuses")  # fmt: skip
