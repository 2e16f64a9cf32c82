"""Drafts that are edited until they meet the constraints of their prompts."""

import random

import pytest

from alpaca_rlhf.checks import (
    KINDS,
    Checks,
    compatible,
    compose,
    cores,
    read_request,
    write_template,
)
from alpaca_rlhf.checks.editing import draft_request, edit_draft
from alpaca_rlhf.checks.text import sentences_of, words_of
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data.generation.answers import AnswersRecipe
from alpaca_rlhf.data.generation.recipe import GenerationRequest
from alpaca_rlhf.data.generation.teachers import Reply
from alpaca_rlhf.settings import Generate, Inputs, Loop

CORE = next(core for core in cores() if core.genre == "describe" and core.language == "en")
DRAFT = (
    f"Sure! Here is **{CORE.subject}**:\n"
    f"Everybody who thinks of {CORE.subject} remembers one calm Tuesday, very likely.\n"
    f"1. There was {CORE.related[0]} in the room, and a little {CORE.related[1]} beside it!\n"
    f"2. Some say that people love it because of the {CORE.related[2]} and the quiet hours.\n"
    "- Many of them come back with a friend, a book or a flask of tea.\n\n"
    "In 1984 the first 12 of them met at 7 in the evening for a long talk.\n"
    f"A good hour of work goes by before anybody asks about the {CORE.related[3]} again.\n"
    "Slowly the light changes while grey clouds move across from the far hills.\n"
    "Nobody would call that a waste of a happy and busy day.\n"
    "They were about to leave when the"
)
ARGUMENTS = {
    "n": "3",
    "letter": "h",
    "word": CORE.related[1],
    "words": "|".join(CORE.related[1:3]),
    "phrase": "The truth is",
}
TRAINED = [kind for kind in KINDS.values() if not kind.held_out]


def arguments_of(kind):
    """Arguments that suit a kind."""
    words = {"words": "title|summary"} if kind.name == "json" else {}
    n_words = {"words_at_most": "25", "words_at_least": "50"}.get(kind.name)
    return {**ARGUMENTS, **words, **({"n": n_words} if n_words else {})}


def prompt_of(kind):
    arguments = arguments_of(kind)
    text = write_template(kind.english[0], arguments, in_words=False)
    return Instruction(f"{CORE.text} {text}", "", None, "checks")


@pytest.mark.parametrize("kind", TRAINED, ids=lambda kind: kind.name)
def test_an_edited_draft_meets_each_trained_kind(kind):
    prompt = prompt_of(kind)
    edited = edit_draft(prompt, DRAFT)
    assert Checks().score(prompt, edited, True).parts["all_met"] == 1, edited
    assert Checks().score(prompt, edited, True).score >= 0.6, edited
    assert edited == edit_draft(prompt, DRAFT)
    assert "about to leave" not in edited, "a sentence that was cut is left out"


def test_composed_prompts_are_mostly_met_and_a_plain_draft_is_not():
    rng, judge = random.Random(3), Checks()
    prompts = [compose(CORE, rng) for _ in range(150)]
    met = [judge.score(p, edit_draft(p, DRAFT), True).parts["all_met"] for p in prompts]
    unedited = [judge.score(p, DRAFT, True).parts["all_met"] for p in prompts]
    assert sum(met) >= 0.8 * len(prompts) > 2 * sum(unedited)
    # One that is not met scores low, so that the judge drops it.
    for prompt, all_met in zip(prompts, met, strict=True):
        assert all_met or judge.score(prompt, edit_draft(prompt, DRAFT), True).score < 0.6


def test_the_content_is_the_draft_s_own():
    known = {word.lower() for word in words_of(DRAFT)}
    for name in ("bullets", "no_commas", "starred", "two_answers", "paragraphs", "upper_case"):
        edited = edit_draft(prompt_of(KINDS[name]), DRAFT)
        assert {word.lower() for word in words_of(edited)} <= known, name


def test_a_draft_without_a_whole_sentence_gives_nothing():
    for draft in ("", "   ", "a list, and", "Sure!", "so " * 40):
        assert edit_draft(prompt_of(KINDS["title"]), draft) == ""


