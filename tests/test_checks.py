"""The verifiable instructions: every kind by example, prompts read back, and tries at the judge."""

import itertools
import random
import re
import statistics

import pytest

from alpaca_rlhf.checks import (
    KINDS,
    Checks,
    ChecksWeights,
    bare_request,
    compatible,
    compose,
    cores,
    demonstrations,
    read_request,
    write_template,
)
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import clusters
from tests.verifiable import constraints_of, witness

CORE = "Tell me about a garden pond."
POND = (
    "A garden pond is home to frogs and dragonflies. Its plants keep the water clear. "
    "In winter a little ice covers it."
)
LONG = (
    "A garden pond brings life to the smallest yard. Frogs arrive within a year, and dragonflies "
    "hover above the lilies on warm afternoons. Plants keep the water clear, because they use up "
    "whatever would feed the algae. Give the pond a shallow edge so that hedgehogs can drink from "
    "it and climb out again. In autumn a net keeps fallen leaves away."
)

# Kind, the constraint's arguments, an answer that meets it, and one that just misses it.
EXAMPLES = [
    ("sentences_exactly", {"n": "3"}, POND, POND + " Birds drink from it."),
    ("sentences_exactly", {"n": "2"}, "A garden pond cools the air, e.g. in July. Dr. Hill has one of 3.5 metres.", "A garden pond cools the air on hot days in July."),
    ("sentences_at_most", {"n": "3"}, POND, POND + " Birds drink from it."),
    ("sentences_at_least", {"n": "3"}, POND, POND.rpartition(" In winter")[0]),
    ("words_at_most", {"n": "25"}, POND, POND + " Birds drink from it."),
    ("words_at_least", {"n": "22"}, POND, POND.replace("a little ", "")),
    ("words_between", {"n": "20", "m": "30"}, POND, "A garden pond is home to frogs and to several dragonflies."),
    ("longest_sentence", {"n": "10"}, POND, POND.replace("clear.", "clear and cool for all of the small fish.")),
    ("paragraphs", {"n": "2"}, POND.replace(" In winter", "\n\nIn winter"), POND.replace(" In winter", "\nIn winter")),
    ("lines", {"n": "3"}, POND.replace(". ", ".\n"), POND.replace(". In", ".\nIn")),
    ("lower_case", {}, POND.lower(), POND.lower().replace("in winter", "In winter")),
    ("upper_case", {}, POND.upper(), POND.upper().replace("FROGS", "frogs")),
    ("capital_words", {"n": "2"}, POND.replace("frogs", "FROGS").replace("ice", "ICE"), POND.replace("frogs", "FROGS")),
    ("no_commas", {}, POND, POND.replace("In winter", "In winter,")),
    ("no_digits", {}, POND, POND.replace("a little", "2 cm of")),
    ("has_digits", {"n": "2"}, POND.replace("a little", "2 to 3 cm of"), POND.replace("a little", "2 cm of")),
    ("letter_at_least", {"letter": "g", "n": "4"}, POND.replace("little", "large"), POND),
    ("letter_absent", {"letter": "z"}, POND, POND.replace("covers", "glazes")),
    ("first_letter", {"letter": "A"}, POND, POND.replace("A garden", "The garden", 1)),
    ("one_exclamation", {}, POND[:-1] + "!", POND.replace(".", "!")),
    ("no_exclamation", {}, POND, POND[:-1] + "!"),
    ("asks_questions", {"n": "1"}, POND + " Do you have one?", POND),
    ("semicolon", {}, POND.replace(". Its", "; its"), POND.replace(". Its", ", its")),
    ("parentheses", {"n": "1"}, POND.replace("plants", "plants (mostly lilies)"), POND.replace("plants", "plants (lilies) and weeds (some)")),
    ("starred", {"n": "2"}, POND.replace("frogs", "*frogs*").replace("clear", "**clear**"), POND.replace("frogs", "*frogs*")),
    ("placeholders", {"n": "2"}, POND + " Ask [name] in [month].", POND + " Ask [name] in May."),
    ("double_quotes", {}, f'"{POND}"', f'"{POND}'),
    ("bullets", {"n": "3"}, "- " + POND.replace(". ", ".\n- "), "- " + POND.replace(". In", ".\n- In")),
    ("numbered", {"n": "3"}, "1. A garden pond is home to frogs.\n2. Its plants keep the water clear.\n3. In winter a little ice covers it.", "1. A garden pond is home to frogs.\n2. Its plants keep the water clear.\n4. In winter a little ice covers it."),
    ("json", {"words": "title|summary"}, '{"title": "The life of a garden pond", "summary": "It is home to frogs, and its plants keep the water clear."}', '{"title": "The life of a garden pond", "summary": "It is home to frogs, and its plants keep the water clear."'),
    ("title", {}, f"<<A Small World>>\n{POND}", f"<A Small World>\n{POND}"),
    ("sections", {"n": "2"}, POND.replace("A garden", "Part 1\nA garden").replace(" In winter", "\nPart 2\nIn winter"), POND.replace("A garden", "Part 1\nA garden").replace(" In winter", "\nPart 3\nIn winter")),
    ("repeat_request", {}, f"{CORE} {POND}", f"{CORE.replace('garden', 'small')} {POND}"),
    ("two_answers", {}, "A garden pond is home to frogs and newts.\n******\nBuild a pond and dragonflies will visit the garden.", "A garden pond is home to frogs and newts.\n******\nA garden pond is home to frogs and newts."),
    ("postscript", {}, f"{POND}\nP.S. Mind the frogs in spring.", f"P.S. Mind the frogs in spring.\n{POND}"),
    ("begins_with", {"phrase": "In short"}, POND.replace("A garden", "In short, a garden", 1), POND.replace("Its plants", "In short, its plants")),
    ("ends_with", {"phrase": "That is all"}, POND + " That is all.", "That is all. " + POND),
    ("ends_with_question", {}, POND + " Do you have one?", "Do you have one? " + POND),
    ("contains_words", {"words": "frogs|ice"}, POND, POND.replace("ice", "snow")),
    ("word_at_least", {"word": "water", "n": "2"}, POND.replace("covers it", "covers the water"), POND),
    ("word_exactly", {"word": "water", "n": "1"}, POND, POND.replace("covers it", "covers the water")),
    ("leaves_out", {"words": "fish|swim"}, POND, POND.replace("frogs", "fish")),
]  # fmt: skip


