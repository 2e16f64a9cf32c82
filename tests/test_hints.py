"""Files with unknown columns: the command that is suggested works as it is printed."""

import gzip
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from alpaca_rlhf.core.bases import refuse_no_checkpoint
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.data import Reading, read_instructions, read_pairs, read_prompts
from alpaca_rlhf.data.readers.columns import column_names
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.settings.inputs import Inputs
from alpaca_rlhf.settings.parsing import to_yaml
from alpaca_rlhf.sources import reading_of
from tests.mutations import tried


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def flag_in(message: str, flag: str = "--columns") -> str:
    """The value of the flag in a message, as a shell reads it."""
    words = shlex.split(message.partition(f"{flag} ")[2].replace("(", " ").replace(")", " "))
    return words[0].rstrip(",;")


ANSWERED = [
    ({"Instruction": "Go.", "Response": "Gone."}, "Instruction=instruction,Response=output"),
    ({"question": "Who?", "answer": "Ann."}, "question=instruction,answer=output"),
    ({"query": "Who?", "answers": "Ann."}, "query=instruction,answers=output"),
    ({"QUESTION": "Who?", "text": "Ann."}, "QUESTION=instruction,text=output"),
    (
        {"Prompt": "Go.", "Input": "x", "Output": "y"},
        "Prompt=instruction,Input=input,Output=output",
    ),
]


@pytest.mark.parametrize(("row", "names"), ANSWERED)
def test_columns_of_answered_rows_are_suggested_and_the_flag_works(tmp_path, row, names) -> None:
    path = write(tmp_path / "a.jsonl", row)
    code, _, err = tried(["import", str(path), "--out", str(tmp_path / "out")])
    assert code == 2 and err.count("\n") == 1 and flag_in(err) == names
    words = ["import", str(path), "--columns", flag_in(err), "--out", str(tmp_path / "out")]
    assert tried(words)[0] == 0
    (record,) = map(json.loads, (tmp_path / "out" / "instructions.jsonl").open())
    texts = list(row.values())
    assert [record["instruction"], record["output"]] == [texts[0], texts[-1]]
    with pytest.raises(UserError) as refusal:
        read_instructions(path, reading_of(Inputs(data=path, judge="human"), "instructions", path))
    columns = flag_in(str(refusal.value), "--inputs.columns")
    inputs = Inputs(data=path, judge="human", columns=columns)
    assert len(read_instructions(path, reading_of(inputs, "instructions", path))) == 1


@pytest.mark.parametrize(
    ("row", "names", "kind"),
    [
        ({"question": "Who?"}, "question=instruction", "prompts"),
        ({"text": "Who?"}, "text=instruction", "prompts"),
        ({"text": "Who?", "category": "Questions of all kinds"}, "text=instruction", "prompts"),
        ({"Question": "Who?", "Chosen": "a", "Rejected": "b"}, None, "pairs"),
    ],
)
def test_columns_of_other_rows_are_suggested(tmp_path, row, names, kind) -> None:
    path = write(tmp_path / "a.jsonl", row)
    code, _, err = tried(["data", "check", str(path)])
    names = names or "Question=prompt,Chosen=chosen,Rejected=rejected"
    assert code == 2 and flag_in(err) == names
    words = ["import", str(path), "--columns", names, "--out", str(tmp_path / "out")]
    assert tried(words)[0] == 0 and (tmp_path / "out" / f"{kind}.jsonl").is_file()


