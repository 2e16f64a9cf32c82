"""`alpaca-rlhf duel`: policies of a run against each other, at equal completions and minutes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from alpaca_rlhf.cli.terminal import Terminal
from alpaca_rlhf.core import quiet
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.runs import RunFolder
from alpaca_rlhf.core.shell_words import quoted
from alpaca_rlhf.serving import run_contents
from alpaca_rlhf.settings.bounds import Bounded, PositiveFloat, PositiveInt

if TYPE_CHECKING:
    from alpaca_rlhf.report.duel import Contender, Difference, Duel, Reading, Readings


@dataclass(frozen=True)
class DuelFlags(Bounded):
    """Flags of `alpaca-rlhf duel`."""

    completions: PositiveInt | None = None
    """Read every policy within so many completions of its own; by default as many as the policy
    that samples fewest."""
    minutes: PositiveFloat | None = None
    """Read every policy within so many minutes of its training and of what it needs before it,
    completions to rank and the reward model; by default those of the quickest."""


def run(operands: Sequence[str], flags: DuelFlags, terminal: Terminal) -> int:
    """Compare the policies of a run from what it recorded; write `duel.json` and its page.

    Returns:
        The exit code, 0.

    Raises:
        UserError: There is no such run, or its policies cannot be compared.
    """
    # 1. Refuse what is wrong before torch is loaded.
    folder = Path(operands[0])
    run_contents.refuse_missing(folder, "duel")
    settings = run_contents.settings_of(folder)
    report = run_contents.report_of(folder)
    if report is None:
        raise UserError(
            f"duel {folder}: its policies have not been evaluated; first run: "
            f"alpaca-rlhf evaluate --out {quoted(folder)}"
        )
    # 2. Compare.
    with quiet.loading(settings.base):
        from alpaca_rlhf.report.duel import validate_duel
        from alpaca_rlhf.report.render import write_duel
        from alpaca_rlhf.sources import source_of
        from alpaca_rlhf.stages.duel import Budgets, duel_of
    followed = RunFolder.follow(folder)
    seconds = None if flags.minutes is None else 60 * flags.minutes
    duel = duel_of(
        followed,
        followed.ledger(),
        settings,
        source_of(settings),
        judge=str(report.get("judge", "gold")),
        budgets=Budgets(flags.completions, seconds),
    )
    # 3. Write and show.
    write_duel(folder, duel)
    for line in duel_lines(validate_duel(duel)):
        terminal.say(line)
    terminal.say(f"in {folder / 'duel.json'}; to read: {folder / 'duel.html'}")
    return 0


def duel_lines(duel: Duel) -> Iterator[str]:
    """The duel as lines of a terminal."""
    names = list(duel.policies)
    width = max(map(len, names))
    # 1. The policies at their ends, with their costs.
    yield (
        f"{len(names)} policies from one SFT adapter, {_basis(duel)}; {duel.prompts} prompts in "
        f"{duel.clusters} clusters, judge: {duel.judge}"
    )
    head = "gain over sft  95% interval          KL  completions  minutes  before       Wh     GiB"
    yield f"  {'':<{width}}  {head}"
    for name, policy in duel.policies.items():
        yield f"  {name:<{width}}  {_contender(policy, too_few=duel.too_few)}"
    yield f"  completions: a policy's own, beside {duel.behind:,} that were ranked"
    # 2. The parts of the score, where the judge names some.
    if duel.parts:
        yield "change of the parts against sft"
    for name, policy in duel.policies.items() if duel.parts else ():
        changes = ", ".join(f"{part} {value:+.3f}" for part, value in policy.part_changes.items())
        yield f"  {name:<{width}}  {changes}"
    # 3. Each two of them.
    yield "between policies, on the same prompts"
    for pair in duel.between:
        yield f"  {_difference(pair, too_few=duel.too_few)}"
    # 4. At equal means.
    for readings in duel.readings:
        yield from _readings(readings, duel, width)
    for note in duel.notes:
        yield f"note: {note}"
    yield duel.headline


def _basis(duel: Duel) -> str:
    if duel.rankings is None:
        return "a judge as the reward"
    return f"{duel.rankings:,} rankings"


def _contender(policy: Contender, *, too_few: bool) -> str:
    memory = policy.peak_memory_gib if policy.gpu_memory_gib is None else policy.gpu_memory_gib
    return (
        f"{policy.gain:>+13.3f}  {_ends(policy.gain_ci95, too_few):<16}  "
        f"{policy.kl_from_sft_nats:>6.2f}  {policy.completions:>11,}  {policy.seconds / 60:>7.2f}  "
        f"{policy.seconds_before / 60:>6.2f}  {policy.watt_hours:>7.2f}  {memory:>6.2f}"
    )


def _difference(pair: Difference, *, too_few: bool) -> str:
    line = f"{pair.first} - {pair.second}: {pair.gain:+.3f} {_ends(pair.ci95, too_few)}"
    return f"{line}, undecided" if not too_few and not pair.excludes_zero else line


def _readings(readings: Readings, duel: Duel, width: int) -> Iterator[str]:
    minutes = f"{readings.budget / 60:.2f}"
    yield {
        "completions": f"at equal completions: {readings.budget:,.0f} of its own",
        "seconds": f"at equal minutes: {minutes} of its own training",
        "total_seconds": f"at equal minutes: {minutes} of its training and of what it needs before",
    }[readings.by]
    for name, reading in readings.policies.items():
        yield f"  {name:<{width}}  {_reading(reading, too_few=duel.too_few)}"
    for pair in readings.between:
        yield f"  in looks, {_difference(pair, too_few=False)}"


def _reading(reading: Reading | None, *, too_few: bool) -> str:
    if reading is None:
        return "no evaluation by then"
    at_end = reading.update is None
    ends = "" if reading.ci95 is None else f" {_ends(reading.ci95, too_few and at_end)}"
    place = "at its end" if at_end else f"look after update {reading.update}"
    minutes = f"{reading.seconds / 60:.2f} min"
    if reading.total_seconds is not None:
        minutes += f", {reading.total_seconds / 60:.2f} with what is before"
    return f"{reading.gain:+.3f}{ends}  {place} ({reading.completions:,} completions, {minutes})"


def _ends(ci95: Sequence[float], too_few: bool) -> str:
    low, high = ci95
    return "too few" if too_few else f"[{low:+.3f}, {high:+.3f}]"
