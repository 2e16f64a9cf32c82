"""The sample files: one of every format, read as the table beside them says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from alpaca_rlhf.data import Firewall, read_instructions, read_prompts
from alpaca_rlhf.data.readers.detection import FORMATS, detect_format
from alpaca_rlhf.data.readers.ranked import ranked_prompts
from alpaca_rlhf.data.readers.rows import RowFile
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.settings.parsing import parse
from alpaca_rlhf.sources import source_of

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "data" / "samples"
CELLS = re.findall(r"^\| (`.*) \| (.+) \| (.+) \|$", (ROOT / "data/README.md").read_text(), re.M)
TABLE = {
    name: (about, use)
    for names, about, use in CELLS
    for name in re.findall(r"`([\w.]+)`", names)
    if (SAMPLES / name).is_file()
}
"""The page's row for each file: its format, and its use."""
ROW_FILES = {name: cells for name, cells in TABLE.items() if re.match("`[a-z-]+`", cells[0])}


def test_the_page_has_every_file():
    assert {path.name for path in SAMPLES.iterdir()} == {*TABLE}


def test_every_format_has_a_sample():
    formats = {re.findall("`([a-z-]+)`", about)[0] for about, _ in ROW_FILES.values()}
    assert formats == {*FORMATS}


@pytest.mark.parametrize("name", ROW_FILES)
def test_a_sample_is_of_its_format(name):
    about, use = ROW_FILES[name]
    path = SAMPLES / name
    found = detect_format(RowFile(path)).format
    assert found is not None and found.name == re.findall("`([a-z-]+)`", about)[0]
    if use.startswith("rankings"):
        assert len(ranked_prompts(path)) >= 3
    elif use.startswith("rows"):
        assert len(read_instructions(path)) >= 4
    else:
        assert len(read_prompts(path)) >= 6


def test_what_the_page_says_of_some_of_them():
    rows, prompts = SAMPLES / "rows.jsonl", SAMPLES / "prompts.jsonl"
    pairs = SAMPLES / "pairs.jsonl"
    assert f"rows to train on, {len(read_instructions(rows))}" in TABLE["rows.jsonl"][1]
    assert f"prompts, {len(read_prompts(prompts))}," in TABLE["prompts.jsonl"][1]
    assert f"rankings, {len(ranked_prompts(pairs))}," in TABLE["pairs.jsonl"][1]
    kto = SAMPLES / "kto.jsonl"
    assert 2 * len(read_instructions(kto)) == sum(1 for _ in RowFile(kto))
    history, messages = (SAMPLES / f"{name}.jsonl" for name in ("history", "messages"))
    for row in (*read_instructions(history), *read_instructions(messages)):
        assert row.history and row.system


def test_rows_prompts_and_pairs_do_not_leak():
    wall = Firewall()
    wall.note("sft", read_instructions(SAMPLES / "rows.jsonl"))
    prompts = read_prompts(SAMPLES / "prompts.jsonl")
    assert [row.instruction for row in prompts if wall.leak("rank", row)] == []
    wall.note("rank", prompts)
    pairs = ranked_prompts(SAMPLES / "pairs.jsonl")
    assert [row.instruction for row in pairs if wall.leak("pairs", row)] == []


@pytest.mark.parametrize("more", [[], ["--rounds", "2"], ["--policies", "grpo", "rloo"]])
def test_the_sizes_of_the_settings_fit_the_files(more):
    words = ["--config", str(SAMPLES / "small.yaml"), "--inputs.judge", "human"]
    words += ["--inputs.data", str(SAMPLES / "rows.jsonl")]
    words += ["--inputs.prompts", str(SAMPLES / "prompts.jsonl")]
    settings = parse(Loop, [*words, *more], prog="loop", description="")
    assert {"rank", "ppo", "eval", "dev"} <= {*source_of(settings).names()}


def test_the_judge_is_that_of_the_guide():
    guide = (ROOT / "docs" / "guides" / "judges.md").read_text()
    assert f"```python\n{(SAMPLES / 'polite.py').read_text()}```" in guide
