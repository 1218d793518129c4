"""Models of several kinds whose weights change while vLLM runs: equal to fresh engines with vLLM's own loader, without
drift, and a spoiled weight is found."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sfn import checkpoints
from tests.engine.conftest import Run
from tests.engine.kinds import ASKED, MADE, RECIPES


@pytest.fixture(scope="module")
def work(kinds_run: Run) -> dict[str, Any]:
    """What swapping.py was asked to do."""
    return kinds_run.work


@pytest.fixture(scope="module")
def found(kinds_run: Run) -> dict[str, Any]:
    """What it says, by kind."""
    return kinds_run.answer()


@pytest.mark.parametrize("kind", MADE)
def test_changed_weights_equal_a_fresh_engine_on_the_merged_checkpoint(kind, found, work):
    said, fresh = found[kind]["said"], found[kind]["fresh"]
    assert list(said) == [*work["kinds"][kind]["recipes"], *map(str, ASKED)]
    for name in said:
        assert said[name] == fresh[name], name
    everything = [found[kind]["said at first"], *said.values()]
    assert len({json.dumps(text) for text in everything}) == len(everything)  # or equality would say nothing


@pytest.mark.parametrize("kind", MADE)
def test_fifty_random_recipes_leave_no_trace(kind, found):
    run = found[kind]
    answers = [run["proved"], *run["answers"], run["back"]]
    assert [answer for answer in answers if "error" in answer or "fixed" in answer] == []
    assert all(answer["left"] == 0 for answer in answers)
    assert run["back"]["digest"] == run["proved"]["digest"]
    assert run["said again"] == run["said at first"]
    assert run["reread"] == {"digest": run["proved"]["digest"], "changed": []}
    assert len({answer["digest"] for answer in run["answers"]}) > 45  # nearly all of them are different models


@pytest.mark.parametrize("kind", MADE)
def test_only_what_differs_is_moved(kind, found, work):
    """And all of what makes one module of vLLM's."""
    run = found[kind]
    q_alone = run["answers"][list(RECIPES).index("q alone")]
    assert q_alone["modules"] == 2  # the joined q, k and v of two layers
    tensors = checkpoints.open(work["kinds"][kind]["a"]).tensors
    joined = [info for name, info in tensors.items() if any(f".{each}_proj." in name for each in "qkv")]
    assert q_alone["bytes"] == sum(info.size_bytes for info in joined)
    assert run["proved"]["modules"] == run["proved"]["bytes"] == 0  # what was loaded is proved, not moved
    assert run["proved"]["nowhere"] == []


@pytest.mark.parametrize("kind", MADE)
def test_a_spoiled_weight_is_found_and_mended(kind, found, work):
    run = found[kind]
    for (module, spoil, _), seen in zip(work["kinds"][kind]["spoils"], run["spoiled"], strict=True):
        assert seen["first"]["touched"] is True, (module, spoil, seen)
        told = "the disk went away" if spoil == "raises" else module
        assert told in seen["first"]["error"], (module, spoil, seen)
        assert "error" not in seen["again"], (module, spoil, seen)
        assert seen["again"]["left"] == 0
    spoiled_kinds = {seen["kind"] for seen in run["spoiled"]}
    assert spoiled_kinds == {"Packed", "Live"} | ({"Experts"} if kind == "moe" else set())


@pytest.mark.parametrize("kind", MADE)
def test_a_weight_that_changes_later_is_found_when_all_are_read_again(kind, found, work):
    run = found[kind]
    corrupted = [module for module, spoil, _ in work["kinds"][kind]["spoils"] if spoil not in ("raises", "not applied")]
    assert run["corrupted"] == [[module] for module in corrupted]
    assert run["mended"] == run["reread"]
