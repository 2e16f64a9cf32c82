"""One test for each bug that research found in the originals and that this engine has mended.

Numbers are those of the list: self-instruct 0b26cca, stanford_alpaca 761dc5b, WizardLM cd4b4cc.
Bugs 9 (retries for ever) and 10 (`random.sample` of a set) have their tests with the teachers, and
below.
"""

from pathlib import Path

import pytest

from alpaca_rlhf.core.prompts import task_list_prompt, worksheet_prompt
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import (
    NoveltyIndex,
    Reply,
    drop_reason,
    generate,
    parse_worksheet,
    read_events,
    rule_set,
    tokens,
)
from alpaca_rlhf.data.generation.instances import is_classification, parse_instances, parse_tasks
from alpaca_rlhf.settings import Generate
from tests.generation import SEEDS, AnyTeacher, run

TASK = Instruction("Say which colour the thing has.")


def tasks(text: str, *, finished: bool = True) -> tuple[list[str], list[str]]:
    rows, drops = parse_tasks(text, 9, finished=finished)
    return [row.instruction for row in rows], [drop.rule for drop in drops]


def instances(
    text: str, *, output_first: bool = False, finished: bool = True
) -> tuple[list[tuple[str, str | None]], list[str]]:
    rows, drops = parse_instances(
        text, TASK, output_first=output_first, finished=finished, draw="1"
    )
    assert all(row.instruction == TASK.instruction for row in rows)
    return [(row.input, row.output) for row in rows], [drop.rule for drop in drops]


def block(number: int, output: str = "A jay.") -> str:
    fields = {"Instruction": f"Name bird {number}.", "Input": "<noinput>", "Output": output}
    return "".join(f"{number}. {name}: {text}\n" for name, text in fields.items()) + "###\n"


def test_bug_1_capital_letters_stay():
    """`capitalize()` made "nasa" of NASA."""
    assert tasks(" Explain to Ann what NASA does.\n10. say hello to Bob") == (
        ["Explain to Ann what NASA does.", "say hello to Bob"],
        [],
    )


def test_bug_2_a_heading_in_an_answer_cuts_no_row_and_loses_none():
    """Splitting at every `###` cut the row and dropped all that followed."""
    rows, drops = parse_worksheet(block(4, "# T\n### Section\nend") + block(5) + block(6), 4)
    assert [row.output for row in rows] == ["# T\n### Section\nend", "A jay.", "A jay."]
    assert not drops


def test_bug_2_an_example_or_a_label_inside_an_output_cuts_nothing():
    """Marks were looked for anywhere: "see Example 3" began an instance."""
    said = "As in Example 3, the Output: is red."
    assert instances(f"Example 1\nA rose\nOutput: {said}") == ([("A rose", said)], [])
    label = "Class label: red\nText: its Class label: is hidden"
    assert instances(label, output_first=True)[0] == [("Text: its Class label: is hidden", "red")]


def test_bug_3_no_number_inside_an_answer_ends_it():
    """The stop string "20." ended "in 2020.", and the cut row was kept."""
    rows, _ = parse_worksheet(block(4, "It was so in 2020.\n20. No.\nThe end."), 4)
    assert rows[0].output == "It was so in 2020.\n20. No.\nThe end."
    assert tasks(" Tell what happened in 2016.\n10. Count to 16. Then stop.")[0] == [
        "Tell what happened in 2016.",
        "Count to 16. Then stop.",
    ]
    inner = " Follow these steps:\n1. rise\n2. walk\n10. Sing."
    assert tasks(inner) == (["Follow these steps: 1. rise 2. walk", "Sing."], [])


def test_bug_3_a_reply_that_was_cut_loses_its_last_task_alone():
    """Self-Instruct threw the whole reply away; Alpaca kept the row that a stop string had cut."""
    text = " Name a bird you like.\n10. Name a fish you"
    assert tasks(text, finished=False) == (["Name a bird you like."], ["cut"])
    assert tasks(text + " like.\n\nAnd so on", finished=False)[1] == [], "a blank line ends it"
    two = "Example 1\nsky\nOutput: blue\nExample 2\ngrass\nOutput: gre"
    assert instances(two, finished=False) == ([("sky", "blue")], ["cut"])
    ended = two + "en\nTask: Another"
    assert instances(ended, finished=False) == ([("sky", "blue"), ("grass", "green")], [])


def test_bug_4_an_empty_output_never_passes_and_noinput_has_many_spellings():
    for name in ("self-instruct", "alpaca", "strict"):
        drop = drop_reason(Instruction("Name a bird you like.", "", " "), rule_set(name))
        assert drop is not None and drop.rule == "empty_output"
    assert instances("Example 1\nsky\nOutput:\nExample 2\nsea\nOutput: blue") == (
        [("sea", "blue")],
        ["empty"],
    )
    rows, _ = parse_worksheet(block(4).replace("<noinput>", "No input required."), 4)
    assert rows[0].input == ""
    assert instances("Example 1\nNone\nOutput: blue")[0] == [("", "blue")]


def test_bug_5_prompts_count_1_2_3_and_on():
    """Alpaca's prompt is numbered 1, 2, 3, 2, 3, 4, 5."""
    shown = [Instruction(f"Say {n}.", "", str(n)) for n in range(3)]
    heads = [line for line in worksheet_prompt(shown).splitlines() if "Instruction:" in line]
    assert [line.partition(".")[0] for line in heads] == ["1", "2", "3", "4"]
    lines = task_list_prompt([f"Task\nnumber {n}:" for n in range(8)]).splitlines()
    assert lines[1] == "1. Task number 0" and lines[-1] == "9."
    assert [line.partition(".")[0] for line in lines[1:]] == [str(n) for n in range(1, 10)]


