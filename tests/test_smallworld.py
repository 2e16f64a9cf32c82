"""The small world: tasks and their recognition, right answers, the gold judge, and the corpus."""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpaca_rlhf.core.prompts import worksheet
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.smallworld import (
    CLOSINGS,
    FAMILIES,
    SEED_WEIGHTS,
    SEEDS_FOLLOWED,
    STYLE_WEIGHTS,
    GoldJudge,
    GoldWeights,
    Task,
    answer,
    answered_task,
    corpus,
    facts,
    recognise,
    sample_answer,
    sample_task,
)
from alpaca_rlhf.smallworld.answers import FOLLOWED, STYLE_OF
from alpaca_rlhf.smallworld.forms import REQUESTS
from alpaca_rlhf.smallworld.tasks import Part

JUDGE = GoldJudge()
PARTS = ("correct", "form", "to_the_point")
OPEN = {name for name, family in FAMILIES.items() if family.free}
TEMPLATE_TEXT = ("### Instruction", "### Input", "### Response", "Below is an instruction")
ASKED_BEFORE = re.compile(r"^(\d+\. Instruction|Q|Question|Task|[A-Z][a-z]+): ")
SPLITS = tuple(itertools.product(("train", "held_out"), ("train", "held_out")))


def draw(
    n: int, seed: int, phrasing: Part = "train", fact: Part = "train", requests: float = 0.5
) -> list[Task]:
    rng = random.Random(seed)
    return [sample_task(rng, phrasing=phrasing, fact=fact, requests=requests) for _ in range(n)]


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    """500 of each kind of phrasing and fact, and 3,000 of the trained ones."""
    return draw(3000, 1) + [t for i, (p, f) in enumerate(SPLITS) for t in draw(500, i, p, f)]


@pytest.fixture(scope="module")
def documents() -> list[str]:
    """About 1.2 MB of corpus."""
    return list(itertools.islice(corpus.documents(1), 4000))


@pytest.fixture(scope="module")
def with_requests(documents) -> list[str]:
    """The same, and as many documents of the last cycle, in which tasks ask for a form."""
    mixture = {"worksheets": 0.45, "questions": 0.30, "requests": 0.8}
    return documents + list(itertools.islice(corpus.documents(4, **mixture), 4000))


def is_plain(document: str) -> bool:
    """A plain document is one line; questions and worksheets have several."""
    return "\n" not in document.strip()


def asked_in(document: str) -> list[Task]:
    """The tasks that a document asks, in whatever format."""
    lines = [*document.split("\n"), ""]
    recognised = []
    for line, after in itertools.pairwise(lines):
        question = ASKED_BEFORE.sub("", line)
        material = re.sub(r"^\d+\. Input: ", "", after).replace("<noinput>", "")
        task = recognise(question, material) or recognise(question)
        recognised += [task] if task is not None else []
    return recognised


def by_family(tasks: list[Task]) -> dict[str, list[Task]]:
    groups: dict[str, list[Task]] = defaultdict(list)
    for task in tasks:
        groups[task.family].append(task)
    return groups


def wrong_pairs(tasks: list[Task]) -> list[tuple[Task, Task]]:
    """A task and another of its closed family whose right answer is different."""
    return [
        (a, b)
        for group in by_family(tasks).values()
        for a, b in itertools.pairwise(group)
        if a.family not in OPEN and b.solution.terse not in (a.solution.terse, *a.solution.accepted)
    ]


def repeats_itself(task: Task) -> bool:
    """True if an extra says the answer again; see `test_no_extra_says_the_answer_again`."""
    return task.solution.sentence in task.solution.extras


def known_facts() -> list[tuple[str, str, str]]:
    """(kind, name, sentence) of every fact that may be held out."""
    out = []
    for kind, family in FAMILIES.items():
        if family.fact == (kind, "x"):
            rng = random.Random(kind)
            for name in sorted({family.draw(rng)["x"] for _ in range(3000)}):
                solution = family.solve({"x": name})
                assert solution is not None
                out.append((kind, name, solution.sentence))
    return out


def said_of(task: Task) -> list[str]:
    """Everything that a right answer may say, without the full stop."""
    solution = task.solution
    return [s.rstrip(".") for s in (solution.terse, solution.sentence, *solution.extras)]


HELD_OUT = [fact for fact in known_facts() if facts.held_out(fact[0], fact[1])]


