"""The rank board: cards to put in order, in a page of Gradio."""

from alpaca_rlhf.ui.app.board.asked import CRITERIA, REASONS, Asked, read
from alpaca_rlhf.ui.app.board.component import RankBoard

__all__ = ["CRITERIA", "REASONS", "Asked", "RankBoard", "read"]
