"""Rankings and pairs as groups of examples for the reward model."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import torch
from torch import Tensor

from alpaca_rlhf.core.records import Completion, Instruction, PreferencePair, Ranking
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.batches import Example, example
from alpaca_rlhf.training.held_out_split import split_by_hash

Pairs = tuple[tuple[int, int], ...]
"""Indices of two completions of a group each, the better one first where one is better."""


@dataclass(frozen=True)
class Group:
    """One ranking, ready for training."""

    prompt_id: str
    """Prompt of the ranking; a group is never divided between splits."""
    examples: tuple[Example, ...]
    """Its K completions."""
    pairs: Pairs
    """(better, worse) indices of all untied pairs."""
    tier_gaps: tuple[int, ...] = ()
    """For each pair, how many tiers lower the worse one is; empty where there are no tiers."""
    margins: tuple[float, ...] = ()
    """For each pair, how much better the better one is; multiplied by `--reward.margin`. Empty is
    0 for all."""
    ties: Pairs = ()
    """Pairs of one tier to learn from; empty unless `--reward.ties soft`."""
    criteria: Mapping[str, Pairs] = field(default_factory=dict)
    """For each criterion, (better, worse) indices of the pairs whose stars differ."""
    # Not in the digest of the rankings, so that runs begun before it go on.
    samples: tuple[int, ...] = field(default=(), repr=False)
    """Number of each completion among the samples of its prompt; empty where nobody knows."""


def from_rankings(
    adapters: Adapters,
    rankings: Iterable[Ranking],
    prompts: Mapping[str, Instruction],
    completions: Mapping[str, Completion],
    *,
    ties: bool = False,
) -> list[Group]:
    """One group for each ranking that has a pair of different tiers.

    Two completions with the same text form no pair: there is nothing to learn from them. For a
    criterion, neither do two with the same stars or without stars. A pair's margin is its tier gap
    / (K - 1), so 1 for the first and last of K completions that all differ.

    Args:
        adapters: Adapters on the base.
        rankings: Verdicts of annotators.
        prompts: By id.
        completions: By id.
        ties: Let two completions of one tier be a pair without a winner.
    """
    groups = []
    for ranking in rankings:
        # 1. Completions from the best tier down, with the tier of each.
        ids = [completion_id for tier in ranking.tiers for completion_id in tier]
        tier_of = [number for number, tier in enumerate(ranking.tiers) for _ in tier]
        texts = [completions[completion_id].text for completion_id in ids]
        # 2. All pairs of different texts; in this order the first is never the worse one.
        distinct = [(i, j) for i, j in combinations(range(len(ids)), 2) if texts[i] != texts[j]]
        pairs = tuple((i, j) for i, j in distinct if tier_of[i] < tier_of[j])
        tied_pairs = tuple((i, j) for i, j in distinct if tier_of[i] == tier_of[j])
        if not pairs and not (ties and tied_pairs):
            continue
        # 3. The group, with margins from the tier gaps.
        prompt = prompts[ranking.prompt_id]
        tier_gaps = tuple(tier_of[j] - tier_of[i] for i, j in pairs)
        groups.append(
            Group(
                ranking.prompt_id,
                tuple(
                    completion_example(adapters, prompt, completions[completion_id])
                    for completion_id in ids
                ),
                pairs,
                tier_gaps,
                tuple(tier_gap / (len(ids) - 1) for tier_gap in tier_gaps),
                tied_pairs if ties else (),
                dict(_pairs_by_criterion(ranking, ids, distinct)),
                _sample_numbers([completions[completion_id] for completion_id in ids]),
            )
        )
    return groups


def _sample_numbers(completions: Sequence[Completion]) -> tuple[int, ...]:
    """The number of each among the samples of its prompt; empty where nobody knows.

    Texts of a file are numbered as they stand there, which may well be from best to worst.
    """
    numbers = tuple(completion.sample for completion in completions)
    sampled_here = all(completion.adapter for completion in completions)
    return numbers if sampled_here and len(set(numbers)) == len(numbers) else ()


def _pairs_by_criterion(
    ranking: Ranking, ids: Sequence[str], pairs: Sequence[tuple[int, int]]
) -> Iterator[tuple[str, Pairs]]:
    """For each criterion, the pairs whose stars differ, the one with more stars first."""
    names = {name for stars_by_name in ranking.criteria.values() for name in stars_by_name}
    for name in sorted(names):
        stars = [ranking.criteria.get(completion_id, {}).get(name) for completion_id in ids]
        ordered = []
        for i, j in pairs:
            stars_i, stars_j = stars[i], stars[j]
            if stars_i is not None and stars_j is not None and stars_i != stars_j:
                ordered.append((i, j) if stars_i > stars_j else (j, i))
        if ordered:
            yield name, tuple(ordered)


def from_pairs(adapters: Adapters, pairs: Iterable[Sequence[PreferencePair]]) -> list[Group]:
    """One group for each prompt's pairs; a completion in several pairs gets one forward."""
    groups = []
    for prompt_pairs in pairs:
        texts = list(
            dict.fromkeys(text for pair in prompt_pairs for text in (pair.chosen, pair.rejected))
        )
        index = {text: i for i, text in enumerate(texts)}
        prompt = prompt_pairs[0].prompt
        groups.append(
            Group(
                prompt_pairs[0].group,
                tuple(example(adapters.base, adapters.template, prompt, text) for text in texts),
                tuple((index[pair.chosen], index[pair.rejected]) for pair in prompt_pairs),
                margins=tuple(pair.margin for pair in prompt_pairs),
            )
        )
    return groups


