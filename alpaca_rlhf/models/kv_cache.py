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

    `keys` and `values` are the filled columns of two larger tensors. While `place` is set, an
    update writes one token into that column of them, in place, and returns the larger tensors.

    Args:
        limit: Columns at most; no room is made beyond them.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.limit = limit
        self.rooms: list[Tensor] = []
        self.place: Tensor | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write (B, heads, T, D) keys and values of new tokens; return those of all tokens."""
        if self.place is not None:
            for room, new in zip(self.rooms, (key_states, value_states), strict=True):
                room.index_copy_(2, self.place, new)
            return self.rooms[0], self.rooms[1]
        past = self.get_seq_length()
        width = past + key_states.shape[2]
        self.reserve(width)
        for room, new in zip(self.rooms, (key_states, value_states), strict=True):
            room[:, :, past:width] = new
        return self.show(width)

    def reserve(self, width: int) -> bool:
        """Make room for `width` columns; returns True if the tensors are others now."""
        past = self.get_seq_length()
        if width <= self.rooms[0].shape[2]:
            return False
        for i, room in enumerate(self.rooms):
            self.rooms[i] = _stacked([room[:, :, :past]], past, self.room(width))
        return True

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

    @property
    def in_place(self) -> bool:
        """True if every layer can be written in place: none has a sliding window."""
        return all(isinstance(layer, _BlockLayer) for layer in self.layers)

    def reserve(self, width: int) -> bool:
        """Make room for `width` columns in every layer; True if the tensors are others now.

        Columns that are not filled hold numbers, and are for a mask to hide.
        """
        layers: list[Any] = self.layers
        return any([layer.reserve(width) for layer in layers])

    @property
    def room(self) -> int:
        """Columns for which there is room."""
        layers: list[Any] = self.layers
        return int(layers[0].rooms[0].shape[2])

    def write_at(self, place: Tensor | None) -> None:
        """Write the next tokens at the column in (1,) int64 `place`; None ends that."""
        layers: list[Any] = self.layers
        for layer in layers:
            layer.place = place

    def show(self, width: int) -> None:
        """Let `width` columns be those that are filled."""
        layers: list[Any] = self.layers
        for layer in layers:
            layer.show(width)

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
        (all rows, heads, room, D), where every part ends at column `width`, with zeros around it.
    """
    _, heads, _, size = parts[0].shape
    stacked = parts[0].new_empty(sum(len(part) for part in parts), heads, room, size)
    row = 0
    for part in parts:
        rows, first = stacked[row : row + len(part)], width - part.shape[2]
        # Masked, but nothing may be NaN there.
        rows[:, :, :first] = 0
        rows[:, :, width:] = 0
        rows[:, :, first:width] = part
        row += len(part)
    return stacked