def test_repeated_sentences_stand_once():
    prompt = prompt_of(KINDS["sentences_at_least"])
    loop = f"Everybody thinks of {CORE.subject} today. " * 9
    assert len(sentences_of(edit_draft(prompt, loop))) == 1


def test_a_draft_is_asked_for_without_what_editing_can_meet():
    bullets = write_template(KINDS["bullets"].english[0], {"n": "3"}, in_words=False)
    digits = write_template(KINDS["has_digits"].english[0], {"n": "2"}, in_words=False)
    prompt = Instruction(f"{CORE.text} {bullets} {digits}")
    assert len(read_request(prompt.instruction).constraints) == 2
    assert draft_request(prompt) == f"{CORE.text} {digits}"


def test_chinese_is_asked_for_and_kept_as_it_is():
    core = next(core for core in cores() if core.language == "zh")
    prompt = compose(core, random.Random(1))
    assert draft_request(prompt) == prompt.instruction
    assert edit_draft(prompt, "一句话。") == "一句话。"


def test_the_recipe_asks_for_drafts_and_keeps_the_whole_prompt():
    prompt = prompt_of(KINDS["bullets"])
    recipe = AnswersRecipe([prompt], attempts=1, editing=True)
    [ask] = recipe.phase(0)
    assert ask == GenerationRequest("reply", CORE.text, prompt)
    [row], drops = recipe.read(ask, Reply(DRAFT, "length", 128))
    assert not drops and row.instruction == prompt.instruction
    assert row.output is not None and row.output.count("\n- ") == 2
    rows, [drop] = recipe.read(ask, Reply("Sure!", "eos", 2))
    assert not rows and drop.rule == "empty"


def test_prompts_that_differ_in_constraints_share_a_draft():
    bullets, title = prompt_of(KINDS["bullets"]), prompt_of(KINDS["title"])
    other_core = next(core for core in cores() if core.language == "en" and core != CORE)
    alone = Instruction(f"{other_core.text} Answer in exactly two sentences.")
    recipe = AnswersRecipe([bullets, alone, title], attempts=2, editing=True)
    shared, single = recipe.phase(0)
    assert shared == GenerationRequest("reply", CORE.text, bullets, (title,))
    assert (single.about, single.siblings) == (alone, ())
    rows, drops = recipe.read(shared, Reply(DRAFT, "eos", 90))
    assert [row.instruction for row in rows] == [bullets.instruction, title.instruction]
    first, second = (row.output or "" for row in rows)
    assert not drops and first.count("\n- ") == 2 and second.startswith("<<")
    # What is accepted leaves; its sibling is asked for again, with the next draft.
    recipe.learn(shared, Reply(DRAFT, "eos", 90), rows[:1])
    recipe.learn(single, Reply("", "eos", 0), [])
    assert recipe.phase(2) == [
        GenerationRequest("reply", single.prompt, alone),
        GenerationRequest("reply", CORE.text, title),
    ]


def test_editing_is_for_checks_and_the_recipe_answers():
    with pytest.raises(ValueError, match=r"--generate.edit: only the recipe `answers`"):
        Generate(edit=True)
    with pytest.raises(
        ValueError, match=r"drafts are edited for .*`checks` alone; give --generate"
    ):
        Loop(inputs=Inputs(judge="gold"), generate=Generate(recipe="answers", edit=True))


def test_pairs_of_kinds_are_met_together_where_they_go_together():
    judge, misses, tried = Checks(), [], 0
    for i, first in enumerate(TRAINED):
        for second in TRAINED[i + 1 :]:
            texts = [
                write_template(kind.english[0], arguments_of(kind), in_words=False)
                for kind in (first, second)
            ]
            prompt = Instruction(f"{CORE.text} {' '.join(texts)}")
            if not compatible(read_request(prompt.instruction).constraints):
                continue
            tried += 1
            if not judge.score(prompt, edit_draft(prompt, DRAFT), True).parts["all_met"]:
                misses.append((first.name, second.name))
    assert tried > 200 and len(misses) <= 0.2 * tried, (tried, misses)
