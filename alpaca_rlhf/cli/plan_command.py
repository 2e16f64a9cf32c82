"""`alpaca-rlhf plan`: what a run will take; and `--auto`, which chooses what fits the card."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table

from alpaca_rlhf.cli.terminal import PROGRAM, Terminal, duration, next_lines
from alpaca_rlhf.core import quiet
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.data import read_instructions
from alpaca_rlhf.planner import (
    CPU,
    REACHED_BANDWIDTH,
    REACHED_FLOPS,
    Budget,
    GpuSpec,
    Lengths,
    Phase,
    Rates,
    StageWork,
    changed_flags,
    device_of,
    find_gpu,
    largest_fitting,
    refuse_too_small,
    shape_of,
)
from alpaca_rlhf.settings import Loop

ABOUT = "memory, time and cost of a run before it is started, from the base's config.json alone"
AUTO, LENGTHS, JSON = "--auto", "--auto-lengths", "--json"
HELP = (
    f"{AUTO} chooses micro-batches and batches that fit the card (results stay the same), "
    f"{LENGTHS} may make rows and completions shorter too"
)
ASSUMED_ROWS = 10_000
"""Rows to train on where nothing says how many."""
_COLUMNS = {
    "base": ("weights in 4 bit", "embeddings, head and norms", "one matrix in 16 bit"),
    "LoRA": ("adapters", "gradients", "optimiser"),
    "activ.": ("activations", "token ids and masks"),
    "logits": ("logits",),
    "KV": ("keys and values",),
    "copy": ("16-bit copy of the base",),
    "spare": ("CUDA context and gaps",),
}
"""Columns of the table, and the items they sum up."""
_LEGEND = (
    "LoRA: adapters, gradients, optimiser; activ.: activations; KV: KV cache; copy: 16-bit copy of "
    "the base while sampling; spare: CUDA context and gaps, estimated"
)


@dataclass(frozen=True)
class Plan(Loop):
    """Flags of `alpaca-rlhf plan`: those of the loop, and these."""

    card: str = "24"
    """The graphics card: its memory in GiB, or a name such as rtx-3090; `cpu` for none."""
    prompt_tokens: int = Lengths.prompt
    """Tokens of the longest prompt, its template included."""
    rows: int | None = None
    """Rows to train on; by default those of --inputs.data, or what self-instruct makes."""
    tflops: float | None = None
    """10^12 operations a second that a run reaches; by default a share of the data sheet's."""
    bandwidth: float | None = None
    """GB a second that decoding reads; by default a share of the data sheet's."""
    watts: float | None = None
    """Power drawn; by default the card's."""
    price_kwh: float | None = None
    """Price of a kWh; by default --evaluate.usd-per-kwh."""
    price_hour: float = 0.0
    """Price of an hour of a hired card."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("prompt_tokens", "rows", "tflops", "bandwidth", "watts"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"--{name.replace('_', '-')} must be above 0, got {value:g}")
        for name in ("price_kwh", "price_hour"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 0, got {value:g}")


def run(asked: Plan, settings: Loop, words: Sequence[str], terminal: Terminal) -> int:
    """Plan a loop, show it, and tell the next command.

    Args:
        asked: Every flag.
        settings: Those of the loop alone.
        words: `--auto`, `--auto-lengths` and `--json` as they were typed.
        terminal: Where it is shown.

    Returns:
        The exit code, 0.

    Raises:
        UserError: The card is too small, the base unknown ...
    """
    show(asked, settings, words, terminal)
    if JSON not in words:
        command = f"{PROGRAM} loop --base {shlex.quote(asked.base)} {AUTO}"
        terminal.say()
        for line in next_lines([(command, "run it with what fits this machine's card")]):
            terminal.say(line)
    return 0


def show(asked: Plan, settings: Loop, words: Sequence[str], terminal: Terminal) -> None:
    """Plan a loop and show it; the rest is as in `run`."""
    quiet.quiet(asked.base)
    shape, card = shape_of(asked.base), find_gpu(asked.card)
    budget = Budget(shape, card, Lengths(prompt=asked.prompt_tokens), device_of(card))
    if LENGTHS not in words:
        refuse_too_small(budget, settings)
    best = largest_fitting(budget, settings, lengths=LENGTHS in words)
    shown = best if AUTO in words or LENGTHS in words else settings
    rates = _rates(asked, card)
    rows, counted = _rows(asked, settings)
    checkpointing = budget.device.kind == "cuda"
    work = StageWork(shape, shown, budget.lengths, rows, checkpointing).all()
    phases = budget.phases(shown)
    seconds = {n: one.seconds(rates, shape.layers) for n, one in work.items() if n in phases}
    prices = _Prices.of(asked, card)
    if JSON in words:
        told = _as_json(budget, phases, seconds, prices, changed_flags(settings, best))
        terminal.say(json.dumps(told, indent=1))
        return
    terminal.say(
        f"{asked.base}: {shape.parameters / 1e9:.2f} billion weights; card: {card.name}, "
        f"{card.gib:g} GiB. Nothing here is measured on that card"
    )
    terminal.console.print(_memory_table(phases, budget.bytes), markup=False)
    terminal.say(_LEGEND)
    for line in _too_much(phases, budget.bytes):
        terminal.say(line)
    terminal.console.print(_time_table(seconds, prices), markup=False)
    projected = asked.tflops is None or asked.bandwidth is None
    source = "two cores" if card == CPU else "the data sheet"
    terminal.say(
        f"time: {rates.tflops:.3g} TFLOPS, {rates.bandwidth:.3g} GB/s"
        + (f" (projected from {source})" if projected else "")
        + f"; rows half as long as the longest; {rows:,} rows to train on{counted}"
    )
    other = changed_flags(shown, best)
    if other:
        terminal.say("the largest that fit, with the same results (--auto takes them):")
        for flag, (before, after) in other.items():
            terminal.say(f"  {flag} {after}   (now {before})")


def taken(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Flags without a value among the words of a command, and the rest of the words."""
    bare = (AUTO, LENGTHS, JSON)
    return [one for one in words if one in bare], [one for one in words if one not in bare]


