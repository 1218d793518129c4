"""What comes from where: the recipe language, its canonical form, and what a recipe means for a pair.

`grammar` reads and writes recipes, `canonical` brings rules into one form, `plans` resolves a recipe for a pair (with
what `lookup` remembers of that pair), `boards` goes from cells of a module x layer board to a recipe and back,
`presets` holds the paper's recipes, `mergekit_export` and `mergekit_import` speak mergekit's configs (`name_filters` is
what they say of names). Weights are touched elsewhere (`sfn.surgery`).
"""

from sfn.recipes.boards import cells, compact, invert, obstacle, paint
from sfn.recipes.grammar import Recipe, Rule, Source, format, parse
from sfn.recipes.lookup import Place, matches, place
from sfn.recipes.mergekit_export import MergekitConfig, to_mergekit
from sfn.recipes.mergekit_import import Imported, from_mergekit
from sfn.recipes.plans import Plan, resolve
from sfn.recipes.presets import PRESETS, Preset

__all__ = [
    "PRESETS",
    "Imported",
    "MergekitConfig",
    "Place",
    "Plan",
    "Preset",
    "Recipe",
    "Rule",
    "Source",
    "cells",
    "compact",
    "format",
    "from_mergekit",
    "invert",
    "matches",
    "obstacle",
    "paint",
    "parse",
    "place",
    "resolve",
    "to_mergekit",
]
