"""The text that a chat template puts around the turns of a conversation, found by rendering probes.

A template in Jinja is a program, and so is one of Ollama's in Go's language. What both can say has
a form: fixed texts between the turns, a place for the system text, and white space that is dropped
at the ends of a turn. The form is read off what the chat template renders. It is kept only if it
gives the text of other conversations too, and where it does not, that is said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from alpaca_rlhf.core.prompts import user_text
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.exporting.probes import EDGES, PROBES, UNUSUAL
from alpaca_rlhf.exporting.tokenizer import conversation, puts_bos

_QUESTIONS, _REPLIES = ("qUestion-a", "qUestion-c", "qUestion-e"), ("rEply-b", "rEply-d")
_SYSTEM, _WORD = "sYstem-s", "wOrd-w"
_HISTORY = tuple(zip(_QUESTIONS, _REPLIES, strict=False))
_WHITE = "".join(chr(code) for code in range(0x3001) if chr(code).isspace())
"""The characters that Python's `strip`, and so Jinja's `trim`, drops."""


class InexpressibleError(Exception):
    """A chat template that is more than text around the turns; the message is the reason."""


@dataclass(frozen=True)
class Trim:
    """The characters that a template drops at the ends of a text."""

    left: str = ""
    """Characters dropped at the start."""
    right: str = ""
    """Characters dropped at the end."""

    def __call__(self, text: str) -> str:
        """Drop them."""
        return text.lstrip(self.left).rstrip(self.right)


@dataclass(frozen=True)
class SystemPlace:
    """The text around a system text, which stands before one of the questions."""

    last: bool
    """True if that is the last question, as in Mistral's templates; else it is the first."""
    first_before: str
    """Before the system text where its question is the first."""
    later_before: str
    """Before the system text where its question is a later one."""
    after: str
    """Between the system text and its question."""
    trim: Trim
    """Of the system text."""
    question_trim: Trim
    """Of the question that it stands before."""


@dataclass(frozen=True)
class ChatPieces:
    """The text that a chat template puts around the turns, without the bos token."""

    first: str
    """Before the first question, where there is no system text."""
    later: str
    """Between a reply and the next question."""
    reply: str
    """Between a question and its reply in the history."""
    prompt: str
    """After the last question, where the completion begins."""
    system: SystemPlace
    """The place of a system text."""
    question_trim: Trim
    """Of a question."""
    reply_trim: Trim
    """Of a reply in the history."""

    def render(self, row: Instruction) -> str:
        """Render a prompt as Ollama does by the template that is made of these pieces."""
        questions = [*(user for user, _ in row.history), user_text(row)]
        carrier = len(questions) - 1 if self.system.last else 0
        text = ""
        for number, question in enumerate(questions):
            if row.system and number == carrier:
                system = self.system
                text += (system.later_before if number else system.first_before) + system.trim(
                    row.system
                )
                text += system.after + system.question_trim(question)
            else:
                text += (self.later if number else self.first) + self.question_trim(question)
            if number < len(row.history):
                text += self.reply + self.reply_trim(row.history[number][1])
        return text + self.prompt


@dataclass(frozen=True)
class _Renderer:
    """Renders prompts by a tokenizer's chat template."""

    tokenizer: Any
    bos: str
    """The text of the bos token where prompts begin with it: Ollama adds it itself."""

    def __call__(self, row: Instruction) -> str:
        """Render a prompt.

        Raises:
            InexpressibleError: The template refuses it, or leaves its bos token out.
        """
        try:
            messages = conversation(self.tokenizer, "chat", row)
            text = str(
                self.tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True
                )
            )
        except Exception as error:  # a foreign template raises errors of its own
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InexpressibleError(f"it refuses {_kind(row)} ({reason})") from error
        if not text.startswith(self.bos):
            raise InexpressibleError(f"it puts {self.bos} before some prompts only")
        return text[len(self.bos) :]


def chat_pieces(tokenizer: Any) -> ChatPieces:
    """Take a tokenizer's chat template apart.

    Raises:
        InexpressibleError: It does more than surround the turns.
    """
    render = _Renderer(tokenizer, str(tokenizer.bos_token) if puts_bos(tokenizer) else "")
    # 1. Split a lone question and a conversation at their texts.
    lone, long = Instruction(_QUESTIONS[0]), Instruction(_QUESTIONS[2], history=_HISTORY)
    first, prompt = _split(render(lone), _QUESTIONS[:1])
    pieces = _split(render(long), _texts(long))
    reply, later = pieces[1], pieces[2]
    if pieces != [first, reply, later, reply, later, prompt]:
        raise InexpressibleError("the text around a turn depends on where the turn stands")
    # 2. Find the place of a system text.
    system = _system_place(render, ChatPieces(first, later, reply, prompt, _NOWHERE, _KEEP, _KEEP))
    # 3. Find the white space that is dropped at the ends of questions and replies.
    question_trim = _trim(lambda text: render(Instruction(text)), first, "questions")
    before = first + _QUESTIONS[0] + reply
    reply_trim = _trim(
        lambda text: render(Instruction(_QUESTIONS[1], history=((_QUESTIONS[0], text),))),
        before,
        "replies",
    )
    result = ChatPieces(first, later, reply, prompt, system, question_trim, reply_trim)
    # 4. Keep the pieces only if they give the template's text for other conversations.
    for row in (*PROBES, *EDGES):
        if result.render(row) != render(row):
            raise InexpressibleError(f"{_kind(row)} is not just its turns with text around them")
    return result


