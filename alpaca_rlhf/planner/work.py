"""Time of every stage, from its products and from the bytes that decoding reads; then its cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from alpaca_rlhf.planner.memory import Lengths
from alpaca_rlhf.planner.shapes import Shape
from alpaca_rlhf.settings import Loop

LAUNCH_S = 0.8e-3
"""Least seconds a layer takes in a step of decoding, whatever the card: its calls; an estimate."""
TYPICAL = 0.5
"""Length of a typical row, as a share of the longest."""
KEPT = 1.0
"""New tasks that come of a request, after filters; an estimate."""


@dataclass(frozen=True)
class Rates:
    """What a device reaches."""

    tflops: float
    """Products, 10^12 operations a second."""
    bandwidth: float
    """GB read a second."""


@dataclass(frozen=True)
class Work:
    """What a stage does."""

    flops: float = 0.0
    """Operations of all products; decoding's are in `steps` too."""
    read: float = 0.0
    """Bytes that decoding reads."""
    steps: float = 0.0
    """Steps of decoding."""
    tokens: float = 0.0
    """Tokens sampled, or trained on."""

    def __add__(self, other: Work) -> Work:
        return Work(
            self.flops + other.flops,
            self.read + other.read,
            self.steps + other.steps,
            self.tokens + other.tokens,
        )

    def __mul__(self, times: float) -> Work:
        return Work(self.flops * times, self.read * times, self.steps * times, self.tokens * times)

    def seconds(self, rates: Rates, layers: int) -> float:
        """Products, or for decoding reading and launching, whichever takes longer."""
        reading = max(self.read / (rates.bandwidth * 1e9), self.steps * layers * LAUNCH_S)
        return self.flops / (rates.tflops * 1e12) + reading


@dataclass(frozen=True)
class Stages:
    """Work of a loop's stages.

    Args:
        shape: The base.
        settings: Every number of the loop.
        lengths: Tokens that no setting bounds.
        rows: Rows to train on, where they are the user's own.
        checkpointing: Whether layers run twice.
    """

    shape: Shape
    settings: Loop
    lengths: Lengths
    rows: int
    checkpointing: bool = True

    def all(self) -> dict[str, Work]:
        """Work of every stage, all rounds together."""
        own, rounds = self.settings, self.settings.rounds
        new, prompt = own.sampling.max_new_tokens * TYPICAL, self.lengths.prompt * TYPICAL
        row = own.sft.max_length * TYPICAL
        drawn = self._drawn
        requests = own.generate.target / KEPT
        winners = own.best_of_k.prompts * own.best_of_k.keep * own.best_of_k.epochs
        rankings = own.rank.prompts * own.rank.k
        stages: dict[str, Callable[[], Work]] = {
            "generate": lambda: drawn(
                requests,
                self.lengths.worksheet * TYPICAL,
                own.generate.max_new_tokens,
                own.generate.batch_size,
            ),
            "sft": lambda: self._trained(self.rows * own.sft.epochs, row, row),
            "sample": lambda: (
                drawn(rankings, prompt, new, own.sampling.batch_size, own.rank.k) * rounds
            ),
            "reward": lambda: (
                (  # with its control, which is as much again
                    self._trained(rankings * own.reward.epochs, prompt + new, 0) * 2
                    + self._read(2 * rankings, prompt + new, 0)
                )
                * rounds
            ),
            "ppo": lambda: self._ppo(prompt) * rounds,
            "best_of_k": lambda: (
                (
                    drawn(
                        own.best_of_k.prompts * own.best_of_k.k,
                        prompt,
                        new,
                        own.sampling.batch_size,
                        own.best_of_k.k,
                    )
                    + self._read(own.best_of_k.prompts * own.best_of_k.k, prompt + new, 0)
                    + self._trained(winners, prompt + new, new)
                )
                * rounds
            ),
            "evaluate": lambda: (
                (
                    drawn(2 * own.evaluate.prompts, prompt, new, own.sampling.batch_size)
                    + self._read(2 * own.evaluate.prompts, prompt + new, new)
                )
                * (3 + 2 * rounds)
            ),
        }
        return {name: work() for name, work in stages.items()}

    def _ppo(self, prompt: float) -> Work:
        own = self.settings.ppo
        new, count = own.max_new_tokens * TYPICAL, own.updates * own.batch_size
        rows = min(self.settings.sampling.batch_size, own.batch_size)
        apart = own.value.trunk == "separate"
        work = self._drawn(count, prompt, new, rows)
        work += self._read(count * 2, prompt + new, new) + self._read(count, prompt + new, 0)
        work += self._trained(count * own.epochs, prompt + new, new)
        if apart:
            work += self._read(count, prompt + new, 0)
            work += self._trained(count * own.epochs, prompt + new, 0)
        return work

    @property
    def _base(self) -> int:
        return self.shape.layers * self.shape.layer_weights

    @property
    def _lora(self) -> int:
        return self.shape.adapter_weights(self.settings.lora.r)

    def _attention(self, length: float) -> float:
        """Operations of all layers over a sequence: each token looks at those before it."""
        return self.shape.layers * 2 * self.shape.queries * length * length

    def _read(self, rows: float, length: float, chosen: float) -> Work:
        """Forwards alone."""
        weights = 2 * (self._base + self._lora) * length
        head = 2 * self.shape.hidden * self.shape.vocabulary * chosen
        return Work(flops=rows * (weights + self._attention(length) + head))

    def _trained(self, rows: float, length: float, chosen: float) -> Work:
        """Forwards and backwards: no gradients of the base's own weights."""
        forward = self._read(rows, length, chosen).flops
        backward = rows * (
            (2 * self._base + 4 * self._lora) * length
            + 2 * self._attention(length)
            + 2 * self.shape.hidden * self.shape.vocabulary * chosen
        )
        again = self._read(rows, length, 0).flops if self.checkpointing else 0.0
        return Work(flops=forward + backward + again, tokens=rows * length)

    def _drawn(self, rows: float, prompt: float, new: float, at_once: int, k: int = 1) -> Work:
        """Completions: prompts are read once for all K, then a step for each token."""
        reading = self._read(rows / k, prompt, 0)
        batches = rows / max(1, at_once)
        steps = batches * new / TYPICAL  # a batch goes on until its longest is done
        dense = 2 * self._base <= self.settings.sampling.dense_gib * 2**30
        weights = self._base * (2 if dense else 0.52) + 2 * self._lora
        weights += 2 * self.shape.vocabulary * self.shape.hidden
        cache = 4 * self.shape.layers * self.shape.keys * (prompt + new / 2)
        read = steps * weights + rows * new * cache
        products = 2 * (self._base + self._lora) + 2 * self.shape.hidden * self.shape.vocabulary
        return Work(reading.flops + products * rows * new, read, steps, rows * new)
