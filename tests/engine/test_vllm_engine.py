"""The vLLM engine as its owner drives it: streams, cancel, sampling, limits, failures, and no process left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import sfn
from sfn import engines, recipes
from sfn.engines import vllm_guard
from sfn.errors import EngineError, RecipeError
from tests.engine.cases import QUESTIONS

PROMPT = QUESTIONS[0]


@pytest.fixture
def a(engine):
    engine.be(recipes.Recipe())
    return engine


def text_of(pieces) -> str:
    return "".join(piece.text for piece in pieces)


def session_of(record: Path) -> tuple[int, int]:
    return tuple(json.loads(record.read_text())["session"])


def send(number: int, processes: set[int]) -> None:
    for pid in processes:
        os.kill(pid, number)


def wait_until(true, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not (met := true()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return met


def test_status_says_what_is_held(engine):
    engine.be(recipes.parse("o_proj@all = b"))
    status = engine.status
    assert (status.backend, status.state, status.recipe) == ("vllm", "idle", recipes.format(recipes.parse("o_proj=B")))
    assert (status.device, status.dtype) == engines.frame("vllm", engine._pair)
    assert status.version == engines.version_of("vllm")


def test_a_stream_is_the_text_of_its_tokens(a):
    pieces = list(a.generate(PROMPT, max_tokens=40))
    assert pieces[-1].finish == "stop"
    assert [piece.finish for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].n_tokens >= len(pieces) >= 2
    assert all(piece.n_prompt_tokens == pieces[0].n_prompt_tokens > 5 for piece in pieces)
    assert text_of(pieces).strip()
    assert "<|end|>" not in text_of(pieces)
    assert a.status.state == "idle"


def test_both_engines_say_the_same_where_they_are_sure(a, pair):
    with engines.open("transformers", pair, device="cpu") as other:
        for text in ("", "all=B"):
            a.be(recipes.parse(text))
            other.be(recipes.parse(text))
            assert text_of(a.generate(PROMPT, max_tokens=8)) == text_of(other.generate(PROMPT, max_tokens=8))


def test_max_tokens_end_an_answer(a):
    pieces = list(a.generate(PROMPT, max_tokens=3))
    assert (pieces[-1].n_tokens, pieces[-1].finish) == (3, "length")


def test_seeds_decide_samples(a):
    some = [text_of(a.generate(QUESTIONS[1], max_tokens=24, temperature=1.5, seed=seed)) for seed in (1, 1, 2)]
    assert some[0] == some[1] != some[2]


def test_stop_strings_are_cut_as_by_the_other_engine(a):
    whole = text_of(a.generate(QUESTIONS[1], max_tokens=40))
    stop = whole[8:11]
    pieces = list(a.generate(QUESTIONS[1], max_tokens=40, stop=(stop,)))
    assert text_of(pieces) == whole[: whole.index(stop)]
    assert pieces[-1].finish == "stop"


def test_cancel_ends_the_answer_on_the_server_too(a):
    cancel = threading.Event()
    seen = []
    for piece in a.generate(PROMPT, max_tokens=400, temperature=2.0, seed=3, cancel=cancel):
        seen.append(piece)
        assert a.status.state == "busy"
        if len(seen) == 3:
            cancel.set()
    assert seen[-1].finish == "cancelled"
    assert seen[-1].n_tokens < 400
    # The cache can only be dropped when no request runs any more.
    assert wait_until(lambda: a._server.call("POST", "/reset_prefix_cache")["success"], 5)


def test_leaving_a_stream_early_is_a_cancel(a):
    stream = a.generate(PROMPT, max_tokens=400, temperature=2.0, seed=3)
    next(stream)
    stream.close()
    assert a.status.state == "idle"
    assert wait_until(lambda: a._server.call("POST", "/reset_prefix_cache")["success"], 5)


def test_limits_are_said_before_anything_is_asked(a, pair):
    limit = pair.a.config["max_position_embeddings"]
    with pytest.raises(EngineError, match=f"holds {limit}"):
        a.generate("7" * 3 * limit)
    with pytest.raises(EngineError, match="together"):
        a.score("7" * 3 * limit)
    with pytest.raises(EngineError, match="temperature is -1"):
        a.generate(PROMPT, temperature=-1)


def test_a_wrong_recipe_touches_nothing(a):
    before = text_of(a.generate(PROMPT, max_tokens=8))
    with pytest.raises(RecipeError):
        a.be(recipes.parse("o_proj@99=B"))
    assert a.status.recipe == ""
    assert text_of(a.generate(PROMPT, max_tokens=8)) == before


def test_a_worker_refuses_what_does_not_fit_and_keeps_its_weights(a, pair):
    from sfn.engines import orders

    before = text_of(a.generate(PROMPT, max_tokens=8))
    good = orders.order(pair, recipes.resolve(recipes.parse("all=B"), pair))
    for change, words in (
        ({"stamp": "other files"}, "changed since the pair was opened"),
        ({"recipe": "o_proj=zero"}, "means something else"),
        ({"recipe": "nonsense=B"}, "nonsense"),
        ({"version": "1"}, "version 1"),
    ):
        body = {"method": "sfn_become", "args": [good | change]}
        (result,) = a._server.call("POST", "/collective_rpc", body)["results"]
        assert words in result["error"]
        assert result["touched"] is False
    assert text_of(a.generate(PROMPT, max_tokens=8)) == before


def test_a_dead_server_is_told_and_started_again(engine):
    engine.be(recipes.parse("all=B"))
    before = text_of(engine.generate(PROMPT, max_tokens=24))
    (record,) = Path(os.environ["SFN_CACHE"], "run").glob("*.json")
    server, started = session_of(record)
    others = vllm_guard.session_members(server, started) - {server}  # the engine core and its worker among them
    send(signal.SIGSTOP, others)  # so that the answer cannot end before they do
    killer = threading.Timer(0.5, send, (signal.SIGKILL, others))
    killer.start()
    with pytest.raises(EngineError, match=r"vLLM died while it answered"):
        list(engine.generate(PROMPT))
    assert (engine.status.state, engine.status.recipe) == ("dead", None)
    assert not vllm_guard.session_members(server, started)
    assert text_of(engine.generate(PROMPT, max_tokens=24)) == before
    assert (engine.status.state, engine.status.recipe) == ("idle", recipes.format(recipes.parse("all=B")))


def test_a_killed_engine_core_is_noticed_while_it_is_idle_and_in_mid_swap(engine):
    """vLLM's API process survives its engine core, stays healthy for a while, and may never answer again."""
    engine.be(recipes.Recipe())
    (record,) = Path(os.environ["SFN_CACHE"], "run").glob("*.json")
    server, started = session_of(record)
    core = {
        pid for pid in vllm_guard.session_members(server, started) if command_of(pid).startswith("VLLM::EngineCore")
    }
    assert core
    send(signal.SIGSTOP, core)  # the swap below waits for it
    threading.Timer(1.0, send, (signal.SIGKILL, core)).start()
    begun = time.monotonic()
    with pytest.raises(EngineError, match=r"one of its processes ended|does not answer"):
        engine.be(recipes.parse("all=B"))
    assert time.monotonic() - begun < 30
    assert engine.status.state == "dead"
    assert not vllm_guard.session_members(server, started)
    engine.be(recipes.parse("all=B"))
    (record,) = Path(os.environ["SFN_CACHE"], "run").glob("*.json")
    server, started = session_of(record)
    send(
        signal.SIGKILL, {pid for pid in vllm_guard.session_members(server, started) if "EngineCore" in command_of(pid)}
    )
    begun = time.monotonic()
    while engine.status.state != "dead":
        assert time.monotonic() - begun < 10
        time.sleep(0.05)


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


