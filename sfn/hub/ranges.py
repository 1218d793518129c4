"""Byte ranges of one file of a commit on the Hub: whole and right, or an error; never wrong bytes.

A range goes on at the byte where a connection broke. What is busy or unwell is asked again, with pauses that grow and
that the server may set; an expired link of the CDN is renewed; a file that is not the one that the commit names is
refused. The token goes to the Hub's own host alone.
"""

from __future__ import annotations

import logging
import math
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from threading import Event, Lock
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urljoin, urlsplit

from sfn.errors import Cancelled, HubError
from sfn.hub import access

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 20.0
MOST_PATIENCE_S = 180.0  # of pauses without a byte in between
MOST_ATTEMPTS = 9  # without a byte in between
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 20.0
_REDIRECTS = (301, 302, 303, 307, 308)
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_LINK_GONE = (400, 401, 403, 404, 410)  # what storage hosts answer to a link that has expired
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class _Again(Exception):
    """The request failed in a way that may pass. final: what to raise when it does not."""

    def __init__(self, final: HubError, pause_s: float | None = None, at_once: bool = False) -> None:
        super().__init__()
        self.final, self.pause_s, self.at_once = final, pause_s, at_once


class Patience:
    """How long one piece of work goes on asking. `progress` begins anew."""

    def __init__(self, cancel: Event | None = None) -> None:
        self._cancel = cancel or Event()
        self.attempts, self._waited = 0, 0.0

    def check(self) -> None:
        """Raises Cancelled once the work was cancelled."""
        if self._cancel.is_set():
            raise Cancelled("Fetching was cancelled; what was finished before is kept.")

    def progress(self) -> None:
        """Something arrived."""
        self.attempts, self._waited = 0, 0.0

    def wait(self, failure: _Again) -> None:
        """Pause before the next attempt; raises the failure's HubError when that would be too long or in vain."""
        self.attempts += 1
        pause = failure.pause_s
        if pause is None:
            grown = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (self.attempts - 1))
            pause = 0.0 if failure.at_once and self.attempts == 1 else grown * random.uniform(0.5, 1.0)
        self._waited += pause
        if self.attempts >= MOST_ATTEMPTS or self._waited > MOST_PATIENCE_S:
            raise failure.final
        self._cancel.wait(pause)
        self.check()


