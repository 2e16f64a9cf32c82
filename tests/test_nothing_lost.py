"""Nothing of a row is lost unnamed: what stands beside messages, within objects, and in cells."""

import json
from dataclasses import replace
from pathlib import Path
from string import ascii_lowercase
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpaca_rlhf.cli.app_command import _add_gold
from alpaca_rlhf.cli.export_command import _answers
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.data import (
    FileAccount,
    Reading,
    SplitAssignment,
    read_assignments,
    read_instructions,
    read_pairs,
    read_rankings,
    write_assignments,
)
from alpaca_rlhf.data.readers.columns import column_names
from alpaca_rlhf.serving.answer_files import read_rows as read_prompts_to_answer
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.settings.inputs import Inputs
from alpaca_rlhf.sources.choosing import source_of
from tests.mutations import tried
from tests.test_columns import refusal, write

GOOD = {"instruction": "Name a colour.", "output": "Blue."}
USER = {"role": "user", "content": "Which colour?"}
BLUE, RED = ({"role": "assistant", "content": text} for text in ("Blue.", "Red."))
HELLO = [["Say hello in German.", "Hallo."]]


@pytest.mark.parametrize(
    ("read", "row"),
    [
        (read_instructions, {"prompt": [USER], "completion": "Blue."}),
        (read_instructions, {"prompt": [USER], "completion": [BLUE]}),
        (read_instructions, {"instruction": "Which colour?", "response": [BLUE]}),
        (read_instructions, {"messages": [USER, BLUE]}),
        (read_pairs, {"prompt": [USER], "chosen": [BLUE], "rejected": [RED]}),
        (read_pairs, {"chosen": [USER, BLUE], "rejected": [USER, RED]}),
        (read_pairs, {"conversations": [USER], "chosen": "Blue.", "rejected": "Red."}),
        (
            read_pairs,
            {
                "chosen": "\n\nHuman: Which colour?\n\nAssistant: Blue.",
                "rejected": "\n\nHuman: Which colour?\n\nAssistant: Red.",
            },
        ),
        (read_pairs, {"user_input": "Which colour?", "completion_a": "Blue.", "completion_b": "R"}),
        (read_rankings, {"prompt": [USER], "responses": ["Blue.", "Red."], "ranks": [1, 2]}),
    ],
)
def test_a_history_comes_before_messages_of_every_shape(tmp_path, read, row) -> None:
    reading = Reading("instructions" if read is read_instructions else "rankings")
    path = write(tmp_path / "a.jsonl", row | {"history": HELLO}, row)
    with_history, without = read(path, reading)
    prompts = [
        record[0] if isinstance(record, tuple) else getattr(record, "prompt", record)
        for record in (with_history, without)
    ]
    assert [prompt.history for prompt in prompts] == [(("Say hello in German.", "Hallo."),), ()]
    assert {prompt.instruction for prompt in prompts} == {"Which colour?"}
    assert not reading.account.unread
    broken = write(tmp_path / "b.jsonl", row | {"history": "Hallo."})
    assert "--columns history=-" in refusal(read, broken)


def test_a_history_that_messages_begin_with_stands_once(tmp_path) -> None:
    before = [{"role": "user", "content": HELLO[0][0]}, {"role": "assistant", "content": "Hallo."}]
    system = {"role": "system", "content": "Be brief."}
    rows = [
        {"prompt": [system, *before, USER], "completion": "Blue.", "history": HELLO},
        {"prompt": [system, USER], "completion": "Blue.", "history": HELLO},
    ]
    for row in read_instructions(write(tmp_path / "a.jsonl", *rows)):
        assert (row.history, row.system) == (tuple(map(tuple, HELLO)), "Be brief.")


