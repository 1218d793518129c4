"""Who may read what: each refusal of the Hub is its own sentence that says what to do; tokens stay secret."""

from __future__ import annotations

import ssl
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import constants

from sfn import checkpoints
from sfn.errors import HubError
from sfn.hub import access, offer_token
from sfn.hub.access import failure, wait_asked_s
from tests.builders import tiny_qwen2
from tests.hub_server import Hub


@pytest.fixture
def model(hub: Hub, tmp_path: Path) -> str:
    hub.add("org/m", tiny_qwen2(tmp_path / "m"))
    hub.tokens |= {"hf_reader": {"org/m"}, "hf_other": set()}
    return "org/m"


def refused(name: str, kind: str) -> str:
    with pytest.raises(HubError) as raised:
        checkpoints.open(name)
    assert raised.value.kind == kind, raised.value
    assert "hf_" not in str(raised.value)
    return str(raised.value)


def test_gated(hub: Hub, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos[model].gated = "manual"
    said = refused(model, "gated")
    assert f"Open {hub.endpoint}/org/m while logged in, accept the licence" in said
    assert "no token was sent; then log in with `hf auth login`" in said
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert "your account has not been let in yet" in refused(model, "gated")
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert checkpoints.open(model).read("model.norm.weight").shape == (32,)


def test_private_and_missing(hub: Hub, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos[model].private = True
    for name in (model, "org/nothing"):
        assert f"There is no model {name} on the Hub that this machine may read" in refused(name, "missing")
        assert "If it is private, log in" in refused(name, "missing")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert "If it is private" not in refused(model, "missing")
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    checkpoints.open(model)


def test_a_token_that_is_no_longer_good(hub: Hub, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    said = refused(model, "token")
    assert f"Make a new one at {hub.endpoint}/settings/tokens" in said


def test_disabled(hub: Hub, model: str) -> None:
    hub.repos[model].disabled = True
    assert "The Hub has disabled org/m" in refused(model, "disabled")


def test_forbidden(hub: Hub, model: str) -> None:
    hub.fault("status", host="hub", code=403, times=9)
    assert "the token in use has no right to" in refused(model, "forbidden")


@pytest.mark.parametrize(("kind", "words"), [("datasets", "is a data set"), ("spaces", "is a Space")])
def test_other_kinds_of_repo(hub: Hub, tmp_path: Path, kind: str, words: str) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "data.txt").write_text("x")
    hub.add("org/d", tmp_path / "d", kind=kind)
    assert f"org/d {words}, not a model" in refused("org/d", "not a model")


def test_rate_limit(hub: Hub, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.fault("status", host="hub", code=429, times=99, headers={"Retry-After": "900"})
    said = refused(model, "rate limit")
    assert "Go on in 900 s; nothing finished is lost. Whoever is logged in may ask more often" in said
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert "logged in" not in refused(model, "rate limit")


def test_an_unwell_hub(hub: Hub, model: str) -> None:
    hub.fault("status", host="hub", code=503, times=99)
    assert "an error of its own (503)" in refused(model, "server")


def test_something_that_is_no_hub(hub: Hub, model: str) -> None:
    hub.fault("status", host="hub", code=418, times=99)
    assert "418" in refused(model, "server")


@pytest.mark.parametrize("name", ["org/na--me", "org/name.git", "org/-name", "org/name-"])
def test_names_that_cannot_be(hub: Hub, name: str) -> None:
    with pytest.raises(
        checkpoints.CheckpointError, match=r"cannot be the name of a model|There is no folder"
    ) as raised:
        checkpoints.open(name)
    assert name in str(raised.value)
    assert not [request for request in hub.requests if name in request.path]


def test_no_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9 cannot be reached from here" in refused("org/m", "network")


def test_certificates() -> None:
    error = httpx2.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")
    error.__cause__ = ssl.SSLCertVerificationError("certificate verify failed")
    found = failure(error, "org/m")
    assert found.kind == "certificate"
    assert "SSL_CERT_FILE" in str(found)


def test_where_the_token_comes_from(hub: Hub, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos[model].private = True
    refused(model, "missing")
    offer_token(" hf_reader\n")  # as Streamlit's secrets give it
    checkpoints.open(model)
    offer_token(None)
    hub.clear()
    assert access.token() is None
    Path(constants.HF_TOKEN_PATH).write_text("hf_reader")  # hf auth login
    checkpoints.open(model)
    assert {request.authorization for request in hub.requests if "/org/" in request.path} == {"Bearer hf_reader"}
    monkeypatch.setenv("HF_TOKEN", "hf_other")  # goes before
    refused(model, "missing")
    offer_token("hf_reader")  # and is not replaced by what the app offers
    refused(model, "missing")


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "12"}, 12.0),
        ({"retry-after": " 0 "}, 0.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"Retry-After": "soon"}, None),
        ({"ratelimit": '"api";r=0;t=55'}, 55.0),
        ({"ratelimit": '"api";r=10;t=55'}, None),
        ({}, None),
    ],
)
def test_how_long_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    assert wait_asked_s(headers) == seconds


def test_no_room_on_the_disk(hub: Hub, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    opened = checkpoints.open(model)
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(HubError, match="GB more on the disk") as raised:
        opened.fetch()
    assert raised.value.kind == "disk"
