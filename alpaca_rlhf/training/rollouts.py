"""Rollouts: completions sampled from the policy, and their scores and log-probabilities.

Shared by the policies that learn from a reward of their own completions. Log-probabilities come
from the training forward, not from the decode loop, and are those of the temperature that the
completions were sampled at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice

import torch
from torch import Tensor

from alpaca_rlhf.core import processes
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Rollout
from alpaca_rlhf.core.sizes import most_prompts
from alpaca_rlhf.models import scoring
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.batches import (
    Batch,
    Example,
    TokenCounts,
    collate,
    longest_first,
    prompt_runs,
    rollout_examples,
    within_budget,
)
from alpaca_rlhf.models.devices import float64
from alpaca_rlhf.models.heads import ScalarHead
from alpaca_rlhf.models.oom_retry import MicroBatch
from alpaca_rlhf.models.rollout import SampledCompletion, sample
from alpaca_rlhf.settings import PPO, GroupPolicy, Sampling
from alpaca_rlhf.training.loop import batches
from alpaca_rlhf.training.losses import kl_k1, kl_k3, masked_mean

MAX_MISSING_EOS_SCORE = -1.0
"""Score of a completion that does not stop, unless a finished one of its batch is worse, on the
normalised scale (openai/lm-human-preferences@cbfd210 train_policy.py:388)."""


@dataclass(frozen=True)
class RolloutPrompt:
    """A prompt of the ppo split."""

    key: str
    """Names its sampling noise: the prompt's id."""
    ids: tuple[int, ...]
    """Token ids from bos to where the completion starts."""


CompletionMetrics = Callable[
    [Sequence[RolloutPrompt], Sequence[SampledCompletion]], dict[str, float]
]
"""Measures the completions of an update for the report; never influences the training."""

RewardScores = Callable[[Sequence[RolloutPrompt], Sequence[SampledCompletion]], Sequence[float]]
"""Scores completions in a reward model's place, on its scale: SFT has mean 0, deviation 1."""


def no_metrics(
    prompts: Sequence[RolloutPrompt], completions: Sequence[SampledCompletion]
) -> dict[str, float]:
    """Measure nothing."""
    return {}


@dataclass(frozen=True)
class ScoreShaping:
    """The way from a reward model's scores to those that a policy learns from."""

    clip: float
    """Scores are clipped to +- this; 0 switches it off."""
    missing_eos: float | None
    """Score of a completion that does not stop; None gives it the lowest of the finished ones."""

    def __call__(self, scores: Tensor, finished: Tensor) -> Tensor:
        """(B,) scores, clipped; a completion that does not stop does not get its own."""
        if self.clip > 0:
            scores = scores.clamp(-self.clip, self.clip)
        unfinished = missing_eos_score(scores[finished], self.missing_eos)
        return torch.where(finished, scores, torch.full_like(scores, unfinished))


def missing_eos_score(finished_scores: Tensor, fixed: float | None) -> float:
    """Score of the completions of a rollout batch that do not stop.

    Args:
        finished_scores: (N,) clipped scores of those that stop; may be empty.
        fixed: A number is taken as it is.
    """
    if fixed is not None:
        return fixed
    return min([MAX_MISSING_EOS_SCORE, *map(float, finished_scores)])


