"""`alpaca-rlhf <command>`. Torch is loaded where it is needed: help and refusals come at once."""

from __future__ import annotations

import contextlib
import difflib
import getpass
import io
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypeVar

from alpaca_rlhf import __version__
from alpaca_rlhf.cli import (
    app_command,
    data_commands,
    doctor_command,
    dry_run,
    export_command,
    import_command,
    judge_command,
    plan_command,
    sample_command,
    shell,
    split_command,
)
from alpaca_rlhf.cli.chat import Chat, Conversation, choose
from alpaca_rlhf.cli.terminal import PROGRAM, Terminal, next_lines
from alpaca_rlhf.core import quiet
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.serving import folders
from alpaca_rlhf.serving.manner import Manner
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.settings.entries import read_flags, read_yaml
from alpaca_rlhf.settings.leaves import leaves_of
from alpaca_rlhf.settings.parsing import parse
from alpaca_rlhf.settings.quickstart import QUICKSTART

T = TypeVar("T")
L = TypeVar("L", bound=Loop)

_UNATTENDED = (
    "--judge URL --judge.model NAME lets a model behind an OpenAI-compatible endpoint rank in "
    "people's place."
)

COMMANDS = {
    "doctor": doctor_command.ABOUT,
    "quickstart": "the whole loop on the embedded base: offline, in minutes, on two CPU cores",
    "plan": plan_command.ABOUT,
    "loop": "the whole loop on a base of your own",
    "generate": "bootstrap instruction data from seed tasks, with the base or a model behind HTTP",
    "split": split_command.ABOUT,
    "sft": "fine-tune the base on instructions (QLoRA)",
    "sample": "draw several completions of each new prompt; with --run RUN, for the app's queue",
    "rank": "put them in order: people in this terminal, or the gold judge",
    "judge": judge_command.ABOUT,
    "reward": "train the reward model on the rankings",
    "ppo": "train the policy against the reward model (PPO)",
    "best-of-k": "fine-tune on the reward model's favourite completions",
    "evaluate": "compare all policies on prompts no stage has seen, and write the report",
    "chat": "talk to the policies of a run",
    "export": export_command.ABOUT,
    "app": app_command.ABOUT,
    "import": import_command.ABOUT,
    "data": "look at data: inspect, drops, refilter, report, check, export",
}
"""Commands and what they do."""

_WHOLE = ("quickstart", "loop", "evaluate")
_GOES_ON = (
    "In a folder that holds a run (--out) its own settings are the defaults, and what is done "
    "stays done; earlier stages that are missing are run first."
)


@dataclass(frozen=True)
class Ranked(Loop):
    """Flags of `alpaca-rlhf rank`."""

    annotator: str | None = None
    """Your name, kept with your verdicts (for --inputs.judge human); by default the account's."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Returns:
        0 when it is done, 2 if the user can mend what is wrong, 130 after an interruption.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        return shell.printed(_overview())
    if words[0] in ("-V", "--version"):
        return shell.printed(f"{PROGRAM} {__version__}\n")
    terminal = Terminal()
    return shell.guarded(
        lambda: _command(words[0], words[1:], terminal),
        again=shell.command_line(PROGRAM, words),
        terminal=terminal,
    )


def recipe(
    settings: Loop,
    description: str,
    *,
    architecture: str | None = None,
    card: str | None = None,
    kind: str = "loop",
    argv: Sequence[str] | None = None,
) -> int:
    """Run an experiment's script, as `python recipes/NAME.py [--dry-run] [flags]`.

    Args:
        settings: The experiment; flags change it.
        description: What it is, for `--help`; the first line is shown on every run.
        architecture: What `--dry-run` shrinks, a key of `rehearsal.ARCHITECTURES`.
        card: The graphics card that it is for, whose plan `--dry-run` shows first.
        kind: What its run folder is for.
        argv: The words after the script's name.

    Returns:
        An exit code as `main` does.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    prog = f"python {shlex.quote(sys.argv[0])}"
    again = shell.command_line(prog, words)
    dry = architecture is not None and "--dry-run" in words
    flags = [one for one in words if not (dry and one == "--dry-run")]
    terminal = Terminal()
    description += f"\n{_UNATTENDED}" if settings.inputs.judge == "human" else ""

    def body() -> int:
        bare, given = plan_command.taken(_judged(flags))
        other, given = plan_command.card_word(given) if bare or dry else (None, given)
        asked = _parse(Loop, given, prog=prog, about=description, default=settings)
        if bare:
            asked = plan_command.auto(asked, bare, other or (card if dry else None), terminal)
        if architecture is None or not dry:
            title = description.splitlines()[0]
            return _run(asked, terminal, title=title, command=again, kind=kind)
        if card is not None:
            planned = replace(_as(plan_command.Plan, asked), card=other or card)
            plan_command.show(planned, asked, [], terminal)
        quiet.quiet(".")
        from alpaca_rlhf.cli.rehearsal import rehearse

        quiet.quiet_transformers(".")
        out = rehearse(asked, architecture, terminal, command=again)
        terminal.say(
            f"DRY RUN done: every stage ran. Its report, of random numbers: {out}/report.html"
        )
        for line in next_lines([(shell.command_line(prog, flags), "the real run")]):
            terminal.say(line)
        return 0

    return shell.guarded(body, again=again, terminal=terminal)


