"""mergekit 0.1.5 itself, in its own virtual environment; where it cannot be installed, its tests are skipped."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from scripts import mergekit

Merge = Callable[[Mapping[str, str]], dict[str, Path]]


@pytest.fixture(scope="session")
def mergekit_python() -> Path:
    """The Python that has mergekit."""
    try:
        return mergekit.python()
    except mergekit.Unavailable as reason:
        pytest.skip(f"needs mergekit: {reason}")


@pytest.fixture
def merge(mergekit_python: Path, tmp_path: Path) -> Merge:
    """Name -> config text becomes name -> folder of the merged checkpoint. Fails with mergekit's own words."""

    def run(configs: Mapping[str, str]) -> dict[str, Path]:
        folder = tmp_path / "mergekit"
        folder.mkdir()
        for name, text in configs.items():
            (folder / f"{name}.yml").write_text(text, encoding="utf-8")
        script = Path(__file__).with_name("merge_all.py")
        done = subprocess.run([mergekit_python, script, folder], capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        errors = {file.stem: file.read_text() for file in folder.glob("*.error")}
        assert not errors, "\n".join(f"{name}:\n{configs[name]}\n{error}" for name, error in errors.items())
        return {name: folder / name for name in configs}

    return run
