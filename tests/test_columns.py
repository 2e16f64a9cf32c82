"""No column is ignored in silence, and every row is used or counted."""

import json
import shlex
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import (
    FileAccount,
    Reading,
    read_instructions,
    read_pairs,
    read_prompts,
    read_rankings,
)
from alpaca_rlhf.data.readers.columns import column_names
from alpaca_rlhf.data.splits import check_disjoint
from alpaca_rlhf.settings.inputs import Inputs
from alpaca_rlhf.sources import reading_of
from alpaca_rlhf.stages.preflight import leak_way_out
from tests.mutated_rows import fuzz
from tests.mutations import tried

HUGE = 10**400
"""A whole number that JSON holds and no float does."""

GOOD = {"instruction": "Name a colour.", "output": "Blue."}
USER = {"role": "user", "content": "Which colour?"}
BLUE, RED = ({"role": "assistant", "content": text} for text in ("Blue.", "Red."))


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refusal(read, path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["label", "kto_tag", "weight"])
@pytest.mark.parametrize("bad", [False, 0, 0.0, "False", "0"])
def test_rows_that_a_label_marks_as_bad_are_left_out_and_counted(tmp_path, name, bad) -> None:
    row = {"prompt": "Who are you?", "completion": "Go away."}
    good = {"prompt": "Who are you?", "completion": "A llama.", name: 1}
    messages = {"messages": [USER, RED], name: bad}
    path = write(tmp_path / "a.jsonl", row | {name: bad}, good, messages, GOOD | {name: None})
    reading = Reading("instructions")
    rows = read_instructions(path, reading)
    assert [row.output for row in rows] == ["A llama.", "Blue."]
    assert reading.account.to_json()["left_out"] == {"bad label": 2}
    assert "2 of 4 rows used; left out: 2 bad label" in reading.account.lines()[0]
    assert "nothing is left of its 1 rows" in refusal(
        read_instructions, write(tmp_path / "b.jsonl", row | {name: bad})
    )


def test_a_label_that_says_neither_is_refused(tmp_path) -> None:
    for value in (2, "maybe", [], -1):
        message = refusal(read_instructions, write(tmp_path / "a.jsonl", GOOD | {"label": value}))
        assert "column `label` must be true" in message and "--columns label=-" in message


@pytest.mark.parametrize("name", ["tools", "tool_calls", "images", "audio", "function_call"])
def test_what_is_not_text_is_refused_beside_it(tmp_path, name) -> None:
    pair = {"prompt": "Go.", "chosen": "Yes.", "rejected": "No."}
    message = {"messages": [USER, BLUE | {name: [{"name": "f"}]}]}
    for read, row in (
        (read_instructions, GOOD | {name: [{"name": "f"}]}),
        (read_instructions, message),
        (read_pairs, pair | {name: "x.png"}),
    ):
        assert f"`{name}`" in refusal(read, write(tmp_path / "a.jsonl", row))
    for nothing in (None, [], "", "[]", {}, [None]):
        read_instructions(write(tmp_path / "a.jsonl", GOOD | {name: nothing}))


@pytest.mark.parametrize("name", ["system", "system_prompt", "system_message"])
def test_a_system_column_is_the_system_text_of_every_shape(tmp_path, name) -> None:
    answers = {"chosen": "Yes.", "rejected": "No."}
    reply = {"role": "assistant", "content": "Blue."}
    tree = {"role": "prompter", "text": "Go.", "replies": []}
    tree["replies"] = [{"role": "assistant", "text": t, "rank": n} for n, t in enumerate("ab")]
    shapes = [
        (read_instructions, GOOD),
        (read_instructions, {"messages": [USER, reply]}),
        (read_instructions, {"prompt": [USER], "completion": [reply]}),
        (read_instructions, {"instruction": "Go.", "instances": [{"output": "Went."}]}),
        (read_pairs, {"prompt": "Go.", **answers}),
        (read_pairs, {"prompt": [USER], **answers}),
        (read_pairs, {"chosen": [USER, BLUE], "rejected": [USER, RED]}),
        (read_rankings, {"prompt": "Go.", "responses": ["a", "b"], "ranks": [1, 2]}),
        (read_rankings, {"prompt": tree}),
    ]
    for read, row in shapes:
        reading = Reading("instructions" if read is read_instructions else "rankings")
        (record,) = read(write(tmp_path / "a.jsonl", row | {name: "Be brief."}), reading)
        prompt = record if read is read_instructions else getattr(record, "prompt", record)
        prompt = prompt[0] if isinstance(prompt, tuple) else prompt
        assert prompt.system == "Be brief.", row
        assert name not in reading.account.unread, row
        read(write(tmp_path / "a.jsonl", row | {name: " "}))


