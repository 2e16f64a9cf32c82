"""Whether a run has room: on the disk before it starts, and on the card before the base is loaded.

Both are plans, from the base's configuration alone.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from huggingface_hub import constants, try_to_load_from_cache

from alpaca_rlhf.core.embedded import EMBEDDED
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.models.base import base_config, default_dtype
from alpaca_rlhf.planner import (
    Budget,
    Card,
    Device,
    Shape,
    card_of,
    from_config,
    refuse_too_small,
    written,
)
from alpaca_rlhf.settings import Loop

logger = logging.getLogger(__name__)

SLOW = 500_000_000
"""Weights above which a processor takes days for what a card does in hours; an estimate."""
_GIB = 2**30
_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
)


def shape_of_run(settings: Loop) -> Shape:
    """The sizes of a run's base.

    Raises:
        UserError: There is no such base, the hub does not give it, or it is not LLaMA-like.
    """
    return from_config(settings.base, base_config(settings.base).to_dict())


def check_disk(shape: Shape, settings: Loop, left: Collection[tuple[str, int]]) -> None:
    """Refuse a run that the disk has no room for: what it writes, and what must be downloaded.

    Args:
        shape: The base.
        settings: Those of the run.
        left: Name and round of every stage that is not done.

    Raises:
        UserError: The disk is too small.
    """
    needs = {_there(settings.out): sum(written(shape, settings, left).values())}
    fetched = _to_download(shape, settings)
    if fetched:
        cache = _there(Path(constants.HF_HUB_CACHE))
        needs[cache] = needs.get(cache, 0) + fetched
    for place, needed in _by_disk(needs).items():
        free = free_bytes(place)
        if free < needed:
            weights = f", {fetched / _GIB:.1f} of them for the weights" if fetched else ""
            raise UserError(
                f"--out {settings.out}: this run needs {_said(needed)} GiB{weights}, and the disk "
                f"of {place} has {_said(free)} GiB free; free some space, or give another --out"
                + (", or let HF_HOME name another disk" if fetched else "")
            )


def check_card(shape: Shape, settings: Loop, left: Collection[tuple[str, int]]) -> None:
    """Refuse a card that is too small for what is left, and warn of what it cannot do as it stands.

    Without a card it warns of a base that is too large for the processor.

    Args:
        shape: The base.
        settings: Those of the run.
        left: Name and round of every stage that is not done.

    Raises:
        UserError: A stage does not fit even with one row at a time.
    """
    card = own_card()
    if card is None:
        if shape.parameters > SLOW:
            logger.warning(
                "no graphics card is seen: %.1f billion weights on the processor take very long; "
                "see `alpaca-rlhf doctor`",
                shape.parameters / 1e9,
            )
        return
    names = {name for name, _ in left}
    if settings.generate.endpoint.url is not None:
        names.discard("generate")
    width = default_dtype(torch.device("cuda")).itemsize
    budget = Budget(shape, card, device=Device("cuda", width))
    refuse_too_small(budget, settings, names)
    for stage, phases in budget.phases(settings).items():
        worst = max(phases, key=lambda one: one.peak)
        if stage in names and worst.peak > budget.bytes:
            logger.warning(
                "%s is planned to take %.1f GiB, and %s has %.1f free: lower %s, or give --auto",
                stage,
                worst.peak / _GIB,
                card.name,
                card.gib,
                worst.flag,
            )


def own_card() -> Card | None:
    """This machine's card, with what no program holds of it now; None without one."""
    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    gib = max(1, torch.cuda.mem_get_info()[0]) / _GIB
    return replace(card_of(f"{gib:.4g}"), name=found.name, here=True)


def free_bytes(place: Path) -> int:
    """Bytes that may be written to the disk of a folder."""
    return shutil.disk_usage(place).free


def _to_download(shape: Shape, settings: Loop) -> int:
    """Bytes of a hub id's weights, in 16 bit, that are not in the cache."""
    name = settings.base
    if name == EMBEDDED or Path(name).expanduser().is_dir():
        return 0
    if any(isinstance(try_to_load_from_cache(name, one), str) for one in _WEIGHT_FILES):
        return 0
    return 2 * shape.parameters


def _there(path: Path) -> Path:
    """The nearest folder that exists."""
    place = path.expanduser().absolute()
    while not place.exists():
        place = place.parent
    return place


def _by_disk(needs: Mapping[Path, int]) -> dict[Path, int]:
    """What is needed of each disk, under the first of its folders."""
    first: dict[int, Path] = {}
    found: dict[Path, int] = {}
    for place, needed in needs.items():
        own = first.setdefault(place.stat().st_dev, place)
        found[own] = found.get(own, 0) + needed
    return found


def _said(size: int) -> str:
    return f"{size / _GIB:.2f}" if size < 10 * _GIB else f"{size / _GIB:.0f}"
