"""The board as a component of Gradio: an empty place that its script fills.

Gradio runs templates as code, so no text of a prompt, an answer or a person is ever part of one.
The script asks the server by itself and makes every element without HTML. It is a plain
`gr.HTML` and no subclass, for which Gradio would write a stub file into the package.
"""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from alpaca_rlhf.app.board.requests import CRITERIA, MAX_REASON_CHARS, REASONS
from alpaca_rlhf.app.language import LANGUAGES, translations
from alpaca_rlhf.preferences.assignment import MAX_BETTER_CHARS, MAX_STARS, MAX_TEXT_CHARS

_FOLDER = Path(__file__).parent
# One function in the end: `board.js` begins, and no task is there before all of it has run.
_SCRIPTS = ("board", "texts", "differences", "dragging")


def rank_board(endpoint: str, *, poll_s: float) -> gr.HTML:
    """Cards to put in order by mouse, touch or keyboard.

    Everything given here is part of the page that every annotator gets.

    Args:
        endpoint: Name of the API endpoint that answers the requests of `board.js`.
        poll_s: Seconds between two looks at an empty queue.
    """
    return gr.HTML(
        html_template='<div class="rank"></div>',
        css_template=(_FOLDER / "board.css").read_text(encoding="utf-8"),
        js_on_load="\n".join(
            (_FOLDER / f"{name}.js").read_text(encoding="utf-8") for name in _SCRIPTS
        ),
        apply_default_css=False,
        elem_id="rank",
        endpoint=endpoint,
        poll_s=poll_s,
        texts={language: translations("rank", language) for language in LANGUAGES},
        criteria=list(CRITERIA),
        reasons=list(REASONS),
        limits={
            "stars": MAX_STARS,
            "better": MAX_BETTER_CHARS,
            "comment": MAX_TEXT_CHARS,
            "reason": MAX_REASON_CHARS,
        },
    )
