"""Rows of published files that were read in a sense that they do not have."""

import csv
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import (
    Reading,
    detect_format,
    holds_rankings,
    open_rows,
    read_instructions,
    read_own_tasks,
    read_pairs,
    read_prompts,
    read_rankings,
    write_instructions,
)
from alpaca_rlhf.data.generation.continuation import trimmed
from alpaca_rlhf.data.readers.columns import column_names
from alpaca_rlhf.data.readers.template_marks import without_end_marks
from alpaca_rlhf.llm.wire import Answer
from tests.mutations import tried
from tests.test_columns import USER, refusal, write

ALIKE = {"chosen": "The colour is blue.", "rejected": "The colour is loud."}
BLUE, LOUD = ({"role": "assistant", "content": text} for text in ALIKE.values())


# --- the beginning that two answers share is no prompt --------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["post", "text", "user", "dialogue", "inputs", "prompt_text", "body", "Anfrage"],
)
def test_beside_a_column_that_asks_the_shared_beginning_is_no_prompt(tmp_path, name) -> None:
    path = write(tmp_path / "a.jsonl", {name: "Which colour is it?", **ALIKE})
    message = refusal(read_pairs, path)
    assert f"--columns {name}=prompt;" in message and f"--columns {name}=- (a run" in message
    (pair,) = read_pairs(path, Reading("rankings", columns={name: "prompt"}))
    assert (pair.prompt.instruction, pair.chosen) == ("Which colour is it?", ALIKE["chosen"])
    (pair,) = read_pairs(path, Reading("rankings", columns={name: "-"}))
    assert (pair.prompt.instruction, pair.chosen) == ("The colour is", "blue.")
    code, _, err = tried(["import", str(path), "--out", str(tmp_path / "out")])
    assert code == 2 and f"--columns {name}=prompt;" in err
    # The way is the same where the answers begin apart, or are messages.
    for answers in (
        {"chosen": "Blue.", "rejected": "Loud."},
        {"chosen": [BLUE], "rejected": [LOUD]},
    ):
        path = write(tmp_path / "b.jsonl", {name: "Which colour is it?", **answers})
        assert f"if `{name}` is the prompt, --columns {name}=prompt (a run" in refusal(
            read_pairs, path
        )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("turns", ["Hi"]),
        ("user", "Hi"),
        ("dialogue", [USER]),
        ("history", [["a", "b"]]),
        ("system", "Be brief."),
        ("Frage", "你最喜欢什么颜色"),
    ],
)
def test_what_comes_before_an_answer_is_seen_whatever_its_form(tmp_path, name, value) -> None:
    path = write(tmp_path / "a.jsonl", {name: value, **ALIKE})
    message = refusal(read_pairs, path)
    assert f"`{name}`" in message and f"{name}=- (a run" in message
    assert (f"{name}=prompt" in message) == (name not in ("history", "system"))


def test_of_several_columns_the_likeliest_is_the_prompt(tmp_path) -> None:
    row = {"remark": "Blue is the apter word.", "title": "Hues", "body": "Which is it?", **ALIKE}
    message = refusal(read_pairs, write(tmp_path / "a.jsonl", row))
    names = "`body`, `remark`, `title`"
    assert f"one of {names} is the prompt, --columns OLD=prompt; if their beginning" in message
    assert "--columns OLD=- for each (a run" in message


def test_a_system_text_beside_the_prompt_is_not_left_out(tmp_path) -> None:
    row = {"system": "Be brief.", "post": "Which colour is it?", **ALIKE}
    message = refusal(read_pairs, write(tmp_path / "a.jsonl", row))
    assert "--columns post=prompt; if their beginning is, --columns post=-,system=- (" in message
    (pair,) = read_pairs(tmp_path / "a.jsonl", Reading("rankings", columns={"post": "prompt"}))
    assert pair.prompt.system == "Be brief."


