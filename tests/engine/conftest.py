"""One vLLM server for all tests of this folder, and what fresh engines say, computed beside it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sfn
from sfn import checkpoints, engines, pairs, recipes, surgery
from sfn.engines import hardware, vllm_guard
from tests.engine import kinds
from tests.engine.cases import MAX_TOKENS, QUESTIONS, RECIPES, Said

SHARE_OF_GPU = 0.3  # of its memory, for each engine of these tests


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    vllm = next(backend for backend in engines.available() if backend.name == "vllm")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.engine)
            item.add_marker(pytest.mark.timeout(600))  # a server's start is all imports, slow on a busy machine
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


class Run:
    """One of this folder's programs at its work. Guarded like a server: it must not outlive these tests either."""

    def __init__(self, program: str, work: dict[str, Any], folder: Path) -> None:
        self.work, self._folder = work, folder
        (folder / "work.json").write_text(json.dumps(work))
        command = [sys.executable, str(Path(__file__).with_name(program)), str(folder / "work.json")]
        guard = [sys.executable, "-I", vllm_guard.__file__, str(folder / "record"), str(folder / "own"), *command]
        with (folder / "out").open("w") as out, (folder / "errors").open("w") as errors:
            self._guard = subprocess.Popen(
                guard, stdin=subprocess.PIPE, stdout=out, stderr=errors, start_new_session=True
            )
        if hardware.device_for("vllm") == "cuda":  # it shares the GPU's memory with the server
            self._guard.wait(timeout=600)

    def answer(self) -> Any:
        """What it printed, once it has ended."""
        assert self._guard.wait(timeout=550) == 0, (self._folder / "errors").read_text()[-3000:]
        return json.loads((self._folder / "out").read_text().splitlines()[-1])

    def close(self) -> None:
        """End it."""
        self._guard.stdin.close()
        self._guard.wait(timeout=30)


@pytest.fixture(scope="session", autouse=True)
def kinds_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run | None]:
    """swapping.py, running beside the first tests: it takes one core for a minute or two."""
    if not any(item.path.name == "test_vllm_kinds.py" for item in request.session.items):
        yield None
        return
    run = Run("swapping.py", kinds.work(tmp_path_factory.mktemp("kinds")), tmp_path_factory.mktemp("swapping"))
    yield run
    run.close()


@pytest.fixture(scope="session")
def fresh_run(pair, merged, prompts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Fresh engines, running beside the server while it starts."""
    from sfn.engines.vllm_engine import VllmEngine

    options = VllmEngine(pair).same_numbers()
    if options.get("gpu_memory_utilization") is None:
        options["gpu_memory_utilization"] = SHARE_OF_GPU
    content = {"folders": {name: str(path) for name, path in merged.items()}, "prompts": prompts}
    content |= {"max_tokens": MAX_TOKENS, "options": options}
    run = Run("fresh.py", content, tmp_path_factory.mktemp("fresh"))
    yield run
    run.close()


@pytest.fixture(scope="session")
def fresh(fresh_run) -> dict[str, list[Said]]:
    """What fresh engines say on the merged checkpoints."""
    return {name: [Said(**said) for said in texts] for name, texts in fresh_run.answer().items()}


@pytest.fixture(scope="session")
def engine(pair, cache, fresh_run) -> Iterator[engines.Engine]:
    arguments = ["--worker-extension-cls tests.engine.spoiling.SpoilingWorker"]
    if hardware.device_for("vllm") == "cuda":
        arguments.append(f"--gpu-memory-utilization {SHARE_OF_GPU}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFN_VLLM_ARGS", " ".join(arguments))
        with engines.open("vllm", pair) as engine:
            engine.be(recipes.Recipe())
            yield engine
