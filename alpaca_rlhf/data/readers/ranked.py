"""Rankings of K answers from files: OpenAssistant's message trees, and lists with ranks or scores.

A tree becomes one ranking for every human turn that has at least two ranked replies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Completion, Instruction, Ranking
from alpaca_rlhf.data.readers.columns import (
    LOSS_FLAGS,
    SCORES,
    answers_column,
    preference_shape,
    refuse_marked_bad,
    refuse_unsupported,
    renamed,
)
from alpaca_rlhf.data.readers.comparisons import answers_of, prompt_of, read_pairs
from alpaca_rlhf.data.readers.conversations import Turn, dialogue, read_message
from alpaca_rlhf.data.readers.formats import source_of
from alpaca_rlhf.data.readers.message_trees import LINE, rank_of
from alpaca_rlhf.data.readers.preference_shapes import hold_ranks, rated_answers
from alpaca_rlhf.data.readers.problems import BadRow, Omitted, short
from alpaca_rlhf.data.readers.reading import Reading
from alpaca_rlhf.data.readers.rows import RowFile, collect
from alpaca_rlhf.data.readers.template_marks import refuse_end_marks
from alpaca_rlhf.data.readers.values import (
    checked_text,
    finite_number,
    is_rank,
    text_column,
    type_name,
)

_SAMPLE_ROWS = 200
_DEFAULT_ANNOTATOR = "file"


@dataclass(frozen=True)
class RankedRow:
    """The rankings of one row, and what became of its other answers."""

    rankings: list[RankedAnswers]
    """A ranking for each prompt that has one."""
    omitted: Counter[Omitted]
    """Answers that stand in none of them, by reason."""

    def omit(self, reason: Omitted, count: int) -> None:
        """Count answers that stand in no ranking."""
        if count:
            self.omitted[reason] += count


@dataclass(frozen=True)
class RankedAnswers:
    """Answers to one prompt, and an annotator's rank for each."""

    prompt: Instruction
    """The prompt they answer."""
    answers: tuple[str, ...]
    """Two or more texts."""
    ranks: tuple[int, ...]
    """Rank of each answer; the lowest is the best, and equal ranks are ties."""
    annotator: str
    """Name of the annotator."""

    def to_json(self) -> dict[str, Any]:
        """The columns for a JSON line."""
        return {
            "instruction": self.prompt.instruction,
            "input": self.prompt.input,
            "responses": list(self.answers),
            "ranks": list(self.ranks),
            "annotator": self.annotator,
            "source": self.prompt.source,
            **self.prompt.dialogue_columns(),
        }


def read_rankings(
    path: Path, reading: Reading | None = None
) -> list[tuple[Instruction, list[Completion], Ranking]]:
    """Read K-way rankings from message trees (`trees`) or from lists (`ranking_list`).

    Ties share a tier. The annotator of a tree is `oasst` (the ranks are a consensus of many
    people). If the same annotator ranks the same dialogue a second time, the name becomes
    `oasst-2`, so that neither ranking replaces the other.

    Args:
        path: A file that `rows.collect` reads.
        reading: Renamed columns, and the treatment of broken rows; its account is filled.

    Raises:
        UserError: `file:line:` of the first broken row.
    """
    path = Path(path)
    reading = reading if reading is not None else Reading("rankings")
    account = reading.account
    counts: dict[tuple[str, str], int] = {}

    def convert(row: dict[str, Any]) -> list[tuple[Instruction, list[Completion], Ranking]]:
        rankings = []
        ranked_row = ranked_answers(row, path.name)
        if ranked_row.rankings:
            account.omitted.update(ranked_row.omitted)
        for ranked in ranked_row.rankings:
            prompt, annotator = ranked.prompt, ranked.annotator
            # 1. Completions with the same text stay apart by their sample number.
            completions = [
                Completion(prompt.id, text, sample=number)
                for number, text in enumerate(ranked.answers)
            ]
            # 2. One tier for each rank, the best first.
            ranked_completions = list(zip(completions, ranked.ranks, strict=True))
            tiers = tuple(
                tuple(completion.id for completion, rank in ranked_completions if rank == level)
                for level in sorted(set(ranked.ranks))
            )
            # 3. A further name for the annotator's second ranking of the same prompt.
            count = counts[prompt.id, annotator] = counts.get((prompt.id, annotator), 0) + 1
            name = annotator if count == 1 else f"{annotator}-{count}"
            rankings.append((prompt, completions, Ranking(prompt.id, tiers, name)))
        return rankings

    return collect(path, convert, reading)


