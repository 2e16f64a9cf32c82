"""Whether a base, or somebody else's adapter, computes what our forwards compute, and no more.

A base with a bias or a scale at its output head, with capped logits or capped attention has the
attributes of a LLaMA: its forwards would train another function than the one that is used later.
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
from alpaca_rlhf.models.vocabulary import Chosen

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
"""Fields of a PEFT configuration under which an adapter is W + alpha / r * B A, everywhere."""

MOVES_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")
"""Initialisations that take from the base what they put into the adapter: its W is another one
(peft 0.21.2 tuners/lora/layer.py)."""


def _probe(base: Base) -> Tensor:
    """A few token ids, (N,)."""
    return torch.arange(1, 17, device=base.device) * 31 % int(base.model.config.vocab_size)


@torch.no_grad()
def own_logprobs(base: Base) -> Tensor:
    """(N - 1,) log-probabilities that the base's own code gives a few tokens."""
    ids = _probe(base)
    with base.autocast():
        logits = base.model(input_ids=ids[None]).logits[0, :-1]
    found: Tensor = logits.double().log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
    return found


def check_base(
    base: Base,
    own: Tensor,
    hidden: Callable[[Batch], Tensor],
    chosen: Callable[[Tensor, Tensor], Chosen],
) -> None:
    """Compare with what our forwards give.

    Args:
        base: Without an adapter.
        own: What `own_logprobs` gave.
        hidden: A batch to its (N, H) hidden states.
        chosen: Log-probabilities of tokens after states.

    Raises:
        UserError: It is not the same, within what the precision allows.
    """
    ids = _probe(base)
    refused = UserError(
        f"--base {base.name}: {type(base.model).__name__} computes more than a LLaMA does (scaled "
        "or capped logits, a bias at its output head ...); use a LLaMA-like base"
    )
    first, *rest = ids.tolist()
    try:
        states = hidden(collate(base, [Example((first,), tuple(rest))]))
        found = chosen(states[:-1], ids[1:]).logprobs
    except (ValueError, TypeError, NotImplementedError) as error:
        raise refused from error
    allowed = 1e-2 if base.dtype in (torch.float32, torch.float64) else 0.2
    if not (found.double() - own).abs().mean() <= allowed:
        raise refused


def check_adapter(config: LoraConfig, folder: Path) -> None:
    """Refuse an adapter that is not plain LoRA.

    Raises:
        UserError: It would be computed otherwise than it was trained.
    """
    for name, value in PLAIN_LORA.items():
        found = getattr(config, name, value)
        if (found or value) != value:
            raise UserError(
                f"{folder / 'adapter_config.json'}: {name} is {found!r}; only plain LoRA can be "
                "used here; merge it into its base and give that as --base"
            )
    start = str(config.init_lora_weights).lower()
    if start.startswith(MOVES_BASE):
        raise UserError(
            f"{folder / 'adapter_config.json'}: init_lora_weights is {start!r}, which changes the "
            "base's own weights too; save it as plain LoRA "
            "(save_pretrained(path_initial_model_for_weight_conversion=...)), or merge it into its "
            "base and give that as --base"
        )
