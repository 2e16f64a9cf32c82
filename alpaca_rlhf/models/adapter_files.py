"""Adapters on disk: plain PEFT folders with a fingerprint of the base they belong to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.utils.save_and_load import get_peft_model_state_dict, load_peft_weights
from torch import Tensor

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.files import atomic_write, sync_folder, writing
from alpaca_rlhf.models.compatibility import check_adapter
from alpaca_rlhf.models.heads import ScalarHead
from alpaca_rlhf.settings import Lora

FINGERPRINT = "fingerprint.json"
"""File in an adapter's folder: the base, quantisation and template that the adapter fits."""
_TOLD = ("base_name", "dtype")
"""Keys of that file which may differ: they tell, and identify nothing."""


def write_adapter(
    peft: PeftModel,
    name: str,
    folder: Path,
    fingerprint: Mapping[str, Any],
    head: ScalarHead | None = None,
    trained: bool = True,
) -> None:
    """Write a plain PEFT folder, its head beside it; then reopen it and compare every tensor.

    An adapter `sft` that was trained must change the base; one that was not need not.

    Raises:
        UserError: It cannot be written: no permission, no space. The previous folder stays.
        RuntimeError: The file does not hold what was trained.
    """
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with writing(folder):
            # 1. Write everything into a folder beside the final one.
            temporary.mkdir(parents=True)
            _save_peft(peft, name, temporary)
            if head is not None:
                head.save(temporary)
            atomic_write(temporary / FINGERPRINT, json.dumps(fingerprint, indent=2))
            # 2. Read it back and compare.
            _check_written(peft, name, temporary, trained=trained)
            # 3. Flush it, and only then let it take the place of the previous folder.
            for file in temporary.iterdir():
                sync_folder(file)  # a file is flushed the same way
            sync_folder(temporary)
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
            sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _save_peft(peft: PeftModel, name: str, folder: Path) -> None:
    # The embeddings are the base's; left to itself PEFT asks the hub whether they have grown.
    peft.save_pretrained(str(folder), selected_adapters=[name], save_embedding_layers=False)
    # PEFT writes every adapter but `default` into a folder of its name.
    if (folder / name).is_dir():
        for file in (folder / name).iterdir():
            file.rename(folder / file.name)
        (folder / name).rmdir()
    (folder / "README.md").unlink(missing_ok=True)


def _check_written(peft: PeftModel, name: str, folder: Path, *, trained: bool) -> None:
    written = load_peft_weights(str(folder), device="cpu")
    expected = get_peft_model_state_dict(peft, adapter_name=name, save_embedding_layers=False)
    if written.keys() != expected.keys() or not all(
        torch.equal(written[key], expected[key].cpu()) for key in written
    ):
        raise RuntimeError(f"{folder}: reopened adapter differs from the one in memory")
    must_change = trained and name == "sft"
    if must_change and not any(w.any() for key, w in written.items() if "lora_B" in key):
        raise RuntimeError(f"{folder}: every B matrix is zero, so nothing was trained")


def read_adapter(
    folder: Path,
    lora: Lora,
    fingerprint: Mapping[str, Any],
    fits_earlier: Callable[[object], bool],
) -> dict[str, Tensor]:
    """Weights of an adapter of ours, by PEFT's names.

    Args:
        folder: A plain PEFT folder.
        lora: The shape that it must have.
        fingerprint: The base, quantisation and template that it must have been trained with.
        fits_earlier: True for a fingerprint that an earlier version gave the same base.

    Raises:
        UserError: It is not there, or it belongs to another base, template or shape.
    """
    config = check_settings(folder, lora, fingerprint, f"{folder}", fits_earlier)
    try:
        weights: dict[str, Tensor] = load_peft_weights(str(folder), device="cpu")
    except Exception as error:  # whatever an empty or cut file provokes
        raise UserError(f"{folder}: {_unreadable(error)}") from None
    check_adapter(config, folder)
    return weights


def check_settings(
    folder: Path,
    lora: Lora,
    fingerprint: Mapping[str, Any],
    place: str,
    fits_earlier: Callable[[object], bool],
) -> LoraConfig:
    """Compare an adapter of ours with this run, without its weights; returns its configuration.

    Args:
        folder: A plain PEFT folder.
        lora: The shape that it must have.
        fingerprint: The base, quantisation and template that it must have been trained with, or
            those of them that are known.
        place: Names the folder in the message.
        fits_earlier: True for a fingerprint that an earlier version gave the same base.

    Raises:
        UserError: It is not there, or it belongs to another base, template or shape.
    """
    if not (folder / "adapter_config.json").is_file():
        raise UserError(f"{place}: no adapter_config.json; give the folder of a PEFT LoRA adapter")
    try:
        config: LoraConfig = LoraConfig.from_pretrained(str(folder))
    except Exception as error:  # whatever an empty or cut file provokes
        raise UserError(f"{place}: {_unreadable(error)}") from None
    if (config.r, config.lora_alpha) != (lora.r, lora.alpha):
        raise UserError(
            f"{place}: r={config.r}, alpha={config.lora_alpha}, but this run has "
            f"--lora.r {lora.r} --lora.alpha {lora.alpha}; use the adapter's own"
        )
    check_fingerprint(folder, fingerprint, place, fits_earlier)
    return config


def _unreadable(error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"is no whole PEFT adapter ({reason}); put its files back, or train the stage anew"


def check_fingerprint(
    folder: Path,
    fingerprint: Mapping[str, Any],
    place: str,
    fits_earlier: Callable[[object], bool],
) -> bool:
    """Compare an adapter's fingerprint with that of this run; False if the folder has none.

    Args:
        folder: The adapter's folder.
        fingerprint: Of this run.
        place: Names the folder in the message.
        fits_earlier: True for a fingerprint that an earlier version gave the same base.

    Raises:
        UserError: They differ in more than the name of the base and the dtype it computed in.
    """
    saved = saved_fingerprint(folder, place)
    if saved is None:
        return False
    for key, value in fingerprint.items():
        if key in _TOLD or saved.get(key) == value:
            continue
        if key == "base" and fits_earlier(saved.get(key)):
            continue
        raise UserError(
            f"{place}: trained on {saved.get('base_name')!r} with {key} {saved.get(key)}, "
            f"but this run has {fingerprint['base_name']!r} with {key} {value}"
        )
    return True


def saved_fingerprint(folder: Path, place: str) -> dict[str, Any] | None:
    """The fingerprint beside an adapter; None if the folder has none.

    Raises:
        UserError: It cannot be read.
    """
    path = folder / FINGERPRINT
    if not path.is_file():
        return None
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{place}: {_unreadable(error)}") from None
