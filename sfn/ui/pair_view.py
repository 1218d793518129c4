"""What the page "Pair" is made of: choosing the two models, their comparison, and what differs."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

import streamlit as st

from sfn.ui import cached, failures, opening, state, words

if TYPE_CHECKING:
    from sfn.pairs import Pair

_BUNDLED, _FOLDERS = "the bundled pair", "two local folders"
_KIND = "_pair_kind"
_FIELDS = {"a": "_folder_a", "b": "_folder_b"}
_LABELS = {"a": "Folder of model A, the base", "b": "Folder of model B, fine-tuned from A"}
_TITLES = {
    "stop": ("Stops a merge", ":material/block:"),
    "limit": ("Limits what can be done", ":material/warning:"),
    "note": ("Worth knowing", ":material/info:"),
}


def chooser() -> None:
    """Choose the pair. Ends the run with a sentence per side where a folder cannot be used."""
    chosen = bool(state.get("a") or state.get("b"))
    st.session_state.setdefault(_KIND, _FOLDERS if chosen else _BUNDLED)
    if chosen:
        st.session_state[_KIND] = _FOLDERS
    kind = st.segmented_control(
        "Models", [_BUNDLED, _FOLDERS], key=_KIND, on_change=_switch, label_visibility="collapsed", required=True
    )
    if kind == _BUNDLED:
        st.caption(
            "A toy of 1.4 million parameters each, trained for this app: A answers at once, B thinks first. "
            "It speaks about sums with numbers up to 99 and a few small stories, and about nothing else."
        )
        return
    _folders()


def _switch() -> None:
    if st.session_state[_KIND] == _BUNDLED:
        state.put("a", "")
        state.put("b", "")


def _folders() -> None:
    given = dict(zip(_FIELDS, opening.folders(), strict=True))
    with st.form("folders", border=False):
        places = st.columns(2)
        problems = []
        for (name, key), place in zip(_FIELDS.items(), places, strict=True):
            st.session_state.setdefault(key, given[name])
            place.text_input(_LABELS[name], key=key, placeholder="/models/Qwen2.5-Math-1.5B")
            problem = cached.folder_problem(given[name])
            if problem:
                problems.append(problem)
                with place:
                    failures.sentence(problem)
        st.form_submit_button("Compare", on_click=_take)
    if problems:
        st.stop()


def _take() -> None:
    for name, key in _FIELDS.items():
        state.put(name, st.session_state[key].strip())


def fit(pair: Pair) -> None:
    """The comparison in one sentence: how much can be done with this pair."""
    comparable, movable = sum(row.comparable for row in pair.rows), sum(row.movable for row in pair.rows)
    stops = [finding for finding in pair.findings if finding.severity == "stop"]
    said = f"<b>{comparable} of {len(pair.rows)}</b> tensors can be compared, <b>{movable}</b> moved from B into A."
    if stops:
        said += f" These two cannot be merged: {html.escape(stops[0].sentence)}"
    st.html(f'<p class="sfn-fit">{said}</p>')


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
