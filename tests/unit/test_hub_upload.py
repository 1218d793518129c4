"""Uploading a checkpoint with the real huggingface_hub to a Hub on this machine: whole, private, followed, cancelled,
and a sentence of its own for each way in which the Hub can refuse."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sfn import hub as rooms
from sfn.errors import Cancelled, HubError
from sfn.hub.upload import check_name, upload
from tests.builders import tiny_qwen2
from tests.hub_upload_server import UploadHub

TOKEN = "hf_secretsecret"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[UploadHub]:
    with UploadHub() as server:
        server.tokens[TOKEN] = "someone"
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")  # the server speaks Git LFS
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tiny_qwen2(tmp_path / "merged", shards=2)
    (made / "README.md").write_text("---\ntags: [merge]\n---\n# A card\n")
    return made


def refused(folder: Path, repo: str = "thing") -> HubError:
    with pytest.raises(HubError) as caught:
        upload(folder, repo)
    assert TOKEN not in str(caught.value)
    return caught.value


def test_every_byte_arrives_in_a_private_repo(hub: UploadHub, folder: Path) -> None:
    told: list[tuple[int, int, str]] = []
    done = upload(folder, "thing", progress=lambda *news: told.append(news))
    assert (done.repo, done.url) == ("someone/thing", f"{hub.endpoint}/someone/thing")
    repo = hub.repos["someone/thing"]
    assert repo.visibility == "private"
    assert repo.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert repo.message == "Add merged checkpoint"
    total = sum(path.stat().st_size for path in folder.iterdir())
    assert {news[1] for news in told} == {total}
    assert all(0 <= news[0] <= total for news in told)


def test_public_only_on_request_and_under_a_name_with_its_owner(hub: UploadHub, folder: Path) -> None:
    assert upload(folder, " someone/other ", private=False).repo == "someone/other"
    assert hub.repos["someone/other"].visibility == "public"


def test_bytes_are_told_while_they_go(hub: UploadHub, folder: Path) -> None:
    (folder / "model-00001-of-00002.safetensors").write_bytes(bytes(5_000_000))
    hub.piece_s = 0.02
    told: list[int] = []
    upload(folder, "thing", progress=lambda done, total, detail: told.append(done))
    growing = [done for done in told if 0 < done < 5_000_000]
    assert len(growing) >= 2
    assert told == sorted(told)


def test_cancelled_at_once_and_nothing_is_visible(hub: UploadHub, folder: Path) -> None:
    (folder / "model-00001-of-00002.safetensors").write_bytes(bytes(20_000_000))
    hub.piece_s = 0.05
    cancel = threading.Event()

    def stop(done: int, total: int, detail: str) -> None:
        if hub.received:
            cancel.set()

    threading.Thread(target=lambda: (_until(lambda: hub.received), cancel.set()), daemon=True).start()
    with pytest.raises(
        Cancelled, match=r"upload to thing was cancelled\. If its repo was created already, it is empty"
    ):
        upload(folder, "thing", progress=stop, cancel=cancel)
    assert _at_rest(hub) < 15_000_000
    assert hub.repos["someone/thing"].files == {}


def _until(wanted: Callable[[], object]) -> None:
    for _ in range(600):
        if wanted():
            return
        time.sleep(0.05)


def _at_rest(hub: UploadHub) -> int:
    """Bytes that arrived, once what was on its way has."""
    before = -1
    while hub.received != before:
        before = hub.received
        time.sleep(0.5)
    return before


def test_a_progress_that_stops_the_work_stops_it(hub: UploadHub, folder: Path) -> None:
    def stop(*_: object) -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled, match="enough"):
        upload(folder, "thing", progress=stop)


def test_the_owner_is_gone_and_the_upload_with_it(hub: UploadHub, folder: Path) -> None:
    (folder / "model-00001-of-00002.safetensors").write_bytes(bytes(20_000_000))
    hub.piece_s = 0.05
    program = (
        "import sys; from pathlib import Path; from sfn.hub.upload import upload; upload(Path(sys.argv[1]), 'thing')"
    )
    owner = subprocess.Popen([sys.executable, "-c", program, folder])
    _until(lambda: hub.received)
    owner.kill()
    owner.wait()
    assert 0 < _at_rest(hub) < 15_000_000
    assert hub.repos["someone/thing"].files == {}


# What can go wrong.


def test_no_token(hub: UploadHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    error = refused(folder)
    assert error.kind == "token"
    assert str(error).startswith("Uploading needs a token with the right to write: log in with `hf auth login`")
    assert hub.seen == []
    rooms.offer_token(TOKEN)  # as Streamlit's secrets are
    try:
        assert upload(folder, "thing").repo == "someone/thing"
    finally:
        rooms.offer_token(None)


@pytest.mark.parametrize(
    ("refuse", "repo", "kind", "sentence"),
    [
        ({("POST", "repos/create"): 401}, "a/b", "token", "does not accept the token in use: it has expired"),
        ({("POST", "repos/create"): 403}, "org/b", "forbidden", "may not write to org: it needs the right to write"),
        ({}, "nobody/b", "missing", "There is no account or organisation nobody on the Hub"),
        ({}, "club/b", "forbidden", "may not write to club"),
        (
            {},
            "someone/taken",
            "exists",
            "someone/taken is there already. SfN writes into no repo that it did not create",
        ),
        ({("POST", "preupload"): 404}, "thing", "missing", "someone/thing was there a moment ago and is gone"),
        ({("PUT", "lfs"): 403}, "thing", "forbidden", "may not write to someone"),
        ({("POST", "commit"): 400}, "thing", "server", "something wrong in what was sent for someone/thing (400)"),
        ({("POST", "repos/create"): 402}, "thing", "forbidden", "no room left for private models"),
        ({("POST", "commit"): 500}, "thing", "server", "answers with 500 to the upload of someone/thing"),
    ],
)
def test_each_refusal_has_its_sentence(
    hub: UploadHub, folder: Path, refuse: dict[tuple[str, str], int], repo: str, kind: str, sentence: str
) -> None:
    upload(folder, "taken") if repo.endswith("taken") else None
    hub.organisations.add("club")
    hub.refuse = refuse
    error = refused(folder, repo)
    assert sentence in str(error)
    assert error.kind == kind
    assert "refused for a test" not in str(error)


def test_a_token_that_is_not_accepted(hub: UploadHub, folder: Path) -> None:
    hub.tokens.clear()
    assert "does not accept the token in use" in str(refused(folder))


def test_no_network(hub: UploadHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    error = refused(folder)
    assert error.kind == "network"
    assert "cannot be reached: check the network. Nothing was sent." in str(error)


def test_what_is_seen_before_anything_is_sent(hub: UploadHub, folder: Path, tmp_path: Path) -> None:
    for name in ("", "a b", "a/b/c", "-x", "x--y", "x..y", "x.git", "a" * 97, "../x", "https://hf.co/a/b"):
        with pytest.raises(HubError, match="cannot be the name of a repo"):
            check_name(name)
    with pytest.raises(HubError, match="holds no checkpoint"):
        upload(tmp_path, "thing")
    assert hub.seen == []
