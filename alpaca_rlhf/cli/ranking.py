"""Ranking in the terminal: a person puts the completions of each prompt in order.

Each verdict is in the store before the next prompt is shown; who stops goes on there later.
"""

from __future__ import annotations

import random
import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.prompts import system_folded
from alpaca_rlhf.core.records import Completion, Ranking
from alpaca_rlhf.preferences import JUDGE

if TYPE_CHECKING:
    from alpaca_rlhf.preferences.assignment import Candidates
    from alpaca_rlhf.preferences.store import Store

HELP = (
    "Type the numbers best first, ties joined by `=`: `2 1=3 4`. "
    "`s` skips (what stays skipped is left out of training), `u` goes back to the last one, `q` "
    "quits, `?` shows this; every verdict is kept at once."
)


def parse_order(text: str, k: int) -> tuple[tuple[int, ...], ...]:
    """Tiers of the numbers 1 to `k`, best first, from `2 1=3 4`, `2 > 1 = 3 > 4` or `2, 1=3, 4`.

    Raises:
        ValueError: What is wrong with it, in plain words.
    """
    tight = re.sub(r"\s*=\s*", "=", text.strip())
    tiers: list[tuple[int, ...]] = []
    used: set[int] = set()
    for word in re.split(r"[\s,>]+", tight):
        parts = word.split("=")
        if not all(re.fullmatch(r"[0-9]+", part) for part in parts):
            problem = "`=` joins two numbers" if "=" in word else f"{word!r} is not a number"
            raise ValueError(f"{problem}; type for example {_example(k)}")
        tier = tuple(int(part) for part in parts)
        for number in tier:
            if not 1 <= number <= k:
                raise ValueError(f"there is no answer {number}; the answers are 1 to {k}")
            if number in used:
                raise ValueError(f"answer {number} stands twice")
            used.add(number)
        tiers.append(tier)
    missing = sorted(set(range(1, k + 1)) - used)
    if missing:
        numbers = ", ".join(map(str, missing))
        raise ValueError(f"every answer needs a place; still without one: {numbers}")
    return tuple(tiers)


def _example(k: int) -> str:
    rest = [str(number) for number in range(4, k + 1)]
    return " ".join(["2", "1=3" if k > 2 else "1", *rest])


class RankingSession:
    """One sitting of one annotator.

    Args:
        sets: The prompts to rank, each with its completions; they stand in the store.
        store: Where verdicts are kept.
        annotator: Name of the person who ranks.
        ask: Shows a question and returns the typed line; raises EOFError at the end of the input.
        say: Prints a line.
        clock: Seconds, for the time a verdict took.

    Raises:
        UserError: The annotator's name is empty or a judge's.
    """

    def __init__(
        self,
        sets: Sequence[Candidates],
        store: Store,
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
        self._sets = {candidates[0].id: candidates for candidates in sets}
        self._store = store
        self._annotator = annotator
        self._ask = ask
        self._say = say
        self._clock = clock
        self._history = store.ranked_by(annotator, sets)
        statuses = store.statuses(self._sets)
        self._skipped = {key for key, status in statuses.items() if status == "skipped"}
        settled = {key for key, status in statuses.items() if status in ("ranked", "closed")}
        self._done = settled | set(self._history)

    @property
    def left(self) -> int:
        """Number of prompts that nobody has ranked or skipped yet."""
        return len(self._sets.keys() - self._done - self._skipped)

    def run(self) -> bool:
        """Rank until nothing is left or the annotator quits; returns True if nothing waits.

        Skipped prompts come once more at the end.
        """
        open_prompts = [prompt_id for prompt_id in self._sets if prompt_id not in self._done]
        queue = deque(sorted(open_prompts, key=lambda prompt_id: prompt_id in self._skipped))
        asked_again: set[str] = set()
        if queue:
            self._say(f"{len(queue)} of {len(self._sets)} prompts to rank. {HELP}")
        while queue:
            prompt_id = queue.popleft()
            if prompt_id in self._skipped:
                asked_again.add(prompt_id)
                self._say("This one was skipped before. A tie of all answers is a verdict, too.")
            try:
                command = self._rank(prompt_id)
            except EOFError:
                break
            if command == "q":
                break
            ranked = (
                prompt_id in self._done
            )  # gone back to: without a new verdict the old one stays
            if command == "s" and not ranked:
                self._store.skip_outside(self._annotator, self._sets[prompt_id])
                self._skipped.add(prompt_id)
                if prompt_id not in asked_again:
                    queue.append(prompt_id)
            elif command == "u":
                if not ranked:
                    queue.appendleft(prompt_id)
                if self._history:
                    queue.appendleft(self._history.pop())
                else:
                    self._say("There is nothing to go back to.")
            elif command == "" and not queue and self._wants_back():
                queue.append(self._history.pop())
        return self.left == 0

    def _rank(self, prompt_id: str) -> str:
        """Show a prompt until it has a verdict or a command was typed, which is returned."""
        order = list(self._sets[prompt_id][1])
        random.Random(f"{self._annotator}/{prompt_id}").shuffle(order)
        self._show(prompt_id, order)
        shown_at = self._clock()
        while True:
            line = self._ask("order: ").strip().lower()
            if line in ("s", "u", "q"):
                return line
            if line in ("?", "h", "help"):
                self._say(HELP)
                continue
            try:
                tiers = parse_order(line, len(order))
            except ValueError as error:
                self._say(f"{error}.")
                continue
            ranking = Ranking(
                prompt_id=prompt_id,
                tiers=tuple(tuple(order[number - 1].id for number in tier) for tier in tiers),
                annotator=self._annotator,
                duration_s=round(self._clock() - shown_at, 2),
            )
            self._store.add_rankings([ranking])
            self._history.append(prompt_id)
            self._done.add(prompt_id)
            self._skipped.discard(prompt_id)
            return ""

    def _show(self, prompt_id: str, order: Sequence[Completion]) -> None:
        prompt = system_folded(self._sets[prompt_id][0])
        ranked = prompt_id in self._done
        again = " (again: the new verdict replaces the old one)" if ranked else ""
        number = list(self._sets).index(prompt_id) + 1
        self._say(f"\n[{number}/{len(self._sets)}, {self.left} left]{again}")
        for user, reply in prompt.history:
            self._say(f"  User: {_indented(user)}\n  Assistant: {_indented(reply)}")
        self._say(f"  {_indented(prompt.instruction)}")
        if prompt.input:
            self._say(f"  Input: {_indented(prompt.input)}")
        for number, completion in enumerate(order, 1):
            cut = " [cut off here]" if completion.finish_reason == "length" else ""
            text = _indented(completion.text.strip(), 3) or "(nothing)"
            self._say(f"{number}) {text}{cut}")

    def _wants_back(self) -> bool:
        try:
            line = self._ask("That was the last one. Enter ends, `u` goes back to it: ")
        except EOFError:
            return False
        return line.strip().lower() == "u"


def _indented(text: str, by: int = 4) -> str:
    """A text whose further lines stand below its first one, so that none looks like a new item."""
    return text.replace("\n", "\n" + " " * by)