def test_columns_that_are_not_read_are_named_and_counted(tmp_path) -> None:
    rows = [GOOD | {"category": "qa", "prompt": "What?", "id": 1}, GOOD | {"category": None}]
    reading = Reading("instructions", account=FileAccount("mine.jsonl"))
    read_instructions(write(tmp_path / "a.jsonl", *rows), reading)
    assert reading.account.unread == {"category": 1, "prompt": 1, "id": 1}
    assert "columns that are not read: `category` (1 rows)" in reading.account.lines()[0]
    pairs = Reading("rankings")
    row = {"chosen": [USER, BLUE], "rejected": [USER, RED], "prompt_id": 3, "messages": [USER]}
    read_pairs(write(tmp_path / "b.jsonl", row), pairs)
    assert set(pairs.account.unread) == {"prompt_id", "messages"}


def test_broken_rows_can_be_left_out_by_reason(tmp_path) -> None:
    path = write(tmp_path / "a.jsonl", GOOD, GOOD | {"output": ""}, GOOD | {"output": 3}, [1])
    refusing = Reading("instructions", drop_flag="--inputs.broken drop")
    message = refusal(lambda path: read_instructions(path, refusing), path)
    assert "; mend them, leave them out with --inputs.broken drop, or see all of them" in message
    reading = Reading("instructions", drop_broken=True)
    assert len(read_instructions(path, reading)) == 1
    assert reading.account.left_out == {"empty": 1, "unusable": 2}
    assert reading.account.rows == reading.account.used + reading.account.left_out.total()
    path.write_text(path.read_text() + '{"instruction": ')
    assert refusal(read_instructions, path)


def test_columns_are_renamed_by_a_flag(tmp_path) -> None:
    names = column_names("question=instruction, answer=output, images=-", "--columns")
    row = {"question": "Who?", "answer": "Ann.", "images": ["x.png"]}
    path = write(tmp_path / "a.jsonl", row)
    reading = Reading("instructions", columns=names)
    assert read_instructions(path, reading)[0].output == "Ann."
    assert not reading.account.unread
    for wrong in ("question", "a=", "a=b,c=b", "a=b,a=c"):
        with pytest.raises(UserError, match="--columns"):
            column_names(wrong, "--columns")
    words = ["import", str(path), "--columns", "question=instruction,answer=output,images=-"]
    assert tried([*words, "--out", str(tmp_path / "out")])[0] == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["columns"] == names and manifest["rows_kept"] == 1
    code, _, err = tried(["import", str(path), "--out", str(tmp_path / "other")])
    assert code == 2 and "--columns question=instruction" in err and len(err) < 500


def test_import_counts_bad_labels_and_names_unread_columns(tmp_path) -> None:
    row = {"prompt": "Who?", "completion": "Ann.", "mood": "x"}
    path = write(tmp_path / "a.jsonl", row | {"label": True}, row | {"label": False})
    code, said, _ = tried(["import", str(path), "--out", str(tmp_path / "out")])
    assert code == 0 and "columns that are not read: `mood` (2 rows)" in said
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["rows_kept"], manifest["unread_columns"]) == (1, {"mood": 2})
    assert list(manifest["rows_dropped"].values()) == [1]


