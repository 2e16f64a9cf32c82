"""The rank board: cards to put in order, in a page of Gradio."""

from alpaca_rlhf.app.board.asked import CRITERIA, REASONS, Asked, read
from alpaca_rlhf.app.board.component import rank_board

__all__ = ["CRITERIA", "REASONS", "Asked", "rank_board", "read"]
