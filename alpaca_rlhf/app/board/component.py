"""The board as a component of Gradio: an empty place that its script fills.

Gradio runs templates as code, so no text of a prompt, an answer or a person is ever part of one.
The script asks the server by itself and makes every element with `textContent`. It is a plain
`gr.HTML` and no subclass, for which Gradio would write a stub file into the package.
"""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from alpaca_rlhf.app.board.asked import CRITERIA, MOST_REASON, REASONS
from alpaca_rlhf.app.language import LANGUAGES, words
from alpaca_rlhf.preferences.assignment import MOST_STARS, MOST_TEXT

_FOLDER = Path(__file__).parent


def rank_board(endpoint: str, *, look_again_s: float, refill: str) -> gr.HTML:
    """Cards to put in order by mouse, touch or keyboard.

    Args:
        endpoint: Name of the API endpoint that answers what `board.js` asks for.
        look_again_s: Seconds between two looks at an empty queue.
        refill: The command that fills the queue.
    """
    return gr.HTML(
        html_template='<div class="rank"></div>',
        css_template=(_FOLDER / "board.css").read_text(encoding="utf-8"),
        js_on_load=(_FOLDER / "board.js").read_text(encoding="utf-8"),
        apply_default_css=False,
        elem_id="rank",
        endpoint=endpoint,
        look_again_s=look_again_s,
        refill=refill,
        words={language: words("rank", language) for language in LANGUAGES},
        criteria=list(CRITERIA),
        reasons=list(REASONS),
        most={"stars": MOST_STARS, "comment": MOST_TEXT, "reason": MOST_REASON},
    )
