"""Answers that are ranked and compared are sampled as the run samples its own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alpaca_rlhf.app import prefetch
from alpaca_rlhf.cli.sample_command import Fill, _Filling
from alpaca_rlhf.serving.sampling_settings import SamplingSettings
from alpaca_rlhf.settings import Evaluate, Loop, Rank, Sampling

COOL = Loop(
    sampling=Sampling(temperature=0.7, top_p=0.9),
    rank=Rank(temperature=0.5),
    evaluate=Evaluate(temperature=0.6),
)


def test_the_sampling_of_a_stage_is_that_of_its_section():
    assert SamplingSettings.of_stage(COOL, "sample") == SamplingSettings(0.5, 0.9)
    assert SamplingSettings.of_stage(COOL, "evaluate", seed=3) == SamplingSettings(0.6, 0.9, seed=3)
    plain = Loop(sampling=Sampling(temperature=0.7))
    assert SamplingSettings.of_stage(plain, "sample").temperature == 0.7


def test_the_app_fills_the_queue_at_the_temperature_of_the_run(monkeypatch: pytest.MonkeyPatch):
    worker: Any = SimpleNamespace(
        settings=COOL, run=Path("runs/cool"), policies=lambda: ["base", "sft"]
    )
    asked: dict[str, Any] = {}

    def fill(store: Any, server: Any, rows: Any, policy: str, **options: Any) -> list[Any]:
        asked.update(options, policy=policy)
        return []

    monkeypatch.setattr(prefetch, "fill", fill)
    unused: Any = None
    assert list(prefetch.fill_by_last_policy(unused, worker, unused, [])) == []
    assert asked["policy"] == "sft"
    assert asked["sampling_settings"] == SamplingSettings(0.5, 0.9)


@pytest.mark.parametrize(
    ("flags", "sampled"),
    [
        (Fill(), SamplingSettings(0.5, 0.9)),
        (Fill(temperature=1.2, seed=4), SamplingSettings(1.2, 0.9, seed=4)),
        (Fill(top_p=1.0, max_new_tokens=9), SamplingSettings(0.5, 1.0, 9)),
    ],
)
def test_flags_of_sample_stand_above_the_run(flags: Fill, sampled: SamplingSettings):
    unused: Any = None
    assert _Filling(unused, flags, COOL, "sft", [], unused)._sampling() == sampled
