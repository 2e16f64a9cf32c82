"""Signs that an answer is about its request, in its language, in words of its own, and no loop."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Collection, Mapping
from functools import lru_cache
from itertools import pairwise

from alpaca_rlhf.checks.instructions import bare_request, cores, cores_by_text
from alpaca_rlhf.checks.kinds import Language
from alpaca_rlhf.checks.text import Answer, bare, is_chinese, words_of

_FUNCTION_WORDS = frozenset(
    """
    a about after all also although am an and any are as at be because been before being between both
    but by can could did do does each even every few first for from had has have he her here him his
    how i if in into is it its just like made make makes many may me might more most much must my no
    nor not now of off on once one only or other our out over own people she should so some such than
    that the their them then there these they thing things this those through to too two under up upon
    us use used very was way we well were what when where which while who whom whose why will with
    without would you your yes yet don't it's i'm you're can't isn't
    """.split()
)
_REQUEST_WORDS = frozenset(
    """
    advert advertisement advice advise answer apologise article ballad begin cause character child
    children class common complain complaint compose describe detail diary draft entry explain fable
    fact friend give happen help home honour idea imagine invent invitation job know legend letter life
    list little long love mayor mistake name need new news note novel old ode opinion ordinary poem
    point polite postcard practical prepare purpose question reason remind report request rhyme school
    scientist secret sentence short should sketch slogan small someone song speech step story
    suggest summarise surprising tale tell text tip toast town verse vivid walk word world worth write
    """.split()
)
"""Words of requests that say how to answer, not what about."""
_CHINESE_FUNCTION = "的了是在和有我他她它这那不也就都而与对到说要会能可以很之为以"
_STEM_ENDINGS = (
    "ations",
    "ation",
    "ings",
    "ing",
    "ies",
    "ied",
    "ers",
    "er",
    "ed",
    "es",
    "ly",
    "s",
    "e",
    "y",
)
_MIN_STEM = 3
_COMMON_SHARE = 0.03
"""Share of the subjects above which a word says nothing about any of them."""
_MIN_PROSE_WORDS = 4  # below that the share of function words says little
_PROSE_SHARES: Mapping[Language, tuple[float, float]] = {"en": (0.1, 0.2), "zh": (0.01, 0.03)}
"""Share of function words up to which a text is no prose, and from which it is (ordinary English
has 0.4 to 0.5)."""
_COPIED_RUN = 3
"""Words in a row that also stand so in the prompt, from which they count as copied."""
_WORDS_PER_HIT = 60
"""Words of an answer for each word about the subject."""
_FEW_WORDS, _UNKNOWN = 3, 0.5
"""Content words up to which a request that is not one of ours does not tell its subject well, and
the share for an answer without any of them."""
_SHORT = 25
"""Words up to which one word about the subject will do."""
_OWN_SHARE = 0.3
"""Share of an answer's content words that must not stand in the prompt."""
_MIN_OWN_WORDS = 4.0
_LOOP_NGRAM = 4


def stem(word: str) -> str:
    """A word without its ending, for comparisons: `baking`, `bakes` and `baked` are one."""
    word = word.lower().replace("’", "'").removesuffix("'s")
    for ending in _STEM_ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= _MIN_STEM:
            word = word.removesuffix(ending)
            break
    # `stopping` and `stop`, but `bell` stays.
    if len(word) > _MIN_STEM + 1 and word[-1] == word[-2] and word[-1] not in "lsaeiou":
        word = word[:-1]
    return word


def content_stems(text: str) -> list[str]:
    """The stems of a text's content words; of Chinese, its pairs of neighbouring characters."""
    if is_chinese(text):
        characters = words_of(text)
        return [a + b for a, b in pairwise(characters)]
    return [stem(word) for word in words_of(text) if word.lower() not in _FUNCTION_WORDS]


@lru_cache(maxsize=20_000)
def subject_words(request: str) -> tuple[frozenset[str], frozenset[str]]:
    """Words that an answer to a request may hold: those of its subject, and related ones.

    Args:
        request: The request without its constraints.
    """
    core = cores_by_text().get(bare_request(request))
    if core is None:
        subject = {word for word in content_stems(request) if word not in _request_stems()}
        return frozenset(subject), frozenset()
    common = _common_stems()
    related = (
        {word for text in core.related for word in content_stems(text)}
        if core.language == "en"
        else {*core.related}
    )
    subject = {*content_stems(core.subject)}
    return frozenset(subject - common) or frozenset(subject), frozenset(related - subject - common)