def test_split_leaves_out_rows_marked_bad(tmp_path) -> None:
    rows = [
        {"prompt": f"Name {noun} number {number}.", "completion": "Yes.", "label": number > 0}
        for number, noun in enumerate(("trees", "cars", "songs", "lakes", "stars", "cakes"))
    ]
    path = write(tmp_path / "a.jsonl", *rows)
    code, said, _ = tried(["split", "--data", str(path), "--out", str(tmp_path / "out")])
    assert code == 0 and "5 of 6 rows used; left out: 1 bad label" in said
    written = "".join(file.read_text() for file in (tmp_path / "out").glob("*.jsonl"))
    assert "cars" in written and "trees" not in written
    write(path, *rows, {"prompt": 3})
    code, _, err = tried(["split", "--data", str(path), "--out", str(tmp_path / "other")])
    assert code == 2 and "; mend them, leave them out with --broken drop, or see all" in err
    words = ["split", "--data", str(path), "--broken", "drop", "--out", str(tmp_path / "other")]
    code, said, _ = tried(words)
    assert code == 0 and "5 of 7 rows used; left out: 1 bad label, 1 unusable" in said


def test_split_renames_the_columns_of_its_files_and_of_evaluation_sets(tmp_path) -> None:
    nouns = ("trees", "cars", "songs", "lakes", "stars", "cakes")
    rows = [{"question": f"Name {noun}, please.", "answer": f"Some {noun}."} for noun in nouns]
    path = write(tmp_path / "my rows.jsonl", *rows)
    held_out = write(tmp_path / "held out.jsonl", {"question": "Name cars, please."})
    words = ["split", "--data", str(path), "--against", str(held_out)]
    code, _, err = tried([*words, "--out", str(tmp_path / "out")])
    assert code == 2 and err.count("\n") == 1
    assert "say which: --columns question=instruction,answer=output, or see: " in err
    code, said, err = tried(
        [*words, "--columns", "question=instruction,answer=output", "--out", str(tmp_path / "out")]
    )
    assert code == 0 and "1 rows lie near one of them" in said, err
    written = "".join(file.read_text() for file in (tmp_path / "out").glob("*.jsonl"))
    assert "Some trees." in written
    code, _, err = tried([*words, "--columns", "query=instruction", "--out", str(tmp_path / "x")])
    assert code == 2 and not (tmp_path / "x").exists()
    columns = "question=instruction,answer=output,mood=-"
    code, _, err = tried([*words, "--columns", columns, "--out", str(tmp_path / "x")])
    assert code == 2 and "--columns mood=-: none of the files has a column `mood`" in err


def test_a_name_of_the_hub_is_told_how_to_be_read(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = tried(["import", "tatsu-lab/alpaca", "--out", "out"])
    assert code == 2 and "alpaca-rlhf import hub:tatsu-lab/alpaca --out FOLDER" in err
    assert "hub:" not in tried(["import", "mine/rows.jsonl", "--out", "out"])[2]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Which colour?", "chosen": [USER, BLUE], "rejected": [USER, RED]},
        {"prompt": [USER], "chosen": [BLUE], "rejected": [RED]},
        {"prompt": [USER], "chosen": [USER, BLUE], "rejected": [USER, RED]},
        {"chosen": [USER, BLUE], "rejected": [USER, RED]},
        {"chosen": "Which colour? Blue.", "rejected": "Which colour? Red."},
        {"prompt": "Which colour?", "chosen": [BLUE], "rejected": [RED]},
        {
            "chosen": [
                {"role": "user", "content": [{"type": "text", "text": "Which colour?"}]},
                {"role": "model", "content": "Blue."},
            ],
            "rejected": [USER, RED],
        },
    ],
)
def test_preference_shapes_give_the_same_pair(tmp_path, row) -> None:
    (pair,) = read_pairs(write(tmp_path / "a.jsonl", row))
    assert (pair.prompt.instruction, pair.chosen, pair.rejected) == (
        "Which colour?",
        "Blue.",
        "Red.",
    )