@pytest.mark.parametrize(
    "text", ["请说出三种蓝色的东西。", "Назови три синих предмета.", "اذكر ثلاثة أشياء زرقاء."]
)
def test_bug_6_other_scripts_are_compared(text: str):
    """rouge_score sees no token there, so nothing was ever a duplicate."""
    assert tokens(text, "rouge") == []
    index = NoveltyIndex(0.7)
    index.add(text)
    assert index.duplicate(text) is not None
    assert tokens("Résumé", "rouge") == ["r", "sum"] and tokens("Résumé") == ["résumé"]


def test_bug_7_a_score_of_0_7_is_decided_as_rouge_score_does():
    """In floats 7 shared tokens of 9 and 11 are above 0.7, and 7 of 10 and 10 are not."""
    shared = "a b c d e f g"
    for first, second, duplicate in (
        (f"{shared} h i", f"{shared} p q r s", True),
        (f"{shared} h i j", f"{shared} p q r", False),
    ):
        index = NoveltyIndex(0.7)
        index.add(first)
        assert (index.duplicate(second) is not None) == duplicate


def test_bug_8_a_second_start_draws_what_the_first_would_have_drawn(tmp_path: Path):
    """`random.seed(42)` at each start showed the same seed tasks again; Alpaca's had no seed."""
    whole = AnyTeacher()
    run(tmp_path / "whole", "self-instruct", whole)

    class Tired(AnyTeacher):
        def complete(self, prompts, *, seed, first):
            if first >= 40:
                raise KeyboardInterrupt
            return super().complete(prompts, seed=seed, first=first)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parted", "self-instruct", Tired())
    rest = AnyTeacher()
    run(tmp_path / "parted", "self-instruct", rest)
    assert min(rest.prompts) >= 40, "nothing is asked twice"
    assert rest.prompts == {n: text for n, text in whole.prompts.items() if n in rest.prompts}
    assert len(set(whole.prompts.values())) == len(whole.prompts), "no two prompts are the same"


def test_bug_9_replies_that_were_paid_for_outlive_a_teacher_that_fails(tmp_path: Path):
    """After three tries the reply was None, and its rows were gone; others tried for ever."""

    class Fails(AnyTeacher):
        def complete(self, prompts, *, seed, first):
            replies = super().complete(prompts, seed=seed, first=first)
            if first == 8:
                stop = RuntimeError("401")
                stop.replies = replies[:3]  # type: ignore[attr-defined]
                raise stop
            return replies

    with pytest.raises(RuntimeError, match="401"):
        run(tmp_path, "alpaca", Fails())
    assert [event["request"] for _, event in read_events(tmp_path)] == list(range(11))
    rest = AnyTeacher()
    run(tmp_path, "alpaca", rest)
    assert min(rest.prompts) == 11


def test_bug_10_five_instances_are_drawn_from_a_list():
    """`random.sample` of a set is an error from Python 3.11 on, and had no fixed order before."""
    text = "\n".join(f"Example {n}\nthing {n}\nOutput: colour {n}" for n in range(1, 9))
    rows, rules = instances(text)
    assert len(rows) == 5 and rules == ["instances"] * 3
    assert rows == instances(text)[0] and rows == sorted(rows)


def test_bug_11_each_request_is_on_the_disk_before_the_next(tmp_path: Path):
    """WizardLM held all in memory until one dump at the end."""
    seen = []

    class Looks(AnyTeacher):
        def complete(self, prompts, *, seed, first):
            seen.append((first, sum(1 for _ in read_events(tmp_path))))
            return super().complete(prompts, seed=seed, first=first)

    run(tmp_path, "evol", Looks())
    assert len(seen) > 20 and all(first == written for first, written in seen)


def test_bug_11_a_failed_answer_is_never_a_row(tmp_path: Path):
    """Failures became answers that say None."""

    class Silent(AnyTeacher):
        def reply(self, prompt, rng):
            return Reply("", "length") if prompt.startswith("Below") else super().reply(prompt, rng)

    with pytest.raises(ValueError, match=r"0 of \d+ rows accepted"):
        generate(
            Silent(),
            SEEDS,
            Generate(target=5, recipe="evol", batch_size=4, max_requests=60),
            seed=1,
            folder=tmp_path,
        )


def test_bug_12_seeds_pass_no_filter(tmp_path: Path):
    """Alpaca's filters reject four of its own seeds: shown they are all the same."""
    bad = [Instruction("Draw it.", "", "A map."), Instruction("Write a program", "", "x")]
    teacher = AnyTeacher()
    generate(
        teacher,
        bad,
        Generate(target=5, demonstrations=2, batch_size=4, filters="strict"),
        seed=1,
        folder=tmp_path,
    )
    assert all("Draw it." in prompt for prompt in teacher.prompts.values())


def test_instances_with_one_input_and_two_outputs_lose_the_task():
    """prepare_for_finetuning.py:110, and no empty input counts."""
    text = "Example 1\nsky\nOutput: blue\nExample 2\nsky\nOutput: red\nExample 3\nsea\nOutput: blue"
    assert instances(text) == ([], ["conflict"] * 3)
    assert instances("Class label: red\nClass label: blue", output_first=True) == (
        [("", "red"), ("", "blue")],
        [],
    )
    twice = "Example 1\nsky\nOutput: blue\nExample 2\nsky\nOutput: blue"
    assert instances(twice) == ([("sky", "blue")], ["repeat"])
    assert instances("I do not know.") == ([], ["fields"])
    assert instances("Output: 3 km") == ([("", "3 km")], [])


def test_yes_is_yes_and_all_else_is_no():
    assert [
        is_classification(one) for one in (" Yes", "yes.", "YES\n", " No", "Yesterday", "")
    ] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]
