"""The recipe's text box: an edit is followed once, and nothing else is taken for one."""

from __future__ import annotations

import pytest

from sfn.ui import recipe_box


def sent(text: str, seq: int = 1, instance: str = "x") -> dict:
    return {"instance": instance, "seq": seq, "text": text}


def test_an_edit_is_followed_once():
    found = recipe_box.edit(sent("o_proj@all=B"), ("", 0))
    assert found == recipe_box.Edit("o_proj@all=B", ("x", 1))
    assert recipe_box.edit(sent("o_proj@all=B"), found.ack) is None


def test_the_same_text_written_again_later_is_an_edit():
    assert recipe_box.edit(sent("", seq=3), ("x", 2)) == recipe_box.Edit("", ("x", 3))


def test_another_box_counts_for_itself():
    assert recipe_box.edit(sent("mlp@all=B", seq=1, instance="y"), ("x", 1)) is not None


@pytest.mark.parametrize("value", [None, "o_proj@all=B", {}, {"instance": "x", "seq": "1", "text": ""}, sent(None)])
def test_what_is_not_understood_is_no_edit(value):
    assert recipe_box.edit(value, ("", 0)) is None
