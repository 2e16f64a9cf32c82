"""Rankings and pairs as groups of examples for the reward model."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

from alpaca_rlhf.core.records import Completion, Instruction, PreferencePair, Ranking, content_hash
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.batches import Example, example

Pairs = tuple[tuple[int, int], ...]
"""Indices of two completions of a group each, the better one first where one is better."""


@dataclass(frozen=True)
class Group:
    """One ranking, ready for training."""

    prompt_id: str
    """No split ever parts a group."""
    examples: tuple[Example, ...]
    """Its K completions."""
    pairs: Pairs
    """(better, worse) indices of all untied pairs."""
    apart: tuple[int, ...] = ()
    """For each pair, how many tiers down the worse one stands; empty where there are no tiers."""
    margins: tuple[float, ...] = ()
    """For each pair, how much better the better one is; multiplies `--reward.margin`. Empty is 0
    for all."""
    ties: Pairs = ()
    """Pairs of one tier to learn from; empty unless `--reward.ties soft`."""
    criteria: Mapping[str, Pairs] = field(default_factory=dict)
    """For each criterion, (better, worse) indices of the pairs whose stars differ."""


def from_rankings(
    adapters: Adapters,
    rankings: Iterable[Ranking],
    prompts: Mapping[str, Instruction],
    completions: Mapping[str, Completion],
    *,
    ties: bool = False,
) -> list[Group]:
    """One group a ranking, with all pairs of different tiers; where there is none, no group.

    Two completions with the same text give no pair: there is nothing to learn from them. Neither
    do two with the same stars, or without stars, for the criterion in question. A pair's margin is
    its tiers apart / (K - 1), so 1 for the first and last of K completions that all differ.

    Args:
        adapters: The adapters of the base.
        rankings: What annotators said.
        prompts: By id.
        completions: By id.
        ties: Whether two completions of one tier are a pair without a winner.
    """
    groups = []
    for ranking in rankings:
        ids = [one for tier in ranking.tiers for one in tier]
        tier_of = [t for t, tier in enumerate(ranking.tiers) for _ in tier]
        texts = [completions[one].text for one in ids]
        # the best tier comes first, so the first of two is never the worse one
        two = [(i, j) for i, j in combinations(range(len(ids)), 2) if texts[i] != texts[j]]
        pairs = tuple((i, j) for i, j in two if tier_of[i] < tier_of[j])
        even = tuple((i, j) for i, j in two if tier_of[i] == tier_of[j])
        if pairs or (ties and even):
            prompt = prompts[ranking.prompt_id]
            apart = tuple(tier_of[j] - tier_of[i] for i, j in pairs)
            groups.append(
                Group(
                    ranking.prompt_id,
                    tuple(completion_example(adapters, prompt, completions[one]) for one in ids),
                    pairs,
                    apart,
                    tuple(one / (len(ids) - 1) for one in apart),
                    even if ties else (),
                    dict(_by_stars(ranking, ids, two)),
                )
            )
    return groups


def _by_stars(
    ranking: Ranking, ids: Sequence[str], two: Sequence[tuple[int, int]]
) -> Iterator[tuple[str, Pairs]]:
    """Criterion by criterion, the pairs whose stars differ, the one with more stars first."""
    for name in sorted({name for given in ranking.criteria.values() for name in given}):
        stars = [ranking.criteria.get(one, {}).get(name) for one in ids]
        pairs = []
        for i, j in two:
            one, other = stars[i], stars[j]
            if one is not None and other is not None and one != other:
                pairs.append((i, j) if one > other else (j, i))
        if pairs:
            yield name, tuple(pairs)


def from_pairs(adapters: Adapters, pairs: Iterable[Sequence[PreferencePair]]) -> list[Group]:
    """One group a prompt; a completion that stands in several pairs gets one forward."""
    groups = []
    for own in pairs:
        texts = list(dict.fromkeys(text for pair in own for text in (pair.chosen, pair.rejected)))
        place = {text: i for i, text in enumerate(texts)}
        made = tuple(
            example(adapters.base, adapters.template, own[0].prompt, text) for text in texts
        )
        groups.append(
            Group(
                own[0].group,
                made,
                tuple((place[p.chosen], place[p.rejected]) for p in own),
                margins=tuple(p.margin for p in own),
            )
        )
    return groups


def usable(groups: Sequence[Group], max_length: int) -> list[Group]:
    """Groups without completions longer than the limit, and without those left with no pair."""
    out = []
    for group in groups:
        keep = [i for i, one in enumerate(group.examples) if len(one) <= max_length]
        place = {i: n for n, i in enumerate(keep)}
        whole = [a in place and b in place for a, b in group.pairs]

        def moved(pairs: Pairs, place: Mapping[int, int] = place) -> Pairs:
            return tuple((place[a], place[b]) for a, b in pairs if a in place and b in place)

        criteria = {name: moved(own) for name, own in group.criteria.items()}
        left = Group(
            group.prompt_id,
            tuple(group.examples[i] for i in keep),
            moved(group.pairs),
            tuple(one for one, kept in zip(group.apart, whole, strict=False) if kept),
            tuple(one for one, kept in zip(group.margins, whole, strict=False) if kept),
            moved(group.ties),
            {name: own for name, own in criteria.items() if own},
        )
        if left.pairs or left.ties:
            out.append(left)
    return out


def split_held_out(groups: Sequence[Group], share: float) -> tuple[list[Group], list[Group]]:
    """Training and held-out groups.

    A group's side depends on its prompt alone, so no prompt is ever on both.
    """
    bound = int(share * 2**32)
    side = [int(content_hash("reward", g.prompt_id)[:8], 16) < bound for g in groups]
    return [g for g, out in zip(groups, side, strict=True) if not out], [
        g for g, out in zip(groups, side, strict=True) if out
    ]


def shuffled(groups: Sequence[Group], seed: int) -> list[Group]:
    """The control: a group's completions change places at random, so its verdicts say nothing."""
    out = []
    for group in groups:
        order = list(range(len(group.examples)))
        random.Random(f"{seed}/{group.prompt_id}").shuffle(order)
        out.append(replace(group, examples=tuple(group.examples[i] for i in order)))
    return out


def completion_example(adapters: Adapters, prompt: Instruction, completion: Completion) -> Example:
    """A sampled completion as an example; eos ends it only if the model ended it."""
    finished = completion.finish_reason == "eos"
    return example(adapters.base, adapters.template, prompt, completion.text, finished=finished)