def _judged(words: Sequence[str]) -> list[str]:
    """The flags of a recipe with `--judge URL` spelled out."""
    found: list[str] = []
    for word in words:
        if word == "--judge":
            found += ["--inputs.judge", "llm", "--judge.url"]
        elif word.startswith("--judge="):
            found += ["--inputs.judge", "llm", "--judge.url", word.partition("=")[2]]
        else:
            found.append(word)
    return found


def _command(typed: str, words: list[str], terminal: Terminal) -> int:
    name = typed.replace("_", "-")
    if name not in COMMANDS:
        raise UserError(_unknown(typed))
    if name == "chat":
        return _chat(words, terminal)
    if name == "doctor":
        seen = _parse(doctor_command.Doctor, words, prog=f"{PROGRAM} doctor", about=COMMANDS[name])
        quiet.quiet(seen.base)
        quiet.quiet_transformers(seen.base)
        return doctor_command.run(seen, terminal)
    if name == "app":
        app = _parse(app_command.App, words, prog=f"{PROGRAM} app", about=COMMANDS[name])
        return app_command.run(app, terminal)
    if name == "import":
        return import_command.run(words, terminal)
    if name == "data":
        return data_commands.run(words, terminal)
    if name == "export":
        prog = f"{PROGRAM} export"
        asked_export = _parse(export_command.Export, words, prog=prog, about=COMMANDS[name])
        return export_command.run(asked_export, terminal, shell.command_line(prog, words))
    if name == "judge":
        judging = _parse(
            judge_command.Judging, words, prog=f"{PROGRAM} judge", about=COMMANDS[name]
        )
        return judge_command.run(judging, terminal)
    if name == "split":
        flags = _parse(split_command.Split, words, prog=f"{PROGRAM} split", about=COMMANDS[name])
        return split_command.run(flags, terminal)
    if name == "sample" and sample_command.wanted(words):
        about = sample_command.ABOUT
        fill = _parse(sample_command.Fill, words, prog=f"{PROGRAM} sample", about=about)
        return sample_command.run(fill, terminal)
    bare, words = plan_command.taken(words) if name in ("plan", "loop") else ([], words)
    card, words = plan_command.card_word(words) if name == "loop" and bare else (None, words)
    special: dict[str, type[Loop]] = {"rank": Ranked, "plan": plan_command.Plan}
    cls = special.get(name, Loop)
    default, kind = (QUICKSTART, name) if name == "quickstart" else (Loop(), "loop")
    prog = f"{PROGRAM} {name}"
    about = COMMANDS[name]
    if name in ("plan", "loop"):
        about += f".\n\n{plan_command.HELP}"
    dry = name == "generate" and "--dry-run" in words
    if dry:
        words = [one for one in words if one != "--dry-run"]
    if name == "generate":
        about += ".\n\n--dry-run shows one prompt and what the run may cost, and asks nothing"
    if name not in ("quickstart", "plan"):
        about += f".\n\n{_GOES_ON}"
        out = _out(cls, words, prog) or default.out
        if folders.holds_run(out):
            default, kind = folders.settings_of(out), folders.kind_of(out)
    asked = _parse(cls, words, prog=prog, about=about, default=_as(cls, default))
    settings = _as(Loop, asked)
    if isinstance(asked, plan_command.Plan):
        return plan_command.run(asked, settings, bare, terminal)
    if bare:
        settings = plan_command.auto(settings, bare, card, terminal)
    if dry:
        again = shell.command_line(prog, words)
        return dry_run.show(settings, terminal, command=again)
    return _run(
        settings,
        terminal,
        title=f"{name}: {COMMANDS[name]}",
        command=shell.command_line(prog, words),
        kind=kind,
        until=None if name in _WHOLE else name.replace("-", "_"),
        annotator=asked.annotator if isinstance(asked, Ranked) else None,
    )