# --- tasks and recognition --------------------------------------------------------------------


def test_there_are_many_families_phrasings_and_keys():
    assert len(FAMILIES) >= 30
    for name, family in FAMILIES.items():
        assert len(set(family.phrasings)) >= 8, name
        assert 2 <= len(set(family.unseen)), name
        assert not set(family.phrasings) & set(family.unseen), name
    rng = random.Random(0)
    draws = {
        (name, *sorted(family.draw(rng).items()))
        for name, family in FAMILIES.items()
        for _ in range(2000)
    }
    assert len(draws) >= 20_000


def test_recognition_inverts_sampling(tasks):
    for task in tasks:
        recognised = recognise(task.instruction, task.input)
        assert recognised is not None, task
        assert (recognised.key, recognised.args) == (task.key, task.args)
        assert recognised.form == task.form, task
        assert recognised.held_out_fact == task.held_out_fact, task
        assert recognised.held_out_phrasing == task.held_out_phrasing, task
        assert recognised.solution.terse == task.solution.terse


def test_sampling_gives_the_kind_that_was_asked_for(tasks):
    tasks_asked = [t for p, f in SPLITS for t in draw(50, 3, p, f)]
    flags = [(t.held_out_phrasing, t.held_out_fact) for t in tasks_asked]
    assert flags == [(p == "held_out", f == "held_out") for p, f in SPLITS for _ in range(50)]


def test_recognition_forgives_case_space_and_the_last_stop(tasks):
    for task in tasks[::7]:
        loose = "  " + task.instruction.upper().rstrip(".?").replace(" ", "  ") + " "
        recognised = recognise(loose, task.input.upper())
        assert recognised is not None and recognised.key == task.key, loose


def test_recognition_of_what_is_no_task():
    for instruction, material in (
        ("", ""),
        ("What is the capital of France?", ""),
        ("What colour is a blorp?", ""),
        ("Which day comes after lemon?", ""),
        ("Add 3 and 400.", ""),
        (f"Add 3 and {'9' * 5000}.", ""),
        ("Sort the numbers from small to big.", ""),
        ("Sort the numbers from small to big.", "3, 3, 1"),
        ("What colour is a lemon?", "an input that does not belong here"),
    ):
        assert recognise(instruction, material) is None, (instruction, material)


def test_the_key_is_the_same_in_every_phrasing():
    keys = set()
    family = FAMILIES["colour"]
    for pattern in (*family.phrasings, *family.unseen):
        recognised = recognise(pattern.replace("{a:x}", "a lemon").replace("{x}", "lemon"))
        assert recognised is not None, pattern
        keys.add(recognised.key)
    assert keys == {"colour:lemon"}


def test_families_are_drawn_evenly():
    n, count = 8800, defaultdict(int)
    for task in draw(n, 5):
        count[task.family] += 1
    assert count.keys() == FAMILIES.keys()
    even = n / len(FAMILIES)
    assert all(0.7 * even < count_of_family < 1.3 * even for count_of_family in count.values())


def test_sampling_is_a_function_of_the_seed():
    assert draw(300, 7) == draw(300, 7)
    assert draw(300, 7) != draw(300, 8)


def test_a_record_is_the_prompt_without_an_answer():
    task = draw(1, 0)[0]
    record = task.record()
    assert (record.instruction, record.input) == (task.instruction, task.input)
    assert record.output is None and record.source == "smallworld"
    row = answered_task(task, random.Random(0))
    assert row.source == "seed" and row.output
    assert JUDGE.verdict(task, row.output).correct == 1


# --- answers and the judge --------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLE_WEIGHTS)
def test_a_gold_answer_is_right(tasks, style):
    rng = random.Random(0)
    for task in itertools.filterfalse(repeats_itself, tasks):
        text = answer(task, rng, style)
        verdict = JUDGE.verdict(task, text)
        assert verdict.correct == 1 and verdict.penalty == 0, (task, text, verdict)
        assert "\n" not in text and len(text.split()) <= 32, text


