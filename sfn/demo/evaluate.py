"""Measure the bundled pair and merges of it, and write what was measured into evaluation.json and the model cards.

    python -m sfn.demo.evaluate [--pair DIR] [--per-kind 40]

Everything is greedy, in float32, on held-out problems and dialogues of `world`. What the cards say about the figures
is in `cards`; nothing here is trained.
"""

import argparse
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, Qwen2ForCausalLM

from sfn import checkpoints, pairs, recipes, surgery
from sfn.demo import cards, folders, world
from sfn.demo.tokenizer import prompt_text

NEW_TOKENS = 110  # the longest right answer has 90
FLUENT_BELOW = 1.0  # nats per token, under A or under B
MERGES: tuple[tuple[str, str], ...] = (
    ("A", ""),
    ("B", "all@all=B"),
    ("A ← o_proj", "o_proj@all=B"),
    ("A ← q, k, v", "qkv@all=B"),
    ("A ← all attention", "attn@all=B"),
    ("A ← mlp", "mlp@all=B"),
    ("A ← o_proj + norms", "o_proj,norms@all=B"),
    ("A ← embed + head", "emb,head=B"),
    ("A ← o_proj + norms + embed + head", "o_proj,norms@all=B; emb,head=B"),
    ("A ← attention + norms + embed + head (B ← mlp)", "all@all=B; mlp@all=A"),
    ("A ← mlp + norms + embed + head (B ← attention)", "all@all=B; attn@all=A"),
    ("A ← all but q, k, v (B ← q, k, v)", "all@all=B; qkv@all=A"),
    ("A ← all but o_proj (B ← o_proj)", "all@all=B; o_proj@all=A"),
    ("A ← layers 0–2", "all@0-2=B"),
    ("A ← layers 0–2 + embed", "all@0-2=B; emb=B"),
    ("A ← layers 3–5 + head", "all@3-5=B; head=B"),
    ("A ← layers 2–5 + embed + head", "all@2-5=B; emb,head=B"),
    ("A ← layers 1–5 + embed + head", "all@1-5=B; emb,head=B"),
    ("A ← layers 0–5", "all@0-5=B"),
    ("A ← layers 0–5 + head", "all@0-5=B; head=B"),
    ("A blended with B, 3 parts of 4 from B", "all@all=B:0.75"),
)
_STEP = r"\d+ [-+*] \d+ = \d+ \."
WELL_FORMED = re.compile(
    rf"The answer is \d+\.|({_STEP} )+The answer is \d+\.|<think> ({_STEP} )+</think> The answer is \\boxed\{{\d+\}}\."
)


@dataclass(frozen=True)
class Measured:
    """What one recipe does on held-out texts; all shares in percent.

    Attributes:
        plain, chat: hard problems answered right, the prompt typed verbatim or put in roles.
        forced: the same with <think> put behind the plain prompt, on a new line.
        shown: the same (plain) with "Show the work." in front.
        levels: of the plain answers to hard problems. IV right; III wrong but in a form that A or B uses; II any other
            text that is fluent (under `FLUENT_BELOW` nats per token to A or to B); I the rest.
        tokens: mean length of the plain answers to hard problems, end token included.
        fitting: plain dialogues whose answer contains what it must. fluent: those that also end, and are fluent.
        misfits: how many dialogues do not fit, by the family of their template.
    """

    name: str
    recipe: str
    plain: float
    chat: float
    forced: float
    shown: float
    levels: dict[str, float]
    tokens: float
    fitting: float
    fluent: float
    misfits: dict[str, int]


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    new_tokens: int = NEW_TOKENS,
    batch: int = 80,
) -> list[list[int]]:
    """Greedy continuations of texts that hold their role tokens already: ids up to and with the end token."""
    model.eval()
    encoded = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    order = sorted(range(len(texts)), key=lambda at: len(encoded[at]))
    answers: list[list[int]] = [[] for _ in texts]
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        width = max(len(encoded[at]) for at in chosen)
        pads = [width - len(encoded[at]) for at in chosen]
        ids = torch.tensor([[tokenizer.pad_token_id] * n + encoded[at] for n, at in zip(pads, chosen, strict=True)])
        mask = torch.tensor([[0] * n + [1] * (width - n) for n in pads])
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        for at, row in zip(chosen, out[:, width:].tolist(), strict=True):
            end = row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else len(row)
            answers[at] = row[:end]
    return answers


