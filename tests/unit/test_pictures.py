"""Charts as files: real pictures, light, with their caption inside; data that comes back as it was."""

from __future__ import annotations

import io
import json
import re
import struct
import zlib
from types import SimpleNamespace
from xml.etree import ElementTree

import pandas as pd
import pytest

import sfn
from sfn import charts, pictures
from tests.unit.test_charts import board

NAMES = pictures.names(
    SimpleNamespace(label="org/base", revision="0123abc", fingerprint="f" * 64),
    SimpleNamespace(label="tuned <b>", revision=None, fingerprint="89abcdef0123456789"),
)
ABOUT = pictures.caption("Lines of the L2 shift", charts.FIGURES["l2_shift"].formula, NAMES)


def made(kind: pictures.Kind) -> bytes:
    cells = board()
    table = charts.heatmap_table(cells, "l2_shift", log=False)
    chart = charts.heatmap(table, "l2_shift", charts.rows_of(cells), charts.columns_of(cells), log=False, dark=False)
    return pictures.make(kind, pictures.without_data(chart), table, cells, ABOUT)


def chunks(picture: bytes) -> dict[bytes, bytes]:
    """Chunks of a PNG by name, each with its checksum verified; of several of a name, the first."""
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    found, at = {}, 8
    while at < len(picture):
        (size,) = struct.unpack(">I", picture[at : at + 4])
        name, content = picture[at + 4 : at + 8], picture[at + 8 : at + 8 + size]
        (checksum,) = struct.unpack(">I", picture[at + 8 + size : at + 12 + size])
        assert checksum == zlib.crc32(name + content)
        found.setdefault(name, content)
        at += 12 + size
    return found


def test_the_caption_says_which_weights_which_formula_when_and_with_what():
    text = ABOUT.text
    assert "org/base @ 0123abc" in text
    assert "tuned <b> (content 89abcdef0123)" in text
    assert charts.FIGURES["l2_shift"].formula in text
    assert re.search(r"Made on \d{4}-\d\d-\d\d with SfN " + re.escape(sfn.__version__), text)


def test_a_png_is_large_enough_to_print_and_carries_its_caption():
    found = chunks(made("png"))
    width, height = struct.unpack(">II", found[b"IHDR"][:8])
    assert width > 2400
    assert height > 600
    assert found[b"iTXt"].split(b"\0", 5)[-1].decode() == ABOUT.text


def test_an_svg_shows_every_cell_and_its_caption():
    picture = made("svg").decode()
    root = ElementTree.fromstring(picture)
    assert root[0].text == ABOUT.text
    written = " ".join(element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text"))
    assert ABOUT.text in written
    assert "post_attention_layernorm" in written
    assert picture.count('fill="rgb(') == (board()["state"] == "measured").sum()


def test_a_caption_stands_below_the_picture():
    picture = made("svg").decode()
    height = float(re.search(r'<svg[^>]*\bheight="([\d.]+)"', picture)[1])
    rows = [float(y) for y in re.findall(r'<text x="10" y="([\d.]+)"', picture)]
    assert rows
    assert height - 100 < min(rows) <= max(rows) < height


def test_vega_lite_stands_on_its_own():
    spec = json.loads(made("json"))
    assert len(spec["data"]["values"]) == len(board())
    assert spec["description"] == spec["usermeta"]["caption"] == ABOUT.text
    assert not any("data" in layer for layer in spec["layer"])
    assert spec["config"]["background"] == "white"


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_data_come_back_as_they_were(kind):
    content = made(kind)
    if kind == "csv":
        head = [line[2:] for line in content.decode().splitlines() if line.startswith("# ")]
        assert " ".join(head) == ABOUT.text
        back = pd.read_csv(io.BytesIO(content), comment="#")
    else:
        back = pd.read_parquet(io.BytesIO(content))
        assert back.attrs["caption"] == ABOUT.text
    assert list(back.columns) == list(board().columns)
    assert back["l2_shift"].dropna().tolist() == board()["l2_shift"].dropna().tolist()


def test_a_specification_does_not_depend_on_the_numbers():
    cells = board()
    tables = [charts.lines_table(board(l2_shift=shift), "l2_shift", log=False) for shift in (1.0, 2.0)]
    first, second = (
        pictures.without_data(charts.lines(table, "l2_shift", charts.rows_of(cells), 2, log=False)) for table in tables
    )
    assert first == second
    assert "data" not in json.dumps(list(first))