def test_conversations_that_answer_different_prompts_are_refused(tmp_path) -> None:
    other = {"role": "user", "content": "Which fruit?"}
    for row, says in (
        ({"chosen": [USER, BLUE], "rejected": [other, RED]}, "part before their last answer"),
        ({"chosen": [USER], "rejected": [USER, RED]}, "`chosen` must end with the assistant"),
        ({"chosen": [BLUE], "rejected": [RED]}, "hold one answer each"),
        ({"prompt": "Why?", "chosen": [USER, BLUE], "rejected": [USER, RED]}, "none of the user's"),
        ({"chosen": "Blue.", "rejected": "Red."}, "expected a column `prompt`"),
    ):
        assert says in refusal(read_pairs, write(tmp_path / "a.jsonl", row))


def test_messages_as_prompt_and_completion_are_a_conversation(tmp_path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        {"prompt": [USER], "completion": [BLUE]},
        {"prompt": [USER, RED, USER], "completion": "Blue."},
        {"prompt": "Which colour?", "completion": [BLUE]},
    )
    one, two, three = read_instructions(path)
    assert one.instruction == three.instruction == "Which colour?" and one.output == "Blue."
    assert two.history == (("Which colour?", "Red."),) and two.output == "Blue."


def test_raw_ultrafeedback_is_ranked_by_its_ratings(tmp_path) -> None:
    marks = {"honesty": {"Rating": "2"}, "helpfulness": {"Rating": "N/A"}}
    path = write(
        tmp_path / "a.jsonl",
        {
            "instruction": "Who?",
            "models": ["a", "b"],
            "completions": [
                {"response": "Ann.", "overall_score": 3.0},
                {"response": "Bob.", "overall_score": 8.5},
            ],
        },
        {
            "instruction": "Why?",
            "completions": [
                {"response": "So.", "annotations": marks},
                {"response": "As.", "annotations": {"honesty": {"Rating": "5"}}},
                {"response": "Unrated.", "annotations": {"honesty": {"Rating": "N/A"}}},
            ],
        },
        {"prompt": "How?", "responses": ["Well.", "Ill."], "ratings": [1, 4]},
    )
    for best, (_, completions, ranking) in zip(
        ("Bob.", "As.", "Ill."), read_rankings(path), strict=True
    ):
        texts = {completion.id: completion.text for completion in completions}
        assert len(texts) == 2 and texts[ranking.tiers[0][0]] == best


@pytest.mark.parametrize(
    "names",
    [
        ("score_chosen", "score_rejected"),
        ("chosen_score", "rejected_score"),
        ("chosen-rating", "rejected-rating"),
        ("chosen_rating", "rejected_rating"),
    ],
)
def test_scores_of_a_pair_agree_with_it(tmp_path, names) -> None:
    pair = {"prompt": "Which colour?", "chosen": [USER, BLUE], "rejected": [USER, RED]}
    plain = {"instruction": "Why?", "chosen": "So.", "rejected": "No."}

    def scored(row: dict, *scores: object) -> dict:
        return row | dict(zip(names, scores, strict=True))

    good = [scored(pair, 8.5, 8.0), scored(plain, "5", 4), scored(pair, 8.0, None)]
    ties = [scored(pair, 7.0, 7), scored(plain, 4, 4)]
    reading = Reading("rankings")
    assert len(read_pairs(write(tmp_path / "a.jsonl", *good, *ties), reading)) == 3
    assert reading.account.left_out == {"tie": 2} and not reading.account.unread
    for row, says in (
        (scored(pair, 3.0, 8.5), f"`{names[0]}` is below `{names[1]}`: they contradict"),
        (scored(plain, "high", 4), f"column `{names[0]}` must be a number"),
    ):
        path = write(tmp_path / "b.jsonl", good[0], row)
        assert f"{path}:2: {says}" in refusal(read_pairs, path)
    out = tmp_path / "out"
    path = write(tmp_path / "b.jsonl", good[0], *ties, scored(plain, 3.0, 8.5))
    assert tried(["import", str(path), "--out", str(out)])[0] == 2
    code, said, _ = tried(["import", str(path), "--out", str(out), "--broken", "drop"])
    assert code == 0 and "4 rows read, 1 good (1 records), 3 not" in said
    assert "its two answers tie" in said and "contradict `chosen`" in said
    without = ["--columns", f"{names[0]}=-,{names[1]}=-", "--out", str(tmp_path / "all")]
    assert tried(["import", str(path), *without])[0] == 0


