"""A program, not a test: what happens to a model of each kind whose weights change while it runs, and what fresh vLLM
engines with vLLM's own loader say on the same recipes merged on disk.

    python swapping.py WORK.json

WORK.json: {"kinds": {name: {"a": folder, "b": folder, "recipes": {name: text}, "random": [text, ...], "asked": [index
of a random one, ...], "spoils": [[module, spoil, recipe], ...]}}, "merged": folder to write into, "prompts",
"max_tokens", "options"}. Prints one JSON line, by kind; see `run`. All engines run one after another in this process,
which saves the imports.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads that wait for each other cost more than they bring here
sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.engine import fresh  # sets vLLM's environment


class Hot:
    """One engine with our load format, asked as a server would be."""

    def __init__(self, pair: Any, options: dict[str, Any]) -> None:
        from vllm import LLM

        from sfn import recipes
        from sfn.engines import orders

        self._pair = pair
        self.llm = LLM(
            str(pair.a.folder),
            load_format="sfn",
            model_loader_extra_config=orders.start_order(pair, recipes.resolve(recipes.Recipe(), pair)),
            worker_extension_cls="tests.engine.spoiling.SpoilingWorker",
            hf_overrides={"tie_word_embeddings": False},
            generation_config="vllm",
            seed=0,
            **options,
        )

    def become(self, text: str, **keywords: Any) -> dict[str, Any]:
        """What the worker answers."""
        from sfn import recipes
        from sfn.engines import orders

        order = orders.order(self._pair, recipes.resolve(recipes.parse(text), self._pair))
        return self.tell("sfn_become", order, budget_s=1e9, **keywords)

    def say(self, work: dict[str, Any]) -> list[dict[str, Any]]:
        return [fresh.said(self.llm, prompt, work["max_tokens"]) for prompt in work["prompts"]]

    def tell(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        (answer,) = self.llm.collective_rpc(method, args=arguments, kwargs=keywords)
        return answer


def run(kind: dict[str, Any], work: dict[str, Any], merged: Path) -> dict[str, Any]:
    """One kind's run: {

    "proved", "said at first": the worker's first answer, and the model's words, on A;
    "answers", "said": to the recipes, then to the random ones; words by the recipe's name, or number if random;
    "back", "said again", "reread": on A in the end, after all of them;
    "spoiled": [{"kind": of module, "first", "again": the worker's answers}]; "corrupted": [modules found], "mended";
    "fresh": {recipe: words}}. Words are as fresh.py has them.
    """
    from sfn import checkpoints, pairs, recipes, surgery

    pair = pairs.compare(checkpoints.open(kind["a"]), checkpoints.open(kind["b"]))
    hot = Hot(pair, work["options"])
    found: dict[str, Any] = {"proved": hot.become(""), "said at first": hot.say(work)}
    found |= {"said": {}, "answers": [], "spoiled": [], "corrupted": []}

    texts = dict(kind["recipes"])
    for name, text in kind["recipes"].items():
        found["answers"].append(hot.become(text))
        found["said"][name] = hot.say(work)
    for number, text in enumerate(kind["random"]):
        found["answers"].append(hot.become(text))
        if number in kind["asked"]:
            texts[str(number)] = text
            found["said"][str(number)] = hot.say(work)
    found["back"], found["said again"] = hot.become(""), hot.say(work)
    found["reread"] = hot.tell("sfn_reread")
    for module, spoil, text in kind["spoils"]:
        hot.become("")
        what = hot.tell("sfn_spoil", module, spoil)
        first, again = hot.become(text), hot.become(text, afresh=True)
        found["spoiled"].append({"kind": what, "first": first, "again": again})
    hot.become("")
    for module, spoil, _ in kind["spoils"]:
        if spoil not in ("raises", "not applied"):
            hot.tell("sfn_corrupt", module, spoil)
            found["corrupted"].append(hot.tell("sfn_reread")["changed"])
            hot.become("", afresh=True)
    found["mended"] = hot.tell("sfn_reread")
    del hot
    fresh.clear()
    folders = {
        name: surgery.write(pair, recipes.parse(text), merged / str(n)) for n, (name, text) in enumerate(texts.items())
    }
    return found | {"fresh": fresh.all_said(folders, work)}


def main(work: dict[str, Any]) -> dict[str, Any]:
    return {name: run(kind, work, Path(work["merged"]) / name) for name, kind in work["kinds"].items()}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
