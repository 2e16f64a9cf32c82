"""Ranking in the terminal: a person puts the completions of each prompt in order.

Each verdict is on the disk before the next prompt is shown; who stops goes on there later.
"""

from __future__ import annotations

import random
import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Completion, Ranking
from alpaca_rlhf.preferences import JUDGE, append, read
from alpaca_rlhf.serving.queueing import Sheet

HELP = (
    "Type the numbers best first, ties joined by `=`: `2 1=3 4`. "
    "`s` skips, `u` goes back to the last one, `q` quits; every verdict is kept at once."
)


def parse_order(text: str, k: int) -> tuple[tuple[int, ...], ...]:
    """Tiers of the numbers 1 to `k`, best first, from `2 1=3 4`, `2 > 1 = 3 > 4` or `2, 1=3, 4`.

    Raises:
        ValueError: What is wrong with it, in plain words.
    """
    tight = re.sub(r"\s*=\s*", "=", text.strip())
    tiers: list[tuple[int, ...]] = []
    seen: set[int] = set()
    for word in re.split(r"[\s,>]+", tight):
        numbers = word.split("=")
        if not all(re.fullmatch(r"[0-9]+", one) for one in numbers):
            what = "`=` joins two numbers" if "=" in word else f"{word!r} is not a number"
            raise ValueError(f"{what}; type for example {_example(k)}")
        tier = tuple(int(one) for one in numbers)
        for one in tier:
            if not 1 <= one <= k:
                raise ValueError(f"there is no answer {one}; the answers are 1 to {k}")
            if one in seen:
                raise ValueError(f"answer {one} stands twice")
            seen.add(one)
        tiers.append(tier)
    missing = sorted(set(range(1, k + 1)) - seen)
    if missing:
        listed = ", ".join(map(str, missing))
        raise ValueError(f"every answer needs a place; still without one: {listed}")
    return tuple(tiers)


def _example(k: int) -> str:
    rest = [str(one) for one in range(4, k + 1)]
    return " ".join(["2", "1=3" if k > 2 else "1", *rest])


class RankingSession:
    """One sitting of one annotator.

    Args:
        sheets: What is to be ranked.
        path: The file that the verdicts are appended to.
        annotator: Who ranks.
        ask: Shows a question and returns the typed line; raises EOFError at the end of the input.
        say: Prints a line.
        clock: Seconds, for the time a verdict took.

    Raises:
        UserError: The annotator's name is empty or a judge's, or the file is broken.
    """

    def __init__(
        self,
        sheets: Sequence[Sheet],
        path: Path,
        annotator: str,
        *,
        ask: Callable[[str], str],
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not annotator.strip() or annotator.startswith(JUDGE):
            raise UserError(
                f"--annotator {annotator!r}: give a name that does not begin with {JUDGE!r}"
            )
        self._sheets = {sheet.prompt.id: sheet for sheet in sheets}
        self._path = path
        self._annotator = annotator
        self._ask = ask
        self._say = say
        self._clock = clock
        known = {one.id for sheet in sheets for one in sheet.completions}
        ranked = read(path, known) if path.exists() else []
        ranked = [one for one in ranked if not one.annotator.startswith(JUDGE)]
        self._done = {one.prompt_id for one in ranked}
        mine = [one for one in ranked if one.annotator == annotator]
        self._revisions = {one.prompt_id: one.revision + 1 for one in mine}
        self._history = [one.prompt_id for one in mine]

    @property
    def left(self) -> int:
        """Prompts that nobody has ranked yet."""
        return len(self._sheets.keys() - self._done)

    def run(self) -> bool:
        """Rank until nothing is left or the annotator quits. Returns whether all is ranked."""
        queue = deque(key for key in self._sheets if key not in self._done)
        skipped: set[str] = set()
        if queue:
            self._say(f"{self.left} of {len(self._sheets)} prompts to rank. {HELP}")
        while queue:
            key = queue.popleft()
            if key in skipped:
                self._say("This one was skipped before. A tie of all answers is a verdict, too.")
            try:
                answer = self._rank(key)
            except EOFError:
                break
            if answer == "q":
                break
            old = key in self._done  # gone back to: without a new verdict its old one stays
            if answer == "s" and not old:
                skipped.add(key)
                queue.append(key)
            elif answer == "u":
                if not old:
                    queue.appendleft(key)
                if self._history:
                    queue.appendleft(self._history.pop())
                else:
                    self._say("There is nothing to go back to.")
            elif answer == "" and not queue and self._wants_back():
                queue.append(self._history.pop())
        return self.left == 0

    def _rank(self, key: str) -> str:
        """Show a prompt until it has a verdict or a command was typed, which is returned."""
        sheet = self._sheets[key]
        order = list(sheet.completions)
        random.Random(f"{self._annotator}/{key}").shuffle(order)
        self._show(sheet, order)
        shown = self._clock()
        while True:
            typed = self._ask("order: ").strip().lower()
            if typed in ("s", "u", "q"):
                return typed
            try:
                tiers = parse_order(typed, len(order))
            except ValueError as error:
                self._say(f"{error}.")
                continue
            ranking = Ranking(
                prompt_id=key,
                tiers=tuple(tuple(order[n - 1].id for n in tier) for tier in tiers),
                annotator=self._annotator,
                duration_s=round(self._clock() - shown, 2),
                revision=self._revisions.get(key, 0),
            )
            append(self._path, ranking)
            self._revisions[key] = ranking.revision + 1
            self._history.append(key)
            self._done.add(key)
            return ""

    def _show(self, sheet: Sheet, order: Sequence[Completion]) -> None:
        again = " (again: the new verdict replaces the old one)" if self._is_done(sheet) else ""
        number = list(self._sheets).index(sheet.prompt.id) + 1
        self._say(f"\n[{number}/{len(self._sheets)}, {self.left} left]{again}")
        for user, reply in sheet.prompt.history:
            self._say(f"  User: {user}\n  Assistant: {reply}")
        self._say(f"  {sheet.prompt.instruction}")
        if sheet.prompt.input:
            self._say(f"  Input: {sheet.prompt.input}")
        for n, one in enumerate(order, 1):
            cut = " [cut off here]" if one.finish_reason == "length" else ""
            self._say(f"{n}) {one.text.strip() or '(nothing)'}{cut}")

    def _is_done(self, sheet: Sheet) -> bool:
        return sheet.prompt.id in self._done

    def _wants_back(self) -> bool:
        try:
            typed = self._ask("That was the last one. Enter ends, `u` goes back to it: ")
        except EOFError:
            return False
        return typed.strip().lower() == "u"
