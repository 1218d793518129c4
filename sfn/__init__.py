"""Stethoscope for Networks: which modules of a language model carry an ability?

Rooms are imported when they are first used, so that `import sfn` costs nothing: `sfn.checkpoints`, `sfn.pairs`,
`sfn.delta`, `sfn.recipes`, `sfn.surgery`, `sfn.engines`, `sfn.store`, `sfn.demo`.
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"

_ROOMS = (
    "anatomy", "checkpoints", "delta", "demo", "engine_room", "engines", "errors", "jobs", "pairs", "records",
    "recipes", "store", "surgery", "workbench",
)  # fmt: skip


def __getattr__(name: str) -> ModuleType:
    if name in _ROOMS:
        return importlib.import_module(f"sfn.{name}")
    raise AttributeError(f"module 'sfn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_ROOMS])