def test_masked_replies_beside_messages_are_those_of_the_history(tmp_path) -> None:
    history = [*HELLO, ["And in Dutch?", "Hallo."]]
    turns = [USER, BLUE | {"weight": 0}, USER]
    row = {"prompt": turns, "completion": [RED], "history": history, "masked_replies": [1]}
    (read,) = read_instructions(write(tmp_path / "a.jsonl", row))
    assert len(read.history) == 3 and read.masked_replies == (1, 2)
    for wrong in (row | {"history": None}, {"messages": [USER, BLUE], "masked_replies": [0]}):
        message = refusal(read_instructions, write(tmp_path / "b.jsonl", wrong))
        assert "`masked_replies` must be a list of positions in `history`" in message


@pytest.mark.parametrize(
    ("read", "row"),
    [
        (read_instructions, {"prompt": [USER], "completion": "Blau."}),
        (read_pairs, {"prompt": [USER], "chosen": "Blau.", "rejected": "Rot."}),
        (
            read_pairs,
            {"instruction": "Which colour?", "chosen": [USER, BLUE], "rejected": [USER, RED]},
        ),
        (read_pairs, {"chosen": "Which colour? Blau.", "rejected": "Which colour? Rot."}),
        (read_rankings, {"prompt": [USER], "responses": ["Blau.", "Rot."], "ranks": [1, 2]}),
    ],
)
def test_an_input_beside_messages_is_refused_unless_they_hold_it(tmp_path, read, row) -> None:
    message = refusal(read, write(tmp_path / "a.jsonl", row | {"input": "Answer in French."}))
    assert "column `input` stands beside a dialogue" in message and "--columns input=-" in message
    assert (
        len(read(write(tmp_path / "b.jsonl", row | {"input": ""}, row | {"input": "colour"}))) == 2
    )


def test_an_input_within_the_users_turn_is_part_of_the_prompt(tmp_path) -> None:
    both = {"role": "user", "content": "Which colour?\n\nAnswer in French."}
    row = {"instruction": "Which colour?", "input": "Answer in French."}
    row |= {"chosen": [both, BLUE], "rejected": [both, RED]}
    (pair,) = read_pairs(write(tmp_path / "a.jsonl", row))
    assert pair.prompt.instruction == both["content"]


def test_of_two_prompts_the_one_that_is_not_read_is_named(tmp_path) -> None:
    rows = [
        {"instruction": "Be brief.", "prompt": [USER], "completion": "Blue."},
        {"instruction": "Which colour?", "prompt": "Be brief.", "completion": [BLUE]},
    ]
    for row, unread in zip(rows, ("instruction", "prompt"), strict=True):
        reading = Reading("instructions")
        (read,) = read_instructions(write(tmp_path / "a.jsonl", row), reading)
        assert read.instruction == "Which colour?" and set(reading.account.unread) == {unread}
    row = {"instruction": "Which colour?", "prompt": "x", "chosen": [USER, BLUE]}
    reading = Reading("rankings")
    read_pairs(write(tmp_path / "a.jsonl", row | {"rejected": [USER, RED]}), reading)
    assert set(reading.account.unread) == {"prompt"}


def test_a_transcript_before_an_answer_of_messages_is_a_dialogue(tmp_path) -> None:
    prompt = "\n\nHuman: Hi.\n\nAssistant: Ho.\n\nHuman: Which colour?\n\nAssistant:"
    (row,) = read_instructions(
        write(tmp_path / "a.jsonl", {"prompt": prompt, "completion": [BLUE]})
    )
    assert (row.instruction, row.history) == ("Which colour?", (("Hi.", "Ho."),))