def usable(groups: Sequence[Group], max_length: int) -> list[Group]:
    """Groups without completions longer than the limit, and without groups left with no pair."""
    usable_groups = []
    for group in groups:
        keep = [i for i, example in enumerate(group.examples) if len(example) <= max_length]
        new_index = {i: n for n, i in enumerate(keep)}
        pair_kept = [a in new_index and b in new_index for a, b in group.pairs]

        def reindexed(pairs: Pairs, new_index: Mapping[int, int] = new_index) -> Pairs:
            return tuple(
                (new_index[a], new_index[b]) for a, b in pairs if a in new_index and b in new_index
            )

        criteria = {name: reindexed(pairs) for name, pairs in group.criteria.items()}
        shortened = Group(
            group.prompt_id,
            tuple(group.examples[i] for i in keep),
            reindexed(group.pairs),
            tuple(gap for gap, is_kept in zip(group.tier_gaps, pair_kept, strict=False) if is_kept),
            tuple(
                margin for margin, is_kept in zip(group.margins, pair_kept, strict=False) if is_kept
            ),
            reindexed(group.ties),
            {name: pairs for name, pairs in criteria.items() if pairs},
            tuple(group.samples[i] for i in keep) if group.samples else (),
        )
        if shortened.pairs or shortened.ties:
            usable_groups.append(shortened)
    return usable_groups


def split_held_out(groups: Sequence[Group], share: float) -> tuple[list[Group], list[Group]]:
    """Training and held-out groups.

    A group's side depends on its prompt alone, so no prompt is ever on both.
    """
    return split_by_hash(groups, [group.prompt_id for group in groups], share, salt="reward")


def pair_indices(pairs: Pairs, like: Tensor) -> Tensor:
    """(M, 2) int64 indices on the device of another tensor."""
    return torch.tensor(pairs, dtype=torch.int64, device=like.device).view(-1, 2)


def shuffled(groups: Sequence[Group], seed: int) -> list[Group]:
    """The control: each group's completions permuted at random, so that its verdicts are noise."""
    shuffled_groups = []
    for group in groups:
        order = list(range(len(group.examples)))
        random.Random(f"{seed}/{group.prompt_id}").shuffle(order)
        examples = tuple(group.examples[i] for i in order)
        samples = tuple(group.samples[i] for i in order) if group.samples else ()
        shuffled_groups.append(replace(group, examples=examples, samples=samples))
    return shuffled_groups


def completion_example(adapters: Adapters, prompt: Instruction, completion: Completion) -> Example:
    """A sampled completion as an example; eos ends it only if the model ended it."""
    finished = completion.finish_reason == "eos"
    return example(adapters.base, adapters.template, prompt, completion.text, finished=finished)