def card_word(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of `--card` among the words of `loop`, and the rest of them.

    Raises:
        UserError: It has no value.
    """
    rest = list(words)
    for at, word in enumerate(words):
        if word.startswith("--card="):
            return word.partition("=")[2], rest[:at] + rest[at + 1 :]
        if word == "--card":
            if at + 1 == len(words):
                raise UserError("--card needs a value: its memory in GiB, or a name")
            return words[at + 1], rest[:at] + rest[at + 2 :]
    return None, rest


def auto(settings: Loop, words: Sequence[str], card: str | None, terminal: Terminal) -> Loop:
    """The settings that fit the card of this machine, or the one that was named.

    Raises:
        UserError: There is no card, or it is too small.
    """
    named = find_gpu(card) if card else _own_card()
    budget = Budget(shape_of(settings.base), named, device=device_of(named))
    found = largest_fitting(budget, settings, lengths=LENGTHS in words)
    different = changed_flags(settings, found)
    terminal.say(f"chosen for {budget.gpu.name}, {budget.gpu.gib:.4g} GiB:")
    for flag, (before, after) in different.items():
        terminal.say(f"  {flag} {after} (was {before})")
    if not different:
        terminal.say("  nothing: the settings are the largest that fit already")
    return found


def _own_card() -> GpuSpec:
    from alpaca_rlhf.stages.preflight import local_gpu

    found = local_gpu()
    if found is None:
        raise UserError(f"{AUTO}: no graphics card is seen here; name one, e.g. --card 24")
    return found


def _rates(asked: Plan, card: GpuSpec) -> Rates:
    """What the user measured; else a share of the data sheet's, or what a CPU reached."""
    shares = (1.0, 1.0) if card == CPU else (REACHED_FLOPS, REACHED_BANDWIDTH)
    return Rates(
        asked.tflops or card.tflops * shares[0], asked.bandwidth or card.bandwidth * shares[1]
    )


def _rows(asked: Plan, settings: Loop) -> tuple[int, str]:
    if asked.rows is not None:
        return asked.rows, ""
    own = settings.inputs.rows
    if own is None:
        return settings.generate.target + settings.generate.seeds, ""
    if own.is_file():
        return len(read_instructions(own)), ""
    return ASSUMED_ROWS, f" (assumed: {own} is not there; say how many with --rows)"


@dataclass(frozen=True)
class _Prices:
    watts: float
    kwh: float
    hour: float

    @classmethod
    def of(cls, asked: Plan, card: GpuSpec) -> _Prices:
        kwh = asked.evaluate.usd_per_kwh if asked.price_kwh is None else asked.price_kwh
        return cls(asked.watts or card.watts, kwh, asked.price_hour)

    def energy(self, seconds: float) -> float:
        return seconds / 3600 * self.watts / 1000

    def money(self, seconds: float) -> float:
        return self.energy(seconds) * self.kwh + seconds / 3600 * self.hour


def _worst(phases: Sequence[Phase]) -> Phase:
    return max(phases, key=lambda one: one.peak)


def _memory_table(phases: Mapping[str, Sequence[Phase]], most: int) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title="peak memory, GiB", title_justify="left"
    )
    table.add_column("stage")
    table.add_column("at its worst")
    for name in (*_COLUMNS, "peak"):
        table.add_column(name, justify="right")
    for name, all_ in phases.items():
        worst = _worst(all_)
        cells = []
        for items in _COLUMNS.values():
            size = sum(worst.items.get(one, 0) for one in items) / 2**30
            cells.append(f"{size:.2f}" if size >= 0.005 else "-")
        mark = "" if worst.peak <= most else " !"
        table.add_row(name, worst.name, *cells, f"{worst.peak / 2**30:.2f}{mark}")
    return table


