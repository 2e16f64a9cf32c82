"""The rank board: cards to put in order, in a page of Gradio."""

from alpaca_rlhf.app.board.component import rank_board
from alpaca_rlhf.app.board.markup import markup_tree
from alpaca_rlhf.app.board.requests import CRITERIA, REASONS, BoardRequest, parse_request

__all__ = ["CRITERIA", "REASONS", "BoardRequest", "markup_tree", "parse_request", "rank_board"]