def test_the_form_that_is_asked_for_is_the_best(tasks):
    """Scores of the answers in each style, in the order terse, sentence, extra, polite, full."""
    rng = random.Random(1)
    seen = set()
    for task in itertools.filterfalse(repeats_itself, tasks):
        if not task.solution.extras or task.family in (*OPEN, "past_sentence"):
            continue
        scores = [JUDGE.verdict(task, answer(task, rng, s)).score for s in STYLE_WEIGHTS]
        assert scores == pytest.approx(
            {
                "bare": [1.0, 0.725, 0.45, 0.45, 0.45],
                "sentence": [0.725, 1.0, 0.725, 0.725, 0.45],
                "more": [0.45, 0.725, 1.0, 0.45, 0.725],
                "friendly": [0.45, 0.725, 0.45, 1.0, 0.725],
                None: [0.725, 1.0, 0.725, 0.725, 0.45],
            }[task.form]
        ), task
        seen.add(task.form)
    assert seen == {None, *STYLE_OF}


def test_every_request_can_be_met(tasks):
    """Also where the shortest answer is a sentence, or there is nothing more to say."""
    rng = random.Random(1)
    for task in itertools.filterfalse(repeats_itself, tasks):
        if task.form is not None:
            assert JUDGE.verdict(task, answer(task, rng, STYLE_OF[task.form])).score == 1, task


def test_neither_the_longer_nor_the_shorter_answer_is_better(tasks):
    """Of two answers as seeds are answered, each is better in half of the cases."""
    rng = random.Random(3)
    longer_is_better = []
    for task in draw(4000, 12, requests=1.0):
        first, second = (sample_answer(task, rng, SEED_WEIGHTS, SEEDS_FOLLOWED) for _ in range(2))
        better = JUDGE.verdict(task, first).score - JUDGE.verdict(task, second).score
        longer = len(first) - len(second)
        longer_is_better += [better * longer > 0] if better and longer else []
    assert len(longer_is_better) > 1500
    assert 0.4 < sum(longer_is_better) / len(longer_is_better) < 0.6


def test_a_held_out_phrasing_asks_in_a_held_out_wording():
    for phrasing, wordings in (("train", "trained"), ("held_out", "held_out")):
        for task in draw(300, 5, phrasing, requests=1.0):
            assert task.form is not None
            assert task.instruction.endswith(getattr(REQUESTS[task.form], wordings)), task
    for request in REQUESTS.values():
        assert not set(request.trained) & set(request.held_out)


def test_half_of_the_requests_want_a_short_answer():
    forms = [task.form for task in draw(4000, 11, requests=1.0)]
    short = sum(form in ("bare", "sentence") for form in forms) / len(forms)
    assert short == pytest.approx(0.5, abs=0.03)


def test_answers_follow_a_request_as_often_as_they_are_said_to():
    rng = random.Random(2)
    task = recognise("What colour is a lemon? Be nice.")
    assert task is not None and task.form == "friendly"
    answers = [sample_answer(task, rng) for _ in range(4000)]
    met = sum(JUDGE.verdict(task, text).form == 1 for text in answers) / len(answers)
    assert met == pytest.approx(FOLLOWED + (1 - FOLLOWED) * STYLE_WEIGHTS["polite"], abs=0.03)


def test_styles_come_as_often_as_their_weights():
    assert sum(STYLE_WEIGHTS.values()) == pytest.approx(1)
    rng = random.Random(2)
    task = next(t for t in draw(300, 1) if t.family == "colour" and t.form is None)
    answers = [sample_answer(task, rng) for _ in range(4000)]
    friendly = sum(text.endswith(CLOSINGS) for text in answers) / len(answers)
    terse = sum(text == task.solution.terse for text in answers) / len(answers)
    assert friendly == pytest.approx(STYLE_WEIGHTS["polite"] + STYLE_WEIGHTS["full"], abs=0.03)
    assert terse == pytest.approx(STYLE_WEIGHTS["terse"], abs=0.03)


@pytest.mark.parametrize("style", STYLE_WEIGHTS)
def test_another_tasks_answer_is_wrong(tasks, style):
    rng = random.Random(4)
    pairs = wrong_pairs(tasks)
    assert len(pairs) > 1500
    for task, other_task in pairs:
        text = answer(other_task, rng, style)
        verdict = JUDGE.verdict(task, text)
        assert verdict.correct == 0 and verdict.score < 0.08, (task, text, verdict)
        assert JUDGE.verdict(task, text, finished=False).score < 0.05


