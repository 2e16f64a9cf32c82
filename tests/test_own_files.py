"""A run on a person's own files: what is made of their seed tasks, and what is refused."""

import json
import random
from string import ascii_lowercase
from types import SimpleNamespace

import pytest

from alpaca_rlhf.cli import main as cli
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import read_instructions
from alpaca_rlhf.smallworld import answered_task, sample_task
from alpaca_rlhf.stages.rank import sampled_sets

ROUGE = 0.7


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rouge_l(text: str, reference: str) -> float:
    """F1 of the longest common subsequence of words, the slow way."""
    a, b = text.lower().split(), reference.lower().split()
    longest = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            longest[i + 1][j + 1] = (
                longest[i][j] + 1 if x == y else max(longest[i][j + 1], longest[i + 1][j])
            )
    return 2 * longest[-1][-1] / (len(a) + len(b))


@pytest.fixture
def files(tmp_path):
    """Seed tasks with answers, and prompts, of the kind that the embedded base can continue."""
    rng = random.Random(0)
    rows = {(row := answered_task(sample_task(rng), rng)).instruction: row for _ in range(400)}
    rows_of_file = [
        {"instruction": row.instruction, "input": row.input, "output": row.output}
        for row in rows.values()
    ]
    seeds = written(tmp_path / "seeds.jsonl", rows_of_file[:20])
    prompts = written(
        tmp_path / "prompts.jsonl", [row | {"output": ""} for row in rows_of_file[20:]]
    )
    return seeds, prompts


def words(files, out, *extra):
    seeds, prompts = files
    flags = ["--inputs.judge", "human", "--inputs.seeds", seeds, "--inputs.prompts", prompts]
    flags += ["--rank.prompts", 6, "--ppo.batch-size", 6, "--ppo.minibatch-size", 6]
    flags += ["--best-of-k.prompts", 6, "--evaluate.prompts", 6, "--out", out]
    return [str(argument) for argument in (*flags, *extra)]


def test_self_instruct_from_seed_tasks_of_ones_own(files, tmp_path, capsys):
    out = tmp_path / "run"
    extra = ["--generate.target", 16, "--generate.max-new-tokens", 96]
    assert cli.main(["generate", *words(files, out, *extra)]) == 0, capsys.readouterr().err
    rows = read_instructions(out / "generate" / "rows.jsonl")
    assert len(rows) == 16 and all(row.output for row in rows)
    seeds = read_instructions(files[0])
    for i, row in enumerate(rows):
        for earlier in (*seeds, *rows[:i]):
            assert rouge_l(row.instruction.strip("?."), earlier.instruction.strip("?.")) <= ROUGE
    events = [json.loads(line) for line in (out / "generate" / "events-00000.jsonl").open()]
    dropped = {drop["rule"] for event in events for drop in event["dropped"]}
    assert "duplicate" in dropped, "a base that knows one small world repeats itself"


def test_generated_rows_near_a_prompt_of_another_split_are_dropped(files, tmp_path):
    from alpaca_rlhf.settings import Loop
    from alpaca_rlhf.settings.parsing import parse
    from alpaca_rlhf.sources import source_of

    settings = parse(Loop, words(files, tmp_path / "run"), prog="test", description="")
    source = source_of(settings)
    for split in ("rank", "ppo", "eval"):
        drop = source.accept(source.prompts(split)[0])
        assert drop is not None and drop.rule == "leak" and split in drop.detail


def test_a_run_learns_from_conversations_and_shows_what_carries_loss(
    files, tmp_path, tiny_folder, capsys
):
    rng = random.Random(1)

    def word():
        return "".join(rng.choices(ascii_lowercase, k=5))

    rows = [{"instruction": word(), "output": "Blue."}]
    for _ in range(7):
        turns = [("user", word()), ("assistant", "a"), ("user", word()), ("assistant", "b c")]
        rows.append({"messages": [{"role": role, "content": text} for role, text in turns]})
    data = written(tmp_path / "talks.jsonl", rows)
    waiting = [
        {"conversations": [*chat(word(), word()), {"from": "human", "value": f"{word()} {word()}"}]}
        for _ in range(24)
    ]
    prompts = written(tmp_path / "waiting.jsonl", waiting)
    out = tmp_path / "run"
    flags = words((data, prompts), out, "--base", tiny_folder, "--template", "brief")
    flags[flags.index("--inputs.seeds")] = "--inputs.data"
    flags += ["--sampling.max-new-tokens", "8", "--ppo.max-new-tokens", "8"]
    flags += ["--rank.k", "2", "--sft.held-out", "0", "--sft.epochs", "1"]
    assert cli.main(["sample", *flags]) == 0, capsys.readouterr().err
    output = capsys.readouterr().out
    text = (out / "sft" / "preview.txt").read_text()
    first, talk = rows[0]["instruction"], rows[1]["messages"]
    assert f"<s>### Instruction: {first}\n\n### Response:[[ Blue.</s>]]\n\nexample 2: " in text, (
        "the first row, and nothing else of it in brackets"
    )
    assert (
        f"<s>### Instruction: {talk[0]['content']}\n\n### Response:[[ a</s>]]"
        f"\n\n### Instruction: {talk[2]['content']}\n\n### Response:[[ b c</s>]]" in text
    )
    assert text.count(" tokens carry loss") == 2
    assert "[[ b c</s>]]" in output  # nobody's terminal: no colours
    ledger = json.loads((out / "ledger.json").read_text())
    assert ledger["sft"]["facts"]["conversations"] == 7
    prompts_of_run = [json.loads(line) for line in (out / "sample" / "prompts.jsonl").open()]
    assert len(prompts_of_run) == 6 and all(len(row["history"]) == 1 for row in prompts_of_run)
    completions_of_run = [
        json.loads(line) for line in (out / "sample" / "completions.jsonl").open()
    ]
    ids = {Instruction.from_json(row).id for row in prompts_of_run}
    assert {row["prompt_id"] for row in completions_of_run} == ids

    run = SimpleNamespace(run=SimpleNamespace(path=out))
    sets = sampled_sets(run, 1)
    assert {prompt.id for prompt, _ in sets} == ids
    assert all(row.prompt_id == prompt.id for prompt, rows in sets for row in rows)


