"""Checks before a run: disk space before it starts, GPU memory before the base is loaded.

Both are forecasts from the base's configuration alone.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from huggingface_hub import constants, try_to_load_from_cache

from alpaca_rlhf.core.bases import is_local
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.files import nearest_folder
from alpaca_rlhf.core.shell_words import quoted
from alpaca_rlhf.data import SHIPPED, answered_prompts, check_disjoint, read_prompts
from alpaca_rlhf.models.attention import compute_capability
from alpaca_rlhf.models.base import base_config, default_dtype
from alpaca_rlhf.models.devices import default_device
from alpaca_rlhf.models.text_base import TextBase
from alpaca_rlhf.planner import (
    Budget,
    Device,
    GpuSpec,
    Shape,
    disk_needs,
    find_gpu,
    refuse_too_small,
    shape_from_config,
)
from alpaca_rlhf.settings import Inputs, Loop
from alpaca_rlhf.sources import Source, read_rows, reading_of
from alpaca_rlhf.stages.lengths import refuse_huge_prompts, refuse_long_prompts, refuse_long_rows
from alpaca_rlhf.stages.lost_replies import refuse_lost_replies

logger = logging.getLogger(__name__)

SLOW_WEIGHTS = 500_000_000
"""Weights above which a processor takes days for what a GPU does in hours; an estimate."""
_GIB = 2**30
_WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")


def shape_of_run(settings: Loop) -> Shape:
    """Read the sizes of a run's base.

    Raises:
        UserError: The base does not exist, the hub refuses it, or it is of no family that is taken.
    """
    return shape_from_config(settings.base, base_config(settings.base).to_dict())


def check_disk(shape: Shape, settings: Loop, unfinished: Collection[tuple[str, int]]) -> None:
    """Refuse a run that the disk has no room for: its files, and the weights to download.

    Args:
        shape: Sizes of the base.
        settings: Every number of the run.
        unfinished: Name and round of every stage that is yet to run.

    Raises:
        UserError: The disk is too small.
    """
    # 1. Bytes needed in the run folder and in the hub's cache.
    needs = {nearest_folder(settings.out): sum(disk_needs(shape, settings, unfinished).values())}
    download = _bytes_to_download(shape, settings)
    if download:
        cache = nearest_folder(Path(constants.HF_HUB_CACHE))
        needs[cache] = needs.get(cache, 0) + download

    # 2. Folders on one disk share its free space.
    for folder, needed in _by_disk(needs).items():
        free = free_bytes(folder)
        if free < needed:
            weights = f", {download / _GIB:.1f} of them for the weights" if download else ""
            raise UserError(
                f"--out {settings.out}: this run needs {_in_gib(needed)} GiB{weights}, and the "
                f"disk of {folder} has {_in_gib(free)} GiB free; free some space, or give another "
                "--out" + (", or let HF_HOME name another disk" if download else "")
            )


def check_gpu(shape: Shape, settings: Loop, unfinished: Collection[tuple[str, int]]) -> None:
    """Refuse a GPU that is too small for any setting, and warn where these settings do not fit.

    Without a GPU, warn of a base that is too large for the processor.

    Args:
        shape: Sizes of the base.
        settings: Every number of the run.
        unfinished: Name and round of every stage that is yet to run.

    Raises:
        UserError: A stage does not fit even with one row at a time.
    """
    gpu = local_gpu()
    if gpu is None:
        if shape.parameters > SLOW_WEIGHTS and default_device().type == "cpu":
            logger.warning(
                "no graphics card is seen: %.1f billion weights on the processor take very long; "
                "see `alpaca-rlhf doctor`",
                shape.parameters / 1e9,
            )
        return
    names = {name for name, _ in unfinished}
    if settings.generate.endpoint.url is not None:
        names.discard("generate")
    width = default_dtype(torch.device("cuda")).itemsize
    budget = Budget(shape, gpu, device=Device("cuda", width, gpu.capability))
    refuse_too_small(budget, settings, names)
    for stage, phases in budget.phases(settings).items():
        worst = max(phases, key=lambda phase: phase.peak)
        if stage in names and worst.peak > budget.bytes:
            logger.warning(
                "%s is planned to take %.1f GiB, and %s has %.1f free: lower %s, or give --auto",
                stage,
                worst.peak / _GIB,
                gpu.name,
                gpu.gib,
                worst.flag,
            )


def local_gpu() -> GpuSpec | None:
    """The GPU that a base is loaded on, with the memory that is free now; None without one."""
    device = default_device()
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    index = torch.cuda.current_device() if device.index is None else device.index
    properties = torch.cuda.get_device_properties(index)
    gib = max(1, torch.cuda.mem_get_info(index)[0]) / _GIB
    return replace(
        find_gpu(f"{gib:.4g}"),
        name=properties.name,
        capability=compute_capability(torch.device("cuda", index)),
        local=True,
    )


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk of a folder."""
    return shutil.disk_usage(folder).free


