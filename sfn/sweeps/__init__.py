"""Sweeps: one axis of recipes against prompts, seeds or a second axis of recipes. Pure; asks no engine, keeps nothing.

`definition` says what is asked for, `grids` what that means for a pair, `order` in which order recipes are loaded,
`figures` what the answers show, `web_page` the grid as a file. They are run by `sfn.sweep_room` and kept by
`sfn.store`.
"""

from sfn.sweeps.definition import (
    COLUMNS,
    MOST_CELLS,
    ROWS,
    Prompt,
    Sweep,
    from_json,
    read_prompts,
    read_recipes,
    to_json,
    write_prompts,
)
from sfn.sweeps.figures import (
    FIGURES,
    Figure,
    Reading,
    contains,
    likeness,
    pattern,
    readings,
    sentence,
    state_of,
    table,
)
from sfn.sweeps.grids import A_ROW, ALL_B, B_ROW, Grid, Line, Spot, expand, modules
from sfn.sweeps.order import moved_bytes, nearest_first, sizes
from sfn.sweeps.web_page import web_page

__all__ = [
    "ALL_B", "A_ROW", "B_ROW", "COLUMNS", "FIGURES", "MOST_CELLS", "ROWS",
    "Figure", "Grid", "Line", "Prompt", "Reading", "Spot", "Sweep",
    "contains", "expand", "from_json", "likeness", "modules", "moved_bytes", "nearest_first", "pattern",
    "read_prompts", "read_recipes", "readings", "sentence", "sizes", "state_of", "table", "to_json", "web_page",
    "write_prompts",
]  # fmt: skip
