"""Scalar heads in fp32: one number a position, outside autocast."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from alpaca_rlhf.config import UserError

HEAD = "head.safetensors"


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
        drawn = torch.randn(hidden_size, generator=generator) / math.sqrt(hidden_size + 1)
        self.weight = nn.Parameter(drawn)
        self.register_buffer("gain", torch.ones(()))
        self.register_buffer("bias", torch.zeros(()))

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., H) hidden states of any dtype to (...) scores in the weight's dtype, float32."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.gain * (hidden.to(self.weight.dtype) @ self.weight) + self.bias

    @torch.no_grad()
    def normalise(self, scores: Tensor) -> None:
        """Fold gain and bias so that `scores`, as this head gave them, would have mean 0 and std 1.

        Raises:
            ValueError: Fewer than two scores, or all the same.
        """
        std = float(scores.double().std(correction=0)) if len(scores) > 1 else 0.0
        if not std > 0:
            raise ValueError(
                f"cannot normalise on {len(scores)} scores with standard deviation {std:g}"
            )
        mean = float(scores.double().mean())
        self.gain.div_(std)
        self.bias.sub_(mean).div_(std)

    def save(self, folder: Path) -> None:
        """Write weight, gain and bias beside an adapter."""
        save_file(
            {k: t.detach().cpu().contiguous() for k, t in self.state_dict().items()},
            str(folder / HEAD),
        )

    @classmethod
    def load(cls, folder: Path, hidden_size: int) -> ScalarHead:
        """Read a head.

        Raises:
            UserError: It is not there, or has another size.
        """
        if not (folder / HEAD).is_file():
            raise UserError(f"{folder}: no {HEAD}; give the folder of a reward adapter")
        state = load_file(str(folder / HEAD))
        if state["weight"].shape != (hidden_size,):
            raise UserError(
                f"{folder / HEAD}: made for hidden size {len(state['weight'])}, "
                f"this base has {hidden_size}"
            )
        head = cls(hidden_size)
        head.load_state_dict(state)
        return head