@pytest.mark.parametrize(
    ("read", "row", "name"),
    [
        (
            read_instructions,
            {"prompt": "Weather?", "response": [BLUE | {"tool_calls": [{"name": "f"}]}]},
            "`tool_calls` within column `response`",
        ),
        (
            read_instructions,
            {"instruction": "Go.", "instances": [{"output": "x", "images": ["x.png"]}]},
            "`images` within column `instances`",
        ),
        (
            read_rankings,
            {
                "prompt": "Go.",
                "responses": [
                    {"text": "a", "rating": 1, "images": ["x"]},
                    {"text": "b", "rating": 2},
                ],
            },
            "`images` within column `responses`",
        ),
        (
            read_rankings,
            {
                "prompt": {
                    "role": "prompter",
                    "text": "Go.",
                    "replies": [
                        {
                            "role": "assistant",
                            "text": "a",
                            "rank": 0,
                            "tool_calls": [{"name": "f"}],
                        },
                        {"role": "assistant", "text": "b", "rank": 1},
                    ],
                }
            },
            "`tool_calls` within column `prompt`",
        ),
    ],
)
def test_what_is_not_text_is_refused_at_any_depth(tmp_path, read, row, name) -> None:
    assert name in refusal(read, write(tmp_path / "a.jsonl", row))


def test_keys_at_any_depth_that_are_not_read_are_named(tmp_path) -> None:
    rated = [
        {"response": text, "overall_score": n, "rating": n, "custom_system_prompt": "Lie."}
        for n, text in enumerate(("a", "b"))
    ]
    reply = {"role": "assistant", "rank": 0, "text": "a", "emojis": ["x"]}
    tree = {"role": "prompter", "text": "Go.", "replies": [reply, reply | {"rank": 1, "text": "b"}]}
    instance = {"input": "i", "output": "x", "language": "en"}
    for read, row, unread in (
        (
            read_rankings,
            {"instruction": "Who?", "completions": rated},
            {"completions[].custom_system_prompt", "completions[].rating"},
        ),
        (
            read_rankings,
            {"instruction": "Who?", "completions": rated, "scores": [1, 2]},
            {f"completions[].{key}" for key in ("custom_system_prompt", "rating", "overall_score")},
        ),
        (read_rankings, {"prompt": tree}, {"prompt[].emojis"}),
        (
            read_pairs,
            {
                "conversations": [{"from": "human", "value": "Which colour?"}],
                "chosen": {"from": "gpt", "value": "Blue.", "mask": 1},
                "rejected": {"from": "gpt", "value": "Red."},
            },
            {"chosen[].mask"},
        ),
        (
            read_instructions,
            {"instruction": "Go.", "instances": [instance]},
            {"instances[].language"},
        ),
        (
            read_instructions,
            {"prompt": "Who?", "response": [BLUE | {"mask": 1}]},
            {"response[].mask"},
        ),
    ):
        reading = Reading("instructions" if read is read_instructions else "rankings")
        read(write(tmp_path / "a.jsonl", row), reading)
        assert {*reading.account.unread} == unread, row


def test_an_instance_is_read_with_its_label_and_its_system_text(tmp_path) -> None:
    row = {"instruction": "Go.", "system": "Be brief.", "instances": [{"output": "x"}]}
    row["instances"].append({"output": "y", "system_prompt": "Be long."})
    tasks = read_instructions(write(tmp_path / "a.jsonl", row))
    assert [task.system for task in tasks] == ["Be brief.", "Be long."]
    for name in ("label", "kto_tag", "weight"):
        bad = {"instruction": "Go.", "instances": [{"output": "x", name: False}]}
        message = refusal(read_instructions, write(tmp_path / "a.jsonl", bad))
        assert f"an instance must be one to learn from: its column `{name}`" in message


def test_a_column_whose_name_another_one_gets_is_named(tmp_path) -> None:
    names = column_names("question=instruction", "--columns")
    rows = [
        GOOD | {"question": "Name a tree."},
        GOOD | {"question": None},
        {"question": "Name a car.", "output": "A."},
    ]
    reading = Reading("instructions", columns=names)
    path = write(tmp_path / "a.jsonl", *rows)
    tasks = [row.instruction for row in read_instructions(path, reading)]
    assert tasks == ["Name a tree.", "Name a colour.", "Name a car."]
    assert reading.account.unread == {"instruction": 1}
    words = ["import", str(path), "--columns", "question=instruction"]
    code, said, _ = tried([*words, "--out", str(tmp_path / "out")])
    assert code == 0 and "columns that are not read: `instruction` (1 rows)" in said


