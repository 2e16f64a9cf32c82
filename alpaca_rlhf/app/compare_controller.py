"""The Compare tab's controller: blind rounds between two policies, and the votes on them.

Both answers are sampled one after the other in random order, with the same limits, and shown
together once both are complete, so that neither time nor place gives the policy away.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from threading import Event
from typing import TYPE_CHECKING, get_args

import gradio as gr

from alpaca_rlhf.app.chat_controller import MAX_MESSAGE_CHARS
from alpaca_rlhf.app.job_status import job_status
from alpaca_rlhf.app.language import translations
from alpaca_rlhf.app.page_jobs import PageJobs
from alpaca_rlhf.app.services import Services
from alpaca_rlhf.app.worker import Worker
from alpaca_rlhf.core.records import Completion, Instruction
from alpaca_rlhf.preferences.assignment import Refused
from alpaca_rlhf.preferences.battles import Pairing, Vote
from alpaca_rlhf.preferences.database import DiskFull
from alpaca_rlhf.serving.sampling_settings import SamplingSettings

if TYPE_CHECKING:
    from alpaca_rlhf.models.streaming import GenerationUpdate
    from alpaca_rlhf.serving.policy_server import PolicyServer

MODEL_NAMES = (
    "alpaca bard bloom chatglm chatgpt claude dolly falcon gemini gemma gpt-2 gpt-3 gpt-3.5 gpt-4 "
    "koala llama llama-2 llama-3 mistral mixtral palm phi qwen vicuna anthropic baidu deepmind "
    "deepseek lmsys openai sft ppo rlhf best-of-k best_of_k dpo grpo rloo"
).split()
"""Words by which an answer names its model; the idea is FastChat's (clean_battle_data.py)."""
_MODEL_NAME = re.compile(
    rf"(?<![\w-])(?:{'|'.join(map(re.escape, MODEL_NAMES))})(?![\w-])", re.IGNORECASE
)


@dataclass(frozen=True)
class Round:
    """A round on a page; nothing in it names a policy."""

    pairing: Pairing
    """Both answers and the id of the round."""
    blind: bool
    """True if neither answer names its model."""


@dataclass(frozen=True)
class CompareView:
    """State of the page."""

    status: str
    """The status line."""
    running: bool = False
    """True while there is something to stop."""
    round: Round | None = None
    """The round, once both answers are complete."""
    prompt: Instruction | None = None
    """The prompt that is answered, with its earlier turns; None where nothing is."""


@dataclass(frozen=True)
class _RoundProgress:
    share: float
    answers: tuple[tuple[str, Completion], ...] = ()  # each with its policy