class RemoteFile:
    """One file at one commit. Safe to use from several threads.

    Attributes:
        size: in bytes. etag: what the Hub calls this content: SHA-256 of a large file, git id of a small one.
        fetched_bytes: bytes that came over the network, those thrown away included.
        latency_s: the shortest time from a request to the beginning of its answer.
    """

    def __init__(self, repo: str, commit: str, name: str, size: int, etag: str) -> None:
        self.repo, self.commit, self.name, self.size, self.etag = repo, commit, name, size, etag
        self.fetched_bytes = 0
        self.latency_s = math.inf
        self._lock = Lock()
        self._link: str | None = None  # where the bytes lie, once the Hub has said so
        self._etags: dict[str, str] = {}  # host -> ETag of its first answer

    def __repr__(self) -> str:
        return f"<RemoteFile {self}>"  # without the link, which is signed

    def __str__(self) -> str:
        return f"{self.repo}/{self.name} at {self.commit[:12]}"

    def stream(self, start: int, end: int, cancel: Event | None = None) -> Iterator[bytes]:
        """Bytes start..end-1 in pieces, end - start in all. Raises HubError, Cancelled."""
        patience = Patience(cancel)
        while start < end:
            patience.check()
            try:
                for piece in self._answer(start, end):
                    start += len(piece)
                    self._count(len(piece))
                    patience.progress()
                    yield piece
                    patience.check()
            except _Again as failure:
                patience.wait(failure)

    def read(self, start: int, end: int, cancel: Event | None = None) -> bytearray:
        """Bytes start..end-1. Raises HubError, Cancelled."""
        data = bytearray(end - start)
        reached = 0
        for piece in self.stream(start, end, cancel):
            data[reached : reached + len(piece)] = piece
            reached += len(piece)
        return data

    def _count(self, size_bytes: int) -> None:
        with self._lock:
            self.fetched_bytes += size_bytes

    def _answer(self, start: int, end: int) -> Iterator[bytes]:
        """The pieces of one answer to one request; ends too early with _Again."""
        import httpx2
        from huggingface_hub.utils import get_session

        quiet()
        range_header = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        timeout = httpx2.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        url = self._link or self._page()
        try:
            for _ in range(6):
                headers = {**(access.headers() if _on_hub(url) else {}), **range_header}
                asked, client = time.monotonic(), get_session()  # anew: it is replaced when a connection fails
                with client.stream("GET", url, headers=headers, timeout=timeout, follow_redirects=False) as answer:
                    if answer.status_code in _REDIRECTS and "location" in answer.headers:
                        self._check_identity(answer.headers)
                        url = urljoin(url, answer.headers["location"])
                        continue
                    self.latency_s = min(self.latency_s, time.monotonic() - asked)
                    self._check(answer, url, start, end)
                    self._link = url
                    yield from self._body(answer, start, end)
                    return
            raise HubError(f"{self}: the Hub sends from one address to the next without end. Try again later.")
        except (httpx2.TransportError, httpx2.StreamError, RuntimeError, OSError) as error:
            if isinstance(error, RuntimeError) and "closed" not in str(error):
                raise
            final = access.failure(error, self.repo, file=self.name)
            if final.kind in ("offline", "certificate"):
                raise final from None
            raise _Again(_broken(self, final)) from None

    def _page(self) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.repo, self.name, revision=self.commit, endpoint=access.endpoint())

    def _body(self, answer: httpx2.Response, start: int, end: int) -> Iterator[bytes]:
        for piece in answer.iter_raw():
            if len(piece) > end - start:
                self._count(len(piece))
                raise self._wrong("sent more bytes than were asked for")
            start += len(piece)
            yield piece
        if start < end:
            raise _Again(_broken(self, None))

    def _check(self, answer: httpx2.Response, url: str, start: int, end: int) -> None:
        """Raises unless this answer holds exactly these bytes of this file."""
        status = answer.status_code
        if not _on_hub(url) and status in _LINK_GONE:
            self._link = None
            final = HubError(
                f"The storage behind the Hub refuses {self} ({status}), also with a new link. Try again later; nothing "
                "finished is lost.",
                "server",
            )
            raise _Again(final, at_once=True)
        if status in _BUSY:
            final = access.refusal(self.repo, status, answer.headers, file=self.name)
            raise _Again(final, access.wait_asked_s(answer.headers))
        if status == 416:
            raise self._wrong("is shorter than it was")
        if status not in (200, 206):
            raise access.refusal(self.repo, status, answer.headers, revision=self.commit, file=self.name)
        self._check_identity(answer.headers)
        if _on_hub(url):
            self._check_etag(answer.headers.get("etag"))
        else:
            self._check_constant(url, answer.headers.get("etag"))
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise self._wrong("was compressed on its way")
        length = answer.headers.get("content-length")
        if status == 206:
            match = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", ""))
            if not match or (int(match[1]), int(match[2])) != (start, end - 1) or match[3] not in ("*", str(self.size)):
                raise self._wrong("was answered with another range than the one that was asked for")
        elif (start, end) != (0, self.size):
            raise self._wrong("cannot be had in parts: the server sends all of it")
        if length is not None and int(length) != end - start:
            raise self._wrong(f"has {int(length):,} bytes in this range instead of {end - start:,}")

    def _check_identity(self, headers: Mapping[str, str]) -> None:
        """What the Hub itself says about the file must be what the commit's listing says."""
        commit = headers.get("x-repo-commit")
        if commit is not None and commit != self.commit:
            raise self._wrong("comes from another commit")
        self._check_etag(headers.get("x-linked-etag"))
        size = headers.get("x-linked-size")
        if size is not None and size != str(self.size):
            raise self._wrong(f"has {int(size):,} bytes instead of {self.size:,}")

    def _check_etag(self, etag: str | None) -> None:
        if etag is not None and _plain(etag) != self.etag:
            raise self._wrong("is not the content that this commit names")

    def _check_constant(self, url: str, etag: str | None) -> None:
        """A storage host's own ETag must stay the same; where it is a SHA-256, it must be the right one."""
        etag = _plain(etag or "")
        if re.fullmatch(r"[0-9a-f]{64}", etag) and len(self.etag) == 64:
            self._check_etag(etag)
        with self._lock:
            first = self._etags.setdefault(urlsplit(url).netloc, etag)
        if first != etag:
            raise self._wrong("changed while it was being read")

    def _wrong(self, what: str) -> HubError:
        return HubError(
            f"{self}: the file {what}. Nothing of this answer was used; what was finished before is kept. Open the "
            "model again.",
            "changed",
        )


def _broken(file: RemoteFile, final: HubError | None) -> HubError:
    if final is not None and final.kind == "network":
        return HubError(
            f"The connection to the Hub broke while {file} was being read, and did not come back. Check the network "
            "and go on: nothing finished is lost.",
            "network",
        )
    return final or HubError(
        f"The connection kept breaking off while {file} was being read. Check the network and go on: nothing finished "
        "is lost.",
        "network",
    )


def _on_hub(url: str) -> bool:
    ours, theirs = urlsplit(access.endpoint()), urlsplit(url)
    return (ours.scheme, ours.netloc) == (theirs.scheme, theirs.netloc)


def _plain(etag: str) -> str:
    return etag.removeprefix("W/").strip('"')


class _NoQueries(logging.Filter):
    """Takes queries out of the addresses that the HTTP client logs: a CDN's link is signed there."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let the record pass, shortened."""
        if isinstance(record.args, tuple):
            record.args = tuple(
                str(value).partition("?")[0] if hasattr(value, "copy_with") else value for value in record.args
            )
        return True


_filter = _NoQueries()


def quiet() -> None:
    """Keep signed links out of the HTTP client's log."""
    logging.getLogger("httpx2").addFilter(_filter)


def patiently(
    ask: Callable[[], T],
    repo: str,
    *,
    revision: str | None = None,
    file: str | None = None,
    cancel: Event | None = None,
) -> T:
    """What `ask()` returns, asked again while the Hub is busy or the network breaks. Raises HubError, Cancelled."""
    patience, started = Patience(cancel), time.monotonic()
    while True:
        patience.check()
        try:
            return ask()
        except Cancelled:
            raise
        except Exception as error:
            response = getattr(error, "response", None)
            final = access.failure(error, repo, revision=revision, file=file)
            busy = response is not None and response.status_code in _BUSY
            # Whoever opens a model waits for it: a network that is not there is told within seconds.
            broken = response is None and final.kind == "network" and time.monotonic() - started < READ_TIMEOUT_S / 2
            if not (busy or broken) or (broken and patience.attempts >= 2):
                raise final from None
            pause = access.wait_asked_s(response.headers) if response is not None else None
        patience.wait(_Again(final, pause))
