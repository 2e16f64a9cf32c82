"""The commands that run a loop or a part of it: `loop`, `quickstart`, `plan`, one for each stage.

Torch is loaded only once the settings have been checked.
"""

from __future__ import annotations

import getpass
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypeVar

from alpaca_rlhf.cli import own_files, plan_command, shell
from alpaca_rlhf.cli.commands import Invocation
from alpaca_rlhf.cli.terminal import Terminal
from alpaca_rlhf.core import quiet
from alpaca_rlhf.core.bases import is_local
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.templates import default_template
from alpaca_rlhf.planner.shapes import KNOWN_SHAPES
from alpaca_rlhf.serving import run_contents
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.settings.entries import Entry, read_entries
from alpaca_rlhf.settings.leaves import leaves_of
from alpaca_rlhf.settings.policies import POLICIES
from alpaca_rlhf.settings.quickstart import QUICKSTART

L = TypeVar("L", bound=Loop)

_RESUME_HELP = (
    "If --out already holds a run, its settings are the defaults, and finished stages are not "
    "repeated; earlier stages that are missing are run first."
)
_DRY_RUN = "--dry-run"

_LATER_STAGES = ("rank", "reward", *POLICIES, "evaluate")
"""Commands of later stages, which begin a run only from files given as --inputs.*."""


@dataclass(frozen=True)
class Ranked(Loop):
    """Flags of `alpaca-rlhf rank`."""

    annotator: str | None = None
    """Your name, saved with your verdicts (for --inputs.judge human); by default your login
    name."""


@dataclass(frozen=True)
class Part:
    """The part of a loop that a command runs."""

    title: str
    """The first line shown."""
    command: str
    """The command line as typed, for the report."""
    kind: str = "loop"
    """Purpose of the run folder."""
    until: str | None = None
    """The last stage to run; None runs all."""
    annotator: str | None = None
    """The person who ranks in this terminal, if people do; None is the login name."""


def stage(invocation: Invocation) -> int:
    """Run a loop up to the stage that the command is named after."""
    settings, kind = _resumed(Loop, invocation, invocation.arguments)
    part = _part(invocation, invocation.arguments, kind, until=invocation.name.replace("-", "_"))
    return run(settings, invocation.terminal, part)


def whole(invocation: Invocation) -> int:
    """Run a loop to its end."""
    settings, kind = _resumed(Loop, invocation, invocation.arguments)
    return run(settings, invocation.terminal, _part(invocation, invocation.arguments, kind))


def quickstart(invocation: Invocation) -> int:
    """Run the quickstart with its own defaults, whatever the folder holds."""
    # Defaults from the folder would let a changed quickstart pass for the quickstart.
    settings = invocation.parse(Loop, invocation.arguments, default=QUICKSTART)
    return run(settings, invocation.terminal, _part(invocation, invocation.arguments, "quickstart"))


def loop(invocation: Invocation) -> int:
    """Run a loop to its end; with --auto, in batches that fit the GPU."""
    switches, arguments = plan_command.taken(invocation.arguments)
    gpu, arguments = plan_command.card_word(arguments) if switches else (None, arguments)
    settings, kind = _resumed(Loop, invocation, arguments, plan_command.HELP)
    if switches:
        settings = plan_command.auto(settings, switches, gpu, invocation.terminal)
    return run(settings, invocation.terminal, _part(invocation, arguments, kind))


def plan(invocation: Invocation) -> int:
    """Show the memory, time and cost that a loop will take."""
    switches, arguments = plan_command.taken(invocation.arguments)
    about = f"{invocation.command.summary}.\n\n{plan_command.HELP}"
    request = invocation.parse(plan_command.Plan, arguments, about=about)
    # Names of sizes alone have no tokenizer to look at.
    is_base = request.base not in KNOWN_SHAPES or is_local(request.base)
    if is_base and "template" not in _entries(plan_command.Plan, arguments, invocation.prog):
        request = replace(request, template=default_template(request.base))
    return plan_command.run(request, converted(Loop, request), switches, invocation.terminal)


def generate(invocation: Invocation) -> int:
    """Run a loop up to `generate`; with --dry-run, show what that would send and cost."""
    arguments = [argument for argument in invocation.arguments if argument != _DRY_RUN]
    about = f"{_DRY_RUN} shows one prompt and what the run may cost, and sends no request"
    settings, kind = _resumed(Loop, invocation, arguments, about)
    if _DRY_RUN in invocation.arguments:
        own_files.refuse_small_world(settings, "generate")
        from alpaca_rlhf.cli import dry_run

        return dry_run.show(settings, invocation.terminal, command=invocation.line(arguments))
    return run(settings, invocation.terminal, _part(invocation, arguments, kind, until="generate"))


