"""What people said: in the terminal, and in the app, in the database of the run's folder."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Completion, Instruction, Ranking
from alpaca_rlhf.preferences import DATABASE, JUDGE, append, drop_judges, read, read_snapshot
from alpaca_rlhf.sources import RunPrompts

if TYPE_CHECKING:
    from alpaca_rlhf.preferences.store import Store

Ranked = tuple[Instruction, list[Completion], Ranking]
"""A ranking with its prompt and its completions."""
_SNAPSHOT = "snapshot"


class PeopleNeeded(UserError):
    """The run waits for people's rankings."""


def by_people(
    run: Path, path: Path, prompts: Collection[str], completions: Mapping[str, Completion]
) -> list[Ranking]:
    """The rankings of a run's own completions; those of the app are added to the terminal's.

    The app's come by way of a snapshot beside `path`, which stays.

    Args:
        run: The run folder.
        path: The terminal's rankings.
        prompts: Ids of the prompts that have to be ranked: those whose completions differ.
        completions: What the run has sampled, by id.

    Raises:
        PeopleNeeded: There are prompts that nobody has ranked.
    """
    rankings = _read(path, completions)
    left = set(prompts) - {one.prompt_id for one in rankings if not _judged(one)}
    file = run / DATABASE
    if file.exists():
        from alpaca_rlhf.preferences.store import Store

        with Store(file) as store:
            left -= store.settled(left)
            if not left:
                append(path, *_new(_of_the_app(store, path, completions), rankings))
                rankings = _read(path, completions)
    if left:
        where = shlex.quote(str(run))
        raise PeopleNeeded(
            f"{len(left)} of {len(prompts)} prompts are not ranked yet: rank them in a browser "
            f"with `alpaca-rlhf app --run {where}`, or here with `alpaca-rlhf rank --out {where}`; "
            "then run the same command again"
        )
    return rankings


def people_so_far(run: Path, path: Path, completions: Mapping[str, Completion]) -> list[Ranking]:
    """What people said before a judge took their place; the app's is added to the terminal's.

    Args:
        run: The run folder.
        path: The terminal's rankings; afterwards it holds no judge's.
        completions: All completions that the run has sampled, by id.
    """
    drop_judges(path)
    file = run / DATABASE
    if file.exists():
        from alpaca_rlhf.preferences.store import Store

        with Store(file) as store:
            found = _of_the_app(store, path, completions)
        people = [one for one in found if not _judged(one)]
        append(path, *_new(people, _read(path, completions)))
    return _read(path, completions)


def of_other_answers(
    folder: Path, sampled: Collection[str], prompts: RunPrompts
) -> tuple[list[Ranked], int]:
    """The app's rankings of answers that no stage of the run has sampled.

    These are prompts typed in the chat, and answers that `alpaca-rlhf sample --run` drew.

    Args:
        folder: Of the rank stage.
        sampled: Ids of the completions that the run has sampled.
        prompts: The run's prompts: what lies near those of another stage is left out.

    Returns:
        The rankings, and how many more are left out.
    """
    snapshot = folder / _SNAPSHOT
    if not snapshot.exists():
        return [], 0
    rows = [row for row in read_snapshot(snapshot) if any(one.id not in sampled for one in row[1])]
    kept = [row for row in rows if prompts.leak(row[0]) is None]
    return kept, len(rows) - len(kept)


def _read(path: Path, completions: Mapping[str, Completion]) -> list[Ranking]:
    return read(path, completions) if path.exists() else []


def _of_the_app(store: Store, path: Path, completions: Mapping[str, Completion]) -> list[Ranking]:
    """The app's rankings of the run's own completions, by way of a snapshot beside `path`."""
    snapshot = path.with_name(_SNAPSHOT)
    shutil.rmtree(snapshot, ignore_errors=True)  # of a sitting that was broken off
    store.export(snapshot)
    rows = read_snapshot(snapshot)
    return [one for _, own, one in rows if all(answer.id in completions for answer in own)]


def _new(found: Collection[Ranking], kept: Collection[Ranking]) -> list[Ranking]:
    there = {(one.prompt_id, one.annotator, one.revision) for one in kept}
    return [one for one in found if (one.prompt_id, one.annotator, one.revision) not in there]


def _judged(ranking: Ranking) -> bool:
    return ranking.annotator.startswith(JUDGE)
