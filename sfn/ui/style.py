"""The few CSS rules that the theme file cannot express: tabular figures, long names, type for the back row."""

from __future__ import annotations

import streamlit as st

PRESENTER = "presenter"  # key of the switch in the sidebar

# Colours of A, B and merged come from `sfn.charts`, written out here so that drawing the frame does not load Altair.
# What is drawn anew by a fragment is not dimmed meanwhile: it would flicker at every look at a running job.
_RULES = """
.stApp, .stApp button, .stApp input, .stApp textarea { font-variant-numeric: tabular-nums; }
.stMainBlockContainer { padding: 3.6rem 2.4rem 3rem; }
.stMain h1 { padding: .3rem 0 .4rem; }
.st-key-title_bar { padding-top: .3rem; margin-bottom: -.6rem; }
@media (max-height: 780px) {
  .stMain h1 { font-size: 1.6rem; padding: 0 0 .4rem; } .st-key-title_bar h1 { padding: 0; }
  .st-key-title_bar { margin-bottom: -.2rem; }
  .stVerticalBlock:has(> * > .st-key-title_bar), .stVerticalBlock:has(> * > .st-key-presets) { gap: .5rem; } }
.sfn-line { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; font-size: .92rem; }
.stApp [data-stale="true"] { opacity: 1 !important; transition: none !important; }
[data-testid="stStatusWidget"] { display: none; }
.sfn-pair { font-size: .92rem; line-height: 1.35; }
.sfn-side { display: flex; gap: .5rem; align-items: baseline; min-width: 0; }
.sfn-side b { flex: none; width: 1.2em; text-align: center; border-radius: .2rem; color: #fff; }
.sfn-side b.a { background: #4C78A8; }
.sfn-side b.b { background: #F58518; color: #1F2328; }
.sfn-side span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.sfn-muted { opacity: .75; font-size: .82rem; overflow-wrap: anywhere; }
.sfn-chip { display: inline-block; max-width: 100%; box-sizing: border-box; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; padding: .05rem .45rem; border: 1px solid #8A5FBF; border-radius: .3rem; font-size: .82rem;
  vertical-align: bottom; font-family: ui-monospace, 'Noto Sans Mono', 'DejaVu Sans Mono', monospace; }
.sfn-holds { display: flex; gap: .35rem; align-items: baseline; min-width: 0; white-space: nowrap; }
[class*="st-key-asked_"] { flex-wrap: nowrap !important; }
[class*="st-key-asked_"] > :first-child { min-width: 0; flex: 1 1 0; overflow: hidden; }
.sfn-head { font-size: .78rem; letter-spacing: .06em; text-transform: uppercase; opacity: .7; margin: .2rem 0 -.2rem; }
.sfn-table { border-collapse: collapse; width: 100%; table-layout: fixed; font-size: .95rem; }
.sfn-table th, .sfn-table td { text-align: left; padding: .22rem .6rem; border: 0; overflow-wrap: anywhere;
  border-bottom: 1px solid color-mix(in srgb, currentColor 14%, transparent); font-weight: 400; }
.sfn-table thead th { font-weight: 600; padding-bottom: .4rem; }
.sfn-table th:first-child { width: 22%; opacity: .8; } .sfn-table td:last-child { width: 5em; opacity: .6; }
.sfn-table th:last-child { width: 5em; }
.sfn-table [title] { cursor: help; }
.sfn-differs td { font-weight: 600; } .sfn-differs td:last-child { opacity: 1; }
.sfn-fit { margin: .9rem 0 .2rem; }
.stMain [data-testid="stPageLink"] a { border: 1px solid color-mix(in srgb, currentColor 35%, transparent);
  border-radius: .35rem; padding: .3rem .8rem; width: fit-content; }
.sfn-said { white-space: pre-wrap; overflow-wrap: anywhere; margin: .15rem 0 .5rem; line-height: 1.55; }
.sfn-answer { max-height: 26rem; overflow-y: auto; padding: .5rem .7rem; border-radius: .35rem;
  border: 1px solid color-mix(in srgb, currentColor 14%, transparent); }
.st-key-presets button { border-radius: 999px; min-height: 1.9rem; padding: .05rem .7rem; }
.st-key-presets button p { font-size: .87rem; }
.st-key-recipe_field p { font-size: .875rem; }
.sfn-verdict { min-height: 2.7rem; font-size: .875rem; line-height: 1.35rem; opacity: .85; overflow-wrap: anywhere; }
.sfn-bad { opacity: 1; color: #b42318; color: light-dark(#b42318, #ff9d94); font-weight: 500; }
.sfn-tensor { overflow-wrap: anywhere; }
.sfn-figures th:first-child { width: 45%; }
.sfn-figures td:last-child { width: auto; opacity: 1; text-align: right; }
[class*="st-key-card_"] { position: relative; padding: .5rem .7rem !important; height: 100%; }
[class*="st-key-card_"]:hover { border-color: color-mix(in srgb, currentColor 55%, transparent); }
[class*="st-key-card_chosen"] { box-shadow: inset 0 0 0 2px #2F5D8A; }
[class*="st-key-card_chosen"] { box-shadow: inset 0 0 0 2px light-dark(#2F5D8A, #8DB4DC); }
[class*="st-key-card_"]:has(button:focus-visible) { outline: 2px solid currentColor; outline-offset: 1px; }
[class*="st-key-choose_"] { position: absolute !important; inset: 0; width: auto !important; opacity: 0; }
[class*="st-key-choose_"] * { width: 100% !important; height: 100%; }
[class*="st-key-offers_"] button { justify-content: flex-start; text-align: left; min-height: 1.9rem;
  padding: .1rem 0; }
.sfn-ability { display: grid; grid-template-columns: 13.5rem 9rem 1fr; gap: .2rem 1rem; padding: .3rem 0;
  font-size: .95rem;
  overflow-wrap: anywhere; border-bottom: 1px solid color-mix(in srgb, currentColor 14%, transparent); }
.sfn-clamped { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3; overflow: hidden; }
.sfn-ability b { font-weight: 600; } .sfn-block span { font-weight: 600; } .sfn-block b { opacity: .7; }
.sfn-finding { display: grid; grid-template-columns: 9.5rem 1fr; gap: .2rem 1rem; padding: .4rem 0;
  overflow-wrap: anywhere; border-bottom: 1px solid color-mix(in srgb, currentColor 14%, transparent); }
"""
_LARGE = """
html { font-size: 19.5px !important; }
@media (max-width: 1500px) {
  .st-key-presets { gap: .3rem; } .st-key-presets button { padding: .05rem .4rem; }
  .st-key-presets button p { font-size: .76rem; } }
"""


def presenter() -> bool:
    """Whether type is larger, for the back row."""
    return bool(st.session_state.get(PRESENTER, False))


def apply() -> None:
    """Put the rules into the page; in presenter mode all type is nearly a third larger."""
    st.html(f"<style>{_RULES}{_LARGE if presenter() else ''}</style>")
