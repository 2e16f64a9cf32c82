"""Kinds of constraint on letters and marks: case, commas, digits, letters, exclamation marks."""

from __future__ import annotations

import re
from collections.abc import Callable

from alpaca_rlhf.checks.degrees import exactly, most, within, without
from alpaca_rlhf.checks.kinds import (
    MOST,
    NEVER,
    Arguments,
    Demands,
    Kind,
    count_of,
    draw_count,
)
from alpaca_rlhf.checks.text import Answer

_COMMAS = "[,，、]"
_LINE_NUMBER = re.compile(r"(?m)^\W*(?:(?:step|part)\s+)?\d{1,3}[.):]", re.IGNORECASE)
_DIGIT = re.compile(r"\d")
_PARENTHESIS = re.compile(r"[(（][^()（）\n]*\w[^()（）\n]*[)）]")
_STARRED = re.compile(r"(?<![\w*])\*{1,2}(?=\S)[^*\n]*\w[^*\n]*\*{1,2}(?![\w*])")
_SLOTTED = re.compile(r"\[[^\[\]\n]*\w[^\[\]\n]*\]")


def _with_capital(answer: Answer) -> int:
    return sum(any(char.isupper() for char in word) for word in answer.words)


def _upper_share(answer: Answer, arguments: Arguments) -> float:
    cased = [char for char in answer.letters if char.lower() != char.upper()]
    return most(sum(char.isupper() for char in cased), len(cased))


def _capital_words(answer: Answer) -> int:
    return sum(len(word) > 1 and word.isupper() for word in answer.words)


def _letter_times(answer: Answer, arguments: Arguments) -> float:
    letter = arguments["letter"].lower()
    count = sum(char.lower() == letter for char in answer.text)
    return within(count, count_of(arguments), MOST)


def _no_letter(answer: Answer, arguments: Arguments) -> float:
    letter = arguments["letter"].lower()
    return without(sum(letter in word.lower() for word in answer.words))


def _first_letter(answer: Answer, arguments: Arguments) -> float:
    return float(
        answer.letters[:1] in ([arguments["letter"].lower()], [arguments["letter"].upper()])
    )


def _marks(pattern: str) -> Callable[[Answer], int]:
    compiled = re.compile(pattern)
    return lambda answer: len(compiled.findall(answer.text))


def _numbers(answer: Answer) -> int:
    """Numbers in digits, those that only number a line left out."""
    return len(re.findall(r"\d+", _LINE_NUMBER.sub("", answer.text)))


_commas = _marks(_COMMAS)
_exclamations = _marks("[!！]")
_semicolons = _marks("[;；]")
_questions = _marks("[?？]")

_CAPITALS = (
    "(capital letters|capitals|uppercase letters|upper case letters|upper-case letters|uppercase"
    "|upper case|upper-case)"
)
_SMALL = (
    "(small letters|lowercase letters|lower case letters|lower-case letters|lowercase|lower case"
    "|lower-case)"
)


def _no(things: str, *chinese: str) -> tuple[str, ...]:
    """Orders that ban things, as people put them."""
    return (
        f"{NEVER} (use|include|write) (any |a single |){things}",
        f"avoid (using |all |any |){things}",
        f"refrain from using (any |){things}",
        f"(use|include) no {things}",
        f"{things} are (forbidden|not allowed|prohibited|banned|off limits)",
        *chinese,
    )


def _none(things: str) -> tuple[str, ...]:
    """Adverbials and bare bans of the same."""
    return (
        f"without (any |using |using any |a single |){things}",
        f"(should|must|may) not (use|contain|have|include) (any |){things}",
        f"no {things}",
        f"neither {things}",
    )


