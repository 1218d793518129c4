"""Which files of a folder, or of a repo on the Hub, make up a checkpoint: from their names, the index file and the
headers alone. Reads nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path, PurePosixPath

from sfn.errors import CheckpointError
from sfn.headers import TensorInfo

INDEX_NAME = "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tekken.json",
    "tiktoken.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
CONFIG_FILES = ("config.json", "generation_config.json")

_SHARD = re.compile(r"(.+)-(\d{5,6})-of-(\d{5,6})\.safetensors")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_FURTHER = re.compile(r"additional_chat_templates/[^/]+\.jinja|[^/]+\.tiktoken")  # beside TOKENIZER_FILES


def small_names(present: Collection[str], names: tuple[str, ...] = (*CONFIG_FILES, *TOKENIZER_FILES)) -> list[str]:
    """Those of `names` that are present; with the tokenizer's also further chat templates and *.tiktoken."""
    found = [name for name in names if name in present]
    if set(TOKENIZER_FILES) <= set(names):
        found += sorted(name for name in present if _FURTHER.fullmatch(name))
    return found


def weight_map(index: Path, content: object) -> dict[str, str]:
    """Tensor -> shard, of what the index file's `weight_map` holds. Raises CheckpointError naming `index`."""
    if not isinstance(content, dict) or not all(isinstance(shard, str) for shard in content.values()) or not content:
        raise CheckpointError(f"{index} has no `weight_map` from tensor to shard. Download it again.")
    for name, shard in content.items():
        if not shard.endswith(".safetensors") or PurePosixPath(shard).name != shard:
            raise CheckpointError(
                f"{index}: tensor {name!r} should be in {shard!r}, which is no safetensors file here."
            )
    return content


def shard_names(where: object, present: Collection[str], mapped: Mapping[str, str] | None) -> list[str]:
    """The safetensors files that hold the model, of the names at top level of `where`, which errors name.

    mapped: the index file's weight map, None without one. Raises CheckpointError: one is missing, there is none, or it
    cannot be told which.
    """
    safetensors = sorted(name for name in present if name.endswith(".safetensors"))
    if mapped is not None:
        shards = sorted(set(mapped.values()))
        if "model.safetensors" in safetensors and "model.safetensors" not in shards:
            raise CheckpointError(
                f"{where} holds model.safetensors and also an index of other shards; programs differ in which they "
                "take. Remove the one that does not belong here."
            )
        for shard in shards:
            if shard not in safetensors:
                raise CheckpointError(f"{where} lacks the shard {shard} that its index names. Download it again.")
        return shards
    own = [name for name in safetensors if not name.startswith(("consolidated", "adapter_"))]
    if not own:
        own = [name for name in safetensors if not name.startswith("adapter_")]
    if not own:
        raise CheckpointError(_why_nothing(where, present, safetensors))
    _check_complete(where, own)
    return own


def _check_complete(where: object, shards: list[str]) -> None:
    """Without an index, the numbers in the shards' names tell whether one is missing."""
    for name in shards:
        if match := _SHARD.fullmatch(name):
            stem, number, total = match.groups()
            for k in range(1, min(int(total), 10_000) + 1):
                shard = f"{stem}-{k:0{len(number)}d}-of-{total}.safetensors"
                if shard not in shards:
                    raise CheckpointError(f"{where} lacks the shard {shard}. Download it again.")


def _why_nothing(where: object, present: Collection[str], safetensors: list[str]) -> str:
    if safetensors:
        return (
            f"{where} holds only an adapter ({safetensors[0]}), no model, and no adapter_config.json that says how to "
            "apply it. Merge the adapter into its base model and save the result as safetensors."
        )
    pickled = sorted(name for name in present if name.endswith(_PICKLED))
    if pickled:
        return (
            f"{where} holds its weights as {pickled[0]}, in Python's pickle format, which can run any code when it is "
            "loaded; SfN does not open it. Take a revision with safetensors, or convert it where you trust it: "
            "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)."
        )
    gguf = sorted(name for name in present if name.endswith(".gguf"))
    if gguf:
        return (
            f"{where} holds its weights as {gguf[0]}, rounded to a few bits for another program. Take the model that "
            "it was made from, which has safetensors."
        )
    return f"{where} holds no safetensors file. Give the folder that has the model's *.safetensors and config.json."


def gathered(
    where: Path, headers: Iterable[Mapping[str, TensorInfo]], mapped: Mapping[str, str] | None
) -> dict[str, TensorInfo]:
    """All shards' tensors by name. Raises CheckpointError: one stands twice, or not where the index says, or none."""
    tensors: dict[str, TensorInfo] = {}
    for found in headers:
        for name, info in found.items():
            if name in tensors:
                raise CheckpointError(
                    f"{where}: tensor {name!r} stands in {tensors[name].file.name} and again in {info.file.name}. "
                    "Remove the file that does not belong to this checkpoint."
                )
            tensors[name] = info
    for name, shard in (mapped or {}).items():
        if name not in tensors or tensors[name].file.name != shard:
            raise CheckpointError(
                f"{where / INDEX_NAME}: tensor {name!r} should be in {shard}, which does not hold it. The index and "
                "the shards are of different versions: download the checkpoint again."
            )
    if not tensors:
        raise CheckpointError(f"{where}: its safetensors files hold no tensor.")
    return tensors