def prompt_of(name, arguments, template=0, core=CORE):
    text = write_template(KINDS[name].english[template], arguments, in_words=True)
    return Instruction(f"{core} {text}")


def test_every_kind_has_an_example():
    assert {name for name, *_ in EXAMPLES} == set(KINDS)


@pytest.mark.parametrize(("name", "arguments", "good", "near_miss"), EXAMPLES)
def test_a_good_answer_scores_and_a_near_miss_does_not(name, arguments, good, near_miss):
    prompt = prompt_of(name, arguments)
    [result] = Checks().verdict(prompt, good, True).results
    assert (result.constraint.kind.name, result.degree) == (name, 1.0)
    assert Checks().score(prompt, good, True).score >= 0.95
    [missed] = Checks().verdict(prompt, near_miss, True).results
    assert 0 <= missed.degree < 1
    scores = Checks().score(prompt, near_miss, True)
    assert scores.score <= 0.5 and scores.parts["all_met"] == 0
    assert Checks().score(prompt, good, False).score <= 0.3


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_phrasings(kind):
    assert len(set(kind.english)) >= 4 and (not kind.chinese or len(set(kind.chinese)) >= 3)
    arguments = {
        "n": "4",
        "m": "9",
        "letter": "k",
        "word": "rain",
        "words": "a b|c|d",
        "phrase": "So",
    }
    for templates in (kind.english, kind.chinese):
        for number, template in enumerate(templates):
            for in_words in (False, True):
                text = write_template(template, arguments, in_words=in_words)
                for wording in (
                    text,
                    text.upper() if not kind.chinese else text,
                    text.rstrip(".。"),
                ):
                    for prompt in (f"Say it. {wording}", f"{wording}\nSay it.", f"说吧。{wording}"):
                        found = read_request(prompt).constraints
                        assert [check.kind.name for check in found] == [kind.name], prompt
                        assert found[0].held_out_phrasing == (number == len(templates) - 1)
                        for slot, value in found[0].arguments.items():
                            assert value.lower() == arguments[slot].lower(), prompt


def test_people_phrase_constraints_within_a_sentence():
    text = "Explain rain in exactly three sentences, in lowercase and without using commas."
    assert [check.kind.name for check in read_request(text).constraints] == [
        "sentences_exactly", "lower_case", "no_commas",
    ]  # fmt: skip
    for text, words in (
        ("use the word “rain”", "rain"),
        ('Include the words "rain", "sea" and "sun".', "rain|sea|sun"),
        ("Avoid the words “a”, “b”, or “c d”", "a|b|c d"),
    ):
        [check] = read_request(f"Tell me a story. {text}").constraints
        assert check.arguments["words"] == words