@pytest.mark.parametrize(
    "answers",
    [ALIKE, {"chosen": "Blue.", "rejected": "Loud."}, {"chosen": [BLUE], "rejected": [LOUD]}],
)
def test_the_kind_of_a_task_is_no_prompt(tmp_path, answers) -> None:
    """UltraInteract's columns."""
    trajectory = [{"from": "user", "value": "Write a sort."}]
    row = {"task": "Coding", "dataset": "x", "trajectory": trajectory, "id": "3", **answers}
    message = refusal(read_pairs, write(tmp_path / "a.jsonl", row))
    assert "one of `trajectory`, `task` is the prompt, --columns OLD=prompt" in message


@pytest.mark.parametrize(
    "answers",
    [ALIKE, {"chosen": "Blue.", "rejected": "Loud."}, {"chosen": [BLUE], "rejected": [LOUD]}],
)
@pytest.mark.parametrize("system", ["", "You are an assistant of the best kind."])
def test_an_input_beside_two_answers_is_the_prompt(tmp_path, answers, system) -> None:
    """Argilla's columns of Orca's pairs."""
    row = {
        "system": system,
        "input": "Which colour is it?",
        **answers,
        "generations": ["Blue.", "Loud."],
        "labelling_prompt": [{"role": "user", "content": "Score both answers to the question."}],
        "rationale": "The first answer is the apter one.",
        "status": "tie",
    }
    path = write(tmp_path / "a.jsonl", row)
    code, _, err = tried(["import", str(path), "--out", str(tmp_path / "out")])
    assert code == 2 and "--columns input=prompt" in err
    assert "labelling_prompt=" not in err and "OLD=" not in err
    (pair,) = read_pairs(path, Reading("rankings", columns={"input": "prompt"}))
    assert (pair.prompt.instruction, pair.prompt.system) == (row["input"], system)


def test_columns_that_ask_nothing_leave_a_shared_beginning_the_prompt(tmp_path) -> None:
    """Where a row is from, numbers, and what the answers hold themselves."""
    columns = {
        "prompt_id": "a b c d",
        "source": "A set of mine.",
        "chosen_model": "Llama 3 70B Chat",
        "category": "general knowledge of the world",
        "url": "https://example.org/a b c d",
        "score_chosen": 8,
        "score_rejected": 5,
        "tags": ["colours of all kinds"],
        "words": 4,
        "date": "Mon Nov 30 at noon",
        "better": ALIKE["chosen"],
        "beginning": "The colour is",
        "note": "apt",
    }
    (pair,) = read_pairs(write(tmp_path / "a.jsonl", columns | ALIKE))
    assert (pair.prompt.instruction, pair.chosen, pair.rejected) == (
        "The colour is",
        "blue.",
        "loud.",
    )


@pytest.mark.parametrize("name", ["messages", "conversations"])
@pytest.mark.parametrize(
    "answers",
    [ALIKE, {"chosen": [BLUE], "rejected": [LOUD]}, {"chosen": BLUE, "rejected": LOUD["content"]}],
)
@pytest.mark.parametrize("ends_with_chosen", [False, True])
def test_messages_beside_two_answers_are_the_prompt(
    tmp_path, name, answers, ends_with_chosen
) -> None:
    messages = [USER, BLUE] if ends_with_chosen and name == "messages" else [USER]
    path = write(tmp_path / "a.jsonl", {name: messages, **answers})
    reading = Reading("rankings")
    (pair,) = read_pairs(path, reading)
    assert pair.prompt == Instruction("Which colour?", source="a.jsonl")
    assert [pair.chosen, pair.rejected] == list(ALIKE.values())
    assert not reading.account.unread


def test_messages_are_the_prompt_of_every_shape_of_preferences(tmp_path) -> None:
    compared = {"messages": [USER], "output_1": "Blue.", "output_2": "Red.", "preference": 2}
    (pair,) = read_pairs(write(tmp_path / "a.jsonl", compared))
    assert (pair.prompt.instruction, pair.chosen) == ("Which colour?", "Red.")
    listed = {"messages": [USER], "responses": ["Blue.", "Red."], "scores": [1, 2]}
    reading = Reading("rankings")
    ((prompt, _, _),) = read_rankings(write(tmp_path / "a.jsonl", listed), reading)
    assert prompt.instruction == "Which colour?" and not reading.account.unread