def test_pairs_whose_prompt_is_called_otherwise(tmp_path) -> None:
    """Orca's pairs, whose answers may begin alike; that beginning is no prompt."""
    row = {
        "system": "Be brief.",
        "question": "2 + 2?",
        "chosen": "It is 4.",
        "rejected": "It is 5.",
    }
    path = write(tmp_path / "a.jsonl", row, row)
    out = str(tmp_path / "out")
    code, _, err = tried(["import", str(path), "--out", out])
    assert code == 2 and err.count("\n") == 1 and "--columns question=prompt (a run" in err
    assert tried(["import", str(path), "--columns", "question=prompt", "--out", out])[0] == 0
    with pytest.raises(UserError, match=r"--inputs\.columns question=prompt"):
        read_pairs(path, reading_of(Inputs(data=path, judge="human"), "rankings", path))
    inputs = Inputs(data=path, judge="human", columns="question=prompt")
    pair, _ = read_pairs(path, reading_of(inputs, "rankings", path))
    assert (pair.prompt.instruction, pair.prompt.system) == ("2 + 2?", "Be brief.")


def test_an_answer_under_another_name_beside_an_instruction(tmp_path) -> None:
    path = write(tmp_path / "a.jsonl", {"instruction": "Who?", "answer": "Ann."})
    with pytest.raises(UserError, match="--columns answer=output"):
        read_instructions(path)


def test_nothing_is_suggested_that_would_not_work(tmp_path) -> None:
    for row in (
        {"question": "Who?", "answer": {"text": ["Ann"]}, "id": 3},
        {"question": ["Who?"], "answer": "Ann."},
        {"Frage": "Wer?", "Antwort": "Ann."},
    ):
        path = write(tmp_path / "a.jsonl", row)
        code, _, err = tried(["data", "check", str(path)])
        assert code == 2
        if "such as" not in err:
            words = ["import", str(path), "--columns", flag_in(err)]
            assert tried([*words, "--out", str(tmp_path / "out")])[0] == 0


@pytest.mark.parametrize(
    "row",
    [
        {"text": "### Human: Hi.### Assistant: Yo."},
        {"text": "<s>[INST] Hi. [/INST] Yo. </s>"},
        {"text": "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\nYo.<|im_end|>"},
        {"question": "Who?", "answer_0": "Ann.", "answer_1": "Bob."},
        {"question": "Who?", "passage": "It was Ann of the hills.", "id": 3},
        {
            "title": "T",
            "context": "It is Ann.",
            "question": "Who?",
            "answers": {"text": ["Ann"], "answer_start": [6]},
        },
    ],
)
def test_rows_that_hold_more_than_a_prompt_are_not_suggested_as_prompts(tmp_path, row) -> None:
    path = write(tmp_path / "a.jsonl", row)
    code, _, err = tried(["data", "check", str(path)])
    assert code == 2 and err.count("\n") == 1 and "map them:" not in err
    assert "=instruction" not in err.replace("OLD=instruction,OLD=output", "")
    if "text" in row:
        assert "column `text` holds questions and answers" in err
        # Mapped all the same, the answers do not become part of a prompt.
        out = ["--out", str(tmp_path / "out")]
        code, _, err = tried(["import", str(path), "--columns", "text=instruction", *out])
        assert code == 2 and "is rendered with a chat template already" in err


def test_names_that_say_which_answer_is_better_are_suggested(tmp_path) -> None:
    row = {"qid": 1, "question": "Who?", "response_j": "Ann.", "response_k": "Bob."}
    path = write(tmp_path / "a.jsonl", row)
    code, _, err = tried(["data", "check", str(path)])
    names = "question=prompt,response_j=chosen,response_k=rejected"
    assert code == 2 and flag_in(err) == names
    (pair,) = read_pairs(path, Reading("rankings", columns=column_names(names, "--columns")))
    assert (pair.prompt.instruction, pair.chosen, pair.rejected) == ("Who?", "Ann.", "Bob.")


@pytest.mark.parametrize("name", ["conversation", "dialog", "Messages"])
def test_a_dialogue_under_another_name(tmp_path, name) -> None:
    messages = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yo."}]
    path = write(tmp_path / "a.jsonl", {name: messages, "model": "m"})
    code, _, err = tried(["data", "check", str(path)])
    assert code == 2 and flag_in(err) == f"{name}=conversations"
    reading = Reading("instructions", columns={name: "conversations"})
    (row,) = read_instructions(path, reading)
    assert (row.instruction, row.output) == ("Hi.", "Yo.")
    path = write(tmp_path / "b.jsonl", {name: messages[:1], "chosen": "It is a", "rejected": "It"})
    with pytest.raises(UserError, match=f"--columns {name}=prompt;"):
        read_pairs(path)