def test_instances_that_are_null_are_none(tmp_path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"instruction": "Go.", "output": "Went."}, GOOD | {"instances": [{"output": "x"}]}]
    path = tmp_path / "a.parquet"
    columns = ("instruction", "output", "instances")
    rows = [{name: row.get(name) for name in columns} for row in rows]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert [row.output for row in read_instructions(path)] == ["Went.", "x"]


def test_messages_in_cells_are_messages(tmp_path) -> None:
    def cells(*columns: object) -> str:
        quoted = (str(column).replace('"', '""') for column in columns)
        return ",".join(f'"{column}"' for column in quoted) + "\n"

    path = tmp_path / "a.csv"
    header = "prompt,completion,history,masked_replies\n"
    path.write_text(
        header
        + cells(json.dumps([USER]), json.dumps([BLUE]), "", "")
        + cells("Count.", "[1, 2, 3]", json.dumps(HELLO), "[0]")
        + cells("List.", '[{"name": "x"}]', "", "")
    )
    first, second, third = read_instructions(path)
    assert (first.instruction, first.output) == ("Which colour?", "Blue.")
    assert (second.output, second.masked_replies) == ("[1, 2, 3]", (0,))
    assert third.output == '[{"name": "x"}]'
    path.write_text(header + cells(str([USER]), "Blue.", "", ""))
    message = refusal(read_instructions, path)
    assert "column `prompt` of a CSV looks like a list of messages" in message
    path.write_text(
        "prompt,chosen,rejected\n"
        + cells("Which colour?", json.dumps([USER, BLUE]), json.dumps([USER, RED]))
    )
    (pair,) = read_pairs(path)
    assert (pair.prompt.instruction, pair.chosen) == ("Which colour?", "Blue.")
    answers = [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 2}]
    path.write_text("prompt,answers\n" + cells("Which?", json.dumps(answers)))
    ((_, completions, _),) = read_rankings(path)
    assert [completion.text for completion in completions] == ["a", "b"]
    path.write_text("question;reply\n" + cells(json.dumps([USER]), "Blue.").replace('","', '";"'))
    names = column_names("question=prompt,reply=output", "--columns")
    (row,) = read_instructions(path, Reading("instructions", columns=names))
    assert row.instruction == "Which colour?"


def offered(tmp_path: Path, prompts: int, **inputs: object) -> tuple[Inputs, Loop]:
    """Settings of a run on so many prompts, with the sizes of its splits far below them."""
    words = [f"{a}{b}" for a in ascii_lowercase for b in ascii_lowercase]
    rows = [
        {"prompt": f"Explain {words[n]} to {words[-n]} by way of {words[n * 7 % 676]}."}
        for n in range(prompts)
    ]
    path = write(tmp_path / "prompts.jsonl", *rows, *rows[:3])
    settings = Inputs(judge="human", prompts=path, **inputs)
    return settings, Loop(
        inputs=settings,
        rank=replace(Loop().rank, prompts=6),
        ppo=replace(Loop().ppo, batch_size=4, minibatch_size=4),
        policies=("ppo",),
        evaluate=replace(Loop().evaluate, prompts=4, dev_prompts=2),
    )


def test_prompts_that_no_split_takes_are_not_used(tmp_path) -> None:
    inputs, settings = offered(tmp_path, 40, data=write(tmp_path / "rows.jsonl", GOOD))
    source = source_of(settings)
    account = next(each for each in source.accounts if each.name == str(inputs.prompts))
    assert sum(len(source.prompts(name)) for name in source.names()) == 16
    assert (account.rows, account.used) == (43, 16)
    assert account.left_out == {"not needed": 24, "repeated": 3}
    assert "16 of 43 rows used; left out: 24 not needed, 3 repeated" in account.lines()[0]


