"""How failures meet a person: an `SfnError` as its sentence, in the place of what could not be drawn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import streamlit as st

from sfn.errors import SfnError


@contextmanager
def shown() -> Iterator[None]:
    """Show an SfnError of the block as a sentence. Fragments need one of their own; other errors are defects."""
    try:
        yield
    except SfnError as error:
        sentence(str(error))


def sentence(text: str) -> None:
    """Show a failure; the text is shown as it is, never read as Markdown."""
    st.error(escaped(text))


def escaped(text: str) -> str:
    """Text that Markdown leaves as it is."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]()#+-.!|<>~$:" else letter for letter in text)
