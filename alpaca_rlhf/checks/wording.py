"""Kinds of constraint on words: those that open, close, must stand in or stay out of an answer."""

from __future__ import annotations

import re

from alpaca_rlhf.checks.degrees import exactly, most, within, without
from alpaca_rlhf.checks.kinds import (
    MOST,
    NEVER,
    Arguments,
    Demands,
    Draw,
    Kind,
    count_of,
    draw_count,
)
from alpaca_rlhf.checks.text import Answer, bare, phrase_pattern

OPENINGS = (
    "Well", "In short", "To begin with", "Here is what I think", "Good question", "First of all",
    "Let me think", "The truth is", "Many people wonder", "Today", "Once upon a time", "Imagine",
    "Dear reader", "Honestly", "As you may know",
)  # fmt: skip
"""Phrases for an answer to begin with, in every genre."""
CLOSINGS = (
    "That is all", "I hope this helps", "Thank you for reading", "Good luck", "Stay curious",
    "The end", "Think about it", "Take care", "Now you know", "Enjoy the day", "It is worth it",
    "Time will tell",
)  # fmt: skip
"""Phrases for an answer to end with."""
CHINESE_OPENINGS = ("总的来说", "首先", "说实话", "大家好", "很久以前", "其实", "简单来说")
"""The same in Chinese."""
CHINESE_CLOSINGS = (
    "希望对你有帮助",
    "谢谢阅读",
    "祝你好运",
    "就是这样",
    "让我们一起努力",
    "故事到此结束",
)
"""The same in Chinese."""
_ENDS_WITH_QUESTION = re.compile(r"[?？][\"”'’)\]*_」』]*\s*$")
_TRAILING_MARKS = re.compile(r"[\s.!?…。！？\"“”'’)\]*_」』]+$")
_LEADING_MARKS = re.compile(r"^[\s\"“'‘(\[*_「『#<>-]*(?:\d{1,3}[.)]\s*)?")


_IT = "(it |your answer |your response |your reply |the answer |the text |the story |)"
_THE_WORDS = (
    "the (word|words|phrase|phrases|term|terms|following words:|following words|following word:)"
)


def _words(arguments: Arguments) -> list[str]:
    return arguments["words"].split("|")


def _phrase(english: tuple[str, ...], chinese: tuple[str, ...]) -> Draw:
    phrases = {"en": english, "zh": chinese}
    return lambda rng, language: {"phrase": rng.choice(phrases[language])}


def _begins(answer: Answer, arguments: Arguments) -> float:
    pattern = phrase_pattern(arguments["phrase"])
    if pattern.match(_LEADING_MARKS.sub("", answer.text)):
        return 1.0
    return 0.3 if pattern.search(answer.text) else 0.0


def _ends(answer: Answer, arguments: Arguments) -> float:
    phrase = bare(arguments["phrase"])
    text = bare(_TRAILING_MARKS.sub("", answer.text))
    if text == phrase or text.endswith(f" {phrase}"):
        return 1.0
    return 0.3 if f" {phrase} " in f" {text} " else 0.0


def _asks_last(answer: Answer, arguments: Arguments) -> float:
    if _ENDS_WITH_QUESTION.search(answer.text):
        return 1.0
    return 0.3 if re.search("[?？]", answer.text) else 0.0


def _contains(answer: Answer, arguments: Arguments) -> float:
    words = _words(arguments)
    return most(sum(answer.count(word) > 0 for word in words), len(words))


def _leaves_out(answer: Answer, arguments: Arguments) -> float:
    return without(sum(answer.count(word) for word in _words(arguments)))