def test_seed_tasks_have_an_account_and_the_flags_of_files(tmp_path) -> None:
    seeds = [
        {"question": f"Name {noun}.", "output": "A.", "mood": 1} for noun in ("two trees", "a car")
    ]
    path = write(tmp_path / "seeds.jsonl", *seeds, {"question": "Name it.", "output": ""})
    names = {"columns": "question=instruction", "broken": "drop"}
    _, settings = offered(tmp_path, 40, seeds=path, **names)
    source = source_of(settings)
    account = next(each for each in source.accounts if each.name == str(path))
    assert [row.instruction for row in source.seeds()] == ["Name two trees.", "Name a car."]
    assert (account.left_out, account.unread) == ({"empty": 1}, {"mood": 2})
    _, settings = offered(tmp_path, 40, seeds=Path("shipped-en"))
    assert len(source_of(settings).accounts) == 1


def reply(text: str, rank: int, *replies: object) -> dict:
    return {"role": "assistant", "text": text, "rank": rank, "replies": list(replies)}


def test_a_tree_is_left_out_once_whatever_it_holds(tmp_path) -> None:
    def tree(question: str) -> dict:
        further = {"role": "prompter", "text": "And then?"}
        further["replies"] = [reply("So.", 0), reply("Not so.", 1)]
        return {
            "prompt": {
                "role": "prompter",
                "text": question,
                "replies": [reply("Ann.", 0, further), reply("Bob.", 1, further)],
            }
        }

    leak, other = "Who walked on the moon before all others did?", "How do bees find their hive?"
    rows = write(tmp_path / "rows.jsonl", {"instruction": leak, "output": "Ann."})
    path = write(tmp_path / "trees.jsonl", tree(leak), tree(other))
    inputs, settings = offered(tmp_path, 40, data=rows, rankings=path)
    account = next(
        each for each in source_of(settings).accounts if each.name == str(inputs.rankings)
    )
    assert (account.rows, account.used) == (2, 1)
    assert account.left_out == {"leak": 1} and not account.partly_left_out


@given(
    rows=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 3)), max_size=12),
    data=st.data(),
)
def test_rows_are_used_or_left_out_and_never_both(rows, data) -> None:
    account = FileAccount("a.jsonl", rows=sum(gathered for _, gathered in rows))
    for records, gathered in rows:
        account.note_records(records, gathered)
    row_of = [at for at, (records, _) in enumerate(rows) for _ in range(records)]
    gone: set[int] = set()
    for reason in ("leak", "repeated", "too long"):
        positions = data.draw(
            st.lists(st.sampled_from(range(len(row_of)))) if row_of else st.just([])
        )
        account.leave_out(reason, positions)
        gone |= {*positions}
    used = {row_of[at] for at in range(len(row_of)) if at not in gone}
    assert account.used == sum(rows[at][1] for at in used) >= 0
    assert account.rows == account.used + account.left_out.total()
    assert account.partly_left_out.total() == sum(row_of[at] in used for at in gone)


def test_long_instances_of_a_row_are_one_row(tmp_path) -> None:
    instances = [{"input": str(n), "output": "x"} for n in range(3)]
    row = {"instruction": "Go.", "instances": instances}
    reading = Reading("instructions")
    tasks = read_instructions(write(tmp_path / "a.jsonl", row, row, GOOD), reading)
    account = reading.account
    account.leave_out("too long", [0, 1, 2, 3])
    assert (len(tasks), account.used, account.left_out) == (7, 2, {"too long": 1})
    assert account.to_json()["partly_left_out"] == {"too long": 1}
    assert "of rows that hold several records, left out: 1 too long" in account.lines()[-1]


LINES = "one line\u2028for\u2029JSON\x85"


