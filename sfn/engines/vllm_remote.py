"""A vLLM server that somebody started elsewhere (`python -m sfn.engines.serve`), named by SFN_VLLM_URL: how it is
reached, who it is, and what it holds. Never starts or stops a server, and changes nothing before it knows it for one
that SfN may change.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import shlex
import socket
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TooLate
from dataclasses import dataclass
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit
from uuid import uuid4

from sfn.engines import orders
from sfn.engines.vllm_command import MODEL
from sfn.engines.vllm_http import HttpServer, message
from sfn.errors import EngineError

if TYPE_CHECKING:
    from sfn.pairs import Pair

URL, KEY, UNGUARDED = "SFN_VLLM_URL", "SFN_VLLM_KEY", "SFN_VLLM_UNGUARDED"
_CONNECT_S = 5.0
_HELLO_S = 60.0  # behind a change of weights, which the engine finishes first
_TURN_S = 15.0  # how long a turn lasts without a sign of life
_PULSE_S, _PULSES = 5.0, 2  # while an answer is awaited: how often the server is felt for, and what counts as gone
_PATIENCE_S = 2.0  # what a page waits for a server that it does not know yet
_SULK_S = 2.0  # how long a failure is believed


@dataclass(frozen=True, slots=True)
class Facts:
    """What a server says of itself.

    Attributes:
        version: of vLLM. device: "cpu" or "cuda". dtype: computed in. context: tokens of prompt and answer together.
        pair, stamp: of the two checkpoints that it was started with (`orders.stamp`).
    """

    version: str
    device: str
    dtype: str
    context: int
    pair: str
    stamp: str


@dataclass(frozen=True, slots=True)
class Held:
    """What a server's workers hold now. plan_key: None where they do not know or do not agree. since: another one
    whenever the weights were touched, or the server was started again. mine: whether it is this SfN's turn; again: and
    nobody else had one since its last."""

    plan_key: str | None
    since: str
    mine: bool = False
    again: bool = False


def url() -> str:
    """SFN_VLLM_URL, "" where it is not set: then SfN starts servers of its own."""
    return os.environ.get(URL, "").strip().rstrip("/")


def place() -> str:
    """Host and port of SFN_VLLM_URL, for people; no user name, key or path."""
    try:
        parts = urlsplit(url())
        return parts.netloc.rpartition("@")[2]
    except ValueError:
        return ""


def command(pair: Pair | None) -> str:
    """What starts a server for `pair` on the other machine."""
    folders = [shlex.quote(str(side.folder)) for side in (pair.a, pair.b)] if pair else ["A_FOLDER", "B_FOLDER"]
    return f"python -m sfn.engines.serve {' '.join(folders)}"


def _advice(pair: Pair | None) -> str:
    return f"On the machine that has the GPU, with the paths that the two folders have there: {command(pair)}"


class RemoteServer(HttpServer):
    """The server at SFN_VLLM_URL; `pair` is for the advice in its errors. Raises EngineError for an address that cannot
    be right or is not safe."""

    def __init__(self, pair: Pair | None = None) -> None:
        super().__init__()
        self._pair = pair
        self._address = _checked(url())
        self.prefix = self._address.path
        if key := os.environ.get(KEY, "").strip():
            if not (key.isascii() and key.isprintable()):
                raise EngineError(f"{KEY} holds characters that no HTTP header may hold; keys are plain ASCII.")
            self.headers = {"Authorization": f"Bearer {key}"}
        self.place = place()
        self.log = f"on {self.place}"
        self._lost = False
        self._felt_at, self._missed = 0.0, 0
        self._owner = uuid4().hex
        self._beat: Event | None = None  # while it is this SfN's turn; set when that ends

    @property
    def alive(self) -> bool:
        """Whether it answered when it was last asked."""
        return not self._lost

    def close(self) -> None:
        """Let go of it; the server goes on."""
        self.rest()
        self._lost = True

    def last_words(self) -> str:
        """Where to read more."""
        return f"Its log stands where it was started ({self.place})."

    def connection(self, timeout_s: float) -> http.client.HTTPConnection:
        """A connection, open; raises OSError where there is nobody."""
        kind = http.client.HTTPSConnection if self._address.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._address.hostname or "", self._address.port, timeout=_CONNECT_S)
        connection.connect()
        connection.sock.settimeout(timeout_s)
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return connection

    def trouble(self) -> str:
        """Whether it still has a pulse, felt every few seconds while an answer is awaited: a tunnel that hangs, or an
        engine that died behind a healthy API process, would let us wait for ever."""
        now = time.monotonic()
        if now - self._felt_at < _PULSE_S:
            return ""
        self._felt_at = now
        self._missed = 0 if self._pulse() else self._missed + 1
        return "it has stopped answering" if self._missed >= _PULSES else ""

    def _pulse(self) -> bool:
        try:
            connection = self.connection(_CONNECT_S)
        except OSError:
            return False
        try:
            connection.request("GET", f"{self.prefix}/health", headers=self.headers)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def unanswered(self, path: str, reason: str) -> EngineError:
        """The error for a request to `path` that got no answer; from now on the server counts as lost."""
        self._lost = True
        port = self._address.port or 8000
        return EngineError(
            f"vLLM at {self.place} ({URL}) does not answer: {reason}. Is it running, and the tunnel open "
            f"(ssh -N -L {port}:127.0.0.1:8000 THAT_MACHINE)? {_advice(self._pair)}"
        )

    # -- who it is -------------------------------------------------------------------------------------------------

    def greet(self) -> Facts:
        """Who is there. Only reads; raises EngineError, with what to do, for anything but a server that SfN may change.

        What a plain vLLM would refuse or not know is asked by GET; only one that serves SfN's model in development mode
        is asked for its workers.
        """
        version = self._version()
        context = self._context()
        if self.ask("GET", "/is_paused", timeout_s=_HELLO_S)[0] == 404:
            raise self._refused("runs without development mode, which swapping weights needs")
        mine = self._workers()[0]
        return Facts(version, mine["device"], mine["dtype"], context, mine["pair"], mine["stamp"])

    def check(self, facts: Facts, pair: Pair) -> None:
        """Raise EngineError where the server was started with another pair."""
        if facts.stamp != orders.stamp(pair):
            raise self._refused(f"was started with another pair, {facts.pair}, than {pair.label}")

    def _version(self) -> str:
        status, content = self.ask("GET", "/version", timeout_s=_HELLO_S)
        try:
            return str(json.loads(content)["version"])
        except (ValueError, KeyError, TypeError):
            raise EngineError(
                f"What answers at {self.place} ({URL}) is no vLLM server: GET {self.prefix}/version gave {status}. "
                f"{_advice(self._pair)}"
            ) from None

    def _context(self) -> int:
        """From the model's card; its name is the first thing that tells SfN's servers from others."""
        status, content = self.ask("GET", "/v1/models", timeout_s=_HELLO_S)
        if status in (401, 403):
            given = "does not take the one that is set" if self.headers else "none is set"
            raise EngineError(f"vLLM at {self.place} wants a key, and {given}: put it into {KEY}.")
        try:
            models = {str(card["id"]): card for card in json.loads(content)["data"]}
        except (ValueError, KeyError, TypeError):
            raise EngineError(f"vLLM at {self.place} refused /v1/models ({status}): {message(content)}") from None
        if MODEL not in models:
            raise self._refused(f"serves {', '.join(models) or 'no model'} and lacks SfN's load format")
        return int(models[MODEL].get("max_model_len") or 0)

    def _workers(self, *turn: str | float) -> list[dict[str, Any]]:
        """What each worker says of itself; the call changes no weights, and one that does not know it refuses it."""
        question = {"method": "sfn_hello", "args": turn, "timeout": _HELLO_S}
        status, content = self.ask("POST", "/collective_rpc", question, timeout_s=_HELLO_S)
        try:
            workers = json.loads(content)["results"] if status == 200 else []
        except (ValueError, KeyError, TypeError):
            workers = []
        if not workers:
            raise self._refused(f"lacks SfN's load format: its workers do not know SfN ({status})")
        for worker in workers:
            if "error" in worker:
                raise self._refused(f"cannot be used: {worker['error']}")
            if worker.get("version") != orders.VERSION:
                raise self._refused(
                    f"runs with another SfN, whose orders have version {worker.get('version')}, not {orders.VERSION} "
                    "as here: install the same on both machines"
                )
        return workers

    def _refused(self, what: str) -> EngineError:
        return EngineError(
            f"vLLM at {self.place} ({URL}) {what}; SfN leaves it as it is. Start another. {_advice(self._pair)}"
        )

    # -- what it holds ---------------------------------------------------------------------------------------------

    def take_turn(self) -> Held:
        """Ask for the turn, or keep it: until `leave_turn`, or until this SfN gives no more sign of life."""
        held = self._held(self._owner, _TURN_S)
        if held.mine:
            self.go_on()
        return held

    def go_on(self) -> None:
        """Give signs of life in a turn that is not over."""
        if self._beat is None:
            self._beat = Event()
            Thread(target=self._keep_turn, args=(self._beat,), name="sfn-vllm-turn", daemon=True).start()

    def leave_turn(self) -> Held:
        """Let others have their turn; what is held at this moment."""
        self.rest()
        return self._held(self._owner, 0)

    def rest(self) -> None:
        """Give no more sign of life: unless it is taken up again, the turn ends in some seconds."""
        if self._beat is not None:
            self._beat.set()
            self._beat = None

    @property
    def in_turn(self) -> bool:
        """Whether it is this SfN's turn until it leaves it."""
        return self._beat is not None

    def _keep_turn(self, over: Event) -> None:
        while not over.wait(_TURN_S / 4):
            try:
                self._held(self._owner, _TURN_S)
            except EngineError:
                return  # whoever waits for an answer will notice by itself

    def _held(self, *turn: str | float) -> Held:
        workers = self._workers(*turn)
        keys = {worker["plan_key"] for worker in workers}
        return Held(
            keys.pop() if len(keys) == 1 else None,
            "; ".join(worker["turn"] for worker in workers),
            all(worker["mine"] for worker in workers),
            all(worker["again"] for worker in workers),
        )

    def paused(self) -> bool:
        """Whether somebody holds it still for a change of weights."""
        return bool(self.call("GET", "/is_paused", timeout_s=_HELLO_S)["is_paused"])


