"""One row or one request of a generation, as lines for a terminal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from alpaca_rlhf.cli.terminal import PROGRAM
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import AnsweredRequest, Drop, NoveltyIndex, requests, seeds_of

_NEIGHBOURS = 5
_SHOWN = 100  # characters of a row in a list


def show_row(folder: Path, wanted: str, say: Callable[[str], None]) -> None:
    """Say a row, its verdict, its nearest neighbours, and its request with prompt and reply.

    Args:
        folder: Where the events lie.
        wanted: The row's id, or its beginning.
        say: Takes a line.

    Raises:
        UserError: No row has this id, or several begin so; the run cannot be read.
    """
    found = _with_id(folder, wanted)
    for one, row, drop in found:
        say(f"request {one.number} ({one.ask.step}): {_verdict(drop, one)}")
        _say_row(say, row)
    say("")
    say("nearest instructions (ROUGE-L):")
    for score, other, where in _neighbours(folder, found[0][1]):
        say(f"  {score:.3f}  {other.id}  {short(other.instruction)}  ({where})")
    for one in {request.number: request for request, _, _ in found}.values():
        say("")
        _say_reply(say, one)


def show_request(folder: Path, wanted: str, say: Callable[[str], None]) -> None:
    """Say what came of a request, row by row, then its prompt and its reply.

    Args:
        folder: Where the events lie.
        wanted: Its number after an `@`.
        say: Takes a line.

    Raises:
        UserError: There is no such request; the run cannot be read.
    """
    one = _numbered(folder, wanted)
    say(f"request {one.number} ({one.ask.step}):")
    for row, drop in _verdicts(one):
        say("")
        say(_verdict(drop, one))
        if row is not None:
            _say_row(say, row)
    say("")
    _say_reply(say, one)


def short(text: str) -> str:
    """A text on one line of a list, cut where it is too long."""
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 3]}..."


def _verdicts(one: AnsweredRequest) -> list[tuple[Instruction | None, Drop | None]]:
    return [*((row, None) for row in one.kept), *((drop.row, drop) for drop in one.dropped)]


def _verdict(drop: Drop | None, one: AnsweredRequest) -> str:
    if drop is None:
        return "kept, to be answered" if one.ask.drafts else "kept"
    near = f"; nearest {drop.near} at {drop.score:.3f}" if drop.near else ""
    return f"dropped by {drop.rule}: {drop.detail}{near}"


def _with_id(folder: Path, wanted: str) -> list[tuple[AnsweredRequest, Instruction, Drop | None]]:
    """Where the one row stands whose id begins so: a task may have come more than once."""
    found = [
        (one, row, drop)
        for _, one in requests(folder)
        for row, drop in _verdicts(one)
        if row is not None and row.id.startswith(wanted)
    ]
    if not found:
        raise UserError(
            f"{wanted}: no row of {folder} has this id; `{PROGRAM} data drops {folder}` lists ids"
        )
    ids = {row.id for _, row, _ in found}
    if len(ids) > 1:
        raise UserError(f"{wanted}: is the beginning of {len(ids)} ids, as {min(ids)}; give more")
    return found


def _numbered(folder: Path, wanted: str) -> AnsweredRequest:
    last = -1
    for _, one in requests(folder):
        if wanted == f"@{one.number}":
            return one
        last = one.number
    raise UserError(f"{wanted}: no request of {folder}; they are numbered from @0 to @{last}")


def _say_row(say: Callable[[str], None], row: Instruction) -> None:
    say(f"id:          {row.id}")
    say(f"instruction: {row.instruction}")
    say(f"input:       {row.input or '(none)'}")
    say(f"output:      {'(not asked for yet)' if row.output is None else row.output}")


def _say_reply(say: Callable[[str], None], one: AnsweredRequest) -> None:
    say(f"prompt of request {one.number}:")
    say(one.ask.prompt)
    say(f"reply ({one.reply.tokens} tokens, ended by {one.reply.finish_reason}):")
    say(one.reply.text)


def _neighbours(folder: Path, row: Instruction) -> list[tuple[float, Instruction, str]]:
    """The nearest of the seed tasks and kept rows, the row itself left out."""
    index = NoveltyIndex(0.01)  # its tables grow as the threshold falls
    known: list[tuple[Instruction, str]] = [(seed, "seed task") for seed in seeds_of(folder)]
    for _, one in requests(folder):
        known += [(kept, f"request {one.number}") for kept in one.kept if kept.id != row.id]
    for other, _ in known:
        index.add(other.instruction)
    found: dict[str, tuple[float, Instruction, str]] = {}
    for near in index.duplicates(row.instruction):
        other, where = known[near.row]
        found.setdefault(other.id, (near.score, other, where))
        if len(found) == _NEIGHBOURS:
            break
    return list(found.values())
