"""Whatever lies in a folder: an index of it, or one CheckpointError that names the file; no crash, no garbage."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from sfn import checkpoints
from sfn.errors import CheckpointError
from sfn.headers import DTYPE_BITS, MAX_HEADER_BYTES, encode_header, read_header
from tests.builders import tiny_qwen2, write_checkpoint


def file_of(folder: Path, header: object, body: bytes = b"", *, length: int | None = None) -> Path:
    """A safetensors file with any header: an object to be dumped, or raw bytes."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = folder / "model.safetensors"
    file.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + body)
    return file


def entry(start: int, end: int, dtype: object = "F32", shape: object = None) -> dict[str, object]:
    return {"dtype": dtype, "shape": [(end - start) // 4] if shape is None else shape, "data_offsets": [start, end]}


BROKEN_HEADERS: dict[str, tuple[object, bytes, str]] = {
    "not JSON": (b"{nope", b"", "not valid JSON"),
    "not UTF-8": (b'{"\xff": 1}', b"", "not valid JSON"),
    "half a surrogate pair": (
        b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b"1234",
        "not valid JSON",
    ),
    "nested too deeply": (b"[" * 100_000, b"", "nested too deeply"),
    "a number too long": (b'{"x":' + b"9" * 5000 + b"}", b"", "not valid JSON"),
    "a list": ([1], b"", "a JSON list, not an object"),
    "a name twice": (b'{"x":{},"x":{}}', b"", "'x' stands in it twice"),
    "metadata not texts": ({"__metadata__": {"n": 1}}, b"", "__metadata__"),
    "entry not an object": ({"x": 3}, b"", "'x': the header has no dtype"),
    "no offsets": ({"x": {"dtype": "F32", "shape": [1]}}, b"1234", "'x': the header has no dtype"),
    "unknown dtype": ({"x": entry(0, 4, "F33")}, b"1234", "'x': unknown dtype 'F33'"),
    "dtype a list": ({"x": entry(0, 4, ["F32"])}, b"1234", "'x': unknown dtype"),
    "negative size": ({"x": entry(0, 4, shape=[-1])}, b"1234", r"'x': shape \[-1\]"),
    "size true": ({"x": entry(0, 4, shape=[True])}, b"1234", "'x': shape"),
    "size a fraction": ({"x": entry(0, 4, shape=[1.0])}, b"1234", "'x': shape"),
    "size overflows": ({"x": entry(0, 0, shape=[2**62, 0, 2**62])}, b"", "'x': shape"),
    "shape no list": ({"x": entry(0, 4, shape=4)}, b"1234", "'x': shape 4"),
    "too many dimensions": ({"x": entry(0, 4, shape=[1] * 65)}, b"1234", "'x': shape"),
    "size is not shape times dtype": ({"x": entry(0, 4, shape=[2])}, b"1234", r"'x': F32 of shape \[2\] takes 8 bytes"),
    "half bytes": ({"x": entry(0, 1, "F4", [1])}, b"1", "'x': F4"),
    "negative offset": ({"x": entry(-4, 0)}, b"", "'x': data_offsets"),
    "offsets backwards": ({"x": entry(4, 0)}, b"1234", "'x'"),
    "three offsets": ({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, b"1234", "'x': data_offsets"),
    "beyond the file": ({"x": entry(0, 8)}, b"1234", "'x': its bytes reach to"),
    "overlap": ({"x": entry(0, 8), "y": entry(4, 12)}, b"0" * 12, "'y': .* overlaps the tensor before it"),
    "same range twice": ({"x": entry(0, 4), "y": entry(0, 4)}, b"0" * 4, "overlaps"),
    "gap": ({"x": entry(0, 4), "y": entry(8, 12)}, b"0" * 12, "'y': .* leaves a gap before it"),
    "gap at the start": ({"x": entry(4, 8)}, b"0" * 8, "'x': .* leaves a gap"),
    "bytes at the end": ({"x": entry(0, 4)}, b"0" * 8, "belong to no tensor"),
    "nothing in it": ({}, b"", "hold no tensor"),
}


@pytest.mark.parametrize("name", BROKEN_HEADERS)
def test_a_broken_header_names_file_and_tensor(tmp_path: Path, name: str) -> None:
    header, body, words = BROKEN_HEADERS[name]
    file_of(tmp_path, header, body)
    with pytest.raises(CheckpointError, match=words) as raised:
        checkpoints.open(tmp_path)
    assert str(tmp_path) in str(raised.value)
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize("size", [0, 1, 7, 8, 50, 3000, -1])
def test_a_file_cut_anywhere(tmp_path: Path, size: int) -> None:
    file = tiny_qwen2(tmp_path / "m") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"cut off|hold no tensor"):
        checkpoints.open(tmp_path / "m")


def test_headers_of_absurd_length(tmp_path: Path) -> None:
    file_of(tmp_path, b"{}", length=1000)
    with pytest.raises(CheckpointError, match="its header takes 1,000 bytes, but the whole file has 10"):
        checkpoints.open(tmp_path)
    for length in (MAX_HEADER_BYTES + 1, 2**64 - 1):
        file_of(tmp_path, b"{}", length=length)
        with pytest.raises(CheckpointError, match="at most 100,000,000"):
            checkpoints.open(tmp_path)


def test_another_kind_of_file_under_the_name(tmp_path: Path) -> None:
    for content in (
        b"<html>404</html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00",
        b"\x80\x02}q\x00.",
    ):
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"model.safetensors"):
            checkpoints.open(tmp_path)


def test_folders_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no folder"):
        checkpoints.open(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="holds no safetensors file"):
        checkpoints.open(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="only an adapter"):
        checkpoints.open(tmp_path)
    file = tiny_qwen2(tmp_path / "m") / "model.safetensors"
    with pytest.raises(CheckpointError, match=r"is a file. Give the folder"):
        checkpoints.open(file)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickled_weights_are_refused_unread(tmp_path: Path, name: str) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
            return shutil.rmtree, (str(tmp_path),)

    (tmp_path / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError, match="pickle format, which can run any code") as raised:
        checkpoints.open(tmp_path)
    assert "save_pretrained" in str(raised.value)
    assert (tmp_path / name).exists()


def test_shards_that_do_not_belong_together(tmp_path: Path) -> None:
    folder = tiny_qwen2(tmp_path / "m", shards=3)
    second = folder / "model-00002-of-00003.safetensors"
    content = second.read_bytes()
    second.unlink()
    with pytest.raises(CheckpointError, match=r"lacks the shard model-00002-of-00003.safetensors that its index names"):
        checkpoints.open(folder)
    shutil.copy(folder / "model-00001-of-00003.safetensors", second)
    with pytest.raises(CheckpointError, match=r"stands in model-00001-of-00003.safetensors and again in model-00002"):
        checkpoints.open(folder)
    second.write_bytes(content)
    shutil.copy(second, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="programs differ in which they take"):
        checkpoints.open(folder)


def test_a_missing_shard_is_seen_without_an_index(tmp_path: Path) -> None:
    folder = tiny_qwen2(tmp_path / "m", shards=3, index=False)
    (folder / "model-00003-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks the shard model-00003-of-00003.safetensors"):
        checkpoints.open(folder)


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        (None, "no `weight_map`"), ([], "no `weight_map`"), ({}, "no `weight_map`"), ({"x": 3}, "no `weight_map`"),
        ({"x": "../model.safetensors"}, "is no safetensors file here"),
        ({"x": "/etc/passwd"}, "is no safetensors file here"),
        ({"x": "pytorch_model.bin"}, "is no safetensors file here"),
        ({"x": "other.safetensors"}, "lacks the shard other.safetensors"),
        ({"x": "model-00001-of-00002.safetensors"}, "'x' should be in model-00001-of-00002.safetensors"),
        ({"lm_head.weight": "model-00001-of-00002.safetensors"}, "which does not hold it"),
    ],
)  # fmt: skip
def test_a_broken_index(tmp_path: Path, weight_map: object, words: str) -> None:
    folder = tiny_qwen2(tmp_path / "m", shards=2)
    file = folder / "model.safetensors.index.json"
    right = json.loads(file.read_text())["weight_map"]
    right["lm_head.weight"] = "model-00002-of-00002.safetensors"
    if isinstance(weight_map, dict) and "lm_head.weight" in weight_map:
        holder = next(s for s in set(right.values()) if s != weight_map["lm_head.weight"])
        tensors = {n: torch.ones(1) for n, s in right.items() if s == holder}
        write_checkpoint(tmp_path / "x", tensors | {"lm_head.weight": torch.ones(1)})
        shutil.move(tmp_path / "x" / "model.safetensors", folder / holder)
        tensors = {n: torch.ones(1) for n in right if n not in tensors and n != "lm_head.weight"}
        write_checkpoint(tmp_path / "y", tensors)
        shutil.move(tmp_path / "y" / "model.safetensors", folder / weight_map["lm_head.weight"])
    file.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=words):
        checkpoints.open(folder)


