"""What a viewer has chosen, and its copy in the URL: the one mechanism behind permalinks.

How it works. `PARAMETERS` names everything worth sharing: how it is read from a URL, how it is written, and the pages
whose picture it decides. The chosen value lives in `st.session_state` under the parameter's name; a widget that edits
it uses that name as its key, with `**KEEP`, so that the choice survives page switches. The frame calls `read` before
anything is drawn and `write` after the page:

- `read` takes values from the URL when a session begins, when the page was changed by a link that carries values, and
  when the browser goes back or forward; what such an address leaves out is at its default. On every other run the
  session is right and the URL follows, because a click may overtake the message that updates the URL. An address
  without any value is what the navigation on top leads to (the session's choices stay), and what it leaves behind in
  the browser's history before `write` completes it (going back there leaves the pair as it is).
- `write` makes the URL say what the page shows. Defaults are left out, so that a plain state has a plain address.

Streamlit's own `bind="query-params"` was not used: it drops a bad value without a word, forgets other pages' choices
in the URL after a switch, and cannot bind what no widget edits (the pair, the selected tensor).
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from sfn.errors import SfnError

KEEP: dict[str, Any] = {"persist_state": "session"}

_SIDES = ("a", "b")
_PAGE = "_page"  # the page of the last run
_PROBLEMS = "_url_problems"
_OWNER = "_owner"


class _BadValue(SfnError):
    """A URL parameter that cannot be read; the message says what would be legal."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One thing that a permalink carries.

    Attributes:
        name: name in the URL, key in the session, key of its widget. pages: url paths it belongs to; () = all.
        default: value that the URL leaves out. parse: text -> value, raises _BadValue with what is legal.
        what: what a person calls it, for sentences.
    """

    name: str
    what: str
    default: Any
    parse: Callable[[str], Any]
    pages: tuple[str, ...] = ()

    def belongs(self, page: str) -> bool:
        """Whether the parameter decides what `page` shows."""
        return not self.pages or page in self.pages


def text(longest: int = 20_000) -> Callable[[str], str]:
    """A parser for free text."""

    def parse(raw: str) -> str:
        if len(raw) > longest:
            raise _BadValue(f"it has {len(raw)} characters, at most {longest} are read")
        return raw

    return parse


def one_of(*legal: str) -> Callable[[str], str]:
    """A parser for a choice."""

    def parse(raw: str) -> str:
        if raw not in legal:
            raise _BadValue(f"there is {', '.join(legal)}")
        return raw

    return parse


def number(kind: type[int] | type[float], low: float, high: float) -> Callable[[str], Any]:
    """A parser for a number in [low, high]."""

    def parse(raw: str) -> Any:
        try:
            value = kind(raw)
        except ValueError:
            raise _BadValue(f"it must be a number from {low:g} to {high:g}") from None
        if not low <= value <= high:
            raise _BadValue(f"it must be from {low:g} to {high:g}")
        return value

    return parse


def flag(raw: str) -> bool:
    """A parser for on / off."""
    if raw not in ("1", "0"):
        raise _BadValue("it must be 1 or 0")
    return raw == "1"


def columns(raw: str) -> str:
    """A parser for the columns of answers: recipes, "A", "merged" and "B" with bars between them; "" is the default."""
    if len(raw) > 20_000 or len(raw.split(BETWEEN_COLUMNS)) > MOST_COLUMNS:
        raise _BadValue(
            f"at most {MOST_COLUMNS} columns, with {BETWEEN_COLUMNS} between them, as in A|merged|o_proj@all=B"
        )
    return BETWEEN_COLUMNS.join(dict.fromkeys(text.strip() for text in raw.split(BETWEEN_COLUMNS) if text.strip()))


FIGURES = (
    "l2_shift", "rms_shift", "relative_shift", "cosine", "changed_share", "max_abs_shift", "dip", "ashman_d", "outside",
)  # fmt: skip
LAYOUTS = ("board", "heads", "paper")
SCALES = ("linear", "log")
PARTS = ("weight", "bias")
FORMS = ("script", "paper")
MODES = ("plain", "chat")
BARS = ("linear", "log")
MAPS = ("size", "signed")
ROWS_BY = ("l2_shift", "relative_shift")
SHOW = ("drawn", "plain", "difference")
MOST_COLUMNS, BETWEEN_COLUMNS = 6, "|"  # no recipe has a bar
MOST_SAMPLES = 32
VIEWS = ("answers", "sweep", "take")
SWEEP_ROWS = ("each", "but", "thirds", "layers", "alpha", "presets", "list")
SWEEP_COLUMNS = ("prompts", "seeds", "thirds", "layers", "alpha")
SWEEP_FIGURES = ("text", "tokens", "contains", "like_a", "like_b")
SWEEP_BASES = ("a", "board", "b")

_MERGE = ("merge",)
_DELTA = ("delta",)
_HISTORY = ("history",)

PARAMETERS: tuple[Parameter, ...] = (
    Parameter("a", "model A", "", text(4096)),
    Parameter("b", "model B", "", text(4096)),
    Parameter("figure", "figure", "l2_shift", one_of(*FIGURES), _DELTA),
    Parameter("scale", "scale", "linear", one_of(*SCALES), _DELTA),
    Parameter("part", "part of a module", "weight", one_of(*PARTS), _DELTA),
    Parameter("form", "form of the relative change", "script", one_of(*FORMS), _DELTA),
    Parameter("every", "step between layers", 0, number(int, 0, 1000), _DELTA),
    Parameter("tensor", "tensor", "", text(500), _DELTA),
    Parameter("layout", "layout", "board", one_of(*LAYOUTS), _DELTA),
    Parameter("beside", "second pair", "", text(64), _DELTA),
    Parameter("bars", "scale of the histogram", "linear", one_of(*BARS), _DELTA),
    Parameter("map_of", "map", "size", one_of(*MAPS), _DELTA),
    Parameter("map_part", "part of the map", "", text(60), _DELTA),
    Parameter("directions", "number of directions", 8, number(int, 1, 64), _DELTA),
    Parameter("rows_by", "order of the rows", "l2_shift", one_of(*ROWS_BY), _DELTA),
    Parameter("head_kind", "kind of heads", "", text(40), _DELTA),
    Parameter("heads_of", "module of the heads", "", text(200), _DELTA),
    Parameter("heads_by", "figure of a head", "l2_shift", one_of(*ROWS_BY), _DELTA),
    Parameter("of_expert", "expert", 0, number(int, 0, 100_000), _DELTA),
    Parameter("scan", "what to measure", "", text(2000), _DELTA),
    Parameter("recipe", "recipe", "", text(), _MERGE),
    Parameter("view", "view", "answers", one_of(*VIEWS), _MERGE),
    Parameter("columns", "columns", "", columns, _MERGE),
    Parameter("show", "way to show answers", "drawn", one_of(*SHOW), _MERGE),
    Parameter("samples", "number of samples", 1, number(int, 1, MOST_SAMPLES), _MERGE),
    Parameter("sample", "sample to show", 1, number(int, 1, MOST_SAMPLES), _MERGE),
    Parameter("prompt", "prompt", "", text(200_000), _MERGE),
    Parameter("mode", "prompt mode", "plain", one_of(*MODES), _MERGE),
    Parameter("max_tokens", "most tokens", 256, number(int, 1, 131_072), _MERGE),
    Parameter("temperature", "temperature", 0.0, number(float, 0.0, 2.0), _MERGE),
    Parameter("top_p", "top p", 1.0, number(float, 0.01, 1.0), _MERGE),
    Parameter("top_k", "top k", 0, number(int, 0, 1_000_000), _MERGE),
    Parameter("seed", "seed", 0, number(int, 0, 2**31 - 1), _MERGE),
    Parameter("sweep", "sweep", 0, number(int, 0, 2**53), _MERGE),
    Parameter("sweep_figure", "figure of a sweep", "text", one_of(*SWEEP_FIGURES), _MERGE),
    Parameter("sweep_cell", "cell of a sweep", "", text(20), _MERGE),
    Parameter("sweep_rows", "rows of a sweep", "each", one_of(*SWEEP_ROWS), _MERGE),
    Parameter("sweep_columns", "columns of a sweep", "prompts", one_of(*SWEEP_COLUMNS), _MERGE),
    Parameter("sweep_base", "base of a sweep", "a", one_of(*SWEEP_BASES), _MERGE),
    Parameter("sweep_source", "source of a sweep", "B", text(100), _MERGE),
    Parameter("sweep_names", "modules of a sweep", "", text(2000), _MERGE),
    Parameter("sweep_width", "layers in a window", 1, number(int, 1, 9999), _MERGE),
    Parameter("sweep_step", "layers between windows", 1, number(int, 1, 9999), _MERGE),
    Parameter("sweep_low", "lowest alpha", 0.0, number(float, -100, 100), _MERGE),
    Parameter("sweep_high", "highest alpha", 1.0, number(float, -100, 100), _MERGE),
    Parameter("sweep_steps", "steps of alpha", 5, number(int, 1, 101), _MERGE),
    Parameter("sweep_seeds", "number of seeds", 4, number(int, 1, 64), _MERGE),
    Parameter("sweep_recipes", "recipes of a sweep", "", text(), _MERGE),
    Parameter("sweep_prompts", "prompts of a sweep", "", text(200_000), _MERGE),
    Parameter("sweep_reference", "reference answer", "", text(2000), _MERGE),
    Parameter("search", "search", "", text(1000), _HISTORY),
    Parameter("in_pair", "pair to list", "", text(200), _HISTORY),
    Parameter("in_engine", "engine to list", "", text(100), _HISTORY),
    Parameter("in_mode", "mode to list", "", one_of("", *MODES), _HISTORY),
    Parameter("in_recipe", "recipe to list", "", text(), _HISTORY),
    Parameter("ids", "selected generations", "", text(2000), _HISTORY),
)
_BY_NAME = {parameter.name: parameter for parameter in PARAMETERS}


def get(name: str) -> Any:
    """The value in force of a parameter."""
    return st.session_state.get(name, _BY_NAME[name].default)


def put(name: str, value: Any) -> None:
    """Choose a value. Inside a run only before the widget of that name is drawn; in callbacks always."""
    if name not in _BY_NAME:
        raise KeyError(name)
    st.session_state[name] = value


def prepare(*names: str) -> None:
    """Give parameters that have no value yet their default, so that their widgets start there."""
    for name in names:
        st.session_state.setdefault(name, _BY_NAME[name].default)


def browser() -> str:
    """Who this viewer is, to background jobs and to the engine's queue: one name per browser, so that what was asked
    in one tab, or before a reload, can be stopped in another.

    It is made from the token that Streamlit keeps in a cookie against forged requests. Without one every tab is a
    viewer of its own, until it is reloaded.
    """
    match st.context.cookies.get("_streamlit_xsrf", "").strip('"').split("|"):
        case ["2", mask, masked, _]:  # the token is masked anew with every page, by a repeated XOR
            try:
                key, token = bytes.fromhex(mask), bytes.fromhex(masked)
            except ValueError:
                return _tab()
            plain = bytes(byte ^ key[at % len(key)] for at, byte in enumerate(token)) if key else token
            return hashlib.sha256(plain).hexdigest()
    return _tab()


def _tab() -> str:
    """One random name per session of a browser's tab."""
    return st.session_state.setdefault(_OWNER, uuid.uuid4().hex)