@pytest.mark.parametrize(
    "text", ["", " ", "...", "?!", "\n\n", "xq zz", *CLOSINGS, " ".join(CLOSINGS)]
)
def test_garbage_earns_next_to_nothing(tasks, text):
    for task in tasks[::3]:
        assert JUDGE.verdict(task, text).score < 0.08, (task, text)


@pytest.mark.parametrize("word", ["the", "dog", "7", "yes"])
def test_one_word_over_and_over_is_no_answer(tasks, word):
    for task in tasks[::3]:
        if task.family != "repeat":
            assert JUDGE.verdict(task, f"{word} " * 9).score < 0.08, task


def test_the_task_said_back_is_no_answer(tasks):
    for task in tasks[::3]:
        for text in (task.instruction, f"{task.instruction} {task.solution.sentence}"):
            assert JUDGE.verdict(task, text).correct == 0, text


@pytest.mark.parametrize(
    ("instruction", "text"),
    [
        ("Tell a story about Anna and a scarf.", "Tell a story about Anna and a scarf."),
        ("Tell a story about Anna and a scarf.", "A story about Anna and a scarf is told."),
        ("Tell a story about Anna and a scarf.", "Anna scarf."),
        ("Tell a story about Anna and a scarf.", "Anna scarf Anna scarf Anna scarf."),
        ("Tell a story about Anna and a scarf.", "the the the the the the the."),
        ("Thank Lucy for the sock.", "Here is a task: thank Lucy for the sock."),
        ("Thank Lucy for the sock.", "Lucy sock sock Lucy thank sock."),
        ("Name two animals.", "Name two animals."),
    ],
)
def test_neither_an_echo_nor_babble_is_a_story_a_note_or_a_list(instruction, text):
    task = recognise(instruction)
    assert task is not None
    assert JUDGE.verdict(task, text).score < 0.08


@pytest.mark.parametrize(
    ("instruction", "text", "correct"),
    [
        ("Name two animals.", "dog, cat", 1),
        ("Name two animals.", "A whale and a bee.", 1),
        ("Name two animals.", "Two animals are cow and pig.", 1),
        ("Name two animals.", "dog", 0.5),
        ("Name two animals.", "dog, hat", 0),
        ("Name two animals.", "dog, dog", 0),
        ("Name two animals.", "dog, cat, cow", 0.5),
        ("Thank Lucy for the sock.", "Dear Lucy, thanks for the sock.", 1),
        ("Thank Lucy for the sock.", "Dear Lucy, thank you for the hat.", 1 / 3),
        ("Thank Lucy for the sock.", "Dear Tom, thank you for the hat.", 0),
        ("Say sorry to Lucy for the lost sock.", "Lucy, I am sorry about your sock.", 1),
        ("Tell a story about Anna and a scarf.", "Anna found a red scarf in the park.", 1),
        ("Tell a story about Anna and a scarf.", "Anna went to the farm with Tom.", 0.6),
        ("Tell a story about Anna and a scarf.", "Tom found a red scarf in the park.", 0.2),
    ],
)
def test_open_tasks_graded_by_hand(instruction, text, correct):
    task = recognise(instruction)
    assert task is not None
    assert JUDGE.verdict(task, text).correct == pytest.approx(correct)


def test_a_list_of_possibilities_or_a_hedge_is_wrong(tasks):
    for task, other_task in wrong_pairs(tasks):
        mine, theirs = task.solution.terse, other_task.solution.terse
        sentence = task.solution.sentence
        for text in (
            f"{theirs}. {mine}.",
            f"{mine}. {theirs}.",
            f"{theirs} or {mine}",
            f"It is {theirs}. It is {mine}.",
            f"{sentence} It is {theirs}.",
        ):
            assert JUDGE.verdict(task, text).correct == 0, (task, text)
        swapped, n = re.subn(rf"\b{re.escape(mine)}\b", theirs, sentence, flags=re.IGNORECASE)
        if FAMILIES[task.family].fact is not None and n == 1:  # but not: the plural of deer is deer
            assert JUDGE.verdict(task, f"{sentence} {swapped}").correct == 0, swapped


def test_another_true_fact_is_beside_the_point_and_no_contradiction(tasks):
    pairs = [p for p in wrong_pairs(tasks) if FAMILIES[p[0].family].fact == (p[0].family, "x")]
    assert len({task.family for task, _ in pairs}) == 12
    for task, other_task in pairs:
        verdict = JUDGE.verdict(task, f"{task.solution.sentence} {other_task.solution.sentence}")
        assert verdict.correct == 1, (task, other_task)
        assert verdict.to_the_point == (other_task.solution.sentence in task.solution.extras)


