"""What best-of-K chooses from: K completions of each prompt, with their scores."""

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
    """K independent completions of one prompt, drawn from one policy."""

    key: str
    """Id of the prompt."""
    prompt: tuple[int, ...]
    """Its token ids."""
    completions: tuple[SampledCompletion, ...]
    """In the order of their sample numbers. Two may be equal: each counts."""
    scores: tuple[float, ...]
    """The reward model's score of each."""

    @property
    def examples(self) -> list[Example]:
        """Prompt and completion, each."""
        return [Example(self.prompt, one.ids) for one in self.completions]

    def to_json(self, text: Callable[[Sequence[int]], str]) -> dict[str, Any]:
        """As plain JSON, with the text of each completion for people who read it."""
        return {
            "prompt_id": self.key,
            "prompt": list(self.prompt),
            "completions": [
                {"score": own, "finished": one.finished, "text": text(one.ids), "ids": one.ids}
                for one, own in zip(self.completions, self.scores, strict=True)
            ],
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Candidates:
        """Read what `to_json` made; the same numbers, bit for bit."""
        said = row["completions"]
        return cls(
            key=row["prompt_id"],
            prompt=tuple(row["prompt"]),
            completions=tuple(SampledCompletion(tuple(one["ids"]), one["finished"]) for one in said),
            scores=tuple(one["score"] for one in said),
        )


def draw(
    adapters: Adapters,
    sampler: str,
    reward_head: ScalarHead,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[str],
    *,
    k: int,
    sampling: Sampling,
    seed: int,
    score_batch_size: int,
    on_batch: Callable[[int], None] | None = None,
) -> list[Candidates]:
    """Sample K completions of each prompt, and score them with the reward adapter.

    `on_batch` is told the number of completions that each batch of this process finished.
    """
    share = processes.share(range(len(prompts)))
    drawn: list[list[SampledCompletion]] = processes.gather(
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
    found = [
        Candidates(key, tuple(prompt), tuple(own), (0.0,) * len(own))
        for key, prompt, own in zip(keys, prompts, drawn, strict=True)
    ]
    return rescore(adapters, reward_head, found, batch_size=score_batch_size)


def rescore(
    adapters: Adapters, reward_head: ScalarHead, pool: Sequence[Candidates], *, batch_size: int
) -> list[Candidates]:
    """The same completions with the scores of the reward adapter as it is now."""
    examples = [example for own in pool for example in own.examples]
    mine = score(adapters, "reward", reward_head, processes.share(examples), batch_size=batch_size)
    scores = iter(processes.gather(mine.tolist()))
    return [replace(own, scores=tuple(next(scores) for _ in own.completions)) for own in pool]
