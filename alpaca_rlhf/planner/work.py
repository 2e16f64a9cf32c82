"""Time of every stage, from its floating-point operations and the bytes that decoding reads."""

from __future__ import annotations

import math
from dataclasses import dataclass

from alpaca_rlhf.planner.disk import policy_controls
from alpaca_rlhf.planner.gpu_specs import CPU, REACHED_BANDWIDTH, REACHED_FLOPS, GpuSpec
from alpaca_rlhf.planner.peak_memory import Lengths
from alpaca_rlhf.planner.shapes import Shape
from alpaca_rlhf.settings import PPO, GroupPolicy, Loop

LAUNCH_S = 0.8e-3
"""Seconds of kernel launches for one layer in a decoding step, on any GPU; an estimate."""
TYPICAL = 0.5
"""Length of a typical row, as a share of the longest."""
KEPT_TASKS = 1.0
"""New tasks from each request, after filters; an estimate."""


@dataclass(frozen=True)
class Rates:
    """Rates that a device reaches."""

    tflops: float
    """10^12 floating-point operations a second."""
    bandwidth: float
    """GB read a second."""

    @classmethod
    def reached(cls, gpu: GpuSpec) -> Rates:
        """A share of the data sheet's rates; those of the CPU as they are."""
        if gpu == CPU:
            return cls(gpu.tflops, gpu.bandwidth)
        return cls(gpu.tflops * REACHED_FLOPS, gpu.bandwidth * REACHED_BANDWIDTH)


@dataclass(frozen=True)
class Work:
    """The work of a stage."""

    flops: float = 0.0
    """Floating-point operations, those of decoding included."""
    read: float = 0.0
    """Bytes that decoding reads from memory."""
    steps: float = 0.0
    """Decoding steps."""
    tokens: float = 0.0
    """Tokens sampled, or trained on."""

    def __add__(self, work: Work) -> Work:
        return Work(
            self.flops + work.flops,
            self.read + work.read,
            self.steps + work.steps,
            self.tokens + work.tokens,
        )

    def __mul__(self, times: float) -> Work:
        return Work(self.flops * times, self.read * times, self.steps * times, self.tokens * times)

    def seconds(self, rates: Rates, layers: int) -> float:
        """Time of the operations, plus reading or launching while decoding, whichever is longer."""
        reading = max(self.read / (rates.bandwidth * 1e9), self.steps * layers * LAUNCH_S)
        return self.flops / (rates.tflops * 1e12) + reading


@dataclass(frozen=True)
class Row:
    """A typical sequence."""

    prompt: float
    """Tokens of the prompt."""
    completion: float
    """Tokens of the completion."""
    k: int = 1
    """Completions that share the prompt, which goes through the layers once for all of them."""

    @property
    def length(self) -> float:
        """Tokens that the attention sees."""
        return self.prompt + self.completion

    @property
    def packed(self) -> float:
        """Its share of the tokens that go through the layers."""
        return self.prompt / self.k + self.completion