def sample(invocation: Invocation) -> int:
    """Run a loop up to `sample`; with --run, fill the queue of the app."""
    from alpaca_rlhf.cli import sample_command

    if not sample_command.wanted(invocation.arguments):
        return stage(invocation)
    # Its flags are not those of the stage, whose first ones `Invocation.parse` would show as help.
    request = shell.parsed(
        sample_command.Fill,
        invocation.arguments,
        prog=f"{invocation.prog} --run RUN",
        about=sample_command.ABOUT,
    )
    return sample_command.run(request, invocation.terminal)


def rank(invocation: Invocation) -> int:
    """Run a loop up to `rank`; if people judge, let one of them rank in this terminal."""
    request, kind = _resumed(Ranked, invocation, invocation.arguments)
    part = _part(invocation, invocation.arguments, kind, until="rank", annotator=request.annotator)
    return run(converted(Loop, request), invocation.terminal, part)


def run(settings: Loop, terminal: Terminal, part: Part) -> int:
    """Run a part of a loop, or let a person rank in this terminal.

    Returns:
        The exit code.

    Raises:
        UserError: Anything that the user can fix.
    """
    by_people = part.until == "rank" and settings.inputs.judge == "human"
    if part.annotator is not None and not by_people:
        raise UserError("--annotator: no person ranks in this run; give --inputs.judge human")
    if part.kind != "quickstart":
        own_files.refuse_small_world(settings, part.until)
    terminal.say(part.title)
    location = (
        f"in {settings.out}" if run_contents.holds_run(settings.out) else f"new in {settings.out}"
    )
    terminal.say(
        f"base {settings.base}, seed {settings.seed}, {location}; "
        "press Ctrl-C at any time; the same command resumes the run"
    )
    stages_done = run_contents.stages_done(settings.out)
    if stages_done:
        terminal.say(f"done already: {', '.join(stages_done)}")
    with quiet.loading(settings.base):
        from alpaca_rlhf.cli import running
    if by_people:
        return running.rank_by_people(
            settings,
            terminal,
            annotator=part.annotator or _account(),
            kind=part.kind,
            command=part.command,
        )
    return running.run(settings, terminal, kind=part.kind, command=part.command, until=part.until)


def converted(cls: type[L], settings: Loop) -> L:
    """Convert the settings of a loop to a subclass with more flags, or back."""
    return cls(**{field.name: getattr(settings, field.name) for field in fields(Loop)})


def _resumed(
    cls: type[L], invocation: Invocation, arguments: list[str], about: str = ""
) -> tuple[L, str]:
    """The settings that the arguments ask for, and the kind of run.

    If the folder already holds a run, its settings are the defaults.
    """
    # 1. The folder is read from the arguments first: whether a run lies there sets the defaults.
    default, kind = Loop(), "loop"
    entries = _entries(cls, arguments, invocation.prog)
    out: Path = entries["out"].value() if "out" in entries else default.out
    if run_contents.holds_run(out):
        default, kind = run_contents.settings_of(out), run_contents.kind_of(out)
    # 2. All arguments are parsed, with these defaults.
    paragraphs = [invocation.command.summary, about, _RESUME_HELP]
    help_text = ".\n\n".join(paragraph for paragraph in paragraphs if paragraph)
    settings = invocation.parse(cls, arguments, about=help_text, default=converted(cls, default))
    if kind == "loop" and not run_contents.holds_run(settings.out) and "template" not in entries:
        settings = _in_chat_template(settings, invocation.terminal)
    # 3. A mistyped folder must not begin a run, so later stages begin one only from given files.
    if invocation.name in _LATER_STAGES and not any(path.startswith("inputs.") for path in entries):
        remedy = f"`loop`, `generate`, `sft` and `sample` begin one, `{invocation.name}` only from "
        run_contents.refuse_missing(
            settings.out, "--out", remedy=f"{remedy}files given as --inputs.*"
        )
    return settings, kind


def _in_chat_template(settings: L, terminal: Terminal) -> L:
    """The settings of a new run for which no template was given: that of the base, if any."""
    if default_template(settings.base) != "chat":
        return settings
    terminal.say("template: chat, the base's own; --template alpaca takes the text of Alpaca")
    return replace(settings, template="chat")


def _entries(cls: type[Loop], arguments: Sequence[str], prog: str) -> Mapping[str, Entry]:
    """The settings that flags and `--config` files name, unchecked; none if help is requested."""
    if shell.wants_help(arguments):
        return {}
    leaves = {leaf.path: leaf for leaf in leaves_of(cls, required=False)}
    with shell.naming_newer_runs():
        return read_entries(arguments, leaves, prog)


def _part(
    invocation: Invocation,
    arguments: Sequence[str],
    kind: str,
    *,
    until: str | None = None,
    annotator: str | None = None,
) -> Part:
    title = f"{invocation.name}: {invocation.command.summary}"
    return Part(title, invocation.line(arguments), kind, until, annotator)


def _account() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        raise UserError(
            "--annotator is missing, and your login name could not be read: give --annotator NAME"
        ) from None