LETTERS = (
    Kind(
        "lower_case",
        "small letters only",
        (
            "Write everything in lower case.",
            "Use only lowercase letters.",
            "Do not use any capital letters.",
            "Your whole answer should be in small letters.",
            "Leave out capitals entirely and keep every letter small.",
        ),
        lambda answer, a: without(_with_capital(answer)) if answer.letters else 0.0,
        also=(
            f"{NEVER} use (any |){_CAPITALS}",
            f"avoid (using |all |any |){_CAPITALS}",
            f"use no {_CAPITALS}",
            "use (only |)(lowercase|lower case|small) letters(| only)",
        ),
        manner=(
            f"in (all |only |){_SMALL}",
            f"without (any |using |using any |){_CAPITALS}",
            f"no {_CAPITALS}",
        ),
        letters=True,
        demands=lambda a: Demands(roles=frozenset({"case"}), caseless=False),
    ),
    Kind(
        "upper_case",
        "capital letters only",
        (
            "Write everything in capital letters.",
            "Use only uppercase letters.",
            "Your whole answer should be in capitals.",
            "Answer in all caps.",
            "Put every letter of the reply in upper case.",
        ),
        _upper_share,
        also=(f"use (only|all) {_CAPITALS}",),
        manner=(f"in (all |only |)(caps|{_CAPITALS[1:]}",),
        letters=True,
        demands=lambda a: Demands(roles=frozenset({"case"}), caseless=False),
    ),
    Kind(
        "capital_words",
        "at least N words in capitals",
        (
            "Write at least {n} words in all capitals.",
            "Put {n} or more words in capital letters.",
            "Stress at least {n} words by writing them in capitals.",
            "Use capital letters for no fewer than {n} whole words.",
            "Let at least {n} words stand out in full capitals.",
        ),
        lambda answer, a: within(_capital_words(answer), count_of(a), MOST),
        draw=draw_count(2, 4),
        demands=lambda a: Demands(
            words=(4 * count_of(a), MOST), roles=frozenset({"case"}), caseless=False
        ),
        held_out=True,
    ),
    Kind(
        "no_commas",
        "no comma anywhere",
        (
            "Do not use any commas.",
            "Write without commas.",
            "There should be no commas in your answer.",
            "Avoid commas altogether.",
            "Not a single comma may appear in the reply.",
        ),
        lambda answer, a: without(_commas(answer)),
        chinese=("不要使用逗号。", "回答里不能有逗号。", "全文一个逗号也不要出现。"),
        also=_no("(commas|comma)", "不用逗号", "别用逗号", "不要用逗号"),
        manner=_none("(commas|comma)"),
        things="(commas|comma)",
        demands=lambda a: Demands(forbidden=(_COMMAS,)),
    ),
    Kind(
        "no_digits",
        "no digit anywhere",
        (
            "Do not use any digits.",
            "Write without any digits.",
            "There should be no digits in your answer.",
            "Spell out every number and use no digits.",
            "Keep the characters 0 to 9 out of the reply.",
        ),
        lambda answer, a: without(len(_DIGIT.findall(answer.text))),
        chinese=("不要使用阿拉伯数字。", "回答里不能有阿拉伯数字。", "全文不出现任何阿拉伯数字。"),
        also=_no("(digits|numerals)"),
        manner=_none("(digits|numerals)"),
        things="(digits|numerals)",
        demands=lambda a: Demands(forbidden=(r"\d",)),
        weight=0.6,
    ),
    Kind(
        "has_digits",
        "at least N numbers in digits",
        (
            "Mention at least {n} numbers, written in digits.",
            "Include {n} or more numbers in digits.",
            "Use at least {n} numbers written as figures.",
            "Give no fewer than {n} figures in digits.",
            "The text should hold {n} or more numbers set in digits.",
        ),
        lambda answer, a: within(_numbers(answer), count_of(a), MOST),
        chinese=(
            "至少写出{n}个用阿拉伯数字表示的数。",
            "文中要有{n}个或更多阿拉伯数字。",
            "用阿拉伯数字写出不少于{n}个数。",
        ),
        draw=draw_count(2, 3),
        demands=lambda a: Demands(required=("1",), words=(4 * count_of(a), MOST)),
        except_genres=frozenset({"poem"}),
    ),
    Kind(
        "letter_at_least",
        "a letter at least N times",
        (
            'Use the letter "{letter}" at least {n} times.',
            'The letter "{letter}" should appear {n} or more times.',
            'Make sure that the letter "{letter}" occurs at least {n} times.',
            'Let there be no fewer than {n} of the letter "{letter}".',
            'Work the letter "{letter}" in {n} times or more.',
        ),
        _letter_times,
        draw=lambda rng, language: {
            "letter": rng.choice("bcfgkmpuvwyh"),
            "n": str(rng.randrange(3, 9)),
        },
        demands=lambda a: Demands(
            words=(5 * count_of(a), MOST), roles=frozenset({"letter"}), required=(a["letter"],)
        ),
    ),
    Kind(
        "letter_absent",
        "a letter that may not occur",
        (
            'Do not use the letter "{letter}".',
            'Write without the letter "{letter}".',
            'The letter "{letter}" must not appear.',
            'Avoid every word that has the letter "{letter}" in it.',
            'Leave the letter "{letter}" out of every word.',
        ),
        _no_letter,
        also=(
            f'{NEVER} use (the letter|words with the letter|words that contain the letter) "{{letter}}"',
            f"{NEVER} use the letter {{letter}}",
            'avoid (using |)the letter "{letter}"',
            "avoid (using |)the letter {letter}",
        ),
        manner=(
            'without (using |)the letter "{letter}"',
            "without (using |)the letter {letter}",
        ),
        draw=lambda rng, language: {"letter": rng.choice("zqxjkv")},
        demands=lambda a: Demands(roles=frozenset({"letter"}), forbidden=(a["letter"],)),
        held_out=True,
    ),
    Kind(
        "first_letter",
        "the first letter of the answer",
        (
            'Begin with the letter "{letter}".',
            'The first letter of your answer should be "{letter}".',
            'Start with a word that begins with "{letter}".',
            'Open with a word whose first letter is "{letter}".',
            'Let "{letter}" be the very first letter of the text.',
        ),
        _first_letter,
        draw=lambda rng, language: {"letter": rng.choice("ABDFGHLMNOPRSTW")},
        demands=lambda a: Demands(roles=frozenset({"start"}), required=(a["letter"],)),
        held_out=True,
    ),
    Kind(
        "one_exclamation",
        "exactly one exclamation mark",
        (
            "Use exactly one exclamation mark.",
            "Your answer should have one exclamation mark and no more.",
            "Include a single exclamation mark.",
            "Put in one exclamation mark, no more and no fewer.",
            "Let there be just one exclamation mark in the whole text.",
        ),
        lambda answer, a: exactly(_exclamations(answer), 1),
        chinese=("只用一个感叹号。", "全文要有且只有一个感叹号。", "感叹号恰好出现一次。"),
        demands=lambda a: Demands(required=("!",)),
    ),
    Kind(
        "no_exclamation",
        "no exclamation mark",
        (
            "Do not use any exclamation marks.",
            "Write without exclamation marks.",
            "There should be no exclamation marks.",
            "Stay calm and use no exclamation mark.",
            "Keep exclamation marks out of the text.",
        ),
        lambda answer, a: without(_exclamations(answer)),
        chinese=("不要使用感叹号。", "回答里不能有感叹号。", "全文不出现感叹号。"),
        also=_no("exclamation (marks|points|mark|point)", "不要用感叹号", "别用感叹号"),
        manner=_none("exclamation (marks|points|mark|point)"),
        things="exclamation (marks|points|mark|point)",
        demands=lambda a: Demands(forbidden=("[!！]",)),
        weight=0.5,
    ),
    Kind(
        "asks_questions",
        "at least N questions",
        (
            "Ask at least {n} question[s] in your answer.",
            "Include {n} or more questions.",
            "Put at least {n} question mark[s] into your answer.",
            "Your answer should ask no fewer than {n} question[s].",
            "Let the reader face at least {n} question[s] along the way.",
        ),
        lambda answer, a: within(_questions(answer), count_of(a), MOST),
        chinese=("回答里至少提{n}个问题。", "文中要有{n}个或更多问号。", "至少向读者问{n}个问题。"),
        draw=draw_count(1, 3),
        demands=lambda a: Demands(
            required=("?",), sentences=(count_of(a), MOST), words=(6 * count_of(a), MOST)
        ),
    ),
    Kind(
        "semicolon",
        "at least one semicolon",
        (
            "Use at least one semicolon.",
            "Include a semicolon.",
            "Put a semicolon somewhere in your answer.",
            "There should be at least one semicolon in the text.",
            "Work in a semicolon at some point.",
        ),
        lambda answer, a: float(_semicolons(answer) > 0),
        chinese=("至少用一个分号。", "文中要出现分号。", "请在某处使用一个分号。"),
        demands=lambda a: Demands(required=(";",)),
        held_out=True,
    ),
    Kind(
        "parentheses",
        "N remarks in parentheses",
        (
            "Include exactly {n} remark[s] in parentheses.",
            "Put {n} short remark[s] in parentheses.",
            "Use {n} pair[s] of parentheses with words in them.",
            "Add {n} side note[s] in parentheses.",
            "Let {n} aside[s] stand in round brackets.",
        ),
        lambda answer, a: exactly(len(_PARENTHESIS.findall(answer.text)), count_of(a)),
        chinese=(
            "正好加上{n}处括号说明。",
            "文中要有{n}处带文字的括号。",
            "用{n}对括号写出补充说明。",
        ),
        draw=draw_count(1, 2),
        demands=lambda a: Demands(required=("(", ")"), words=(10 * count_of(a), MOST)),
        held_out=True,
    ),
    Kind(
        "starred",
        "at least N phrases between *stars*",
        (
            "Highlight at least {n} phrase[s] by putting *stars* around them.",
            "Put *stars* around at least {n} important words or phrases.",
            "Mark {n} or more key phrases with *asterisks* around them.",
            "Set off no fewer than {n} phrase[s] between asterisks, like *this*.",
            "Let {n} or more phrases shine between *asterisks*.",
        ),
        lambda answer, a: within(len(_STARRED.findall(answer.text)), count_of(a), MOST),
        chinese=(
            "至少用星号标出{n}处重点，例如*重点*。",
            "把{n}处或更多关键词放在*星号*之间。",
            "用*星号*突出不少于{n}个词语。",
        ),
        draw=draw_count(2, 3),
        demands=lambda a: Demands(required=("*",), words=(6 * count_of(a), MOST)),
    ),
    Kind(
        "placeholders",
        "at least N blanks to fill in, in [square brackets]",
        (
            "Include at least {n} placeholder[s] in square brackets, such as [name].",
            "Leave {n} or more blanks to fill in, each written like [date].",
            "Use no fewer than {n} placeholders like [address].",
            "Put in at least {n} gap[s] to fill, marked with square brackets like [place].",
            "Let {n} or more details stay open as [detail] in square brackets.",
        ),
        lambda answer, a: within(len(_SLOTTED.findall(answer.text)), count_of(a), MOST),
        chinese=(
            "至少留出{n}处用方括号表示的空白，例如[姓名]。",
            "文中要有{n}个或更多像[日期]这样的占位符。",
            "用方括号留下不少于{n}个待填之处，如[地点]。",
        ),
        draw=draw_count(2, 3),
        demands=lambda a: Demands(required=("[", "]"), words=(8 * count_of(a), MOST)),
        except_genres=frozenset({"poem", "explain", "story"}),
    ),
)
"""The kinds of this module."""
