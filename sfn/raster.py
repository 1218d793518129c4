"""A table of numbers as a small PNG, one pixel each, and the colours that its legend needs. Knows no chart library."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np

# Viridis at equal steps up to 0.93, as on the board; and blue over the background to red.
_VIRIDIS = ("#440154", "#482878", "#3e4a89", "#31688e", "#25848e", "#1fa187", "#3dbc74", "#7ad151", "#bddf26")
_SIGNED = {False: ("#2166ac", "#92c5de", "#f7f7f7", "#f4a582", "#b2182b"),
           True: ("#67a9f0", "#335577", "#22272d", "#7a4436", "#f4826b")}  # fmt: skip


def colours(*, signed: bool, dark: bool) -> tuple[str, ...]:
    """Colours from the least to the most, at equal steps; "more" stands out from the background."""
    if signed:
        return _SIGNED[dark]
    return _VIRIDIS if dark else _VIRIDIS[::-1]


def data_url(values: np.ndarray, low: float, high: float, range_: tuple[str, ...]) -> str:
    """(rows, columns) numbers as a data: URL; beyond [low, high] in the last colours, NaN as the least."""
    place = np.nan_to_num((values - low) / (high - low) if high > low else np.zeros(values.shape), nan=0.0)
    index = np.clip(np.round(place * 255), 0, 255).astype(np.uint8)
    stops = np.array([[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in range_], np.float64)
    at = np.linspace(0, len(stops) - 1, 256)
    palette = np.stack([np.interp(at, np.arange(len(stops)), stops[:, channel]) for channel in range(3)], axis=1)
    return "data:image/png;base64," + base64.b64encode(_png(index, np.round(palette).astype(np.uint8))).decode("ascii")


def _png(index: np.ndarray, palette: np.ndarray) -> bytes:
    """A PNG of (rows, columns) uint8 places in a palette of (256, 3) uint8."""
    height, width = index.shape
    lines = np.concatenate([np.zeros((height, 1), np.uint8), index], axis=1)  # 0: no filter
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    chunks = (
        (b"IHDR", header),
        (b"PLTE", palette.tobytes()),
        (b"IDAT", zlib.compress(lines.tobytes())),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
