"""What the page "Pair" is made of beside its chooser: how the two fit, what can be done with them and what it takes,
what they are and how they differ. Choosing is `pair_cards`' and `pair_picker`'s.
"""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

import streamlit as st

from sfn import hub
from sfn.ui import asked, failures, opening, pair_cards, pair_picker, state, words

if TYPE_CHECKING:
    from sfn.pairs import Pair

_CARDS, _PICKER = "the paper's pairs", "any two models"
_KIND = "_pair_kind"
_POLL_S = 1.0
_MOVED_FRESH_S = 120.0
_TITLES = {
    "stop": ("Stops a merge", ":material/block:"),
    "limit": ("Limits what can be done", ":material/warning:"),
    "note": ("Worth knowing", ":material/info:"),
}
_VERDICTS = {
    "yes": ("check", "can"),
    "partly": ("contrast", "in part"),
    "after download": ("download", "after a download"),
    "no": ("block", "cannot"),
}


def chooser() -> None:
    """Choose the pair. Ends the run with a sentence where a side is missing or cannot be used."""
    a, b = state.get("a"), state.get("b")
    st.session_state.setdefault(_KIND, _CARDS if pair_cards.is_card(a, b) else _PICKER)
    kind = st.segmented_control("Models", [_CARDS, _PICKER], key=_KIND, label_visibility="collapsed", required=True)
    if kind == _CARDS:
        pair_cards.draw()
        return
    pair_picker.draw()
    if missing := opening.incomplete():
        st.caption(failures.escaped(missing))
        st.stop()
    if pair_picker.problems(a, b):
        opening.again()
        st.stop()


def fit(pair: Pair) -> None:
    """The comparison in one sentence: how much can be done with this pair; and whether a branch has moved on."""
    comparable, movable = sum(row.comparable for row in pair.rows), sum(row.movable for row in pair.rows)
    stops = [finding for finding in pair.findings if finding.severity == "stop"]
    names = " → ".join(html.escape(side.label) for side in (pair.a, pair.b))
    many = f"<b>{comparable} of {len(pair.rows)}</b> tensors can be compared, <b>{movable}</b> moved from B into A"
    said = f"{names}: {many}."
    if stops:
        said += f" These two cannot be merged: {html.escape(stops[0].sentence)}"
    st.html(f'<p class="sfn-fit">{said}</p>')
    _filling_in(_moved, pair)


def _filling_in(draw: object, pair: Pair) -> None:
    """Draw what waits for an answer of the Hub or of this machine, again until it is there."""
    busy = asked.busy()
    st.fragment(_once_there, run_every=_POLL_S if busy else None)(draw, pair, busy)


def _once_there(draw: object, pair: Pair, was_busy: bool) -> None:
    with failures.shown():
        draw(pair)
        if was_busy and not asked.busy():
            st.rerun()


def _moved(pair: Pair) -> None:
    """Where a branch has moved on since the commit that is open: say so, and offer the new one."""
    for letter, side in (("a", pair.a), ("b", pair.b)):
        found = hub.meant(state.get(letter))
        if found is None or not found.fixed:
            continue
        revision = opening.revision_of(state.get(letter))
        known = asked.listing(found.repo, revision, _MOVED_FRESH_S).value
        if known is None or known[0].offline or known[0].commit == side.revision:
            continue
        now, branch = known[0].commit, revision or "the default branch"
        said = f"{letter.upper()} is commit {str(side.revision)[:10]} of {found.repo}; {branch} is at {now[:10]} now."
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(failures.escaped(said), width="content")
            st.button(
                "Take the new commit",
                key=f"take_new_{letter}",
                on_click=state.put,
                args=(letter, f"{found.repo}@{now}"),
            )


def abilities(pair: Pair) -> None:
    """What each stethoscope can do with this pair on this machine, and what not, with the reason."""
    st.subheader("What can be done with it")
    _filling_in(_abilities, pair)


def _abilities(pair: Pair) -> None:
    here = asked.machine()
    if here.value is None:
        st.caption(failures.escaped(here.error) or "Looking at this machine …")
        return
    from sfn.abilities import abilities as found

    lines = []
    for one in found(pair, here.value):
        icon, said = _VERDICTS[one.verdict]
        lines.append(
            f'<div class="sfn-ability sfn-{icon}"><b>{html.escape(one.what)}</b><span>{said}</span>'
            f"<div>{html.escape(one.sentence)}</div></div>"
        )
    st.html("".join(lines))
    memory = f"{words.size(here.value.memory_bytes)} of memory"
    gpu = f", a GPU of {words.size(here.value.gpu_bytes)}" if here.value.gpu_bytes else ", no NVIDIA GPU"
    st.caption(f"This machine: {memory}{gpu}, {words.size(here.value.hub_free_bytes)} free where models are kept.")


def summary(pair: Pair) -> None:
    """Both models side by side: what they are made of."""
    from sfn.facts import facts

    lines = "".join(
        f'<tr class="{"sfn-differs" if fact.differs else ""}"><th scope="row" title="{html.escape(fact.explanation)}">'
        f"{html.escape(fact.topic)}</th><td>{html.escape(fact.a)}</td><td>{html.escape(fact.b)}</td>"
        f"<td>{'differs' if fact.differs else 'same'}</td></tr>"
        for fact in facts(pair)
    )
    heads = "".join(f"<th>{words.side(letter, side.label)}</th>" for letter, side in (("A", pair.a), ("B", pair.b)))
    st.html(f'<table class="sfn-table"><thead><tr><th></th>{heads}<th></th></tr></thead><tbody>{lines}</tbody></table>')


def findings(pair: Pair) -> None:
    """What differs beside the weights, the gravest first: each with what it means."""
    if not pair.findings:
        st.html('<p class="sfn-fit">Nothing differs but the weights.</p>')
    for severity, (title, icon) in _TITLES.items():
        found = [finding for finding in pair.findings if finding.severity == severity]
        if not found:
            continue
        st.subheader(f"{icon} {title}")
        st.html(
            "".join(
                f'<div class="sfn-finding"><b>{html.escape(finding.topic)}</b><div>{html.escape(finding.sentence)}'
                f'<div class="sfn-muted">{html.escape(finding.means)}</div></div></div>'
                for finding in found
            )
        )
