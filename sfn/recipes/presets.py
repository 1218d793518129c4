"""The recipes that the paper tried (Shao & Wu, NeurIPS 2025, arXiv:2505.20993, section 3), one click each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Preset:
    """A ready-made recipe: a short `name` for links, a `label` for buttons, its `text`, and one line of `help`."""

    name: str
    label: str
    text: str
    help: str


PRESETS: tuple[Preset, ...] = (
    Preset("a", "all A", "", "The base model as it is."),
    Preset(
        "m1",
        "o_proj (M1)",
        "o_proj@all=B",
        "Only the attention output projection comes from B: the paper's merge M1, its main suspect.",
    ),
    Preset(
        "m2",
        "q, k, v (M2)",
        "qkv@all=B",
        "Only the attention inputs (query, key, value) come from B: the paper's merge M2.",
    ),
    Preset("m3", "mlp (M3)", "mlp@all=B", "Only the MLP comes from B: the paper's merge M3."),
    Preset(
        "o-norms",
        "o_proj + norms",
        "norms,o_proj@all=B",
        "The output projection with all norms: moved alone, it may meet vectors of the wrong scale.",
    ),
    Preset(
        "o-norms-ends",
        "o_proj + norms + emb + head",
        "emb,norms,o_proj,head@all=B",
        "The output projection, all norms, the token embedding and the output head come from B.",
    ),
    Preset(
        "but-o",
        "all but o_proj",
        "all@all=B; o_proj@all=A",
        "The counter-check: all of B, with A's attention output projection put back.",
    ),
    Preset("b", "all B", "all@all=B", "The reasoning model as it is."),
)
