"""The dev split of one's own prompts: what the other splits leave, and never a reason to refuse."""

import json
import random

import pytest
import yaml

from alpaca_rlhf.cli import main as cli
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import check_disjoint, deal_rest, split_prompts
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.settings.earlier import with_earlier_defaults
from alpaca_rlhf.settings.parsing import parse, to_yaml
from alpaca_rlhf.sources import source_of

NEEDED = 18  # prompts of rank, ppo and eval together


def texts(n, seed=0):
    rng = random.Random(seed)
    return [" ".join("".join(rng.choices("abcdefghij", k=5)) for _ in range(6)) for _ in range(n)]


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def data(tmp_path):
    return lines(
        tmp_path / "rows.jsonl", [{"instruction": t, "output": "Yes."} for t in texts(3, seed=1)]
    )


def settings_of(*words):
    flags = ["--inputs.judge", "human", "--rank.prompts", "6", "--ppo.batch-size", "6"]
    flags += ["--ppo.minibatch-size", "6", "--best-of-k.prompts", "6", "--evaluate.prompts", "6"]
    return parse(Loop, [*flags, *map(str, words)], prog="test", description="")


def with_prompts(data, path, n, *words, extra=()):
    prompts = [{"prompt": text} for text in (*texts(n), *extra)]
    return settings_of("--inputs.data", data, "--inputs.prompts", lines(path, prompts), *words)


@pytest.mark.parametrize(("n", "dev"), [(18, 0), (19, 0), (20, 2), (24, 6), (60, 6)])
def test_dev_takes_what_the_others_leave(data, tmp_path, n, dev):
    source = source_of(with_prompts(data, tmp_path / "p.jsonl", n))
    assert ("dev" in source.names()) == (dev > 0)
    if dev:
        assert len(source.prompts("dev")) == dev
        splits = {name: source.prompts(name) for name in source.names()}
        assert check_disjoint(splits) == 0
    else:
        with pytest.raises(UserError, match=r"^--watch\.every, --evaluate\.split dev: the other"):
            source.prompts("dev")


def test_the_other_splits_are_what_they_were(data, tmp_path):
    """Runs begun before there was a dev split go on with the same prompts."""
    settings = with_prompts(data, tmp_path / "p.jsonl", 40)
    source = source_of(settings)
    rows = [Instruction(text, source="p.jsonl") for text in texts(40)]
    dealt = split_prompts(rows, sizes={"rank": 6, "ppo": 6, "eval": 6}, seed=settings.seed)
    for name, expected in dealt.items():
        assert [row.id for row in source.prompts(name)] == [row.id for row in expected]


def test_a_number_of_dev_prompts_that_was_asked_for(data, tmp_path):
    source = source_of(with_prompts(data, tmp_path / "p.jsonl", 40, "--evaluate.dev-prompts", 20))
    assert len(source.prompts("dev")) == 20
    with pytest.raises(UserError, match=r"^--evaluate\.dev-prompts 20: .* leave 12 prompts;"):
        source_of(with_prompts(data, tmp_path / "p.jsonl", 30, "--evaluate.dev-prompts", 20))
    source = source_of(with_prompts(data, tmp_path / "p.jsonl", 40, "--evaluate.dev-prompts", 0))
    assert "dev" not in source.names()
    with pytest.raises(UserError, match=r"^--evaluate\.split dev needs prompts"):
        settings_of("--inputs.data", data, "--evaluate.split", "dev", "--evaluate.dev-prompts", 0)


def test_dev_prompts_near_a_row_to_train_on_are_left_out(data, tmp_path):
    """They would be no reason to refuse a run that never evaluates on them."""
    extra = [f"{text} again" for text in texts(3, seed=1)]
    settings = with_prompts(data, tmp_path / "p.jsonl", 400, "--evaluate.dev-prompts", 385)
    with pytest.raises(UserError, match="leave 382 prompts"):
        source_of(settings)
    source = source_of(with_prompts(data, tmp_path / "p.jsonl", 400, extra=extra))
    assert not {row.instruction for row in source.prompts("dev")} & {*extra}


def test_whole_clusters_are_left(tmp_path):
    words = texts(30)
    rows = [Instruction(f"{text}{end}") for text in words for end in ("", " again", " once more")]
    dealt = split_prompts(rows, sizes={"rank": 30, "eval": 30}, seed=3)
    for at_most in (0, 1, 4, 30, 100):
        rest = deal_rest(rows, dealt, at_most=at_most, seed=3)
        assert len(rest) == min(30, at_most) // 3 * 3
        assert check_disjoint({**dealt, "dev": rest}) == 0
    assert rest == [row for row in rows if row.id in {kept.id for kept in rest}]


def test_split_writes_dev_and_a_run_reads_it(tmp_path, capsys):
    rows = lines(
        tmp_path / "all.jsonl", [{"instruction": t, "output": "Yes."} for t in texts(300, seed=4)]
    )
    out = tmp_path / "splits"
    assert cli.main(["split", "--data", rows, "--out", str(out)]) == 0
    assert f"{out / 'dev.jsonl'}" in capsys.readouterr().out
    n_dev = len((out / "dev.jsonl").read_text().splitlines())
    assert 5 <= n_dev <= 30
    settings = settings_of("--inputs.splits", out)
    source = source_of(settings)
    assert len(source.prompts("dev")) == min(6, n_dev)
    assert settings.inputs.files()["splits.dev"] == out / "dev.jsonl"
    # A folder of an earlier version has none, and an empty one is as good as none.
    for without in ("", None):
        (out / "dev.jsonl").write_text(without) if without is not None else (
            out / "dev.jsonl"
        ).unlink()
        settings = settings_of("--inputs.splits", out)
        assert source_of(settings).names() == ["rank", "ppo", "eval"]
        assert "splits.dev" not in settings.inputs.files()


def test_a_folder_of_splits_grows_a_dev_file(tmp_path):
    """Assigned before there was one, prompts stay where they are; new ones may go to dev."""
    shares = ["--shares.sft", "1", "--shares.rank", "1", "--shares.ppo", "1", "--shares.eval", "1"]
    out = tmp_path / "splits"

    def split(n, dev):
        rows = [{"instruction": text, "output": "Yes."} for text in texts(n, seed=5)]
        data = lines(tmp_path / "all.jsonl", rows)
        command = ["split", "--data", data, "--out", str(out), *shares, "--shares.dev", dev]
        assert cli.main(command) == 0
        return [json.loads(line) for line in (out / "assignments.jsonl").read_text().splitlines()]

    before = split(60, "0")
    (out / "dev.jsonl").unlink()
    after = split(200, "2")
    assert after[: len(before)] == before
    assert any(row["split"] == "dev" for row in after) and (out / "dev.jsonl").stat().st_size


def test_a_run_begun_without_dev_goes_on_without_it(data, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    settings = with_prompts(data, tmp_path / "p.jsonl", 40, "--out", out)
    config = yaml.safe_load(to_yaml(settings))
    del config["evaluate"]["dev_prompts"], config["inputs"]["languages"], config["policies"]
    (out / "config.yaml").write_text(yaml.safe_dump(config))
    taken_up = with_earlier_defaults(settings)
    assert (taken_up.evaluate.dev_prompts, taken_up.inputs.languages) == (0, "en")
    assert "dev" not in source_of(taken_up).names()
