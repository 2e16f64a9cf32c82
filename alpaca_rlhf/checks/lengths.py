"""Kinds of constraint on length: sentences, words, paragraphs, lines."""

from __future__ import annotations

import random

from alpaca_rlhf.checks.degrees import exactly, most, within
from alpaca_rlhf.checks.kinds import (
    MOST,
    NEVER,
    Arguments,
    Demands,
    Kind,
    Language,
    count_of,
    draw_count,
)
from alpaca_rlhf.checks.text import Answer, words_of

WORDS_PER_SENTENCE = (5, 25)
"""Fewest and most words of an ordinary sentence."""


def _between(rng: random.Random, language: Language) -> dict[str, str]:
    low = rng.randrange(20, 61, 10)
    return {"n": str(low), "m": str(low + rng.choice((20, 30, 40)))}


def _sentences(low: int, high: int) -> Demands:
    return Demands(
        sentences=(low, high),
        words=(low * 4, high * WORDS_PER_SENTENCE[1]),
        roles=frozenset({"sentences"}),
    )


def _bounds(arguments: Arguments) -> tuple[int, int]:
    return int(arguments["n"]), int(arguments["m"])


def _longest(answer: Answer, arguments: Arguments) -> float:
    lengths = [len(words_of(sentence)) for sentence in answer.sentences]
    return most(sum(length <= count_of(arguments) for length in lengths), len(lengths))


_VERSE = frozenset({"poem"})
# Bounds as people put them, for templates that are recognised.
_AT_MOST = "(at most|no more than|not more than|up to|a maximum of|maximum|max|no longer than)"
_AT_LEAST = "(at least|no fewer than|no less than|not fewer than|not less than|a minimum of)"
_BELOW = "(under|below|fewer than|less than)"
_ABOVE = "(more than|over|above)"
_OR_LESS = "(or less|or fewer|max|maximum|at most|at the most|tops)"
_OR_MORE = "(or more|minimum|at least|at a minimum)"
_WITH = "(in |with |using |)"
_IT = "(it|your answer|your response|your reply|the answer|the response|the reply|yourself)"

