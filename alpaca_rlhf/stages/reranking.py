"""Arms that train nothing: K samples of SFT reranked by a reward model, or by the judge.

The judge's choice is the most that any choice among them can reach.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.core.scorers import Scores
from alpaca_rlhf.evaluation.win_rate import best_of_n_kl
from alpaca_rlhf.models.batches import Example, example, prompt_ids
from alpaca_rlhf.models.scoring import score
from alpaca_rlhf.settings.steps import suffixed
from alpaca_rlhf.stages.arm_answers import Answers, Completion
from alpaca_rlhf.stages.arms import JUDGE
from alpaca_rlhf.stages.context import Context
from alpaca_rlhf.stages.evaluation_judge import EvaluationJudge
from alpaca_rlhf.training.best_of_k import best_sample


@dataclass(frozen=True)
class Pool:
    """K samples of SFT for each prompt, with all that is thought of them."""

    samples: Sequence[Sequence[Completion]]
    """The samples of each prompt."""
    rewards: Mapping[str, Sequence[Sequence[float]]]
    """Scores by reward stage, in the order of the rounds."""
    judged: Sequence[Sequence[Scores]]
    """The judge's scores."""

    def picks(self, reranked_by: str) -> list[int]:
        """Number of the sample of each prompt that a reward stage, or the judge, prefers."""
        if reranked_by == JUDGE:
            return [max(range(len(s)), key=lambda j: s[j].score) for s in self.judged]
        return [
            best_sample(scores, [completion.finished for completion in samples])
            for scores, samples in zip(self.rewards[reranked_by], self.samples, strict=True)
        ]

    def answers(self, picks: Sequence[int], sft: Answers) -> Answers:
        """The samples picked; K greedy answers would all be SFT's."""
        chosen = [samples[pick] for samples, pick in zip(self.samples, picks, strict=True)]
        bound = best_of_n_kl(len(self.samples[0]))
        return Answers(chosen, sft.greedy, {"kl_from_sft_nats": [bound] * len(picks)})

    def scores(self, picks: Sequence[int]) -> list[Scores]:
        """The judge's scores of the samples picked."""
        return [scores[pick] for scores, pick in zip(self.judged, picks, strict=True)]

    def proxy(self, picks: Sequence[int]) -> list[float]:
        """The last reward model's scores of the samples picked."""
        last = self.rewards[[*self.rewards][-1]]
        return [scores[pick] for scores, pick in zip(last, picks, strict=True)]


def reward_stages(ctx: Context) -> list[str]:
    """Reward stages of the run that made a model, round after round."""
    stages = [suffixed("reward", round_) for round_ in range(1, ctx.settings.all_rounds + 1)]
    return [stage for stage in stages if ctx.adapter_folder(stage).is_dir()]


def reward_scores(
    ctx: Context,
    stage: str,
    rows: Sequence[Instruction],
    completions: Sequence[Completion],
    *,
    few_shot: bool = False,
) -> list[float]:
    """Scores of a stage's reward model.

    Answers on a worksheet are read as answers to the run's own template.
    """
    ctx.load("reward", stage)
    base, template = ctx.base, ctx.settings.template
    examples = [
        example(base, template, row, completion.text, finished=completion.finished)
        if few_shot
        else Example(prompt_ids(base, template, row), completion.ids)
        for row, completion in zip(rows, completions, strict=True)
    ]
    size = ctx.settings.sampling.batch_size
    head = ctx.load_head(stage)
    scores: list[float] = score(ctx.adapters, "reward", head, examples, batch_size=size).tolist()
    return scores


def pool_rewards(
    ctx: Context,
    stage: str,
    rows: Sequence[Instruction],
    samples: Sequence[Sequence[Completion]],
) -> list[list[float]]:
    """Scores of a stage's reward model of every sample of each prompt."""
    scores = iter(reward_scores(ctx, stage, *_flat(rows, samples)))
    return [[next(scores) for _ in of_prompt] for of_prompt in samples]


def pool_judged(
    judge: EvaluationJudge,
    rows: Sequence[Instruction],
    samples: Sequence[Sequence[Completion]],
) -> list[list[Scores]]:
    """The judge's scores of every sample of each prompt."""
    scores = iter(judge(*_flat(rows, samples)))
    return [[next(scores) for _ in of_prompt] for of_prompt in samples]


def _flat(
    rows: Sequence[Instruction], pool: Sequence[Sequence[Completion]]
) -> tuple[list[Instruction], list[Completion]]:
    """Every sample of a pool, and the prompt of each."""
    repeated = [row for row, samples in zip(rows, pool, strict=True) for _ in samples]
    return repeated, [completion for samples in pool for completion in samples]