def test_messages_that_end_with_another_answer_are_refused(tmp_path) -> None:
    other = {"role": "assistant", "content": "Hm."}
    message = refusal(read_pairs, write(tmp_path / "a.jsonl", {"messages": [USER, other], **ALIKE}))
    assert "must end with the human's turn" in message


def test_messages_and_a_rejected_response_are_a_pair(tmp_path) -> None:
    """ms-swift's form."""
    row = {"messages": [USER, BLUE], "rejected_response": "The colour is loud."}
    path = write(tmp_path / "a.jsonl", row)
    reading = Reading("rankings")
    (pair,) = read_pairs(path, reading)
    assert (pair.prompt.instruction, [pair.chosen, pair.rejected]) == (
        "Which colour?",
        list(ALIKE.values()),
    )
    assert not reading.account.unread
    detected = detect_format(open_rows(str(path)))
    assert detected.format is not None and detected.format.kind == "pairs"
    message = refusal(read_pairs, write(path, row | {"messages": [USER]}))
    assert "`messages` must end with the better answer" in message


def test_a_stripped_transcript_is_a_dialogue(tmp_path) -> None:
    start = "Human: Hi.\n\nAssistant: Hello!\n\nHuman: Sing.\n\nAssistant:"
    path = write(tmp_path / "a.jsonl", {"chosen": f"{start} La.", "rejected": f"{start} No."})
    (pair,) = read_pairs(path)
    assert pair.prompt == Instruction("Sing.", source="a.jsonl", history=(("Hi.", "Hello!"),))
    assert (pair.chosen, pair.rejected) == ("La.", "No.")


def test_whole_dialogues_beside_their_prompt_are_no_answers(tmp_path) -> None:
    start = "\n\nHuman: Hi.\n\nAssistant:"
    row = {"prompt": "Hi.", "chosen": f"{start} Yo.", "rejected": f"{start} No."}
    (pair,) = read_pairs(write(tmp_path / "a.jsonl", row))
    assert (pair.prompt.instruction, pair.chosen, pair.rejected) == ("Hi.", "Yo.", "No.")
    # A dialogue may be what was asked for.
    row["prompt"] = "Write a dialogue."
    (pair,) = read_pairs(write(tmp_path / "a.jsonl", row))
    assert (pair.prompt.instruction, pair.chosen) == ("Write a dialogue.", row["chosen"])


# --- texts that a template was put around before --------------------------------------------------

RENDERED = [
    "<s>[INST] Hi. [/INST]",
    "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi. [/INST] ",
    "### Instruction:\nHi.\n\n### Response:",
    "Below is an instruction that describes a task.\n\n### Instruction:\nHi.\n\n### Response:\n",
    "### Human: Hi.### Assistant: Yo.",
    "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nHi.<|im_end|>",
    "<|start_header_id|>user<|end_header_id|>\n\nHi.<|eot_id|>",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi.<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "<bos><start_of_turn>user\nHi.<end_of_turn>\n<start_of_turn>model\n",
    "<|user|>\nHi.</s>\n<|assistant|>\n",
    "A chat between two people. USER: Hi. ASSISTANT:",
    "<\uff5cbegin▁of▁sentence\uff5c>Be brief.<\uff5cUser\uff5c>Hi.<\uff5cAssistant\uff5c>",
]
NOT_RENDERED = [
    "What does [INST] mean in <s>[INST] hi [/INST]?",
    "Explain [INST] and [/INST]",
    "Explain <|im_start|>user and <|im_start|>assistant",
    "Write it with ### Instruction: at the top and ### Response: below.",
    "<s>old</s> is struck out",
    "<|im_start|>user: what is this?",
    "USER: Ann, ASSISTANT: Bob",
    "What follows ASSISTANT:",
]
SHAPES: list[tuple[Any, dict[str, Any]]] = [
    (read_prompts, {}),
    (read_instructions, {"completion": "Yo."}),
    (read_pairs, {"chosen": "Yo.", "rejected": "No."}),
    (read_pairs, {"output_1": "Yo.", "output_2": "No.", "preference": 1}),
    (read_rankings, {"responses": ["Yo.", "No."], "ranks": [0, 1]}),
]