def test_config_may_be_absent_but_not_broken(tmp_path: Path) -> None:
    folder = tiny_qwen2(tmp_path / "m")
    config = folder / "config.json"
    config.unlink()
    assert checkpoints.open(folder).config == {}
    for content in ("", "{", "[]", "null", '"text"', "\udcff"):
        config.write_text(content, errors="surrogateescape")
        with pytest.raises(CheckpointError, match=r"config.json"):
            checkpoints.open(folder)


# Against the reference parser.


def reference_accepts(file: Path) -> bool:
    try:
        with safe_open(file, "pt"):
            return True
    except (SafetensorError, OSError):
        return False


def check_against_reference(folder: Path) -> None:
    """What is accepted here is accepted there, and every tensor can be read; else a CheckpointError, nothing else."""
    file = folder / "model.safetensors"
    try:
        infos, _, _ = read_header(file)
    except CheckpointError:
        return
    assert reference_accepts(file)
    if infos:
        checkpoint = checkpoints.open(folder)
        for name, info in checkpoint.tensors.items():
            assert info.end <= file.stat().st_size
            if info.dtype in ("F4", "F6_E2M3", "F6_E3M2"):
                with pytest.raises(CheckpointError, match="torch has no dtype"):
                    checkpoint.read(name)
            else:
                tensor = checkpoint.read(name)
                assert tuple(tensor.shape) == info.shape
                assert tensor.numel() * tensor.element_size() == info.size_bytes


FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(content=st.binary(max_size=200))
@FUZZ
def test_random_bytes(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    check_against_reference(tmp_path)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(sorted(DTYPE_BITS)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_COUNT = st.integers(0, 6) | st.integers(-2, 2**65) | _JSON
_ENTRY = st.fixed_dictionaries({
    "dtype": st.sampled_from(sorted(DTYPE_BITS)) | _JSON,
    "shape": st.lists(_COUNT, max_size=3) | _JSON,
    "data_offsets": st.lists(_COUNT, min_size=2, max_size=2) | _JSON,
})  # fmt: skip
_HEADER = st.dictionaries(st.text(max_size=4) | st.just("__metadata__"), _ENTRY | _JSON, max_size=3)


@given(header=_HEADER, body=st.binary(max_size=16))
@FUZZ
def test_headers_made_up(tmp_path: Path, header: dict, body: bytes) -> None:
    file_of(tmp_path, header, body)
    check_against_reference(tmp_path)


_SOUND = st.lists(
    st.tuples(
        st.sampled_from(sorted(set(DTYPE_BITS) - {"F4", "F6_E2M3", "F6_E3M2"})), st.lists(st.integers(0, 3), max_size=3)
    ),
    max_size=4,
)


@given(tensors=_SOUND, place=st.integers(0, 10_000), byte=st.integers(0, 255), flip=st.booleans())
@FUZZ
def test_sound_files_open_and_one_changed_byte_does_no_harm(
    tmp_path: Path, tensors: list[tuple[str, list[int]]], place: int, byte: int, flip: bool
) -> None:
    named = [(f"t{number}", dtype, tuple(shape)) for number, (dtype, shape) in enumerate(tensors)]
    head = encode_header(named, {"format": "pt"})
    assert len(head) % 8 == 0
    sizes = [torch.Size(shape).numel() * DTYPE_BITS[dtype] // 8 for _, dtype, shape in named]
    content = bytearray(head + bytes(sum(sizes)))
    file = tmp_path / "model.safetensors"
    if flip:
        content[place % len(content)] = byte
        file.write_bytes(content)
        check_against_reference(tmp_path)
    else:
        file.write_bytes(content)
        infos, metadata, _ = read_header(file)
        assert [(info.name, info.dtype, info.shape) for info in infos.values()] == sorted(
            named, key=lambda tensor: list(infos).index(tensor[0])
        )
        assert metadata == {"format": "pt"}
        check_against_reference(tmp_path)
