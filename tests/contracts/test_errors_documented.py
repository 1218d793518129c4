"""docs/errors.md has a section for every error that SfN raises on purpose: symptom, cause, fix."""

from __future__ import annotations

import re

import pytest

from sfn import errors
from tests.contracts.source import ROOT

ERRORS = sorted(
    name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, errors.SfnError)
)
TEXT = (ROOT / "docs/errors.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+)\n((?:(?!^## ).*\n?)*)", TEXT, flags=re.M))


def test_there_are_errors():
    assert "SfnError" in ERRORS
    assert "CheckpointError" in ERRORS


@pytest.mark.parametrize("name", [name for name in ERRORS if name != "SfnError"])
def test_error_has_a_section(name: str):
    titles = [title for title in SECTIONS if re.search(rf"\b{name}\b", title)]
    assert len(titles) == 1, f"docs/errors.md needs one section whose title names {name}; found {titles}"
    rows = [line for line in SECTIONS[titles[0]].splitlines() if line.startswith("|") and "---" not in line]
    header, *entries = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows] or [[]]
    assert [cell.lower() for cell in header] == ["symptom", "cause", "fix"], f"{name}: no table symptom | cause | fix"
    assert entries, f"{name}: the table is empty"
    assert all(len(row) == 3 and all(row) for row in entries), f"{name}: a row with a cell missing"


def test_no_section_for_an_error_that_is_gone():
    named = {word for title in SECTIONS for word in re.findall(r"\b[A-Z]\w*Error\b", title)}
    assert named <= set(ERRORS), f"docs/errors.md documents {sorted(named - set(ERRORS))}, which sfn/errors.py lacks"
