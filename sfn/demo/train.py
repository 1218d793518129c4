"""Make the bundled pair from nothing: its tokenizer, A (answers at once), and B (fine-tuned from A to think first).

    nice python -m sfn.demo.train [--out DIR] [--quick]

Runs in about forty minutes on two CPU cores. What the models learn from is in `world`, how they are measured in
`evaluate`. Two processes with one thread each, averaging their gradients, are about twice as fast at this size as two
threads in one process. Every random choice is seeded, and no decision hangs on the clock.
"""

import argparse
import json
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

os.environ.setdefault("GOMP_SPINCOUNT", "0")  # waiting threads must not take the other process's core
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.distributed as dist
import torch.nn.functional as F
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from sfn.demo import folders, world
from sfn.demo.tokenizer import VOCABULARY, answer_text, learn, prompt_text

PROCESSES = 2
CHAT_SHARE = 0.6  # of the lessons stand in roles; the others are plain text and continue on a new line
WARM_UP = 60  # steps
SKIP = -100  # label of a token that carries no loss
Batch = tuple[torch.Tensor, torch.Tensor]  # ids and labels, both (rows, columns) int64


@dataclass(frozen=True)
class Stage:
    """One stretch of training.

    Attributes:
        model: "A" or "B"; the first stage of B starts from A as shipped (bfloat16).
        tokens: upper bound of padded tokens per step and process.
        lr: of AdamW; it warms up over `WARM_UP` steps and falls along a cosine to a twentieth.
        muon_lr: of Muon for the matrices inside the layers; 0 leaves them to AdamW.
        mix: what A learns from; None for B.
    """

    model: str
    purpose: str
    steps: int
    tokens: int
    lr: float
    muon_lr: float
    seed: int
    mix: world.Mix | None = None


STAGES = (
    Stage("A", "facts", 2200, 1800, 3e-3, 0.02, 1, world.Mix(0.22, 0.44, 0.00, 0.00, 0.25)),
    Stage("A", "copying numbers out of the prompt", 1400, 1800, 3e-3, 0.02, 3, world.Mix(0.18, 0.14, 0.34, 0.00, 0.26)),
    Stage("A", "steps, when asked to show them", 1300, 1800, 3e-3, 0.02, 4, world.Mix(0.22, 0.07, 0.15, 0.32, 0.12)),
    Stage("A", "polish", 560, 1800, 2e-3, 0.012, 5, world.Mix(0.32, 0.05, 0.15, 0.34, 0.08)),
    Stage("B", "thinking first", 680, 2000, 4e-4, 0.0, 101, None),
    Stage("B", "more of it", 720, 2000, 3e-4, 0.0, 107, None),
)


def new_tokenizer() -> PreTrainedTokenizerBase:
    """The tokenizer, learned from 40,000 lessons of both models."""
    rng, mix, texts = Random(7), world.Mix(0.22, 0.07, 0.15, 0.32, 0.12), []
    for _ in range(20_000):
        one, two = world.lesson_for_a(rng, mix), world.lesson_for_b(rng)
        thought = two.answer.replace("<think>", "").replace("</think>", "")
        texts += [one.prompt, one.answer, two.prompt, thought]
    return learn(texts)


def new_model(tokenizer: PreTrainedTokenizerBase) -> Qwen2ForCausalLM:
    """A fresh Qwen2 of 1,379,456 parameters, float32."""
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rope_theta=10000.0,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config)


# --------------------------------------------------------------------------------------------------------- data


def drill_labels(ids: list[int], equals: int, stop: int) -> list[int]:
    """Labels of a drill: only what stands between an equals sign and the full stop after it (which counts too)."""
    labels, inside = [], False
    for token in ids:
        labels.append(token if inside else SKIP)
        inside = token == equals or (inside and token != stop)
    return labels


def _rows(
    lessons: list[world.Lesson], tokenizer: PreTrainedTokenizerBase, rng: Random
) -> list[tuple[list[int], list[int]]]:
    """Token ids and labels of each lesson; prompt and answer are tokenized apart, as they are when a model answers."""
    equals, stop = tokenizer.convert_tokens_to_ids(["Ġ=", "Ġ."])
    chats = [rng.random() < CHAT_SHARE for _ in lessons]
    encode = tokenizer.backend_tokenizer.encode_batch
    prompts = encode([prompt_text(x.prompt, chat) for x, chat in zip(lessons, chats, strict=True)])
    answers = encode([answer_text(x.answer, chat) for x, chat in zip(lessons, chats, strict=True)])
    rows = []
    for lesson, prompt, answer in zip(lessons, prompts, answers, strict=True):
        labels = drill_labels(answer.ids, equals, stop) if lesson.drill else answer.ids
        rows.append((prompt.ids + answer.ids, [SKIP] * len(prompt.ids) + labels))
    return rows


