"""Refusal of bases and adapters that compute something else than our forwards do.

A base with a bias or a scale at its output head, with capped logits or with capped attention has
all attributes of a LLaMA, yet our forwards would train another function than the one used later.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig
from torch import Tensor

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.models.base import Base
from alpaca_rlhf.models.batches import Batch, Example, collate
from alpaca_rlhf.models.devices import float64
from alpaca_rlhf.models.vocabulary import TokenLogprobs

PLAIN_LORA = {
    "use_rslora": False,
    "use_dora": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "lora_bias": False,
    "bias": "none",
    "modules_to_save": None,
    "layer_replication": None,
    "use_qalora": False,
    "alora_invocation_tokens": None,
    "arrow_config": None,
    "use_bdlora": None,
    "kasa_config": None,
    "monteclora_config": None,
}
"""Fields of a PEFT configuration for which every adapted layer is W + alpha / r * B A."""

MOVES_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")
"""Initialisations that subtract from the base what they put into the adapter, so that its W is not
that of the checkpoint (peft 0.21.2 tuners/lora/layer.py)."""


def _probe_ids(base: Base) -> Tensor:
    """(N,) a few token ids spread over the vocabulary."""
    return torch.arange(1, 17, device=base.device) * 31 % int(base.model.config.vocab_size)


@torch.no_grad()
def native_logprobs(base: Base) -> Tensor:
    """(N - 1,) log-probabilities of a few tokens by the base's own forward, unmodified."""
    ids = _probe_ids(base)
    with base.autocast():
        logits = base.model(input_ids=ids[None]).logits[0, :-1]
    exact = float64(logits)
    logprobs: Tensor = exact.log_softmax(-1).gather(-1, ids.to(exact.device)[1:, None])[:, 0]
    return logprobs


def check_base(
    base: Base,
    expected: Tensor,
    hidden_states: Callable[[Batch], Tensor],
    target_logprobs: Callable[[Tensor, Tensor], TokenLogprobs],
) -> None:
    """Compare our forward of a few tokens with the base's own.

    As a whole sequence, and behind a prompt that it shares.

    Args:
        base: A base without an adapter.
        expected: (N - 1,) result of `native_logprobs`.
        hidden_states: Maps a batch to its (N, H) last hidden states.
        target_logprobs: Maps hidden states and target ids to log-probabilities.

    Raises:
        UserError: The two differ by more than the precision allows.
    """
    ids = _probe_ids(base)
    refused = UserError(
        f"--base {base.name}: {type(base.model).__name__} computes more than a LLaMA does (scaled "
        "or capped logits, a bias at its output head ...); use a LLaMA-like base"
    )
    count, prompt = len(ids), len(ids) // 2
    tokens = ids.tolist()
    example = Example(tuple(tokens[:prompt]), tuple(tokens[prompt:]))
    try:
        states = hidden_states(collate(base, [example, example]))
        whole, behind_shared = states[: count - 1], states[count:-1]
        targets = torch.cat([ids[1:], ids[prompt + 1 :]])
        logprobs = target_logprobs(torch.cat([whole, behind_shared]), targets).logprobs
    except (ValueError, TypeError, NotImplementedError) as error:
        raise refused from error
    tolerance = 1e-2 if base.dtype in (torch.float32, torch.float64) else 0.2
    errors = (float64(logprobs) - torch.cat([expected, expected[prompt:]])).abs()
    alone, behind_prompt = errors[: count - 1].mean(), errors[count - 1 :].mean()
    if not alone <= tolerance:  # a NaN is refused too
        raise refused
    if not behind_prompt <= tolerance:
        raise UserError(
            f"--base {base.name}: with torch {torch.__version__} a completion does not see the "
            "prompt that it shares with another (its attention kernel masks in another way); "
            "install the version that constraints.txt names"
        )


def check_adapter(config: LoraConfig, folder: Path) -> None:
    """Refuse an adapter that is not plain LoRA.

    Raises:
        UserError: Our forwards would compute it differently from how it was trained.
    """
    for name, value in PLAIN_LORA.items():
        setting = getattr(config, name, value)
        if (setting or value) != value:
            raise UserError(
                f"{folder / 'adapter_config.json'}: {name} is {setting!r}; only plain LoRA can be "
                "used here; merge it into its base and give that as --base"
            )
    initialisation = str(config.init_lora_weights).lower()
    if initialisation.startswith(MOVES_BASE):
        raise UserError(
            f"{folder / 'adapter_config.json'}: init_lora_weights is {initialisation!r}, which "
            "changes the base's own weights too; save it as plain LoRA "
            "(save_pretrained(path_initial_model_for_weight_conversion=...)), or merge it into its "
            "base and give that as --base"
        )
