"""The view “Take it with you”: link and text, mergekit both ways, a checkpoint and what stands in its way."""

from __future__ import annotations

import json
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from huggingface_hub import constants

from sfn import checkpoints, pairs, recipes, surgery
from tests.hub_upload_server import UploadHub

TAKE = {"view": "take", "recipe": "o_proj@all=B"}


def codes(app) -> list[str]:
    return [each.value for each in app.main.get("code")]


def said(app) -> str:
    return " ".join(each.value for each in app.main.caption)


def button(app, key: str):
    return next(each for each in app.button if each.key == key)


def folder_field(app):
    return next(each for each in app.text_input if each.label == "Folder")


def settled(app, bench) -> None:
    """Wait for the background work, and draw what became of it."""
    for job in bench.jobs.active():
        assert job.finished.wait(60)
    time.sleep(0.05)
    app.run()


@pytest.fixture
def pair(folders: tuple[str, str]) -> pairs.Pair:
    return pairs.compare(*map(checkpoints.open, folders))


def test_link_and_text(visit, folders) -> None:
    app = visit("merge", **TAKE, prompt="Hello?")
    assert not app.exception
    address, text = codes(app)[:2]
    assert text == "o_proj@all=B"
    parts = urlsplit(address)
    assert parts.path == "/merge"
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    assert query == {"a": folders[0], "b": folders[1], "recipe": "o_proj@all=B", "prompt": "Hello?"}
    again = visit("merge", **query)
    assert again.session_state["recipe"] == "o_proj@all=B"
    assert again.session_state["view"] == "answers"


def test_all_a_has_a_text_too(visit) -> None:
    assert "all A" in codes(visit("merge", view="take"))[1]


def test_the_config_is_the_one_that_the_library_makes(visit, pair) -> None:
    app = visit("merge", **TAKE)
    config = recipes.to_mergekit(recipes.resolve(recipes.parse("o_proj=B"), pair), pair)
    assert config.yaml.strip() in [each.strip() for each in codes(app)]
    assert "-0.0" in said(app).replace("\\", "")


def test_what_mergekit_cannot_say_is_said(visit) -> None:
    app = visit("merge", view="take", recipe="q_proj@all=reinit:3")
    assert "draws random weights" in said(app)
    assert len(codes(app)) == 2


def test_a_pasted_config_comes_into_force_and_undo_takes_it_back(visit, pair) -> None:
    app = visit("merge", **TAKE)
    config = recipes.to_mergekit(recipes.resolve(recipes.parse("mlp@0=B:0.5; emb=B"), pair), pair).yaml
    app.text_area(key="take_pasted").set_value(config)
    button(app, "take_in").click().run()
    assert app.session_state["recipe"] == "emb=B; mlp@0=B:0.5"
    assert codes(app)[1] == "emb=B; mlp@0=B:0.5"
    assert "Now in force" in said(app)
    button(app, "recipe_undo").click().run()
    assert app.session_state["recipe"] == "o_proj@all=B"


def test_a_config_without_counterpart_changes_nothing(visit) -> None:
    app = visit("merge", **TAKE)
    app.text_area(key="take_pasted").set_value("merge_method: slerp\nmodels: []")
    button(app, "take_in").click().run()
    assert app.session_state["recipe"] == "o_proj@all=B"
    assert any("on a sphere" in each.value for each in app.main.error)


def test_a_checkpoint_is_written_and_can_be_opened(visit, bench, pair, tmp_path: Path) -> None:
    app = visit("merge", **TAKE)
    suggested = Path(folder_field(app).value)
    assert suggested.parent == tmp_path / "cache" / "merged"
    assert suggested.name.startswith("base-o_proj-b-")
    assert "free there" in said(app)
    button(app, "take_start").click().run()
    settled(app, bench)
    assert "Written" in said(app)
    plan = recipes.resolve(recipes.parse("o_proj=B"), pair)
    assert surgery.written(suggested, pair, plan)
    origin = json.loads((suggested / "sfn_recipe.json").read_text())
    assert origin["pair_key"] == pair.key  # the files were hashed once, when the pair was opened
    links = {each.proto.label: each.proto.query_string for each in app.get("page_link")}
    assert parse_qs(links["Open it as A"])["a"] == parse_qs(links["Open it as B"])["b"] == [str(suggested)]
    later = visit("merge", **TAKE)  # another viewer, another day: it is still there
    assert "Written" in said(later)
    other = visit("merge", view="take", recipe="mlp@all=B")
    assert Path(folder_field(other).value) != suggested


def test_a_folder_that_is_taken_is_left_alone(visit, bench, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note.txt").write_text("mine")
    app = visit("merge", **TAKE)
    folder_field(app).set_value(str(tmp_path / "mine")).run()
    button(app, "take_start").click().run()
    settled(app, bench)
    assert any("there already and not empty" in each.value.replace("\\", "") for each in app.main.error)
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["note.txt"]


def test_no_upload_without_a_token(visit, bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    app = visit("merge", **TAKE)
    button(app, "take_start").click().run()
    settled(app, bench)
    assert button(app, "take_upload").disabled
    assert "Needs a token" in said(app)


def test_upload_to_a_hub_on_this_machine(visit, bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_pagesecret")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    with UploadHub() as hub:
        hub.tokens["hf_pagesecret"] = "someone"
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        app = visit("merge", **TAKE)
        button(app, "take_start").click().run()
        settled(app, bench)
        app.text_input(key="take_repo").set_value("no good name").run()
        button(app, "take_upload").click().run()
        assert any("cannot be the name of a repo" in each.value.replace("\\", "") for each in app.main.error)
        app.text_input(key="take_repo").set_value("merged-thing").run()
        button(app, "take_upload").click().run()
        settled(app, bench)
        assert any(f"{hub.endpoint}/someone/merged-thing" in each.proto.body for each in app.get("html"))
        repo = hub.repos["someone/merged-thing"]
        assert repo.visibility == "private"
        assert {"model.safetensors", "README.md", "sfn_recipe.json", "config.json"} <= repo.files.keys()
        assert "hf_pagesecret" not in str({key: app.session_state[key] for key in app.session_state})
