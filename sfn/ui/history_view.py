"""What the page "History" is made of: filters, the list, answers side by side, downloads. Nothing is computed here."""

from __future__ import annotations

import html
from datetime import UTC
from typing import TYPE_CHECKING, Any

import streamlit as st

from sfn.errors import SfnError
from sfn.ui import cached, failures, routes, state, words

if TYPE_CHECKING:
    import pandas as pd

    from sfn.records import Generation

_ANY = ""
_FILTERS = ("search", "in_pair", "in_engine", "in_mode", "in_recipe")
_LONGEST_LIST = 1000
_MOST_OPEN = 6
_SIDE_BY_SIDE = 3
_MIME = {"csv": "text/csv", "parquet": "application/vnd.apache.parquet", "json": "application/json"}
_FINISH = {"stop": "ended by itself", "length": "cut at the most tokens", "cancelled": "cancelled"}
_ALL_A = "(all A)"  # the recipe "" as a choice of its own; "" is no filter


def filters() -> dict[str, Any]:
    """Draw the filters; returns arguments of `Store.generations`."""
    known = cached.known_generations()
    labels = dict(zip(known["pair_key"], known["a_label"] + " → " + known["b_label"], strict=True))
    recipes = sorted({recipe or _ALL_A for recipe in known["recipe"]} | _given("in_recipe"))
    state.prepare(*_FILTERS)
    search, pair, engine, mode, recipe = st.columns([2.4, 2.4, 1.4, 1.2, 2.2])
    search.text_input("Search", key="search", placeholder="in prompts, answers, recipes", **state.KEEP)
    _choice(pair, "Pair", "in_pair", list(labels), lambda key: labels.get(key, "another pair"))
    _choice(engine, "Engine", "in_engine", sorted(set(known["engine"])), str)
    _choice(mode, "Mode", "in_mode", list(state.MODES), str)
    _choice(recipe, "Recipe", "in_recipe", recipes, str)
    chosen = {
        "pair_key": state.get("in_pair") or None,
        "engine": state.get("in_engine") or None,
        "mode": state.get("in_mode") or None,
        "recipe": {"": None, _ALL_A: ""}.get(state.get("in_recipe"), state.get("in_recipe")),
    }
    return {"search": state.get("search"), **chosen}


def _given(name: str) -> set[str]:
    return {state.get(name)} - {_ANY}


def _choice(place: Any, label: str, name: str, options: list[str], written: Any) -> None:
    options = [_ANY, *sorted(set(options) | _given(name), key=written)]
    place.selectbox(
        label, options, key=name, format_func=lambda value: "all" if value == _ANY else written(value), **state.KEEP
    )


def listing(criteria: dict[str, Any]) -> pd.DataFrame:
    """Draw the list, newest first; selected rows are opened below. Returns what is listed."""
    store = cached.workbench().store
    many = store.count_generations(**criteria)
    table = store.generations(**criteria, limit=_LONGEST_LIST)
    if not many:
        anything = bool(cached.known_generations().shape[0])
        st.markdown("No answer fits these filters." if anything else "No answer was generated yet.")
        if not anything:
            routes.link("merge", "Ask the models something on the page Merge →")
        return table
    ids = table["id"].tolist()
    chosen = set(selected())
    key = f"history_{abs(hash((many, *sorted((k, str(v)) for k, v in criteria.items()))))}"
    st.dataframe(
        _shown(table),
        key=key,
        hide_index=True,
        height=min(38 + 35 * len(table), 320),
        column_config=_columns(),
        on_select=lambda: _select(key, ids),
        selection_mode="multi-row",
        selection_default={"selection": {"rows": [row for row, id in enumerate(ids) if id in chosen]}},
        alt="List of generated answers",
    )
    more = f"The newest {_LONGEST_LIST:,} of {many:,}; narrow the search for older ones. " if many > len(table) else ""
    st.caption(f"{more}{many:,} answers. Select one to open it, several to compare them.")
    return table


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    shown = table[["id", "created_at", "prompt", "text", "n_tokens", "tokens_per_s", "engine", "mode", "seed"]].copy()
    shown.insert(2, "recipe", table["recipe"].replace("", "all A"))
    shown.insert(3, "pair", table["a_label"] + " → " + table["b_label"])
    shown["text"] = shown["text"].str.slice(0, 200).str.replace(r"\s+", " ", regex=True)
    shown["prompt"] = shown["prompt"].str.slice(0, 200).str.replace(r"\s+", " ", regex=True)
    shown["finish"] = table["finish"].map(_FINISH)
    return shown


