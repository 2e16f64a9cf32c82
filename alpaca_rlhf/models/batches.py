"""Text to tensors: the only module that packs, pads and masks.

For training and scoring, the sequences of a batch lie end to end, without padding; of neighbours
with the same prompt only the first has its tokens. Only the decode loop pads, on the left. Masks
are carried along, never inferred from ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, groupby, islice, pairwise

import torch
from torch import Tensor
from torch.nn.functional import pad

from alpaca_rlhf.core.prompts import Segment
from alpaca_rlhf.core.records import Instruction, Rollout
from alpaca_rlhf.models.attention import Packing, table_cells
from alpaca_rlhf.models.base import Base
from alpaca_rlhf.models.template_traits import end_id
from alpaca_rlhf.models.text_base import TextBase
from alpaca_rlhf.models.turns import (
    chat_ids,
    decode,
    last_reply_ids,
    prompt_turns,
    reply_lead,
    text_ids,
)

__all__ = [
    "Batch",
    "Example",
    "TokenCounts",
    "answer",
    "by_length",
    "by_prompt",
    "chars_of",
    "collate",
    "decode",
    "example",
    "from_rollout",
    "left_pad",
    "longest_first",
    "max_chars",
    "prompt_ids",
    "prompt_runs",
    "rollout_examples",
    "segments",
    "sft_example",
    "text_ids",
    "within_budget",
]


_NORMALISED = 4
"""Characters of a text that a tokenizer's normaliser may join into one, generously."""


@dataclass(frozen=True)
class Example:
    """One prompt and one completion, as token ids."""

    prompt: tuple[int, ...]
    """Token ids; they start with bos, if the tokenizer has one, exactly once."""
    completion: tuple[int, ...]
    """Token ids; they end with the template's end token unless the completion was cut."""
    earlier: tuple[tuple[int, int], ...] = ()
    """(start, end) positions in `prompt` of the earlier replies of a conversation that carry loss
    in SFT as the completion does, each with its end token, oldest first; empty outside SFT."""

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)

    @property
    def loss_tokens(self) -> int:
        """Number of tokens that carry loss in SFT."""
        return len(self.completion) + sum(end - start for start, end in self.earlier)


