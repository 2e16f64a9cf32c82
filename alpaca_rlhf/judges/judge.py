"""A judge at work: it rates responses, each once, and every score is checked and logged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set, Sized
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.scorers import BatchScorer, Response, Scorer, Scores
from alpaca_rlhf.judges.checking import checked
from alpaca_rlhf.judges.functions import BATCH_RESPONSES, JudgeFunction, described
from alpaca_rlhf.judges.score_log import ScoreKey, ScoreLog, key_of
from alpaca_rlhf.preferences import JUDGE
from alpaca_rlhf.settings.judge_names import JudgeName

MEND = "mend it and run the same command again, the scores before it are kept"
"""The end of a judge's failure: the next step."""


class JudgeFailure(UserError):
    """A judge raised an exception, or returned something that is not a score."""

    digest: str = ""
    """The judge's digest."""


@dataclass
class Judge:
    """A judge that rates one completion at a time, in [0, 1].

    Scores of all but the kit's own rules are logged once they are given, and read back instead of
    being asked for again.
    """

    name: JudgeName
    """Its name by the grammar."""
    source: Scorer | BatchScorer | JudgeFunction
    """The scorer."""
    digest: str = ""
    """Hash of all that its scores depend on; empty for the kit's own rules."""
    files: tuple[Path, ...] = ()
    """Files whose change makes another judge of it."""
    log: ScoreLog | None = None
    """Scores that were given before; None keeps none."""
    _parts: tuple[str, ...] | None = field(default=None, init=False)

    @property
    def title(self) -> str:
        """Its name in signatures; with a digest where its files may change."""
        title = self.name.text
        if self.name.is_file:
            title = f"{self.name.path.name}:{self.name.function}"
        elif self.name.kind == "reward":
            title = "reward"
        return f"{title}:{self.digest[:8]}" if self.digest else title

    @property
    def annotator(self) -> str:
        """The annotator's name in its rankings."""
        return f"{JUDGE}{self.title}"

    def scores(
        self,
        responses: Sequence[Response],
        *,
        stage: str,
        on_progress: Callable[[int], None] = lambda done: None,
    ) -> list[Scores]:
        """Score responses, in their order.

        Args:
            responses: Completions with their prompts.
            stage: The stage that they belong to, for messages.
            on_progress: Called with the number of distinct responses that have a score.

        Raises:
            JudgeFailure: The judge raised an exception, or a score is not a number in [0, 1]; the
                message names the line and the response. Scores given before it are kept.
        """
        # 1. The scores that are known already. A response that occurs twice is scored once.
        keys = [key_of(self.digest, response) for response in responses]
        scores: dict[ScoreKey, Scores] = {}
        missing: dict[ScoreKey, int] = {}
        for position, key in enumerate(keys):
            known = self.log.get(key) if self.log is not None else None
            if known is not None:
                scores[key] = known
            else:
                missing.setdefault(key, position)

        # 2. The others, batch by batch, each logged as soon as it is given.
        pending = list(missing.items())
        for start in range(0, len(pending), self._batch_size):
            batch = pending[start : start + self._batch_size]

            def row(number: int, batch: Sequence[tuple[ScoreKey, int]] = batch) -> str:
                position = batch[number][1]
                prompt = responses[position].prompt.id
                return f"{stage}, response {position + 1} of {len(responses)}, prompt {prompt}"

            values = self._values([responses[position] for _, position in batch], row)
            given: list[tuple[ScoreKey, Scores]] = []
            try:
                for number, ((key, _), value) in enumerate(zip(batch, values, strict=True)):
                    given.append((key, self._checked(value, row(number))))
            finally:
                if self.log is not None and given:
                    self.log.add(given)
            scores |= dict(given)
            on_progress(len(scores))
        return [scores[key] for key in keys]

    @property
    def _batch_size(self) -> int:
        if isinstance(self.source, JudgeFunction):
            return self.source.batch_size or 1
        if getattr(self.source, "batched", False):
            return int(getattr(self.source, "batch_size", BATCH_RESPONSES))
        return 1

    def _values(self, batch: Sequence[Response], row: Callable[[int], str]) -> list[Any]:
        """Return values of the judge for a batch; refusals by the kit's own judges pass through."""
        source = self.source
        if not isinstance(source, JudgeFunction):
            if getattr(source, "batched", False):
                return list(source.score_batch(batch))  # type: ignore[union-attr]
            return [source.score(*response) for response in batch]  # type: ignore[union-attr]
        passed = list(batch)
        values: list[Any] = []
        try:
            with source.process.entered():
                value = source(passed)
                if source.batch_size is None:
                    return [value]
                problem = _no_list(value)
                # A generator runs the user's code only now, and may never end.
                for score in islice([] if problem else value, len(batch) + 1):
                    values.append(score)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            place = source.place_of(error.__traceback__)
            number = min(len(values), len(batch) - 1)
            raise self._failure(place, f"raised {described(error)}", row(number)) from None
        if not problem and passed != list(batch):
            problem = (
                "changed the list that it was given, whose order tells which score is whose; "
                "sort a copy: sorted(responses, ...)"
            )
        if problem:
            raise self._failure(source.place, problem, row(0))
        if len(values) != len(batch):
            count: int | str = len(values)
            if len(values) > len(batch):
                count = len(value) if isinstance(value, Sized) else f"more than {len(batch)}"
            problem = f"returned {count} scores for {len(batch)} responses"
            raise self._failure(source.place, problem, row(0))
        return values

    def _checked(self, value: Any, row: str) -> Scores:
        place = self.source.place if isinstance(self.source, JudgeFunction) else self.name.text
        try:
            scores = checked(value)
        except ValueError as error:
            raise self._failure(place, str(error), row) from None
        parts = tuple(sorted(scores.parts))
        if self._parts is None:
            self._parts = parts
        if parts != self._parts:
            problem = f"returned the parts {_listed(parts)}, before it {_listed(self._parts)}"
            raise self._failure(place, f"{problem}; name the same parts every time", row)
        return scores

    def _failure(self, place: str, problem: str, row: str) -> JudgeFailure:
        function = self.source.title if isinstance(self.source, JudgeFunction) else "the judge"
        failure = JudgeFailure(f"{place}: {function}() {problem} ({row}); {MEND}")
        failure.digest = self.digest
        return failure


def _no_list(value: Any) -> str:
    """Why a batched judge's return value holds no score for each response; empty if it may."""
    wanted = "return a list, a score for each response in their order"
    if isinstance(value, (Set, Mapping)):
        return f"returned {type(value).__name__}, which tells no order of scores; {wanted}"
    if isinstance(value, (str, bytes)):
        return f"returned {type(value).__name__}; {wanted}"
    if not isinstance(value, Iterable) and not hasattr(value, "__getitem__"):
        return f"returned {type(value).__name__}; {wanted}"
    return ""


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"
