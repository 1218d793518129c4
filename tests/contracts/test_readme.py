"""What README shows in Python runs as it stands, from an empty folder; what it links to is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contracts.source import ROOT

README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", README, flags=re.M | re.S)


def run(program: str, folder: Path) -> str:
    """What `program` prints when it is run from `folder`; fails where it fails."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "SFN_CACHE": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_is_an_example():
    assert EXAMPLES
    assert "sfn.engines.open" in EXAMPLES[0]


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example_runs(number: int, tmp_path: Path):
    printed = run(EXAMPLES[number], tmp_path)
    assert printed.strip()
    if number == 0:
        assert "model.layers.5.self_attn.o_proj.weight 5 o_proj" in printed  # the scan reached the last layer
        _, last_tensor, rest = printed.partition("\nlm_head.weight None lm_head")
        assert last_tensor
        assert re.search(r"\w", rest.partition("\n")[2]), "the merged model said nothing"
        assert (tmp_path / "merged" / "config.json").is_file()
        assert list((tmp_path / "merged").glob("*.safetensors"))


@pytest.mark.parametrize(
    "name", ["README.md", "docs/architecture.md", "docs/dependencies.md", "docs/errors.md", "docs/log.md"]
)
def test_local_links_lead_somewhere(name: str):
    text = (ROOT / name).read_text()
    targets = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", text)
    missing = [target for target in targets if not (ROOT / name).parent.joinpath(target).exists()]
    assert not missing, f"{name} links to {missing}"


def test_make_targets_that_are_named_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    named = set(re.findall(r"`(?:PORT=\S+ |SFN_BACKEND=\S+ )*make ([a-z]+)", README))
    assert named
    assert named <= targets
