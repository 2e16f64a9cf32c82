"""Candidates of best-of-K: K completions of each prompt, with their scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from alpaca_rlhf.core import processes
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.batches import Example
from alpaca_rlhf.models.heads import ScalarHead
from alpaca_rlhf.models.rollout import SampledCompletion, sample
from alpaca_rlhf.models.scoring import score
from alpaca_rlhf.settings import Sampling


@dataclass(frozen=True)
class Candidates:
    """K independent completions of one prompt, sampled from one policy."""

    key: str
    """Id of the prompt."""
    prompt: tuple[int, ...]
    """Token ids of the prompt."""
    completions: tuple[SampledCompletion, ...]
    """In the order of their sample numbers. Equal ones each count."""
    scores: tuple[float, ...]
    """Score of each completion, by the reward model or a judge."""

    @property
    def examples(self) -> list[Example]:
        """Each completion with the prompt."""
        return [Example(self.prompt, completion.ids) for completion in self.completions]

    def to_json(self, text: Callable[[Sequence[int]], str]) -> dict[str, Any]:
        """Convert to plain JSON, with the text of each completion for human readers."""
        return {
            "prompt_id": self.key,
            "prompt": list(self.prompt),
            "completions": [
                {
                    "score": score,
                    "finished": completion.finished,
                    "text": text(completion.ids),
                    "ids": completion.ids,
                }
                for completion, score in zip(self.completions, self.scores, strict=True)
            ],
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Candidates:
        """Read the result of `to_json`; the same numbers, bit for bit."""
        completions = row["completions"]
        return cls(
            key=row["prompt_id"],
            prompt=tuple(row["prompt"]),
            completions=tuple(
                SampledCompletion(tuple(c["ids"]), c["finished"]) for c in completions
            ),
            scores=tuple(c["score"] for c in completions),
        )


ScoreCandidates = Callable[[Sequence[Candidates]], list[Candidates]]
"""Scores the completions of candidates, in place of the scores that they have."""


def draw(
    adapters: Adapters,
    sampler: str,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[str],
    *,
    k: int,
    sampling: Sampling,
    seed: int,
    score_candidates: ScoreCandidates,
    on_batch: Callable[[int], None] | None = None,
) -> list[Candidates]:
    """Sample K completions of each prompt, and score them.

    Args:
        adapters: Adapters on the base.
        sampler: Adapter that samples.
        prompts: Token ids of each prompt.
        keys: Id of each prompt, which names its noise.
        k: Completions a prompt.
        sampling: Temperature, top-p, length, batch size.
        seed: Seed of the noise.
        score_candidates: Scores them.
        on_batch: Called with the number of completions that each batch of this process finished.
    """
    share = processes.share(range(len(prompts)))
    completions: list[list[SampledCompletion]] = processes.gather(
        sample(
            adapters,
            sampler,
            [prompts[i] for i in share],
            [keys[i] for i in share],
            k=k,
            sampling=sampling,
            seed=seed,
            on_batch=on_batch,
        )
    )
    unscored = [
        Candidates(key, tuple(prompt), tuple(samples), (0.0,) * len(samples))
        for key, prompt, samples in zip(keys, prompts, completions, strict=True)
    ]
    return score_candidates(unscored)


def rescore(
    adapters: Adapters, reward_head: ScalarHead, pool: Sequence[Candidates], *, batch_size: int
) -> list[Candidates]:
    """The same completions, scored with the current reward adapter."""
    local_pool = processes.share(pool)
    examples = [example for candidates in local_pool for example in candidates.examples]
    scores = score(adapters, "reward", reward_head, examples, batch_size=batch_size)
    sizes = [len(candidates.completions) for candidates in local_pool]
    scores_of_pool = processes.gather(
        [tuple(part.tolist()) for part in scores.split_with_sizes(sizes)]
    )
    return [
        replace(candidates, scores=scores_of_prompt)
        for candidates, scores_of_prompt in zip(pool, scores_of_pool, strict=True)
    ]
