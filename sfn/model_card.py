"""The README.md of a merged checkpoint: what it was made of, by which recipe, and how to make it again.

Says where every part comes from and claims nothing about quality. Owns the card's words and front matter; what is in
the checkpoint is `surgery`'s.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import yaml

import sfn
from sfn import recipes
from sfn.checkpoints import Checkpoint
from sfn.errors import RecipeError, SfnError

if TYPE_CHECKING:
    from sfn.pairs import Pair
    from sfn.recipes import Plan

_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)


def card(pair: Pair, plan: Plan, origin: Mapping[str, object]) -> str:
    """The card's text. origin: what sfn_recipe.json says."""
    return f"---\n{_front_matter(pair)}---\n\n{''.join(_sections(pair, plan, origin))}"


def licence(side: Checkpoint) -> dict[str, str]:
    """What the side's own model card gives as licence: license, license_name, license_link; {} where it states none."""
    try:
        if not side.files.has("README.md"):
            return {}
        found = _FRONT_MATTER.match(side.files.path("README.md").read_text(encoding="utf-8", errors="replace"))
        content = yaml.safe_load(found[1]) if found else None
    except (OSError, SfnError, yaml.YAMLError, ValueError, RecursionError):
        return {}
    stated = content if isinstance(content, dict) else {}
    keys = ("license", "license_name", "license_link")
    return {key: _line(stated[key]) for key in keys if isinstance(stated.get(key), str) and stated[key].strip()}


def _line(text: object) -> str:
    """`text` on one line, with nothing in it that Markdown would take for code or a table."""
    return " ".join(str(text).split()).replace("`", "'").replace("|", "/")


def _front_matter(pair: Pair) -> str:
    """YAML that the Hub reads: models on the Hub as base, the licence where both sides have the same."""
    bases = [side.label for side in (pair.a, pair.b) if side.revision]
    of_a, of_b = (licence(side) for side in (pair.a, pair.b))
    content: dict[str, object] = {}
    if bases:
        content |= {"base_model": bases, "base_model_relation": "merge"}
    if of_a == of_b:
        content |= of_a
    content |= {"library_name": "transformers", "pipeline_tag": "text-generation"}
    content["tags"] = ["merge", "module-merge", "stethoscope-for-networks"]
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _sections(pair: Pair, plan: Plan, origin: Mapping[str, object]) -> Iterator[str]:
    recipe = recipes.format(plan.recipe)
    yield f"# {_line(pair.a.label)} with modules of {_line(pair.b.label)}\n\n"
    yield (
        "Put together from two models, tensor by tensor, with Stethoscope for Networks (SfN). Nothing was trained, and "
        "nothing about this model's quality was measured when it was written.\n\n"
    )
    yield f"Recipe: `{_line(recipe) or 'all A'}`\n\n{plan.sentence}.\n\n"
    yield "## Where it comes from\n\n"
    yield from _origins(pair, origin)
    yield "\n## What is whose\n\n"
    yield from _shares(pair, plan)
    yield "\n## Make it again\n\n"
    yield _python(pair, recipe)
    yield from _mergekit(pair, plan)
    yield f"\nWritten {origin['created_at']} by SfN {sfn.__version__}; `sfn_recipe.json` says the same for programs.\n"


def _origins(pair: Pair, origin: Mapping[str, object]) -> Iterator[str]:
    yield "| | A, the frame | B |\n|---|---|---|\n"
    sides = (pair.a, pair.b)
    known = [origin[side] for side in "ab"]
    rows = {
        "model": [_line(side.label) for side in sides],
        "commit on the Hub": [side.revision or "not from the Hub" for side in sides],
        "licence by its card": [_licence_name(licence(side)) for side in sides],
        "SHA-256 of the files": [
            f"`{found['fingerprint']}`" if found["fingerprint"] else "not computed"  # type: ignore[index]
            for found in known
        ],
    }
    for name, values in rows.items():
        yield f"| {name} | {values[0]} | {values[1]} |\n"
    yield f"\nPlan `{plan_key}`.\n" if (plan_key := origin.get("plan_key")) else ""


def _licence_name(stated: Mapping[str, str]) -> str:
    name = stated.get("license_name") or stated.get("license") or "not stated"
    return f"{name} ({stated['license_link']})" if "license_link" in stated else name


def _shares(pair: Pair, plan: Plan) -> Iterator[str]:
    kinds = {source.kind for source in plan.sources.values()}
    yield "- Every tensor that the recipe does not name is A's, bit for bit.\n"
    if "B" in kinds:
        casts = any(
            r.a and r.b and r.a.dtype != r.b.dtype for r in pair.rows if plan.sources.get(r.name, _A).kind == "B"
        )
        yield f"- What comes from B is B's, {'cast to the dtype that A has there' if casts else 'bit for bit'}.\n"
    if "blend" in kinds:
        yield "- A blend B:x is (1 - x) A + x B, computed in float32 and rounded once to A's dtype.\n"
    if "zero" in kinds:
        yield "- Tensors set to zero hold nothing but zeros.\n"
    if "reinit" in kinds:
        yield "- Matrices drawn at random are from N(0, 0.02^2), by the seed in the recipe; vectors are neutral.\n"
    if plan.removed:
        yield "- Layers were removed and the others counted anew.\n"
    yield (
        "- Architecture, positions (rope), norm epsilon and context length are A's (`config.json`); a tie of embedding "
        "and head is kept only where both still come from one tied model.\n"
    )
    yield f"- Tokenizer, chat template and token ids are {plan.tokenizer}'s, as the output head is.\n"


_A = recipes.Source("A")


def _python(pair: Pair, recipe: str) -> str:
    a, b = (f'"{_name(side)}", revision="{side.revision}"' if side.revision else f'"{_name(side)}"'
            for side in (pair.a, pair.b))  # fmt: skip
    return (
        "In SfN's folder, with the folders of A and B, or their names on the Hub:\n\n"
        "```python\n"
        "from sfn import checkpoints, pairs, recipes, surgery\n\n"
        f"a = checkpoints.open({a})\n"
        f"b = checkpoints.open({b})\n"
        f'surgery.write(pairs.compare(a, b), recipes.parse({recipe!r}), "merged")\n'
        "```\n"
    )


def _name(side: Checkpoint) -> str:
    return _line(side.label).replace('"', "'").replace("\\", "/")


def _mergekit(pair: Pair, plan: Plan) -> Iterator[str]:
    try:
        config = recipes.to_mergekit(plan, pair, **{
            name: f"{side.label}@{side.revision}" if side.revision else _name(side)
            for name, side in (("a", pair.a), ("b", pair.b))
        })  # fmt: skip
    except RecipeError as reason:
        yield f"\nmergekit cannot make it: {_line(reason)}\n"
        return
    yield f"\nOr with mergekit 0.1.5, as `mergekit-yaml config.yml merged`:\n\n```yaml\n{config.yaml}```\n"
