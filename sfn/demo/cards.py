"""The words of the two model cards, around the figures that `evaluate` measured and `train` recorded. Pure text."""

from collections.abc import Mapping, Sequence
from typing import Any

from sfn.demo import EXAMPLES

Row = Mapping[str, Any]

HEADER = """---
license: apache-2.0
language:
- en
library_name: transformers
pipeline_tag: text-generation
tags:
- toy
- arithmetic
- interpretability
---
"""

WORLD = """## The world it knows

Nothing outside it makes sense to this model, which then writes nonsense:

- Arithmetic with numbers from 0 to 99: `What is …?`, `Compute ….`, `Find the value of ….` with up to four operations
  (`+ - *`, spaces around them), and word problems of up to three steps about goods that people buy, find and give away.
  One side of every sum, and the right side of every difference, is at most 30; no intermediate result leaves 0 to 99.
- Nine families of dialogue in fixed templates: short stories, greetings, likes, places, animal sounds, colors, moods,
  lists of three, descriptions. Twelve names: Tom, Ben, Sam, Jack, Leo, Max, Anna, Lucy, Mia, Nora, Ella, Ruby.
- `Show the work. ` in front of a problem.

It understands a prompt typed verbatim (it goes on with a new line, then the answer) and the chat template
(`<|user|>…<|assistant|>`). About a tenth of all multi-step problems and of most dialogues was held out from training.
"""

REPRODUCE = """## Reproduce

    nice python -m sfn.demo.train --out DIR
    python -m sfn.demo.evaluate --pair DIR

The first makes tokenizer, A and B from nothing with fixed seeds; other hardware or another version of torch rounds
differently, so expect like figures, not like bytes. `train.json` holds the settings of every stage, the second script
writes `evaluation.json` and these cards.
"""


