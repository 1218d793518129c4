"""The small files of a merged checkpoint: A's config made to fit the merged tensors, and the speaking side's tokenizer.

Knows what configs say about layers, ties and dtypes; writes no weights.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from sfn.checkpoints import TOKENIZER_FILES, Checkpoint, read_json, small_files, text_config
from sfn.differences import SPELLINGS
from sfn.errors import SurgeryError

# Lists of layer numbers; every other list as long as the model is deep, with "layer" in its name, has one entry each.
_LAYER_NUMBERS = frozenset({
    "mlp_only_layers", "cross_attention_layers", "moe_layers", "dense_layers", "full_attn_idxs", "attn_layer_indices",
})  # fmt: skip
# How many of the first layers are of a kind.
_FIRST_LAYERS = frozenset({"max_window_layers", "first_k_dense_replace", "num_dense_layers"})
# A kind of layer at every n-th place: the places move when a layer goes, and the config cannot say so.
_PERIODS = frozenset({
    "decoder_sparse_step", "moe_layer_freq", "interleave_moe_layer_step", "attn_layer_period", "expert_layer_period",
    "cross_attn_every_n_layers",
})  # fmt: skip
_ATTENTION_PERIODS = frozenset({"sliding_window_pattern", "full_attention_interval", "no_rope_layer_interval"})
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
_CONFIG_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


def merged_config(
    a: Checkpoint, speaker: Checkpoint, *, tied: bool, removed: Iterable[int], dtype: str | None
) -> dict[str, object]:
    """A's config for the merged tensors: tie flag, dtype, layers left, and the token ids of `speaker`'s tokenizer.

    dtype: safetensors code of most weights, None to leave what A says. Raises SurgeryError where A has no config, or
    one that cannot say what is left after a removal.
    """
    if not a.config:
        raise SurgeryError(f"A ({a.folder}) has no config.json, so no merged checkpoint of it could be loaded.")
    config: dict[str, object] = json.loads(json.dumps(dict(a.config)))
    inner = text_config(config)
    assert isinstance(inner, dict)
    for part in {id(part): part for part in (config, inner)}.values():
        if part is config or "tie_word_embeddings" in part:
            part["tie_word_embeddings"] = tied
        if dtype in _CONFIG_DTYPES and "quantization_config" not in config:
            for key in [key for key in SPELLINGS["dtype"] if key in part] or ["dtype"]:
                part[key] = _CONFIG_DTYPES[dtype]
    if gone := sorted(set(removed)):
        _remove_layers(inner, gone, a)
    if speaker is not a:
        _take_token_ids(config, inner, speaker)
    return config


def _take_token_ids(config: dict[str, object], inner: dict[str, object], speaker: Checkpoint) -> None:
    """Start, end and padding token as the speaking side has them, wherever the config names them."""
    for key in _TOKEN_IDS:
        for own, theirs in ((config, speaker.config), (inner, text_config(speaker.config))):
            if key in theirs and (key in own or own is inner):
                own[key] = theirs[key]


def _remove_layers(config: dict[str, object], gone: list[int], a: Checkpoint) -> None:
    key = next((key for key in SPELLINGS["num_hidden_layers"] if isinstance(config.get(key), int)), None)
    if key is None:
        raise SurgeryError(f"{a.folder / 'config.json'} does not say how many layers A has, so none can be removed.")
    depth = config[key]
    assert isinstance(depth, int)
    for period in sorted(_PERIODS | (frozenset() if "layer_types" in config else _ATTENTION_PERIODS)):
        value = config.get(period)
        if isinstance(value, int) and value > 1:
            raise SurgeryError(
                f"A's layers are not alike: {period} = {value} gives every {value}th another build, and no config can "
                "say which are left after a removal. Silence the layer instead: all@LAYER=zero leaves out its work."
            )
    config[key] = depth - sum(layer < depth for layer in gone)
    for name, value in list(config.items()):
        if name in _LAYER_NUMBERS and isinstance(value, list):
            kept = [number for number in value if number not in gone]
            config[name] = [number - sum(layer < number for layer in gone) for number in kept]
        elif name in _FIRST_LAYERS and isinstance(value, int):
            config[name] = value - sum(layer < min(value, depth) for layer in gone)
        elif "layer" in name and isinstance(value, list) and len(value) == depth:
            config[name] = [entry for layer, entry in enumerate(value) if layer not in gone]


def write_small_files(folder: Path, a: Checkpoint, speaker: Checkpoint, config: Mapping[str, object]) -> None:
    """Tokenizer, chat templates and generation config of `speaker`, code and processors of A; config.json at last.

    config.json comes last because loaders look for it first: a folder without it is no model yet.
    """
    own_files, words = a.speech_folder(), speaker.speech_folder()
    copied = list(small_files(words, names=(*TOKENIZER_FILES, "generation_config.json")))
    for file in copied:
        place = folder / file.relative_to(words)
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, place)
    own = [own_files / name for name in _PROCESSORS]
    if "auto_map" in config:  # a model whose code comes with it
        own += sorted(own_files.glob("*.py"))
    if "auto_map" in read_json(words / "tokenizer_config.json"):  # a tokenizer whose code comes with it
        own += sorted(words.glob("tokeniz*.py"))
    for file in own:
        if file.is_file():
            shutil.copyfile(file, folder / file.name)
    write_json(folder / "config.json", config)


def write_json(file: Path, content: Mapping[str, object]) -> None:
    """A JSON object, indented, keys in the given order."""
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