def prompt_order(n: int, size: int, updates: int, seed: int) -> list[list[int]]:
    """Prompt indices of every update: no prompt twice in an epoch, and only whole batches."""
    epochs = -(-updates // (n // size))
    whole_batches = [batch for batch in batches(n, size, epochs, seed) if len(batch) == size]
    return whole_batches[:updates]


def refuse_too_few(flag: str, size: int, prompts: Sequence[RolloutPrompt]) -> None:
    """Refuse an update that needs more prompts than there are.

    Raises:
        UserError: Names the flag.
    """
    if len(prompts) < size:
        raise UserError(f"{flag} {size} needs as many prompts; the ppo split has {len(prompts)}")


def sample_from_policy(
    adapters: Adapters,
    prompts: Sequence[RolloutPrompt],
    update: int,
    *,
    k: int = 1,
    sampling: Sampling,
    seed: int,
) -> list[SampledCompletion]:
    """Sample K completions of each prompt from the current policy, prompt by prompt.

    Of several processes each samples those of its share of the prompts; all hold all.
    """
    local_prompts = processes.share(prompts)
    local_samples = sample(
        adapters,
        "policy",
        [prompt.ids for prompt in local_prompts],
        [f"{update}/{prompt.key}" for prompt in local_prompts],
        k=k,
        sampling=sampling,
        seed=seed,
    )
    return [completion for of_prompt in processes.gather(local_samples) for completion in of_prompt]


def fills_by_tokens(device: torch.device) -> bool:
    """True where short rows join a micro-batch of an update until it has as many tokens as planned.

    They would leave a card idle. Few rows keep a CPU busy; there the parts stay those that
    published results were computed with.
    """
    return device.type != "cpu"


@dataclass(frozen=True)
class MicroBatchedRows:
    """The rows of a rollout, cut into what a step has in memory at once."""

    rollout: Rollout
    """B completions, those of one prompt side by side."""
    settings: PPO | GroupPolicy
    """Their greatest length, and the rows of a minibatch."""
    k: int = 1
    """Completions of each prompt."""

    def parts(self, rows: Tensor, size: int) -> list[Tensor]:
        """Positions in `rows` of each micro-batch.

        Args:
            rows: (R,) int64, rows of the rollout.
            size: Rows in memory at once, each the longest there may be; shorter ones may be more.
        """
        positions = range(len(rows))
        if not fills_by_tokens(self.rollout.prompt_ids.device):
            parts = [list(positions[start : start + size]) for start in positions[::size]]
        elif self.k > 1:  # completions of a prompt stay together
            examples = [[self._examples[row]] for row in rows.tolist()]
            parts = within_budget(examples, size, self._budget(size))
        else:
            parts = longest_first(
                [self._examples[row] for row in rows.tolist()], size, self._budget(size)
            )
        return [torch.tensor(part, dtype=torch.int64, device=rows.device) for part in parts]

    def _budget(self, size: int) -> TokenCounts:
        """Tokens of the micro-batch of which the plan knows (`planner/peak_memory.py`)."""
        prompt, completion = self.rollout.prompt_ids.shape[1], self.settings.max_new_tokens
        prompts = most_prompts(size, self.k, self.settings.minibatch_size)
        return TokenCounts(
            packed=prompts * prompt + size * completion,
            cells=size * (prompt + completion),
            loss=size * completion,
        )

    @cached_property
    def _examples(self) -> list[Example]:
        return rollout_examples(self.rollout)


class RolloutBatch:
    """Completions of a rollout, packed; each process evaluates its share of the prompts.

    Args:
        adapters: Adapters on the base.
        prompts: B prompts, those of the completions of one prompt side by side.
        completions: One of each.
        micro: Rows in memory at once.
        temperature: Temperature that they were sampled at.
    """

    def __init__(
        self,
        adapters: Adapters,
        prompts: Sequence[RolloutPrompt],
        completions: Sequence[SampledCompletion],
        *,
        micro: MicroBatch,
        temperature: float,
    ) -> None:
        self.adapters, self.micro, self.temperature = adapters, micro, temperature
        base = adapters.base
        self.examples = [
            Example(prompt.ids, completion.ids)
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        self.packed = collate(base, self.examples)
        self._local_runs = processes.share(prompt_runs(self.examples))
        self._local_examples = list(chain.from_iterable(self._local_runs))
        columns = self.packed.completion_mask.shape[1]
        self._local = (
            collate(base, self._local_examples, columns=columns)
            if self._local_examples
            else self.packed
        )
        self.finished = torch.tensor([c.finished for c in completions], device=base.device)

    def all_rows(self, evaluate: Callable[[Batch, int], Sequence[Tensor]]) -> list[Tensor]:
        """Tensors of all rows, from a pass over this process's rows in micro-batches."""
        tensors = (
            self.micro.run(lambda size: evaluate(self._local, size)) if self._local_examples else []
        )
        local_rows = iter(list(zip(*(tensor.cpu() for tensor in tensors), strict=True)))
        runs = processes.gather([list(islice(local_rows, len(run))) for run in self._local_runs])
        rows = list(chain.from_iterable(runs))
        device = self.adapters.base.device
        return [torch.stack(column).to(device) for column in zip(*rows, strict=True)]

    def logprobs(self, role: str) -> tuple[Tensor, Tensor]:
        """(B, C) log-probabilities and (B, C) entropies of the completion tokens."""
        logprobs, entropy = self.all_rows(
            lambda b, n: scoring.logprobs(
                self.adapters, role, b, micro_batch_size=n, temperature=self.temperature
            )
        )
        return logprobs, entropy

    def rewards(self, head: ScalarHead | None, scores_of_judge: Sequence[float] | None) -> Tensor:
        """(B,) scores of the reward adapter, or those of the judge in its place."""
        if head is not None:
            (scores,) = self.all_rows(
                lambda b, n: (scoring.scores(self.adapters, "reward", head, b, micro_batch_size=n),)
            )
            return scores
        assert scores_of_judge is not None
        device = self.adapters.base.device
        return torch.tensor(scores_of_judge, dtype=torch.float32, device=device)

    def metrics(
        self, reward_scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, entropy: Tensor
    ) -> dict[str, float]:
        """Metrics of the rollout to report; scores are those before clipping."""
        mask = self.packed.completion_mask
        return {
            "score": float(float64(reward_scores).mean()),
            "score_std": float(float64(reward_scores).std(correction=0)),
            "kl": float(float64((kl_k1(logprobs, ref_logprobs) * mask).sum(1)).mean()),
            "kl_k3": float(float64((kl_k3(logprobs, ref_logprobs) * mask).sum(1)).mean()),
            "entropy": float(masked_mean(entropy, mask)),
            "stop_rate": float(float64(self.finished).mean()),
            "mean_tokens": float(float64(mask.sum(1)).mean()),
        }
