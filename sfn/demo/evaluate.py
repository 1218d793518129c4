"""Measure the bundled pair and merges of it."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sfn.demo import world
from sfn.demo.tokenizer import prompt_text


@torch.no_grad()
def generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], new_tokens: int, batch: int = 80
) -> list[list[int]]:
    """Greedy continuations of texts that hold their role tokens already; ids up to and with the end token."""
    model.eval()
    encoded = [tokenizer(text, add_special_tokens=False).input_ids for text in prompts]
    order = sorted(range(len(prompts)), key=lambda at: len(encoded[at]))
    answers: list[list[int]] = [[] for _ in prompts]
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


def accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[world.Problem],
    *,
    chat: bool,
    before: str = "",
    forced: bool = False,
) -> float:
    """Percent of problems answered right, greedily.

    `before` is put in front of each prompt; `forced` begins the answer with <think>.
    """
    start = ("" if chat else "\n") + "<think>" if forced else ""
    texts = [prompt_text(before + item.prompt, chat) + start for item in problems]
    answers = generate(model, tokenizer, texts, 110)
    right = sum(
        world.read_answer(tokenizer.decode(ids, skip_special_tokens=True)) == item.value
        for item, ids in zip(problems, answers, strict=True)
    )
    return 100 * right / len(problems)
