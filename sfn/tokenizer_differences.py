"""What differs between two checkpoints' tokenizers, chat templates and generation settings, and what that means.

Owns the findings that come from these small files; reads no weights and loads no tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from heapq import nsmallest

from sfn.checkpoints import Checkpoint, read_json, text_config
from sfn.differences import Finding, Severity
from sfn.errors import CheckpointError

_FORMATS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")
_FETCHED_BYTES = 2_000_000  # of a tokenizer, for comparing; larger ones are only fetched to be used
_STEPS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_SAME_TOKENS = "Ordinary text becomes the same tokens on both sides; prompts with these tokens may not."


def tokenizer_findings(a: Checkpoint, b: Checkpoint) -> Iterator[Finding]:
    """Differences between tokenizers, chat templates, generation settings and end tokens."""
    yield from _tokenizer(a, b)
    yield from _chat_template(a, b)
    yield from _generation(a, b)


def _tokenizer(a: Checkpoint, b: Checkpoint) -> Iterator[Finding]:
    present = (name for name in _FORMATS if a.has_file(name) or b.has_file(name))
    name = next(present, None)
    if name is None:
        yield Finding("tokenizer", "limit", "Neither side has a tokenizer.", "Delta works; no engine can speak.")
        return
    lacking = [side for side, part in (("A", a), ("B", b)) if not part.has_file(name)]
    if lacking:
        yield Finding(
            "tokenizer",
            "limit",
            f"{lacking[0]} has no {name}, the other side has.",
            "A model speaks with the tokenizer of the side that its head comes from; that side must have one.",
        )
        return
    if _same_content(a, b, name):
        return
    means = (
        "A merged model speaks with the tokenizer of the side that its head comes from. Where token numbers differ, "
        "embedding and head should come from that same side (`emb,head=B`)."
    )
    unread = [part for part in (a, b) if not part.files.at_hand(name) and part.files.size(name) > _FETCHED_BYTES]
    if unread:
        sizes = " and ".join(f"{part.files.size(name) / 1e6:.1f} MB" for part in (a, b))
        sentence = f"The two {name} differ ({sizes}). Which tokens differ is told once they are on this machine."
        yield Finding("tokenizer", "limit", sentence, means)
        return
    if name != "tokenizer.json":
        yield Finding("tokenizer", "limit", f"The two {name} differ.", means)
        return
    severity, sentence = _compare_tokenizers(read_json(a.file(name)), read_json(b.file(name)))
    yield Finding("tokenizer", severity, sentence, means if severity != "note" else _SAME_TOKENS)


def _compare_tokenizers(a: dict[str, object], b: dict[str, object]) -> tuple[Severity, str]:
    """How much the two tokenizer.json differ: "note" where only added tokens or their marking do."""
    vocabulary_a, vocabulary_b = _vocabulary(a), _vocabulary(b)
    added_a, added_b = _added(a), _added(b)
    tokens_a, tokens_b = vocabulary_a | _ids(added_a), vocabulary_b | _ids(added_b)
    differing = {token for token, _ in tokens_a.items() ^ tokens_b.items()}
    order = _token_order(tokens_a, tokens_b)
    marked = {token for token in added_a.keys() & added_b.keys() if added_a[token] != added_b[token]} - differing
    steps = [step for step in _STEPS if a.get(step) != b.get(step)]
    parts: list[str] = []
    if differing:
        union = len(tokens_a.keys() | tokens_b.keys())
        some = _few(differing, order)
        parts.append(f"{len(differing):,} of {union:,} tokens are not the same on both sides ({some})")
    if _merges(a) != _merges(b):
        parts.append("the merge rules differ")
    if marked:
        parts.append(f"{len(marked)} added tokens are marked differently ({_few(marked, str)})")
    if steps:
        parts.append(f"{' and '.join(steps)} differ")
    if not parts:
        return "note", "The two tokenizer.json differ in nothing that bears on tokens."
    ordinary = bool(differing) or _merges(a) != _merges(b) or not {"normalizer", "pre_tokenizer"}.isdisjoint(steps)
    return ("limit" if ordinary else "note"), f"The tokenizers differ: {'; '.join(parts)}."


def _few(tokens: set[str], order: Callable[[str], object]) -> str:
    return ", ".join(map(repr, nsmallest(4, tokens, key=order))) + (", …" if len(tokens) > 4 else "")


def _token_order(a: Mapping[str, int], b: Mapping[str, int]) -> Callable[[str], tuple[int, str]]:
    return lambda token: (min(a.get(token, 1 << 62), b.get(token, 1 << 62)), token)


def _vocabulary(tokenizer: dict[str, object]) -> dict[str, int]:
    model = tokenizer.get("model")
    table = model.get("vocab") if isinstance(model, Mapping) else None
    if isinstance(table, dict):
        return {token: number for token, number in table.items() if isinstance(number, int)}
    if isinstance(table, list):  # Unigram: [[token, score], ...]
        return {str(entry[0]): number for number, entry in enumerate(table) if isinstance(entry, list) and entry}
    return {}


def _added(tokenizer: dict[str, object]) -> dict[str, dict[str, object]]:
    entries = tokenizer.get("added_tokens")
    entries = entries if isinstance(entries, list) else []
    return {str(entry["content"]): entry for entry in entries if isinstance(entry, dict) and "content" in entry}


def _ids(added: dict[str, dict[str, object]]) -> dict[str, int]:
    return {token: number for token, entry in added.items() if isinstance(number := entry.get("id"), int)}


def _merges(tokenizer: dict[str, object]) -> list[str]:
    """Merge rules in one spelling: old files have "a b", newer ones ["a", "b"]."""
    model = tokenizer.get("model")
    rules = model.get("merges") if isinstance(model, Mapping) else None
    if not isinstance(rules, list):
        return []
    return [" ".join(map(str, rule)) if isinstance(rule, list) else str(rule) for rule in rules]


def _same_content(a: Checkpoint, b: Checkpoint, name: str) -> bool:
    """Whether both sides' file is the same; what lies on the Hub is compared by what it is called there."""
    keys = a.files.content_key(name), b.files.content_key(name)
    if None not in keys:
        return keys[0] == keys[1]
    try:
        if a.files.size(name) != b.files.size(name):
            return False
        return a.file(name).read_bytes() == b.file(name).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{error.filename or name} cannot be read: {error.strerror or error}.") from error