@pytest.mark.parametrize("text", RENDERED)
def test_a_prompt_is_rendered_once(tmp_path, text) -> None:
    for name in ("prompt", "instruction"):
        for read, answers in SHAPES:
            message = refusal(read, write(tmp_path / "a.jsonl", {name: text, **answers}))
            assert "is rendered with a chat template already" in message, (read, name)
    # Within a message it is the user's own text, in the kit's own files as well.
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "Yo."}]
    (row,) = read_instructions(write(tmp_path / "a.jsonl", {"messages": messages}))
    write_instructions(tmp_path / "b.jsonl", [row])
    assert read_instructions(tmp_path / "b.jsonl") == [row] and row.instruction == text


@pytest.mark.parametrize("text", NOT_RENDERED)
def test_a_prompt_may_speak_of_templates(tmp_path, text) -> None:
    for read, answers in SHAPES:
        assert len(read(write(tmp_path / "a.jsonl", {"prompt": text, **answers}))) == 1


@pytest.mark.parametrize(
    "mark", ["</s>", "<|im_end|>", "<|eot_id|>", "<|endoftext|>", "<end_of_turn>", "<|end|>"]
)
def test_an_answer_ends_once(tmp_path, mark) -> None:
    """The command that is named takes the mark off."""
    earlier = [USER, BLUE | {"content": f"Blue.{mark}"}, USER, LOUD]
    rows = [
        (read_instructions, {"instruction": "Go.", "output": f"Gone.{mark}"}),
        (read_instructions, {"messages": earlier}),
        (read_pairs, {"prompt": "Go.", "chosen": "Gone.", "rejected": f"No. {mark}"}),
        (read_pairs, {"prompt": "Go.", "output_1": f"Gone.{mark}\n", "output_2": "No."}),
        (read_rankings, {"prompt": "Go.", "responses": [f"a{mark}", "b"], "ranks": [0, 1]}),
    ]
    for read, row in rows:
        path = write(tmp_path / "a.jsonl", row)
        message = refusal(read, path)
        assert f"an answer ends with `{mark}`" in message
        command = message.partition("(JSON lines: ")[2].rpartition(") (1 of")[0]
        mended = tmp_path / "b.jsonl"
        mended.write_bytes(
            subprocess.run(
                ["bash", "-ec", command.replace("FILE", "a.jsonl")],
                cwd=tmp_path,
                check=True,
                capture_output=True,
            ).stdout
        )
        assert len(read(mended)) == 1 and mark not in mended.read_text()


def test_an_answer_may_speak_of_ends(tmp_path) -> None:
    html = ('<s class="x">old</s>', "<s xml:lang='en'>hello</s>", "<s>old</s>")
    for text in ("It is `</s>`", *html, "</s> ends a text."):
        (row,) = read_instructions(
            write(tmp_path / "a.jsonl", {"instruction": "Go.", "output": text})
        )
        assert row.output == text


def test_an_output_that_is_not_learnt_may_end_as_it_does(tmp_path) -> None:
    path = write(tmp_path / "a.jsonl", {"instruction": "Go.", "output": "Gone.</s>"})
    assert len(read_prompts(path)) == 1
    for read, arguments in ((read_instructions, {}), (read_prompts, {"learnt_from": True})):
        with pytest.raises(UserError, match="an answer ends with `</s>`"):
            read(path, **arguments)


