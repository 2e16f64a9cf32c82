"""`alpaca-rlhf runs`: the disk space of runs, and removing what nobody needs any more."""

import json
import os
from contextlib import ExitStack

import pytest

from alpaca_rlhf.cli.main import main
from alpaca_rlhf.core.bases import cached_bases
from alpaca_rlhf.core.locks import Lock
from alpaca_rlhf.core.run_sizes import measure_run, runs_in, size_of

KEPT = [
    "config.yaml",
    "provenance.json",
    "ledger.json",
    "metrics.jsonl",
    "preferences.db",
    "report.json",
    "report.html",
    "answers.jsonl",
    "sft/adapter/adapter_model.safetensors",
    "reward/adapter/head.safetensors",
    "rank/snapshot/rankings.jsonl",
    "generate/events-00000.jsonl",
    "judge/requests.jsonl",
    "best_of_k/candidates.jsonl",
    "bad_batch/batch.pt",
    "checkpoints/ppo/step-000004/state.pt",
    "export/sft-adapter/adapter_model.safetensors",
    "export/notes/mine.txt",
]
WASTE = [
    "checkpoints/sft/step-000100/state.pt",
    "sft/.adapter.12ab34cd.tmp/half",
    ".report.html.12ab34cd.tmp",
]
EXPORT = "export/sft-merged/model.safetensors"


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def run(tmp_path):
    """A run that was stopped in PPO, with an export and what a killed process left."""
    folder = tmp_path / "runs" / "group" / "one"
    for name in (*KEPT, *WASTE, EXPORT):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * 1000)
    (folder / "ledger.json").write_text(json.dumps({"sft": {}, "rank": {}, "reward": {}}))
    for name, target in (("sft-merged", "merged"), ("sft-adapter", "adapter")):
        (folder / "export" / name / "parity.json").write_text(json.dumps({"to": target}))
    os.symlink(folder / "sft", tmp_path / "runs" / "link")
    return folder


def names(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_the_size_is_that_of_the_files(run):
    total = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    assert measure_run(run).size == total
    assert list(runs_in(run.parent.parent)) == [run]


def test_prune_shows_asks_and_removes_only_what_nobody_needs(run, capsys, monkeypatch):
    before, runs = names(run), str(run.parent.parent)
    assert main(["runs", "list", runs]) == 0
    shown = capsys.readouterr().out
    assert str(run) in shown and f"runs prune {runs} --dry-run" in shown
    assert main(["runs", "prune", runs, "--dry-run"]) == 0
    assert "nothing was removed" in capsys.readouterr().out and names(run) == before
    for answer in ("no", "", "y"):
        monkeypatch.setattr("builtins.input", lambda *_, said=answer: said)
        assert main(["runs", "prune", runs]) == 2
        assert "give --yes" in capsys.readouterr().err and names(run) == before
    monkeypatch.setattr("builtins.input", lambda *_: "yes")
    assert main(["runs", "prune", runs]) == 0
    assert before - names(run) == set(WASTE)
    assert main(["runs", "prune", runs, "--yes"]) == 0
    assert "nothing to remove" in capsys.readouterr().out


def test_exports_go_only_when_asked_and_adapters_never(run):
    assert main(["runs", "prune", str(run), "--exports", "--yes"]) == 0
    left = names(run)
    assert EXPORT not in left and set(KEPT) <= left


def test_a_running_run_is_left_alone(run, capsys):
    before = names(run)
    (run / ".lock").touch()
    with Lock(run / ".lock"):
        assert main(["runs", "prune", str(run), "--yes"]) == 0
        assert "is running" in capsys.readouterr().out
        assert names(run) == before | {".lock"}


def test_a_run_that_is_begun_again_during_the_question_is_left_alone(run, capsys, monkeypatch):
    before = names(run)
    with ExitStack() as stack:

        def begun_again(*_):
            stack.enter_context(Lock(run / ".lock"))
            return "yes"

        monkeypatch.setattr("builtins.input", begun_again)
        assert main(["runs", "prune", str(run)]) == 0
        shown = capsys.readouterr().out
        assert "begun again in the meantime" in shown and " 0.0 MiB  freed" in shown
    assert names(run) == before | {".lock"}


def test_a_stage_that_is_undone_during_the_question_keeps_its_checkpoints(run, monkeypatch):
    def undone(*_):
        (run / "ledger.json").write_text(json.dumps({"rank": {}}))
        return "yes"

    monkeypatch.setattr("builtins.input", undone)
    assert main(["runs", "prune", str(run)]) == 0
    assert set(WASTE) & names(run) == {"checkpoints/sft/step-000100/state.pt"}


def test_leftovers_within_leftovers_are_counted_once_and_removed(run):
    (run / WASTE[1]).parent.joinpath(".half.12ab34cd.tmp").write_bytes(b"x" * 1000)
    for name in ("checkpoints/sft", "export/sft-merged"):
        (run / name / ".state.12ab34cd.tmp").write_bytes(b"x" * 1000)
    measured = measure_run(run, exports=True)
    spare = sum(waste.size for waste in measured.waste)
    parity = (run / "export" / "sft-merged" / "parity.json").stat().st_size
    assert spare == 7 * 1000 + parity
    assert main(["runs", "prune", str(run), "--yes", "--exports"]) == 0
    assert size_of(run) == measured.size - spare


def test_the_state_of_a_run_is_its_last_stage(run, capsys):
    assert main(["runs", "list", str(run)]) == 0
    assert "(reward)" in capsys.readouterr().out


def test_checkpoints_of_finished_stages_go(run):
    (run / "ledger.json").write_text(json.dumps({"sft": {}, "ppo": {}}))
    assert main(["runs", "prune", str(run), "--yes"]) == 0
    assert not [name for name in names(run) if name.startswith("checkpoints")]


def test_unpacked_bases_go_only_when_asked(run):
    unpacked, pinned = cached_bases() / "gguf-12ab", cached_bases() / "smollm2"
    for folder in (unpacked, pinned):
        folder.mkdir(parents=True)
        (folder / "source.json").write_text('{"file": "a.gguf"}')
    assert main(["runs", "prune", str(run), "--yes"]) == 0 and unpacked.is_dir()
    assert main(["runs", "prune", str(run), "--yes", "--bases"]) == 0
    assert not unpacked.exists() and pinned.is_dir()


def test_a_missing_folder_is_told(tmp_path, capsys):
    for command in ("list", "prune"):
        assert main(["runs", command, str(tmp_path / "nowhere")]) == 2
        assert "no such folder" in capsys.readouterr().err
