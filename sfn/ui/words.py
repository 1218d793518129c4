"""Numbers, recipes and model text as people read them. Every unit of the app is written here."""

from __future__ import annotations

import html
import re


def count(number: int) -> str:
    """ "1.38 M", "32.8 B"; below a thousand as it is."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return str(number)


def size(size_bytes: float) -> str:
    """ "2.76 MB", "65.5 GB" (powers of ten)."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size_bytes >= unit:
            return f"{size_bytes / unit:.3g} {name}"
    return f"{size_bytes:.0f} bytes"


def seconds(time_s: float) -> str:
    """ "0.4 s", "12 s", "3 min 20 s", "1 h 5 min"."""
    if time_s < 10:
        return f"{time_s:.1f} s"
    whole = round(time_s)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def many(number: int, thing: str) -> str:
    """ "1 word", "1,234 words"."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def eta(time_s: float | None) -> str:
    """What a job's remaining time is called."""
    return "time left not known yet" if time_s is None else f"about {seconds(time_s)} left"


def place(before: int, *, background: bool = False) -> str:
    """Where a question stands that waits for the engine: "next", "2 before it", "in the background, 12 before it"."""
    where = f"{before} before it" if before else "next"
    return f"in the background, {where}" if background else where


def waiting(front: int, background: int) -> str:
    """The engine's queue: "3 waiting · 12 in the background"; "" where nothing waits."""
    said = [f"{front:,} waiting" if front else "", f"{background:,} in the background" if background else ""]
    return " · ".join(filter(None, said))


def recipe(text: str | None) -> str:
    """A recipe in words where it has none."""
    return "not known" if text is None else text or "all A"


def model(name: str) -> str:
    """A folder or a model on the Hub as people read it: a commit is cut to ten digits."""
    return re.sub(r"@([0-9a-f]{10})[0-9a-f]{30}$", r"@\1", name)


def chip(text: str) -> str:
    """Safe HTML of a recipe chip; the whole text on hover."""
    safe = html.escape(text)
    return f'<span class="sfn-chip" title="{safe}">{safe}</span>'


def side(letter: str, name: str) -> str:
    """Safe HTML of one model's badge and name; a long name is cut at the edge, whole on hover."""
    safe = html.escape(name)
    return f'<div class="sfn-side"><b class="{letter.lower()}">{letter}</b><span title="{safe}">{safe}</span></div>'


def said(text: str, kind: str = "") -> str:
    """Safe HTML of a prompt or of model text, as it is but for empty first lines (st.text would take indents off).

    `kind`: one more CSS class.
    """
    safe = html.escape(text.lstrip("\r\n"))
    safe = safe.replace("\r", "&#13;").replace("\n", "&#10;")  # one line, so that nothing dedents it
    return f'<div class="{" ".join(filter(None, ("sfn-said", kind)))}">{safe}</div>'
