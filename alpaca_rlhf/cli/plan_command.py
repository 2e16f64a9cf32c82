"""`alpaca-rlhf plan`: the memory, time and cost of a run; `--auto` chooses what fits the card."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich import box
from rich.table import Table

from alpaca_rlhf.cli import own_files
from alpaca_rlhf.cli.terminal import PROGRAM, Terminal
from alpaca_rlhf.core import gpu_lock, processes, quiet
from alpaca_rlhf.core.bases import SMOLLM2, is_local, smollm2_folder
from alpaca_rlhf.core.durations import duration
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.kernels import WORDS
from alpaca_rlhf.planner import (
    CPU,
    Budget,
    GpuSpec,
    Lengths,
    Phase,
    Rates,
    StageWork,
    changed_flags,
    device_of,
    find_gpu,
    fitted,
    largest_fitting,
    refuse_too_small,
    shape_of,
)
from alpaca_rlhf.planner.shapes import KNOWN_SHAPES
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.settings.bounds import NonNegativeFloat, PositiveFloat, PositiveInt
from alpaca_rlhf.sources import read_rows

AUTO, LENGTHS, JSON = "--auto", "--auto-lengths", "--json"
HELP = (
    f"{AUTO} chooses micro-batches and batches that fit the card (results stay the same), "
    f"{LENGTHS} may make rows and completions shorter too; --card names one (24, rtx-3090, cpu)"
)
_DEFAULT_CARD = "24"
"""Memory in GiB of the card that is planned for where none is named."""
ASSUMED_ROWS = 10_000
"""Rows to train on where nothing says how many there are."""
_COLUMN_ITEMS = {
    "base": ("weights in 4 bit", "embeddings, head and norms", "one matrix in 16 bit"),
    "LoRA": ("adapters", "gradients", "optimiser"),
    "activ.": ("activations", "token ids and masks"),
    "logits": ("logits",),
    "KV": ("keys and values",),
    "copy": ("16-bit copy of the base",),
    "spare": ("CUDA context and gaps", "libraries and gaps"),
}
"""Items of a phase that each column of the table sums up."""
_ANY_WIDTH = 1000
"""Columns of a terminal that no table fills."""
_LEGEND = (
    "LoRA: adapters, gradients, optimiser; activ.: activations; KV: KV cache; copy: 16-bit copy of "
    "the base while sampling, on a CPU while training too; spare: CUDA context (on a CPU: Python "
    "with its libraries) and gaps, estimated"
)


@dataclass(frozen=True)
class Plan(Loop):
    """Flags of `alpaca-rlhf plan`: those of the loop, and these."""

    card: str | None = None
    """The graphics card: its memory in GiB, or a name such as rtx-3090; `cpu` for none. By default
    24 GiB, at the rates of the slowest card of that size."""

    @property
    def gpu(self) -> GpuSpec:
        """The card that is planned for.

        Raises:
            UserError: Its name is unknown.
        """
        return find_gpu(self.card or _DEFAULT_CARD)

    prompt_tokens: PositiveInt = Lengths.prompt
    """Tokens of the longest prompt, its template included."""
    rows: PositiveInt | None = None
    """Rows to train on; by default those of --inputs.data, or what self-instruct makes."""
    tflops: PositiveFloat | None = None
    """10^12 operations a second that a run reaches; by default a share of the data sheet's."""
    bandwidth: PositiveFloat | None = None
    """GB a second that decoding reads; by default a share of the data sheet's."""
    watts: PositiveFloat | None = None
    """Power drawn; by default the card's."""
    price_kwh: NonNegativeFloat | None = None
    """Price of a kWh; by default --evaluate.usd-per-kwh."""
    price_hour: NonNegativeFloat = 0.0
    """Price of an hour of a hired card."""