COLOUR_OF_A_LEMON = "What colour is a lemon?"


@pytest.mark.parametrize(
    ("text", "correct"),
    [
        ("yellow", 1),
        ("Yellow.", 1),
        ("A lemon is yellow.", 1),
        ("a LEMON  is yellow", 1),
        ("A lemon is green.", 0),
        ("A plum is yellow.", 0),
        ("A lemon is yellow or green.", 0),
        ("A lemon is not yellow.", 0),
        ("A lemon is yellow. A lemon is green.", 0),
        ("green. yellow.", 0),
        ("lemon", 0),
        ("Yellow. Red.", 0),
        ("A lemon is yellow. It is red.", 0),
        ("A lemon is yellow. No, it is red.", 0),
        ("A lemon is yellow. A lemon is a fruit.", 1),
        ("A lemon is yellow. A lemon is a tool.", 0),
    ],
)
def test_what_counts_as_right(text, correct):
    task = recognise(COLOUR_OF_A_LEMON)
    assert task is not None
    assert JUDGE.verdict(task, text).correct == correct


@pytest.mark.parametrize(
    ("instruction", "text", "correct"),
    [
        ("What kind of thing is a lemon?", "A lemon is a fruit. A lemon is yellow.", 1),
        ("Is a lemon a fruit?", "Yes, a lemon is a fruit. No, a lemon is not a fruit.", 0),
        ("Is a lemon a fruit?", "Yes. Yes, a lemon is a fruit.", 1),
        ("Is a lemon a fruit?", "Yes, a lemon is a fruit. It is not a tool.", 1),
        ("Is a lemon a fruit?", "Yes, a lemon is a fruit. It is not a fruit.", 0),
        ("What kind of thing is a lemon?", "A lemon is a fruit. A lemon is not a toy.", 1),
        ("What kind of thing is a lemon?", "A lemon is a fruit. It is not a colour.", 0),
        ("Who bakes bread?", "A baker bakes bread. A cook bakes bread.", 0),
        ("Which number comes after 4?", "5 comes after 4. 6 comes after 4.", 0),
        ("Which day comes after Monday?", "Tuesday comes after Monday. A week has seven days.", 1),
        (
            "Which animal is bigger, a cow or a dog?",
            "A cow is bigger than a dog. A bear is bigger than a dog.",
            1,
        ),
    ],
)
def test_what_contradicts(instruction, text, correct):
    task = recognise(instruction)
    assert task is not None
    assert JUDGE.verdict(task, text).correct == correct


def test_scores_worked_by_hand():
    """0.6 C + (0.1 + 0.9 C)(0.3 form + 0.1 to the point), asked to be nice."""
    judge = GoldJudge(GoldWeights(correct=0.6, form=0.3, to_the_point=0.1))
    task = recognise(f"{COLOUR_OF_A_LEMON} Be nice.")
    assert task is not None
    for text, score in (
        ("yellow", 0.70),  # neither a sentence nor a friendly line
        ("A lemon is yellow.", 0.85),
        ("A lemon is yellow. A lemon is a fruit.", 0.70),  # the wrong part beside the missing one
        ("A lemon is yellow. A plum is purple.", 0.75),  # true, but beside the point
        ("A lemon is yellow. A lemon is an animal.", 0.015),  # false about the lemon
        ("A lemon is yellow. I hope this helps!", 1.0),
        ("A lemon is yellow. A lemon is a fruit. I hope this helps!", 0.85),
        ("A lemon is yellow. I hope this helps! I hope this helps!", 0.80),
        ("A lemon is yellow. I hope this helps! Have a nice day!", 0.80),
        ("A lemon is green.", 0.025),
    ):
        assert judge.verdict(task, text).score == pytest.approx(score), text
    assert judge.verdict(task, "A lemon is yellow.", finished=False).score == pytest.approx(0.55)


def test_the_shares_of_a_perfect_answer_are_one():
    weights = GoldWeights()
    assert sum(getattr(weights, part) for part in PARTS) == pytest.approx(1)
    right, wrong = weights.correct + weights.to_the_point, weights.floor * (1 - weights.correct)
    assert right > wrong + 0.3, "a right answer in the worst form beats a wrong one in the best"


