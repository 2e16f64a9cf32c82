"""Rankings and pairs as groups of examples for the reward model."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.batches import Example, example
from alpaca_rlhf.records import Completion, Instruction, PreferencePair, Ranking, content_hash
from alpaca_rlhf.training.reward import Group


def from_rankings(
    adapters: Adapters,
    rankings: Iterable[Ranking],
    prompts: Mapping[str, Instruction],
    completions: Mapping[str, Completion],
) -> list[Group]:
    """One group a ranking, with all pairs of different tiers; where there is none, no group.

    Two completions with the same text give no pair: there is nothing to learn from them.
    """
    groups = []
    for ranking in rankings:
        ids = [one for tier in ranking.tiers for one in tier]
        tier_of = [t for t, tier in enumerate(ranking.tiers) for _ in tier]
        pairs = tuple(
            (i, j)
            for i, a in enumerate(ids)
            for j, b in enumerate(ids)
            if tier_of[i] < tier_of[j] and completions[a].text != completions[b].text
        )
        if pairs:
            prompt = prompts[ranking.prompt_id]
            made = tuple(completion_example(adapters, prompt, completions[one]) for one in ids)
            groups.append(Group(ranking.prompt_id, made, pairs))
    return groups


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
            Group(own[0].group, made, tuple((place[p.chosen], place[p.rejected]) for p in own))
        )
    return groups


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