def test_answers_that_stand_in_no_ranking_are_counted_by_reason(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    scores = ({"overall_score": score} for score in (3.0, "N/A", 8.5, None))
    rated = {
        "instruction": "Who?",
        "completions": [
            {"response": text} | next(scores) for text in ("Ann.", "Bob.", "Cy.", "D.")
        ],
    }
    kept = {"without a rating": 2}
    reading = Reading("rankings", account=FileAccount("a.jsonl"))
    [(_, answers, _)] = read_rankings(write(tmp_path / "a.jsonl", rated), reading)
    assert [answer.text for answer in answers] == ["Ann.", "Cy."]
    assert reading.account.to_json()["answers_left_out"] == kept
    said = "answers that stand in no ranking: 2 without a rating"
    assert f"a.jsonl: {said}" in reading.account.lines()
    code, out, _ = tried(["import", "a.jsonl", "--out", "out"])
    assert code == 0 and said in out
    assert json.loads(Path("out/manifest.json").read_text())["answers_dropped"] == kept
    assert tried(["data", "export", "out", "--to", "jsonl", "--out", "card"])[0] == 0
    assert "Answers left out: 2 without a rating" in Path("card/README.md").read_text()


def test_replies_of_trees_that_stand_in_no_ranking_are_counted_by_reason(tmp_path) -> None:
    def said(role: str, text: str, *replies: dict, **more: object) -> dict:
        return {"role": role, "text": text, "replies": list(replies), **more}

    only = said("prompter", "And?", said("assistant", "Alone.", rank=0))
    gone = said("prompter", "Why?", said("assistant", "Below."), said("assistant", "Below too."))
    root = said(
        "prompter",
        "Who?",
        said("assistant", "Ann.", only, rank=1),
        said("assistant", "Bob.", rank=0),
        said("assistant", "Nobody ranked this."),
        said("assistant", "Gone.", gone, rank=2, deleted=True),
    )
    unranked = said("prompter", "How?", said("assistant", "So."))
    reading = Reading("rankings")
    path = write(tmp_path / "a.jsonl", {"prompt": root}, {"prompt": unranked})
    assert len(read_rankings(path, reading)) == 1
    account = reading.account.to_json()
    assert account["answers_left_out"] == {
        "below a deleted one": 2,
        "deleted": 1,
        "without a rank": 1,
        "alone": 1,
    }
    assert (account["used"], account["left_out"]) == (1, {"unusable": 1})


def test_a_leak_names_the_next_steps() -> None:
    inputs = Inputs(data=Path("a b.jsonl"), prompts=Path("p.jsonl"), judge="human")
    rows = [Instruction("Name three blue things in the sky.")]
    with pytest.raises(UserError) as caught:
        check_disjoint({"sft": rows, "ppo": rows}, way_out=leak_way_out(inputs))
    message = str(caught.value)
    assert "alpaca-rlhf split --data 'a b.jsonl' p.jsonl --out FOLDER" in message
    assert "--inputs.leaks drop" in message and "\n" not in message


def test_the_way_out_of_a_leak_reads_the_files_as_the_run_did(tmp_path) -> None:
    """The suggested `split` takes a file whose columns are renamed and whose broken rows go."""
    nouns = ("trees", "cars", "songs", "lakes", "stars", "cakes")
    rows = [{"question": f"Name {noun}, please.", "output": f"Some {noun}."} for noun in nouns]
    data = write(tmp_path / "my rows.jsonl", *rows, {"question": 3})
    prompts = write(tmp_path / "prompts.jsonl", {"question": "Name cars, please."})
    inputs = Inputs(
        data=data, prompts=prompts, judge="human", columns="question=instruction", broken="drop"
    )
    command = leak_way_out(inputs).partition("deal all rows with: ")[2].partition(" (then ")[0]
    words = shlex.split(command)
    assert words[:2] == ["alpaca-rlhf", "split"]
    code, _, err = tried([*words[1:-1], str(tmp_path / "splits")])
    assert code == 0, err
    written = "".join(file.read_text() for file in (tmp_path / "splits").glob("*.jsonl"))
    assert all(f"Name {noun}, please." in written for noun in nouns)


@pytest.mark.parametrize("seeds", ["shipped", "shipped-en", "shipped-zh"])
def test_the_shipped_seed_tasks_are_no_file_to_deal(seeds) -> None:
    inputs = Inputs(seeds=Path(seeds), prompts=Path("p.jsonl"), judge="human")
    way_out = leak_way_out(inputs)
    assert "split" not in way_out and way_out.endswith("with --inputs.leaks drop")
    own = Inputs(seeds=Path("mine.jsonl"), prompts=Path("p.jsonl"), judge="human")
    assert "split --data mine.jsonl p.jsonl --out FOLDER" in leak_way_out(own)


def test_mutated_rows_are_used_counted_or_refused(tmp_path) -> None:
    ended = fuzz(tmp_path, 300, seed=7)
    assert ended["failures"] == []
    assert ended["rows"] == sum(ended["ends"].values()) == 300
    assert {"used", "unusable", "bad label", "empty"} <= set(ended["ends"])


def test_keys_of_messages_that_are_not_read_are_named(tmp_path) -> None:
    reply = {"role": "assistant", "content": "Hello.", "reasoning_content": "Hm.", "mask": True}
    row = {"messages": [{"role": "user", "content": "Hi.", "name": ""}, reply]}
    reading = Reading("instructions")
    read_instructions(write(tmp_path / "a.jsonl", *[row, row]), reading)
    assert reading.account.unread == {"messages[].reasoning_content": 2, "messages[].mask": 2}
    pair = {"prompt": [row["messages"][0]], "chosen": [reply | {"weight": 0}], "rejected": "No."}
    pairs = Reading("rankings")
    read_pairs(write(tmp_path / "a.jsonl", *[pair]), pairs)
    assert {*pairs.account.unread} == {
        "chosen[].reasoning_content",
        "chosen[].mask",
        "chosen[].weight",
    }


def test_a_reply_that_is_not_trainable_carries_no_loss(tmp_path) -> None:
    texts = [("user", "Hi."), ("assistant", "Hello."), ("user", "And?"), ("assistant", "Bye.")]
    messages = [{"role": role, "content": text} for role, text in texts]
    messages[1]["trainable"] = False
    [row] = read_instructions(write(tmp_path / "a.jsonl", *[{"messages": messages}]))
    assert row.masked_replies == (0,)


def test_nan_in_a_table_is_no_text(tmp_path) -> None:
    """As pandas fills a column of which no row, or not every one, has a text."""
    columns = {"instruction": ["Hi."], "output": ["Yo."]}
    gaps = {name: [float("nan")] for name in ("input", "system", "source", "note")}
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table(columns | gaps), path)
    reading = Reading("instructions")
    [row] = read_instructions(path, reading)
    assert (row.instruction, row.input, row.system, row.output) == ("Hi.", "", "", "Yo.")
    assert not reading.account.unread
    # What says whether a row is learned from must say it.
    parquet.write_table(pyarrow.table(columns | {"label": [float("nan")]}), path)
    with pytest.raises(UserError, match="`label` must be true"):
        read_instructions(path)