def _columns() -> dict[str, Any]:
    column = st.column_config
    return {
        "id": column.NumberColumn("No.", width=60, help="Number of the answer; it never changes."),
        "created_at": column.DatetimeColumn("When", width=140, format="YYYY-MM-DD HH:mm", help="In your time zone."),
        "recipe": column.TextColumn("Recipe", width=150, help="Which modules came from B."),
        "pair": column.TextColumn("Pair", width=130),
        "prompt": column.TextColumn("Prompt", width=220),
        "text": column.TextColumn("Answer", width=300, help="Its first 200 characters."),
        "n_tokens": column.NumberColumn("Tokens", width=70),
        "tokens_per_s": column.NumberColumn("Tokens/s", width=80, format="%.1f"),
        "engine": column.TextColumn("Engine", width=100),
        "mode": column.TextColumn("Mode", width=60, help="plain: the prompt is continued; chat: it is a message."),
        "seed": column.NumberColumn("Seed", width=70, format="%d"),
        "finish": column.TextColumn("Ended", width=140),
    }


def _select(key: str, ids: list[int]) -> None:
    rows = st.session_state[key].selection.rows
    state.put("ids", ",".join(str(ids[row]) for row in rows if row < len(ids)))


def selected() -> tuple[int, ...]:
    """Numbers of the answers that are open. Raises SfnError where the address holds something else."""
    raw = state.get("ids")
    if not raw:
        return ()
    try:
        return tuple(dict.fromkeys(int(word) for word in raw.split(",")))
    except ValueError:
        raise SfnError(f"The address asks for the answers “{raw[:60]}”; they are numbers, as in ids=3,7.") from None


def downloads(table: pd.DataFrame) -> None:
    """Buttons that save the selection, or everything that was ever generated."""
    if table.empty:
        return
    ids = selected()
    what = f"{len(ids)} selected" if ids else "all"
    st.html('<div class="sfn-head">Download</div>')
    row = st.container(horizontal=True)
    for kind, mime in _MIME.items():
        row.download_button(
            f"{kind.upper() if kind != 'parquet' else 'Parquet'} ({what})",
            lambda kind=kind: cached.workbench().store.export(kind, list(ids) or None),
            f"sfn-answers.{kind}",
            mime,
            key=f"download_{kind}",
            on_click="ignore",
        )


def opened() -> None:
    """The selected answers in full, side by side; a number that there is not is a sentence in its place."""
    ids = selected()
    if not ids:
        return
    st.subheader("Compared" if len(ids) > 1 else "Opened")
    if len(ids) > _MOST_OPEN:
        st.caption(f"The first {_MOST_OPEN} of {len(ids)} are shown.")
        ids = ids[:_MOST_OPEN]
    for start in range(0, len(ids), _SIDE_BY_SIDE):
        row = ids[start : start + _SIDE_BY_SIDE]
        for place, number in zip(st.columns(len(row)), row, strict=True):
            with place, failures.shown():
                _answer(number, cached.workbench().store.generation(number))


def _answer(number: int, found: Generation) -> None:
    question, sampling = found.question, found.question.sampling
    settings = [f"at most {sampling.max_tokens} tokens", f"temperature {sampling.temperature:g}"]
    if sampling.temperature:
        settings += [f"top p {sampling.top_p:g}", f"top k {sampling.top_k}", f"seed {sampling.seed}"]
    when = found.created_at.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    figures = [
        f"{found.n_tokens} tokens",
        f"{found.tokens_per_s:.1f} tokens/s",
        f"first after {words.seconds(found.first_token_s)}",
        _FINISH[found.finish],
    ]
    engine = f"{question.engine} {question.engine_version} · {question.device} · {question.dtype}"
    st.html(
        f'<div class="sfn-pair"><b>No. {number}</b> · {when}<br>{words.chip(words.recipe(question.recipe))}'
        f"{words.side('A', found.a_label)}{words.side('B', found.b_label)}"
        f'<div class="sfn-head">Prompt · {question.mode}</div>'
        f"{words.said(question.prompt)}"
        f'<div class="sfn-head">Answer</div>{words.said(found.text, "sfn-answer")}'
        f'<div class="sfn-muted">{" · ".join(figures)}<br>{html.escape(engine)}<br>{" · ".join(settings)}</div></div>'
    )
    query = _merge_query(found)
    if query is not None:
        routes.link("merge", "Open on the page Merge", query=query)


def _merge_query(found: Generation) -> dict[str, str] | None:
    """Query of a Merge page that shows this answer again; None where its models' folders are not known."""
    question, sampling = found.question, found.question.sampling
    saved = cached.workbench().store.pair(question.pair_key)
    if saved is None:
        return None
    folders = (saved.summary.get("a") or saved.a_folder, saved.summary.get("b") or saved.b_folder)
    given = dict(zip("ab", folders, strict=True)) if folders != cached.bundled_folders() else {"a": "", "b": ""}
    return state.query(
        "merge",
        **given,
        recipe=question.recipe,
        prompt=question.prompt,
        mode=question.mode,
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=sampling.seed,
    )