def run(flags: Plan, settings: Loop, switches: Sequence[str], terminal: Terminal) -> int:
    """Plan a loop, show the plan, and name the next command.

    Args:
        flags: All flags.
        settings: The loop's flags alone.
        switches: `--auto`, `--auto-lengths` and `--json` as they were typed.
        terminal: Terminal to write to.

    Returns:
        The exit code, 0.

    Raises:
        UserError: The card is too small, the base is unknown, and the like.
    """
    show(flags, settings, switches, terminal)
    if JSON not in switches:
        terminal.say()
        terminal.say_next([_next(flags, settings, switches)])
    return 0


def _next(flags: Plan, settings: Loop, switches: Sequence[str]) -> tuple[str, str]:
    """The run that was planned, or a check of the base where only its sizes are known here."""
    if flags.base == SMOLLM2 and not smollm2_folder().is_dir():
        return f"{PROGRAM} base get {SMOLLM2}", "fetch the base that was planned for, 93 MiB, once"
    if flags.base in KNOWN_SHAPES and not is_local(flags.base):
        command = f"{PROGRAM} doctor --base HUB_ID_OR_FOLDER"
        return command, f"`{flags.base}` names sizes alone: check the base that you mean"
    words = [LENGTHS if LENGTHS in switches else AUTO]
    words += ["--card", "cpu"] if flags.gpu == CPU else []
    return own_files.loop_command(settings, *words), "run it with what fits this machine's card"


def show(flags: Plan, settings: Loop, switches: Sequence[str], terminal: Terminal) -> None:
    """Plan a loop and show the plan; arguments and errors as in `run`."""
    # 1. Peak memory of every phase on this card, for the settings as typed or the largest that fit.
    quiet.quiet(flags.base)
    shape, card = shape_of(flags.base), flags.gpu
    budget = Budget(shape, card, Lengths(prompt=flags.prompt_tokens), device_of(card))
    if LENGTHS not in switches:
        refuse_too_small(budget, settings)
    best = largest_fitting(budget, settings, lengths=LENGTHS in switches)
    planned = best if AUTO in switches or LENGTHS in switches else settings
    phases = budget.phases(planned)
    # 2. Time and cost of every stage.
    rates = _rates(flags, card)
    rows, counted = _rows(flags, settings)
    checkpointing = planned.checkpoints_on(budget.device.kind)
    work = StageWork(shape, planned, budget.lengths, rows, checkpointing).all()
    seconds = {
        name: stage.seconds(rates, shape.layers) for name, stage in work.items() if name in phases
    }
    prices = _Prices.of(flags, card)
    # 3. Show both, and larger settings that would fit.
    if JSON in switches:
        plan = _as_json(budget, phases, seconds, prices, changed_flags(settings, best))
        terminal.say(json.dumps(plan, indent=1))
        return
    terminal.say(
        f"{flags.base}: {shape.parameters / 1e9:.2f} billion weights; card: {card.name}, "
        f"{card.gib:g} GiB. Nothing here is measured on that card"
    )
    if flags.card is None:
        terminal.say(
            f"no --card was given, so one of {card.name} is assumed; name yours (--card rtx-3060), "
            "its memory (--card 12), or --card cpu"
        )
    kernel = budget.device.kernel(shape)
    if kernel != "cpu":
        terminal.say(f"attention in training: {kernel}, {WORDS[kernel]}")
    table = _memory_table(phases, budget.bytes)
    wide = terminal.console.options.update(max_width=_ANY_WIDTH)
    if terminal.console.measure(table, options=wide).minimum > terminal.console.width:
        table = _memory_table(phases, budget.bytes, columns={})
        terminal.console.print(table, markup=False)
        terminal.say("a wider terminal, or --json, shows what each peak is made of")
    else:
        terminal.console.print(table, markup=False)
        terminal.say(_LEGEND)
    for line in _too_much(phases, budget.bytes):
        terminal.say(line)
    terminal.console.print(_time_table(seconds, prices), markup=False)
    projected = flags.tflops is None or flags.bandwidth is None
    source = "two cores" if card == CPU else "the data sheet"
    terminal.say(
        f"time: {rates.tflops:.3g} TFLOPS, {rates.bandwidth:.3g} GB/s"
        + (f" (projected from {source})" if projected else "")
        + f"; rows half as long as the longest; {rows:,} rows to train on{counted}"
    )
    larger = changed_flags(planned, best)
    if larger:
        terminal.say("the largest that fit, with the same results (--auto takes them):")
        for flag, (before, after) in larger.items():
            terminal.say(f"  {flag} {after}   (now {before})")