LENGTHS = (
    Kind(
        "sentences_exactly",
        "exactly N sentences",
        (
            "Answer in exactly {n} sentence[s].",
            "Use exactly {n} sentence[s], no more and no fewer.",
            "Your answer should be {n} sentence[s] long.",
            "Write precisely {n} sentence[s].",
            "The reply must consist of {n} sentence[s].",
        ),
        lambda answer, a: exactly(len(answer.sentences), count_of(a)),
        chinese=("请正好用{n}句话回答。", "回答必须是{n}句话。", "只写{n}句话，不多不少。"),
        also=(
            "(write|use|give me|say it in) (exactly |just |only |){n} (short |)sentence[s]",
            "用{n}句话",
        ),
        manner=(
            "(in|with|using|of) (exactly |precisely |just |only |){n} (short |simple |)sentence[s]",
        ),
        draw=draw_count(2, 5),
        demands=lambda a: _sentences(count_of(a), count_of(a)),
        except_genres=_VERSE,
    ),
    Kind(
        "sentences_at_most",
        "at most N sentences",
        (
            "Use at most {n} sentence[s].",
            "Answer in no more than {n} sentence[s].",
            "Keep it to {n} sentence[s] or fewer.",
            "Do not write more than {n} sentence[s].",
            "Your response may have {n} sentence[s] at the very most.",
        ),
        lambda answer, a: within(len(answer.sentences), 1, count_of(a)),
        chinese=("最多写{n}句话。", "请不要超过{n}句话。", "回答控制在{n}句话以内。"),
        also=(
            f"limit {_IT} to {{n}} sentence[s]",
            f"keep {_IT} (to|within) {{n}} sentence[s]",
            f"keep {_IT} (to|within) {{n}} sentence[s] {_OR_LESS}",
            f"keep {_IT} {_BELOW} {{below}} sentence[s]",
            f"{NEVER} (exceed|go over|go beyond) {{n}} sentence[s]",
            f"{NEVER} (use|write|give me) more than {{n}} sentence[s]",
            "(用|)(最多|至多|不超过|不多于)(用|写|){n}句话",
            "(用|){n}句话以内",
        ),
        manner=(
            f"{_WITH}{_AT_MOST} {{n}} sentence[s]",
            f"{_WITH}{{n}} sentence[s] {_OR_LESS}",
            f"{_WITH}{{n}} or (fewer|less) sentence[s]",
            f"{_WITH}{_BELOW} {{below}} sentence[s]",
            "(should|must|may) not exceed {n} sentence[s]",
        ),
        draw=draw_count(2, 4),
        demands=lambda a: _sentences(1, count_of(a)),
        except_genres=_VERSE,
    ),
    Kind(
        "sentences_at_least",
        "at least N sentences",
        (
            "Write at least {n} sentence[s].",
            "Use {n} sentence[s] or more.",
            "Your answer should have no fewer than {n} sentence[s].",
            "Give me {n} or more sentences.",
            "The answer needs a minimum of {n} sentence[s].",
        ),
        lambda answer, a: within(len(answer.sentences), count_of(a), MOST),
        chinese=("至少写{n}句话。", "回答不少于{n}句话。", "请写{n}句话或更多。"),
        also=(
            f"{NEVER} (use|write|give me) (fewer|less) than {{n}} sentence[s]",
            f"(use|write|give me) {_ABOVE} {{above}} sentence[s]",
            "(用|)(至少|不少于)(用|写|){n}句话",
            "(用|){n}句话以上",
        ),
        manner=(
            f"{_WITH}{_AT_LEAST} {{n}} sentence[s]",
            f"{_WITH}{{n}} sentence[s] {_OR_MORE}",
            f"{_WITH}{{n}} or more sentence[s]",
            f"{_WITH}{_ABOVE} {{above}} sentence[s]",
        ),
        draw=draw_count(3, 7),
        demands=lambda a: _sentences(count_of(a), MOST),
        except_genres=_VERSE,
    ),
    Kind(
        "words_at_most",
        "at most N words",
        (
            "Use at most {n} words.",
            "Answer in no more than {n} words.",
            "Keep your answer under {below} words.",
            "Stay within {n} words.",
            "Do not go over {n} words in your reply.",
        ),
        lambda answer, a: within(len(answer.words), 1, count_of(a)),
        chinese=("最多写{n}个字。", "请不要超过{n}个字。", "字数控制在{n}个字以内。"),
        also=(
            f"limit {_IT} to {{n}} words",
            f"keep {_IT} (to|within) {{n}} words",
            f"keep {_IT} {_BELOW} {{below}} words",
            f"(stay|remain) {_BELOW} {{below}} words",
            f"keep {_IT} (to|within) {{n}} words {_OR_LESS}",
            f"{NEVER} (exceed|go over|go beyond) {{n}} words",
            f"{NEVER} (use|write) more than {{n}} words",
            "(最多|至多|不超过|不多于){n}(个|)字",
            "{n}(个|)字以内",
            "(用|)不到{below}(个|)字",
        ),
        manner=(
            f"{_WITH}{_AT_MOST} {{n}} words",
            f"{_WITH}{_BELOW} {{below}} words",
            f"{_WITH}{{n}} words {_OR_LESS}",
            f"{_WITH}{{n}} or (fewer|less) words",
            "(should|must|may) not exceed {n} words",
        ),
        draw=draw_count(25, 80, 5),
        demands=lambda a: Demands(words=(8, count_of(a)), roles=frozenset({"words"})),
    ),
    Kind(
        "words_at_least",
        "at least N words",
        (
            "Write at least {n} words.",
            "Use {n} words or more.",
            "Your answer should have no fewer than {n} words.",
            "Make it at least {n} words long.",
            "The text must run to {n} words as a minimum.",
        ),
        lambda answer, a: within(len(answer.words), count_of(a), MOST),
        chinese=("至少写{n}个字。", "回答不少于{n}个字。", "篇幅要达到{n}个字或更多。"),
        also=(
            f"{NEVER} (use|write) (fewer|less) than {{n}} words",
            f"(use|write|give me) {_ABOVE} {{above}} words",
            "(至少|不少于){n}(个|)字",
            "{n}(个|)字以上",
        ),
        manner=(
            f"{_WITH}{_AT_LEAST} {{n}} words",
            f"{_WITH}{{n}} words {_OR_MORE}",
            f"{_WITH}{{n}} or more words",
            f"{_WITH}{_ABOVE} {{above}} words",
        ),
        draw=draw_count(30, 80, 10),
        demands=lambda a: Demands(words=(count_of(a), MOST), roles=frozenset({"words"})),
    ),
    Kind(
        "words_between",
        "between N and M words",
        (
            "Write between {n} and {m} words.",
            "Your answer should have {n} to {m} words.",
            "Keep the length from {n} to {m} words.",
            "Use no fewer than {n} and no more than {m} words.",
            "Aim for a length of {n} to {m} words.",
        ),
        lambda answer, a: within(len(answer.words), *_bounds(a)),
        chinese=("请写{n}到{m}个字。", "字数在{n}与{m}之间。", "篇幅为{n}至{m}个字。"),
        manner=(
            "(in |with |using |of |)between {n} and {m} words",
            "(in |with |using |of |){n}( to |-|–| - ){m} words",
        ),
        draw=_between,
        demands=lambda a: Demands(words=_bounds(a), roles=frozenset({"words"})),
        held_out=True,
    ),
    Kind(
        "longest_sentence",
        "no sentence of more than N words",
        (
            "No sentence may have more than {n} words.",
            "Keep every sentence to {n} words or fewer.",
            "Use short sentences of at most {n} words each.",
            "Each sentence should have no more than {n} words.",
            "Let no sentence run past {n} words.",
        ),
        _longest,
        manner=(f"{_AT_MOST} {{n}} words (per|in each|in every|in any) sentence",),
        draw=draw_count(10, 18, 2),
        demands=lambda a: Demands(roles=frozenset({"sentence length"})),
        except_genres=_VERSE,
        held_out=True,
    ),
    Kind(
        "paragraphs",
        "N paragraphs with blank lines between them",
        (
            "Write {n} paragraphs with a blank line between them.",
            "Your answer should have {n} paragraphs, separated by blank lines.",
            "Divide the answer into exactly {n} paragraphs and leave a blank line between them.",
            "Give me {n} paragraphs, each set apart by an empty line.",
            "Set it out as {n} paragraphs with an empty line after each but the last.",
        ),
        lambda answer, a: exactly(len(answer.paragraphs), count_of(a)),
        chinese=(
            "请分成{n}段，段落之间空一行。",
            "回答要有{n}段，用空行隔开。",
            "写成{n}个自然段，每段之间留一个空行。",
        ),
        also=("write (exactly |){n} (short |)paragraph[s]",),
        manner=("(in|with|using) (exactly |){n} (short |)paragraph[s]",),
        draw=draw_count(2, 4),
        demands=lambda a: Demands(
            words=(8 * count_of(a), MOST),
            sentences=(count_of(a), MOST),
            roles=frozenset({"layout"}),
        ),
        except_genres=_VERSE,
    ),
    Kind(
        "lines",
        "N lines of text",
        (
            "Write exactly {n} lines.",
            "Put your answer on {n} lines.",
            "Your answer should be {n} lines long.",
            "Break the answer into {n} lines.",
            "Let the reply take up {n} separate lines.",
        ),
        lambda answer, a: exactly(len(answer.lines), count_of(a)),
        chinese=("请正好写{n}行。", "回答分成{n}行。", "内容要占{n}行。"),
        draw=draw_count(2, 6),
        demands=lambda a: Demands(
            words=(4 * count_of(a), MOST),
            roles=frozenset({"layout", "sentences"}),
        ),
        held_out=True,
    ),
)
"""The kinds of this module."""
