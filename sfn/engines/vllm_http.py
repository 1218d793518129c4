"""HTTP with a vLLM server: one call, or a stream of events, both of which notice when no answer can come any more.
Knows neither how the server was started nor what the requests mean.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any

from sfn.errors import EngineError

_NOTHING_YET = object()


class HttpServer:
    """What can be asked of a vLLM server; subclasses know how to reach it, and whether it is still there.

    Attributes:
        prefix: before every path. headers: sent with every request; never shown.
    """

    prefix = ""
    headers: dict[str, str]

    def __init__(self) -> None:
        self.headers = {}

    def connection(self, timeout_s: float) -> http.client.HTTPConnection:
        """A connection, open; raises OSError where there is nobody."""
        raise NotImplementedError

    def trouble(self) -> str:
        """Why no answer will come, "" while there is hope; asked ten times a second while one is awaited."""
        raise NotImplementedError

    def unanswered(self, path: str, reason: str) -> EngineError:
        """The error for a request to `path` that got no answer."""
        return EngineError(f"vLLM does not answer ({path}): {reason}")

    def call(self, method: str, path: str, body: Any = None, *, timeout_s: float = 600) -> Any:
        """One request; the answer's JSON, or None. Raises EngineError for anything but success."""
        status, content = self.ask(method, path, body, timeout_s=timeout_s)
        if status != 200:
            raise EngineError(f"vLLM refused {path} ({status}): {message(content)}")
        try:
            return json.loads(content) if content else None
        except ValueError as error:
            raise EngineError(f"vLLM's answer to {path} is no JSON: {content[:200]!r}") from error

    def ask(self, method: str, path: str, body: Any = None, *, timeout_s: float = 600) -> tuple[int, bytes]:
        """One request; status and content of the answer, whatever it is. Raises EngineError if there is none."""
        connection = self._connect(path, timeout_s)
        replies: SimpleQueue[tuple[int, bytes] | Exception] = SimpleQueue()
        request = (connection, method, self.prefix + path, body, self.headers)
        Thread(target=_exchange, args=(*request, replies), name="sfn-vllm-call", daemon=True).start()
        try:
            while (reply := self._next(replies)) is _NOTHING_YET:
                pass
        finally:
            _shut(connection)
        if isinstance(reply, Exception):
            raise self.unanswered(path, str(reply) or type(reply).__name__) from reply
        return reply

    def _next(self, replies: SimpleQueue) -> Any:
        """What came, or _NOTHING_YET; the error itself where nothing will come."""
        try:
            return replies.get(timeout=0.1)
        except Empty:
            reason = self.trouble()
            return EngineError(reason) if reason else _NOTHING_YET

    def stream(self, path: str, body: Any, cancel: Event) -> Iterator[dict[str, Any]]:
        """Events of a streamed answer. Closing the generator, or `cancel`, aborts the request on the server too."""
        connection = self._connect(path, timeout_s=3600)
        events: SimpleQueue[dict[str, Any] | Exception | None] = SimpleQueue()
        request = (connection, self.prefix + path, body, self.headers)
        reader = Thread(target=_read_events, args=(*request, events), name="sfn-vllm-stream", daemon=True)
        reader.start()
        try:
            while not cancel.is_set():
                event = self._next(events)
                if event is _NOTHING_YET:
                    continue
                if isinstance(event, Exception):
                    raise EngineError(f"vLLM broke off the answer: {event or type(event).__name__}") from event
                if event is None:
                    return
                yield event
        finally:
            _shut(connection)  # wakes the reader; the server sees the connection go and aborts the request
            reader.join(timeout=5)

    def _connect(self, path: str, timeout_s: float) -> http.client.HTTPConnection:
        try:
            return self.connection(timeout_s)
        except OSError as error:
            raise self.unanswered(path, error.strerror or str(error) or type(error).__name__) from error


def message(content: bytes) -> str:
    """What an answer that is no success says for itself."""
    try:
        error = json.loads(content)["error"]
        return str(error.get("message", error)) if isinstance(error, dict) else str(error)
    except (ValueError, KeyError, TypeError):
        return content[:300].decode("utf-8", "replace").strip() or "no reason given"


def _encoded(body: Any, headers: dict[str, str]) -> tuple[bytes | None, dict[str, str]]:
    return (
        (None, headers) if body is None else (json.dumps(body).encode(), {"Content-Type": "application/json"} | headers)
    )


def _exchange(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: Any,
    headers: dict[str, str],
    replies: SimpleQueue,
) -> None:
    """Thread: one request; its status and content, or what went wrong, go into `replies`."""
    try:
        connection.request(method, path, *_encoded(body, headers))
        response = connection.getresponse()
        replies.put((response.status, response.read()))
    except Exception as error:  # handed to the one who waits for the reply
        replies.put(error)


def _read_events(
    connection: http.client.HTTPConnection, path: str, body: Any, headers: dict[str, str], events: SimpleQueue
) -> None:
    """Thread: put the server's events into `events`, then None, or what went wrong."""
    try:
        connection.request("POST", path, *_encoded(body, headers))
        response = connection.getresponse()
        if response.status != 200:
            raise EngineError(f"it refused {path} ({response.status}): {message(response.read())}")
        for line in response:
            if not line.startswith(b"data: "):
                continue
            if line[6:].strip() == b"[DONE]":
                events.put(None)
                return
            event = json.loads(line[6:])
            if "error" in event:
                raise EngineError(str(event["error"].get("message", event["error"])))
            events.put(event)
        raise EngineError("the connection ended in the middle of it")
    except Exception as error:  # handed to the one who waits for events
        events.put(error)


def _shut(connection: http.client.HTTPConnection) -> None:
    if connection.sock is not None:
        try:
            connection.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the server was faster
    connection.close()
