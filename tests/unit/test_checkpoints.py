"""Opening checkpoints and reading tensors: right bytes, right index, identity by content."""

import hashlib
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sfn import checkpoints
from sfn.errors import Cancelled, CheckpointError
from tests.builders import tiny_qwen2, tiny_qwen3, tiny_qwen3_moe, write_checkpoint

DTYPES = (
    torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool,
)  # fmt: skip


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    return left.contiguous().flatten().view(torch.uint8).equal(right.contiguous().flatten().view(torch.uint8))


@pytest.mark.parametrize("layout", [{}, {"shards": 3}, {"shards": 3, "index": False}], ids=["one", "index", "no index"])
def test_reads_what_the_reference_reads(tmp_path: Path, layout: dict) -> None:
    checkpoint = checkpoints.open(tiny_qwen2(tmp_path / "m", **layout))
    assert len(checkpoint.shards) == layout.get("shards", 1)
    for name, info in checkpoint.tensors.items():
        with safe_open(info.file, "pt") as reference:
            expected = reference.get_tensor(name)
        assert info.shape == tuple(expected.shape)
        assert info.dtype == "BF16"
        assert (info.numel, info.size_bytes) == (expected.numel(), expected.numel() * 2)
        assert info.file.read_bytes()[info.start : info.end] == bytes(expected.flatten().view(torch.uint8).tolist())
        assert same_bits(checkpoint.read(name), expected)
        assert same_bits(checkpoint.read(name, copy=True), expected)
        assert same_bits(checkpoint.read_rows(name, 1, 4), expected[1:4])
    assert checkpoint.parameters == 34_080
    assert checkpoint.size_bytes == 2 * 34_080


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_comes_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    drawn = torch.randint(0, 2 if dtype is torch.bool else 120, (6, 5), generator=torch.Generator().manual_seed(1))
    tensors = {
        "two": drawn.to(dtype),
        "scalar": drawn[0, 0].to(dtype).clone(),
        "none": torch.empty((0, 3), dtype=dtype),
    }
    checkpoint = checkpoints.open(write_checkpoint(tmp_path, tensors, {}, with_tokenizer=False))
    for name, expected in tensors.items():
        assert same_bits(checkpoint.read(name), expected)
        assert same_bits(checkpoint.read(name, copy=True), expected)
    assert same_bits(checkpoint.read_rows("two", 2, 5), tensors["two"][2:5])
    assert same_bits(checkpoint.read_rows("two", 3, 3), tensors["two"][3:3])
    assert same_bits(checkpoint.read_rows("scalar", 0, 1), tensors["scalar"].reshape(1))


def test_a_tensor_at_an_odd_offset_is_read_right(tmp_path: Path) -> None:
    header = (
        b'{"byte":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
        b'"wide":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}}'
    )
    expected = torch.tensor([1.5, -2.25])
    body = b"\x07" + expected.numpy().tobytes()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + body)
    checkpoint = checkpoints.open(tmp_path)
    assert checkpoint.read("wide").equal(expected)
    assert checkpoint.read_rows("wide", 1, 2).equal(expected[1:])


def test_writing_into_a_read_tensor_changes_nothing_else(tmp_path: Path) -> None:
    checkpoint = checkpoints.open(tiny_qwen2(tmp_path / "m"))
    before = hashlib.sha256(checkpoint.shards[0].read_bytes()).hexdigest()
    tensor = checkpoint.read("model.norm.weight")
    tensor.zero_()
    assert hashlib.sha256(checkpoint.shards[0].read_bytes()).hexdigest() == before
    assert checkpoint.read("model.norm.weight").abs().sum() > 0


def test_tensors_outlive_close_and_close_refuses_reads(tmp_path: Path) -> None:
    with checkpoints.open(tiny_qwen2(tmp_path / "m")) as checkpoint:
        tensor = checkpoint.read("model.norm.weight")
        expected = tensor.clone()
    checkpoint.close()
    assert tensor.equal(expected)
    with pytest.raises(CheckpointError, match="closed"):
        checkpoint.read("model.norm.weight")


def test_no_file_stays_open(tmp_path: Path) -> None:
    checkpoint = checkpoints.open(tiny_qwen2(tmp_path / "m"))
    before = len(os.listdir("/proc/self/fd"))
    kept = [checkpoint.read(name) for name in checkpoint.tensors]
    assert len(os.listdir("/proc/self/fd")) == before  # a model of a thousand tensors may be mapped whole
    maps = Path("/proc/self/maps").read_text().count(str(checkpoint.shards[0]))
    assert maps > 0
    del kept
    assert str(checkpoint.shards[0]) not in Path("/proc/self/maps").read_text()


def test_rows_and_names_that_are_not_there(tmp_path: Path) -> None:
    checkpoint = checkpoints.open(tiny_qwen2(tmp_path / "m"))
    with pytest.raises(CheckpointError, match=r"rows 30 to 33 asked for, it has 32"):
        checkpoint.read_rows("model.norm.weight", 30, 33)
    with pytest.raises(CheckpointError, match=r"-1 to 2"):
        checkpoint.read_rows("model.norm.weight", -1, 2)
    with pytest.raises(CheckpointError, match=r"no tensor 'model.nrom.weight'"):
        checkpoint.read("model.nrom.weight")


def test_a_file_cut_or_replaced_after_opening_raises_and_never_kills(tmp_path: Path) -> None:
    folder = tiny_qwen2(tmp_path / "m")
    file = folder / "model.safetensors"
    checkpoint = checkpoints.open(folder)
    content = file.read_bytes()
    file.write_bytes(content[:5000])
    for copy in (False, True):
        with pytest.raises(CheckpointError, match="changed since"):
            checkpoint.read("lm_head.weight", copy=copy)
    file.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.read("lm_head.weight")
    file.write_bytes(content)  # same bytes, but nothing tells that without reading them
    with pytest.raises(CheckpointError, match="changed since"):
        checkpoint.read("lm_head.weight")