def _bytes_to_download(shape: Shape, settings: Loop) -> int:
    """Bytes of a hub id's 16-bit weights that are not in the cache yet."""
    name = settings.base
    if is_local(name):
        return 0
    if any(isinstance(try_to_load_from_cache(name, file), str) for file in _WEIGHT_FILES):
        return 0
    return 2 * shape.parameters


def _by_disk(needs: Mapping[Path, int]) -> dict[Path, int]:
    """Bytes needed on each disk, under the first of its folders."""
    folder_of_disk: dict[int, Path] = {}
    totals: dict[Path, int] = {}
    for folder, needed in needs.items():
        first = folder_of_disk.setdefault(folder.stat().st_dev, folder)
        totals[first] = totals.get(first, 0) + needed
    return totals


def _in_gib(size: int) -> str:
    return f"{size / _GIB:.2f}" if size < 10 * _GIB else f"{size / _GIB:.0f}"


def refuse_leaks(settings: Loop, source: Source) -> None:
    """Refuse prompts that lie near a row of the user's to train on.

    The stage `sft` asks again, of generated rows too; here no folder has been made yet.

    Raises:
        UserError: Two prompts are near-duplicates; the message names them and the next command.
    """
    if settings.inputs.rows is None:
        return
    rows, _ = read_rows(settings.inputs)
    splits = {name: source.prompts(name) for name in source.names()}
    check_disjoint(
        {"sft": answered_prompts(rows), **splits},
        source.key,
        way_out=leak_way_out(settings.inputs),
    )


def refuse_huge_prompts_of(settings: Loop, base: TextBase) -> None:
    """Refuse prompts of the user's files that no base could read, before they are dealt.

    Raises:
        UserError: There is one, or a file cannot be read.
    """
    inputs = settings.inputs
    names = ("prompts", "splits.rank", "splits.ppo", "splits.eval", "splits.dev")
    paths = [path for name, path in inputs.files().items() if name in names]
    for path in paths if inputs.prompts_from == "files" else []:
        reading = reading_of(inputs, "prompts", path)
        refuse_huge_prompts(base, path, read_prompts(path, reading))


def refuse_unfit(settings: Loop, source: Source, base: TextBase) -> None:
    """Refuse rows that the chat template alters, and those and prompts that have no room.

    The stage `sft` asks again, of generated rows too; here no folder has been made yet.

    Raises:
        UserError: Nothing can be learned from a row, no row fits, or a prompt leaves no room for a
            completion.
    """
    inputs = settings.inputs
    if inputs.rows is not None and inputs.sft_adapter is None:
        refuse_lost_replies(base, settings)
        refuse_long_rows(base, settings, read_rows(inputs)[0])
    if inputs.prompts_from == "files":
        splits = {name: source.prompts(name) for name in source.names()}
        refuse_long_prompts(base, settings, splits)


def leak_way_out(inputs: Inputs) -> str:
    """The next steps after a leak between the user's own files; nothing to add without them."""
    rows = inputs.data if inputs.data is not None else inputs.seeds
    files = [path for path in (rows, inputs.prompts) if path is not None]
    if not files and inputs.splits is None:
        return ""
    leave_out = "leave the leaking prompts out, counted, with --inputs.leaks drop"
    # The kit's own seed tasks are no file to deal: without them a folder of splits has no rows.
    if inputs.splits is not None or str(inputs.seeds) in SHIPPED:
        return f"; {leave_out}"
    listed = " ".join(map(quoted, dict.fromkeys(files)))
    listed += f" --columns {quoted(inputs.columns)}" if inputs.columns else ""
    listed += " --broken drop" if inputs.broken == "drop" else ""
    return (
        f"; deal all rows with: alpaca-rlhf split --data {listed} --out FOLDER (then "
        f"--inputs.splits FOLDER), or {leave_out}"
    )