@pytest.mark.parametrize(
    "text",
    ["What is rain?", "Write a few sentences about it being 20 words", "", "Use commas.", "写诗。"],
)
def test_prompts_that_state_no_known_constraint(text):
    assert not Checks.can_judge(Instruction(text))
    with pytest.raises(
        UserError, match=r"states no constraint .* alpaca-rlhf checks list"
    ) as error:
        Checks().score(Instruction(text), "It rains.", True)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"^--inputs\.prompts F: 1 of 2 prompts, the "):
        Checks.refuse_others([prompt_of("no_commas", {}), Instruction(text)], "--inputs.prompts F")


PARTS = ("trained", "held_out_kinds", "held_out_phrasings")


@pytest.fixture(scope="module")
def composed():
    rng = random.Random(0)
    return [
        (part, core, compose(core, rng, part))
        for part in PARTS
        for core in random.Random(1).sample(cores(), 900)
    ]


def test_constraints_are_read_back_from_composed_prompts(composed):
    counts = dict.fromkeys(KINDS, 0)
    for part, core, prompt in composed:
        request = read_request(prompt.instruction)
        assert bare_request(request.core) == bare_request(core.text), prompt
        assert 1 <= len(request.constraints) <= 3, prompt
        for check in request.constraints:
            counts[check.kind.name] += 1
            assert check.text.lower() in prompt.instruction.lower()
            assert check.kind.held_out == (part == "held_out_kinds"), prompt
            assert check.held_out_phrasing == (part == "held_out_phrasings"), prompt
            assert core.genre not in check.kind.except_genres
    assert min(counts.values()) >= 10, counts


def test_composed_constraints_go_together(composed):
    for _, _, prompt in composed:
        checks = read_request(prompt.instruction).constraints
        assert all(compatible(pair) for pair in itertools.permutations(checks)), prompt


def test_one_answer_can_meet_all_constraints_of_a_composed_prompt(composed):
    """The compatibility that `compose` relies on, by answers that are put together."""
    english = [row for row in composed if row[1].language == "en"][::5]
    for _, core, prompt in english:
        assert witness(core, constraints_of(prompt), prompt) is not None, prompt.instruction


@pytest.mark.parametrize(
    "texts",
    [
        ("Answer in exactly two sentences.", "Write at least 80 words."),
        ("Use at most 30 words.", "Write at least 40 words."),
        ("Use at most 25 words.", "Write at least seven sentences."),
        ("Use at most two sentences.", "Write at least three sentences."),
        ("Write everything in lower case.", "Use only uppercase letters."),
        ("Do not use any commas.", 'Answer in JSON with the keys "a" and "b".'),
        ('Use the words "rain" and "sun".', 'Avoid the words "sun" and "moon".'),
        ('Begin your answer with "Well".', "Put your whole answer in double quotation marks."),
        ('End your answer with "Good luck".', "End with a question."),
        ("Answer with exactly 3 bullet points.", "Answer with exactly 3 numbered points."),
        ('Do not use the letter "z".', 'Mention "pizza" exactly 2 times.'),
        ("Use exactly one exclamation mark.", "Write without exclamation marks."),
        ("Write without any digits.", "Mention at least 2 numbers, written in digits."),
        ("Write everything in lower case.", "End with a postscript that begins with P.S."),
    ],
)
def test_constraints_that_clash(texts):
    checks = read_request(f"Tell me something. {' '.join(texts)}").constraints
    assert len(checks) == 2 and not compatible(checks) and not compatible(checks[::-1])


def test_enough_instructions_are_distinct():
    """Under the near-duplicate firewall: at ROUGE-L 0.7, near-duplicates joined."""
    groups = {
        language: clusters([Instruction(c.text) for c in cores() if c.language == language])
        for language in ("en", "zh")
    }
    assert len(groups["en"]) >= 2000 and len(groups["zh"]) >= 140
    assert max(len(group) for group in groups["en"]) <= 25
    for core in cores():
        assert not read_request(core.text).constraints
        assert "{" not in core.text and len(set(core.related)) == len(core.related) >= 4


def test_demonstrations_meet_their_constraints():
    rows = demonstrations(("en", "zh"))
    assert len(demonstrations()) >= 40 and len(rows) > len(demonstrations())
    shown = set()
    for row in rows:
        assert Checks().score(row, row.output, True).score >= 0.95, row
        for check in read_request(row.instruction).constraints:
            assert not check.kind.held_out and not check.held_out_phrasing, row
            shown.add(check.kind.name)
    assert shown == {kind.name for kind in KINDS.values() if not kind.held_out}


