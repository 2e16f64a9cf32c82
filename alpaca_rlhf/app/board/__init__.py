"""The rank board: cards to put in order, in a page of Gradio."""

from alpaca_rlhf.app.board.component import rank_board
from alpaca_rlhf.app.board.requests import CRITERIA, REASONS, BoardRequest, parse_request

__all__ = ["CRITERIA", "REASONS", "BoardRequest", "parse_request", "rank_board"]
