"""A judge as the reward of the policies, on the scale of a reward model.

Source: learning from verifiable rewards in Tulu 3 (arXiv 2411.15124) section 6. Scores are
normalised as those of a reward model are, so that `--ppo.kl-coef` and `--best-of-k.threshold` mean
the same: completions of SFT have mean 0 and standard deviation 1.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alpaca_rlhf.core import processes
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.scorers import Response
from alpaca_rlhf.judges import Judge
from alpaca_rlhf.models.batches import answer
from alpaca_rlhf.settings.policies import REWARDED_STAGES
from alpaca_rlhf.settings.steps import suffixed
from alpaca_rlhf.stages.context import Context, forget
from alpaca_rlhf.stages.references import finished_or_all, sample_references

_ENTRY = "judge_scale"
"""The ledger's entry on the scale."""


@dataclass(frozen=True)
class JudgeReward:
    """The reward that a judge gives: its score, normalised on completions of SFT."""

    judge: Judge
    mean: float
    """Mean score of SFT's completions."""
    std: float
    """Their standard deviation."""

    def scores(self, responses: Sequence[Response], *, stage: str) -> list[float]:
        """Score responses in the main process, for all; each is scored once.

        Raises:
            JudgeFailure: A response has no score.
        """
        ratings = processes.from_main(lambda: self.judge.scores(responses, stage=stage))
        return [(rating.score - self.mean) / self.std for rating in ratings]

    def to_json(self) -> dict[str, Any]:
        """The ledger's entry: what the scale depends on, and the scale."""
        judge = {"judge": self.judge.title, "digest": self.judge.digest}
        return {**judge, "mean": self.mean, "std": self.std}


def judge_reward(ctx: Context, round_: int) -> JudgeReward:
    """The reward of a run whose judge gives it; the scale is measured once and kept.

    The adapter `sft` must be loaded.

    Raises:
        UserError: The judge gives all completions of SFT the same score.
    """
    judge = ctx.judges.ranks
    assert judge is not None
    entry = ctx.run.done(_ENTRY)
    # The kit's own rules have no digest, so that their name tells them apart.
    same = entry is not None and entry.get("judge", judge.title) == judge.title
    if entry is not None and same and entry["digest"] == judge.digest:
        return JudgeReward(judge, entry["mean"], entry["std"])
    # 1. Another judge, or one that was mended after it failed, begins the policies anew.
    if entry is not None and processes.main():
        for stage in REWARDED_STAGES:
            forget(ctx.run, suffixed(stage, round_))
    processes.wait()
    # 2. Completions of SFT to the first prompts of the ppo split.
    responses = [
        Response(row, answer(ctx.base, ctx.settings.template, completion.ids), completion.finished)
        for row, completion in sample_references(ctx)
    ]
    # 3. Mean and deviation of those that stopped, as PPO scores no other, unless hardly any did.
    responses = finished_or_all(responses, [response.finished for response in responses])
    reference = JudgeReward(judge, 0.0, 1.0).scores(responses, stage=suffixed("ppo", round_))
    mean, std = statistics.fmean(reference), statistics.pstdev(reference)
    if std == 0:
        raise UserError(
            f"--reward.source judge: {judge.title} gives all {len(reference)} completions of SFT "
            f"the score {mean:.2f}, and from equal scores nothing can be learned; take another "
            "judge, or prompts on which SFT does better or worse"
        )
    reward = JudgeReward(judge, mean, std)
    ctx.run.finish(_ENTRY, reward.to_json())
    return reward
