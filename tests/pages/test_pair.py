"""Pair: two folders side by side, a clear error per side, cards, and choosing one by one."""

from __future__ import annotations

from sfn import demo
from tests.builders import tiny_qwen2


def html(app) -> str:
    return "\n".join(element.proto.body for element in app.main.get("html"))


def take(app, name: str):
    """Click the offer of this model."""
    button = next(one for one in app.button if (one.key or "").startswith("take_") and one.key.endswith(f"_{name}"))
    return button.click().run()


def test_two_folders_are_compared_in_words(visit):
    app = visit()
    assert "base" in html(app)
    assert "tuned" in html(app)
    assert "can be compared" in html(app)
    assert "qwen2" in html(app)


def test_differences_come_with_what_they_mean(visit, tmp_path):
    app = visit(b=tiny_qwen2(tmp_path / "other", 2, layers=3))
    assert not app.exception
    assert "A has 2 layers, B has 3." in html(app)
    assert any("Stops a merge" in heading.value for heading in app.subheader)


def test_each_side_has_its_own_error(visit, folders):
    app = visit(a="/no/such/folder", b=folders[1])
    assert not app.exception
    errors = [error.value.replace("\\", "") for error in app.error]
    assert len(errors) == 1
    assert "/no/such/folder" in errors[0]


def test_folders_that_are_pasted_become_the_pair(visit, folders, tmp_path):
    other = str(tiny_qwen2(tmp_path / "third", 3))
    app = visit()
    app.text_input(key="find_b").set_value(other).run()
    take(app, other)
    assert not app.exception
    assert "third" in html(app)
    assert app.query_params["b"] in (other, [other])


def test_the_bundled_pair_is_chosen_where_the_address_names_none(visit):
    app = visit(a=None, b=None)
    assert not app.exception
    assert "a" not in app.query_params
    assert "a toy" in html(app)


def test_back_to_the_bundled_pair(visit):
    app = visit()
    app.button_group(key="_pair_kind").set_value("the paper's pairs").run()
    app.button(key="choose_bundled").click().run()
    assert not app.exception
    assert "a" not in app.query_params
    assert demo.folders()[0].name in html(app)
