"""Judges: programs that put completions in order in place of people, in the same records."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple, Protocol

from alpaca_rlhf.core.records import Completion, Instruction, Ranking, content_hash

JUDGE = "judge:"
"""Prefix of the annotator's name in every ranking that no person made."""

Score = Callable[[Instruction, Completion], float]
"""Rates a completion; higher is better."""


class JudgeIdentity(NamedTuple):
    """A judge under certain settings: asked about a set again, it has nothing new to say."""

    annotator: str
    """Name in its rankings, beginning with `judge:`."""
    settings: str
    """Hash of all that its rankings depend on, apart from the name."""


class Judge(Protocol):
    """An order for the completions of a prompt."""

    @property
    def name(self) -> str:
        """Its name; its rankings are signed `judge:<name>`."""
        ...

    def rank(self, prompt: Instruction, completions: Sequence[Completion]) -> Ranking:
        """The order of two or more completions of one prompt."""
        ...


@dataclass(frozen=True)
class ScoreJudge:
    """A judge that ranks by a score, and errs in a chosen share of verdicts, mostly on near ranks.

    Completions are put in tiers by their true scores. Then the order of the tiers is drawn from
    Mallows' model (each order has probability proportional to q to the power of the pairs it turns
    round), by repeated insertion: tier i is put j places too far up with probability proportional
    to q^j. The q for which the expected share of pairs turned round is exactly `noise` is found for
    each number of tiers. The result is a consistent order, a function of (seed, name, prompt,
    completions) alone; the order of `completions` does not matter.
    """

    name: str
    """Its name."""
    score: Score
    """True score of a completion."""
    noise: float = 0.0
    """Expected share of verdicts between tiers that are turned round; below 0.5."""
    tie_below: float = 0.0
    """A completion less than this below the best of a tier belongs to that tier; so do equals."""
    seed: int = 0
    """Seed of the noise."""

    def __post_init__(self) -> None:
        if not 0 <= self.noise < 0.5:
            raise ValueError(f"noise must be at least 0 and below 0.5, got {self.noise:g}")

    @property
    def identity(self) -> JudgeIdentity:
        """Its name in rankings, and the hash of the noise, the tie threshold and the seed."""
        settings = content_hash(repr(self.noise), repr(self.tie_below), str(self.seed))
        return JudgeIdentity(f"{JUDGE}{self.name}", settings)

    def rank(self, prompt: Instruction, completions: Sequence[Completion]) -> Ranking:
        """The noisy order.

        Raises:
            ValueError: Fewer than two completions, one of another prompt, or a score that is not a
                number.
        """
        # 1. The tiers by true score, and the dispersion that turns round the wanted share.
        tiers = self._tiers(prompt, completions)
        q = dispersion(len(tiers), self.noise)
        rng = random.Random(f"{self.seed}/{self.name}/{prompt.id}")
        # 2. Repeated insertion, the best tier first.
        order: list[tuple[str, ...]] = []
        for rank, tier in enumerate(tiers):
            weights = [q**places for places in range(rank + 1)]
            places = rng.choices(range(rank + 1), weights)[0]
            order.insert(rank - places, tier)
        return Ranking(prompt.id, tuple(order), f"{JUDGE}{self.name}")

    def _tiers(
        self, prompt: Instruction, completions: Sequence[Completion]
    ) -> list[tuple[str, ...]]:
        best_first = []
        for completion in completions:
            if completion.prompt_id != prompt.id:
                raise ValueError(
                    f"completion {completion.id} belongs to prompt {completion.prompt_id}, "
                    f"not to {prompt.id}"
                )
            score = self.score(prompt, completion)
            if not math.isfinite(score):
                raise ValueError(f"judge {self.name}: completion {completion.id} scores {score}")
            best_first.append((-score, completion.id))
        best_first.sort()
        tiers: list[list[str]] = []
        top = math.inf
        for negated_score, completion_id in best_first:
            if not tiers or (negated_score != top and negated_score - top >= self.tie_below):
                tiers.append([])
                top = negated_score
            tiers[-1].append(completion_id)
        return [tuple(tier) for tier in tiers]


@lru_cache
def dispersion(tiers: int, noise: float) -> float:
    """Mallows' q that turns round an expected share `noise` of the pairs of a number of tiers."""
    if tiers < 2 or noise == 0:
        return 0.0
    pairs = tiers * (tiers - 1) / 2
    # The expected share grows with q, so q is found by bisection.
    low, high = 0.0, 1.0
    for _ in range(60):
        q = (low + high) / 2
        turned = 0.0
        for inserted in range(1, tiers + 1):
            weights = [q**places for places in range(inserted)]
            turned += sum(places * weight for places, weight in enumerate(weights)) / sum(weights)
        low, high = (q, high) if turned / pairs < noise else (low, q)
    return (low + high) / 2


def tied_pairs(rankings: Iterable[Ranking], scores: Mapping[str, float]) -> int:
    """Pairs that share a tier though their scores differ.

    Args:
        rankings: Rankings by score.
        scores: Completion id to its score.
    """
    return sum(
        scores[first] != scores[second]
        for ranking in rankings
        for tier in ranking.tiers
        for first, second in combinations(tier, 2)
    )


def wrong_share(rankings: Iterable[Ranking], scores: Mapping[str, float]) -> float:
    """Share of verdicts (pairs in different tiers) whose order is the reverse of the true scores.

    Args:
        rankings: Verdicts.
        scores: Completion id to its true score. Pairs of equal score are neither right nor wrong:
            not counted.

    Returns:
        A share in [0, 1]; 0 if there are no verdicts.
    """
    wrong = verdicts = 0
    for ranking in rankings:
        for better, worse in combinations(ranking.tiers, 2):
            for first in better:
                for second in worse:
                    verdicts += scores[first] != scores[second]
                    wrong += scores[first] < scores[second]
    return wrong / verdicts if verdicts else 0.0
