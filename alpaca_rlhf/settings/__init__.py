"""Every number of a run, as frozen dataclasses: `Loop` holds them all."""

from alpaca_rlhf.settings.dpo import DPO, DPOLossName
from alpaca_rlhf.settings.endpoint import Endpoint, Judge, Sampler
from alpaca_rlhf.settings.group_policies import GRPO, RLOO, GroupPolicy, TokenMean
from alpaca_rlhf.settings.inputs import Inputs
from alpaca_rlhf.settings.loop import (
    SFT,
    BestOfK,
    Evaluate,
    FilterName,
    Generate,
    Loop,
    Lora,
    Rank,
    RecipeName,
    Reward,
    Sampling,
    Stages,
    TrackerName,
)
from alpaca_rlhf.settings.ppo import PPO, Clip, OptimizerName, Value
from alpaca_rlhf.settings.watch import Watch

__all__ = [
    "DPO",
    "GRPO",
    "PPO",
    "RLOO",
    "SFT",
    "BestOfK",
    "Clip",
    "DPOLossName",
    "Endpoint",
    "Evaluate",
    "FilterName",
    "Generate",
    "GroupPolicy",
    "Inputs",
    "Judge",
    "Loop",
    "Lora",
    "OptimizerName",
    "Rank",
    "RecipeName",
    "Reward",
    "Sampler",
    "Sampling",
    "Stages",
    "TokenMean",
    "TrackerName",
    "Value",
    "Watch",
]