OWNER = """
import sys
from sfn import checkpoints, demo, engines, pairs, recipes
pair = pairs.compare(*map(checkpoints.open, demo.folders()))
engine = engines.open("vllm", pair)
engine.be(recipes.Recipe())
stream = engine.generate("Lucy", max_tokens=400, temperature=2.0)
next(stream)
print("speaking", flush=True)
sys.stdin.read()
"""


def test_killing_the_owner_leaves_no_process(tmp_path):
    environment = os.environ | {"SFN_CACHE": str(tmp_path), "PYTHONPATH": str(Path(sfn.__file__).parents[1])}
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert owner.stdout.readline() == "speaking\n"
    (record,) = Path(tmp_path, "run").glob("*.json")
    session, guard = session_of(record), json.loads(record.read_text())["guard"]
    assert len(vllm_guard.session_members(*session)) >= 3  # API server, engine core, worker
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert wait_until(lambda: not vllm_guard.session_members(*session), 15)
    assert wait_until(lambda: vllm_guard.start_ticks(guard[0]) != guard[1], 5)
    assert not record.exists()


def test_a_failed_start_tells_why(pair, tmp_path, monkeypatch):
    monkeypatch.setenv("SFN_CACHE", str(tmp_path))
    monkeypatch.setenv("SFN_VLLM_ARGS", "--no-such-option")
    with engines.open("vllm", pair) as engine:
        with pytest.raises(EngineError, match=r"ended while it started.*no-such-option") as caught:
            engine.be(recipes.Recipe())
        assert str(tmp_path) in str(caught.value)
        assert engine.status.state == "dead"
    assert not list(Path(tmp_path, "run").glob("*.json"))