def test_tied_needs_both_no_head_and_a_config_that_does_not_deny_it(tmp_path: Path) -> None:
    assert checkpoints.open(tiny_qwen2(tmp_path / "tied", tied=True)).tied
    assert not checkpoints.open(tiny_qwen2(tmp_path / "untied")).tied
    stored = tiny_qwen2(tmp_path / "stored", tie_word_embeddings=True)  # a head is there all the same
    assert not checkpoints.open(stored).tied
    denied = tiny_qwen2(tmp_path / "denied", tied=True, tie_word_embeddings=False)
    assert not checkpoints.open(denied).tied
    nested = tiny_qwen2(tmp_path / "nested", tied=True)
    tensors = {f"language_model.{name}": tensor for name, tensor in _tensors(nested).items()}
    config = {"text_config": {"tie_word_embeddings": True}, "tie_word_embeddings": False}
    checkpoint = checkpoints.open(write_checkpoint(tmp_path / "vl", tensors, config))
    assert checkpoint.tied
    assert checkpoint.embedding_name == "language_model.model.embed_tokens.weight"


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = checkpoints.open(folder)
    return {name: checkpoint.read(name) for name in checkpoint.tensors}


def test_other_architectures_open(tmp_path: Path) -> None:
    assert "model.layers.1.self_attn.q_norm.weight" in checkpoints.open(tiny_qwen3(tmp_path / "q3")).tensors
    moe = checkpoints.open(tiny_qwen3_moe(tmp_path / "moe", shards=2))
    assert moe.tensors["model.layers.1.mlp.experts.3.down_proj.weight"].shape == (32, 16)


def test_label_and_revision_of_a_hub_snapshot(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = tiny_qwen2(tmp_path / "models--Qwen--Qwen2-tiny" / "snapshots" / commit)
    checkpoint = checkpoints.open(folder)
    assert (checkpoint.label, checkpoint.revision) == ("Qwen/Qwen2-tiny", commit)
    assert checkpoints.open(folder, revision=commit).revision == commit
    with pytest.raises(CheckpointError, match="no revision 'main'"):
        checkpoints.open(folder, revision="main")


def test_fingerprint_is_of_content_and_names_of_the_files_that_count(tmp_path: Path) -> None:
    first, second = tiny_qwen2(tmp_path / "a"), tiny_qwen2(tmp_path / "b")
    (second / "README.md").write_text("does not count")
    identity = checkpoints.open(first).fingerprint
    assert identity == checkpoints.open(second).fingerprint
    lines = [
        f"{file.relative_to(first)}\t{hashlib.sha256(file.read_bytes()).hexdigest()}\n" for file in first.iterdir()
    ]
    assert identity == hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "generation_config.json"):
        changed = tiny_qwen2(tmp_path / name)
        (changed / name).write_text((changed / name).read_text() + " ")
        assert checkpoints.open(changed).fingerprint != identity
    assert checkpoints.open(tiny_qwen2(tmp_path / "other seed", seed=1)).fingerprint != identity


def test_fingerprint_remembers_files_by_path_size_and_time(tmp_path: Path) -> None:
    folder = tiny_qwen2(tmp_path / "m", shards=3)
    memo: dict[tuple[str, int, int], str] = {}
    seen: list[tuple[int, int, str]] = []
    first = checkpoints.open(folder)
    identity = first.fingerprint_with(memo, lambda *step: seen.append(step))
    assert seen[-1][0] == seen[-1][1] == sum(file.stat().st_size for file in first.identity_files)
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert first.fingerprint == identity
    assert len(memo) == len(first.identity_files)
    seen.clear()
    assert checkpoints.open(folder).fingerprint_with(memo, lambda *step: seen.append(step)) == identity
    assert seen == []
    (folder / "config.json").write_text("{}")
    assert checkpoints.open(folder).fingerprint_with(memo, lambda *step: seen.append(step)) != identity
    assert {name for _, _, name in seen} == {"config.json"}


def test_fingerprint_can_be_cancelled(tmp_path: Path) -> None:
    checkpoint = checkpoints.open(tiny_qwen2(tmp_path / "m"))

    def cancel(done: int, total: int, name: str) -> None:
        raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        checkpoint.fingerprint_with({}, cancel)


def test_a_hub_blob_carries_its_hash(tmp_path: Path) -> None:
    folder = tiny_qwen2(tmp_path / "plain")
    identity = checkpoints.open(folder).fingerprint
    weights = folder / "model.safetensors"
    blob = tmp_path / "blobs" / hashlib.sha256(weights.read_bytes()).hexdigest()
    blob.parent.mkdir()
    weights.rename(blob)
    weights.symlink_to(blob)
    seen: list[str] = []
    assert checkpoints.open(folder).fingerprint_with({}, lambda done, total, name: seen.append(name)) == identity
    assert "model.safetensors" not in seen


def test_files_of_other_programs_beside_the_model_are_left_out(tmp_path: Path) -> None:
    folder = tiny_qwen2(tmp_path / "m", shards=2)
    save_file({"lm_head.weight": torch.zeros(2)}, folder / "consolidated.safetensors")
    assert len(checkpoints.open(folder).tensors) == 27
    (folder / "model.safetensors.index.json").unlink()
    assert len(checkpoints.open(folder).tensors) == 27