def _too_much(phases: Mapping[str, Sequence[Phase]], most: int) -> list[str]:
    lines = []
    for name, all_ in phases.items():
        for phase in all_:
            if phase.peak > most:
                need = phase.peak / 2**30
                lines.append(
                    f"! {name} does not fit: {phase.name} needs {need:.1f} of {most / 2**30:g} "
                    f"GiB; lower {phase.flag}"
                )
    return lines


def _time_table(seconds: Mapping[str, float], prices: _Prices) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="time and cost, projected", title_justify="left")
    table.add_column("stage")
    for name in ("time", "kWh", "cost"):
        table.add_column(name, justify="right")
    total = sum(seconds.values())
    for name, own in {**seconds, "all": total}.items():
        table.add_row(name, duration(own), f"{prices.energy(own):.2f}", f"{prices.money(own):.2f}")
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
            "peak_gib": _worst(all_).peak / 2**30,
            "fits": _worst(all_).peak <= budget.bytes,
            "phases": [
                {
                    "name": one.name,
                    "peak_gib": one.peak / 2**30,
                    "lower": one.flag,
                    "items_gib": {item: size / 2**30 for item, size in one.items.items()},
                }
                for one in all_
            ],
            "seconds": seconds.get(name),
            "kwh": prices.energy(seconds[name]) if name in seconds else None,
            "cost": prices.money(seconds[name]) if name in seconds else None,
        }
        for name, all_ in phases.items()
    ]
    return {
        "base": budget.shape.name,
        "parameters": budget.shape.parameters,
        "card": {"name": budget.gpu.name, "gib": budget.gpu.gib},
        "stages": stages,
        "largest": {flag: after for flag, (_, after) in best.items()},
        "measured": False,
    }