@dataclass(frozen=True)
class StageWork:
    """Work of a loop's stages.

    Args:
        shape: Sizes of the base.
        settings: Every number of the loop.
        lengths: Lengths that no setting bounds.
        rows: SFT rows.
        checkpointing: Each n-th layer runs its forward twice, none for 0.
    """

    shape: Shape
    settings: Loop
    lengths: Lengths
    rows: int
    checkpointing: int = 1

    def all(self) -> dict[str, Work]:
        """Work of every stage, summed over all rounds."""
        settings, rounds = self.settings, self.settings.all_rounds
        generate, best_of_k = settings.generate, settings.best_of_k
        batch, k = settings.sampling.batch_size, settings.rank.k
        new, prompt = settings.sampling.max_new_tokens * TYPICAL, self.lengths.prompt * TYPICAL
        row = settings.sft.max_length * TYPICAL
        worksheet = self.lengths.worksheet * TYPICAL
        rankings = settings.rank.prompts * k
        candidates = best_of_k.prompts * best_of_k.k
        by_judge = settings.reward.source == "judge"
        winners = best_of_k.prompts * best_of_k.keep * best_of_k.epochs
        reward_models = 2 if settings.reward.control else 1
        # A learning curve trains on a half of the rankings, a quarter of them ...
        subsets = 1 - 0.5**settings.curve_subsets
        # The second reward model learns from the held-out rankings and is measured on the others.
        second = settings.reward.held_out if settings.second_reward else 0.0
        fine_tunings = 2 if best_of_k.control else 1
        prompts = settings.evaluate.prompts * (2 if settings.evaluate.dev else 1)
        compared = 2 * prompts  # sampled and greedy
        reranked = best_of_k.k * prompts if settings.evaluate.rerank else 0
        resampled = max(0, reranked - prompts)  # SFT answers with the first of its K samples
        # Base with and without examples, SFT, and each round's policies with their controls.
        policies = 3 + (len(settings.policy_stages) + len(policy_controls(settings))) * rounds
        return {
            "generate": self._sampled(
                generate.target / KEPT_TASKS,
                worksheet,
                generate.max_new_tokens,
                generate.batch_size,
            ),
            "sft": self._trained(self.rows * settings.sft.epochs, Row(0, row), row),
            "sample": (
                self._sampled(rankings, prompt, new, batch, k) * rounds
                + self._read(rankings, Row(prompt, new, k), 0)
                * ((rounds - 1) * settings.queues_uncertain)
            ),
            "reward": (
                self._trained(rankings * settings.reward.epochs, Row(prompt, new, k), 0)
                * (reward_models + second + subsets)
                + self._read(2 * rankings, Row(prompt, new, k), 0) * (2 if second else 1)
                + self._read(rankings * settings.reward.held_out, Row(prompt, new, k), 0)
                * settings.curve_subsets
            )
            * rounds,
            "ppo": self._ppo(prompt) * (2 if settings.ppo.control else 1) * rounds,
            "best_of_k": (
                self._sampled(candidates, prompt, new, batch, best_of_k.k)
                + self._read(0 if by_judge else candidates, Row(prompt, new, best_of_k.k), 0)
                + self._trained(winners, Row(prompt, new), new) * fine_tunings
            )
            * rounds,
            "dpo": (
                self._read(rankings, Row(prompt, new, k), new)
                + self._trained(rankings * settings.dpo.epochs, Row(prompt, new, k), new)
            )
            * rounds,
            "grpo": self._in_groups(settings.grpo, prompt) * rounds,
            "rloo": self._in_groups(settings.rloo, prompt) * rounds,
            "evaluate": (
                self._sampled(compared, prompt, new, batch)
                + self._read(compared, Row(prompt, new), new)
            )
            * policies
            + self._sampled(resampled, prompt, new, batch, best_of_k.k)
            + self._read(reranked * rounds, Row(prompt, new, best_of_k.k), 0),
        }

    def _ppo(self, prompt: float) -> Work:
        settings = self.settings.ppo
        new, count = settings.max_new_tokens * TYPICAL, settings.updates * settings.batch_size
        rows = min(self.settings.sampling.batch_size, settings.batch_size)
        separate = settings.value.trunk == "separate"
        work = self._sampled(count, prompt, new, rows)
        # policy and reference read every completion; a reward adapter reads a score
        work += self._read(count * 2, Row(prompt, new), new)
        if self.settings.reward.source == "rankings":
            work += self._read(count, Row(prompt, new), 0)
        work += self._trained(count * settings.epochs, Row(prompt, new), new)
        if separate:
            work += self._read(count, Row(prompt, new), 0)
            work += self._trained(count * settings.epochs, Row(prompt, new), 0)
        return work + self._looks(settings, prompt)

    def _looks(self, settings: PPO | GroupPolicy, prompt: float) -> Work:
        """Looks at a policy before its first update, when due, and after its last."""
        watch = self.settings.watch
        if not watch.every:
            return Work()
        looks = 1 + math.ceil(settings.updates / watch.every)
        count, new = looks * watch.prompts, settings.max_new_tokens * TYPICAL
        rows = min(self.settings.sampling.batch_size, watch.prompts)
        work = self._sampled(count, prompt, new, rows) + self._read(
            count * 2, Row(prompt, new), new
        )
        if self.settings.reward.source == "rankings":
            reward_models = 2 if self.settings.second_reward else 1
            work += self._read(count * reward_models, Row(prompt, new), 0)
        return work

    def _in_groups(self, settings: GroupPolicy, prompt: float) -> Work:
        new, count = settings.max_new_tokens * TYPICAL, settings.updates * settings.completions
        rows = min(self.settings.sampling.batch_size, settings.completions)
        row = Row(prompt, new, min(settings.k, settings.micro_batch_size))
        work = self._sampled(count, prompt, new, rows, settings.k)
        work += self._read(count * 2, row, new)  # policy and reference
        if self.settings.reward.source == "rankings":
            work += self._read(count, row, 0)
        work += self._trained(count * settings.epochs, row, new)
        return work + self._looks(settings, prompt)

    @property
    def _base(self) -> int:
        return self.shape.layers * self.shape.layer_weights

    @property
    def _lora(self) -> int:
        return self.shape.adapter_weights(self.settings.lora.r)

    def _attention(self, length: float) -> float:
        """Operations of all layers' causal attention over a sequence."""
        # Two products of 2 T^2 operations a channel, halved by the causal mask.
        return self.shape.layers * 2 * self.shape.queries * length * length

    def _read(self, rows: float, row: Row, loss_tokens: float) -> Work:
        """Forward passes alone, with logits of `loss_tokens` tokens a row."""
        weights = 2 * (self._base + self._lora) * row.packed
        head = 2 * self.shape.hidden * self.shape.vocabulary * loss_tokens
        return Work(flops=rows * (weights + self._attention(row.length) + head))

    @property
    def _recomputed_share(self) -> float:
        """Share of the layers whose forward runs twice."""
        layers = self.shape.layers
        return -(-layers // self.checkpointing) / layers if self.checkpointing else 0.0

    def _trained(self, rows: float, row: Row, loss_tokens: float) -> Work:
        """Forward and backward passes, without gradients of the frozen base's weights."""
        forward = self._read(rows, row, loss_tokens).flops
        # All weights pass gradients on; only the adapter's also have gradients of their own.
        backward = rows * (
            (2 * self._base + 4 * self._lora) * row.packed
            + 2 * self._attention(row.length)
            + 2 * self.shape.hidden * self.shape.vocabulary * loss_tokens
        )
        recomputed = self._read(rows, row, 0).flops * self._recomputed_share
        return Work(flops=forward + backward + recomputed, tokens=rows * row.length)

    def _sampled(self, rows: float, prompt: float, new: float, batch: int, k: int = 1) -> Work:
        """Sampling: each prompt is read once for its K completions, then a step for each token."""
        reading = self._read(rows / k, Row(prompt, 0), 0)
        batches = rows / max(1, batch)
        steps = batches * new / TYPICAL  # a batch continues until its longest row ends
        dense = 2 * self._base <= self.settings.sampling.dense_gib * 2**30
        # Each step reads all weights; one in 4 bit takes 0.52 bytes with its scales.
        weights = self._base * (2 if dense else 0.52) + 2 * self._lora
        weights += 2 * self.shape.vocabulary * self.shape.hidden
        # Keys and values in 16 bit, on average of half the completion.
        cache = 4 * self.shape.layers * self.shape.keys * (prompt + new / 2)
        read = steps * weights + rows * new * cache
        products = 2 * (self._base + self._lora) + 2 * self.shape.hidden * self.shape.vocabulary
        return Work(reading.flops + products * rows * new, read, steps, rows * new)
