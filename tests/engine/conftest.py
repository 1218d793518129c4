"""One vLLM server for all tests of this folder, and what fresh engines say, computed beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sfn
from sfn import checkpoints, engines, pairs, recipes, surgery
from tests.engine.cases import MAX_TOKENS, QUESTIONS, RECIPES, Said


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    vllm = next(backend for backend in engines.available() if backend.name == "vllm")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.engine)
            if not vllm.ok:
                item.add_marker(pytest.mark.skip(reason=vllm.reason))


@pytest.fixture(scope="session")
def pair() -> pairs.Pair:
    return pairs.compare(*(checkpoints.open(folder) for folder in sfn.demo.folders()))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """SFN_CACHE of this session: logs, and what notes the running servers."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFN_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def prompts(pair) -> list[list[int]]:
    from sfn.engines import text

    speech = text.load(pair.a.folder, "A")
    return [speech.prompt_ids(question, "plain") for question in QUESTIONS]


@pytest.fixture(scope="session")
def merged(pair, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every recipe as a checkpoint on disk."""
    folder = tmp_path_factory.mktemp("merged")
    return {name: surgery.write(pair, recipes.parse(text), folder / name) for name, text in RECIPES.items()}


@pytest.fixture(scope="session")
def fresh_run(pair, merged, prompts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen]:
    """Fresh engines, running beside the server while it starts."""
    from sfn.engines.vllm_engine import VllmEngine

    work = tmp_path_factory.mktemp("fresh") / "work.json"
    options = VllmEngine(pair).same_numbers()
    content = {"folders": {name: str(folder) for name, folder in merged.items()}, "prompts": prompts}
    work.write_text(json.dumps(content | {"max_tokens": MAX_TOKENS, "options": options}))
    command = [sys.executable, str(Path(__file__).with_name("fresh.py")), str(work)]
    with work.with_name("stderr").open("w") as errors:
        run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=os.environ)
    yield run
    run.kill()
    run.wait()


@pytest.fixture(scope="session")
def fresh(fresh_run) -> dict[str, list[Said]]:
    """What fresh engines say on the merged checkpoints."""
    out, _ = fresh_run.communicate(timeout=300)
    assert fresh_run.returncode == 0, "the fresh engines failed; see pytest's fresh*/stderr"
    return {name: [Said(**said) for said in answers] for name, answers in json.loads(out.splitlines()[-1]).items()}


@pytest.fixture(scope="session")
def engine(pair, cache, fresh_run) -> Iterator[engines.Engine]:
    with engines.open("vllm", pair) as engine:
        engine.be(recipes.Recipe())
        yield engine