def holds_rankings(path: Path, reading: Reading | None = None) -> bool:
    """True for a file with K ranked answers a row, False for one with pairs.

    The most frequent shape of the first rows decides, as it does for `import`.

    Raises:
        UserError: The file cannot be read.
    """
    columns = reading.columns if reading is not None else {}
    sample = islice(RowFile(Path(path), columns), _SAMPLE_ROWS)
    rows = (renamed(row, columns) for _, row in sample if isinstance(row, dict))
    shapes = Counter(filter(None, map(preference_shape, rows)))
    return bool(shapes) and shapes.most_common(1)[0][0] in ("trees", "ranking-list")


def ranked_prompts(path: Path, reading: Reading | None = None) -> list[Instruction]:
    """The prompt of every ranking or pair of a file, in order.

    Raises:
        UserError: `file:line:` of the first broken row, or no ranking has two completions.
    """
    prompts = (
        [prompt for prompt, _, _ in read_rankings(path, reading)]
        if holds_rankings(path, reading)
        else [pair.prompt for pair in read_pairs(path, reading)]
    )
    if not prompts:
        raise UserError(
            f"{path}: no message of these trees has two replies with a `rank`, "
            "and a ranking needs at least two completions"
        )
    return prompts


def ranked_answers(row: dict[str, Any], source: str) -> RankedRow:
    """The rankings of one row, a message tree or a list.

    Raises:
        MarkedBad: Its loss flag says that it is not to be learnt from.
        BadRow: It is neither, or it is broken.
    """
    refuse_unsupported(row)
    refuse_marked_bad(row, LOSS_FLAGS)
    name = answers_column(row)
    if name is None:
        ranked_row = trees(row, source)
    else:
        ranking = ranking_list(row, source)
        answers = row[name]
        ranked_row = RankedRow([ranking], Counter())
        reason: Omitted = "without a rank" if hold_ranks(answers) else "without a rating"
        ranked_row.omit(reason, len(answers) - len(ranking.answers))
    for ranking in ranked_row.rankings:
        refuse_end_marks(ranking.prompt, *ranking.answers)
    return ranked_row


def trees(row: dict[str, Any], source: str) -> RankedRow:
    """The rankings of one message tree.

    Every human turn with at least two ranked replies gives one. Other replies are omitted, by
    reason: they are deleted, lie below a message that is, have no rank, or none to compare with.

    Raises:
        BadRow: It is not a tree.
    """
    if not isinstance(row.get("prompt"), dict):
        raise BadRow(
            "expected a message tree with the first message, and its `replies`, in `prompt`"
        )
    ranked_row = RankedRow([], Counter())
    # A depth-first walk with a stack of its own: a tree may be deeper than Python's recursion.
    stack: list[tuple[Sequence[Turn], dict[str, Any]]] = [([], row["prompt"])]
    while stack:
        earlier_turns, node = stack.pop()
        try:
            turn = read_message({"role": node.get("role"), "content": node.get("text")}, "the tree")
            turns = [*earlier_turns, turn]
            visible = _visible_replies(node, ranked_row)
            if turn[0] == "Human":
                ranked = _ranked_replies(visible, ranked_row)
                if ranked:
                    prompt = dialogue(turns, source=source, row=row)
                    texts, ranks = (tuple(values) for values in zip(*ranked, strict=True))
                    ranked_row.rankings.append(RankedAnswers(prompt, texts, ranks, "oasst"))
        except BadRow as problem:
            problem.number = node.get(LINE)
            raise
        stack.extend((turns, reply) for reply in reversed(visible))
    return ranked_row


