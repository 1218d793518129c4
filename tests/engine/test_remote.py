"""The vLLM engine on a server elsewhere: one that the serve command started, with two tensor parallel workers, from the
same pair in other folders; and a plain vLLM, which is left alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import pytest

import sfn
from sfn import checkpoints, engines, pairs, recipes
from sfn.engines import hardware, orders, vllm_command, vllm_guard, vllm_remote
from sfn.engines.vllm_remote import RemoteServer
from sfn.errors import EngineError
from tests.engine.cases import QUESTIONS, RECIPES
from tests.engine.test_vllm_equality import ask

PROMPT = QUESTIONS[0]
TWO = ("--tensor-parallel-size", "2")


@dataclass
class Started:
    """A server on a port of this machine, under a guard that ends it with these tests."""

    port: int
    folder: Path
    guard: subprocess.Popen

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def wait(self) -> None:
        deadline = time.monotonic() + 300
        while self.get("/health") != 200:
            assert self.guard.poll() is None, self.log[-3000:]
            assert time.monotonic() < deadline, self.log[-3000:]
            time.sleep(0.5)

    def get(self, path: str) -> int:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()

    def kill(self) -> None:
        session = json.loads((self.folder / "record").read_text())["session"]
        for pid in vllm_guard.session_members(*session):
            os.kill(pid, signal.SIGKILL)
        self.guard.wait(timeout=30)

    def close(self) -> None:
        if not self.guard.stdin.closed:
            self.guard.stdin.close()
        self.guard.wait(timeout=30)


def start(folder: Path, port: int, program: list[str], environment: dict[str, str]) -> Started:
    folder.mkdir()
    guard = [sys.executable, "-I", vllm_guard.__file__, str(folder / "record"), str(folder / "own"), *program]
    with (folder / "log").open("w") as log:
        run = subprocess.Popen(
            guard,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            start_new_session=True,
        )
    return Started(port, folder, run)


def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return asked.getsockname()[1]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> tuple[Path, Path]:
    """A and B under other names, as another machine has them."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for name, side in zip(("one", "two"), sfn.demo.folders(), strict=True):
        shutil.copytree(side, folder / name)
    return folder / "one", folder / "two"


def serve(folder: Path, port: int, elsewhere: tuple[Path, Path], *options: str) -> Started:
    program = [sys.executable, "-m", "sfn.engines.serve", *map(str, elsewhere), "--port", str(port), *options]
    environment = {"PYTHONPATH": str(Path(sfn.__file__).parents[1]), "SFN_VLLM_ARGS": " ".join(TWO)}
    return start(folder, port, program, environment)


@pytest.fixture(scope="module")
def plain(pair, merged, tmp_path_factory):
    """A plain vLLM of the merged checkpoint "mix", with the same numbers, in development mode."""
    if hardware.device_for("vllm") == "cuda":
        pytest.skip("two tensor parallel workers need two GPUs")
    port = free_port()
    numbers = vllm_command.numbers(pair, device="cpu", dtype="bfloat16", length=512)
    options = [word for name, value in numbers.items() for word in vllm_command.words(name, value)]
    program = [*vllm_command.COMMAND, "--model", str(merged["mix"]), "--served-model-name", "plain", *options, *TWO]
    program += ["--host", "127.0.0.1", "--port", str(port), "--generation-config", "vllm"]
    server = start(tmp_path_factory.mktemp("plain") / "run", port, program, vllm_command.environment(TWO))
    yield server
    server.close()


@pytest.fixture(scope="module")
def server(plain, elsewhere, tmp_path_factory):
    """The server of the serve command; it and the plain one start side by side."""
    started = serve(tmp_path_factory.mktemp("serve") / "run", free_port(), elsewhere)
    started.wait()
    plain.wait()
    yield started
    started.close()


def forget() -> None:
    vllm_remote._known.clear()
    vllm_remote._asked.clear()


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """Servers met in the test before are not known."""
    forget()
    monkeypatch.delenv("SFN_VLLM_ARGS", raising=False)