def test_answers_with_any_line_separator_are_read_back(tmp_path) -> None:
    (tmp_path / "answers.jsonl").write_text(json.dumps({"text": LINES}, ensure_ascii=False) + "\n")
    assert _answers(tmp_path) == [{"text": LINES}]
    (tmp_path / "answers.jsonl").write_text('{"text": "a"}\n{"te')
    with pytest.raises(UserError, match=r"answers.jsonl:2: is not an answer"):
        _answers(tmp_path)
    assert _answers(tmp_path / "other") == []


def test_assignments_are_read_whole(tmp_path) -> None:
    assigned = [SplitAssignment("a", "sft", (LINES,)), SplitAssignment("b", "eval", ("y",))]
    path = tmp_path / "assignments.jsonl"
    write_assignments(path, assigned)
    assert read_assignments(path) == assigned
    path.write_text(path.read_text()[:-5])
    with pytest.raises(UserError, match=r"assignments.jsonl:2: is not an assignment; restore"):
        read_assignments(path)


def test_a_message_without_its_tree_is_named_by_the_answers_command(tmp_path) -> None:
    row = {"message_id": "b", "parent_id": "gone", "role": "assistant", "text": "x"}
    path = write(tmp_path / "a.jsonl", row)
    assert f"{path}:1: a message before it" in refusal(read_prompts_to_answer, path)


def test_the_files_of_commands_have_their_account(tmp_path) -> None:
    rows = [
        {"prompt": f"Name {noun} trees of this wood.", "completion": "Yes.", "mood": "x"}
        for noun in ("two", "seven tall", "all", "the oldest")
    ]
    data = write(tmp_path / "data.jsonl", *(row | {"mood": None} for row in rows))
    held_out = write(tmp_path / "held.jsonl", {"prompt": "Why does it rain in April?", "mood": "x"})
    words = ["split", "--data", str(data), "--against", str(held_out)]
    code, said, _ = tried([*words, "--out", str(tmp_path / "out")])
    assert code == 0 and f"{held_out}: columns that are not read: `mood` (1 rows)" in said
    scored = {"prompt": "Why? Do not use any commas.", "answer": "So.", "label": True}
    path = write(tmp_path / "scored.jsonl", scored, scored | {"label": False})
    code, said, _ = tried(["checks", "score", "--file", str(path)])
    assert code == 0 and f"{path}: 1 of 2 rows used; left out: 1 bad label" in said
    assert "columns that are not read" not in said
    asked = [{"role": "user", "content": "Why? Answer in exactly one sentence."}]
    path = write(tmp_path / "messages.jsonl", {"messages": asked, "answer": "So it is."})
    code, said, _ = tried(["checks", "score", "--file", str(path)])
    assert code == 0 and "1 answers" in said


def test_gold_questions_have_their_account_and_one_right_order(tmp_path) -> None:
    rows = [
        {"prompt": "Which?", "responses": ["a", "b"], "ranks": [1, 2], "mood": "x"},
        {"prompt": "Which?", "responses": ["a", "b"], "ranks": [2, 1]},
        {"prompt": "Who?", "responses": ["a", "b"], "ranks": [1, 2]},
    ]
    path = write(tmp_path / "gold.jsonl", *rows)
    lines: list[str] = []
    best: dict[str, str] = {}

    def add_sets(sets, *, origin, gold) -> int:
        for prompt, completions in sets:
            texts = {completion.id: completion.text for completion in completions}
            best[prompt.instruction] = texts[gold[prompt.id][0][0]]
        return len(best)

    store = SimpleNamespace(add_sets=add_sets, database=SimpleNamespace(shown="p.db"))
    _add_gold(store, path, SimpleNamespace(say=lines.append))
    assert lines[0] == f"{path}: columns that are not read: `mood` (1 rows)"
    assert lines[1].startswith("2 gold questions added")
    assert lines[1].endswith("; 1 further rankings of the same prompts left out")
    assert best == {"Which?": "a", "Who?": "a"}
