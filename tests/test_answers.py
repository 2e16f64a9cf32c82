"""`alpaca-rlhf answers`: prompts and a policy's answers for other people's benchmarks."""

import json

import pytest

from alpaca_rlhf.cli.main import main
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Completion
from alpaca_rlhf.serving.answer_files import DETAILS, AnswerFile, read_rows
from alpaca_rlhf.serving.sampling_settings import SamplingSettings
from tests.model_app import make_run

IFEVAL = [
    {
        "key": 1000 + i,
        "prompt": f"Write about {word}. Use no commas.",
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{}],
    }
    for i, word in enumerate(("rivers", "stones", "clouds", "horses", "green paper"))
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_folder):
    return make_run(tmp_path_factory.mktemp("answers") / "run", tiny_folder)


def test_ifeval_rows_keep_their_columns_and_get_a_response(run, tmp_path, capsys):
    prompts, out = write(tmp_path / "input_data.jsonl", IFEVAL), tmp_path / "sft.jsonl"
    words = ["answers", str(run), "--prompts", str(prompts), "--max-new-tokens", "12"]
    assert main([*words, "--policy", "sft", "--out", str(out)]) == 0
    rows = rows_of(out)
    for row, asked in zip(rows, IFEVAL, strict=True):
        assert {key: row[key] for key in asked} == asked
        assert isinstance(row["response"], str) and row[DETAILS]["policy"] == "sft"
    # Another batch, a second time, and the chat: the same greedy answers.
    again = tmp_path / "again.jsonl"
    assert main([*words[:4], "--max-new-tokens", "12", "--policy", "sft", "--out", str(again)]) == 0
    assert again.read_bytes() == out.read_bytes()
    capsys.readouterr()
    prompt = ["--prompt", IFEVAL[2]["prompt"], "--temperature", "0", "--max-new-tokens", "12"]
    assert main(["chat", "--run", str(run), "--policy", "sft", *prompt]) == 0
    said = capsys.readouterr().out.strip().removesuffix("...").strip()
    assert said == rows[2]["response"]
    # Every policy, the last by default.
    for policy in ("base", "ppo.2", None):
        flags = ["--policy", policy] if policy else []
        assert main([*words, *flags]) == 0
        file = run / "answers" / f"{policy or 'ppo.2'}-input_data.jsonl"
        answers = [row["response"] for row in rows_of(file)]
        assert answers != [row["response"] for row in rows], policy
        file.unlink()


def test_a_column_that_is_replaced_is_told(run, tmp_path, capsys):
    """AlpacaEval's prompts hold a reference in `output`, which its own format replaces."""
    rows = [{"instruction": "Say A.", "output": "reference"}, {"instruction": "Say B."}]
    prompts = write(tmp_path / "p.jsonl", rows)
    words = ["answers", str(run), "--prompts", str(prompts), "--max-new-tokens", "2"]
    assert main([*words, "--column", "output"]) == 0
    assert "column `output` of 1 rows is replaced in" in capsys.readouterr().out
    assert main([*words, "--column", "mine", "--out", str(tmp_path / "o.jsonl")]) == 0
    assert "is replaced" not in capsys.readouterr().out
    first = rows_of(tmp_path / "o.jsonl")[0]
    assert first["output"] == "reference" and isinstance(first["mine"], str)


class Echo:
    """Answers with the prompt and its surroundings; dies after so many batches."""

    def __init__(self, batches=99):
        self.batches, self.asked = batches, []

    def fingerprint(self, policy):
        return f"weights of {policy}"

    def candidates(self, policy, rows, sampling_settings, *, k):
        if any(len(row.instruction) > 99 for row in rows):
            raise UserError("the instruction is too long: 100 tokens")
        if self.batches == 0:
            raise KeyboardInterrupt
        self.batches -= 1
        self.asked += rows
        return [
            [Completion(row.id, f" {row.system}|{row.history}|{row.instruction} ")] for row in rows
        ]


def answered(file, prompts, answerer, batch=2):
    return list(file.write(answerer, prompts, batch=batch))