def test_a_prompt_is_the_last_question_whatever_carries_loss(tmp_path) -> None:
    messages = [USER, BLUE, {"role": "user", "content": "And then?"}, {**RED, "weight": 0}]
    path = write(tmp_path / "a.jsonl", {"messages": messages})
    [prompt] = read_prompts(path)
    assert (prompt.instruction, prompt.history) == ("And then?", (("Which colour?", "Blue."),))
    [row] = read_instructions(path)
    assert (row.instruction, row.output) == ("Which colour?", "Blue.")
    assert read_prompts(write(path, {"messages": [USER, {**BLUE, "weight": 0}]}))


def test_two_answers_without_a_verdict_are_refused(tmp_path) -> None:
    row = {"instruction": "Hi.", "output_1": "Hello.", "output_2": "No."}
    assert len(read_pairs(write(tmp_path / "a.jsonl", *[row]))) == 1, (
        "without the column the first is better"
    )
    with pytest.raises(UserError, match="`preference` is empty"):
        read_pairs(write(tmp_path / "a.jsonl", *[row | {"preference": None}]))
    for name, value in (("winner", "output_2"), ("label", 0), ("better", "b")):
        path = write(tmp_path / "a.jsonl", row | {name: value})
        with pytest.raises(UserError, match=f"--columns {name}=preference"):
            read_pairs(path)
    reading = Reading("rankings", columns={"better": "preference"})
    assert read_pairs(path, reading)[0].chosen == "No."
    assert read_pairs(path, Reading("rankings", columns={"better": "-"}))[0].chosen == "Hello."