@dataclass(frozen=True)
class TokenCounts:
    """Tokens of some examples in one micro-batch, by what grows with them."""

    packed: int
    """Tokens that go through the linear layers, those of a shared prompt once."""
    cells: int
    """Cells of the attention's tables, padding and shared prompts included."""
    loss: int
    """Tokens that carry loss, and so need the logits of the whole vocabulary."""

    @classmethod
    def of(cls, examples: Sequence[Example]) -> TokenCounts:
        """Counts of examples that `collate` packs in this order."""
        lengths = [len(example) for example in examples]
        loss = sum(example.loss_tokens for example in examples)
        return cls(sum(lengths) - sum(_prefixes(examples)), table_cells(lengths), loss)

    @classmethod
    def of_longest(cls, max_length: int) -> TokenCounts:
        """Counts of a row of the greatest length, as a plan has them.

        A plan counts loss on the longer half of it or on more (`planner/peak_memory.py`).
        """
        return cls(max_length, max_length, max_length - max_length // 2)

    @classmethod
    def of_largest(cls, parts: Sequence[Sequence[Example]]) -> TokenCounts:
        """The largest of each count over parts that are never divided; 0 without parts."""
        counts = [cls.of(part) for part in parts]
        return cls(
            max((count.packed for count in counts), default=0),
            max((count.cells for count in counts), default=0),
            max((count.loss for count in counts), default=0),
        )

    def times(self, parts: int) -> TokenCounts:
        """Counts of so many parts as large as this."""
        return TokenCounts(parts * self.packed, parts * self.cells, parts * self.loss)

    def fits(self, budget: TokenCounts) -> bool:
        """True if no count is above that of the budget."""
        return (
            self.packed <= budget.packed and self.cells <= budget.cells and self.loss <= budget.loss
        )


@dataclass(frozen=True)
class Batch:
    """B sequences end to end, N tokens in all, and the positions of their M completion tokens.

    Completions in a row that have the same prompt share its tokens, so they go through the base
    once. Each sequence attends to its whole prompt as without; gradients differ by rounding alone.
    """

    ids: Tensor
    """(N,) int64, prompt and completion of each sequence, one sequence after the other; a prompt
    that the sequence before it has too is left out."""
    packing: Packing
    """Position of each sequence in `ids`."""
    starts: Tensor
    """(B,) int64, prompt tokens of each sequence."""
    completion_ids: Tensor
    """(B, C) int64, right-padded."""
    completion_mask: Tensor
    """(B, C) bool, True on completion tokens."""
    earlier: Tensor
    """(E, 2) int64, sequence and position in it of each token of earlier replies."""

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def lengths(self) -> Tensor:
        """(B,) int64, tokens of each sequence."""
        return self.starts + self.completion_mask.sum(1)

    @property
    def last_positions(self) -> Tensor:
        """(B,) int64, position in `ids` of each last token: the prompt's if nothing follows it."""
        return self.packing.index(slice(None), self.lengths - 1)

    @property
    def completion_positions(self) -> Tensor:
        """(M,) int64, positions in `ids` of the completion tokens, row by row."""
        rows, columns = self.completion_mask.nonzero(as_tuple=True)
        return (self.packing.shifts + self.starts)[rows] + columns

    @property
    def loss_positions(self) -> Tensor:
        """(M + E,) int64, positions in `ids` of the tokens that carry loss in SFT."""
        rows, positions = self.earlier.T
        earlier = self.packing.offsets[rows] + positions  # in the prompt, shared or not
        return torch.cat([self.completion_positions, earlier])

    def before(self, positions: Tensor) -> Tensor:
        """(n,) int64, positions in `ids` of the token before each, whose state predicts it.

        Before the first token of a completion it is the prompt's last, shared or not.
        """
        return self.packing.before[positions]

    def spread(self, flat: Tensor) -> Tensor:
        """Lay out (M,) values of the completion tokens as (B, C), 0 where masked."""
        table = torch.zeros(self.completion_mask.shape, dtype=flat.dtype, device=flat.device)
        return table.masked_scatter(self.completion_mask, flat)

    def rows(self, start: int, end: int) -> Batch:
        """Sequences from `start` to before `end`; C stays."""
        packing = self.packing
        numbers = (packing.offsets, packing.prefixes, packing.shifts, self.lengths)
        offsets, prefixes, shifts, lengths = torch.stack(numbers)[:, start:end].tolist()
        ids = self.ids[shifts[0] + prefixes[0] : shifts[-1] + lengths[-1]]
        if prefixes[0]:  # the prompt of the first sequence stands before its neighbours
            ids = torch.cat([self.ids[offsets[0] : offsets[0] + prefixes[0]], ids])
        earlier = self.earlier[(self.earlier[:, 0] >= start) & (self.earlier[:, 0] < end)]
        earlier[:, 0] -= start
        return Batch(
            ids,
            Packing.of(lengths, self.ids.device, [0, *prefixes[1:]]),
            self.starts[start:end],
            self.completion_ids[start:end],
            self.completion_mask[start:end],
            earlier,
        )


def max_chars(base: TextBase, tokens: int) -> int:
    """Characters of a text above which it has more than so many tokens, whatever it says."""
    return _NORMALISED * tokens * max(map(len, base.tokenizer.get_vocab()))


def chars_of(row: Instruction) -> int:
    """Characters of a row's texts, without those of the template."""
    turns = [text for turn in row.history for text in turn]
    return sum(map(len, [row.system, *turns, row.instruction, row.input, row.output or ""]))


def prompt_ids(base: TextBase, template: str, row: Instruction) -> tuple[int, ...]:
    """Token ids of a rendered prompt, from bos to where the completion starts.

    Raises:
        UserError: The template is `chat`, and the tokenizer has none.
    """
    if template == "chat":
        return chat_ids(base, row)
    return prompt_turns(base, template, row)[0]


def example(
    base: TextBase, template: str, row: Instruction, completion: str, *, finished: bool = True
) -> Example:
    """A prompt with its completion, which the template's end token ends unless it was cut.

    That token is eos in the plain templates, and in a chat template the one after a reply. The
    prompt is the one that was sampled from, whatever the template makes of earlier replies: they
    carry no loss here (see `sft_example`).

    The completion's tokens are those it has in the rendered whole wherever the prompt's own tokens
    are a prefix of the whole's, as they are when the policy generates.

    Raises:
        UserError: The template is `chat`, and the tokenizer has none.
    """
    ids = last_reply_ids(base, template, row, completion)
    end = _end_id(base, template)
    return Example(prompt_ids(base, template, row), (*ids, end) if finished else tuple(ids))


def sft_example(base: TextBase, template: str, row: Instruction) -> Example:
    """A row to learn from: its output carries loss, and so do the earlier replies before it.

    Those in `row.masked_replies` carry none; where that is all of them, the template may alter
    them.

    Raises:
        LostReply: The chat template alters an earlier reply, so that it cannot be learned from.
        UserError: The template is `chat`, and the tokenizer has none.
    """
    output = row.output or ""
    learned = {*range(len(row.history))} - {*row.masked_replies}
    if not learned:
        return example(base, template, row, output)
    prompt, spans = prompt_turns(base, template, row)
    ids = last_reply_ids(base, template, row, output)
    return Example(
        prompt, (*ids, _end_id(base, template)), tuple(spans[number] for number in sorted(learned))
    )


def _end_id(base: TextBase, template: str) -> int:
    return end_id(base.tokenizer, template) if template == "chat" else base.eos_id


def segments(base: Base, example: Example) -> list[Segment]:
    """An example as text with its special tokens, in pieces that carry loss in SFT or do not.

    The pieces add up to the text of the whole example.
    """
    ids = example.prompt + example.completion
    # 1. Token positions where a piece starts or ends; pieces without and with loss alternate.
    edges = [0, *chain.from_iterable(example.earlier), len(example.prompt), len(ids)]
    # 2. The same edges in the text: the length of what is decoded up to each.
    text, *prefixes = (str(base.tokenizer.decode(list(ids[:edge]))) for edge in (len(ids), *edges))
    cuts = [len(prefix) for prefix in prefixes[:-1]] + [len(text)]
    return [
        (text[start:end], bool(number % 2))
        for number, (start, end) in enumerate(pairwise(cuts))
        if end > start
    ]


def answer(base: Base, template: str, ids: Sequence[int]) -> str:
    """Text of a completion's ids, without the lead that the template puts before it."""
    return decode(base, ids).removeprefix(reply_lead(base, template))


def collate(base: Base, examples: Sequence[Example], *, columns: int = 1) -> Batch:
    """Pack examples into one batch on the base's device; C is at least `columns`.

    Neighbours with the same prompt share it.
    """
    prefixes = _prefixes(examples)
    lengths = [len(example) for example in examples]
    packing = Packing.of(lengths, torch.device("cpu"), prefixes)
    columns = max(columns, max(len(example.completion) for example in examples))
    completion_ids = torch.full((len(examples), columns), base.pad_id)
    mask = torch.zeros((len(examples), columns), dtype=torch.bool)
    for i, completion in enumerate(example.completion for example in examples):
        completion_ids[i, : len(completion)] = torch.tensor(completion, dtype=torch.int64)
        mask[i, : len(completion)] = True
    earlier = [
        (row, position)
        for row, example in enumerate(examples)
        for start, end in example.earlier
        for position in range(start, end)
    ]
    device = base.device
    ids = chain.from_iterable(
        (example.prompt + example.completion)[prefix:]
        for example, prefix in zip(examples, prefixes, strict=True)
    )
    return Batch(
        torch.tensor(list(ids)).to(device),
        packing.to(device),
        torch.tensor([len(example.prompt) for example in examples]).to(device),
        completion_ids.to(device),
        mask.to(device),
        torch.tensor(earlier, dtype=torch.int64).view(-1, 2).to(device),
    )


def _prefixes(examples: Sequence[Example]) -> list[int]:
    """Prompt tokens that each example shares with the one before it."""
    shared = [
        len(here.prompt) if here.prompt == before.prompt else 0
        for before, here in pairwise(examples)
    ]
    return [0, *shared] if examples else []


def left_pad(base: Base, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Pad prompts on the left for the decode loop: (B, P) int64 ids and (B, P) bool mask."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), base.pad_id)
    mask = torch.zeros((len(prompts), width), dtype=torch.bool)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :] = torch.tensor(list(prompt))
        mask[i, width - len(prompt) :] = True
    return ids.to(base.device), mask.to(base.device)


def from_rollout(rollout: Rollout) -> Batch:
    """Pack the sequences of a rollout, without their padding; neighbours share a prompt."""
    prompts, prompt_mask = rollout.prompt_ids, rollout.prompt_mask
    starts = prompt_mask.sum(1)
    # 1. Rows whose prompt is that of the row before.
    marked = prompts.masked_fill(~prompt_mask, -1)
    is_same = pad((marked[1:] == marked[:-1]).all(1), (1, 0))
    # 2. The ids of every row, without those shared.
    ids = torch.cat([prompts, rollout.completion_ids], 1)
    mask = torch.cat([prompt_mask & ~is_same[:, None], rollout.completion_mask], 1)
    lengths, prefixes = torch.stack(
        [starts + rollout.completion_mask.sum(1), starts * is_same]
    ).tolist()
    return Batch(
        ids[mask],
        Packing.of(lengths, ids.device, prefixes),
        starts,
        rollout.completion_ids,
        rollout.completion_mask,
        ids.new_empty(0, 2),
    )


def rollout_examples(rollout: Rollout) -> list[Example]:
    """The rows of a rollout, without their padding."""

    def unpadded(ids: Tensor, mask: Tensor) -> list[tuple[int, ...]]:
        flat = iter(ids[mask].tolist())
        return [tuple(islice(flat, length)) for length in mask.sum(1).tolist()]

    prompts = unpadded(rollout.prompt_ids, rollout.prompt_mask)
    completions = unpadded(rollout.completion_ids, rollout.completion_mask)
    return [Example(*pair) for pair in zip(prompts, completions, strict=True)]


def prompt_runs(examples: Sequence[Example]) -> list[list[Example]]:
    """Examples in runs of neighbours that have the same prompt, which a batch computes once."""
    return [list(run) for _, run in groupby(examples, key=lambda example: example.prompt)]


def by_prompt(examples: Sequence[Example], size: int) -> list[list[int]]:
    """Indices in batches of at most `size`: the completions of a prompt together, long ones first.

    Only a prompt with more completions than a batch holds is in several. With one completion a
    prompt it is `by_length`.
    """
    # 1. Completions of each prompt, the longest first.
    indices_by_prompt: dict[tuple[int, ...], list[int]] = {}
    for index in by_length([len(example) for example in examples], 1):
        indices_by_prompt.setdefault(examples[index[0]].prompt, []).extend(index)
    # 2. Prompts in the order of their longest completion, into batches.
    batches: list[list[int]] = []
    for indices in indices_by_prompt.values():
        for start in range(0, len(indices), size):
            part = indices[start : start + size]
            if batches and len(batches[-1]) + len(part) <= size:
                batches[-1] += part
            else:
                batches.append(part)
    return batches


def within_budget(
    parts: Sequence[Sequence[Example]], size: int, budget: TokenCounts
) -> list[list[int]]:
    """Indices of neighbouring parts in micro-batches, in order, filled up to a budget of tokens.

    Each has `size` parts, and further ones as long as it has no more tokens than the budget: the
    rows of a micro-batch are not padded, so short ones would waste a card.

    Args:
        parts: Examples that stay together: a row, or all completions of a ranking.
        size: Parts in memory at once, each the largest there may be.
        budget: Tokens of `size` parts of that size.
    """
    batches: list[list[int]] = []
    examples: list[Example] = []
    for index, part in enumerate(parts):
        has_room = batches and (
            len(batches[-1]) < size or TokenCounts.of([*examples, *part]).fits(budget)
        )
        if not has_room:
            batches.append([])
            examples = []
        batches[-1].append(index)
        examples += part
    return batches


def longest_first(examples: Sequence[Example], size: int, budget: TokenCounts) -> list[list[int]]:
    """Indices of rows in micro-batches `within_budget`, rows of similar length together."""
    order = [index for (index,) in by_length([len(example) for example in examples], 1)]
    batches = within_budget([[examples[index]] for index in order], size, budget)
    return [[order[place] for place in places] for places in batches]


def by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices in batches of `size`, rows of similar length together, longest first.

    So there is little padding, and a batch that does not fit into memory fails early.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return [order[i : i + size] for i in range(0, len(order), size)]