def fault() -> str:
    """What is wrong with the address itself, in a sentence, or ""."""
    try:
        _checked(url())
    except EngineError as error:
        return str(error)
    return ""


def _checked(address: str) -> SplitResult:
    """The address in parts. Raises EngineError where it is none, or would send everything in clear over a network."""
    legal = "it is http://127.0.0.1:PORT for a tunnel, or https://HOST/PATH"
    try:
        parts = urlsplit(address)
        _ = parts.port
    except ValueError as error:
        raise EngineError(f"{URL} is no address ({error}); {legal}.") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise EngineError(f"{URL} is “{address[:200]}”, which is no address; {legal}.")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise EngineError(f"{URL} holds more than scheme, host, port and path; {legal}. A key goes into {KEY}.")
    if parts.scheme == "http" and not is_loopback(parts.hostname) and not unguarded():
        raise EngineError(
            f"{URL} names {parts.hostname} with plain http. vLLM's development endpoints have no access control: "
            "whoever reaches them owns the server, and everybody between reads along. Open a tunnel and name its near "
            f"end (ssh -N -L 8000:127.0.0.1:8000 {parts.hostname}; {URL}=http://127.0.0.1:8000), put https with access "
            f"control before it, or, in a network that you trust, set {UNGUARDED}=1."
        )
    return parts


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def unguarded() -> bool:
    """Whether the user has said that the network is to be trusted."""
    return os.environ.get(UNGUARDED, "") not in ("", "0")