def test_history_and_system_are_heard_and_kept(tmp_path):
    rows = [
        {"messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "A?"},
            {"role": "assistant", "content": "B."},
            {"role": "user", "content": "C?"},
        ]},
        {"instruction": "Translate.", "input": "Haus", "output": "house", "id": 7},
    ]  # fmt: skip
    prompts = read_rows(write(tmp_path / "p.jsonl", rows))
    out = tmp_path / "deep" / "o.jsonl"
    answered(AnswerFile(out, "sft", SamplingSettings(0), "output"), prompts, Echo())
    first, second = rows_of(out)
    assert first["messages"] == rows[0]["messages"]
    assert first["output"] == "Be brief.|(('A?', 'B.'),)|C?"
    assert second["id"] == 7 and second["output"] == "|()|Translate."
    assert second["prompt"] == "Translate.\n\nHaus"


def test_it_goes_on_where_it_stopped(tmp_path):
    prompts = read_rows(write(tmp_path / "p.jsonl", IFEVAL))
    whole = AnswerFile(tmp_path / "whole.jsonl", "sft", SamplingSettings(0))
    answered(whole, prompts, Echo())
    file = AnswerFile(tmp_path / "o.jsonl", "sft", SamplingSettings(0))
    with pytest.raises(KeyboardInterrupt):
        answered(file, prompts, Echo(batches=1))
    assert not file.out.exists() and file.log.is_file()
    with file.log.open("a") as log:
        log.write('{"torn')
    echo = Echo()
    assert answered(file, prompts, echo)[0] == (2, 5)
    assert len(echo.asked) == 3
    assert file.out.read_bytes() == whole.out.read_bytes() and not file.log.exists()
    with pytest.raises(UserError, match="is there already"):
        answered(file, prompts, echo)


@pytest.mark.parametrize("change", ["policy", "temperature", "prompts", "column"])
def test_an_interrupted_file_of_another_request_begins_anew(tmp_path, change):
    prompts = read_rows(write(tmp_path / "p.jsonl", IFEVAL))
    out = tmp_path / "o.jsonl"
    with pytest.raises(KeyboardInterrupt):
        answered(AnswerFile(out, "sft", SamplingSettings(0)), prompts, Echo(batches=1))
    changed = {
        "policy": AnswerFile(out, "ppo", SamplingSettings(0)),
        "temperature": AnswerFile(out, "sft", SamplingSettings(0.5)),
        "prompts": AnswerFile(out, "sft", SamplingSettings(0)),
        "column": AnswerFile(out, "sft", SamplingSettings(0), "output"),
    }[change]
    echo = Echo()
    assert answered(changed, prompts[1:] if change == "prompts" else prompts, echo)[0][0] == 0
    assert len(rows_of(out)) == len(echo.asked)


def test_a_row_that_is_broken_or_too_long_is_named(tmp_path):
    path = write(tmp_path / "p.jsonl", [IFEVAL[0], {"prompt": "x" * 100}])
    with pytest.raises(UserError, match=rf"^{path}:2: the instruction is too long"):
        answered(
            AnswerFile(tmp_path / "o.jsonl", "sft", SamplingSettings(0)), read_rows(path), Echo()
        )
    write(path, [IFEVAL[0], {"text": "no prompt"}])
    with pytest.raises(UserError, match=rf"^{path}:2: "):
        read_rows(path)
    path.write_text("")
    with pytest.raises(UserError, match="no rows in it"):
        read_rows(path)


@pytest.mark.parametrize(
    "words, told",
    [
        (["answers", "RUN"], "--prompts is missing"),
        (["answers", "RUN", "--prompts", "absent.jsonl"], "absent.jsonl"),
        (["answers", "RUN", "--prompts", "FILE", "--policy", "dpo"], "--policy dpo: "),
        (["answers", "nowhere", "--prompts", "FILE"], "nowhere: holds no run"),
        (["answers", "--prompts", "FILE"], "expected alpaca-rlhf answers RUN"),
        (["answers", "RUN", "--prompts", "FILE", "--temperature", "-1"], "--temperature"),
    ],
)
def test_a_wrong_request_is_told_in_one_line(run, tmp_path, capsys, words, told):
    places = {"RUN": str(run), "FILE": str(write(tmp_path / "p.jsonl", IFEVAL))}
    assert main([places.get(word, word) for word in words]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
