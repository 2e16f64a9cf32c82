"""Text to tensors: the only place that tokenises prompts, packs, pads and masks.

For training and scoring, the rows of a batch lie end to end, without padding. Only the decode loop
pads, on the left. Masks are carried, never inferred from ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from alpaca_rlhf.core.prompts import Segment, lead
from alpaca_rlhf.core.records import Instruction, Rollout
from alpaca_rlhf.models.attention import Packing
from alpaca_rlhf.models.base import Base
from alpaca_rlhf.models.turns import chat_ids, decode, last_reply_ids, prompt_turns, text_ids

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
    """B sequences end to end, and where their completions lie."""

    ids: Tensor
    """(N,) int64, prompt and completion of each sequence, one sequence after the other."""
    packing: Packing
    """Where each sequence lies."""
    starts: Tensor
    """(B,) int64, prompt tokens of each."""
    completion_ids: Tensor
    """(B, C) int64, right-padded."""
    completion_mask: Tensor
    """(B, C) bool, True on completion tokens."""
    earlier: Tensor
    """(E,) int64, places in `ids` of the tokens of earlier replies."""

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def lengths(self) -> Tensor:
        """(B,) int64, tokens of each sequence."""
        return self.starts + self.completion_mask.sum(1)

    @property
    def last(self) -> Tensor:
        """(B,) int64, place in `ids` of each last token: the prompt's if there is no completion."""
        return self.packing.offsets + self.lengths - 1

    @property
    def completion(self) -> Tensor:
        """(M,) int64, places in `ids` of the completion tokens, row by row."""
        rows, columns = self.completion_mask.nonzero(as_tuple=True)
        return self.packing.offsets[rows] + self.starts[rows] + columns

    @property
    def learned(self) -> Tensor:
        """(M + E,) int64, places in `ids` of the tokens that carry loss in SFT."""
        return torch.cat([self.completion, self.earlier])

    def spread(self, flat: Tensor) -> Tensor:
        """(B, C) of (M,) values of the completion tokens; 0 where masked."""
        out = torch.zeros(self.completion_mask.shape, dtype=flat.dtype, device=flat.device)
        return out.masked_scatter(self.completion_mask, flat)

    def part(self, start: int, end: int) -> Batch:
        """The sequences from `start` to before `end`; C stays."""
        lengths = self.lengths[start:end]
        begin, size = int(self.packing.offsets[start]), int(lengths.sum())
        inside = (self.earlier >= begin) & (self.earlier < begin + size)
        return Batch(
            self.ids[begin : begin + size],
            Packing.of(lengths.tolist(), self.ids.device),
            self.starts[start:end],
            self.completion_ids[start:end],
            self.completion_mask[start:end],
            self.earlier[inside] - begin,
        )


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


def collate(base: Base, examples: Sequence[Example], *, columns: int = 1) -> Batch:
    """Examples as one batch on the base's device, its completions in at least so many columns."""
    packing = Packing.of([len(one) for one in examples], torch.device("cpu"))
    columns = max(columns, max(len(one.completion) for one in examples))
    completion_ids = torch.full((len(examples), columns), base.pad_id)
    mask = torch.zeros((len(examples), columns), dtype=torch.bool)
    for i, one in enumerate(examples):
        completion_ids[i, : len(one.completion)] = torch.tensor(one.completion, dtype=torch.int64)
        mask[i, : len(one.completion)] = True
    earlier = [
        offset + place
        for one, offset in zip(examples, packing.offsets.tolist(), strict=True)
        for start, end in one.earlier
        for place in range(start, end)
    ]
    device = base.device
    return Batch(
        torch.tensor([i for one in examples for i in one.prompt + one.completion]).to(device),
        packing.to(device),
        torch.tensor([len(one.prompt) for one in examples]).to(device),
        completion_ids.to(device),
        mask.to(device),
        torch.tensor(earlier, dtype=torch.int64).to(device),
    )


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
    """The same sequences without their padding."""
    ids = torch.cat([rollout.prompt_ids, rollout.completion_ids], 1)
    mask = torch.cat([rollout.prompt_mask, rollout.completion_mask], 1)
    return Batch(
        ids[mask],
        Packing.of(mask.sum(1).tolist(), ids.device),
        rollout.prompt_mask.sum(1),
        rollout.completion_ids,
        rollout.completion_mask,
        ids.new_empty(0),
    )


def by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices in groups of `size`, rows of like length together, longest first.

    So there is little padding, and what does not fit into memory fails early.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return [order[i : i + size] for i in range(0, len(order), size)]