@pytest.mark.parametrize(
    "before",
    [
        "human: Hi.\n\nassistant: ",
        "### Human: Hi. ### Assistant: ",
        "USER: Hi. ASSISTANT: ",
        "User: Hi.\nBot: ",
        "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n",
        "<|user|>\nHi.</s>\n<|assistant|>\n",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<start_of_turn>user\nHi.<end_of_turn>\n<start_of_turn>model\n",
        "<s>[INST] Hi. [/INST] ",
        "### Instruction:\nHi.\n\n### Response:\n",
    ],
)
def test_dialogues_in_marks_that_are_not_read_are_no_prompt(tmp_path, before) -> None:
    """What they begin with alike would be learned as the user's own words."""
    rows = [{"chosen": f"{before}Hello.", "rejected": f"{before}Go away."}]
    with pytest.raises(UserError, match="marks that are not read: write them as lists of messages"):
        read_pairs(write(tmp_path / "a.jsonl", *rows))


@pytest.mark.parametrize(
    "prompt", ["What is an assistant", "Describe the model", "TL;DR:", "AI is"]
)
def test_a_prompt_may_speak_of_assistants(tmp_path, prompt) -> None:
    path = write(tmp_path / "a.jsonl", {"chosen": f"{prompt} yes.", "rejected": f"{prompt} no."})
    assert read_pairs(path)[0].prompt.instruction == prompt


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        ({"chosen": "a", "rejected": "b", "margin": HUGE}, "margin"),
        ({"chosen": "a", "rejected": "b", "score_chosen": HUGE, "score_rejected": 1}, "score_cho"),
        ({"responses": ["a", "b"], "scores": [HUGE, 1]}, "scores"),
        ({"responses": ["a", "b"], "ranks": [2**63, 1]}, "ranks"),
        ({"responses": [{"text": "a", "rating": HUGE}, {"text": "b", "rating": 1}]}, "rating"),
        ({"answers": [{"answer": "a", "rank": HUGE}, {"answer": "b", "rank": 1}]}, "rank"),
    ],
)
def test_numbers_that_nothing_can_hold_are_broken_rows(tmp_path, columns, name) -> None:
    path = write(tmp_path / "a.jsonl", {"prompt": "Hi.", **columns})
    with pytest.raises(UserError, match=f"a.jsonl:1: .*`{name}"):
        read_pairs(path) if "chosen" in columns else read_rankings(path)


def test_pairs_under_other_names_are_told_what_they_lack(tmp_path) -> None:
    file = write(
        tmp_path / "a.jsonl", *[{"question": "Hi?", "chosen": "Hello.", "rejected": "Go."}]
    )
    inputs = Inputs(data=file, rankings=file, judge="human")
    with pytest.raises(UserError) as refusal:
        read_pairs(file, reading_of(inputs, "rankings", file))
    assert "columns here: chosen, question, rejected" in str(refusal.value)
    assert "--inputs.columns question=prompt, or see" in str(refusal.value)
