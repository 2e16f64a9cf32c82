"""On a card: what is faster there, or smaller in memory, computes the same.

Each test runs on the CPU too, where a captured step is the plain one.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from alpaca_rlhf.models import rollout
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.batches import Example, collate
from alpaca_rlhf.models.forward import token_logprobs
from alpaca_rlhf.planner import shape_of
from alpaca_rlhf.settings import Loop, Lora, Sampling
from benchmarks.gpu.plan import shrunken
from benchmarks.stage_memory import adapters_of, write_base

SETTINGS = Loop(lora=Lora(r=4, alpha=8))
PROMPTS = [tuple(range(5, 5 + length)) for length in (3, 17, 9, 5, 30)]
NEW = 40
"""More than two looks at the tokens, and than a block of the cache."""


@pytest.fixture(
    params=[
        "cpu",
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(
                not torch.cuda.is_available(), reason="needs a graphics card, which is not here"
            ),
        ),
    ]
)
def adapters(request: pytest.FixtureRequest, tmp_path: Path) -> Adapters:
    """A policy in NF4 on two layers of a Llama-3's shape, in float32, that has moved."""
    folder = write_base(tmp_path / "base", shrunken(shape_of("llama-3.1-8b")))
    made = adapters_of(
        folder, SETTINGS, dtype=torch.float32, checkpointing=False, device=request.param
    )
    made.add("policy")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters("policy").values():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.05 * noise.to(parameter.device))
    return made


def test_a_captured_step_draws_the_tokens_of_a_plain_one(
    adapters: Adapters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of several lengths, which end apart and are replaced, so graphs are made anew."""
    stops = frozenset(range(10, int(adapters.base.model.config.vocab_size), 29))
    object.__setattr__(adapters, "base", replace(adapters.base, stop_ids=stops))
    captures = []

    def tokens(step: object) -> list[object]:
        def captured(plain: object, device: torch.device) -> object:
            captures.append(device)
            return plain if step == "plain" else real(plain, device)  # type: ignore[arg-type]

        monkeypatch.setattr(rollout, "captured", captured)
        sampling = Sampling(max_new_tokens=NEW, batch_size=6)
        keys = [str(number) for number in range(len(PROMPTS))]
        return list(
            rollout.sample(adapters, "policy", PROMPTS, keys, k=2, sampling=sampling, seed=0)
        )

    real = rollout.captured
    plain, replayed = tokens("plain"), tokens("captured")
    assert replayed == plain
    assert bool(captures) == (adapters.base.device.type == "cuda")
    lengths = {len(completion.ids) for row in plain for completion in row}  # type: ignore[attr-defined]
    assert len(lengths) > 1


@pytest.mark.parametrize("every", [1, 2])
def test_recomputed_activations_give_the_same_gradients(adapters: Adapters, every: int) -> None:
    examples = [Example(prompt, tuple(range(50, 50 + 4 * len(prompt)))) for prompt in PROMPTS]
    adapters.trainable("policy")

    def gradient(recomputed: int) -> Tensor:
        adapters.checkpointing(recomputed)
        with adapters.using("policy"), adapters.training():
            token_logprobs(adapters, collate(adapters.base, examples)).sum().backward()
        parameters = adapters.parameters("policy").values()
        found = torch.cat([p.grad.flatten().cpu() for p in parameters if p.grad is not None])
        for parameter in parameters:
            parameter.grad = None
        return found

    kept, recomputed = gradient(0), gradient(every)
    assert math.isfinite(float(kept.norm())) and kept.norm() > 1e-3
    assert (recomputed - kept).norm() <= 1e-5 * kept.norm()