def subject_share(answer: Answer, request: str, demanded: Collection[str]) -> float:
    """The degree in [0, 1] to which an answer holds words about a request's subject.

    A word of the subject counts fully and a related one half. A long answer needs more of them,
    and one that was demanded word for word counts for nothing.
    """
    subject, related = subject_words(request)
    chinese = is_chinese(request)
    if chinese:
        counted = {word for word in (*subject, *related) if word in answer.text}
        occurrences = sum(answer.text.count(word) for word in counted)
    else:
        stems = Counter(content_stems(answer.text))
        counted = {word for word in (*subject, *related) if word in stems}
        occurrences = sum(stems[word] for word in counted)
    counted -= {*demanded}
    if not subject and not related:
        return 1.0
    weight = sum(1.0 if word in subject else 0.5 for word in counted)
    needed = 1.0 if len(answer.words) <= _SHORT or not related else 1.5
    # A short request of somebody's own says little about the words of its answer.
    if not related and not counted and len(subject) <= _FEW_WORDS:
        return _UNKNOWN
    available = max(1.0, len(subject - {*demanded}) + 0.5 * len(related - {*demanded}))
    density = occurrences * _WORDS_PER_HIT / max(1, len(answer.words))
    return min(1.0, weight / min(needed, available), density)


def prose_share(answer: Answer, prompt: str, language: Language) -> float:
    """The degree in [0, 1] to which an answer is running text in a language.

    English has its function words, Chinese its characters and particles. Runs of words that were
    copied from the prompt do not count.
    """
    if language == "zh" and not is_chinese(answer.text):
        return 0.0
    words = _not_copied(answer, prompt)
    if not words:
        return 0.0
    if language == "zh":
        n_function = sum(word in _CHINESE_FUNCTION for word in words)
    else:
        words = [word.lower().replace("’", "'") for word in words]
        if sum(word.isascii() for word in words) < 0.8 * len(words):
            return 0.0
        n_function = sum(word in _FUNCTION_WORDS for word in words)
    if len(words) < _MIN_PROSE_WORDS:
        return 1.0
    low, high = _PROSE_SHARES[language]
    return min(1.0, max(0.0, (n_function / len(words) - low) / (high - low)))


def own_share(answer: Answer, prompt: str) -> float:
    """The degree in [0, 1] to which an answer has content of its own, not that of its prompt."""
    known = {*content_stems(prompt)}
    stems = {*content_stems(_without_question(answer))}
    fresh = len(stems - known)
    return min(1.0, fresh / max(_MIN_OWN_WORDS, _OWN_SHARE * len(stems))) ** 2


def is_loop(answer: Answer) -> bool:
    """True if an answer says the same again and again."""
    # 1. Whole sentences that recur.
    sentences = [bare(sentence) for sentence in answer.sentences]
    long_ones = Counter(s for s in sentences if len(s.split()) >= _LOOP_NGRAM)
    repeats = sum(count - 1 for count in long_ones.values())
    if repeats >= 2 or (repeats == 1 and len(sentences) <= 4):
        return True
    # 2. Runs of words that recur.
    words = [word.lower() for word in answer.words]
    ngrams = Counter(zip(*(words[i:] for i in range(_LOOP_NGRAM)), strict=False))
    total = ngrams.total()
    if total >= 8 and 1 - len(ngrams) / total > 0.3:
        return True
    # 3. Words or characters that recur.
    if len(words) >= 12 and Counter(words).most_common(1)[0][1] > 0.4 * len(words):
        return True
    if re.search(r"([^\s*=_.#-])\1{9,}", answer.text):
        return True
    data = answer.text.encode()
    return len(data) > 300 and len(zlib.compress(data)) < 0.25 * len(data)


def _not_copied(answer: Answer, prompt: str) -> list[str]:
    """The words of an answer without runs that stand in the prompt."""
    words = answer.words
    lowered, known = [word.lower() for word in words], [word.lower() for word in words_of(prompt)]
    runs = {*zip(*(known[i:] for i in range(_COPIED_RUN)), strict=False)}
    copied: set[int] = set()
    for start, run in enumerate(zip(*(lowered[i:] for i in range(_COPIED_RUN)), strict=False)):
        if run in runs:
            copied.update(range(start, start + _COPIED_RUN))
    return [word for position, word in enumerate(words) if position not in copied]


def _without_question(answer: Answer) -> str:
    """The text after the request that it repeats."""
    wanted = bare(answer.question)
    text = bare(answer.text)
    return text.removeprefix(wanted) if wanted and text.startswith(wanted) else answer.text


@lru_cache(maxsize=1)
def _request_stems() -> frozenset[str]:
    return frozenset(stem(word) for word in (*_REQUEST_WORDS, *_FUNCTION_WORDS))


@lru_cache(maxsize=1)
def _common_stems() -> frozenset[str]:
    """Words of so many subjects that they tell none of them."""
    texts = {core.subject: " ".join((core.subject, *core.related)) for core in cores()}
    counts: Counter[str] = Counter()
    for text in texts.values():
        counts.update({*content_stems(text)})
    return frozenset(word for word, n in counts.items() if n > _COMMON_SHARE * len(texts))
