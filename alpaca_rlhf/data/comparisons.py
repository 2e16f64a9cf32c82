"""Human preferences from files: pairs of answers, and trees of ranked answers.

A dialogue before ranked answers is rendered into the text of one instruction. A single question
stands as it is. Several turns become a transcript of paragraphs, `Human: ...` and `Assistant: ...`,
that ends with the human's last turn; a system message is the first paragraph, `System: ...`. The
prompt template is put around that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alpaca_rlhf.config import UserError
from alpaca_rlhf.data.conversations import Turn, read_message, read_turns
from alpaca_rlhf.data.formats import prompt_columns, source_of
from alpaca_rlhf.data.rows import BadRow, checked_text, collect, type_name
from alpaca_rlhf.records import Completion, Instruction, PreferencePair, Ranking

_HH_ANSWER = "\n\nAssistant:"
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")


def dialogue(turns: Sequence[Turn], *, source: str = "") -> Instruction:
    """A dialogue that waits for the assistant's answer, as one instruction (see the top)."""
    if not turns or turns[-1][0] != "Human":
        raise BadRow("the dialogue before the answer must end with the human's turn")
    if not turns[-1][1].strip():
        raise BadRow("the human's last turn is empty")
    if len(turns) == 1:
        return Instruction(turns[0][1].strip(), source=source)
    text = "\n\n".join(f"{speaker}: {said.strip()}" for speaker, said in turns)
    return Instruction(text, source=source)


def read_pairs(path: Path) -> list[PreferencePair]:
    r"""Pairs of answers, the better one first.

    Understood: Anthropic's HH (`chosen`, `rejected`: whole dialogues of `\n\nHuman:` and
    `\n\nAssistant:` that part at their last answer), LLaMA-Factory's (`conversations`, `chosen`,
    `rejected`), and `prompt` (or `instruction` and `input`) with `chosen` and `rejected`. Messages
    may be text, `from`/`value` or `role`/`content`. One of two answers may be empty: people do
    prefer silence at times. A column `margin`, a number of at least 0, says how much better the
    better one is.

    Args:
        path: A JSON array or JSON lines, plain or gzipped.

    Raises:
        UserError: `file:line:` of the first broken row; two answers that are the same count as
            broken.
    """
    path = Path(path)
    return collect(
        path, lambda row: [replace(_pair(row, source_of(row, path.name)), margin=_margin(row))]
    )


def read_ranking_trees(path: Path) -> list[tuple[Instruction, list[Completion], Ranking]]:
    """K-way rankings out of OpenAssistant's message trees, one tree a row.

    Every human turn with at least two ranked replies gives one ranking; replies of equal rank share
    a tier, replies without a rank and deleted ones are left out. The annotator is `oasst` (the
    ranks are a consensus of many people), `oasst-2` where the same dialogue comes a second time, so
    that neither replaces the other.

    Args:
        path: A JSON array or JSON lines, plain or gzipped.

    Raises:
        UserError: `file:line:` of the first broken tree.
    """
    path = Path(path)
    times: dict[str, int] = {}

    def convert(row: dict[str, Any]) -> list[tuple[Instruction, list[Completion], Ranking]]:
        found = []
        for turns, replies in _ranked_nodes(row):
            prompt = dialogue(turns, source=path.name)
            made = [Completion(prompt.id, text, sample=at) for at, (_, text) in enumerate(replies)]
            ranks = sorted({rank for rank, _ in replies})
            tiers = tuple(
                tuple(one.id for one, (rank, _) in zip(made, replies, strict=True) if rank == level)
                for level in ranks
            )
            times[prompt.id] = times.get(prompt.id, 0) + 1
            annotator = "oasst" if times[prompt.id] == 1 else f"oasst-{times[prompt.id]}"
            found.append((prompt, made, Ranking(prompt.id, tiers, annotator)))
        return found

    return collect(path, convert)


def holds_trees(path: Path) -> bool:
    """Whether a file of rankings holds message trees, by its name; if not, it holds pairs."""
    return path.name.removesuffix(".gz").endswith("tree.jsonl")


def ranked_prompts(path: Path) -> list[Instruction]:
    """The prompts of a file of rankings, each once.

    Raises:
        UserError: `file:line:` of the first broken row, or no ranking has two completions.
    """
    found = (
        [prompt for prompt, _, _ in read_ranking_trees(path)]
        if holds_trees(path)
        else [pair.prompt for pair in read_pairs(path)]
    )
    if not found:
        raise UserError(
            f"{path}: no message of these trees has two replies with a `rank`, "
            "and a ranking needs at least two completions"
        )
    return list({prompt.id: prompt for prompt in found}.values())