def batches(
    draw: Callable[[Random], world.Lesson], tokenizer: PreTrainedTokenizerBase, seed: int, tokens: int
) -> Iterator[Batch]:
    """Batches without end, right padded, of rows of similar length and at most `tokens` tokens with padding."""
    rng = Random(seed)
    while True:
        rows = _rows([draw(rng) for _ in range(2048)], tokenizer, rng)
        rows.sort(key=lambda row: len(row[0]) + rng.random() * 4)
        groups, group, longest = [], [], 0
        for row in rows:
            longest = max(longest, len(row[0]))
            if (len(group) + 1) * longest > tokens:
                groups.append(group)
                group, longest = [], len(row[0])
            group.append(row)
        groups.append(group)
        rng.shuffle(groups)
        for group in groups:
            width = max(len(ids) for ids, _ in group)
            yield (
                torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in group]),
                torch.tensor([labels + [SKIP] * (width - len(labels)) for _, labels in group]),
            )


# ----------------------------------------------------------------------------------------------------- training


def optimizers(model: Qwen2ForCausalLM, stage: Stage) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for the matrices inside the layers where the stage asks for it.

    With AdamW alone on those matrices, sums are learned several times more slowly.
    """
    named = list(model.named_parameters())
    inner = [p for name, p in named if "layers" in name and p.dim() == 2] if stage.muon_lr else []
    taken = {id(p) for p in inner}
    matrices = [p for _, p in named if p.dim() > 1 and id(p) not in taken]
    vectors = [p for _, p in named if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    made: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=stage.lr, betas=(0.9, 0.98), fused=True)]
    if inner:
        made.append(torch.optim.Muon(inner, lr=stage.muon_lr, momentum=0.95, weight_decay=0.01, ns_steps=5))
    return made


def loss_of(model: Qwen2ForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the labelled tokens; the layers run in bfloat16, the loss in float32."""
    asked = labels[:, 1:] != SKIP
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]  # (rows, columns - 1, 128)
        logits = model.lm_head(hidden[asked])
    return F.cross_entropy(logits.float(), labels[:, 1:][asked])


def average(parameters: list[torch.nn.Parameter], loss: torch.Tensor) -> float:
    """Average the gradients over the processes in one message; the loss travels along and comes back averaged."""
    flat = torch.cat([*(p.grad.flatten() for p in parameters), loss.detach().reshape(1)])
    dist.all_reduce(flat)
    flat /= PROCESSES
    at = 0
    for p in parameters:
        p.grad.copy_(flat[at : at + p.numel()].view_as(p))
        at += p.numel()
    return flat[-1].item()


def run_stage(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, stage: Stage, rank: int) -> dict[str, float]:
    """Train `model` in place. Returns seconds, tokens (padding included) and the mean loss of the last 100 steps."""
    draw = partial(world.lesson_for_a, mix=stage.mix) if stage.mix else world.lesson_for_b
    stream = batches(draw, tokenizer, stage.seed + 1000 * rank, stage.tokens)
    parameters, opts = list(model.parameters()), optimizers(model, stage)
    peaks = [[group["lr"] for group in opt.param_groups] for opt in opts]
    started, tokens, losses = time.monotonic(), 0, []
    model.train()
    for step in range(stage.steps):
        cosine = 0.5 * (1 + math.cos(math.pi * step / stage.steps))
        factor = min(1.0, (step + 1) / WARM_UP) * (0.05 + 0.95 * cosine)
        for opt, peak in zip(opts, peaks, strict=True):
            for group, lr in zip(opt.param_groups, peak, strict=True):
                group["lr"] = lr * factor
        ids, labels = next(stream)
        loss = loss_of(model, ids, labels)
        loss.backward()
        losses.append(average(parameters, loss))
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad()
        tokens += ids.numel() * PROCESSES
        if rank == 0 and (step + 1) % 100 == 0:
            seconds = time.monotonic() - started
            recent = sum(losses[-100:]) / 100
            print(
                f"{stage.model} {stage.purpose}: step {step + 1} of {stage.steps}, loss {recent:.4f}, "
                f"{seconds:.0f} s, {tokens / seconds:.0f} tokens/s",
                flush=True,
            )
    tail = losses[-100:]
    seconds = round(time.monotonic() - started)
    return {"seconds": seconds, "tokens_seen": tokens, "final_loss": round(sum(tail) / len(tail), 4)}