def exceptions(tokenizer: Any, pieces: ChatPieces) -> tuple[str, ...]:
    """The kinds of unusual conversations for which the pieces give another text than the template.

    A conversation that the template refuses is none: nothing was trained on it.
    """
    render = _Renderer(tokenizer, str(tokenizer.bos_token) if puts_bos(tokenizer) else "")
    different = []
    for kind, row in UNUSUAL.items():
        try:
            if pieces.render(row) != render(row):
                different.append(kind)
        except InexpressibleError:
            continue
    return tuple(different)


_KEEP = Trim()
_NOWHERE = SystemPlace(False, "", "", "", _KEEP, _KEEP)


def _system_place(render: _Renderer, pieces: ChatPieces) -> SystemPlace:
    """Find where a system text stands, and the text around it."""
    lone = Instruction(_QUESTIONS[0], system=_SYSTEM)
    long = Instruction(_QUESTIONS[2], history=_HISTORY, system=_SYSTEM)
    elsewhere = InexpressibleError(
        "a system text stands neither before the first nor the last turn"
    )
    # 1. Text around it in a lone question.
    first_before, after, prompt = _split(render(lone), (_SYSTEM, _QUESTIONS[0]))
    if prompt != pieces.prompt:
        raise elsewhere
    # 2. In a conversation it stands before the first question, or before the last.
    text = render(long)
    last = text.find(_SYSTEM) > text.find(_REPLIES[-1])
    texts = _texts(long)
    texts.insert(texts.index(_QUESTIONS[2]) if last else 0, _SYSTEM)
    around = _split(text, texts)
    middle = [pieces.reply, pieces.later, pieces.reply]
    if last:
        later_before = around[4]
        expected = [pieces.first, *middle, later_before, after, prompt]
    else:
        later_before = ""
        expected = [first_before, after, *middle, pieces.later, prompt]
    if around != expected:
        raise elsewhere
    # 3. White space dropped at the ends of both texts.
    trim = _trim(
        lambda text: render(Instruction(_QUESTIONS[0], system=text)), first_before, "system texts"
    )
    question_trim = _trim(
        lambda text: render(Instruction(text, system=_SYSTEM)),
        first_before + _SYSTEM + after,
        "questions",
    )
    return SystemPlace(last, first_before, later_before, after, trim, question_trim)


def _trim(render: Callable[[str], str], before: str, what: str) -> Trim:
    """Find the white space that is dropped at the ends of a text.

    Args:
        render: Renders a conversation that holds the text.
        before: What is rendered before the text.
        what: The name of such texts, for messages.
    """
    plain = render(_WORD)
    after = plain[len(before) + len(_WORD) :]

    def ends(white: str) -> tuple[str, str]:
        """The rest of white space on both sides of a word."""
        left, right = _split(render(white + _WORD + white), (_WORD,))
        if not left.startswith(before) or not right.endswith(after):
            raise InexpressibleError(f"it changes the text of {what}")
        return left[len(before) :], right[: len(right) - len(after)]

    if ends(_WHITE) == ("", ""):
        return Trim(_WHITE, _WHITE)
    kept = {character: ends(character) for character in _WHITE}
    return Trim(
        "".join(character for character, (left, _) in kept.items() if not left),
        "".join(character for character, (_, right) in kept.items() if not right),
    )


def _split(text: str, marks: Sequence[str]) -> list[str]:
    """Split a text at marks that stand in it once each, in this order."""
    pieces = []
    for mark in marks:
        if text.count(mark) != 1:
            name = _NAMES[mark]
            fault = f"shows {name} twice" if mark in text else f"leaves {name} out or changes it"
            raise InexpressibleError(f"it {fault}")
        piece, _, text = text.partition(mark)
        pieces.append(piece)
    return [*pieces, text]


_NAMES = {
    **dict.fromkeys(_QUESTIONS, "a question"),
    **dict.fromkeys(_REPLIES, "a reply"),
    _SYSTEM: "a system text",
    _WORD: "a turn",
}


def _texts(row: Instruction) -> list[str]:
    return [*(text for turn in row.history for text in turn), row.instruction]


def _kind(row: Instruction) -> str:
    """A kind of conversation, in words."""
    turns = "a conversation" if row.history else "a lone question"
    return f"{turns} with a system text" if row.system else turns