class CompareController:
    """Lets two policies answer the same prompt, and saves the votes.

    Args:
        services: Store, accounts and language.
        worker: Owns the model.
        draw: Draws so many different names from a list, in random order.
    """

    def __init__(
        self,
        services: Services,
        worker: Worker,
        draw: Callable[[Sequence[str], int], list[str]] | None = None,
    ) -> None:
        self.services = services
        self.worker = worker
        self.page_jobs = PageJobs()
        self._draw = draw or secrets.SystemRandom().sample

    def play(
        self,
        message: str,
        choices: Sequence[str | None],
        request: gr.Request,
        *,
        drawn: Instruction | None = None,
    ) -> Iterator[CompareView]:
        """Let two policies answer.

        Args:
            message: The message.
            choices: The policies; for admins alone, and empty ones are drawn at random.
            request: The request of the page.
            drawn: The evaluation prompt that was drawn last, whose earlier turns are before a
                message that is its own.
        """
        language = self.services.language(request)
        account = self.services.account(request)
        text, policies = translations("compare", language), self.worker.policies()
        # 1. The policies; choices count for admins only, whatever a browser sends.
        is_admin = account.role == "admin"
        chosen = [policy for policy in choices if policy in policies] if is_admin else []
        refusal = ""
        if not message.strip():
            refusal = text["nothing"]
        elif len(message) > MAX_MESSAGE_CHARS:
            too_long = translations("chat", language)["status.too_long"]
            refusal = too_long.format(n=MAX_MESSAGE_CHARS)
        elif len(policies) < 2:
            refusal = text["too_few"]
        elif len(chosen) == 2 and chosen[0] == chosen[1]:
            refusal = text["same"]
        if refusal:
            yield CompareView(refusal)
            return
        others = [policy for policy in policies if policy not in chosen]
        pair = [*chosen, *self._draw(others, 2 - len(chosen))]
        # 2. Both answers, in random order and with one seed.
        prompt = self._prompt(message, drawn)
        sampling = SamplingSettings.of_stage(
            self.worker.settings, "evaluate", seed=secrets.randbelow(2**32)
        )

        def work(policy_server: PolicyServer, stop: Event) -> Iterator[_RoundProgress]:
            return _both_answers(policy_server, self._draw(pair, 2), prompt, sampling, stop)

        self.page_jobs.leave(request)
        job = self.worker.start(work, "compare", owner=account.id)
        for update in self.page_jobs.follow(request, job):
            # 3. The round, once both are complete.
            if update.phase == "done" and update.value is not None:
                try:
                    round_ = self._save(account.id, prompt, update.value.answers)
                except DiskFull:
                    yield CompareView(translations("shell", language)["full"], prompt=prompt)
                    return
                yield CompareView(text["your_turn"], False, round_, prompt)
                return
            share = 0.0 if update.value is None else update.value.share
            status = job_status(update, language) or text["writing"].format(n=round(100 * share))
            yield CompareView(status, not update.finished, prompt=prompt)

    def vote(self, round_: Round | None, vote: Vote, request: gr.Request) -> str:
        """Save a vote; returns the status with the names of the policies.

        Raises:
            DiskFull: It is not saved; it can be given again.
        """
        language = self.services.language(request)
        account = self.services.account(request)
        text = translations("compare", language)
        if round_ is None or vote not in get_args(Vote):
            return text["gone"]
        try:
            revealed = self.services.store.vote(
                account.id, round_.pairing.round, vote, blind=round_.blind
            )
        except Refused:
            return text["gone"]
        status = text["already" if revealed.already else "revealed"].format(
            vote=text[f"votes.{revealed.vote}"], left=revealed.left, right=revealed.right
        )
        return status if round_.blind else f"{status} {text['named']}"

    def evaluation_prompt(self) -> Instruction | None:
        """A random prompt of the evaluation; None if the run has none."""
        prompts = self.worker.prompts.to_evaluate()
        return secrets.choice(prompts) if prompts else None

    def _prompt(self, message: str, drawn: Instruction | None) -> Instruction:
        """The prompt of a message; one of the evaluation keeps its own input and earlier turns."""
        if drawn is not None and message == as_message(drawn):
            return replace(drawn, output=None, source="compare", masked_replies=())
        # Somebody may also type one. Nothing tells the earlier turns that are meant there.
        for prompt in self.worker.prompts.to_evaluate():
            if message == as_message(prompt) and not (prompt.history or prompt.system):
                return Instruction(prompt.instruction, prompt.input, source="compare")
        return Instruction(message, source="compare")

    def _save(
        self, account: int, prompt: Instruction, answers: Sequence[tuple[str, Completion]]
    ) -> Round:
        store = self.services.store
        store.add_completions([(prompt, [completion for _, completion in answers])])
        (policy_1, completion_1), (policy_2, completion_2) = answers
        sides = ((policy_1, completion_1.id), (policy_2, completion_2.id))
        pairing = store.battle(account, prompt.id, sides)
        blind = not any(names_a_model(completion.text, prompt) for _, completion in answers)
        return Round(pairing, blind)


def names_a_model(answer: str, prompt: Instruction) -> bool:
    """True if an answer contains one of `MODEL_NAMES` that its prompt does not contain."""
    turns = [text for turn in prompt.history for text in turn]
    whole = " ".join((prompt.system, *turns, prompt.instruction, prompt.input))
    in_prompt = {name.lower() for name in _MODEL_NAME.findall(whole)}
    return any(name.lower() not in in_prompt for name in _MODEL_NAME.findall(answer))


def as_message(prompt: Instruction) -> str:
    """The last message of a prompt, as a person would type it."""
    return "\n\n".join(part for part in (prompt.instruction, prompt.input) if part)


def _both_answers(
    policy_server: PolicyServer,
    policies: Sequence[str],
    prompt: Instruction,
    sampling: SamplingSettings,
    stop: Event,
) -> Iterator[_RoundProgress]:
    answers: list[tuple[str, Completion]] = []
    for index, policy in enumerate(policies):
        yield _RoundProgress(index / 2)
        samples: list[GenerationUpdate] = []
        for partial in policy_server.generate(
            policy, prompt, sampling, stop, key=f"compare/{prompt.id}", whole=True
        ):
            samples = partial  # only the complete answer is shown
        if stop.is_set():
            return
        answers += [
            (
                policy,
                policy_server.completion(policy, prompt, sampling, sample.text, sample.sampled),
            )
            for sample in samples
        ]
    yield _RoundProgress(1.0, tuple(answers))
