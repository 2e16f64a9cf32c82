"""The optimiser of a stage: AdamW, plain or with 8-bit states, its schedule and clipping."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from alpaca_rlhf.core import processes
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.settings import OptimizerName
from alpaca_rlhf.training.loss_scale import LossScale


class NotFiniteError(UserError):
    """A loss or a gradient is NaN or infinite; no weight has been changed by it."""


class Learner:
    """AdamW over named parameters, with warm-up, linear decay to 0 and gradient clipping.

    Args:
        stage: Name of the stage in messages, e.g. `sft`.
        flag: Flag of its learning rate in messages, e.g. `--sft.lr`.
        groups: Parameters by name, each group with its peak learning rate.
        steps: Optimiser steps in all.
        warmup: Share of the steps over which the learning rate rises.
        max_grad_norm: Norm that the gradient of all groups together is clipped to.
        optimizer: Format of its moments: `adamw` in fp32, `adamw8bit` in blocks of 8 bit,
            `paged_adamw8bit` the same in memory that CUDA moves to the host when the GPU is full.
        scale: Loss scale that the gradients are divided by.
    """

    def __init__(
        self,
        stage: str,
        flag: str,
        groups: Sequence[tuple[Mapping[str, nn.Parameter], float]],
        *,
        steps: int,
        warmup: float,
        max_grad_norm: float,
        optimizer: OptimizerName = "adamw",
        scale: LossScale,
    ) -> None:
        self.scale = scale
        self.stage = stage
        self.flag = flag
        self.parameters = {name: p for group, _ in groups for name, p in group.items()}
        if len(self.parameters) != sum(len(group) for group, _ in groups):
            raise ValueError("a parameter's name stands in two groups")
        self.max_grad_norm = max_grad_norm
        self.optimizer = _adamw(
            optimizer, [{"params": list(group.values()), "lr": lr} for group, lr in groups]
        )
        warmup_steps = math.ceil(warmup * steps)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda step: (
                (step + 1) / (warmup_steps + 1)
                if step < warmup_steps
                else max(0.0, (steps - step) / max(1, steps - warmup_steps))
            ),
        )

    def clear_gradients(self) -> None:
        """Discard the accumulated gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def check_loss(self, loss: float, *, name: str = "the loss") -> None:
        """Refuse the loss of the current batch, before `step` would use its gradients.

        Raises:
            NotFiniteError: It is NaN or infinite.
        """
        if not math.isfinite(loss):
            raise NotFiniteError(
                f"{self.stage}: {name} is {loss}; lower {self.flag} and run it again"
            )

    def step(self) -> dict[str, float]:
        """Clip the accumulated gradients, take one optimiser step, and clear them.

        Returns:
            Learning rate of the first group, and the gradient's norm before clipping.

        Raises:
            NotFiniteError: The gradients are not finite.
        """
        # 1. Add up the gradients of all processes, and undo the loss scale.
        processes.add_gradients(self.parameters.values())
        self.scale.unscale(self.parameters.values())
        # 2. Clip all groups together.
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.max_grad_norm)
        if not torch.isfinite(norm):
            raise NotFiniteError(
                f"{self.stage}: the gradient is not finite; lower {self.flag} and run it again"
            )
        # 3. Step, schedule, clear.
        lr = self.optimizer.param_groups[0]["lr"]
        self.optimizer.step()
        self.schedule.step()
        self.clear_gradients()
        return {"lr": lr, "grad_norm": float(norm)}

    def skip_step(self) -> None:
        """Advance the schedule by a step that is not taken; the moments stay as they are."""
        self.schedule.step()

    def state(self) -> dict[str, Any]:
        """Weights, optimiser and schedule, for a checkpoint."""
        return {
            "weights": {name: p.detach().cpu() for name, p in self.parameters.items()},
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        for name, parameter in self.parameters.items():
            parameter.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])


def _adamw(kind: OptimizerName, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """AdamW with the betas, epsilon and weight decay of every stage.

    bitsandbytes keeps the states of tensors of fewer than 4096 numbers, such as a scalar head, in
    fp32 in any case (bitsandbytes 0.50.2 optim/adamw.py:73).
    """
    options: dict[str, Any] = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0}
    if kind == "adamw":
        return torch.optim.AdamW(groups, **options)
    from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW8bit

    optimizer_class = PagedAdamW8bit if kind == "paged_adamw8bit" else AdamW8bit
    optimizer: torch.optim.Optimizer = optimizer_class(groups, **options)
    return optimizer
