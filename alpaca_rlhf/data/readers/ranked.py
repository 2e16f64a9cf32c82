"""Rankings of K answers from files: OpenAssistant's message trees, and lists with ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Completion, Instruction, Ranking
from alpaca_rlhf.data.readers.columns import ANSWERS, SCORES, refuse_unsupported, renamed
from alpaca_rlhf.data.readers.comparisons import dialogue, read_pairs
from alpaca_rlhf.data.readers.conversations import Turn, read_message, read_turns
from alpaca_rlhf.data.readers.formats import prompt_columns, source_of
from alpaca_rlhf.data.readers.preference_shapes import rated_answers
from alpaca_rlhf.data.readers.problems import BadRow, short
from alpaca_rlhf.data.readers.reading import Reading
from alpaca_rlhf.data.readers.rows import RowFile, checked_text, collect, text_column, type_name

_SAMPLE = 200
_ANNOTATOR = "file"


@dataclass(frozen=True)
class RankedAnswers:
    """Answers to one prompt, and what an annotator thinks of each."""

    prompt: Instruction
    """What they answer."""
    answers: tuple[str, ...]
    """Two or more texts."""
    ranks: tuple[int, ...]
    """Rank of each, the least is the best; equal ranks are ties."""
    annotator: str
    """Who ranked."""

    def to_json(self) -> dict[str, Any]:
        """Its columns, for a JSON line."""
        return {
            "instruction": self.prompt.instruction,
            "input": self.prompt.input,
            "responses": list(self.answers),
            "ranks": list(self.ranks),
            "annotator": self.annotator,
            "source": self.prompt.source,
        }


def read_rankings(
    path: Path, reading: Reading | None = None
) -> list[tuple[Instruction, list[Completion], Ranking]]:
    """K-way rankings out of message trees (`trees`) or of lists (`ranking_list`).

    Ties share a tier. The annotator of a tree is `oasst` (the ranks are a consensus of many
    people). Where the same annotator ranks the same dialogue a second time it is `oasst-2`, so that
    neither replaces the other.

    Args:
        path: What `rows.collect` reads.
        reading: Renamed columns, and whether broken rows are left out; its account is filled.

    Raises:
        UserError: `file:line:` of the first broken row.
    """
    path = Path(path)
    times: dict[tuple[str, str], int] = {}

    def convert(row: dict[str, Any]) -> list[tuple[Instruction, list[Completion], Ranking]]:
        found = []
        for one in ranked_answers(row, path.name):
            prompt = one.prompt
            made = [Completion(prompt.id, text, sample=at) for at, text in enumerate(one.answers)]
            both = list(zip(made, one.ranks, strict=True))
            tiers = tuple(
                tuple(answer.id for answer, rank in both if rank == level)
                for level in sorted(set(one.ranks))
            )
            time = times[prompt.id, one.annotator] = times.get((prompt.id, one.annotator), 0) + 1
            annotator = one.annotator if time == 1 else f"{one.annotator}-{time}"
            found.append((prompt, made, Ranking(prompt.id, tiers, annotator)))
        return found

    return collect(path, convert, reading)


def holds_rankings(path: Path, reading: Reading | None = None) -> bool:
    """Whether a file of rankings holds ranked answers, K at a time; if not, it holds pairs.

    The first row that is an object tells.

    Raises:
        UserError: The file cannot be read.
    """
    sample = islice(RowFile(Path(path)), _SAMPLE)
    first = next((row for _, row in sample if isinstance(row, dict)), {})
    first = renamed(first, reading.columns if reading is not None else {})
    return is_tree(first) or is_ranking_list(first)


def ranked_prompts(path: Path, reading: Reading | None = None) -> list[Instruction]:
    """The prompt of every ranking or pair of a file, in its order.

    Raises:
        UserError: `file:line:` of the first broken row, or no ranking has two completions.
    """
    found = (
        [prompt for prompt, _, _ in read_rankings(path, reading)]
        if holds_rankings(path, reading)
        else [pair.prompt for pair in read_pairs(path, reading)]
    )
    if not found:
        raise UserError(
            f"{path}: no message of these trees has two replies with a `rank`, "
            "and a ranking needs at least two completions"
        )
    return found


def is_tree(row: Mapping[str, Any]) -> bool:
    """Whether a row looks like a message tree."""
    return isinstance(row.get("prompt"), dict)


def is_ranking_list(row: Mapping[str, Any]) -> bool:
    """Whether a row looks like a list of ranked answers."""
    return any(row.get(name) is not None for name in ANSWERS)


def ranked_answers(row: dict[str, Any], source: str) -> list[RankedAnswers]:
    """The rankings of one row, whichever of the two it is.

    Raises:
        BadRow: It is neither.
    """
    refuse_unsupported(row)
    return [ranking_list(row, source)] if is_ranking_list(row) else trees(row, source)


def trees(row: dict[str, Any], source: str) -> list[RankedAnswers]:
    """The rankings of one message tree.

    Every human turn with at least two ranked replies gives one. Replies without a rank and deleted
    ones are left out.

    Raises:
        BadRow: It is no tree.
    """
    return [
        RankedAnswers(
            dialogue(turns, source=source),
            tuple(text for _, text in replies),
            tuple(rank for rank, _ in replies),
            "oasst",
        )
        for turns, replies in _ranked_nodes(row)
    ]


def ranking_list(row: dict[str, Any], source: str) -> RankedAnswers:
    """One row of `prompt` (or `instruction` and `input`), `responses`, and `ranks` or `scores`.

    The least rank is the best, the greatest score is the best. `ratings` are scores; the answers
    may also be objects with a text and its rating, as UltraFeedback's `completions`.

    Raises:
        BadRow: It is broken.
    """
    name = next((one for one in ANSWERS if row.get(one) is not None), "")
    if not name:
        raise BadRow("expected the answers as a list in `responses`")
    answers = row[name]
    if not isinstance(answers, list) or len(answers) < 2:
        raise BadRow(f"column `{name}` must be a list of at least two answers")
    ordered = any(row.get(column) is not None for column in SCORES)
    texts, ratings = rated_answers(answers, name, rate=not ordered)
    if ratings is not None:
        row = {**row, "scores": ratings}
    ranks = _ranks(row, len(texts))
    annotator = text_column(row, ("annotator",), required=False) or _ANNOTATOR
    origin = source_of(row, source)
    if isinstance(row.get("prompt"), list):
        prompt = dialogue(read_turns(row["prompt"], "column `prompt`"), source=origin)
    else:
        prompt = Instruction(*prompt_columns(row), source=origin)
    return RankedAnswers(prompt, tuple(texts), ranks, annotator)


def _ranks(row: dict[str, Any], count: int) -> tuple[int, ...]:
    name = next((one for one in SCORES if row.get(one) is not None), "")
    if not name:
        raise BadRow("expected `ranks` (the least is the best) or `scores` (the greatest is)")
    values: Any = row[name]
    if not isinstance(values, list) or len(values) != count:
        got = f"{len(values)} values" if isinstance(values, list) else type_name(values)
        raise BadRow(f"column `{name}` must be a list, one number an answer; got {got}")
    whole = name == "ranks"
    for one in values:
        number = isinstance(one, int) or (isinstance(one, float) and not whole)
        if isinstance(one, bool) or not number or not -math.inf < one < math.inf:
            what = "whole numbers" if whole else "numbers"
            raise BadRow(f"column `{name}` must hold {what}, got {short(str(one))}")
    if whole:
        return tuple(values)
    levels = sorted(set(values), reverse=True)
    return tuple(levels.index(one) for one in values)


def _ranked_nodes(tree: dict[str, Any]) -> Iterator[tuple[list[Turn], list[tuple[int, str]]]]:
    """Dialogue and (rank, text) of the replies, for human turns with two or more ranked ones."""
    if not isinstance(tree.get("prompt"), dict):
        raise BadRow(
            "expected a message tree with the first message, and its `replies`, in `prompt`"
        )
    stack: list[tuple[Sequence[Turn], dict[str, Any]]] = [([], tree["prompt"])]
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
