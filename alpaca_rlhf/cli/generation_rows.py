"""One row or one request of a generation, as lines for a terminal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from alpaca_rlhf.cli.terminal import PROGRAM
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.core.shell_words import quoted
from alpaca_rlhf.data import AnsweredRequest, Drop, NoveltyIndex, requests, seeds_of

_NEIGHBOURS = 5
_MAX_CHARS = 100
"""Characters of a row in a list."""


def show_row(folder: Path, row_id: str, say: Callable[[str], None]) -> None:
    """Say a row, its verdict, its nearest neighbours, and its request with prompt and reply.

    Args:
        folder: Where the events lie.
        row_id: The row's id, or its beginning.
        say: Takes a line.

    Raises:
        UserError: No row has this id, or several begin so; the run cannot be read.
    """
    occurrences = _with_id(folder, row_id)
    for request, row, drop in occurrences:
        say(f"request {request.number} ({request.ask.step}): {_verdict(drop, request)}")
        _say_row(say, row)
    say("")
    say("nearest instructions (ROUGE-L):")
    for score, neighbour, source in _neighbours(folder, occurrences[0][1]):
        say(f"  {score:.3f}  {neighbour.id}  {short(neighbour.instruction)}  ({source})")
    for request in {request.number: request for request, _, _ in occurrences}.values():
        say("")
        _say_reply(say, request)


def show_request(folder: Path, name: str, say: Callable[[str], None]) -> None:
    """Say what came of a request, row by row, then its prompt and its reply.

    Args:
        folder: Where the events lie.
        name: Its number after an `@`.
        say: Takes a line.

    Raises:
        UserError: There is no such request; the run cannot be read.
    """
    request = _numbered(folder, name)
    say(f"request {request.number} ({request.ask.step}):")
    for row, drop in _verdicts(request):
        say("")
        say(_verdict(drop, request))
        if row is not None:
            _say_row(say, row)
    say("")
    _say_reply(say, request)


def short(text: str) -> str:
    """A text on one line of a list, cut where it is too long."""
    line = " ".join(text.split())
    return line if len(line) <= _MAX_CHARS else f"{line[: _MAX_CHARS - 3]}..."


def _verdicts(request: AnsweredRequest) -> list[tuple[Instruction | None, Drop | None]]:
    return [*((row, None) for row in request.kept), *((drop.row, drop) for drop in request.dropped)]


def _verdict(drop: Drop | None, request: AnsweredRequest) -> str:
    if drop is None:
        return "kept, to be answered" if request.ask.drafts else "kept"
    near = f"; nearest {drop.near} at {drop.score:.3f}" if drop.near else ""
    return f"dropped by {drop.rule}: {drop.detail}{near}"


def _with_id(folder: Path, prefix: str) -> list[tuple[AnsweredRequest, Instruction, Drop | None]]:
    """Each occurrence of the one row whose id begins so: a task may have come more than once."""
    occurrences = [
        (request, row, drop)
        for _, request in requests(folder)
        for row, drop in _verdicts(request)
        if row is not None and row.id.startswith(prefix)
    ]
    if not occurrences:
        raise UserError(
            f"{prefix}: no row of {folder} has this id; "
            f"`{PROGRAM} data drops {quoted(folder)}` lists ids"
        )
    ids = {row.id for _, row, _ in occurrences}
    if len(ids) > 1:
        raise UserError(f"{prefix}: is the beginning of {len(ids)} ids, as {min(ids)}; give more")
    return occurrences


def _numbered(folder: Path, name: str) -> AnsweredRequest:
    last = -1
    for _, request in requests(folder):
        if name == f"@{request.number}":
            return request
        last = request.number
    raise UserError(f"{name}: no request of {folder}; they are numbered from @0 to @{last}")


def _say_row(say: Callable[[str], None], row: Instruction) -> None:
    say(f"id:          {row.id}")
    say(f"instruction: {row.instruction}")
    say(f"input:       {row.input or '(none)'}")
    say(f"output:      {'(not asked for yet)' if row.output is None else row.output}")


def _say_reply(say: Callable[[str], None], request: AnsweredRequest) -> None:
    say(f"prompt of request {request.number}:")
    say(request.ask.prompt)
    say(f"reply ({request.reply.tokens} tokens, ended by {request.reply.finish_reason}):")
    say(request.reply.text)


def _neighbours(folder: Path, row: Instruction) -> list[tuple[float, Instruction, str]]:
    """The nearest of the seed tasks and kept rows, the row itself left out.

    Returns:
        ROUGE-L, the neighbour, and where it came from.
    """
    index = NoveltyIndex(0.01)  # its tables grow as the threshold falls
    known: list[tuple[Instruction, str]] = [(seed, "seed task") for seed in seeds_of(folder)]
    for _, request in requests(folder):
        source = f"request {request.number}"
        known += [(kept_row, source) for kept_row in request.kept if kept_row.id != row.id]
    # The index gives duplicates from the nearest on; an id that comes again is shown once.
    for instruction, _ in known:
        index.add(instruction.instruction)
    nearest: dict[str, tuple[float, Instruction, str]] = {}
    for duplicate in index.duplicates(row.instruction):
        neighbour, source = known[duplicate.row]
        nearest.setdefault(neighbour.id, (duplicate.score, neighbour, source))
        if len(nearest) == _NEIGHBOURS:
            break
    return list(nearest.values())
