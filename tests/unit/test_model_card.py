"""The card of a merged checkpoint: lineage that the Hub reads, whose part is whose, and lines that make it again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import sfn
from sfn import checkpoints, pairs, recipes, surgery
from tests.builders import tiny_qwen2

COMMITS = ("0123456789" * 4, "abcdef0123" * 4)


def on_the_hub(root: Path, name: str, commit: str, seed: int, card: str = "") -> Path:
    """A snapshot as huggingface_hub's cache has it."""
    folder = tiny_qwen2(root / f"models--{name.replace('/', '--')}" / "snapshots" / commit, seed)
    if card:
        (folder / "README.md").write_text(card)
    return folder


def card_of(folder: Path) -> tuple[dict[str, object], str]:
    """Front matter and text of a written checkpoint's card."""
    _, front, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), text


def written(a: Path, b: Path, recipe: str, folder: Path, memo: dict | None = None) -> tuple[dict[str, object], str]:
    pair = pairs.compare(checkpoints.open(a), checkpoints.open(b))
    return card_of(surgery.write(pair, recipes.parse(recipe), folder, memo=memo))


def test_lineage_of_two_models_on_the_hub(tmp_path: Path) -> None:
    a = on_the_hub(tmp_path, "org/base", COMMITS[0], 0, "---\nlicense: apache-2.0\n---\nA base.")
    b = on_the_hub(tmp_path, "lab/reasoner", COMMITS[1], 1, "---\nlicense: apache-2.0\ntags: [x]\n---\n")
    memo: dict[tuple[str, int, int], str] = {}
    fingerprints = [checkpoints.open(folder).fingerprint_with(memo) for folder in (a, b)]
    front, text = written(a, b, "o_proj=B; mlp@1=B:0.5", tmp_path / "m", memo)
    assert front == {
        "base_model": ["org/base", "lab/reasoner"],
        "base_model_relation": "merge",
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["merge", "module-merge", "stethoscope-for-networks"],
    }
    for said in (
        *COMMITS,
        *fingerprints,
        "Recipe: `o_proj@all=B; mlp@1=B:0.5`",
        "% of parameters from B",
        sfn.__version__,
    ):
        assert said in text
    assert f"model: org/base@{COMMITS[0]}" in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    ("of_a", "of_b", "front_licence", "said"),
    [
        ("license: mit", "license: apache-2.0", {}, "| licence by its card | mit | apache-2.0 |"),
        ("license: mit", "", {}, "| licence by its card | mit | not stated |"),
        (
            "license: other\nlicense_name: own\nlicense_link: LICENSE",
            "license: other\nlicense_name: own\nlicense_link: LICENSE",
            {"license": "other", "license_name": "own", "license_link": "LICENSE"},
            "| own (LICENSE) | own (LICENSE) |",
        ),
        ("license: [", "license: [", {}, "| not stated | not stated |"),
        ("license: 'a | b `c`'", "x: 1", {}, "| a / b 'c' | not stated |"),
    ],
)
def test_licences_are_those_of_the_cards(
    tmp_path: Path, of_a: str, of_b: str, front_licence: dict[str, str], said: str
) -> None:
    folders = [
        on_the_hub(tmp_path, f"org/{side}", COMMITS[0], n, f"---\n{stated}\n---\nText." if stated else "")
        for n, (side, stated) in enumerate((("a", of_a), ("b", of_b)))
    ]
    front, text = written(*folders, "o_proj=B", tmp_path / "m")
    assert {key: value for key, value in front.items() if key.startswith("license")} == front_licence
    assert said in text


def test_folders_are_no_base_models_of_the_hub(tmp_path: Path) -> None:
    front, text = written(tiny_qwen2(tmp_path / "a"), tiny_qwen2(tmp_path / "b", 1), "", tmp_path / "m")
    assert not {"base_model", "base_model_relation"} & front.keys()
    assert "| model | a | b |" in text
    assert "not from the Hub" in text
    assert "Recipe: `all A`" in text
    assert "| SHA-256 of the files | not computed | not computed |" in text


@pytest.mark.parametrize("recipe", ["o_proj=B", "mlp@0=B:0.3; q_proj=zero", "gate_proj=reinit:4", "all@1=remove"])
def test_the_lines_make_it_again(tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_qwen2(tmp_path / "a"), tiny_qwen2(tmp_path / "b", 1)
    _, text = written(tmp_path / "a", tmp_path / "b", recipe, tmp_path / "m")
    lines = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(lines[1], {})
    assert (tmp_path / "merged" / "model.safetensors").read_bytes() == (
        tmp_path / "m" / "model.safetensors"
    ).read_bytes()


def test_mergekit_is_told_or_it_is_said_why_not(tmp_path: Path) -> None:
    a, b = tiny_qwen2(tmp_path / "a"), tiny_qwen2(tmp_path / "b", 1)
    _, text = written(a, b, "o_proj=B", tmp_path / "m")
    config = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    pair = pairs.compare(checkpoints.open(a), checkpoints.open(b))
    assert recipes.from_mergekit(config[1], pair).recipe == recipes.parse("o_proj=B")
    _, text = written(a, b, "q_proj=reinit:1", tmp_path / "n")
    assert "mergekit cannot make it: The rule q_proj@all=reinit:1 draws random weights" in text


def test_whose_is_what(tmp_path: Path) -> None:
    wide = tiny_qwen2(tmp_path / "b", 1, dtype="float32")
    _, text = written(tiny_qwen2(tmp_path / "a"), wide, "head=B; q_proj=zero; k_proj=B:0.5", tmp_path / "m")
    for said in ("cast to the dtype that A has", "nothing but zeros", "rounded once", "token ids are B's"):
        assert said in text
    assert "drawn at random" not in text
    assert "quality was measured" in " ".join(text.split())
