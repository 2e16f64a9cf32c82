"""The board as a component of Gradio: an empty place that its script fills.

Gradio runs templates as code, so no text of a prompt, an answer or a person is ever part of one.
The script asks the server by itself and makes every element with `textContent`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from alpaca_rlhf.preferences.assignment import MOST_TEXT
from alpaca_rlhf.preferences.rankings import MOST_STARS
from alpaca_rlhf.ui.app.board.asked import CRITERIA, MOST_REASON, REASONS
from alpaca_rlhf.ui.app.language import LANGUAGES, words

_FOLDER = Path(__file__).parent


class RankBoard(gr.HTML):
    """Cards to put in order by mouse, touch or keyboard.

    Args:
        endpoint: Name of the API endpoint that answers what `board.js` asks for.
        look_again_s: Seconds between two looks at an empty queue.
        elem_id: Id in the page.
    """

    def __init__(self, endpoint: str, *, look_again_s: float = 10.0, elem_id: str = "rank") -> None:
        super().__init__(
            value=None,
            html_template='<div class="rank"></div>',
            css_template=(_FOLDER / "board.css").read_text(encoding="utf-8"),
            js_on_load=(_FOLDER / "board.js").read_text(encoding="utf-8"),
            apply_default_css=False,
            elem_id=elem_id,
            endpoint=endpoint,
            look_again_s=look_again_s,
            words={language: words("rank", language) for language in LANGUAGES},
            criteria=list(CRITERIA),
            reasons=list(REASONS),
            most={"stars": MOST_STARS, "comment": MOST_TEXT, "reason": MOST_REASON},
        )

    def get_block_name(self) -> str:
        """What Gradio's page draws it as."""
        return "html"

    def api_info(self) -> dict[str, Any]:
        """It takes no part in Gradio's own calls."""
        return {"type": "null"}
