"""A round of two policies: both answer the same prompt, and nothing tells who is who.

Both are drawn one after the other in an order of chance, with the same limits, and shown together
when both are whole, so that neither time nor place gives anything away.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, get_args

import gradio as gr

from alpaca_rlhf.app.jobs import OVER
from alpaca_rlhf.app.language import words
from alpaca_rlhf.app.services import Services
from alpaca_rlhf.app.sessions import Pages
from alpaca_rlhf.app.speech import standing
from alpaca_rlhf.app.talk import MOST_TEXT
from alpaca_rlhf.app.worker import Worker
from alpaca_rlhf.core.records import Completion, Instruction
from alpaca_rlhf.preferences.assignment import Refused
from alpaca_rlhf.preferences.battles import Pairing, Vote
from alpaca_rlhf.preferences.database import DiskFull
from alpaca_rlhf.serving.manner import Manner
from alpaca_rlhf.sources.run_prompts import RunPrompts

if TYPE_CHECKING:
    from alpaca_rlhf.models.streaming import GenerationUpdate
    from alpaca_rlhf.serving.speaker import Speaker

NAMES = (
    "alpaca bard bloom chatglm chatgpt claude dolly falcon gemini gemma gpt-2 gpt-3 gpt-3.5 gpt-4 "
    "koala llama llama-2 llama-3 mistral mixtral palm phi qwen vicuna anthropic baidu deepmind "
    "deepseek lmsys openai sft ppo rlhf best-of-k best_of_k dpo"
).split()
"""Words by which an answer names its model; the idea is FastChat's (clean_battle_data.py)."""
_NAMED = re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, NAMES))})(?![\w-])", re.IGNORECASE)


@dataclass(frozen=True)
class Round:
    """What a page holds of a round; nothing in it names a policy."""

    pairing: Pairing
    """Both answers and their round."""
    blind: bool
    """Whether neither answer names its model."""


@dataclass(frozen=True)
class Seen:
    """What is on the page now."""

    line: str
    """Where the round stands."""
    running: bool = False
    """Whether there is something to stop."""
    round: Round | None = None
    """The round, once both answers are whole."""


@dataclass(frozen=True)
class _Drawn:
    share: float
    own: tuple[tuple[str, Completion], ...] = ()


class Duel:
    """Lets two policies answer, and keeps the votes.

    Args:
        services: What every tab is given.
        worker: Owns the model.
        draw: Draws so many different ones of some names; the order is drawn too.
    """

    def __init__(
        self,
        services: Services,
        worker: Worker,
        draw: Callable[[Sequence[str], int], list[str]] | None = None,
    ) -> None:
        self.services = services
        self.worker = worker
        self.pages = Pages()
        self.prompts = RunPrompts(worker.run, worker.settings)
        self._draw = draw or secrets.SystemRandom().sample

    def play(self, text: str, chosen: Sequence[str | None], request: gr.Request) -> Iterator[Seen]:
        """Let two policies answer, drawn or, for admins, chosen."""
        language = self.services.language(request)
        account = self.services.account(request)
        says, there = words("compare", language), self.worker.policies()
        wanted = [one for one in chosen if one in there] if account.role == "admin" else []
        row = self._row(text)
        refused = ""
        if not text.strip():
            refused = says["nothing"]
        elif len(text) > MOST_TEXT:
            refused = words("chat", language)["said.too_long"].format(n=MOST_TEXT)
        elif len(there) < 2:
            refused = says["too_few"]
        elif len(wanted) == 2 and wanted[0] == wanted[1]:
            refused = says["same"]
        if refused:
            yield Seen(refused)
            return
        others = [one for one in there if one not in wanted]
        names = [*wanted, *self._draw(others, 2 - len(wanted))]
        manner = Manner(temperature=1.0, seed=secrets.randbelow(2**32))

        def work(speaker: Speaker, stop: Event) -> Iterator[_Drawn]:
            return _both(speaker, self._draw(names, 2), row, manner, stop)

        job = self.worker.start(work, "compare")
        self.pages.put(request, job)
        for update in job.updates():
            share = 0.0 if update.value is None else update.value.share
            now = standing(update, language) or says["writing"].format(n=round(100 * share))
            if update.phase == "stopped":
                now = words("chat", language)["said.stopped"]
            elif update.phase == "done" and update.value is not None:
                try:
                    round_ = self._keep(account.id, row, update.value.own)
                except DiskFull:
                    yield Seen(words("shell", language)["full"])
                    return
                yield Seen(says["your_turn"], False, round_)
                return
            yield Seen(now, update.phase not in OVER)

    def vote(self, round_: Round | None, given: Vote, request: gr.Request) -> str:
        """Keep a vote and tell the names.

        Raises:
            DiskFull: It is not kept; it can be given again.
        """
        language = self.services.language(request)
        account = self.services.account(request)
        says = words("compare", language)
        if round_ is None or given not in get_args(Vote):
            return says["gone"]
        try:
            told = self.services.store.vote(
                account.id, round_.pairing.round, given, blind=round_.blind
            )
        except Refused:
            return says["gone"]
        line = says["already" if told.already else "revealed"].format(
            vote=says[f"votes.{told.vote}"], left=told.left, right=told.right
        )
        return line if round_.blind else f"{line} {says['named']}"

    def prompt(self) -> str | None:
        """A prompt of the evaluation; None if the run has none."""
        rows = self.prompts.to_evaluate()
        if not rows:
            return None
        row = secrets.choice(rows)
        return "\n\n".join(part for part in (row.instruction, row.input) if part)

    def _row(self, text: str) -> Instruction:
        """The prompt; where it is one of the evaluation, with its own input."""
        for row in self.prompts.to_evaluate():
            if text == "\n\n".join(part for part in (row.instruction, row.input) if part):
                return Instruction(row.instruction, row.input, source="compare")
        return Instruction(text, source="compare")

    def _keep(self, account: int, row: Instruction, own: Sequence[tuple[str, Completion]]) -> Round:
        store = self.services.store
        store.add_completions([(row, [one for _, one in own])])
        (first, one), (second, other) = own
        pairing = store.battle(account, row.id, ((first, one.id), (second, other.id)))
        return Round(pairing, not any(names_a_model(each.text, row) for _, each in own))


def names_a_model(text: str, row: Instruction) -> bool:
    """Whether an answer has a word of `NAMES` that the prompt does not have."""
    asked = {one.lower() for one in _NAMED.findall(f"{row.instruction} {row.input}")}
    return any(one.lower() not in asked for one in _NAMED.findall(text))


def _both(
    speaker: Speaker, names: Sequence[str], row: Instruction, manner: Manner, stop: Event
) -> Iterator[_Drawn]:
    own: list[tuple[str, Completion]] = []
    for number, name in enumerate(names):
        yield _Drawn(number / 2)
        said: list[GenerationUpdate] = []
        for now in speaker.speak(name, row, manner, stop, key=f"compare/{row.id}"):
            said = now
        if stop.is_set():
            return
        own += [
            (name, speaker.completion(name, row, manner, one.text, one.sampled)) for one in said
        ]
    yield _Drawn(1.0, tuple(own))