WORDING = (
    Kind(
        "begins_with",
        "a given beginning",
        (
            'Begin your answer with "{phrase}".',
            'Start with the words "{phrase}".',
            'The first words of your answer should be "{phrase}".',
            'Open your answer with "{phrase}".',
            'Let the text set off with "{phrase}".',
        ),
        _begins,
        also=(f'(begin|start|open) {_IT}with (the words |the word |the phrase |)"{{phrase}}"',),
        chinese=(
            "请以“{phrase}”开头。",
            "回答的开头必须是“{phrase}”。",
            "第一句话要从“{phrase}”说起。",
        ),
        draw=_phrase(OPENINGS, CHINESE_OPENINGS),
        demands=lambda a: Demands(roles=frozenset({"start"}), required=(a["phrase"],)),
        except_genres=frozenset({"message"}),
    ),
    Kind(
        "ends_with",
        "a given end",
        (
            'End your answer with "{phrase}".',
            'Finish with the words "{phrase}".',
            'The last words of your answer should be "{phrase}".',
            'Close with "{phrase}".',
            'Let "{phrase}" be how the text stops.',
        ),
        _ends,
        also=(
            f'(end|finish|close|conclude) {_IT}with (the words |the word |the phrase |)"{{phrase}}"',
        ),
        chinese=("请以“{phrase}”结尾。", "回答的最后必须是“{phrase}”。", "全文用“{phrase}”收尾。"),
        draw=_phrase(CLOSINGS, CHINESE_CLOSINGS),
        demands=lambda a: Demands(roles=frozenset({"end"}), required=(a["phrase"],)),
    ),
    Kind(
        "ends_with_question",
        "a question at the end",
        (
            "End with a question.",
            "Finish your answer by asking a question.",
            "The last sentence should be a question.",
            "Close with a question to the reader.",
            "Let the text stop on a question mark.",
        ),
        _asks_last,
        also=(f"(end|finish|close|conclude) {_IT}with a question(| mark)",),
        chinese=("请以一个问题结尾。", "最后一句话必须是问句。", "全文要用问号收尾。"),
        demands=lambda a: Demands(roles=frozenset({"end"}), required=("?",)),
    ),
    Kind(
        "contains_words",
        "words that must occur",
        (
            "Use the words {words}.",
            "Include the words {words}.",
            "Make sure to mention {words}.",
            "The words {words} should appear in your answer.",
            "Work {words} into the text.",
        ),
        _contains,
        chinese=("回答中要用到{words}。", "请提到{words}。", "文中必须出现{words}。"),
        also=(
            f"(use|include|mention|contain) {_THE_WORDS} {{words}}",
            "mention {words}",
            "(use|include|mention|contain) the word {bare}",
        ),
        demands=lambda a: Demands(required_words=tuple(_words(a)), words=(8, MOST)),
    ),
    Kind(
        "word_at_least",
        "a word at least N times",
        (
            'Use the word "{word}" at least {n} times.',
            'The word "{word}" should appear {n} or more times.',
            'Mention "{word}" at least {n} times.',
            'Say the word "{word}" no fewer than {n} times.',
            'Bring up the word "{word}" on {n} or more occasions.',
        ),
        lambda answer, a: within(answer.count(a["word"]), count_of(a), MOST),
        chinese=(
            "“{word}”一词至少要出现{n}次。",
            "请至少{n}次用到“{word}”。",
            "“{word}”要出现{n}次或更多。",
        ),
        also=(
            '(use|mention|say|repeat) (the word |)"{word}" (at least|no fewer than) {n} times',
            '(use|mention|say|repeat) (the word |)"{word}" {n} (or more times|times or more)',
        ),
        draw=draw_count(2, 3),
        demands=lambda a: Demands(required_words=(a["word"],), words=(8 * count_of(a), MOST)),
    ),
    Kind(
        "word_exactly",
        "a word exactly N times",
        (
            'Use the word "{word}" exactly {n} times.',
            'The word "{word}" should appear {n} times, no more and no fewer.',
            'Mention "{word}" exactly {n} times.',
            'Let the word "{word}" occur precisely {n} times.',
            'Count on the word "{word}" just {n} times in all.',
        ),
        lambda answer, a: exactly(answer.count(a["word"]), count_of(a)),
        chinese=(
            "“{word}”一词正好出现{n}次。",
            "请恰好{n}次用到“{word}”。",
            "“{word}”要出现{n}次，不多不少。",
        ),
        also=('(use|mention|say|repeat) (the word |)"{word}" (exactly |precisely |){n} times',),
        draw=draw_count(2, 3),
        demands=lambda a: Demands(
            required_words=(a["word"],),
            words=(8 * count_of(a), MOST),
            roles=frozenset({f"count of {a['word'].lower()}"}),
        ),
    ),
    Kind(
        "leaves_out",
        "words that may not occur",
        (
            "Do not use the words {words}.",
            "Leave out the words {words}.",
            "Avoid the words {words}.",
            "The words {words} must not appear in your answer.",
            "Get by without the words {words}.",
        ),
        _leaves_out,
        chinese=("不要使用{words}。", "回答里不能出现{words}。", "请避开{words}这些词。"),
        also=(
            f"{NEVER} (use|include|mention|say|write|contain) {_THE_WORDS} {{words}}",
            f"{NEVER} (use|include|mention|say|write|contain) the word {{bare}}",
            f"{NEVER} (use|mention|say) {{words}}",
            "refrain from (using|saying|mentioning) (the word |){words}",
            "the word {words} (must not appear|must never appear|should never appear|should not appear|may not appear)",
            "the word {words} is (forbidden|not allowed|prohibited|banned|off limits)",
            f"avoid (using |saying |mentioning |){_THE_WORDS} {{words}}",
            "avoid (using|saying|mentioning) {words}",
        ),
        manner=(
            f"without (using |saying |mentioning |including |){_THE_WORDS} {{words}}",
            "without (using|saying|mentioning) {words}",
            "without (using |saying |mentioning |including |)the word {bare}",
            f"(should|must|may) not (use|contain|include|mention) {_THE_WORDS} {{words}}",
        ),
        demands=lambda a: Demands(
            forbidden=tuple(phrase_pattern(word).pattern for word in _words(a))
        ),
    ),
)
"""The kinds of this module."""
