"""Keys and values of rows that are decoded together, with room for the tokens to come.

Rows are padded on the left and all end at the same column, so a row can join at any time. A new
token is written into its place, where transformers' own cache copies everything at each step.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

BLOCK = 64
"""Columns for which room is made at once."""


class _BlockLayer(DynamicLayer):
    """Keys and values of one layer that attends to all columns.

    `keys` and `values` are the filled columns of two larger tensors.

    Args:
        limit: Columns at most; no room is made beyond them.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.limit = limit
        self.rooms: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write (B, heads, T, D) keys and values of new tokens; return those of all tokens."""
        past = self.get_seq_length()
        width = past + key_states.shape[2]
        for i, new in enumerate((key_states, value_states)):
            if width > self.rooms[i].shape[2]:
                self.rooms[i] = _stacked([self.rooms[i][:, :, :past]], past, self.room(width))
            self.rooms[i][:, :, past:width] = new
        return self.show(width)

    def show(self, width: int) -> tuple[Tensor, Tensor]:
        """Let `keys` and `values` be the first `width` columns; return them."""
        keys, values = (room[:, :, :width] for room in self.rooms)
        self.keys, self.values = keys, values
        return keys, values

    def room(self, width: int) -> int:
        """Columns to allocate for rows of `width` tokens."""
        return max(width, min(-(-width // BLOCK) * BLOCK, self.limit))


class BlockCache(DynamicCache):
    """Keys and values of every layer; layers with a sliding window keep no more than the window.

    Args:
        config: Configuration of the model.
        limit: Tokens at most in a row, its prompt included.
    """

    def __init__(self, config: PreTrainedConfig, limit: int) -> None:
        super().__init__(config=config)
        self.layers = [
            _BlockLayer(limit) if type(layer) is DynamicLayer else layer for layer in self.layers
        ]

    def rearrange(
        self, kept: Tensor, width: int, arrivals: DynamicCache | None, copies: int
    ) -> None:
        """Drop rows and columns, and let new rows join, at the cost of one copy.

        Args:
            kept: (R,) int64 rows that stay.
            width: Columns of the longest row from now on.
            arrivals: Keys and values of the prompts that join, if any.
            copies: Rows that each of these prompts becomes.
        """
        layer: Any  # one of the two that the families have
        for i, layer in enumerate(self.layers):
            joining: Any = None if arrivals is None else arrivals.layers[i]
            columns = width
            if isinstance(layer, DynamicSlidingWindowLayer):
                columns = min(width, layer.sliding_window - 1)
            stacked = []
            for name in ("keys", "values"):
                parts = []
                if len(kept):
                    parts.append(getattr(layer, name)[:, :, -columns:].index_select(0, kept))
                if joining is not None:
                    states = getattr(joining, name)
                    parts.append(states[:, None].expand(-1, copies, -1, -1, -1).flatten(0, 1))
                    setattr(joining, name, None)
                room = layer.room(columns) if isinstance(layer, _BlockLayer) else columns
                stacked.append(_stacked(parts, columns, room))
            if not layer.is_initialized:
                layer.lazy_initialization(*stacked)
            if isinstance(layer, _BlockLayer):
                layer.rooms = stacked
                layer.show(width)
            else:
                layer.keys, layer.values = stacked
                layer.cumulative_length = width


def _stacked(parts: list[Tensor], width: int, room: int) -> Tensor:
    """Put rows of several (rows, heads, columns, D) tensors under each other.

    Returns:
        (all rows, heads, room, D), where every part ends at column `width`, with zeros before it.
    """
    _, heads, _, size = parts[0].shape
    stacked = parts[0].new_empty(sum(len(part) for part in parts), heads, room, size)
    row = 0
    for part in parts:
        rows, first = stacked[row : row + len(part)], width - part.shape[2]
        rows[:, :, :first] = 0  # masked, but nothing may be NaN there
        rows[:, :, first:width] = part
        row += len(part)
    return stacked
