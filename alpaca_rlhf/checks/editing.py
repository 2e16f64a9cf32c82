"""Edit a model's own draft until it meets the constraints of a prompt.

A small model seldom writes lower case, a list of three or a given last sentence because it is
asked to, but its plain sentences can be chosen and arranged so that they do. The edited drafts are
demonstrations for SFT: the words are the model's, the form is what was asked for. Nothing is made
up apart from closing questions, the phrases that the prompt itself gives, and short sentences with
words that it demands. A draft that cannot be edited is left to the judge, which drops it.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from alpaca_rlhf.checks.catalogue import Request, read_request
from alpaca_rlhf.checks.instructions import Core, bare_request, cores_by_text
from alpaca_rlhf.checks.kinds import Arguments, Constraint
from alpaca_rlhf.checks.text import is_chinese, phrase_pattern, sentences_of, words_of
from alpaca_rlhf.core.prompts import user_text
from alpaca_rlhf.core.records import Instruction

_LEFT_TO_THE_WRITER = frozenset({"has_digits"})
"""Kinds that only the writer of a draft can meet; editing picks the sentences."""
_MIN_SENTENCE_WORDS = 4  # shorter ones are mostly greetings and headings
_USUAL_SENTENCES = 3  # where nothing rules their number
_USUAL_WORDS = 55  # an answer that nothing makes longer stays below
_QUESTIONS = (
    "What do you think of {}?",
    "Would you like to hear more about {}?",
    "What would you add to this?",
    "Does that answer your question?",
    "What is your own view?",
    "Have you seen this for yourself?",
    "Which part would you try first?",
    "How would you go about it?",
)
_MENTIONS = (
    "Do not forget {}.",
    "It also has to do with {}.",
    "Think of {} as well.",
    "Much depends on {}.",
    "Then there is {}.",
)
"""Sentences for words that must occur and that the draft does not have."""
_NO_COMMA_AFTER: Mapping[str, str] = {
    "Here is what I think": ":",
    "Good question": ".",
    "Let me think": ".",
    "The truth is": ":",
    "Many people wonder": ":",
    "Imagine": ":",
}
"""Marks after openings that take no comma."""

_MARKUP = re.compile(r"\*+|^#+\s*|`+|^\s*>\s*|<<|>>|\[|\]", re.MULTILINE)
_WHOLE_SENTENCE = re.compile(r"[.!?]['’)]*$")


def draft_request(prompt: Instruction) -> str:
    """The text that asks for a draft: the request with the constraints that editing cannot meet.

    Chinese requests are asked as they are, and their drafts are not edited.
    """
    request = read_request(user_text(prompt))
    if is_chinese(request.core):
        return user_text(prompt)
    texts = [c.text for c in request.constraints if c.kind.name in _LEFT_TO_THE_WRITER]
    return " ".join([request.core, *texts])


def edit_draft(prompt: Instruction, draft: str) -> str:
    """Choose and arrange sentences of a draft so that they meet the constraints of a prompt.

    The choices are drawn from the prompt's id, so the same draft gives the same answer.

    Args:
        prompt: The prompt with its constraints.
        draft: An answer to `draft_request`, cut off or not.

    Returns:
        The answer; empty if the draft has no sentence that may be kept.
    """
    request = read_request(user_text(prompt))
    if is_chinese(request.core):
        return draft
    rng = random.Random(f"edit/{prompt.id}")
    rules = {constraint.kind.name: constraint.arguments for constraint in request.constraints}
    core = cores_by_text().get(bare_request(request.core))
    subject = core.subject if core is not None else "it"

    # 1. Sentences of the draft, as few as the constraints allow, beside those of the editor's own:
    #    questions to the reader, a given last sentence, and words that would else be missing.
    plain = _plain_sentences(draft)
    closing = _closing(rules, subject, rng)
    mentions = _mentions(request, [*_chosen(plain, request, closing), *closing], rng)
    chosen = _chosen(plain, request, [*mentions, *closing])
    if not chosen:
        return ""
    # 2. Another sentence for the postscript.
    last = _postscript(plain, chosen, request) if "postscript" in rules else []
    # 3. Marks and openings within sentences.
    sentences = _marked([*chosen, *mentions, *closing, *last], rules, core, rng)
    # 4. The layout, then what rules the whole text.
    n_body = len(sentences) - len(last)
    text = _laid_out(sentences[:n_body], rules, request, subject)
    for sentence in sentences[n_body:]:
        text += f"\n\nP.S. {sentence}"
    if "double_quotes" in rules:
        text = '"' + text.replace('"', "'") + '"'
    if "lower_case" in rules:
        text = text.lower()
    if "upper_case" in rules:
        text = text.upper()
    return text


@dataclass(frozen=True)
class _Bound:
    """A bound on the sum of a measure over the sentences of an answer."""

    measure: Callable[[str], int]
    low: int = 0
    high: int = 10_000

    def total(self, sentences: Sequence[str]) -> int:
        return sum(map(self.measure, sentences))


def _n_words(sentence: str) -> int:
    return len(words_of(sentence))


def _is_sentence(sentence: str) -> int:
    return 1


def _occurrences(word: str) -> Callable[[str], int]:
    pattern = phrase_pattern(word)
    return lambda sentence: len(pattern.findall(sentence))


def _letters(letter: str) -> Callable[[str], int]:
    return lambda sentence: sentence.lower().count(letter.lower())


def _n_numbers(sentence: str) -> int:
    return len(re.findall(r"\d+", sentence))


def _bounds(constraint: Constraint) -> list[_Bound]:
    """The bounds that a constraint sets on the sentences of an answer."""
    arguments, name = constraint.arguments, constraint.kind.name
    n = int(arguments["n"]) if "n" in arguments else 0
    by_kind: dict[str, Callable[[], list[_Bound]]] = {
        "sentences_exactly": lambda: [_Bound(_is_sentence, n, n)],
        "sentences_at_most": lambda: [_Bound(_is_sentence, 1, n)],
        "sentences_at_least": lambda: [_Bound(_is_sentence, n)],
        "words_at_most": lambda: [_Bound(_n_words, 1, n)],
        "words_at_least": lambda: [_Bound(_n_words, n)],
        "paragraphs": lambda: [_Bound(_is_sentence, n)],
        "bullets": lambda: [_Bound(_is_sentence, n, n)],
        "numbered": lambda: [_Bound(_is_sentence, n, n)],
        "sections": lambda: [_Bound(_is_sentence, n)],
        "two_answers": lambda: [_Bound(_is_sentence, 2)],
        "json": lambda: [_Bound(_is_sentence, len(arguments["words"].split("|")))],
        "no_digits": lambda: [_Bound(_n_numbers, 0, 0)],
        "has_digits": lambda: [_Bound(_n_numbers, n)],
        "letter_at_least": lambda: [_Bound(_letters(arguments["letter"]), n)],
        "contains_words": lambda: [
            _Bound(_occurrences(word), 1) for word in arguments["words"].split("|")
        ],
        "leaves_out": lambda: [
            _Bound(_occurrences(word), 0, 0) for word in arguments["words"].split("|")
        ],
        "word_at_least": lambda: [_Bound(_occurrences(arguments["word"]), n)],
        "word_exactly": lambda: [_Bound(_occurrences(arguments["word"]), n, n)],
    }
    return by_kind[name]() if name in by_kind else []


def _plain_sentences(draft: str) -> list[str]:
    """The whole sentences of a draft without markup; repeated and very short ones left out."""
    sentences = [" ".join(_MARKUP.sub("", s).split()) for s in sentences_of(draft)]
    whole = (s for s in sentences if _WHOLE_SENTENCE.search(s) and '"' not in s)
    return [s for s in dict.fromkeys(whole) if _n_words(s) >= _MIN_SENTENCE_WORDS]


def _closing(rules: Mapping[str, Arguments], subject: str, rng: random.Random) -> list[str]:
    n_questions = int(rules["asks_questions"]["n"]) if "asks_questions" in rules else 0
    if "ends_with_question" in rules:
        n_questions = max(1, n_questions)
    questions = [question.format(subject) for question in rng.sample(_QUESTIONS, n_questions)]
    return [*questions, *([f"{rules['ends_with']['phrase']}."] if "ends_with" in rules else [])]


def _chosen(sentences: Sequence[str], request: Request, added: Sequence[str]) -> list[str]:
    """Sentences in their order that keep every bound together with those that are added."""
    bounds = [bound for constraint in request.constraints for bound in _bounds(constraint)]
    chosen: set[int] = set()

    def fits(index: int) -> bool:
        texts = [*(sentences[i] for i in (*chosen, index)), *added]
        return index not in chosen and all(bound.total(texts) <= bound.high for bound in bounds)

    # 1. Those that a lower bound needs.
    for bound in bounds:
        for index, sentence in enumerate(sentences):
            if bound.total([*(sentences[i] for i in chosen), *added]) >= bound.low:
                break
            if bound.measure(sentence) and fits(index):
                chosen.add(index)
    # 2. The first ones, up to a usual length.
    for index, sentence in enumerate(sentences):
        n_words = sum(_n_words(sentences[i]) for i in chosen) + _n_words(sentence)
        if (
            len(chosen) < _USUAL_SENTENCES
            and (n_words <= _USUAL_WORDS or not chosen)
            and fits(index)
        ):
            chosen.add(index)
    return [sentences[i] for i in sorted(chosen)]


def _mentions(request: Request, sentences: Sequence[str], rng: random.Random) -> list[str]:
    """A sentence for each time that a demanded word is missing from sentences."""
    missing: list[str] = []
    for constraint in request.constraints:
        arguments, name = constraint.arguments, constraint.kind.name
        if name == "contains_words":
            words = [
                w for w in arguments["words"].split("|") if not any(map(_occurrences(w), sentences))
            ]
            missing += [" and ".join(words)] if words else []
        elif name in ("word_at_least", "word_exactly"):
            word = arguments["word"]
            n = sum(map(_occurrences(word), sentences))
            missing += [word] * max(0, int(arguments["n"]) - n)
    forms = rng.sample(_MENTIONS, len(_MENTIONS))
    return [form.format(words) for form, words in zip(forms, missing, strict=False)]


def _postscript(sentences: Sequence[str], chosen: Sequence[str], request: Request) -> Sequence[str]:
    """The first other sentence that keeps the upper bounds on words; none if there is none."""
    bounds = [bound for constraint in request.constraints for bound in _bounds(constraint)]
    caps = [bound for bound in bounds if bound.measure is not _is_sentence]
    others = (s for s in sentences if s not in chosen)
    return next(
        ([s] for s in others if all(cap.total([*chosen, s]) <= cap.high for cap in caps)), []
    )


def _marked(
    sentences: Sequence[str],
    rules: Mapping[str, Arguments],
    core: Core | None,
    rng: random.Random,
) -> list[str]:
    """Sentences with the opening, stars, blanks and marks that are asked for."""
    edited = list(sentences)
    if "starred" in rules:
        edited = _wrapped(edited, "*{}*", int(rules["starred"]["n"]), core, rng)
    if "placeholders" in rules:
        edited = _wrapped(edited, "[{}]", int(rules["placeholders"]["n"]), core, rng)
    if "begins_with" in rules:
        phrase = rules["begins_with"]["phrase"]
        mark = _NO_COMMA_AFTER.get(phrase, ",")
        if mark == "," and "no_commas" in rules:
            mark = ":"
        edited[0] = f"{phrase}{mark} {_continued(edited[0]) if mark == ',' else edited[0]}"
    if "no_exclamation" in rules or "one_exclamation" in rules:
        edited = [sentence.replace("!", ".") for sentence in edited]
    if "one_exclamation" in rules:
        stated = [i for i, sentence in enumerate(edited) if sentence.endswith(".")]
        if stated:
            i = rng.choice(stated)
            edited[i] = f"{edited[i][:-1]}!"
    if "no_commas" in rules:
        edited = [re.sub(r"\s*,", "", sentence) for sentence in edited]
    return edited


def _continued(sentence: str) -> str:
    """A sentence with a small first letter, unless its first word is a name or `I`."""
    first, _, rest = sentence.partition(" ")
    is_plain = first.istitle() and not re.match(r"I\b", first) and not rest[:1].isupper()
    return sentence[0].lower() + sentence[1:] if is_plain else sentence


def _wrapped(
    sentences: Sequence[str], form: str, n: int, core: Core | None, rng: random.Random
) -> list[str]:
    """Sentences with `n` words put between marks, words about the subject first."""
    wrapped = list(sentences)
    about = {*words_of(f"{core.subject} {' '.join(core.related)}".lower())} if core else set()
    words = [
        (i, word)
        for i, sentence in enumerate(sentences)
        for word in dict.fromkeys(re.findall(r"(?<![\w*\[-])[a-z]{4,}(?![\w*\]-])", sentence))
    ]
    rng.shuffle(words)
    words.sort(key=lambda pair: (pair[1] not in about, -len(pair[1]) // 4))
    done: set[str] = set()
    for i, word in words:
        if len(done) == n:
            break
        if word not in done:
            done.add(word)
            wrapped[i] = re.sub(rf"\b{word}\b", form.format(word), wrapped[i], count=1)
    return wrapped


def _laid_out(
    sentences: Sequence[str], rules: Mapping[str, Arguments], request: Request, subject: str
) -> str:
    """Sentences in the layout that is asked for; running text where none is."""
    heading = subject[0].upper() + subject[1:]
    if "json" in rules:
        keys = rules["json"]["words"].split("|")
        titles = [heading] if keys[0] in ("title", "topic", "idea") else []
        values = [*titles, *_dealt(sentences, len(keys) - len(titles), " ")]
        return json.dumps(dict(zip(keys, values, strict=True)), ensure_ascii=False)
    if "bullets" in rules:
        text = "\n".join(f"- {sentence}" for sentence in sentences)
    elif "numbered" in rules:
        text = "\n".join(f"{i}. {sentence}" for i, sentence in enumerate(sentences, 1))
    elif "sections" in rules:
        parts = _dealt(sentences, int(rules["sections"]["n"]), " ")
        text = "\n\n".join(f"Part {i}\n{part}" for i, part in enumerate(parts, 1))
    elif "two_answers" in rules:
        text = "\n******\n".join(_dealt(sentences, 2, " "))
    elif "paragraphs" in rules:
        text = "\n\n".join(_dealt(sentences, int(rules["paragraphs"]["n"]), " "))
    else:
        text = " ".join(sentences)
    if "title" in rules:
        text = f"<<{heading}>>\n{text}"
    if "repeat_request" in rules:
        text = f"{request.core}\n{text}"
    return text


def _dealt(sentences: Sequence[str], n: int, glue: str) -> list[str]:
    """Sentences dealt in their order to `n` texts of about equal numbers of sentences."""
    edges = [round(i * len(sentences) / n) for i in range(n + 1)]
    return [glue.join(sentences[a:b]) for a, b in pairwise(edges)]