GENERIC = (
    "The most important thing is to start with a clear idea of what you want, because good results "
    "take time. People often forget that water, light, food and music are part of life. Take it "
    "slowly, ask a friend for help, and enjoy the day!"
)
WORDS = (
    "apple river stone window music garden paper light table mountain dream coffee friend bottle"
)
TRIES = {
    "nothing": lambda core, checks, text: "",
    "white space": lambda core, checks, text: " \n\n ",
    "marks": lambda core, checks, text: '"!!! ... ? *** - <<>> []"',
    "the prompt": lambda core, checks, text: text,
    "the prompt twice": lambda core, checks, text: f"{text}\n\n{text}",
    "the request": lambda core, checks, text: core.text,
    "the prompt, introduced": lambda core, checks, text: f"Sure! Here is my answer: {text}",
    "a list of words": lambda core, checks, text: WORDS,
    "a bulleted list of words": lambda core, checks, text: "- " + "\n- ".join(WORDS.split()[:3]),
    "words of the subject": lambda core, checks, text: f"{core.subject} {' '.join(core.related)}",
    "words of the subject among others": lambda core, checks, text: (
        f"{core.subject} {' '.join(core.related)} {WORDS}"
    ),
    "one answer": lambda core, checks, text: GENERIC,
    "one refusal": lambda core, checks, text: "I am sorry, but I cannot help with this request.",
    "the constraints": lambda core, checks, text: " ".join(check.text for check in checks),
    "what they require": lambda core, checks, text: " ".join(
        word for check in checks for word in (*check.demands.required, *check.demands.required_words)
    ),
    "a sentence again and again": lambda core, checks, text: f"It is about {core.subject}. " * 6,
    "a word again and again": lambda core, checks, text: f"{core.related[0]} " * 40,
    "another language": lambda core, checks, text: (
        f"Me gusta mucho {core.subject} porque la vida es bella y el mundo es grande para todos."
    ),
    "every subject": lambda core, checks, text: (
        f"I like {' and '.join(sorted({other.subject for other in cores()}))[:4000]}."
    ),
    "another subject": lambda core, checks, text: (
        "Let me tell you about my uncle's bassoon. It is a fine thing that he plays on quiet days, "
        "and it costs him nothing at all!"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TRIES)
def test_tries_at_the_judge(composed, name):
    english = [row for row in composed if row[1].language == "en"][::30]
    checks_of = [read_request(prompt.instruction).constraints for _, _, prompt in english]
    scores = [
        Checks().score(prompt, TRIES[name](core, checks, prompt.instruction), True).score
        for (_, core, prompt), checks in zip(english, checks_of, strict=True)
    ]
    assert statistics.mean(scores) <= 0.1, statistics.mean(scores)


def test_the_parts_and_their_weights():
    prompt = Instruction(f"{CORE} Use at most 40 words. Do not use any commas.")
    half = Checks().score(prompt, f"{POND}, they say.", True)
    assert half.parts["met"] == 0.5 and half.parts["met_degree"] == 0.75
    assert half.score == pytest.approx(0.375)
    assert set(half.parts) == {
        "met", "met_degree", "all_met", "stops", "no_loop", "on_subject", "own_words",
    }  # fmt: skip
    lenient = Checks(ChecksWeights(met_degree=1.0, all_met=0.0, stops=1.0))
    assert lenient.score(prompt, f"{POND}, they say.", False).score == pytest.approx(0.75)


@pytest.mark.parametrize(
    "text", ["x", "\x00", "「", "((((", "*" * 3000, "1." * 2000, "a b " * 1500, "<<" * 999]
)
def test_any_text_is_scored_in_bounds(text):
    for name, arguments, *_ in EXAMPLES:
        scores = Checks().score(prompt_of(name, arguments), text, True)
        assert 0 <= scores.score <= 0.1 and all(0 <= part <= 1 for part in scores.parts.values())


def test_the_nearer_the_better():
    """The degree rises as an answer comes nearer to what was asked."""
    lines = re.split(r"(?<=\.) ", LONG)
    for name, arguments, answers in (
        ("sentences_exactly", {"n": "1"}, [" ".join(lines[:n]) for n in (4, 3, 2, 1)]),
        ("words_at_least", {"n": "60"}, [" ".join(lines[:n]) for n in (1, 2, 3, 5)]),
        ("words_at_most", {"n": "12"}, [" ".join(lines[:n]) for n in (5, 3, 2, 1)]),
        ("no_commas", {}, [LONG.replace(" and", ", and"), LONG, POND]),
    ):
        prompt = prompt_of(name, arguments)
        degrees = [Checks().verdict(prompt, answer, True).results[0].degree for answer in answers]
        assert degrees == sorted(set(degrees)), name