def ranking_list(row: dict[str, Any], source: str) -> RankedAnswers:
    """The ranking of a row with `prompt` (or `instruction` and `input`), `responses`, and ranks.

    In `ranks` the lowest is the best; in `scores` and `ratings` the highest is. The answers may
    also be objects with a text and its rating, as UltraFeedback's `completions`, or with its rank,
    as Nectar's `answers`.

    Raises:
        BadRow: It is broken.
    """
    name = answers_column(row)
    if name is None:
        raise BadRow("expected the answers as a list in `responses`")
    answers = row[name]
    if not isinstance(answers, list) or len(answers) < 2:
        raise BadRow(f"column `{name}` must be a list of at least two answers")
    ordered = any(row.get(column) is not None for column in SCORES)
    texts, ratings = rated_answers(answers, name, rate=not ordered)
    if ratings is not None:
        row = {**row, "scores": ratings}
    ranks = _ranks(row, len(texts))
    annotator = text_column(row, ("annotator",), required=False) or _DEFAULT_ANNOTATOR
    prompt = prompt_of(row, source_of(row, source))
    return RankedAnswers(prompt, tuple(answers_of(row, texts)), ranks, annotator)


def _ranks(row: dict[str, Any], count: int) -> tuple[int, ...]:
    name = next((column for column in SCORES if row.get(column) is not None), "")
    if not name:
        raise BadRow("expected `ranks` (the least is the best) or `scores` (the greatest is)")
    values: Any = row[name]
    if not isinstance(values, list) or len(values) != count:
        actual = f"{len(values)} values" if isinstance(values, list) else type_name(values)
        raise BadRow(f"column `{name}` must be a list, one number an answer; got {actual}")
    integral = name == "ranks"
    for value in values:
        number = finite_number(value)
        if number is None or (integral and not is_rank(value)):
            expected = "whole numbers" if integral else "numbers"
            raise BadRow(f"column `{name}` must hold {expected}, got {short(str(value))}")
    if integral:
        return tuple(values)
    # Scores become ranks: the highest score has rank 0, equal scores the same rank.
    levels = sorted(set(values), reverse=True)
    return tuple(levels.index(score) for score in values)


def _replies(node: Mapping[str, Any]) -> list[dict[str, Any]]:
    replies = node.get("replies") or []
    if not isinstance(replies, list) or not all(isinstance(reply, dict) for reply in replies):
        raise BadRow("`replies` must be a list of messages")
    return replies


def _visible_replies(node: Mapping[str, Any], ranked_row: RankedRow) -> list[dict[str, Any]]:
    """The replies that are not deleted; answers that are, or lie below one, are counted."""
    replies = _replies(node)
    for reply in replies:
        if reply.get("deleted"):
            ranked_row.omit("deleted", reply.get("role") == "assistant")
            ranked_row.omit("below a deleted one", _answers_below(reply))
    return [reply for reply in replies if not reply.get("deleted")]


def _ranked_replies(
    replies: Sequence[dict[str, Any]], ranked_row: RankedRow
) -> list[tuple[str, int]]:
    """Text and rank of replies that have a rank, none if they are fewer than two; others count."""
    ranks = [rank_of(reply) for reply in replies]
    ranked = [
        (checked_text(reply.get("text"), "`text` of a reply"), rank)
        for reply, rank in zip(replies, ranks, strict=True)
        if rank is not None
    ]
    if len(replies) == 1:
        ranked_row.omit("alone", 1)
        return []
    ranked_row.omit("without a rank", len(replies) - len(ranked))
    if len(ranked) == 1:
        ranked_row.omit("alone", 1)
        return []
    return ranked


def _answers_below(node: Mapping[str, Any]) -> int:
    """The number of assistant messages below a message."""
    count = 0
    stack = list(_replies(node))
    while stack:
        reply = stack.pop()
        count += reply.get("role") == "assistant"
        stack.extend(_replies(reply))
    return count