def test_what_a_run_has_written_itself_is_read_as_it_stands(tmp_path) -> None:
    """A teacher may have written marks, and an earlier version of the kit kept them."""
    rendered = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    texts = ["Gone.</s>", "No.<|im_end|>", "Yes."]
    questions = [rendered, '[{"role": "user", "content": "Hi"}]', "Human: Hi\n\nAssistant: Ho"]
    lines = [
        {"instruction": question, "input": "", "output": text, "source": "t"}
        for question, text in zip(questions, texts, strict=True)
    ]
    path = write(tmp_path / "rows.jsonl", *lines)
    rows = read_own_tasks(path, answered=True)
    assert [row.instruction for row in rows] == questions
    assert [row.output for row in rows] == texts
    write_instructions(tmp_path / "again.jsonl", rows)
    assert read_own_tasks(tmp_path / "again.jsonl", answered=False) == rows


def test_an_end_of_turn_that_a_teacher_leaves_in_is_taken_off() -> None:
    for text, expected in (
        ("Gone.<|im_end|>\n", "Gone."),
        ("Gone.<|eot_id|></s>", "Gone."),
        ("<s>old</s>", "<s>old</s>"),
        ("It ends with </s> as a rule.", "It ends with </s> as a rule."),
    ):
        assert without_end_marks(text) == expected
    answer = Answer("Gone.</s>\n### Task", True, False, 1, 1, estimated=False)
    assert trimmed(answer, ["\n###"]) == ("Gone.", "length")


