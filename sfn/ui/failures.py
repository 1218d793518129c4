"""How failures meet a person: an `SfnError` as its sentence, in the place of what could not be drawn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import streamlit as st

from sfn.errors import HubError, SfnError


@contextmanager
def shown() -> Iterator[None]:
    """Show an SfnError of the block as a sentence. Fragments need one of their own; other errors are defects."""
    try:
        yield
    except SfnError as error:
        failure(error)


_LINKS = {"gated": "Open its page and accept the licence"}


def failure(error: SfnError) -> None:
    """Show a failure, and the page that helps where there is one."""
    sentence(str(error))
    if isinstance(error, HubError) and error.link:
        st.link_button(_LINKS.get(error.kind, "Open the page"), error.link, icon=":material/open_in_new:")


def sentence(text: str) -> None:
    """Show a failure; the text is shown as it is, never read as Markdown."""
    st.error(escaped(text))


def escaped(text: str) -> str:
    """Text that Markdown leaves as it is."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]()#+-.!|<>~$:" else letter for letter in text)
