"""Rankings on disk, one JSON object a line.

The file only grows. A correction is a new line with a higher revision; reading takes the last word
of every annotator, and people's word over a judge's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.files import atomic_write, writing
from alpaca_rlhf.core.records import Completion, Ranking

JUDGE = "judge:"
"""How the annotator of a ranking begins that no person made."""

MOST_STARS = 5
"""The best that a criterion can be judged; 1 is the worst."""

_CHUNK = 4096
_COLUMNS = "`prompt_id`, `tiers` (lists of completion ids, best first) and `annotator`"


def append(path: Path, *rankings: Ranking) -> None:
    """Add rankings to a file, made if absent, and return when the disk has them.

    A torn last line, left by a crash in mid-write, is cut first: it was never acknowledged.

    Raises:
        UserError: The file cannot be written.
    """
    path = Path(path)
    lines = "".join(
        json.dumps(one.to_json(), ensure_ascii=False) + "\n" for one in rankings
    ).encode()
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            tail = _last_line(file)
            if tail and _is_torn(tail):
                file.truncate(file.seek(0, os.SEEK_END) - len(tail))
            elif tail:
                lines = b"\n" + lines
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())


def drop_judges(path: Path) -> None:
    """Take judges' rankings out of a file in one step; every line of a person stays as it is.

    Raises:
        UserError: The file is damaged, or cannot be written.
    """
    if not path.exists():
        return
    read(path)
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [one for one in lines if not (_is_torn(one) or _by_judge(one))]
    if len(kept) < len(lines):
        atomic_write(path, b"".join(kept))


def read(
    path: Path, completions: Mapping[str, Completion] | Collection[str] | None = None
) -> list[Ranking]:
    """The rankings that count, in the order in which their prompts first appear.

    Of each (prompt, annotator) the highest revision counts, the later line among equals. Where a
    person ranked a prompt, judges (annotators `judge:...`) are not heard. A torn last line is
    passed over.

    Args:
        path: A file that `append` wrote.
        completions: All known completion ids, or completions by id; None to take any.

    Raises:
        UserError: `file:line:` of the first row that is broken, ranks fewer than two completions,
            or ranks one that is not in `completions`, or that is known to answer another prompt.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    *lines, tail = data.split(b"\n")
    if tail and not _is_torn(tail):
        lines.append(tail)
    latest: dict[str, dict[str, Ranking]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            ranking = _ranking(json.loads(line))
        except (ValueError, RecursionError) as error:
            not_json = isinstance(error, json.JSONDecodeError | UnicodeDecodeError | RecursionError)
            problem = "not JSON" if not_json else str(error)
            raise UserError(f"{path}:{number}: {problem}; expected {_COLUMNS}") from None
        for one in (one for tier in ranking.tiers for one in tier):
            if completions is not None and one not in completions:
                raise UserError(
                    f"{path}:{number}: completion {one!r} is not one of the "
                    f"{len(completions)} known ones"
                )
            if isinstance(completions, Mapping) and completions[one].prompt_id != ranking.prompt_id:
                raise UserError(
                    f"{path}:{number}: completion {one!r} answers prompt "
                    f"{completions[one].prompt_id!r}, not {ranking.prompt_id!r}"
                )
        of_prompt = latest.setdefault(ranking.prompt_id, {})
        before = of_prompt.get(ranking.annotator)
        if before is None or ranking.revision >= before.revision:
            of_prompt[ranking.annotator] = ranking
    return [one for of_prompt in latest.values() for one in _heard(list(of_prompt.values()))]


def _last_line(file: BinaryIO) -> bytes:
    """What stands after the last line end, read from the end of the file."""
    size = file.seek(0, os.SEEK_END)
    tail = b""
    while len(tail) < size and b"\n" not in tail:
        file.seek(max(0, size - 2 * len(tail) - _CHUNK))
        tail = file.read()
    return tail[tail.rfind(b"\n") + 1 :]


def _is_torn(tail: bytes) -> bool:
    """Whether a last line without a line end is half a line, and not one that an editor left so."""
    try:
        _ranking(json.loads(tail))
    except (ValueError, RecursionError):
        return True
    return False


def _ranking(row: Any) -> Ranking:
    if not isinstance(row, dict) or not isinstance(row.get("prompt_id"), str):
        raise ValueError("`prompt_id` is missing")
    tiers = row.get("tiers")
    if not isinstance(tiers, list) or not all(
        isinstance(tier, list) and all(isinstance(one, str) for one in tier) for tier in tiers
    ):
        raise ValueError("`tiers` must be lists of completion ids")
    annotator, revision = row.get("annotator"), row.get("revision", 0)
    if not isinstance(annotator, str) or not annotator:
        raise ValueError("`annotator` is missing")
    if not isinstance(revision, int) or isinstance(revision, bool):
        raise ValueError("`revision` must be a whole number")
    criteria, duration = row.get("criteria", {}), row.get("duration_s", 0.0)
    if not isinstance(criteria, dict) or not all(
        isinstance(stars, dict) for stars in criteria.values()
    ):
        raise ValueError("`criteria` must give stars for completions")
    _check_stars(criteria, {one for tier in tiers for one in tier})
    if not isinstance(duration, int | float) or isinstance(duration, bool):
        raise ValueError("`duration_s` must be a number")
    levels = tuple(tuple(tier) for tier in tiers)
    return Ranking(row["prompt_id"], levels, annotator, criteria, float(duration), revision)


def _check_stars(criteria: dict[str, dict[str, Any]], ranked: Collection[str]) -> None:
    for one, stars in criteria.items():
        if one not in ranked:
            raise ValueError(f"`criteria` gives stars for {one!r}, which is not ranked")
        for name, given in stars.items():
            if (
                not isinstance(given, int)
                or isinstance(given, bool)
                or not 1 <= given <= MOST_STARS
            ):
                raise ValueError(
                    f"`criteria` must give 1 to {MOST_STARS} stars for {name!r}, "
                    f"got {str(given)[:40]}"
                )


def _by_judge(line: bytes) -> bool:
    return _ranking(json.loads(line)).annotator.startswith(JUDGE)


def _heard(rankings: list[Ranking]) -> list[Ranking]:
    people = [one for one in rankings if not one.annotator.startswith(JUDGE)]
    return people or rankings