def chat(question, reply):
    return [{"from": "human", "value": question}, {"from": "gpt", "value": reply}]


def test_conversations_are_no_seed_tasks(files, tmp_path, capsys):
    seeds = written(tmp_path / "talks.jsonl", [{"conversations": chat("a", "b") + chat("c", "d")}])
    assert cli.main(["generate", *words((seeds, files[1]), tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert f"--inputs.seeds {seeds}: 1 of 1 rows are conversations" in error
    assert "--inputs.data" in error and error.count("\n") == 1


def test_seeds_and_data_together_are_refused(files, tmp_path, capsys):
    assert cli.main(["loop", *words(files, tmp_path / "run", "--inputs.data", files[0])]) == 2
    error = capsys.readouterr().err
    assert "--inputs.seeds" in error and "--inputs.data" in error and error.count("\n") == 1


def test_a_prompt_without_room_for_a_completion_is_refused_before_training(
    files, tmp_path, tiny_folder, capsys
):
    data = files[0].rename(tmp_path / "data.jsonl")
    rng = random.Random(0)
    long = [
        " ".join("".join(rng.choices(ascii_lowercase, k=5)) for _ in range(60)) for _ in range(24)
    ]
    prompts = written(
        tmp_path / "long.jsonl", [{"instruction": instruction} for instruction in long]
    )
    flags = words((data, prompts), tmp_path / "run", "--base", tiny_folder, "--template", "brief")
    flags[flags.index("--inputs.seeds")] = "--inputs.data"
    assert cli.main(["sft", *flags, "--sampling.max-new-tokens", "8"]) == 2
    error = capsys.readouterr().err
    assert "--sampling.max-new-tokens 8" in error and "256 of the base" in error
    assert error.count("\n") == 1 and any(instruction[:20] in error for instruction in long)
    assert not (tmp_path / "run" / "sft").exists()


def test_more_tasks_than_the_small_world_has_are_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("alpaca_rlhf.sources.small_world.MIN_DRAWS", 500)  # it gives up sooner
    monkeypatch.setattr("alpaca_rlhf.sources.small_world.DRAWS_PER_TASK", 2)
    few = "--rank.prompts 8 --ppo.updates 2 --ppo.batch-size 8 --ppo.minibatch-size 8"
    flags = ["--evaluate.prompts", "30000", "--out", str(tmp_path / "run"), *few.split()]
    flags += ["--best-of-k.prompts", "8"]
    assert cli.main(["quickstart", *flags]) == 2
    assert "--evaluate.prompts: the small world has about" in capsys.readouterr().err


def test_every_row_of_an_sft_run_is_trained_on_or_counted(files, tmp_path, capsys):
    """Bad labels, broken, empty, too long and leaking rows are named before the first step."""
    seeds, prompts = files
    good = [json.loads(line) | {"mood": "x"} for line in seeds.read_text().splitlines()]
    leak = json.loads(prompts.read_text().splitlines()[0])
    bad = [good[0] | {"label": False}, good[1] | {"output": ""}, good[2] | {"output": 3}]
    too_long = good[3] | {"instruction": "Tell a story.", "output": "word " * 400}
    data = written(tmp_path / "data.jsonl", [*good, leak | {"output": "Yes."}, *bad, too_long])
    out = tmp_path / "run"
    flags = words((data, prompts), out, "--sft.epochs", 1, "--sft.max-length", 128)
    flags[flags.index("--inputs.seeds")] = "--inputs.data"
    assert cli.main(["sft", *flags]) == 2
    assert "--inputs.broken drop" in capsys.readouterr().err
    assert cli.main(["sft", *flags, "--inputs.broken", "drop", "--inputs.leaks", "drop"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "`mood`" in said and "1 bad label" in said and " leak" in said
    assert "longer than --sft.max-length 128" in said and "on your rows" in said
    rows = json.loads((out / "ledger.json").read_text())["sft"]["facts"]["rows"]
    assert rows["left_out"] == {"bad label": 1, "empty": 1, "unusable": 1, "too long": 1}
    assert rows["rows"] == rows["examples"] + sum(rows["left_out"].values())
