"""Scalar heads in fp32, outside autocast: one score a position, from one head or from several."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.models.devices import float64

HEAD = "head.safetensors"
"""File of a head, beside its adapter."""
CRITERIA = "criteria"
"""Key of the criteria's weights among its tensors, and of their names in its metadata."""
HEADS = "heads."
"""Beginning of the keys of an ensemble's tensors, beside those of its mean."""


class ScalarHead(nn.Module):
    """score = gain * (w . h) + bias, computed in fp32 whatever autocast says.

    Inside autocast a float32 linear layer silently runs in bfloat16, so it is switched off here.

    Source: w ~ N(0, 1 / (H + 1)), bias 0 (openai/lm-human-preferences@cbfd210
    language/model.py:248-254); gain and bias are what normalisation folds in (the same,
    rewards.py:77-89).
    """

    weight: nn.Parameter
    gain: Tensor
    bias: Tensor

    def __init__(self, hidden_size: int, *, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(hidden_size, generator=generator) / math.sqrt(hidden_size + 1)
        self.weight = nn.Parameter(weight)
        self.register_buffer("gain", torch.ones(()))
        self.register_buffer("bias", torch.zeros(()))

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (..., H) hidden states of any dtype to (...) scores in the weight's, float32."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.gain * (hidden.to(self.weight.dtype) @ self.total) + self.bias

    @property
    def total(self) -> Tensor:
        """(H,) weight of the hidden state in the score."""
        return self.weight

    @property
    def mean(self) -> ScalarHead:
        """The one linear head whose scores are the mean of all heads: this one."""
        return self

    @property
    def log_odds(self) -> float:
        """Log-odds of a preference for one unit of the score; 1 until the scores are normalised."""
        return float(self.gain.reciprocal().mean())

    def all_scores(self, hidden: Tensor) -> Tensor:
        """Map (..., H) hidden states to (..., 1 + C): the score, then that of each criterion.

        A scalar head has no criteria: its C is 0.
        """
        return self(hidden)[..., None]  # type: ignore[no-any-return]

    def members(self, hidden: Tensor) -> Tensor:
        """Map (..., H) hidden states to (..., N): the score of each head, here of the only one."""
        return self(hidden)[..., None]  # type: ignore[no-any-return]

    @torch.no_grad()
    def normalise(self, scores: Tensor) -> None:
        """Fold gain and bias so that each head's scores would have mean 0 and std 1.

        Args:
            scores: (R, N) `members` of R completions; of one head (R,) will do.

        Raises:
            ValueError: Fewer than two completions, or a head gives all of them the same score.
        """
        mean, std = mean_and_std(scores)
        self.gain.div_(std)
        self.bias.sub_(mean).div_(std)

    def save(self, folder: Path) -> None:
        """Write weight, gain and bias into an adapter's folder."""
        _write(folder, {"weight": self.total, "gain": self.gain, "bias": self.bias})

    @classmethod
    def load(cls, folder: Path, hidden_size: int) -> ScalarHead:
        """Read a head, or an ensemble of heads where the folder has one.

        A head of criteria becomes their sum, which gives the same scores.

        Raises:
            UserError: It is not there, or has another hidden size.
        """
        state = _read(folder, hidden_size)
        state.pop(CRITERIA, None)
        members = {
            name.removeprefix(HEADS): tensor
            for name, tensor in state.items()
            if name.startswith(HEADS)
        }
        if members:
            ensemble = EnsembleHead(hidden_size, range(len(members["weight"])))
            # Folders of earlier versions hold a score that is not rescaled.
            ensemble.load_state_dict({**ensemble.state_dict(), **members})
            return ensemble
        head = cls(hidden_size)
        head.load_state_dict(state)
        return head


class CriteriaHead(ScalarHead):
    """One head for each of C criteria; the score is their sum.

    Each starts as N(0, 1 / (C (H + 1))), so that the score's variance is that of a scalar head.
    Gain and bias belong to the score; each criterion has the same gain, and 1 / C of the bias.
    """

    def __init__(self, hidden_size: int, criteria: Sequence[str], *, seed: int = 0) -> None:
        super().__init__(hidden_size)
        self.criteria = tuple(criteria)
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(len(self.criteria), hidden_size, generator=generator)
        self.weight = nn.Parameter(weight / math.sqrt(len(self.criteria) * (hidden_size + 1)))

    @property
    def total(self) -> Tensor:
        """(H,) sum of the criteria's weights."""
        return self.weight.sum(0)

    def all_scores(self, hidden: Tensor) -> Tensor:
        """Map (..., H) hidden states to (..., 1 + C): the score, then that of each criterion."""
        with torch.autocast(hidden.device.type, enabled=False):
            scores = self.gain * (hidden.to(self.weight.dtype) @ self.weight.T)
            scores = scores + self.bias / len(self.criteria)
        return torch.cat([super().all_scores(hidden), scores], -1)

    def save(self, folder: Path) -> None:
        """Write the equivalent scalar head, and the criteria with their names."""
        tensors = {"weight": self.total, "gain": self.gain, "bias": self.bias}
        names = {CRITERIA: json.dumps(self.criteria, ensure_ascii=False)}
        _write(folder, {**tensors, CRITERIA: self.weight}, names)

    @classmethod
    def load(cls, folder: Path, hidden_size: int) -> CriteriaHead:
        """Read a head of criteria.

        Raises:
            UserError: It is not there, has another hidden size, or has no criteria.
        """
        state = _read(folder, hidden_size)
        if CRITERIA not in state:
            raise UserError(
                f"{folder / HEAD}: has no criteria; train it with --reward.criteria-weight above 0"
            )
        with safe_open(str(folder / HEAD), framework="pt") as file:
            names = json.loads(file.metadata()[CRITERIA])
        head = cls(hidden_size, names)
        weight = state.pop(CRITERIA)
        head.load_state_dict({**state, "weight": weight})
        return head


class EnsembleHead(ScalarHead):
    """N heads on one adapter; the score is their mean less `pessimism` standard deviations.

    Each has its own start, gain and bias, so each is normalised by itself; then their score is, on
    the same completions (`rescale`). Where they agree the score is their mean; where they differ,
    as on completions unlike those that were ranked, it is lower.

    Sources: heads on one network (arXiv 1602.04621); a score lowered by the disagreement of reward
    models, there by their variance (arXiv 2310.02743 section 3).
    """

    pessimism: Tensor
    centre: Tensor
    """Mean of mean less deviations on the completions of `rescale`; 0 before."""
    spread: Tensor
    """Standard deviation of mean less deviations on them; 1 before."""

    def __init__(self, hidden_size: int, seeds: Sequence[int], *, pessimism: float = 0.0) -> None:
        super().__init__(hidden_size)
        weights = [ScalarHead(hidden_size, seed=seed).weight.detach() for seed in seeds]
        self.weight = nn.Parameter(torch.stack(weights))
        self.gain = torch.ones(len(weights))
        self.bias = torch.zeros(len(weights))
        self.register_buffer("pessimism", torch.tensor(float(pessimism)))
        self.register_buffer("centre", torch.tensor(0.0))
        self.register_buffer("spread", torch.tensor(1.0))

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (..., H) hidden states of any dtype to (...) scores in the weight's, float32."""
        return self._combined(self.members(hidden))

    def _combined(self, members: Tensor) -> Tensor:
        """(...) mean of (..., N) scores less `pessimism` of their standard deviations, rescaled."""
        score = members.mean(-1) - self.pessimism * members.std(-1, correction=0)
        return (score - self.centre) / self.spread

    @property
    def total(self) -> Tensor:
        """(H,) weight of the hidden state in the mean of the heads."""
        return (self.gain[:, None] * self.weight).mean(0)

    @property
    @torch.no_grad()
    def mean(self) -> ScalarHead:
        """The one linear head whose scores are the mean of all heads."""
        head = ScalarHead(len(self.total)).to(self.weight)
        head.weight.copy_(self.total)
        head.bias.copy_(self.bias.mean())
        return head

    def all_scores(self, hidden: Tensor) -> Tensor:
        """Map (..., H) hidden states to (..., 1 + N): the score, then that of each head."""
        members = self.members(hidden)
        return torch.cat([self._combined(members)[..., None], members], -1)

    def members(self, hidden: Tensor) -> Tensor:
        """Map (..., H) hidden states to (..., N): the score of each head."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.gain * (hidden.to(self.weight.dtype) @ self.weight.T) + self.bias

    @torch.no_grad()
    def normalise(self, scores: Tensor) -> None:
        """Fold gains and biases so that each head's scores would have mean 0 and std 1.

        Args:
            scores: (R, N) `members` of R completions.

        Raises:
            ValueError: Fewer than two completions, or a head gives all of them the same score.
        """
        means, stds = zip(*map(mean_and_std, scores.unbind(-1)), strict=True)
        std = self.gain.new_tensor(stds)
        self.gain.div_(std)
        self.bias.sub_(self.bias.new_tensor(means)).div_(std)

    @torch.no_grad()
    def rescale(self, scores: Tensor) -> None:
        """Give the heads' common score mean 0 and std 1, as what reads a reward expects.

        Args:
            scores: (R, N) `members` of R completions, once each head is normalised.

        Raises:
            ValueError: Fewer than two completions, or all have the same score.
        """
        self.centre.zero_()
        self.spread.fill_(1.0)
        mean, std = mean_and_std(self._combined(scores))
        self.centre.fill_(mean)
        self.spread.fill_(std)

    def save(self, folder: Path) -> None:
        """Write the scalar head that is their mean, and each head with the pessimism."""
        mean = self.mean
        tensors = {"weight": mean.weight, "gain": mean.gain, "bias": mean.bias}
        _write(folder, {**tensors, **{HEADS + name: t for name, t in self.state_dict().items()}})


def mean_and_std(scores: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of scores.

    Raises:
        ValueError: Fewer than two scores, or all the same.
    """
    std = float(float64(scores).std(correction=0)) if len(scores) > 1 else 0.0
    if not std > 0:
        raise ValueError(
            f"cannot normalise on {len(scores)} scores with standard deviation {std:g}"
        )
    return float(float64(scores).mean()), std


def _write(
    folder: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(on_cpu, str(folder / HEAD), metadata)


def _read(folder: Path, hidden_size: int) -> dict[str, Tensor]:
    if not (folder / HEAD).is_file():
        raise UserError(f"{folder}: no {HEAD}; give the folder of a reward adapter")
    try:
        state = load_file(str(folder / HEAD))
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{folder / HEAD}: cannot be read ({error}); put it back, or train the stage anew"
        ) from None
    if state["weight"].shape != (hidden_size,):
        raise UserError(
            f"{folder / HEAD}: made for hidden size {len(state['weight'])}, "
            f"this base has {hidden_size}"
        )
    return state
