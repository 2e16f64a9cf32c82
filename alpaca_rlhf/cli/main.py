"""`alpaca-rlhf COMMAND ...`, and the same for the scripts in `recipes/`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from alpaca_rlhf import __version__
from alpaca_rlhf.cli import commands, shell
from alpaca_rlhf.cli.commands import COMMANDS
from alpaca_rlhf.cli.terminal import PROGRAM, Terminal, next_lines
from alpaca_rlhf.core.shell_words import quoted

if TYPE_CHECKING:
    from alpaca_rlhf.settings import Loop

__all__ = ["COMMANDS", "main", "recipe", "spelled_out"]

_UNATTENDED = (
    "--judge URL --judge.model NAME lets a model behind an OpenAI-compatible endpoint rank in "
    "people's place, --judge FILE.py:function a function of yours."
)
_DRY_RUN = "--dry-run"
_QUICK = "--quick"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Returns:
        0 when it is done, 2 if the user can mend what is wrong, 130 after an interruption.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not shell.open_streams():
        return shell.refuse_closed_output(shell.command_line(PROGRAM, arguments))
    if arguments[:1] == ["help"] and len(arguments) > 1:
        arguments = [*arguments[1:], "--help"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        return shell.printed(commands.overview())
    if arguments[0] in ("-V", "--version"):
        return shell.printed(f"{PROGRAM} {__version__}\n")
    terminal = Terminal()
    return shell.guarded(
        lambda: commands.run(arguments, terminal),
        command=shell.command_line(PROGRAM, arguments),
        terminal=terminal,
    )


def recipe(
    settings: Loop,
    description: str,
    *,
    architecture: str | None = None,
    card: str | None = None,
    kind: str = "loop",
    quick: Loop | None = None,
    argv: Sequence[str] | None = None,
) -> int:
    """Run an experiment's script, as `python recipes/NAME.py [--dry-run] [--quick] [flags]`.

    Args:
        settings: The experiment; flags change it.
        description: What it is, for `--help`; the first line is shown on every run.
        architecture: What `--dry-run` shrinks, a key of `rehearsal.ARCHITECTURES`.
        card: The graphics card that it is for, whose plan `--dry-run` shows first.
        kind: What its run folder is for.
        quick: A small version of the experiment, which `--quick` runs instead.
        argv: The words after the script's name.

    Returns:
        An exit code as `main` does.
    """
    from alpaca_rlhf.cli import plan_command, stage_commands
    from alpaca_rlhf.planner import CPU
    from alpaca_rlhf.settings import Loop

    arguments = list(sys.argv[1:] if argv is None else argv)
    prog = f"python {quoted(sys.argv[0])}"
    command = shell.command_line(prog, arguments)
    if not shell.open_streams():
        return shell.refuse_closed_output(command)
    dry = architecture is not None and _DRY_RUN in arguments
    real_arguments = [argument for argument in arguments if not (dry and argument == _DRY_RUN)]
    if quick is not None and _QUICK in arguments:
        settings = quick
    typed = [argument for argument in real_arguments if quick is None or argument != _QUICK]
    terminal = Terminal()
    description += f"\n{_UNATTENDED}" if settings.inputs.judge == "human" else ""

    def body() -> int:
        # 1. Flags without values are taken out first: tyro's all have one.
        switches, flags = plan_command.taken(spelled_out(typed))
        named, flags = plan_command.card_word(flags) if switches or dry else (None, flags)
        parse = partial(shell.parsed, Loop, flags, prog=prog, about=description)
        chosen = parse(default=settings)
        # 2. A card's recipe takes batches that fit the card; with --auto any recipe does.
        device = named or (card if dry else None)
        if switches:
            chosen = plan_command.auto(chosen, switches, device, terminal)
        elif card not in (None, CPU.name):
            chosen = plan_command.by_default(
                chosen, device, lambda fitting: parse(default=fitting), terminal
            )
        # 3. The real run, or a rehearsal after the plan of the card the recipe is for.
        if architecture is None or not dry:
            part = stage_commands.Part(description.splitlines()[0], command, kind)
            return stage_commands.run(chosen, terminal, part)
        if card is not None:
            planned = stage_commands.converted(plan_command.Plan, chosen)
            plan_command.show(replace(planned, card=named or card), chosen, [], terminal)
        real = shell.command_line(prog, real_arguments)
        return _rehearse(chosen, architecture, terminal, command=command, real=real)

    return shell.guarded(body, command=command, terminal=terminal)


def spelled_out(arguments: Sequence[str]) -> list[str]:
    """The words of a recipe with `--judge NAME`, or `--judge URL`, as what it stands for."""
    flags: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        flag, equals, value = argument.partition("=")
        if flag != "--judge":
            flags.append(argument)
            continue
        value = value if equals else next(remaining, "")
        by_http = "://" in value
        flags += ["--inputs.judge", "llm", "--judge.url"] if by_http else ["--inputs.judge"]
        flags += [value] if value else []
    return flags


def _rehearse(
    settings: Loop, architecture: str, terminal: Terminal, *, command: str, real: str
) -> int:
    """Run every stage on a shrunken model; `command` is this one, `real` the one after it."""
    from alpaca_rlhf.core import quiet

    with quiet.loading("."):
        from alpaca_rlhf.cli.rehearsal import rehearse
    out = rehearse(settings, architecture, terminal, command=command)
    terminal.say(f"DRY RUN done: every stage ran. Its report, of random numbers: {out}/report.html")
    for line in next_lines([(real, "the real run")]):
        terminal.say(line)
    return 0
