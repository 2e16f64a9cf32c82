"""Chat with the policies of a run, turn by turn or one instruction at a time.

The caller provides the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

from annotated_types import Ge

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.prompts import user_text
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.settings.bounds import Bounded, NonNegativeFloat, Seed

HELP = """\
Type an instruction. Commands:
  /policy NAME    let another policy answer from now on (alone: show them all)
  /compare TEXT   let every policy answer an instruction (alone: the last one again)
  /input TEXT     give the next instruction an input (alone: none)
  /remember       answer in the light of the turns before, or stop doing so
  /new            forget the turns before
  /help           this
  /quit           leave"""


@dataclass(frozen=True)
class Chat(Bounded):
    """Flags of `alpaca-rlhf chat`."""

    run: Path = Path("runs/quickstart")
    """Run folder to take base and adapters from."""
    policy: str | None = None
    """Policy to talk to: base, sft, best_of_k, ppo, ppo.2 in round 2 ...; by default the last."""
    prompt: str | None = None
    """Answer this one instruction and exit."""
    input: str = ""
    """Input that belongs to --prompt."""
    temperature: NonNegativeFloat = 0.7
    """Divides the logits; 0 is greedy."""
    max_new_tokens: Annotated[int, Ge(1)] | None = None
    """Completion tokens at most; by default as many as in the run."""
    seed: Seed = 0
    """Another seed, other answers."""
    remember: bool | None = None
    """Send earlier turns along; by default if SFT was trained on conversations."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt is not None and not self.prompt.strip():
            raise ValueError("--prompt is empty; leave it out to talk")
        if self.input and self.prompt is None:
            raise ValueError("--input belongs to --prompt; in a conversation type /input TEXT")


class Answers(Protocol):
    """Source of the policies' answers."""

    def answer(self, policy: str, row: Instruction, turn: int) -> str:
        """The policy's answer; another `turn` gives a repeated question another answer."""
        ...


def choose(policies: Sequence[str], typed: str) -> str | None:
    """The policy of that name (`best-of-k` is `best_of_k`), or None."""
    name = typed.strip().lower().replace("-", "_")
    return name if name in policies else None


class Conversation:
    """A person at the keyboard and the policies of a run.

    Args:
        answers: Source of the policies' answers.
        policies: Names of all policies.
        policy: The policy that answers first.
        remember: Send earlier turns along with an instruction.
        ask: Shows a prompt and returns the typed line; raises EOFError at the end of the input.
        say: Prints text.
    """

    def __init__(
        self,
        answers: Answers,
        policies: Sequence[str],
        policy: str,
        *,
        remember: bool = False,
        ask: Callable[[str], str],
        say: Callable[[str], None],
    ) -> None:
        self._answers = answers
        self._policies = policies
        self._policy = policy
        self._ask = ask
        self._say = say
        self._turn = 0
        self._remember = remember
        self._history: tuple[tuple[str, str], ...] = ()
        self._input = ""
        self._last: Instruction | None = None

    def run(self) -> None:
        """Answer until `/quit` or the end of the input."""
        while True:
            try:
                typed = self._ask(f"{self._policy}> ").strip()
            except EOFError:
                return
            if typed == "/quit":
                return
            if typed:
                self._execute(typed)

    def _execute(self, typed: str) -> None:
        command, _, argument = typed.partition(" ")
        argument = argument.strip()
        if not command.startswith("/"):
            self._reply(typed, [self._policy])
        elif command == "/policy":
            self._switch(argument)
        elif command == "/input":
            self._input = argument
        elif command == "/compare" and argument:
            self._reply(argument, self._policies)
        elif command == "/compare" and self._last is not None:
            self._answer(self._last, self._policies)
        elif typed == "/remember":
            self._remember = not self._remember
            self._history = ()
            self._say(
                "earlier turns are remembered from now on"
                if self._remember
                else "every instruction stands alone from now on"
            )
        elif typed == "/new":
            self._history = ()
            self._say("a new conversation")
        elif command == "/help":
            self._say(HELP)
        else:
            self._say(f"{typed}: nothing to do; /help lists the commands")

    def _switch(self, typed: str) -> None:
        name = choose(self._policies, typed) if typed else self._policy
        if name is None:
            self._say(f"there is no policy {typed}; there are {', '.join(self._policies)}")
            return
        self._policy = name
        names = (f"[{policy}]" if policy == name else policy for policy in self._policies)
        self._say(", ".join(names))

    def _reply(self, typed: str, policy_names: Sequence[str]) -> None:
        # Only a complete reply becomes history, so that /remember never sends half a turn.
        row = Instruction(typed, self._input, history=self._history)
        reply = self._answer(row, policy_names).get(self._policy)
        if self._remember and reply is not None and reply.strip():
            self._history = (*self._history, (user_text(row), reply))

    def _answer(self, row: Instruction, policy_names: Sequence[str]) -> dict[str, str]:
        """The answers of the policies; fewer than all after an error or Ctrl-C."""
        self._turn += 1
        answers: dict[str, str] = {}
        self._input, self._last = "", row
        try:
            for name in policy_names:
                text = answers[name] = self._answers.answer(name, row, self._turn)
                self._say(text if len(policy_names) == 1 else f"[{name}] {text}")
        except KeyboardInterrupt:
            self._say("stopped")
        except UserError as error:
            self._say(str(error))
        return answers
