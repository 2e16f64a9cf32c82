"""An answer as its checks read it: words, sentences, lines, paragraphs, in English and Chinese."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

_CJK = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_CHINESE = re.compile(f"[{_CJK}]")
_WORD = re.compile(f"[{_CJK}]|[^\\W_{_CJK}]+(?:['’.-][^\\W_{_CJK}]+)*")
_BULLET = re.compile(r"[ \t\"“「]*[-*•·+–][ \t]+(?=\S)")
_NUMBERED = re.compile(
    r"[ \t\"“「]*(?:step\s+|第)?(\d{1,3})(?:[.):、]|步[，:：]?)[ \t]*(?=\S)", re.IGNORECASE
)
_TITLE_LINE = re.compile(r"\W*<<[^<>\n]+>>\W*")
# A full stop that ends no sentence: after an abbreviation or an initial, or between digits.
_ABBREVIATION = re.compile(
    r"\b(?:e\.g|i\.e|etc|vs|mr|mrs|ms|dr|prof|st|no|approx|p\.s|p\.p\.s|a\.m|p\.m|u\.s|u\.k|[a-z])\.$",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?:[.!?…]+[\"'”’)\]*_]*(?=\s|$))|(?:[。！？]+[”’」』）]*)")


def is_chinese(text: str) -> bool:
    """True if at least three in ten of a text's letters are Chinese characters."""
    letters = sum(char.isalpha() for char in text)
    return letters > 0 and len(_CHINESE.findall(text)) >= 0.3 * letters


def words_of(text: str) -> list[str]:
    """The words of a text in their order; a Chinese character is a word."""
    return _WORD.findall(text)


def sentences_of(text: str) -> list[str]:
    """The sentences of a text; a line break ends one, as do `.`, `!`, `?` and their Chinese kin.

    Lines without a word, lines that are a title in `<<...>>` and the marks of lists are no
    sentences.
    """
    sentences = []
    for line in text.split("\n"):
        if _TITLE_LINE.fullmatch(line):
            continue
        line = _NUMBERED.sub("", _BULLET.sub("", line, count=1), count=1)
        start = 0
        for end in _SENTENCE_END.finditer(line):
            before = line[start : end.start() + 1]
            is_last = not line[end.end() :].strip()
            if end[0].startswith(".") and _ABBREVIATION.search(before) and not is_last:
                continue
            sentences.append(line[start : end.end()].strip())
            start = end.end()
        sentences.append(line[start:].strip())
    return [sentence for sentence in sentences if _WORD.search(sentence)]


@dataclass(frozen=True)
class Answer:
    """A completion, with its parts worked out once."""

    text: str
    """The text, without white space around it."""
    question: str = ""
    """The request that it answers, without the constraints."""

    @cached_property
    def words(self) -> list[str]:
        """Its words."""
        return words_of(self.text)

    @cached_property
    def sentences(self) -> list[str]:
        """Its sentences."""
        return sentences_of(self.text)

    @cached_property
    def lines(self) -> list[str]:
        """Its lines that are not blank."""
        return [line.strip() for line in self.text.split("\n") if line.strip()]

    @cached_property
    def paragraphs(self) -> list[str]:
        """Its parts between blank lines, without a title line at the top."""
        parts = [part.strip() for part in re.split(r"\n[ \t]*\n", self.text) if part.strip()]
        return parts[1:] if parts and _TITLE_LINE.fullmatch(parts[0]) else parts

    @cached_property
    def bullets(self) -> list[str]:
        """The texts of its lines that begin with a bullet."""
        return [
            line[mark.end() :] for line in self.text.split("\n") if (mark := _BULLET.match(line))
        ]

    @cached_property
    def numbers(self) -> list[int]:
        """The numbers of its lines that begin with one."""
        return [int(mark[1]) for line in self.text.split("\n") if (mark := _NUMBERED.match(line))]

    @cached_property
    def letters(self) -> list[str]:
        """Its letters, in either case."""
        return [char for char in self.text if char.isalpha()]

    def count(self, phrase: str) -> int:
        """The places where a word or phrase stands as whole words, in either case."""
        return len(phrase_pattern(phrase).findall(self.text))


def phrase_pattern(phrase: str) -> re.Pattern[str]:
    """The pattern of a phrase as whole words, in either case and with any white space."""
    body = r"\s+".join(re.escape(word) for word in phrase.split())
    body = body.replace("'", "['’]")
    # Chinese has no gaps between words.
    head = "" if _CHINESE.match(phrase) else r"(?<![^\W_])"
    tail = "" if _CHINESE.match(phrase[-1:]) else r"(?![^\W_])"
    return re.compile(head + body + tail, re.IGNORECASE)


def bare(text: str) -> str:
    """Words of a text in lower case with one blank between them, for comparisons."""
    return " ".join(words_of(text.lower()))
