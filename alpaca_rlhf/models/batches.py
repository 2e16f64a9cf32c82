"""Text to tensors: the only place that tokenises prompts, pads and masks.

For training and scoring, rows are right-padded and carry no attention mask: under causal attention
a real token never sees a pad. Only the decode loop pads on the left. Masks are carried, never
inferred from ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alpaca_rlhf.config import UserError
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

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


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


_ANCHOR = "."
"""Stands before a completion, where LLaMA-2's tokenizers would add a blank, or drop one."""


def _encode(base: Base, text: str) -> list[int]:
    encoding = base.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
    return list(encoding["input_ids"])