def say(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, chat: bool, start: str = ""
) -> list[str]:
    """Greedy answers as text, without the new line that opens a plain one; `start` is put behind each prompt."""
    answers = generate(model, tokenizer, [prompt_text(prompt, chat) + start for prompt in prompts])
    return [tokenizer.decode(ids, skip_special_tokens=True).strip("\n") for ids in answers]


def accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[world.Problem],
    *,
    chat: bool,
    before: str = "",
    start: str = "",
) -> float:
    """Percent of problems answered right, greedily; `before` and `start` are put around each prompt."""
    answers = say(model, tokenizer, [before + item.prompt for item in problems], chat=chat, start=start)
    right = [world.read_answer(text) == item.value for text, item in zip(answers, problems, strict=True)]
    return 100 * sum(right) / len(right)


@torch.inference_mode()
def nats_per_token(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], answers: Sequence[list[int]]
) -> list[float]:
    """Mean negative log-likelihood of each answer's ids behind its plain prompt (natural log, float32)."""
    figures = []
    for prompt, answer in zip(prompts, answers, strict=True):
        before = tokenizer(prompt, add_special_tokens=False).input_ids
        logits = model(input_ids=torch.tensor([before + answer])).logits[0, len(before) - 1 : -1]  # (answer, 768)
        figures.append(torch.nn.functional.cross_entropy(logits.float(), torch.tensor(answer)).item())
    return figures


def level(text: str, right: bool, nats: float) -> str:
    """The level of one answer to a problem, by the rules in `Measured.levels`."""
    if right:
        return "IV"
    if WELL_FORMED.fullmatch(text):
        return "III"
    return "II" if nats < FLUENT_BELOW else "I"


class Judge:
    """Holds A, B and the held-out texts, and measures models against them."""

    def __init__(self, a: PreTrainedModel, b: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, per_kind: int):
        self.models, self.tokenizer = (a.eval(), b.eval()), tokenizer
        self.problems = world.held_out_problems(per_kind)
        self.dialogues = world.held_out_dialogues(2 * per_kind)

    def _answers(self, model: PreTrainedModel, prompts: list[str]) -> tuple[list[str], list[list[int]], list[float]]:
        """Texts, ids, and the smaller nats per token of the two models, of plain answers."""
        ids = generate(model, self.tokenizer, prompts)
        texts = [self.tokenizer.decode(row, skip_special_tokens=True).strip("\n") for row in ids]
        figures = [nats_per_token(judge, self.tokenizer, prompts, ids) for judge in self.models]
        return texts, ids, [min(pair) for pair in zip(*figures, strict=True)]

    def measure(self, name: str, recipe: str, model: PreTrainedModel) -> Measured:
        """All figures of one model; takes about half a minute on a slow core."""
        problems = self.problems
        texts, ids, nats = self._answers(model, [item.prompt for item in problems])
        right = [world.read_answer(text) == item.value for text, item in zip(texts, problems, strict=True)]
        levels = [level(*row) for row in zip(texts, right, nats, strict=True)]
        talks, talk_ids, talk_nats = self._answers(model, [talk.prompt for talk in self.dialogues])
        fits = [all(w in text for w in talk.words) for text, talk in zip(talks, self.dialogues, strict=True)]
        ends = [row[-1] == self.tokenizer.eos_token_id for row in talk_ids]
        fluent = [fit and end and n < FLUENT_BELOW for fit, end, n in zip(fits, ends, talk_nats, strict=True)]
        return Measured(
            name=name,
            recipe=recipe,
            plain=percent(right),
            chat=round(accuracy(model, self.tokenizer, problems, chat=True), 1),
            forced=round(accuracy(model, self.tokenizer, problems, chat=False, start="\n<think>"), 1),
            shown=round(accuracy(model, self.tokenizer, problems, chat=False, before=world.SHOW_THE_WORK), 1),
            levels={name: percent([x == name for x in levels]) for name in ("I", "II", "III", "IV")},
            tokens=round(sum(map(len, ids)) / len(ids), 1),
            fitting=percent(fits),
            fluent=percent(fluent),
            misfits=dict(Counter(talk.kind for talk, fit in zip(self.dialogues, fits, strict=True) if not fit)),
        )


