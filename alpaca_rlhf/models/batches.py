"""Text to tensors: the only place that tokenises prompts, pads and masks.

For training and scoring, rows are right-padded and carry no attention mask: under causal attention
a real token never sees a pad. Only the decode loop pads on the left. Masks are carried, never
inferred from ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from alpaca_rlhf.models.base import Base
from alpaca_rlhf.models.turns import (
    chat_ids,
    decode,
    last_reply_ids,
    prompt_turns,
    text_ids,
)
from alpaca_rlhf.prompts import Segment, lead
from alpaca_rlhf.records import Instruction, Rollout

__all__ = [
    "Batch",
    "Example",
    "answer",
    "by_length",
    "collate",
    "decode",
    "example",
    "from_rollout",
    "left_pad",
    "prompt_ids",
    "segments",
    "text_ids",
]


@dataclass(frozen=True)
class Example:
    """One prompt and one completion, as token ids."""

    prompt: tuple[int, ...]
    """Starts with bos, if the tokenizer has one, exactly once."""
    completion: tuple[int, ...]
    """Ends with eos unless it was cut."""
    earlier: tuple[tuple[int, int], ...] = ()
    """(start, end) positions in `prompt` of the earlier replies of a conversation, each with its
    eos, oldest first. They carry loss in SFT as the completion does."""

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)

    @property
    def learned(self) -> int:
        """Tokens that carry loss in SFT."""
        return len(self.completion) + sum(end - start for start, end in self.earlier)


@dataclass(frozen=True)
class Batch:
    """Right-padded sequences and where their completions lie."""

    ids: Tensor
    """(B, T) int64, prompt and completion, right-padded."""
    starts: Tensor
    """(B,) int64, prompt tokens of each row."""
    completion_ids: Tensor
    """(B, C) int64, right-padded."""
    completion_mask: Tensor
    """(B, C) bool, True on completion tokens."""

    @property
    def last(self) -> Tensor:
        """(B,) int64, position of the last token; that of the prompt if the completion is empty."""
        return self.starts + self.completion_mask.sum(1) - 1

    def states(self, hidden: Tensor) -> Tensor:
        """(N, H) of (B, T, H): the state *before* each of the N completion tokens, row by row."""
        rows, columns = self.completion_mask.nonzero(as_tuple=True)
        return hidden[rows, self.starts[rows] + columns - 1]

    def spread(self, flat: Tensor) -> Tensor:
        """(B, C) of (N,) values of the completion tokens; 0 where masked."""
        out = torch.zeros(self.completion_mask.shape, dtype=flat.dtype, device=flat.device)
        return out.masked_scatter(self.completion_mask, flat)


def prompt_ids(base: Base, template: str, row: Instruction) -> tuple[int, ...]:
    """Token ids of a rendered prompt, from bos to where the completion starts.

    Raises:
        UserError: The template is `chat`, and the tokenizer has none.
    """
    if template == "chat":
        return chat_ids(base, row)
    return prompt_turns(base, template, row)[0]


def example(
    base: Base, template: str, row: Instruction, completion: str, *, finished: bool = True
) -> Example:
    """A prompt with its completion; eos ends it unless it was cut.

    The completion's tokens are those it has in the rendered whole wherever the prompt's own tokens
    are a prefix of the whole's, as they are when the policy generates. So are those of the earlier
    replies of a conversation, each of which eos ends.

    Raises:
        UserError: The template is `chat`, and the tokenizer has none, or one in which the earlier
            replies of a conversation cannot be found.
    """
    prompt, earlier = prompt_turns(base, template, row)
    ids = last_reply_ids(base, template, row, completion)
    return Example(prompt, (*ids, base.eos_id) if finished else tuple(ids), earlier)


def segments(base: Base, one: Example) -> list[Segment]:
    """An example as text with its special tokens, in pieces that carry loss in SFT or do not.

    Together they are the decoded whole.
    """
    ids = one.prompt + one.completion
    edges = [0, *(at for span in one.earlier for at in span), len(one.prompt), len(ids)]
    whole, *rest = (str(base.tokenizer.decode(list(ids[:at]))) for at in (len(ids), *edges))
    cuts = [len(text) for text in rest[:-1]] + [len(whole)]
    return [
        (whole[start:end], bool(number % 2))
        for number, (start, end) in enumerate(pairwise(cuts))
        if end > start
    ]


def answer(base: Base, template: str, ids: Sequence[int]) -> str:
    """The text of a completion's ids, without what the template puts before it."""
    return decode(base, ids).removeprefix(lead(template))


def collate(base: Base, examples: Sequence[Example]) -> Batch:
    """Pad examples to one batch on the base's device."""
    width = max(len(one) for one in examples)
    ids = torch.full((len(examples), width), base.pad_id)
    columns = max(1, max(len(one.completion) for one in examples))
    completion_ids = torch.full((len(examples), columns), base.pad_id)
    mask = torch.zeros((len(examples), columns), dtype=torch.bool)
    for i, one in enumerate(examples):
        ids[i, : len(one)] = torch.tensor(one.prompt + one.completion)
        completion_ids[i, : len(one.completion)] = torch.tensor(one.completion, dtype=torch.int64)
        mask[i, : len(one.completion)] = True
    starts = torch.tensor([len(one.prompt) for one in examples])
    device = base.device
    return Batch(ids.to(device), starts.to(device), completion_ids.to(device), mask.to(device))


def left_pad(base: Base, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """(B, P) int64 ids and (B, P) bool mask of prompts, padded on the left, for the decode loop."""
    width = max(len(one) for one in prompts)
    ids = torch.full((len(prompts), width), base.pad_id)
    mask = torch.zeros((len(prompts), width), dtype=torch.bool)
    for i, one in enumerate(prompts):
        ids[i, width - len(one) :] = torch.tensor(list(one))
        mask[i, width - len(one) :] = True
    return ids.to(base.device), mask.to(base.device)


def from_rollout(rollout: Rollout) -> Batch:
    """The same sequences, prompt padding moved to the right end."""
    ids = torch.cat([rollout.prompt_ids, rollout.completion_ids], 1)
    mask = torch.cat([rollout.prompt_mask, rollout.completion_mask], 1)
    order = torch.argsort((~mask).to(torch.int8), dim=1, stable=True)
    width = int(mask.sum(1).max())
    compact = ids.gather(1, order)[:, :width]
    return Batch(
        compact, rollout.prompt_mask.sum(1), rollout.completion_ids, rollout.completion_mask
    )


def by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices in groups of `size`, rows of like length together, longest first.

    So there is little padding, and what does not fit into memory fails early.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return [order[i : i + size] for i in range(0, len(order), size)]