def save(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a checkpoint folder, the weights as bfloat16."""
    copy = Qwen2ForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # it is written for its owner alone
    tokenizer.save_pretrained(folder)


def run_process(rank: int, meeting: str, out: Path, stages: tuple[Stage, ...], work: Path) -> None:
    """One of the two processes: every stage in turn; rank 0 prints and saves.

    `work` keeps the float32 weights after each stage. The first stages that lie there with the same settings are not
    repeated; as each stage has its own seed and fresh optimizers, the result is the same as that of one run.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=PROCESSES)
    torch.manual_seed(1)  # the same weights in both
    place = dict(zip("AB", folders(out), strict=True))
    tokenizer = AutoTokenizer.from_pretrained(place["A"])
    model, model_name, records, fresh = new_model(tokenizer), "A", [], False
    for at, stage in enumerate(stages):
        if stage.model != model_name:  # B begins at A as it is shipped, so that their difference is the fine-tuning
            model = Qwen2ForCausalLM.from_pretrained(place[model_name], dtype=torch.float32)
            model_name = stage.model
        record = None if fresh else load_stage(work / f"{at}.pt", stage, model)
        fresh = record is None  # and so are all stages after it
        record = record or asdict(stage) | run_stage(model, tokenizer, stage, rank)
        records.append(record)
        dist.barrier()  # both have looked for the file before it is written
        if rank == 0:
            torch.save({"record": record, "weights": model.state_dict()}, work / f"{at}.pt")
            save(model, tokenizer, place[stage.model])
            (out / "train.json").write_text(json.dumps({"chat_share": CHAT_SHARE, "stages": records}, indent=1) + "\n")
            if fresh:
                report(place[stage.model])
        dist.barrier()  # B is read from the folder of A
    dist.destroy_process_group()


def load_stage(file: Path, stage: Stage, model: Qwen2ForCausalLM) -> dict | None:
    """The record of a stage that was finished before with these settings, its weights put in `model`; else None."""
    if not file.exists():
        return None
    finished = torch.load(file, weights_only=True)
    if {key: finished["record"].get(key) for key in asdict(stage)} != asdict(stage):
        return None
    model.load_state_dict(finished["weights"])
    return finished["record"]


def report(folder: Path) -> None:
    """Print what a saved model can do by now, in both prompt modes."""
    from sfn.demo.evaluate import accuracy

    model, tokenizer = Qwen2ForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for name, kinds, before in (
        ("easy", ("E1", "W1", "E2"), ""),
        ("hard", world.HARD_KINDS, ""),
        ("hard, shown", world.HARD_KINDS, world.SHOW_THE_WORK),
    ):
        problems = world.held_out_problems(10, kinds)
        shares = [accuracy(model, tokenizer, problems, chat=chat, before=before) for chat in (True, False)]
        print(f"  {folder.name} {name}: chat {shares[0]:.0f} %, plain {shares[1]:.0f} %", flush=True)


def main() -> None:
    """Train the pair as the command line asks, and report what it has learned."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder that gets A, B and train.json; this one if not given")
    parser.add_argument("--quick", action="store_true", help="a few steps per stage: shows that the script runs")
    parser.add_argument("--work", type=Path, help="folder that keeps finished stages, to go on from them later")
    choices = parser.parse_args()
    if choices.quick and not choices.out:
        parser.error("--quick makes a pair that has learned nothing: say with --out where to put it.")
    out = choices.out or folders()[0].parent
    stages = tuple(replace(stage, steps=3) for stage in STAGES) if choices.quick else STAGES
    out.mkdir(parents=True, exist_ok=True)
    base, _ = folders(out)
    new_tokenizer().save_pretrained(base)  # and from here on as everybody will load it
    (base / "config.json").write_text('{"model_type": "qwen2"}')
    started = time.monotonic()
    with TemporaryDirectory() as folder:
        work = choices.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        arguments = (f"{folder}/meeting", out, stages, work)
        spawn = multiprocessing.get_context("spawn")
        processes = [spawn.Process(target=run_process, args=(rank, *arguments)) for rank in range(PROCESSES)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit("Training stopped early: the message of the process that failed stands above.")
    print(f"The pair is in {out}, after {time.monotonic() - started:.0f} s.")


if __name__ == "__main__":
    main()