def test_what_no_name_tells_is_asked_for(tmp_path) -> None:
    """The flag is whole: what it lacks stands as OLD."""
    path = write(tmp_path / "a.jsonl", {"question": "Who?", "a": "Ann."})
    assert "--inputs.columns question=instruction,OLD=output, or see" in refused_by_run(path)
    compared = {"Frage": "Wer?", "completion_a": "Ann.", "completion_b": "Bob.", "preference": 1}
    path = write(tmp_path / "a.jsonl", compared)
    with pytest.raises(UserError, match=r"--inputs\.columns OLD=prompt, or see"):
        read_pairs(path, reading_of(Inputs(data=path, judge="human"), "rankings", path))


ROWS = [{"instruction": "Grüß dich.", "output": "你好"}, {"instruction": "Go.", "output": "Gone."}]


@pytest.mark.parametrize("name", ["data", "my rows", "it's"])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("packed", [False, True])
def test_rows_within_one_object_are_taken_out_as_printed(tmp_path, name, indent, packed) -> None:
    text = json.dumps({"version": "1.0", name: ROWS}, indent=indent, ensure_ascii=False)
    path = tmp_path / ("my file.json.gz" if packed else "my file.json")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    code, _, err = tried(["import", str(path), "--out", str(tmp_path / "out")])
    assert code == 2 and err.count("\n") == 1
    assert f"{path}: is one object, and its rows lie in `{name}`; take them out: " in err
    command = err.strip().partition("take them out: ")[2]
    subprocess.run(["bash", "-ec", command], cwd=tmp_path, check=True)
    (written,) = tmp_path.glob("*.jsonl")
    assert re.fullmatch(r"(data|rows)\.jsonl", written.name)
    assert [json.loads(line) for line in written.open()] == ROWS
    assert tried(["import", str(written), "--out", str(tmp_path / "out")])[0] == 0
    with pytest.raises(UserError, match="its rows lie in"):
        read_instructions(path)


def test_a_file_of_one_row_is_no_object_of_rows(tmp_path) -> None:
    one = {"instruction": "Go.", "output": "Gone.", "references": [{"title": "x"}]}
    assert len(read_instructions(write(tmp_path / "a.jsonl", one))) == 1
    messages = {
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    }
    assert len(read_instructions(write(tmp_path / "a.jsonl", messages))) == 1
    for row in (
        {"dialog": [{"speaker": "A", "text": "Hi."}, {"speaker": "B", "text": "Yo."}]},
        {"chat_log": messages["messages"]},
        {"question": "Who?", "answers": [{"text": "Ann.", "score": 3}, {"text": "Bob."}]},
    ):
        path = write(tmp_path / "a.jsonl", row)
        assert "its rows lie in" not in tried(["data", "check", str(path)])[2]
    several = {"notes": [{"instruction": "Go."}]}
    path = write(tmp_path / "a.jsonl", several, several)
    assert "its rows lie in" not in tried(["data", "check", str(path)])[2]


# --- the command that comes after a refusal -------------------------------------------------------


def command_after(message: str, text: str) -> list[str]:
    """The words of the command at the end of a message, as a shell reads them."""
    assert text in message and message.count("\n") <= 1
    return shlex.split(message.rpartition(text)[2])


def refused_by_run(path: Path, **given: str) -> str:
    """The message about a file of rows in a run with further settings of its inputs."""
    inputs = Inputs(data=path, judge="human", **given)
    with pytest.raises(UserError) as refusal:
        read_instructions(path, reading_of(inputs, "instructions", path))
    return str(refusal.value)