@pytest.fixture
def remote(server, pair, monkeypatch):
    monkeypatch.setenv("SFN_VLLM_URL", server.url)
    with engines.open("vllm", pair) as engine:
        yield engine


class Plain(RemoteServer):
    """The plain server, asked as `ask` asks an engine's."""

    def __init__(self, url: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SFN_VLLM_URL", url)
            super().__init__()
        self._server = self

    def call(self, method, path, body):
        return super().call(method, path, body | {"model": "plain"})


def text_of(pieces) -> str:
    return "".join(piece.text for piece in pieces)


def test_what_is_known_before_anything_is_asked(server, pair, monkeypatch):
    monkeypatch.setenv("SFN_VLLM_URL", server.url)
    monkeypatch.setattr(engines, "installed", lambda name: "")  # no vLLM on this machine
    place = f"127.0.0.1:{server.port}"
    assert engines.available()[1] == engines.Backend("vllm", "", "", place)
    assert engines.frame("vllm", pair) == ("cpu", "bfloat16")
    assert engines.version_of("vllm").startswith("0.")
    assert engines.default_backend() == "vllm"
    with engines.open("vllm", pair) as engine:
        assert (engine.status.state, engine.status.place) == ("stopped", place)
        with pytest.raises(EngineError, match="holds 512"):
            engine.generate("7" * 3000)


def test_two_workers_say_what_a_plain_vllm_says_on_the_merged_checkpoint(remote, plain, prompts):
    """The same numbers as vLLM's own loader gives, after other weights were held, and A again at the end."""
    said = {}
    for name in ("A", "o_proj", "mix", "B", "A"):
        remote.be(recipes.parse(RECIPES[name]))
        now = [ask(remote, prompt) for prompt in prompts]
        assert said.setdefault(name, now) == now
    assert len({str(answers) for answers in said.values()}) == 4
    assert said["mix"] == [ask(Plain(plain.url), prompt) for prompt in prompts]


def test_a_plain_vllm_is_left_alone(plain, pair, monkeypatch):
    """Nothing is sent that could change it; where its model had SfN's name, its workers refuse, and it lives on."""
    monkeypatch.setenv("SFN_VLLM_URL", plain.url)
    before = plain.log.count('"POST ')
    with pytest.raises(EngineError, match=r"serves plain and lacks SfN's load format; .*sfn\.engines\.serve"):
        engines.open("vllm", pair)
    assert plain.log.count('"POST ') == before
    forget()
    monkeypatch.setattr(vllm_remote, "MODEL", "plain")
    with pytest.raises(EngineError, match="its workers do not know SfN"):
        engines.frame("vllm", pair)
    assert plain.get("/health") == 200
    plain.close()  # it is needed no more, and its memory is


def test_scores_are_nearly_those_of_one_worker_in_float32(remote, pair):
    remote.be(recipes.parse(RECIPES["mix"]))
    score = remote.score(" The answer is 52.", prompt=PROMPT)
    with engines.open("transformers", pair, device="cpu", dtype="float32") as other:
        other.be(recipes.parse(RECIPES["mix"]))
        expected = other.score(" The answer is 52.", prompt=PROMPT)
    assert score.token_ids == expected.token_ids
    assert score.perplexity == pytest.approx(expected.perplexity, rel=0.1)


def test_cancel_ends_the_answer_on_the_server_too(remote):
    remote.be(recipes.Recipe())
    cancel = threading.Event()
    pieces = []
    for piece in remote.generate(PROMPT, max_tokens=400, temperature=2.0, seed=3, cancel=cancel):
        pieces.append(piece)
        if len(pieces) == 3:
            cancel.set()
    assert pieces[-1].finish == "cancelled"
    started = time.monotonic()
    RemoteServer().call("POST", "/pause?mode=wait")  # answers when no request runs any more
    RemoteServer().call("POST", "/resume")
    assert time.monotonic() - started < 5


def test_two_sfns_drive_one_server(remote, server, pair):
    """Each gets answers of its own recipe, none breaks off the other's."""
    texts = {}
    for name in ("A", "B"):
        remote.be(recipes.parse(RECIPES[name]))
        texts[name] = text_of(remote.generate(PROMPT, max_tokens=100, stop=("never",)))
    with engines.open("vllm", pair) as other:
        remote.be(recipes.Recipe())
        stream = remote.generate(PROMPT, max_tokens=100, stop=("never",))
        begun = next(stream)
        rival = threading.Thread(target=other.be, args=(recipes.parse("all=B"),))
        rival.start()
        assert begun.text + text_of(stream) == texts["A"]
        rival.join(timeout=30)
        assert text_of(other.generate(PROMPT, max_tokens=100, stop=("never",))) == texts["B"]
        assert text_of(remote.generate(PROMPT, max_tokens=100, stop=("never",))) == texts["A"]


def test_an_answer_from_changed_weights_is_dropped(remote, pair):
    remote.be(recipes.Recipe())
    expected = text_of(remote.generate(PROMPT, max_tokens=8))
    stream = remote.generate(PROMPT, max_tokens=400, temperature=2.0, seed=3)
    next(stream)
    order = orders.order(pair, recipes.resolve(recipes.parse("all=B"), pair))
    RemoteServer(pair).call("POST", "/collective_rpc", {"method": "sfn_become", "args": [order]})
    with pytest.raises(EngineError, match="given other weights during this answer"):
        list(stream)
    assert text_of(remote.generate(PROMPT, max_tokens=8)) == expected


def test_a_server_left_paused_is_taken_over(remote):
    remote.be(recipes.parse("all=B"))
    expected = text_of(remote.generate(PROMPT, max_tokens=8))
    rival = RemoteServer()
    assert rival.take_turn().mine
    rival.call("POST", "/pause?mode=abort")
    rival.leave_turn()  # in the middle of a change of weights
    remote.be(recipes.parse("all=B"))
    assert text_of(remote.generate(PROMPT, max_tokens=8)) == expected


def test_another_pair_is_refused(server, pair, monkeypatch):
    monkeypatch.setenv("SFN_VLLM_URL", server.url)
    a = checkpoints.open(pair.a.folder)
    other = pairs.compare(a, checkpoints.open(pair.a.folder))
    with engines.open("vllm", other) as engine:
        with pytest.raises(EngineError, match=r"another pair, one → two.*sfn\.engines\.serve"):
            engine.be(recipes.Recipe())
        assert engine.status.state == "dead"


def test_a_killed_server_is_told_and_works_again_once_it_is_started(
    remote, server, elsewhere, prompts, tmp_path, monkeypatch
):
    """It comes back with other weights than it had, and with the same numbers as after a swap."""
    remote.be(recipes.parse(RECIPES["mix"]))
    hot = [ask(remote, prompt) for prompt in prompts]
    remote.be(recipes.parse("all=B"))
    expected = text_of(remote.generate(PROMPT, max_tokens=24))
    stream = remote.generate(PROMPT, max_tokens=400, temperature=2.0, seed=3)
    next(stream)
    server.kill()
    with pytest.raises(EngineError, match=r"vLLM was lost while it answered.*next request tries again"):
        list(stream)
    assert (remote.status.state, remote.status.recipe) == ("dead", None)
    with pytest.raises(EngineError, match=r"does not answer: Connection refused.*sfn\.engines\.serve"):
        remote.be(recipes.parse("all=B"))
    again = serve(tmp_path / "run", server.port, elsewhere, "--recipe", RECIPES["mix"])
    try:
        again.wait()
        remote._server = RemoteServer()  # what it holds now is asked first, as it is
        assert [ask(remote, prompt) for prompt in prompts] == hot
        remote._server = None
        assert text_of(remote.generate(PROMPT, max_tokens=24)) == expected
        assert remote.status.recipe == recipes.format(recipes.parse("all=B"))
    finally:
        again.close()
