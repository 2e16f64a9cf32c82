"""Text to tensors: the only place that tokenises prompts, packs, pads and masks.

For training and scoring, the rows of a batch lie end to end, without padding. Only the decode loop
pads, on the left. Masks are carried, never inferred from ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alpaca_rlhf.config import UserError
from alpaca_rlhf.models.attention import Packing
from alpaca_rlhf.models.base import Base
from alpaca_rlhf.prompts import chat_messages, lead, render
from alpaca_rlhf.records import Instruction, Rollout


@dataclass(frozen=True)
class Example:
    """One prompt and one completion, as token ids."""

    prompt: tuple[int, ...]
    """Starts with bos, if the tokenizer has one, exactly once."""
    completion: tuple[int, ...]
    """Ends with eos unless it was cut."""
    earlier: tuple[tuple[int, int], ...] = ()
    """(start, end) in the prompt of the replies of earlier turns, each with its eos; SFT learns
    them too."""

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)

    @property
    def taught(self) -> int:
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
    def taught(self) -> Tensor:
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
        if base.tokenizer.chat_template is None:
            raise UserError(
                f"--template chat: the tokenizer of {base.name} has no chat template; "
                "use --template alpaca or --template brief"
            )
        ids = base.tokenizer.apply_chat_template(
            chat_messages(row),
            add_generation_prompt=True,
            return_dict=False,
            sanitize_control_tokens=True,
        )
        return tuple(ids)
    return text_ids(base, render(template, row))


def text_ids(base: Base, text: str) -> tuple[int, ...]:
    """Token ids of plain text after bos. Text never becomes a special token, whatever it says."""
    ids = _encode(base, text)
    bos = base.tokenizer.bos_token_id
    return (bos, *ids) if bos is not None else tuple(ids)


def example(
    base: Base, template: str, row: Instruction, completion: str, *, finished: bool = True
) -> Example:
    """A prompt with its completion; eos ends it unless it was cut.

    The completion's tokens are those it has in the rendered whole wherever the prompt's own tokens
    are a prefix of the whole's, as they are when the policy generates.
    """
    prompt = prompt_ids(base, template, row)
    completion = lead(template) + completion
    ids: list[int] | None = None
    if template != "chat":
        whole = text_ids(base, render(template, row) + completion)
        if whole[: len(prompt)] == prompt:
            ids = list(whole[len(prompt) :])
    if ids is None:
        anchor, whole_ids = _encode(base, _ANCHOR), _encode(base, _ANCHOR + completion)
        fits = whole_ids[: len(anchor)] == anchor
        ids = whole_ids[len(anchor) :] if fits else _encode(base, completion)
    return Example(prompt, (*ids, base.eos_id) if finished else tuple(ids))


def decode(base: Base, ids: Sequence[int]) -> str:
    """The text of ids as they go on after other text, special tokens left out."""
    anchor = _encode(base, _ANCHOR)
    before, whole = (
        str(base.tokenizer.decode(one, skip_special_tokens=True))
        for one in (anchor, [*anchor, *ids])
    )
    return whole[len(before) :]


def answer(base: Base, template: str, ids: Sequence[int]) -> str:
    """The text of a completion's ids, without what the template puts before it."""
    return decode(base, ids).removeprefix(lead(template))


def collate(base: Base, examples: Sequence[Example]) -> Batch:
    """Examples as one batch on the base's device."""
    packing = Packing.of([len(one) for one in examples], torch.device("cpu"))
    columns = max(1, max(len(one.completion) for one in examples))
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


_ANCHOR = "."
"""Stands before a completion, where LLaMA-2's tokenizers would add a blank, or drop one."""


def _encode(base: Base, text: str) -> list[int]:
    encoding = base.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
    return list(encoding["input_ids"])