@pytest.mark.parametrize("name", ["rows.jsonl", "my rows.jsonl", "it's $HOME.jsonl"])
def test_data_check_is_named_with_the_whole_path(tmp_path, name) -> None:
    path = write(tmp_path / name, {"instruction": "Go.", "output": "Gone."}, {"instruction": 3})
    typed = command_after(refused_by_run(path), "see all of them with: ")
    assert typed == ["alpaca-rlhf", "data", "check", str(path)]
    code, said, _ = tried(typed[1:])
    assert code == 2 and "2 rows read, 1 good" in said
    path = write(tmp_path / name, {"Frage": "Wer?", "Antwort": "Ann."})
    assert command_after(refused_by_run(path), "or see: ") == typed


def test_data_check_repeats_the_columns_of_the_run(tmp_path) -> None:
    rows = {"my question": "Go.", "answer": "Gone."}, {"my question": 3, "answer": "?"}
    path = write(tmp_path / "my rows.jsonl", *rows)
    message = refused_by_run(path, columns="my question=instruction,answer=output")
    typed = command_after(message, "see all of them with: ")
    code, said, _ = tried(typed[1:])
    assert code == 2 and "2 rows read, 1 good" in said


def test_a_suggested_renaming_repeats_those_that_were_given(tmp_path) -> None:
    """The flag takes the place of the one that was typed, so it holds all of it."""
    path = write(tmp_path / "a.jsonl", {"query": "Who?", "Antwort": "Ann.", "images": []})
    message = refused_by_run(path, columns="Antwort=output,images=-")
    columns = flag_in(message, "--inputs.columns")
    assert columns == "Antwort=output,images=-,query=instruction"
    inputs = Inputs(data=path, judge="human", columns=columns)
    assert len(read_instructions(path, reading_of(inputs, "instructions", path))) == 1
    words = ["import", str(path), "--columns", "Antwort=output,images=-"]
    code, _, err = tried([*words, "--out", str(tmp_path / "out")])
    assert code == 2 and flag_in(err) == columns
    assert tried([*words[:2], "--columns", columns, "--out", str(tmp_path / "out")])[0] == 0
    # A name that was given may be the one to change.
    message = refused_by_run(path, columns="query=question,Antwort=output")
    assert flag_in(message, "--inputs.columns") == "query=instruction,Antwort=output"


def test_leaving_broken_rows_out_is_offered_only_where_some_are_left(tmp_path) -> None:
    path = write(tmp_path / "a.jsonl", {"instruction": "Go."}, {"instruction": 3})
    message = refused_by_run(path)
    assert "broken drop" not in message
    assert f"; mend them, or see all of them with: alpaca-rlhf data check {path}" in message
    # A row that is left out for its label does not make the file worth reading.
    bad = {"instruction": "Go.", "output": "Gone.", "label": False}
    assert "broken drop" not in refused_by_run(write(path, bad, {"instruction": 3}))
    assert "broken drop" in refused_by_run(write(path, bad | {"label": True}, {"instruction": 3}))
    write(path, {"instruction": 3, "output": "Gone."})
    code, _, err = tried(["import", str(path), "--out", str(tmp_path / "out")])
    assert code == 2 and err.endswith("; correct them\n"), err


@pytest.mark.parametrize("packed", [False, True])
def test_latin_1_becomes_utf_8_as_printed(tmp_path, packed) -> None:
    folder = tmp_path / "my files"
    folder.mkdir()
    text = "instruction,output\nGrüß dich.,Hallo.\n".encode("latin-1")
    path = folder / ("old rows.csv.gz" if packed else "old rows.csv")
    path.write_bytes(gzip.compress(text) if packed else text)
    message = refused_by_run(path)
    command = message.partition("from Windows: ")[2]
    subprocess.run(["bash", "-ec", command], cwd=tmp_path, check=True)
    (row,) = read_instructions(folder / "utf8-old rows.csv")
    assert row.instruction == "Grüß dich."


