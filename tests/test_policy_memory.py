"""The planned memory of DPO and of the policies in groups, against live bytes of the stages."""

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from alpaca_rlhf.models.heads import ScalarHead
from alpaca_rlhf.planner import Device, Lengths, PeakMemory
from alpaca_rlhf.settings import DPO, GRPO
from alpaca_rlhf.training.dpo import ReferencedGroup, train_dpo
from alpaca_rlhf.training.group_policy import train_in_groups
from alpaca_rlhf.training.grpo import grpo_method
from alpaca_rlhf.training.loop import Checkpoints
from alpaca_rlhf.training.rollouts import RolloutPrompt
from benchmarks.stage_memory import Meter, Stages, adapters_of, planned, write_base
from tests.planned import Case

CASES = (
    Case("GQA", heads=8, kv_heads=2, hidden=256, inner=704, layers=2),
    Case(
        "checkpointed, K of 3", checkpointing=True, k=3, prompt=48, completion=64, vocabulary=8192
    ),
)


def test_recomputing_each_nth_layer_lies_between(tmp_path):
    """Live bytes of SFT with no layer recomputed, each third, each other, all; the plan of each."""
    peaks = []
    for every in (0, 3, 2, 1):
        case = Case("nth", checkpointing=every, layers=6, prompt=64, completion=128)
        plan = planned(
            case.shape, Device("cpu", 2), case.settings, case.prompt, checkpointing=every
        )
        adapters = adapters_of(
            write_base(tmp_path / str(every), case.shape),
            case.settings,
            dtype=torch.bfloat16,
            checkpointing=every,
            device="cpu",
        )
        meter = Meter(adapters, on_card=False)
        Stages(adapters, case.settings, case.prompt, meter, tmp_path / f"run-{every}").all(("sft",))
        assert abs(plan["sft"] / meter.peaks["sft"] - 1) <= 0.05, (every, plan, meter.peaks)
        peaks.append(meter.peaks["sft"])
    assert peaks[0] > 1.1 * peaks[1] > 1.15 * peaks[2] > 1.2 * peaks[3]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_plan_says_what_they_take(case):
    """Within a tenth, as the other stages."""
    length, micro = case.prompt + case.completion, case.micro
    settings = replace(
        case.settings,
        policies=("ppo", "dpo", "grpo"),
        dpo=DPO(batch_size=2 * micro, micro_batch_size=micro, max_length=length),
        grpo=GRPO(
            updates=2,
            prompts=2 * micro,
            k=2,
            minibatch_size=2 * micro,
            micro_batch_size=micro,
            max_new_tokens=case.completion,
        ),
    )
    lengths = Lengths(prompt=case.prompt, worksheet=case.prompt, chat=case.prompt)
    plan = PeakMemory(
        case.shape, Device("cpu", 2), settings, lengths, checkpointing=case.checkpointing
    )
    with tempfile.TemporaryDirectory() as scratch:
        adapters = adapters_of(
            write_base(Path(scratch) / "base", case.shape),
            settings,
            dtype=torch.bfloat16,
            checkpointing=case.checkpointing,
            device="cpu",
        )
        meter = Meter(adapters, on_card=False)
        stages = Stages(adapters, settings, case.prompt, meter, Path(scratch))
        for name in ("sft", "reward", "policy"):
            adapters.add(name)
        rows = [
            ReferencedGroup(group, (0.0,) * case.k) for group in stages._groups(4 * micro, seed=0)
        ]
        options = {"seed": 0, "log": lambda row: None}
        with meter.stage("dpo"):
            train_dpo(
                adapters,
                "policy",
                rows[micro:],
                rows[:micro],
                settings.dpo,
                checkpoints=Checkpoints(Path(scratch) / "dpo"),
                **options,
            )
        head = ScalarHead(int(adapters.base.model.config.hidden_size))
        prompts = [
            RolloutPrompt(str(number), ids) for number, ids in enumerate(stages._prompts(4 * micro))
        ]
        with meter.stage("grpo"):
            train_in_groups(
                adapters,
                head,
                prompts,
                grpo_method(settings.grpo),
                rollout_batch_size=settings.sampling.batch_size,
                checkpoints=Checkpoints(Path(scratch) / "grpo"),
                **options,
            )
    for stage in ("dpo", "grpo"):
        planned, measured = plan.peak(stage), meter.peaks[stage]
        assert abs(planned / measured - 1) <= 0.1, (stage, planned, measured)