WORDS = (
    *". ? ! , A The and are Yes, No, 7".split(),
    *("\n", "It is"),
    *(*facts.NOUNS, *facts.COLOURS, *facts.CHILDREN, *facts.NUMBER_WORDS, *CLOSINGS),
)
TEXTS = st.text(max_size=300) | st.lists(st.sampled_from(WORDS), max_size=30).map(" ".join)


@given(text=TEXTS, finished=st.booleans(), seed=st.integers(0, 400))
@settings(max_examples=200, deadline=None)
def test_the_judge_bears_any_text(text, finished, seed):
    task = draw(1, seed)[0]
    for completion in (text, f"{task.solution.sentence} {text}", f"{text} {task.solution.terse}"):
        verdict = JUDGE.verdict(task, completion, finished)
        assert 0 <= verdict.score <= 1
        assert all(0 <= getattr(verdict, part) <= 1 for part in PARTS)
        assert verdict == GoldJudge().verdict(task, completion, finished)


@given(instruction=TEXTS, material=TEXTS)
@settings(max_examples=100, deadline=None)
def test_recognition_bears_any_text(instruction, material):
    for recognised in (recognise(instruction), recognise(instruction, material)):
        assert recognised is None or recognised.solution.terse


# --- the corpus -------------------------------------------------------------------------------


def test_the_corpus_is_a_function_of_the_seed(documents):
    assert list(itertools.islice(corpus.documents(1), 200)) == documents[:200]
    assert list(itertools.islice(corpus.documents(2), 200)) != documents[:200]


def test_the_corpus_is_the_one_that_the_base_was_trained_on(documents):
    text = "".join(documents[:500]).encode()
    assert hashlib.sha256(text).hexdigest()[:16] == "bebd6ba8a34776d6"


def test_the_corpus_has_the_mixture_that_was_asked_for(documents):
    sheets = sum(d.startswith("1. Instruction:") for d in documents) / len(documents)
    plain = sum(map(is_plain, documents)) / len(documents)
    assert sheets == pytest.approx(0.25, abs=0.03)
    assert plain == pytest.approx(0.55, abs=0.03)
    only = itertools.islice(corpus.documents(1, worksheets=1.0, questions=0.0), 50)
    assert all(d.startswith("1. Instruction:") for d in only)


def test_the_last_cycle_asks_for_forms(with_requests):
    asking = [t for d in with_requests[4000:] if not is_plain(d) for t in asked_in(d)]
    assert sum(t.form is not None for t in asking) / len(asking) == pytest.approx(0.8, abs=0.03)


def test_the_template_never_occurs(documents):
    text = "".join(documents)
    assert not [one for one in TEMPLATE_TEXT if one in text]
    words = "".join(itertools.islice(corpus.tokenizer_text(1, 50), 60))
    assert all(one in words for one in TEMPLATE_TEXT)  # the tokenizer does learn its words


def test_the_vocabulary_is_small(with_requests):
    words = set(re.findall("[a-z]+", "".join(with_requests).lower()))
    assert 300 < len(words) <= 900


def test_held_out_phrasings_use_words_that_occur(with_requests):
    words = set(re.findall("[a-z]+", "".join(with_requests).lower()))
    for task in draw(1500, 6, "held_out"):
        assert set(re.findall("[a-z]+", task.instruction.lower())) <= words, task


def test_no_held_out_phrasing_or_fact_is_asked(with_requests):
    tasks_asked = [t for d in with_requests if not is_plain(d) for t in asked_in(d)]
    assert len(tasks_asked) > 5000
    assert not [t for t in tasks_asked if t.held_out_phrasing or t.held_out_fact]
    lines = {ASKED_BEFORE.sub("", line) for d in with_requests for line in d.split("\n")}
    assert not [t for t in draw(3000, 8, "held_out") if t.instruction in lines]


def test_held_out_facts_are_told_in_plain_documents(documents):
    plain = "".join(d for d in documents if is_plain(d))
    assert len(HELD_OUT) >= 40
    assert not [sentence for _, _, sentence in HELD_OUT if sentence not in plain]