def percent(flags: Sequence[bool]) -> float:
    """Share of true ones, to a tenth of a percent."""
    return round(100 * sum(flags) / len(flags), 1)


def merge_builder(folder_a: Path, folder_b: Path) -> Callable[[str], PreTrainedModel]:
    """A function that makes the model of a recipe, float32."""
    pair = pairs.compare(checkpoints.open(folder_a), checkpoints.open(folder_b))

    def build(recipe: str) -> PreTrainedModel:
        plan = recipes.resolve(recipes.parse(recipe), pair)
        model = Qwen2ForCausalLM.from_pretrained(folder_a, dtype=torch.float32)
        model.load_state_dict({name: surgery.build(pair, name, source) for name, source in plan.sources.items()})
        return model

    return build


def mean_rms_shift(a: PreTrainedModel, b: PreTrainedModel) -> dict[str, float]:
    """RMS of B - A per weight matrix, averaged over the layers, by module; norms and biases are left out."""
    other, found = dict(b.named_parameters()), {}
    for name, p in a.named_parameters():
        if p.dim() > 1:
            found.setdefault(name.split(".")[-2], []).append((other[name] - p).float().square().mean().sqrt().item())
    return {module: round(sum(values) / len(values), 5) for module, values in found.items()}


def evaluate(folder_a: Path, folder_b: Path, per_kind: int) -> dict[str, Any]:
    """Measure every merge of the pair; prints each row as it comes."""
    build, tokenizer = merge_builder(folder_a, folder_b), AutoTokenizer.from_pretrained(folder_a)
    a, b = build(""), build("all@all=B")
    judge, rows = Judge(a, b, tokenizer, per_kind), []
    for name, recipe in MERGES:
        rows.append(judge.measure(name, recipe, build(recipe)))
        print(rows[-1], flush=True)
    return {
        "problems": len(judge.problems),
        "dialogues": len(judge.dialogues),
        "dialogues_by_kind": dict(Counter(talk.kind for talk in judge.dialogues)),
        "rows": [asdict(row) for row in rows],
        "mean_rms_shift": mean_rms_shift(a, b),
    }


def main() -> None:
    """Measure every merge, write evaluation.json and both model cards."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", type=Path, default=folders()[0].parent, help="folder that holds A, B and train.json")
    parser.add_argument("--per-kind", type=int, default=40, help="held-out problems of each of the four hard kinds")
    parser.add_argument("--cards", action="store_true", help="only write the cards anew, from evaluation.json")
    choices = parser.parse_args()
    folder_a, folder_b = folders(choices.pair)
    if not choices.cards:
        evaluation = evaluate(folder_a, folder_b, choices.per_kind)
        (choices.pair / "evaluation.json").write_text(json.dumps(evaluation, indent=1, ensure_ascii=False) + "\n")
    evaluation = json.loads((choices.pair / "evaluation.json").read_text())
    training = json.loads((choices.pair / "train.json").read_text())
    (folder_a / "README.md").write_text(cards.card_of_a(evaluation, training))
    (folder_b / "README.md").write_text(cards.card_of_b(evaluation, training))


if __name__ == "__main__":
    main()
