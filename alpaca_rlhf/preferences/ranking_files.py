"""`rankings.jsonl` of a run that an earlier version began: one ranking a line, as JSON.

Later versions keep every verdict in the store, and read such a file once, to take it up there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Completion, Ranking
from alpaca_rlhf.preferences.assignment import Refused, Verdict, check

_COLUMNS = "`prompt_id`, `tiers` (lists of completion ids, best first) and `annotator`"


def read_ranking_file(path: Path, completions: Mapping[str, Completion]) -> list[Ranking]:
    """The newest ranking of each prompt by each annotator, in the order of the file.

    Of several the highest revision counts, the later line among equals. A torn last line, left by
    a crash in mid-write, is passed over: it was never acknowledged.

    Args:
        path: The file.
        completions: Everything that the run has sampled, by id.

    Raises:
        UserError: `file:line:` of the first row that is broken, ranks fewer than two completions,
            or ranks one that is unknown or answers another prompt.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    *lines, tail = content.split(b"\n")
    if tail and _is_whole(tail):
        lines.append(tail)  # some editors leave out the last line end
    newest: dict[tuple[str, str], Ranking] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            ranking = _ranking(json.loads(line))
            _check_completions(ranking, completions)
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
            raise UserError(f"{path}:{number}: not JSON; expected {_COLUMNS}") from None
        except (ValueError, Refused) as error:
            raise UserError(f"{path}:{number}: {error}; expected {_COLUMNS}") from None
        key = ranking.prompt_id, ranking.annotator
        if key not in newest or ranking.revision >= newest[key].revision:
            newest[key] = ranking
    return list(newest.values())


def _is_whole(line: bytes) -> bool:
    try:
        _ranking(json.loads(line))
    except (ValueError, RecursionError):
        return False
    return True


def _ranking(row: Any) -> Ranking:
    if not isinstance(row, dict):
        raise ValueError("`prompt_id` is missing")
    for name in ("prompt_id", "annotator"):
        if not isinstance(row.get(name), str) or not row[name]:
            raise ValueError(f"`{name}` is missing")
    tiers = row.get("tiers")
    if not isinstance(tiers, list) or not all(
        isinstance(tier, list) and all(isinstance(key, str) for key in tier) for tier in tiers
    ):
        raise ValueError("`tiers` must be lists of completion ids")
    criteria = row.get("criteria", {})
    if not isinstance(criteria, dict) or not all(
        isinstance(stars, dict) for stars in criteria.values()
    ):
        raise ValueError("`criteria` must give stars for completions")
    duration, revision = row.get("duration_s", 0.0), row.get("revision", 0)
    if type(duration) not in (int, float):
        raise ValueError("`duration_s` must be a number")
    if type(revision) is not int:
        raise ValueError("`revision` must be a whole number")
    levels = tuple(tuple(tier) for tier in tiers)
    return Ranking(row["prompt_id"], levels, row["annotator"], criteria, float(duration), revision)


def _check_completions(ranking: Ranking, completions: Mapping[str, Completion]) -> None:
    ids = [key for tier in ranking.tiers for key in tier]
    for key in ids:
        if key not in completions:
            raise ValueError(f"completion {key!r} is not one of the {len(completions)} known ones")
        if completions[key].prompt_id != ranking.prompt_id:
            raise ValueError(
                f"completion {key!r} answers prompt {completions[key].prompt_id!r}, "
                f"not {ranking.prompt_id!r}"
            )
    check(Verdict(ranking.tiers, ranking.criteria), ids)
