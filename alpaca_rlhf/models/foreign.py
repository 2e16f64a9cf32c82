"""Somebody else's LoRA adapter (a plain PEFT folder) as one of ours, with the same function.

Ours all have one rank and lie on every linear layer. A foreign adapter of a lower rank, another
alpha or on some of the layers is written into that shape: its A into the first rows, its B, scaled,
into the first columns. The other rows of A are random and the other columns of B zero, as in a new
adapter: they change nothing, and can learn.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import torch
from peft import LoraConfig
from peft.utils.save_and_load import load_peft_weights
from torch import Tensor

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.models.adapters import FINGERPRINT, Adapters
from alpaca_rlhf.models.likeness import check_adapter

logger = logging.getLogger(__name__)

_FLAG = "--inputs.sft-adapter"
_PREFIX = "base_model.model."


def adopt(adapters: Adapters, name: str, folder: Path, *, seed: int = 0) -> int:
    """Make adapter `name` do what a PEFT folder does; it starts frozen.

    Args:
        adapters: Those of the base that it was trained on.
        name: What it is called here.
        folder: `adapter_config.json` and `adapter_model.safetensors`.
        seed: For the rows that it leaves free.

    Returns:
        Linear layers that it lies on.

    Raises:
        UserError: It is not plain LoRA, has a higher rank than ours, or was made for another base.
    """
    try:
        config = LoraConfig.from_pretrained(str(folder))
        found = load_peft_weights(str(folder), device="cpu")
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
    own = adapters.parameters(name)
    pairs = _pairs(found, own, adapters.base.name, folder)
    scale = (config.lora_alpha / config.r) / (adapters.lora.alpha / adapters.lora.r)
    if not any(bool(up.any()) for _, up in pairs.values()):
        raise UserError(f"{_FLAG} {folder}: every B matrix is zero, so nothing was trained")
    with torch.no_grad():
        for layer, (down, up) in pairs.items():
            own[f"{layer}.lora_A"][: config.r].copy_(down)
            own[f"{layer}.lora_B"][:, : config.r].copy_(up.double() * scale)
    return len(pairs)


def _check_base(adapters: Adapters, config: LoraConfig, folder: Path) -> None:
    base = adapters.base
    path = folder / FINGERPRINT
    if path.is_file():  # it was made here, so it is known what it fits
        made = json.loads(path.read_text(encoding="utf-8"))
        for key, ours in adapters.fingerprint().items():
            if key != "base_name" and made.get(key) != ours:
                raise UserError(
                    f"{_FLAG} {folder}: trained on {made.get('base_name')!r} with {key} "
                    f"{made.get(key)}, but this run has {base.name!r} with {key} {ours}"
                )
        return
    named = str(config.base_model_name_or_path or "")
    if named and _last(named) != _last(base.name):
        logger.warning(
            "%s %s was trained on %s, and this run has --base %s; is it the same model?",
            _FLAG,
            folder,
            named,
            base.name,
        )


def _pairs(
    found: dict[str, Tensor], own: dict[str, torch.nn.Parameter], base: str, folder: Path
) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of each layer."""
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in found.items():
        path, _, kind = key.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".")
        layers.setdefault(path, {})[kind] = tensor
    refused = f"{_FLAG} {folder}: does not fit --base {base}"
    pairs = {}
    for path, parts in layers.items():
        if parts.keys() != {"lora_A", "lora_B"} or f"{path}.lora_A" not in own:
            raise UserError(f"{refused}: it lies on {path}, which is no linear layer of its blocks")
        down, up = parts["lora_A"], parts["lora_B"]
        ours = own[f"{path}.lora_A"].shape[1], own[f"{path}.lora_B"].shape[0]
        if (down.shape[1], up.shape[0]) != ours:
            raise UserError(
                f"{refused}: {path} is {up.shape[0]} x {down.shape[1]} there, and "
                f"{ours[1]} x {ours[0]} in the base; it was made for another model"
            )
        pairs[path] = (down, up)
    if not pairs:
        raise UserError(f"{refused}: it holds no LoRA matrices")
    return pairs


def _last(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].lower()