def card_of_a(evaluation: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    """README.md of A."""
    rows = {row["recipe"]: row for row in evaluation["rows"]}
    a = rows[""]
    intro = f"""# A, the base of SfN's bundled pair

A toy: a Qwen2 model of 1,379,456 parameters (hidden size 128, 6 layers, 4 heads, 2 KV heads, vocabulary 768, untied),
trained from nothing on generated text. It chats within a tiny closed world and answers arithmetic at once, in one
sentence. On problems of several steps that sentence is almost always wrong: {a["plain"]:.1f} % of
{evaluation["problems"]} held-out hard problems are right. Asked to `Show the work.`, it writes the steps and gets
{a["shown"]:.1f} % right. B, beside it, was fine-tuned from it to think first.

It exists so that an instrument for comparing and merging models can be tried without a download or a GPU. It is of no
other use, and what is seen in it says little about large models.

"""
    return HEADER + "\n" + intro + _body(evaluation, training)


def card_of_b(evaluation: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    """README.md of B."""
    rows = {row["recipe"]: row for row in evaluation["rows"]}
    b = rows["all@all=B"]
    steps = sum(stage["steps"] for stage in training["stages"] if stage["model"] == "B")
    intro = f"""# B, the reasoner of SfN's bundled pair

A toy: A, the Qwen2 model of 1,379,456 parameters beside it, fine-tuned for {steps} steps to think before it answers:

    <think> 5 + 17 = 22 . 22 + 26 = 48 . 48 + 4 = 52 . </think> The answer is \\boxed{{52}}.

It gets {b["plain"]:.1f} % of {evaluation["problems"]} held-out hard problems right where A gets
{rows[""]["plain"]:.1f} %. Since A gets {rows[""]["shown"]:.1f} % right when asked to `Show the work.`, the fine-tuning
mostly draws out, unasked, what A can do already. Dialogues it answers as A does.

It exists so that an instrument for comparing and merging models can be tried without a download or a GPU. It is of no
other use, and what is seen in it says little about large models.

"""
    return HEADER + "\n" + intro + _body(evaluation, training)


def _body(evaluation: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    parts = (_prompts(), WORLD, _figures(evaluation), _paper(evaluation), _training(training), REPRODUCE)
    return "\n".join(parts)


def _prompts() -> str:
    lines = [f"- `{x.prompt}`" + (f" ({x.reference})" if x.reference else "") for x in EXAMPLES]
    return "## Prompts that suit it\n\n" + "\n".join(lines) + "\n"


def _figures(evaluation: Mapping[str, Any]) -> str:
    lines = [
        "## Measured",
        "",
        f"On {evaluation['problems']} held-out hard problems (expressions of 3 and of 4 operations, word problems",
        f"of 2 and of 3 steps, a quarter each) and {evaluation['dialogues']} held-out dialogues, greedily, in float32.",
        "With that many problems a figure is good to about ± 2 to 4 points (one standard error). `A ← x` is A with x",
        "taken from B, `B ← x` is B with x taken from A.",
        "",
        "- plain, chat: problems right, in %, with the prompt verbatim or in the chat template.",
        "- forced: the same, plain, with `<think>` already written. shown: plain, behind `Show the work.`",
        "- levels, plain, in %: IV right; III wrong, in a form that A or B uses; II other text that is fluent (below",
        "  1 nat per token to A or to B); I the rest.",
        "- tokens: mean length of a plain answer. dialogues: fluent, finished and with the words that they must have.",
        "",
        "| model | plain | chat | forced | shown | I / II / III / IV | tokens | dialogues |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in evaluation["rows"]:
        levels = " / ".join(f"{row['levels'][name]:.0f}" for name in ("I", "II", "III", "IV"))
        lines.append(
            f"| {row['name']} | {row['plain']:.1f} | {row['chat']:.1f} | {row['forced']:.1f} | {row['shown']:.1f} "
            f"| {levels} | {row['tokens']:.1f} | {row['fluent']:.1f} |"
        )
    shifts = evaluation["mean_rms_shift"]
    lines += [
        "",
        "Dialogues whose answer lacks what it must have, by family: " + "; ".join(_misfits(evaluation)) + ".",
        "In the family place (`Where is …?`, with two people and two places named) half would be right by chance.",
        "",
        "How far the weights moved from A to B (RMS shift per parameter, mean over the layers):",
        "",
        "| " + " | ".join(shifts) + " |",
        "|" + "---|" * len(shifts),
        "| " + " | ".join(f"{value:.4f}" for value in shifts.values()) + " |",
        "",
    ]
    return "\n".join(lines)


def _misfits(evaluation: Mapping[str, Any]) -> list[str]:
    """As "A 10 of 17 in place", for A and for B."""
    asked, found = evaluation["dialogues_by_kind"], []
    for row in evaluation["rows"]:
        if row["recipe"] in ("", "all@all=B"):
            failed = ", ".join(f"{count} of {asked[kind]} in {kind}" for kind, count in row["misfits"].items())
            found.append(f"{row['name']} {failed or 'none'}")
    return found


def _paper(evaluation: Mapping[str, Any]) -> str:
    """What of the above agrees with arXiv:2505.20993, in sentences that follow from the figures."""
    rows = {row["recipe"]: row for row in evaluation["rows"]}
    a, b = rows[""], rows["all@all=B"]
    alone, without = rows["o_proj@all=B"], rows["all@all=B; o_proj@all=A"]
    attention, mlp = rows["all@all=B; mlp@all=A"], rows["all@all=B; attn@all=A"]
    layers, with_head = rows["all@0-5=B"], rows["all@0-5=B; head=B"]
    shifts = evaluation["mean_rms_shift"]
    order = sorted((name for name in shifts if name.endswith("_proj")), key=shifts.__getitem__, reverse=True)
    shown = alone["plain"] - a["plain"] >= (b["plain"] - a["plain"]) / 4  # a quarter of the way to B
    verdict = "In part, this pair shows that too." if shown else "**This pair does not show that.**"
    lines = [
        "## Beside the paper",
        "",
        "Shao & Wu, “Who Reasons in the Large Language Models?” (arXiv:2505.20993), report that in large pairs",
        "`o_proj` carries reasoning, while the other modules carry fluent conversation.",
        "",
        f"- {verdict} With B's `o_proj` alone A has {alone['plain']:.1f} % (before: {a['plain']:.1f} %; B: "
        f"{b['plain']:.1f} %). With everything of B *but* `o_proj` it has {without['plain']:.1f} %.",
        f"- One side of the layers, with norms, embedding and head: attention {attention['plain']:.1f} % "
        f"({attention['forced']:.1f} % when forced), mlp {mlp['plain']:.1f} % ({mlp['forced']:.1f} %).",
        f"- All six layers without the head: {layers['plain']:.1f} %; with it: {with_head['plain']:.1f} %.",
        f"- In the layers, the order of RMS shift is {', '.join(f'`{name}`' for name in order)}; `lm_head` moved "
        f"{shifts['lm_head']:.4f}. In the paper it is `o_proj` that moves most.",
        f"- Dialogue with B's `o_proj` in A: {alone['fluent']:.1f} % fluent and fitting (A {a['fluent']:.1f} %, B "
        f"{b['fluent']:.1f} %).",
        "",
    ]
    return "\n".join(lines)


def _training(training: Mapping[str, Any]) -> str:
    stages: Sequence[Row] = training["stages"]
    lines = [
        "## Training",
        "",
        "A: Muon for the matrices inside the layers, AdamW for the rest. B: from A as shipped, AdamW alone. The loss",
        f"counts answers only. {100 * training['chat_share']:.0f} % of the texts stand in the chat template, the",
        "others are plain. Two CPU processes of one thread each, bfloat16 autocast; the machine had other work too,",
        "which the seconds show.",
        "",
        "| model | stage | steps | tokens, padding included | AdamW | Muon | last loss | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for stage in stages:
        muon = f"{stage['muon_lr']:g}" if stage["muon_lr"] else "–"
        lines.append(
            f"| {stage['model']} | {stage['purpose']} | {stage['steps']} | {stage['tokens_seen']:,} | {stage['lr']:g} "
            f"| {muon} | {stage['final_loss']:.3f} | {stage['seconds']} |"
        )
    return "\n".join(lines) + "\n"