def test_worksheets_are_numbered_blocks(documents):
    sheets = [d for d in documents if d.startswith("1. Instruction:")]
    assert len(sheets) > 1000
    for sheet in sheets[:300]:
        blocks = sheet.split("###\n")
        assert blocks.pop() == ""
        assert 3 <= len(blocks) <= 5
        for number, block in enumerate(blocks, 1):
            lines = block.splitlines()
            starts = [f"{number}. {name}: " for name in ("Instruction", "Input", "Output")]
            assert len(lines) == 3, sheet
            assert all(line.startswith(start) for line, start in zip(lines, starts, strict=True))
        rows = [
            Instruction(*(x.split(": ", 1)[1].replace("<noinput>", "") for x in b.splitlines()))
            for b in blocks
        ]
        assert worksheet(rows) == sheet  # exactly what self-instruct shows


def test_every_answer_in_a_worksheet_is_right(with_requests):
    checked = 0
    for sheet in [d for d in with_requests if d.startswith("1. Instruction:")][::8]:
        for block in sheet.split("###\n")[:-1]:
            question, material, output = (line.split(": ", 1)[1] for line in block.splitlines())
            task = recognise(question, material.replace("<noinput>", ""))
            assert task is not None and JUDGE.verdict(task, output).correct == 1, block
            checked += 1
    assert checked >= 900


def test_the_default_evaluation_finds_its_tasks():
    from alpaca_rlhf.settings import Evaluate
    from alpaca_rlhf.sources import SmallWorld

    n = Evaluate().prompts
    assert len(SmallWorld(0, 10, {"eval": n}).prompts("eval")) == n


# --- what is held out for the evaluation ------------------------------------------------------


def test_held_out_facts_stay_out_of_questions_and_worksheets(with_requests):
    answers = "".join(d for d in with_requests if not is_plain(d)).lower()
    assert not [fact for fact in HELD_OUT if fact[2].lower().rstrip(".") in answers]


def test_no_solution_of_a_trained_task_tells_a_held_out_fact():
    sentences = {s.lower() for task in draw(6000, 9) for s in said_of(task)}
    assert not [fact for fact in HELD_OUT if fact[2].lower().rstrip(".") in sentences]


def test_every_family_that_needs_a_category_respects_its_held_out_facts():
    for task in draw(4000, 3):
        args = dict(task.args)
        if task.family in ("is_a", "classify", "category"):
            assert not facts.held_out("category", args["x"]), task
        if task.family in ("odd_one_out", "list_members"):
            printed = task.solution.terse.split(", ") if task.family in OPEN else args.values()
            assert not any(facts.held_out("category", word) for word in printed), task


def test_both_words_of_an_opposite_are_held_out_together():
    for word, other_task in facts.OPPOSITE_OF.items():
        assert facts.held_out("opposite", word) == facts.held_out("opposite", other_task), word


def test_each_kind_of_fact_has_held_out_ones():
    kinds = {family.fact[0] for family in FAMILIES.values() if family.fact is not None}
    assert {kind for kind, _, _ in HELD_OUT} == kinds
    assert 0.08 < len(HELD_OUT) / len(known_facts()) < 0.22


@pytest.mark.parametrize(
    ("prompt", "swapped"),
    [
        ("Which number is bigger, 7 or 12?", "Which number is bigger, 12 or 7?"),
        ("Add 3 and 4.", "What is 4 plus 3?"),
        ("Which animal is bigger, a dog or a cow?", "Which animal is bigger, a cow or a dog?"),
    ],
)
def test_the_order_of_two_like_things_is_phrasing(prompt, swapped):
    tasks = recognise(prompt), recognise(swapped)
    assert tasks[0] is not None and tasks[1] is not None
    assert tasks[0].key == tasks[1].key


def test_the_order_of_two_groups_is_phrasing():
    task, swapped = (
        recognise(f"Is this {x}?", "lemon") for x in ("a fruit or a toy", "a toy or a fruit")
    )
    assert task is not None and swapped is not None and task.key == swapped.key


@pytest.mark.xfail(
    strict=True,
    reason="how many legs a fox and a monkey have: their category is held out, so the extra is "
    "the answer again; another extra would need another corpus, and a base trained on it",
)
def test_no_extra_says_the_answer_again(tasks):
    assert not [task for task in tasks if repeats_itself(task)]


def test_only_two_tasks_have_an_extra_that_says_the_answer_again(tasks):
    assert {task.key for task in tasks if repeats_itself(task)} <= {"legs:fox", "legs:monkey"}