def _pair(row: dict[str, Any], source: str) -> PreferencePair:
    for name in ("chosen", "rejected"):
        if row.get(name) is None:
            columns = ", ".join(sorted(map(str, row))) or "none"
            raise BadRow(f"expected columns `chosen` and `rejected`; columns here: {columns}")
    if "conversations" in row:
        prompt = dialogue(read_turns(row["conversations"], "column `conversations`"), source=source)
    elif isinstance(row.get("prompt"), list):
        prompt = dialogue(read_turns(row["prompt"], "column `prompt`"), source=source)
    elif "prompt" in row or "instruction" in row:
        instruction, given = prompt_columns(row)
        prompt = Instruction(instruction, given, source=source)
    else:
        return _hh_pair(
            checked_text(row["chosen"], "`chosen`"),
            checked_text(row["rejected"], "`rejected`"),
            source,
        )
    return _made(prompt, _answer(row["chosen"], "`chosen`"), _answer(row["rejected"], "`rejected`"))


def _margin(row: dict[str, Any]) -> float:
    value = row.get("margin")
    if value is None:
        return 0.0
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise BadRow(f"`margin` must be a number of at least 0, got {str(value)[:40]}")
    return float(value)


def _made(prompt: Instruction, chosen: str, rejected: str) -> PreferencePair:
    if chosen == rejected:
        raise BadRow("`chosen` and `rejected` are the same: there is nothing to prefer")
    return PreferencePair(prompt, chosen, rejected, prompt.id)


def _hh_pair(chosen: str, rejected: str, source: str) -> PreferencePair:
    both = zip(chosen, rejected, strict=False)
    shorter = min(len(chosen), len(rejected))
    same = next((at for at, (one, other) in enumerate(both) if one != other), shorter)
    at = chosen[:same].rfind(_HH_ANSWER)
    if at < 0:
        raise BadRow(
            "expected a column `prompt` or `conversations`, or in `chosen` and `rejected` two "
            "dialogues of `Human:` and `Assistant:` turns with the same beginning"
        )
    answers = [text[at + len(_HH_ANSWER) :].strip() for text in (chosen, rejected)]
    if any(_HH_TURN.search(text[at + 1 :]) for text in (chosen, rejected)):
        raise BadRow(
            "the two dialogues part before their last answer: they do not answer the same prompt"
        )
    parts = _HH_TURN.split(chosen[:at])
    if parts[0].strip():
        raise BadRow("text stands before the first `Human:` turn")
    turns = [(parts[i], parts[i + 1]) for i in range(1, len(parts), 2)]
    return _made(dialogue(turns, source=source), *answers)


def _answer(value: object, what: str) -> str:
    if isinstance(value, list):
        if len(value) != 1:
            raise BadRow(f"{what} must be one answer, got {len(value)} messages")
        value = value[0]
    if isinstance(value, dict):
        speaker, text = read_message(value, what)
        if speaker != "Assistant":
            raise BadRow(f"{what} must be the assistant's message")
        return text
    return checked_text(value, what)


def _ranked_nodes(tree: dict[str, Any]) -> Iterator[tuple[list[Turn], list[tuple[int, str]]]]:
    """Dialogue and (rank, text) of the replies, for human turns with two or more ranked ones."""
    if not isinstance(tree.get("prompt"), dict):
        raise BadRow(
            "expected a message tree with the first message, and its `replies`, in `prompt`"
        )
    stack: list[tuple[list[Turn], dict[str, Any]]] = [([], tree["prompt"])]
    while stack:
        before, node = stack.pop()
        turn = read_message({"role": node.get("role"), "content": node.get("text")}, "the tree")
        turns = [*before, turn]
        replies = node.get("replies") or []
        if not isinstance(replies, list) or not all(isinstance(one, dict) for one in replies):
            raise BadRow("`replies` must be a list of messages")
        alive = [one for one in replies if not one.get("deleted")]
        if turn[0] == "Human":
            ranked = [_ranked(one) for one in alive if one.get("rank") is not None]
            if len(ranked) >= 2:
                yield turns, ranked
        stack.extend((turns, one) for one in reversed(alive))


def _ranked(node: dict[str, Any]) -> tuple[int, str]:
    rank = node["rank"]
    if not isinstance(rank, int) or isinstance(rank, bool):
        raise BadRow(f"`rank` must be a whole number, got {type_name(rank)}")
    return rank, checked_text(node.get("text"), "`text` of a reply")
