"""`alpaca-rlhf verdicts`: how far people are, and whose verdicts count."""

from __future__ import annotations

import getpass
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Interval

from alpaca_rlhf.cli.terminal import PROGRAM, Terminal, next_lines
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.files import at_home
from alpaca_rlhf.core.shell_words import quoted
from alpaca_rlhf.preferences.assignment import MIN_GOLD_ASKED
from alpaca_rlhf.serving import run_contents
from alpaca_rlhf.settings.bounds import Bounded, PositiveInt
from alpaca_rlhf.sources.standing import standing_by_round
from alpaca_rlhf.sources.verdicts import has_verdicts, open_store

if TYPE_CHECKING:
    from alpaca_rlhf.preferences.figures import Person
    from alpaca_rlhf.preferences.store import Store

_SNAPSHOT_NOTE = "snapshots that were written before stay as they are; later ones follow"


@dataclass(frozen=True)
class Status(Bounded):
    """Flags of `alpaca-rlhf verdicts status`."""

    run: Path = Path("runs/quickstart")
    """Run folder."""
    db: str | None = None
    """Database of the rankings: a file, or postgresql+psycopg://user@host/name; by default
    preferences.db in the run folder."""


@dataclass(frozen=True)
class TakeIn(Status):
    """Flags of `alpaca-rlhf verdicts take-in`."""

    person: str | None = None
    """Name of an annotator, or of a judge (judge:NAME)."""
    set: PositiveInt | None = None
    """Number of a candidate set, as the Data tab shows it with flags and remarks."""
    reason: str = ""
    """Reason, kept in the audit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self._given() != 1:
            raise ValueError(f"give one of {self._choices()}")

    def _given(self) -> int:
        return (self.person is not None) + (self.set is not None)

    def _choices(self) -> str:
        return "--person NAME and --set NUMBER"


@dataclass(frozen=True)
class LeaveOut(TakeIn):
    """Flags of `alpaca-rlhf verdicts leave-out`."""

    gold_below: Annotated[float, Interval(gt=0, le=1)] | None = None
    """Leave out everybody who passed less than this share of their gold questions, e.g. 0.7."""
    gold_asked: PositiveInt = MIN_GOLD_ASKED
    """Gold questions that somebody must have answered to be left out by --gold-below."""

    def _given(self) -> int:
        return super()._given() + (self.gold_below is not None)

    def _choices(self) -> str:
        return "--person NAME, --set NUMBER and --gold-below SHARE"


def status(flags: Status, terminal: Terminal) -> int:
    """Show how far the ranking of a run is, and what each annotator's verdicts are."""
    with _opened(flags, terminal) as store:
        # 1. How far each round of the run is, by the rule that lets training go on.
        if run_contents.holds_run(flags.run):
            settings = run_contents.settings_of(flags.run)
            at_least, judge = settings.rank.at_least, settings.inputs.judge
            for number, standing in standing_by_round(flags.run, store).items():
                missing = standing.missing(at_least)
                enough = f"{missing} more needed" if missing else "enough to train on"
                if judge != "human":
                    enough = f"nobody needs to: {judge} ranks this run"
                terminal.say(f"round {number}: {standing.line(at_least)}; {enough}")
        figures = store.figures()
        terminal.say(f"in {store.database.shown}: {figures.standing.line()}")
        if figures.counts["left_out"]:
            terminal.say(f"  {figures.counts['left_out']} candidate sets are left out")
        # 2. The annotators.
        for person in figures.people:
            terminal.say(f"  {_line(person)}")
    return 0


def leave_out(flags: LeaveOut, terminal: Terminal) -> int:
    """Leave out a person, a candidate set, or everybody below a share of gold questions."""
    return _change(flags, terminal, undo=False)


def take_in(flags: TakeIn, terminal: Terminal) -> int:
    """Take in again a person or a candidate set that was left out."""
    return _change(flags, terminal, undo=True)


def _change(flags: TakeIn, terminal: Terminal, *, undo: bool) -> int:
    actor, has_run = f"command line:{_login_name()}", run_contents.holds_run(flags.run)
    with _opened(flags, terminal) as store:
        # 1. The set, or the people.
        if flags.set is not None:
            change = store.leave_out_set(flags.set, actor=actor, reason=flags.reason, undo=undo)
            changes = {f"--set {flags.set}": (f"set {flags.set}", change)}
        elif flags.person is not None:
            try:
                change = store.leave_out_person(
                    flags.person, actor=actor, reason=flags.reason, undo=undo
                )
            except UserError as error:
                raise UserError(f"--person {error}") from None
            changes = {f"--person {quoted(flags.person)}": (flags.person, change)}
        else:
            assert isinstance(flags, LeaveOut) and flags.gold_below is not None
            below = store.leave_out_below_gold(
                flags.gold_below, min_asked=flags.gold_asked, actor=actor, reason=flags.reason
            )
            changes = {f"--person {quoted(change.name)}": (change.name, change) for change in below}
        # 2. What became of them.
        state = "taken in again" if undo else "left out"
        for shown, change in changes.values():
            before = "" if change.changed else "already "
            verb = "count" if undo else "do not count"
            terminal.say(f"{shown}: {before}{state}; {change.rankings} rankings {verb}")
        if not changes:
            terminal.say("nobody is below that share of gold questions")
            return 0
        terminal.say(f"  {_SNAPSHOT_NOTE}")
        trained = [
            name for name in run_contents.stages_done(flags.run) if name.startswith("reward")
        ]
        if has_run and flags.db is None and trained:
            terminal.say(f"  {', '.join(trained)}: trained already, on what counted then")
        terminal.say(f"in {store.database.shown}: {store.standing().line()}")
        # 3. The way back.
        if not undo:
            from alpaca_rlhf.preferences.database import db_flag  # loads SQLAlchemy

            run = ["--run", str(flags.run)] if flags.db is None or has_run else []
            place = [*run, *db_flag(flags.db)]
            take_in = f"{PROGRAM} verdicts take-in {shlex.join(place)}"
            # Those who were left out before may have been for another reason.
            left_out = [words for words, (_, change) in changes.items() if change.changed]
            commands = [(f"{take_in} {words}", "undo it") for words in left_out or changes]
            for line in next_lines(commands):
                terminal.say(line)
    return 0


def _opened(flags: Status, terminal: Terminal) -> Store:
    """The store of the verdicts; none is made by a look at it.

    Raises:
        UserError: There is none.
    """
    if flags.db is None:
        run_contents.refuse_missing(flags.run)
        if not has_verdicts(flags.run):
            raise UserError(
                f"--run {flags.run}: nobody has ranked anything there yet; "
                f"open the app with `{PROGRAM} app --run {quoted(flags.run)}`"
            )
    elif "://" not in flags.db and not Path(at_home(flags.db)).is_file():
        raise UserError(f"--db {flags.db}: there is no such file; give the database of the app")
    return open_store(flags.run, flags.db, say=terminal.say)


def _line(person: Person) -> str:
    parts = [f"{person.rankings} rankings"]
    if person.gold_rate is not None:
        parts.append(f"{person.gold_rate:.0%} of {person.gold_asked} gold questions passed")
    if person.left_out:
        parts.append("LEFT OUT: nothing of it counts")
    elif not person.active and person.has_account:
        parts.append("deactivated; earlier rankings count")
    return f"{person.name}: {', '.join(parts)}"


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""
