"""The database of a run's verdicts, and the taking up of runs that earlier versions began."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from alpaca_rlhf.core.records import Ranking
from alpaca_rlhf.core.runs import finished
from alpaca_rlhf.preferences import DATABASE, JUDGE
from alpaca_rlhf.preferences.assignment import Candidates, distinct
from alpaca_rlhf.preferences.ranking_files import read_ranking_file
from alpaca_rlhf.sources.sampled import Sheet, origin_of_stage, read_sheets

if TYPE_CHECKING:
    from alpaca_rlhf.preferences.store import Store

SNAPSHOT = "snapshot"
"""The snapshot that training reads, in the folder of a rank stage."""
TAKEN_UP = "rankings.jsonl.taken-up"
"""The name of an earlier version's file once its rankings are in the database."""


def open_store(
    run: Path, where: str | None = None, *, say: Callable[[str], None] = lambda line: None
) -> Store:
    """Open the database that keeps the verdicts of a run.

    Args:
        run: The run folder.
        where: Another database than the one in the run folder: a file or a URL.
        say: Told in one line if rankings of an earlier version were taken up.

    Raises:
        UserError: It cannot be opened, or rankings of an earlier version cannot be read.
    """
    from alpaca_rlhf.preferences.store import Store  # loads SQLAlchemy

    if where is not None:
        return Store(where)
    store = Store(run / DATABASE)
    try:
        _take_up(run, store, say)
    except BaseException:
        store.close()
        raise
    return store


def take_up_earlier(run: Path, say: Callable[[str], None]) -> None:
    """Move the rankings of a run that an earlier version began into its database, once.

    Earlier versions kept them in `rankings.jsonl` of each rank stage. A stage that is done gets the
    snapshot that training reads now.

    Raises:
        UserError: They cannot be read.
    """
    if _earlier_files(run):
        open_store(run, say=say).close()


def has_verdicts(run: Path) -> bool:
    """True if anything was ranked in the run folder itself."""
    return (run / DATABASE).exists() or bool(_earlier_files(run))


def _earlier_files(run: Path) -> list[Path]:
    if not (run / "ledger.json").exists():
        return []  # no run, or none that has sampled anything
    return sorted(run.glob("rank*/rankings.jsonl"))


def _take_up(run: Path, store: Store, say: Callable[[str], None]) -> None:
    for path in _earlier_files(run):
        stage = path.parent.name
        sample_stage = stage.replace("rank", "sample", 1)
        sheets = {sheet.prompt.id: sheet for sheet in read_sheets(run, sample_stage)}
        known = {
            completion.id: completion
            for sheet in sheets.values()
            for completion in sheet.completions
        }

        # 1. The candidate sets, then the rankings. Doing it again after a kill adds nothing.
        rankings: list[Ranking] = []
        sets: list[Candidates] = []
        for earlier in read_ranking_file(path, known):
            sheet = sheets[earlier.prompt_id]
            ranking = _as_shown_now(earlier, sheet)
            if ranking is None:
                continue
            ranked = {key for tier in ranking.tiers for key in tier}
            completions = [answer for answer in sheet.completions if answer.id in ranked]
            sets.append((sheet.prompt, completions))
            rankings.append(ranking)
        store.add_sets(sets, origin=origin_of_stage(run, sample_stage))
        added = store.add_rankings(rankings)

        # 2. The snapshot of a stage that is done; an older one held only the app's rankings.
        if stage in finished(run):
            snapshot = path.with_name(SNAPSHOT)
            if snapshot.exists():
                backup = path.with_name(f"{SNAPSHOT}-earlier")
                shutil.rmtree(snapshot) if backup.exists() else snapshot.rename(backup)
            store.export(snapshot)

        # 3. The file is read no more.
        path.replace(path.with_name(TAKEN_UP))
        say(
            f"{path}: written by an earlier version; its {len(rankings)} rankings are in "
            f"{store.database.shown} now ({added} of them new there)"
        )


def _as_shown_now(ranking: Ranking, sheet: Sheet) -> Ranking | None:
    """A person's ranking without repeated texts, which are no longer shown; None if one is left."""
    if ranking.annotator.startswith(JUDGE):
        return ranking
    distinct_ids = {completion.id for completion in distinct(sheet.completions)}
    tiers = [tuple(key for key in tier if key in distinct_ids) for tier in ranking.tiers]
    tiers = [tier for tier in tiers if tier]
    # A single answer has no order.
    if sum(map(len, tiers)) < 2:
        return None
    return Ranking(
        ranking.prompt_id,
        tuple(tiers),
        ranking.annotator,
        {key: stars for key, stars in ranking.criteria.items() if key in distinct_ids},
        ranking.duration_s,
        ranking.revision,
    )