@pytest.mark.parametrize(
    "piece",
    [
        " ",
        "\n",
        "USER: x ",
        "\n### User: x",
        "<\uff5cUser\uff5c>x",
        "<s> ",
        "ASSISTANT: ",
        "[INST]",
    ],
)
def test_long_texts_are_looked_at_once(tmp_path, piece) -> None:
    """With time that grows as the square of their length, this would take hours."""
    text = piece * (320_000 // len(piece)) + "."
    for long in (text, f"x{text}"):
        (row,) = read_prompts(write(tmp_path / "a.jsonl", {"prompt": long}))
        assert row.instruction == long


# --- flags, labels, and one decision for all readers ----------------------------------------------


@pytest.mark.parametrize("name", ["weight", "train", "trainable", "loss"])
@pytest.mark.parametrize("bad", [False, 0, 0.0, "false"])
def test_rows_and_preferences_that_carry_no_loss_are_counted(tmp_path, name, bad) -> None:
    shapes = [
        (read_instructions, {"instruction": "Go.", "output": "Gone."}),
        (read_instructions, {"messages": [USER, BLUE]}),
        (read_pairs, {"prompt": "Go.", "chosen": "Gone.", "rejected": "No."}),
        (read_pairs, {"prompt": "Go.", "output_1": "Gone.", "output_2": "No.", "preference": 1}),
        (read_rankings, {"prompt": "Go.", "responses": ["a", "b"], "ranks": [0, 1]}),
    ]
    for read, row in shapes:
        path = write(tmp_path / "a.jsonl", row | {name: bad}, row | {name: 1}, row)
        reading = Reading("instructions" if read is read_instructions else "rankings")
        assert len(read(path, reading)) == 2
        assert reading.account.left_out == {"bad label": 1} and not reading.account.unread
        path = write(tmp_path / "b.jsonl", row | {name: 0.5})
        if name == "loss":
            continue
        message = refusal(read, path)
        assert f"column `{name}` must be 1" in message and f"--columns {name}=-" in message


@pytest.mark.parametrize(
    ("name", "value"), [("loss", 0.53), ("loss", 2), ("loss", "low"), ("train", "train.jsonl")]
)
def test_a_trainers_loss_and_a_split_are_no_flags(tmp_path, name, value) -> None:
    shapes = [
        (read_instructions, {"instruction": "Go.", "output": "Gone."}),
        (read_instructions, {"instruction": "Go.", "instances": [{"output": "Gone."}]}),
        (read_instructions, {"messages": [USER, BLUE]}),
        (read_pairs, {"prompt": "Go.", "chosen": "Gone.", "rejected": "No."}),
        (read_rankings, {"prompt": "Go.", "responses": ["a", "b"], "ranks": [0, 1]}),
    ]
    for read, row in shapes:
        reading = Reading("instructions" if read is read_instructions else "rankings")
        assert len(read(write(tmp_path / "a.jsonl", row | {name: value}), reading)) == 1
        assert set(reading.account.unread) == {name}


def test_a_label_is_no_verdict_on_a_row_without_a_task(tmp_path) -> None:
    """PIQA's label names the right one of two solutions."""
    rows = [{"goal": "Boil eggs.", "sol1": "Fry.", "sol2": "Boil.", "label": n} for n in (0, 0)]
    message = refusal(read_instructions, write(tmp_path / "a.jsonl", *rows))
    assert "expected a column `instruction` or `prompt`; columns here: goal, label" in message


def test_a_run_reads_a_row_as_import_does(tmp_path) -> None:
    pair = {"chosen": "b", "rejected": "a"}
    listed = {"responses": ["a", "b"], "scores": [1, 2]}
    compared = {"completion_a": "a", "completion_b": "b", "preference": 2}
    for row in (pair | listed, listed | compared, pair | listed | compared, listed):
        path = write(tmp_path / "a.jsonl", {"prompt": "Go.", **row})
        detected = detect_format(open_rows(str(path))).format
        assert detected is not None
        assert holds_rankings(path) == (detected.kind == "rankings")
    # Where it is read in another shape, because that is named, the other columns are not read.
    path = write(tmp_path / "a.jsonl", {"prompt": "Go.", **pair, **listed})
    for words, unread in (([], {"responses", "scores"}), (["--format", "ranking-list"], {*pair})):
        out = tmp_path / f"out{len(words)}"
        assert tried(["import", str(path), *words, "--out", str(out)])[0] == 0
        assert {*json.loads((out / "manifest.json").read_text())["unread_columns"]} == unread
    # The first row alone does not decide.
    path = write(tmp_path / "a.jsonl", {"x": 1}, *[{"prompt": "Go.", **listed}] * 2)
    assert holds_rankings(path)


def test_one_system_text_may_stand_twice(tmp_path) -> None:
    system = {"role": "system", "content": "Be brief."}
    row = {"system": "Be brief. ", "messages": [system, USER, BLUE]}
    (read,) = read_instructions(write(tmp_path / "a.jsonl", row))
    assert (read.system, read.instruction) == ("Be brief. ", "Which colour?")
    (pair,) = read_pairs(write(tmp_path / "a.jsonl", {**row, "messages": [system, USER], **ALIKE}))
    assert pair.prompt.system == "Be brief. "
    message = refusal(read_instructions, write(tmp_path / "a.jsonl", row | {"system": "Be long."}))
    assert "second system turn" in message


# --- lists within texts ---------------------------------------------------------------------------


def test_messages_as_json_are_messages(tmp_path) -> None:
    """As tables keep them; an answer to a text stays the text that it is."""
    as_json = json.dumps([USER])
    answered = json.dumps([USER, BLUE])
    for row in ({"prompt": as_json}, {"messages": answered}, {"conversations": answered}):
        (prompt,) = read_prompts(write(tmp_path / "a.jsonl", row))
        assert prompt.instruction == "Which colour?"
    row = {"prompt": as_json, "completion": json.dumps([BLUE])}
    (read,) = read_instructions(write(tmp_path / "a.jsonl", row))
    assert read.output == ALIKE["chosen"]
    row = {"prompt": "Write a message.", "completion": json.dumps([BLUE])}
    (read,) = read_instructions(write(tmp_path / "a.jsonl", row))
    assert read.output == row["completion"]
    pair = {"chosen": answered, "rejected": json.dumps([USER, LOUD])}
    path = write(tmp_path / "a.jsonl", pair)
    (pair,) = read_pairs(path)
    assert (pair.prompt.instruction, pair.rejected) == ("Which colour?", ALIKE["rejected"])
    code, _, _ = tried(["import", str(path), "--out", str(tmp_path / "out")])
    record = json.loads((tmp_path / "out" / "pairs.jsonl").read_text())
    assert code == 0 and record["instruction"] == "Which colour?"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": '["Hi.", "And?"]'}, "`prompt` holds a list of texts as JSON"),
        ({"prompt": "[{'role': 'user', 'content': 'Hi.'}]"}, "looks like a list of messages"),
        ({"instruction": json.dumps([USER])}, "--columns instruction=prompt"),
    ],
)
def test_a_list_as_text_is_no_prompt(tmp_path, row, words) -> None:
    for read, answers in SHAPES:
        assert words in refusal(read, write(tmp_path / "a.jsonl", row | answers))