def problems() -> tuple[str, ...]:
    """Sentences about URL values of this session that could not be used."""
    return tuple(st.session_state.get(_PROBLEMS, ()))


def read(page: str) -> None:
    """Take over what the URL says, where the URL is right (see above). Call before anything is drawn."""
    context = get_script_run_ctx()
    first = _PAGE not in st.session_state
    history = bool(context is not None and context.is_history_navigation)
    moved = not first and st.session_state[_PAGE] != page
    st.session_state[_PAGE] = page
    if not (first or history or moved):
        return
    st.session_state[_PROBLEMS] = []
    for parameter in PARAMETERS:
        if not parameter.belongs(page):
            continue
        raw = st.query_params.get(parameter.name)
        if raw is not None:
            _take(parameter, raw)
        elif not first and (st.query_params or (history and parameter.name not in _SIDES)):
            put(parameter.name, parameter.default)


def _take(parameter: Parameter, raw: str) -> None:
    try:
        put(parameter.name, parameter.parse(raw))
    except _BadValue as error:
        shown = raw if len(raw) <= 60 else raw[:57] + "…"
        st.session_state[_PROBLEMS] = [
            *problems(),
            f"The address asks for the {parameter.what} “{shown}”, which cannot be used: {error}. "
            f"“{parameter.default}” is shown instead."
            if parameter.default != ""
            else f"The address asks for the {parameter.what} “{shown}”, which cannot be used: {error}.",
        ]
        put(parameter.name, parameter.default)


def write() -> None:
    """Make the URL say what the page shows, where it does not yet. Fragments that change a choice call it too."""
    page = st.session_state.get(_PAGE, "")
    wanted = link(page)
    if st.query_params.to_dict() != wanted:
        st.query_params.from_dict(wanted)


def _format(value: Any) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"
    return f"{value:g}" if isinstance(value, float) else str(value)


def link(page: str) -> dict[str, str]:
    """The query of a link to `page` that shows what this viewer has chosen."""
    return query(page, **{parameter.name: get(parameter.name) for parameter in PARAMETERS if parameter.belongs(page)})


def query(page: str, **values: Any) -> dict[str, str]:
    """The query of a link to `page` that shows these values; what is not given stays as the viewer has it."""
    return {
        name: _format(value)
        for name, value in values.items()
        if _BY_NAME[name].belongs(page) and value not in (_BY_NAME[name].default, None)
    }
