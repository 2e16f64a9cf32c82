"""Sampling settings of an answer, as a person sets them."""

from __future__ import annotations

from dataclasses import dataclass

from alpaca_rlhf.settings import Loop


@dataclass(frozen=True)
class SamplingSettings:
    """Settings of one answer."""

    temperature: float = 0.7
    """Divides the logits; 0 is greedy."""
    top_p: float = 1.0
    """Nucleus mass; 1 keeps the whole distribution."""
    max_new_tokens: int | None = None
    """Completion tokens at most; None takes the run's."""
    seed: int = 0
    """Seed of the sampling noise."""
    system: str = ""
    """System prompt; only where the template has a place for one."""
    top_k: int = 0
    """Tokens to draw from, the most likely ones; 0 keeps all."""
    min_p: float = 0.0
    """Share of the best token's probability below which none is drawn; 0 keeps all."""
    repetition_penalty: float = 1.0
    """Makes tokens that came up before less likely; 1 changes nothing."""
    stop: tuple[str, ...] = ()
    """Texts before which an answer ends."""

    @classmethod
    def of_stage(cls, settings: Loop, stage: str, *, seed: int = 0) -> SamplingSettings:
        """The sampling of a stage of a run: `sample`, `evaluate` ..."""
        temperature, top_p = settings.temperature_of(stage), settings.sampling.top_p
        return cls(temperature, top_p, seed=seed)

    def describe(self, max_new_tokens: int) -> str:
        """The settings in one line, as `Completion.sampling` has them."""
        text = f"temperature={self.temperature:g} top_p={self.top_p:g}"
        text += f" top_k={self.top_k}" if self.top_k else ""
        text += f" min_p={self.min_p:g}" if self.min_p else ""
        if self.repetition_penalty != 1:
            text += f" repetition_penalty={self.repetition_penalty:g}"
        text += f" max_new_tokens={max_new_tokens}"
        return text + (f" stop={list(self.stop)}" if self.stop else "")