def test_lists_that_a_task_is_about_stay_texts(tmp_path) -> None:
    row = {"instruction": "Sort it.", "input": '["b", "a"]', "output": '["a", "b"]'}
    (read,) = read_instructions(write(tmp_path / "a.jsonl", row))
    assert (read.input, read.output) == (row["input"], row["output"])
    # Within a message a list is the user's own text, in the kit's own files as well.
    text = json.dumps([USER])
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "Yo."}]
    (read,) = read_instructions(write(tmp_path / "a.jsonl", {"messages": messages}))
    write_instructions(tmp_path / "b.jsonl", [read])
    assert read_instructions(tmp_path / "b.jsonl") == [read] and read.instruction == text


ADMINS = '[{"name": "Ann", "role": "admin"}]'


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize(
    "text",
    [
        ADMINS,
        '[{"from": "London", "to": "Paris"}]',
        f"{ADMINS}\nThis lists all users",
        '[{"a": 1}] and {"role": x}',
        '[{"role": "user"}]',
        '[{"role": "admin", "content": "x"}]',
        f"{json.dumps([USER])} is a message",
    ],
)
def test_lists_that_are_no_messages_stay_texts(tmp_path, text, kind) -> None:
    def file(row: dict[str, str]) -> Path:
        path = tmp_path / f"a.{kind}"
        if kind == "jsonl":
            return write(path, row)
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, [*row])
            writer.writeheader()
            writer.writerow(row)
        return path

    for answers in ((text, "no"), ("no", text), (text, f"{text} ")):
        row = dict(zip(("prompt", "chosen", "rejected"), ("Go.", *answers), strict=True))
        (pair,) = read_pairs(file(row))
        assert (pair.chosen, pair.rejected) == answers
    dolly = {"instruction": "Who?", "context": text, "response": "Ann."}
    (read,) = read_instructions(file(dolly))
    assert read.input == text
    for name in ("instruction", "prompt"):
        for asked in (text, f"{text} is what?", f"{text}\nHow many are there?"):
            (read,) = read_instructions(file({name: asked, "output": "One."}))
            assert read.instruction == asked


def test_messages_stay_texts_where_texts_are_due(tmp_path) -> None:
    as_json = json.dumps([USER])
    (pair,) = read_pairs(
        write(tmp_path / "a.jsonl", {"prompt": "Go.", "chosen": as_json, "rejected": "no"})
    )
    assert pair.chosen == as_json
    dolly = {"instruction": "Who?", "context": as_json, "response": "Ann."}
    (read,) = read_instructions(write(tmp_path / "a.jsonl", dolly))
    assert read.input == as_json
    # HelpSteer3's context is the prompt.
    row = {"context": as_json, "response1": "a", "response2": "b", "overall_preference": 2}
    (pair,) = read_pairs(write(tmp_path / "a.jsonl", row))
    assert (pair.prompt.instruction, pair.chosen) == ("Which colour?", "b")