def chat_template(checkpoint: Checkpoint) -> str | None:
    """The default chat template, from chat_template.jinja, chat_template.json or tokenizer_config.json."""
    file = checkpoint.file("chat_template.jinja")
    try:
        if file.is_file():
            return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}.") from error
    for name in ("chat_template.json", "tokenizer_config.json"):
        found = read_json(checkpoint.file(name)).get("chat_template")
        if isinstance(found, list):  # several, by name
            named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
            found = named.get("default")
        if isinstance(found, str):
            return found
    return None


def _chat_template(a: Checkpoint, b: Checkpoint) -> Iterator[Finding]:
    of_a, of_b = chat_template(a), chat_template(b)
    if (of_a or "").strip() == (of_b or "").strip():
        return
    if of_a is None or of_b is None:
        side = "A" if of_a is None else "B"
        sentence = f"{side} has no chat template, the other side has."
        means = f"Chat mode does not work for a model that speaks with {side}'s tokenizer; plain completion does."
    else:
        sentence = "The chat templates differ."
        means = (
            "In chat mode the same prompt reaches A and B in different words; a merged model uses the template of the "
            "side that its head comes from. Plain completion gives all the same text."
        )
    yield Finding("chat template", "note", sentence, means)


def _generation(a: Checkpoint, b: Checkpoint) -> Iterator[Finding]:
    settings = [read_json(part.file("generation_config.json")) for part in (a, b)]
    for key, role in (("eos_token_id", "end"), ("bos_token_id", "start")):
        of_a, of_b = (_token_ids(part, table, key) for part, table in zip((a, b), settings, strict=True))
        if of_a != of_b:
            yield Finding(
                "end token" if role == "end" else "start token",
                "limit" if role == "end" else "note",
                f"{key}: A has {_listed(of_a)}, B has {_listed(of_b)}.",
                "A merged model stops at the end token of the side whose tokenizer it speaks with; if its weights "
                "never write that one, answers run to the length limit."
                if role == "end"
                else "Prompts begin as the tokenizer in use says.",
            )
    ignored = {"eos_token_id", "bos_token_id", "pad_token_id", "transformers_version", "_from_model_config"}
    keys = sorted((settings[0].keys() | settings[1].keys()) - ignored)
    differing = [key for key in keys if settings[0].get(key) != settings[1].get(key)]
    if differing:
        words = "; ".join(
            f"{key}: A {json.dumps(settings[0].get(key))}, B {json.dumps(settings[1].get(key))}" for key in differing
        )
        yield Finding(
            "generation",
            "note",
            f"Recommended generation settings differ: {words}.",
            "SfN samples all models with the settings chosen on the page, so that answers compare.",
        )


def _token_ids(checkpoint: Checkpoint, generation: Mapping[str, object], key: str) -> tuple[object, ...]:
    config = text_config(checkpoint.config)
    value = generation.get(key, config.get(key, checkpoint.config.get(key)))
    values = value if isinstance(value, list) else [] if value is None else [value]
    return tuple(sorted(values, key=str))


def _listed(values: tuple[object, ...]) -> str:
    return ", ".join(map(str, values)) or "none"