def _run(
    settings: Loop,
    terminal: Terminal,
    *,
    title: str,
    command: str,
    kind: str = "loop",
    until: str | None = None,
    annotator: str | None = None,
) -> int:
    by_people = until == "rank" and settings.inputs.judge == "human"
    if annotator is not None and not by_people:
        raise UserError("--annotator: no person ranks in this run; give --inputs.judge human")
    terminal.say(title)
    terminal.say(
        f"base {settings.base}, seed {settings.seed}, in {settings.out}; "
        "Ctrl-C at any time, the same command goes on"
    )
    done = folders.stages_done(settings.out)
    if done:
        terminal.say(f"done already: {', '.join(done)}")
    quiet.quiet(settings.base)
    from alpaca_rlhf.cli import running

    quiet.quiet_transformers(settings.base)
    if by_people:
        name = annotator or _account()
        return running.rank_by_people(
            settings, terminal, annotator=name, kind=kind, command=command
        )
    return running.run(settings, terminal, kind=kind, command=command, until=until)


def _chat(words: list[str], terminal: Terminal) -> int:
    asked = _parse(Chat, words, prog=f"{PROGRAM} chat", about=COMMANDS["chat"], default=Chat())
    settings = folders.settings_of(asked.run)
    policies = folders.policies(asked.run)
    names = list(policies)
    policy = names[-1] if asked.policy is None else choose(names, asked.policy)
    if policy is None:
        raise UserError(f"--policy {asked.policy}: {asked.run} has {', '.join(names)}")
    if asked.prompt is None:
        terminal.say(f"chat: {settings.base} with {', '.join(names)} of {asked.run}; /help, /quit")
    quiet.quiet(settings.base)
    from alpaca_rlhf.serving.speaker import Speaker

    quiet.quiet_transformers(settings.base)
    manner = Manner(asked.temperature, max_new_tokens=asked.max_new_tokens, seed=asked.seed)
    speaker = Speaker(settings, policies, manner)
    if asked.prompt is not None:
        terminal.say(speaker.answer(policy, Instruction(asked.prompt, asked.input), 0))
    else:
        remember = asked.remember
        if remember is None:
            remember = folders.saw_conversations(asked.run)
        Conversation(
            speaker, names, policy, remember=remember, ask=terminal.ask, say=terminal.say
        ).run()
    return 0


def _parse(cls: type[T], words: list[str], *, prog: str, about: str, default: T | None = None) -> T:
    if not _wants_help(words) or sys.stdout.isatty():
        return parse(cls, words, prog=prog, description=about, default=default)
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        parse(cls, words, prog=prog, description=about, default=default)
    raise SystemExit(shell.printed(text.getvalue()))


def _wants_help(words: Sequence[str]) -> bool:
    return "-h" in words or "--help" in words


def _out(cls: type[Loop], words: Sequence[str], prog: str) -> Path | None:
    """The run folder that flags or `--config` files name, before anything else is looked at."""
    if _wants_help(words):
        return None
    leaves = {leaf.path: leaf for leaf in leaves_of(cls, required=False)}
    files, flags = read_flags(words, leaves, prog)
    given = [*(one for file in files for one in read_yaml(file, leaves)), *flags]
    named = [one.values[0] for one in given if one.leaf.path == "out"]
    return Path(named[-1]) if named else None


def _as(cls: type[L], settings: Loop) -> L:
    """The settings of a loop as another kind of loop's."""
    return cls(**{one.name: getattr(settings, one.name) for one in fields(Loop)})


def _account() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        raise UserError("--annotator is missing: give your name") from None


def _unknown(typed: str) -> str:
    if typed.startswith("-"):
        return f"{typed}: flags come after the command, e.g. `{PROGRAM} quickstart {typed} ...`"
    near = difflib.get_close_matches(typed.replace("_", "-").lower(), COMMANDS, n=1)
    hint = f"did you mean {near[0]}" if near else f"there are {', '.join(COMMANDS)}"
    return f"{typed}: no such command; {hint}; see {PROGRAM} --help"


def _overview() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items())
    return (
        f"usage: {PROGRAM} COMMAND [flags]\n\n"
        "Instruction tuning and RLHF on one consumer GPU: a frozen 4-bit LLaMA, small adapters.\n"
        f"\ncommands:\n{rows}\n\n"
        f"`{PROGRAM} COMMAND --help` shows the flags and their defaults; --config FILE.yaml\n"
        "reads them from a file. Run again, a command goes on where it stopped.\n"
        f"Start with: {PROGRAM} quickstart\n"
    )