@pytest.mark.parametrize("as_json", [False, True])
def test_battles_of_kaggles_arena_are_pairs(tmp_path, as_json) -> None:
    """lmsys's arena-55k: turns in lists, and a column for each winner."""

    def battle(winner: str, *sides: list[str]) -> dict[str, Any]:
        names = ("prompt", "response_a", "response_b")
        lists = [json.dumps(side) if as_json else side for side in sides]
        flags = {f"winner_{name}": int(name == winner) for name in ("model_a", "model_b", "tie")}
        return {"id": 3, **dict(zip(names, lists, strict=True)), **flags}

    path = write(
        tmp_path / "a.jsonl",
        battle("model_b", ["Hi."], ["Yo."], ["Hello."]),
        battle("model_a", ["Hi.", "And?"], ["Yo.", "So."], ["Yo.", "No."]),
        battle("tie", ["Hi."], ["a"], ["b"]),
        battle("model_a", ["Hi.", "And?"], ["a", "b"], ["c", "d"]),
    )
    reading = Reading("rankings")
    first, second = read_pairs(path, reading)
    assert (first.prompt.instruction, first.chosen, first.rejected) == ("Hi.", "Hello.", "Yo.")
    assert second.prompt.history == (("Hi.", "Yo."),)
    assert (second.prompt.instruction, second.chosen) == ("And?", "So.")
    assert reading.account.left_out == {"tie": 1, "unusable": 1}
    assert set(reading.account.unread) == {"id"}
    detected = detect_format(open_rows(str(path))).format
    assert detected is not None and detected.name == "completion-ab"
    for broken, why in (
        (battle("model_c", ["Hi."], ["a"], ["b"]), "one must be 1"),
        (battle("model_a", ["Hi."], ["a", "b"], ["b"]), "must hold one"),
    ):
        assert why in refusal(read_pairs, write(path, broken))


# --- verdicts and begun answers -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "answers"),
    [
        ({"instruction": "Why?"}, ("output_1", "output_2")),
        ({"user_input": "Why?"}, ("completion_a", "completion_b")),
    ],
)
def test_a_preference_of_0_and_1_alone_is_asked_about(tmp_path, columns, answers) -> None:
    """Both readings that are offered work as they are printed."""
    row = columns | dict(zip(answers, ("First.", "Second."), strict=True))
    path = write(tmp_path / "a.jsonl", *[row | {"preference": value} for value in (0, 1, 1.0)])
    message = refusal(read_pairs, path)
    assert message.startswith(f"{path}: `preference` is 0 or 1 in every row")
    offered = [part.split("; ")[0].split(" (")[0] for part in message.split("--columns ")[1:]]
    chosen = [
        [
            pair.chosen
            for pair in read_pairs(
                path, Reading("rankings", columns=column_names(names, "--columns"))
            )
        ]
        for names in offered
    ]
    assert chosen == [["First.", "Second.", "Second."], ["Second.", "First.", "First."]]
    code, _, err = tried(["import", str(path), "--out", str(tmp_path / "out")])
    assert code == 2 and "`preference` is 0 or 1 in every row" in err
    # AlpacaFarm's own ties, which AlpacaEval writes as 1.5.
    for ties in ((0, 2), (1.5, 1), ("tie", 1)):
        reading = Reading("rankings")
        write(path, *[row | {"preference": value} for value in ties])
        assert len(read_pairs(path, reading)) == 1 and reading.account.left_out == {"tie": 1}


@pytest.mark.parametrize(
    "text",
    [
        "Human: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: Sure,",
        "a\n<extra_id_1>Assistant\nb\n<extra_id_1>User\nc\n<extra_id_1>Assistant\nSure,",
    ],
)
def test_a_begun_answer_is_no_prompt(tmp_path, text) -> None:
    for read, answers in SHAPES:
        message = refusal(read, write(tmp_path / "a.jsonl", {"prompt": text, **answers}))
        assert "ends with a begun answer ('Sure,')" in message and "before both" in message