# -- known to pages ----------------------------------------------------------------------------------------------------


def facts(pair: Pair | None = None, *, wait_s: float = _PATIENCE_S) -> Facts:
    """What is known of the server at SFN_VLLM_URL. A server that was met once stays known when it goes away, so that
    its stored answers are still found; a new one is asked in a thread, for which a page waits `wait_s` at most.

    Raises EngineError while nothing is known; `pair` is for its advice.
    """
    if found := known():
        return found
    try:
        return _ask(pair).result(timeout=wait_s)
    except TooLate:
        raise EngineError(
            f"vLLM at {place()} ({URL}) has not said yet who it is; SfN goes on asking. If this lasts, it is busy, or "
            "a firewall swallows the question."
        ) from None


def known() -> Facts | None:
    """What is known of the server, None if it was never met; asks nobody."""
    return _known.get(url())


def note(found: Facts) -> None:
    """Remember what the server says of itself now."""
    _known[url()] = found


_known: dict[str, Facts] = {}  # by address
_asked: dict[str, tuple[float, Future[Facts]]] = {}  # by address: when it was asked, and the answer
_lock = Lock()


def _ask(pair: Pair | None) -> Future[Facts]:
    """The question that is under way; a failure is believed for some seconds, then it is asked again."""
    address = url()
    with _lock:
        at, future = _asked.get(address, (0.0, None))
        if future is None or (future.done() and time.monotonic() - at > _SULK_S):
            future = Future()
            _asked[address] = (time.monotonic(), future)
            Thread(target=_meet, args=(pair, future), name="sfn-vllm-hello", daemon=True).start()
        return future


def _meet(pair: Pair | None, future: Future[Facts]) -> None:
    try:
        found = RemoteServer(pair).greet()
        note(found)
        future.set_result(found)
    except Exception as error:  # handed to those who wait
        future.set_exception(error)
