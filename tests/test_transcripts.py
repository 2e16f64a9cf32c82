"""Prompts that are transcripts of `Human:` and `Assistant:` turns."""

import json
from pathlib import Path

import pytest

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import (
    read_instructions,
    read_pairs,
    read_prompts,
    read_rankings,
    write_instructions,
)
from alpaca_rlhf.data.readers.comparisons import pair_to_json
from alpaca_rlhf.data.readers.ranked import ranked_answers

START = "\n\nHuman: Hi.\n\nAssistant: Hello!\n\nHuman: Sing.\n\nAssistant:"
PROMPT = Instruction("Sing.", source="a.jsonl", history=(("Hi.", "Hello!"),))


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def first_prompt(kind: str, path: Path) -> Instruction:
    if kind == "pairs":
        return read_pairs(path)[0].prompt
    if kind == "rankings":
        return read_rankings(path)[0][0]
    (row,) = read_prompts(path) if kind == "prompts" else read_instructions(path)
    return row


SHAPES = {
    "pairs": {"chosen": "La.", "rejected": "No."},
    "comparisons": {"completion_a": "La.", "completion_b": "No.", "preference": 1},
    "rankings": {"responses": ["La.", "No."], "ranks": [0, 1]},
    "prompts": {},
    "instructions": {"completion": "La."},
}