TEXT = 'Grüß dich.\n\nSay "no".\n'


@pytest.mark.parametrize("packed", [False, True])
def test_a_prompt_a_line_becomes_rows_as_printed(tmp_path, packed) -> None:
    path = tmp_path / ("my prompts.txt.gz" if packed else "my prompts.txt")
    path.write_bytes(gzip.compress(TEXT.encode()) if packed else TEXT.encode())
    message = refused_by_run(path)
    assert "is plain text; if each line is a prompt: " in message
    command = message.partition("is a prompt: ")[2]
    (tmp_path / "elsewhere").mkdir()
    subprocess.run(["bash", "-ec", command], cwd=tmp_path / "elsewhere", check=True)
    rows = read_prompts(tmp_path / "my prompts.jsonl")
    assert [row.instruction for row in rows] == ["Grüß dich.", 'Say "no".']
    # Rows of JSON may stand in a file of any name.
    (tmp_path / "rows.txt").write_text('\n {"prompt": "Go."}\n')
    assert len(read_prompts(tmp_path / "rows.txt")) == 1


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["utf-16", "utf-16-le", "utf-16-be", "old Mac"])
def test_other_texts_become_rows_as_printed(tmp_path, kind, packed) -> None:
    folder = tmp_path / "my files"
    folder.mkdir()
    text = "instruction,output\nGo, now.,Went.\n".replace("Go, now.", '"Go, now."')
    data = text.replace("\n", "\r").encode() if kind == "old Mac" else text.encode(kind)
    path = folder / ("old rows.csv.gz" if packed else "old rows.csv")
    path.write_bytes(gzip.compress(data) if packed else data)
    message = refused_by_run(path)
    command = re.split("convert it: |alone: ", message)[1]
    subprocess.run(["bash", "-ec", command], cwd=tmp_path, check=True)
    (written,) = (file for file in folder.glob("*.csv") if file != path)
    (row,) = read_instructions(written)
    assert (row.instruction, row.output) == ("Go, now.", "Went.")


@pytest.mark.parametrize("name", ["mine", "my base"])
def test_a_base_is_named_as_it_is_typed(tmp_path, name) -> None:
    folder = tmp_path / name
    (folder / "snapshots" / "a b").mkdir(parents=True)
    (folder / "snapshots" / "a b" / "config.json").write_text("{}")
    with pytest.raises(UserError) as told:
        refuse_no_checkpoint(str(folder), folder)
    typed = command_after(str(told.value).rstrip("?"), "did you mean ")
    assert typed == ["--base", str(folder / "snapshots" / "a b")]
    (folder / "config.yaml").write_text("")
    (folder / "provenance.json").write_text("{}")
    with pytest.raises(UserError) as told:
        refuse_no_checkpoint(str(folder), folder)
    typed = command_after(str(told.value), "one of its policies: ")
    assert typed == ["alpaca-rlhf", "export", str(folder), "--to", "merged"]
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError) as told:
        refuse_no_checkpoint(str(folder), folder)
    assert command_after(str(told.value), "--inputs.sft-adapter ") == [str(folder)]


def test_a_pointer_of_git_lfs_is_fetched_as_printed(tmp_path) -> None:
    from alpaca_rlhf.models.checkpoint import stored_tensors  # loads torch

    folder = tmp_path / "my base"
    folder.mkdir()
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError) as told:
        stored_tensors(str(folder))
    assert command_after(str(told.value), "fetch them: ") == [
        "git",
        "-C",
        str(folder),
        "lfs",
        "pull",
    ]


def test_the_run_of_a_queue_is_named_as_it_is_typed(tmp_path) -> None:
    run = tmp_path / "my run"
    run.mkdir()
    (run / "config.yaml").write_text(to_yaml(Loop()))
    code, _, err = tried(["judge", str(run), "--by", "reward"])
    assert code == 2
    assert command_after(err, "train it: ") == ["alpaca-rlhf", "reward", "--out", str(run)]
