"""The log of a judge's scores: each is given once, and read back when a run is resumed.

`judge_scores.jsonl` holds a line a score, keyed by the judge's digest, the prompt, the completion
and whether it ended by itself. So a judge that is not deterministic, or that costs money, gives a
resumed run the scores that it gave before.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from alpaca_rlhf.core import jsonl
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import content_hash
from alpaca_rlhf.core.scorers import Response, Scores
from alpaca_rlhf.judges.checking import checked

LOG = "judge_scores.jsonl"
"""Name of the log in a run folder."""


class ScoreKey(NamedTuple):
    """The judge and the response that a score belongs to."""

    judge: str
    """The judge's digest."""
    prompt: str
    """Id of the prompt."""
    completion: str
    """Hash of the completion's text, and of whether it ended by itself."""


def key_of(judge: str, response: Response) -> ScoreKey:
    """The key of a response under a judge's digest."""
    completion = content_hash(response.completion, "eos" if response.finished else "length")
    return ScoreKey(judge, response.prompt.id, completion)


class ScoreLog:
    """The scores in a file, read when one is first asked for.

    Args:
        path: The file; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._scores: dict[ScoreKey, Scores] | None = None

    def get(self, key: ScoreKey) -> Scores | None:
        """The score that was given before; None if there is none.

        Raises:
            UserError: The log is damaged or cannot be read.
        """
        return self._all().get(key)

    def add(self, scores: Iterable[tuple[ScoreKey, Scores]]) -> None:
        """Append scores; when it returns they survive the death of this process.

        Raises:
            UserError: The log cannot be written.
        """
        rows = list(scores)
        known = self._all()
        jsonl.append(
            self._path,
            [
                {**key._asdict(), "score": scores.score, "parts": dict(scores.parts)}
                for key, scores in rows
            ],
        )
        known |= dict(rows)

    def _all(self) -> dict[ScoreKey, Scores]:
        if self._scores is None:
            self._scores = dict(self._read()) if self._path.is_file() else {}
        return self._scores

    def _read(self) -> Iterable[tuple[ScoreKey, Scores]]:
        mend = "delete that line, and its completion is scored anew"
        for line in jsonl.lines(self._path, expected="a judge's score any more", mend=mend):
            row = line.value
            try:
                key = ScoreKey(row["judge"], row["prompt"], row["completion"])
                scores = checked(Scores(row["score"], row["parts"]))
            except (KeyError, ValueError):
                raise UserError(
                    f"{self._path}:{line.number}: is not a judge's score any more; {mend}"
                ) from None
            yield key, scores