@pytest.mark.parametrize("name", ["instruction", "prompt"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("text", [START, START.strip(), f"{START} "])
def test_a_prompt_that_is_a_transcript_is_a_dialogue(tmp_path, name, shape, text) -> None:
    path = write(tmp_path / "a.jsonl", {name: text, **SHAPES[shape]})
    prompt = first_prompt(shape.replace("comparisons", "pairs"), path)
    assert (prompt.instruction, prompt.history) == ("Sing.", (("Hi.", "Hello!"),))
    assert prompt.output == ("La." if shape == "instructions" else None)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "text",
    [
        START.removesuffix("\n\nAssistant:"),
        START.replace("\n", "\r\n"),
        START.removesuffix("\n\nAssistant:").replace("\n", "\r\n"),
    ],
)
def test_a_transcript_may_lack_its_last_mark_and_have_lines_of_windows(tmp_path, shape, text):
    path = write(tmp_path / "a.jsonl", {"prompt": text, **SHAPES[shape]})
    prompt = first_prompt(shape.replace("comparisons", "pairs"), path)
    assert (prompt.instruction, prompt.history) == ("Sing.", (("Hi.", "Hello!"),))
    assert prompt.output == ("La." if shape == "instructions" else None)


def test_transcripts_give_what_hh_gives(tmp_path) -> None:
    """As full-hh-rlhf writes HH: the prompt apart, the answers with the blank before them."""
    rows = [
        {"chosen": f"{START} La la.", "rejected": f"{START} La no."},
        {"prompt": START, "chosen": " La la.", "rejected": " La no.", "response": " La la."},
        {"prompt": START, "chosen": f"{START} La la.", "rejected": f"{START} La no."},
    ]
    rows.append({name: text.replace("\n", "\r\n") for name, text in rows[0].items()})
    pairs = read_pairs(write(tmp_path / "a.jsonl", *rows))
    assert [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs] == [
        (PROMPT, "La la.", "La no.")
    ] * 4


def test_marks_on_lines_of_their_own(tmp_path) -> None:
    path = write(
        tmp_path / "a.jsonl", {"prompt": "Human: Hi.\nAssistant: Hello!\nHuman: Sing.\nAssistant:"}
    )
    assert read_prompts(path) == [PROMPT]
    several = "Human: A list:\nHuman: 1\nAssistant: 2\n\nAssistant:"
    (row,) = read_prompts(write(tmp_path / "a.jsonl", {"prompt": several}))
    assert row.instruction == "A list:\nHuman: 1\nAssistant: 2" and not row.history


NEMO = "Hi.\n<extra_id_1>Assistant\nHello!\n<extra_id_1>User\nSing."


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("text", [NEMO, f"<extra_id_1>User\n{NEMO}\n"])
def test_helpsteers_marks_are_turns(tmp_path, shape, text) -> None:
    path = write(tmp_path / "a.jsonl", {"prompt": text, **SHAPES[shape]})
    prompt = first_prompt(shape.replace("comparisons", "pairs"), path)
    assert (prompt.instruction, prompt.history) == ("Sing.", (("Hi.", "Hello!"),))
    assert prompt.output == ("La." if shape == "instructions" else None)


def test_a_text_that_ends_with_the_assistants_turn_is_no_prompt(tmp_path) -> None:
    text = "Hi.\n<extra_id_1>Assistant\nHello!"
    (row,) = read_prompts(write(tmp_path / "a.jsonl", {"prompt": text}))
    assert (row.instruction, row.history) == (text, ())


@pytest.mark.parametrize("text", [START, NEMO])
def test_answers_to_a_transcript_may_be_messages(tmp_path, text) -> None:
    """As messages they hold the answer alone, or the dialogue before it once more."""
    before = [
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Sing."},
    ]
    answers = [[{"role": "assistant", "content": words}] for words in ("La.", "No.")]
    rows = [
        {"prompt": text, "chosen": answers[0], "rejected": answers[1]},
        {"prompt": text, "chosen": before + answers[0], "rejected": before + answers[1]},
    ]
    pairs = read_pairs(write(tmp_path / "a.jsonl", *rows))
    assert [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs] == [
        (PROMPT, "La.", "No.")
    ] * 2


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "What does Human: mean in a transcript that ends with Assistant:"},
        {"prompt": "Human: who are you?"},
        {"prompt": "Write on.\n\nHuman: Hi.\n\nAssistant:"},
        {"prompt": "Human: Hi.\n\nAssistant: Hello."},
        {"prompt": "Human: the play, and Assistant:"},
        {"instruction": START, "input": "Write it on."},
        {"instruction": START, "history": [["Hi.", "Ho."]]},
    ],
)
def test_an_ordinary_instruction_that_mentions_marks_stays_as_it_is(tmp_path, row) -> None:
    (read,) = read_prompts(write(tmp_path / "a.jsonl", row))
    text = row.get("prompt", row.get("instruction"))
    assert read.instruction == text
    assert read.history == tuple(map(tuple, row.get("history", ())))
    (pair,) = read_pairs(write(tmp_path / "b.jsonl", row | {"chosen": " x", "rejected": "y"}))
    assert (pair.prompt.instruction, pair.chosen) == (text, " x")


@pytest.mark.parametrize("text", [START, NEMO, "Human: a\n\nAssistant: b\n\nHuman: c"])
def test_what_was_written_is_read_back_as_it_was(tmp_path, text) -> None:
    """A transcript within a message is that message's text, in the kit's own files as well."""
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "La."}]
    (row,) = read_instructions(write(tmp_path / "a.jsonl", {"messages": messages}))
    assert (row.instruction, row.history) == (text, ())
    write_instructions(tmp_path / "b.jsonl", [row])
    assert read_instructions(tmp_path / "b.jsonl") == [row]
    assert Instruction.from_json(json.loads((tmp_path / "b.jsonl").read_text())) == row
    pair = {"prompt": messages[:1], "chosen": "La.", "rejected": "No."}
    (pair,) = read_pairs(write(tmp_path / "c.jsonl", pair))
    assert read_pairs(write(tmp_path / "c.jsonl", pair_to_json(pair))) == [pair]
    ranked = {"prompt": messages[:1], "responses": ["La.", "No."], "ranks": [0, 1]}
    (ranking,) = ranked_answers(ranked, "a.jsonl").rankings
    assert ranked_answers(json.loads(json.dumps(ranking.to_json())), "").rankings == [ranking]
