"""Adoption of a foreign LoRA adapter (a plain PEFT folder) as one of ours, with the same function.

Ours all have one rank and cover every linear layer. A foreign adapter of lower rank, with another
alpha or on some of the layers only is written into that shape: its A into the first rows, its B,
scaled, into the first columns. The other rows of A are random and the other columns of B zero, as
in a new adapter: they change nothing, and can learn.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from peft import LoraConfig
from peft.utils.save_and_load import load_peft_weights
from torch import Tensor

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.models.adapter_files import check_fingerprint
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.compatibility import check_adapter
from alpaca_rlhf.models.devices import float64

logger = logging.getLogger(__name__)

_FLAG = "--inputs.sft-adapter"
_PREFIX = "base_model.model."


def adopt(adapters: Adapters, name: str, folder: Path, *, seed: int = 0) -> int:
    """Create adapter `name` with the function of a PEFT folder; it starts frozen.

    Args:
        adapters: Adapters on the base that it was trained on.
        name: Name of the new adapter.
        folder: `adapter_config.json` and `adapter_model.safetensors`.
        seed: Seed of the rows of A beyond its rank.

    Returns:
        Number of linear layers that it covers.

    Raises:
        UserError: It is not plain LoRA, has a higher rank than ours, or was made for another base.
    """
    try:
        config = LoraConfig.from_pretrained(str(folder))
        weights = load_peft_weights(str(folder), device="cpu")
    except Exception as error:  # whatever a foreign file provokes
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{_FLAG} {folder}: cannot be read as a PEFT adapter ({reason})") from error
    check_adapter(config, folder)
    if config.r > adapters.lora.r:
        raise UserError(
            f"{_FLAG} {folder}: has rank {config.r}; give --lora.r {config.r} or more (this run "
            f"has {adapters.lora.r})"
        )
    _check_base(adapters, config, folder)
    adapters.add(name, seed=seed)
    parameters = adapters.parameters(name)
    pairs = _lora_pairs(weights, parameters, adapters.base.name, folder)
    scale = (config.lora_alpha / config.r) / (adapters.lora.alpha / adapters.lora.r)
    if not any(bool(lora_b.any()) for _, lora_b in pairs.values()):
        raise UserError(f"{_FLAG} {folder}: every B matrix is zero, so nothing was trained")
    with torch.no_grad():
        for layer, (lora_a, lora_b) in pairs.items():
            parameters[f"{layer}.lora_A"][: config.r].copy_(lora_a)
            parameters[f"{layer}.lora_B"][:, : config.r].copy_(float64(lora_b) * scale)
    return len(pairs)


def _check_base(adapters: Adapters, config: LoraConfig, folder: Path) -> None:
    # An adapter of ours tells exactly which base it fits; of others only the base's name is known.
    place = f"{_FLAG} {folder}"
    if check_fingerprint(folder, adapters.fingerprint(), place, adapters.fits_earlier):
        return
    trained_on = str(config.base_model_name_or_path or "")
    if trained_on and _last_part(trained_on) != _last_part(adapters.base.name):
        logger.warning(
            "%s %s was trained on %s, and this run has --base %s; is it the same model?",
            _FLAG,
            folder,
            trained_on,
            adapters.base.name,
        )


def _lora_pairs(
    weights: dict[str, Tensor], parameters: dict[str, torch.nn.Parameter], base: str, folder: Path
) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of each layer, checked against the shapes of our adapter."""
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in weights.items():
        path, _, kind = key.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".")
        layers.setdefault(path, {})[kind] = tensor
    refused = f"{_FLAG} {folder}: does not fit --base {base}"
    pairs = {}
    for path, matrices in layers.items():
        if matrices.keys() != {"lora_A", "lora_B"} or f"{path}.lora_A" not in parameters:
            raise UserError(f"{refused}: it lies on {path}, which is no linear layer of its blocks")
        lora_a, lora_b = matrices["lora_A"], matrices["lora_B"]
        inputs = parameters[f"{path}.lora_A"].shape[1]
        outputs = parameters[f"{path}.lora_B"].shape[0]
        if (lora_a.shape[1], lora_b.shape[0]) != (inputs, outputs):
            raise UserError(
                f"{refused}: {path} is {lora_b.shape[0]} x {lora_a.shape[1]} there, and "
                f"{outputs} x {inputs} in the base; it was made for another model"
            )
        pairs[path] = (lora_a, lora_b)
    if not pairs:
        raise UserError(f"{refused}: it holds no LoRA matrices")
    return pairs


def _last_part(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].lower()