def taken(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split the arguments of a command into switches without a value and all others."""
    switches = (AUTO, LENGTHS, JSON)
    return (
        [argument for argument in arguments if argument in switches],
        [argument for argument in arguments if argument not in switches],
    )


def card_word(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of `--card` among the arguments of `loop`, and the other arguments.

    Raises:
        UserError: It has no value.
    """
    others = list(arguments)
    for at, argument in enumerate(arguments):
        if argument.startswith("--card="):
            return argument.partition("=")[2], others[:at] + others[at + 1 :]
        if argument == "--card":
            if at + 1 == len(arguments):
                raise UserError("--card needs a value: its memory in GiB, or a name")
            return arguments[at + 1], others[:at] + others[at + 2 :]
    return None, others


def auto(settings: Loop, switches: Sequence[str], card: str | None, terminal: Terminal) -> Loop:
    """The settings that fit this machine's card, or the card named.

    Raises:
        UserError: There is no card, or it is too small.
    """
    gpu = find_gpu(card) if card else _local_gpu(settings.base)
    if gpu is None:
        raise UserError(f"{AUTO}: no graphics card is seen here; name one, e.g. --card 24")
    budget = Budget(shape_of(settings.base), gpu, device=device_of(gpu))
    fitting = largest_fitting(budget, settings, lengths=LENGTHS in switches)
    if not _tell(gpu, settings, fitting, terminal):
        terminal.say("  nothing: the settings are already the largest that fit")
    return fitting


def by_default(
    settings: Loop, card: str | None, with_typed: Callable[[Loop], Loop], terminal: Terminal
) -> Loop:
    """The numbers of a card's recipe in batches that fit this machine's card; a typed flag wins.

    They stay where there is no card, where an app holds a model on it, so that what is free says
    little, where several processes each have a card, and where the plan cannot tell.

    Args:
        settings: The recipe's numbers with the typed flags.
        card: The card to plan for instead of this machine's.
        with_typed: Applies the typed flags to other settings.
        terminal: Terminal to write to.
    """
    if card is None:
        held = any(note.holds for note in gpu_lock.live_notes("app", gpu_lock.folder()))
        gpu = None if held or processes.count() > 1 else _local_gpu(settings.base)
    else:
        gpu = find_gpu(card)
    if gpu is None:
        return settings
    fitting = fitted(settings, gpu)
    chosen = with_typed(fitting)
    if chosen != fitting:  # nothing was chosen together with the sizes that were typed
        chosen = replace(chosen, checkpointing=settings.checkpointing)
    if chosen != settings:
        _tell(gpu, settings, chosen, terminal)
    return chosen


def _tell(gpu: GpuSpec, before: Loop, after: Loop, terminal: Terminal) -> bool:
    """Show what was chosen for a card; True if it changes anything."""
    changed = changed_flags(before, after)
    terminal.say(f"chosen for {gpu.name}, {gpu.gib:.4g} GiB:")
    for flag, (old, new) in changed.items():
        terminal.say(f"  {flag} {new} (was {old})")
    return bool(changed)


def _local_gpu(base: str) -> GpuSpec | None:
    """This machine's card with the memory that is free now; None without one."""
    with quiet.loading(base):
        from alpaca_rlhf.stages.preflight import local_gpu
    return local_gpu()


def _rates(flags: Plan, card: GpuSpec) -> Rates:
    """The user's measurements; by default a share of the data sheet's rates, or a CPU's."""
    reached = Rates.reached(card)
    return Rates(flags.tflops or reached.tflops, flags.bandwidth or reached.bandwidth)


def _rows(flags: Plan, settings: Loop) -> tuple[int, str]:
    if flags.rows is not None:
        return flags.rows, ""
    path = settings.inputs.rows
    if path is None:
        return settings.generate.target + settings.generate.seeds, ""
    if path.is_file():
        return len(read_rows(settings.inputs)[0]), ""
    return ASSUMED_ROWS, f" (assumed: {path} is not there; give their number with --rows)"


@dataclass(frozen=True)
class _Prices:
    watts: float
    kwh: float
    hour: float

    @classmethod
    def of(cls, flags: Plan, card: GpuSpec) -> _Prices:
        kwh = flags.evaluate.usd_per_kwh if flags.price_kwh is None else flags.price_kwh
        return cls(flags.watts or card.watts, kwh, flags.price_hour)

    def energy(self, seconds: float) -> float:
        return seconds / 3600 * self.watts / 1000

    def money(self, seconds: float) -> float:
        return self.energy(seconds) * self.kwh + seconds / 3600 * self.hour


def _worst(phases: Sequence[Phase]) -> Phase:
    return max(phases, key=lambda phase: phase.peak)


def _memory_table(
    phases: Mapping[str, Sequence[Phase]],
    limit: int,
    columns: Mapping[str, Sequence[str]] = _COLUMN_ITEMS,
) -> Table:
    """The peak of every stage, with columns that sum up the items of its worst phase."""
    table = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title="peak memory, GiB", title_justify="left"
    )
    table.add_column("stage")
    table.add_column("at its worst")
    for name in (*columns, "peak"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, stage_phases in phases.items():
        worst = _worst(stage_phases)
        cells = []
        for items in columns.values():
            size = sum(worst.items.get(item, 0) for item in items) / 2**30
            cells.append(f"{size:.2f}" if size >= 0.005 else "-")
        mark = "" if worst.peak <= limit else " !"
        table.add_row(name, worst.name, *cells, f"{worst.peak / 2**30:.2f}{mark}")
    return table


def _too_much(phases: Mapping[str, Sequence[Phase]], limit: int) -> list[str]:
    lines = []
    for name, stage_phases in phases.items():
        for phase in stage_phases:
            if phase.peak > limit:
                need = phase.peak / 2**30
                lines.append(
                    f"! {name} does not fit: {phase.name} needs {need:.1f} of {limit / 2**30:g} "
                    f"GiB; lower {phase.flag}"
                )
    return lines


def _time_table(seconds: Mapping[str, float], prices: _Prices) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="time and cost, projected", title_justify="left")
    table.add_column("stage")
    for name in ("time", "kWh", "cost"):
        table.add_column(name, justify="right")
    total = sum(seconds.values())
    for name, stage_seconds in {**seconds, "all": total}.items():
        energy, money = prices.energy(stage_seconds), prices.money(stage_seconds)
        table.add_row(name, duration(stage_seconds), f"{energy:.2f}", f"{money:.2f}")
    return table


def _as_json(
    budget: Budget,
    phases: Mapping[str, Sequence[Phase]],
    seconds: Mapping[str, float],
    prices: _Prices,
    best: Mapping[str, tuple[object, object]],
) -> dict[str, Any]:
    stages = [
        {
            "name": name,
            "peak_gib": _worst(stage_phases).peak / 2**30,
            "fits": _worst(stage_phases).peak <= budget.bytes,
            "phases": [
                {
                    "name": phase.name,
                    "peak_gib": phase.peak / 2**30,
                    "lower": phase.flag,
                    "items_gib": {item: size / 2**30 for item, size in phase.items.items()},
                }
                for phase in stage_phases
            ],
            "seconds": seconds.get(name),
            "kwh": prices.energy(seconds[name]) if name in seconds else None,
            "cost": prices.money(seconds[name]) if name in seconds else None,
        }
        for name, stage_phases in phases.items()
    ]
    return {
        "base": budget.shape.name,
        "parameters": budget.shape.parameters,
        "card": {"name": budget.gpu.name, "gib": budget.gpu.gib},
        "attention": budget.device.kernel(budget.shape),
        "stages": stages,
        "largest": {flag: after for flag, (_, after) in best.items()},
        "measured": False,
    }
