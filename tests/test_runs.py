"""The run folder: nothing half written, nothing mixed up, nothing lost."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import yaml

from alpaca_rlhf.core import files, provenance, runs
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.runs import RunFolder, atomic_write, data_path, measure
from alpaca_rlhf.settings import SFT, Loop
from alpaca_rlhf.settings.parsing import to_yaml

CONFIG = "seed: 3\nout: runs/a\nsft:\n  lr: 0.0002\n  epochs: 3\n"


def opened(out: Path, config: str = CONFIG, kind: str = "loop", **inputs: Path) -> RunFolder:
    return RunFolder.open(out, config, kind=kind, inputs=inputs)


def refusal(*args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        opened(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- writing -----------------------------------------------------------------------------------


def test_atomic_write_replaces_and_leaves_nothing_beside(tmp_path):
    target = tmp_path / "deep" / "file.txt"
    atomic_write(target, "ä\n")
    atomic_write(target, b"new\r\n")
    assert target.read_bytes() == b"new\r\n"
    assert [path.name for path in target.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, step):
    target = tmp_path / "file.txt"
    atomic_write(target, "old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((files.os, "fsync") if step == "fsync" else (Path, "replace")), full)
    with pytest.raises(UserError, match=r"file.txt: cannot be written \(No space.*free some space"):
        atomic_write(target, "new")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]


def test_a_reader_never_sees_half_a_file(tmp_path):
    target = tmp_path / "state"
    program = f"""
        import itertools
        from pathlib import Path
        from alpaca_rlhf.core.runs import atomic_write
        for turn in itertools.count():
            atomic_write(Path({str(target)!r}), bytes([turn % 256]) * 300_000)
    """
    writer = python(program)
    try:
        wait_for(target.exists)
        for _ in range(50):
            content = target.read_bytes()
            assert len(content) == 300_000
            assert len(set(content)) == 1
    finally:
        writer.kill()
        writer.wait()
    assert len(set(target.read_bytes())) == 1


# --- starting and going on ------------------------------------------------------------------------


def test_a_new_run_says_what_it_was_made_with(tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_bytes(b"one\n")
    with opened(tmp_path / "new" / "run", rows=data) as run:
        assert (run.path / "config.yaml").read_text() == CONFIG
        facts = run.read_json("provenance.json")
    assert facts["kind"] == "loop"
    assert facts["seed"] == 3
    assert facts["inputs"]["rows"] == {
        "path": str(data),
        "sha256": hashlib.sha256(b"one\n").hexdigest(),
    }
    assert facts["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(facts["versions"]) >= {"alpaca-rlhf", "torch", "transformers", "peft"}
    assert facts["hardware"]["cores"] >= 1
    assert facts["hardware"]["ram_gib"] > 0
    assert facts["hardware"]["cpu"]
    assert "resumed" not in facts


def test_the_same_run_goes_on(tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text("one\n")
    with opened(tmp_path / "a", rows=data) as run:
        run.note(base="f00d")
        before = run.read_json("provenance.json")
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "b" / ".metrics.jsonl.1234.tmp").write_text("left by a killed run")
    with opened(tmp_path / "b", CONFIG.replace("runs/a", "runs/b"), rows=data) as run:
        assert run.read_json("provenance.json") == before
        assert before["base"] == "f00d"
    assert not list((tmp_path / "b").glob("*.tmp"))


def test_going_on_with_another_version_is_noted(tmp_path, monkeypatch):
    opened(tmp_path / "a").close()
    monkeypatch.setattr(provenance, "versions", lambda: {"torch": "99"})
    opened(tmp_path / "a").close()
    opened(tmp_path / "a").close()
    facts = json.loads((tmp_path / "a" / "provenance.json").read_text())
    assert facts["versions"] != {"torch": "99"}
    assert [one["versions"] for one in facts["resumed"]] == [{"torch": "99"}]


def test_settings_of_the_kit_compare(tmp_path):
    loop = Loop(sft=SFT(lr=2e-5))
    opened(tmp_path / "a", to_yaml(loop)).close()
    opened(tmp_path / "a", to_yaml(loop)).close()
    other = to_yaml(Loop(sft=SFT(lr=3e-5)))
    assert "holds another run: sft.lr was 2e-05, now 3e-05" in refusal(tmp_path / "a", other)


def test_another_run_is_refused_and_the_folder_left_alone(tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text("one\n")
    out = tmp_path / "a"
    opened(out, rows=data).close()
    kept = {path.name: path.read_bytes() for path in out.iterdir()}
    mend = "; use another --out or delete it"
    holds = f"--out {out}: holds another run: "
    changed = CONFIG.replace("0.0002", "0.0003").replace("epochs: 3", "epochs: 4")
    assert refusal(out, changed, rows=data) == f"{holds}sft.lr was 0.0002, now 0.0003{mend}"
    assert refusal(out, CONFIG + "new: 1\n", rows=data) == f"{holds}new was absent, now 1{mend}"
    gone = CONFIG.replace("seed: 3\n", "")
    assert refusal(out, gone, rows=data) == f"{holds}seed was 3, now absent{mend}"
    assert refusal(out, kind="sft", rows=data) == f"{holds}kind was loop, now sft{mend}"
    assert f"{holds}the sha256 of input rows was " in refusal(out)
    data.write_text("two\n")
    assert f"--out {out}: {data} was changed since this run began; put back" in refusal(
        out, rows=data
    )
    assert {path.name: path.read_bytes() for path in out.iterdir()} == kept


def test_folders_that_cannot_hold_a_run(tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    assert refusal(file) == f"--out {file}: is a file; give a folder"
    assert "cannot be written (Not a directory); use another --out" in refusal(file / "below")
    assert "/proc/nothing: cannot be written" in refusal(Path("/proc/nothing"))
    assert refusal(tmp_path) == (
        f"--out {tmp_path}: belongs to something else, it holds file but no config.yaml; "
        "use another --out"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert "gone.jsonl: cannot be read (No such file" in refusal(
        tmp_path / "new", rows=tmp_path / "gone.jsonl"
    )
    assert not (tmp_path / "new").exists()


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    assert "cannot be written (No space left on device); free some space" in refusal(tmp_path / "a")
    monkeypatch.undo()
    opened(tmp_path / "a").close()


def test_a_run_killed_before_it_had_settings_starts_afresh(tmp_path):
    opened(tmp_path / "a").close()
    (tmp_path / "a" / "config.yaml").unlink()
    with opened(tmp_path / "a", "seed: 4\n") as run:
        assert run.read_json("provenance.json")["seed"] == 4


def test_damaged_files_are_named(tmp_path):
    out = tmp_path / "a"
    opened(out).close()
    (out / "provenance.json").write_text("{")
    assert f"{out}/provenance.json: is not JSON any more" in refusal(out)
    (out / "provenance.json").unlink()
    assert f"{out}/provenance.json: cannot be read (No such file" in refusal(out)
    (out / "provenance.json").write_text("{}")
    (out / "config.yaml").write_text("a: [\n")
    assert f"{out}/config.yaml: is not YAML any more" in refusal(out)


def test_one_process_at_a_time(tmp_path):
    out = tmp_path / "a"
    with opened(out):
        busy = f"--out {out}: is in use by process {os.getpid()}; wait for it or use another --out"
        assert refusal(out) == busy
    holder = python(f"""
        import time
        from pathlib import Path
        from alpaca_rlhf.core.runs import RunFolder
        run = RunFolder.open(Path({str(out)!r}), {CONFIG!r}, kind="loop")
        Path({str(tmp_path / "ready")!r}).write_text("")
        time.sleep(60)
    """)
    try:
        wait_for((tmp_path / "ready").exists)
        assert f"is in use by process {holder.pid};" in refusal(out)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    opened(out).close()


# --- metrics, ledger, files ----------------------------------------------------------------------


def test_metrics_are_appended_and_cut_back(tmp_path):
    with opened(tmp_path / "a") as run:
        assert run.metrics() == []
        for step in range(4):
            run.log({"stage": "sft", "step": step, "loss": 1 / (step + 1)})
        run.log({"stage": "ppo", "step": 0, "text": "a\u2028b 日本 \ud800"})
    with opened(tmp_path / "a") as run:
        run.truncate_metrics(lambda row: row["stage"] != "sft" or row["step"] < 2)
        assert [(row["stage"], row["step"]) for row in run.metrics()] == [
            ("sft", 0),
            ("sft", 1),
            ("ppo", 0),
        ]
        assert run.metrics()[2]["text"] == "a\u2028b 日本 \ud800"
        assert run.metrics()[1]["loss"] == 0.5


@pytest.mark.parametrize("torn", ['{"step": 1, "lo', '{"step": 1}', "{"])
def test_a_torn_last_line_is_dropped(tmp_path, torn):
    with opened(tmp_path / "a") as run:
        run.log({"step": 0})
        with (run.path / "metrics.jsonl").open("a") as stream:
            stream.write(torn)
        assert run.metrics() == [{"step": 0}]
        run.log({"step": 2})
        assert run.metrics() == [{"step": 0}, {"step": 2}]
        assert (run.path / "metrics.jsonl").read_text() == '{"step": 0}\n{"step": 2}\n'


def test_a_file_that_is_one_torn_line(tmp_path):
    with opened(tmp_path / "a") as run:
        (run.path / "metrics.jsonl").write_text('{"st')
        assert run.metrics() == []
        run.log({"step": 0})
        assert run.metrics() == [{"step": 0}]


def test_a_bad_line_in_the_middle_is_named(tmp_path):
    with opened(tmp_path / "a") as run:
        (run.path / "metrics.jsonl").write_text('{"step": 0}\nrubbish\n{"step": 1}\n')
        with pytest.raises(UserError, match=r"metrics.jsonl:2: is not JSON any more"):
            run.metrics()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_none_is_refused_by_name(tmp_path, bad):
    with opened(tmp_path / "a") as run:
        run.log({"step": 0})
        with pytest.raises(ValueError, match=rf"metrics.jsonl: ppo/kl is {bad}, which JSON"):
            run.log({"step": 1, "ppo/kl": bad})
        with pytest.raises(ValueError, match=r"report.json: policies.ppo.ci95.1 is"):
            run.write_json("report.json", {"policies": {"ppo": {"ci95": [0.0, bad]}}})
        assert run.metrics() == [{"step": 0}]
        assert not (run.path / "report.json").exists()


def test_ledger(tmp_path):
    with opened(tmp_path / "a") as run:
        assert run.done("sft") is None
        run.finish("sft", {"seconds": 1.5})
        run.finish("reward", {"pairs": 6})
    with opened(tmp_path / "a") as run:
        assert run.done("sft") == {"seconds": 1.5}
        assert run.done("reward") == {"pairs": 6}
        assert run.done("ppo") is None


def test_files_of_stages(tmp_path):
    rows = [{"text": "日本\n", "n": 1}, {"text": "", "n": 2}]
    with opened(tmp_path / "a") as run:
        assert run.folder("sft/checkpoints").is_dir()
        run.write_jsonl("rank/rows.jsonl", rows)
        assert run.read_jsonl("rank/rows.jsonl") == rows
        run.append_jsonl("rank/rows.jsonl", rows[:1])
        assert run.read_jsonl("rank/rows.jsonl") == [*rows, rows[0]]
        run.write_json("rank/one.json", {"a": [1, None, "ü"]})
        assert run.read_json("rank/one.json") == {"a": [1, None, "ü"]}
        assert "日本" in (run.path / "rank/rows.jsonl").read_text()
        with pytest.raises(UserError, match=r"gone.jsonl: cannot be read"):
            run.read_jsonl("gone.jsonl")


@pytest.mark.parametrize("seed", range(3))
def test_killed_anywhere_no_acknowledged_row_is_lost(tmp_path, seed):
    out, told = tmp_path / "a", tmp_path / "told"
    program = f"""
        from pathlib import Path
        from alpaca_rlhf.core.runs import RunFolder
        with RunFolder.open(Path({str(out)!r}), {CONFIG!r}, kind="loop") as run:
            start = len(run.metrics())
            with open({str(told)!r}, "a") as told:
                for step in range(start, start + 1000000):
                    run.log({{"step": step}})
                    if step % 10 == 0:
                        run.truncate_metrics(lambda row: True)
                        run.finish("stage", {{"step": step}})
                    print(step, file=told, flush=True)
    """
    for turn in range(2):
        worker = python(program)
        seen = told.stat().st_size if told.exists() else 0
        wait_for(lambda seen=seen: told.exists() and told.stat().st_size > seen)
        time.sleep(0.05 + 0.03 * (seed + turn))
        worker.kill()
        worker.wait()
        with opened(out) as run:
            steps = [row["step"] for row in run.metrics()]
            assert steps == list(range(len(steps)))
            last = int(told.read_text().split()[-1])
            assert last in (steps[-1], steps[-1] - 1)
            ledger = run.done("stage")
            assert ledger is not None
            assert last - 10 <= ledger["step"] <= steps[-1]


# --- measure, data -------------------------------------------------------------------------------


def test_measure_sees_time_and_memory():
    with measure() as small:
        time.sleep(0.05)
    with measure() as large:
        block = bytearray(200 * 2**20)
        block[::4096] = b"x" * len(block[::4096])
        del block
    assert 0.05 <= small.seconds < 5
    assert large.peak_memory_gib > small.peak_memory_gib + 0.15
    with pytest.raises(KeyError), measure() as failed:
        raise KeyError
    assert failed.peak_memory_gib > 0


def test_commit_belongs_to_a_checkout(tmp_path, monkeypatch):
    package = tmp_path / "alpaca_rlhf"
    package.mkdir()
    monkeypatch.setattr(provenance, "__file__", str(package / "core" / "provenance.py"))
    assert provenance.commit() is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "file").write_text("1")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    clean = provenance.commit()
    assert clean is not None
    assert len(clean) == 40
    (tmp_path / "file").write_text("2")
    assert provenance.commit() == f"{clean}-dirty"


def test_data_path_in_a_checkout_and_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "__file__", str(tmp_path / "alpaca_rlhf" / "core" / "runs.py"))
    assert data_path("cria") == tmp_path / "data" / "cria"
    (tmp_path / "alpaca_rlhf" / "_data").mkdir(parents=True)
    assert data_path("cria") == tmp_path / "alpaca_rlhf" / "_data" / "cria"


def test_config_is_written_as_given(tmp_path):
    with opened(tmp_path / "a", to_yaml(Loop())) as run:
        assert yaml.safe_load((run.path / "config.yaml").read_text())["sft"]["lr"] == 2e-4


def python(program: str) -> subprocess.Popen[bytes]:
    root = str(Path(__file__).parent.parent)
    env = os.environ | {"PYTHONPATH": root}
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], env=env)


def wait_for(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


# --- several processes ----------------------------------------------------------------------------


def test_a_follower_reads_and_writes_nothing(tmp_path):
    with opened(tmp_path / "run") as run, RunFolder.follow(tmp_path / "run") as follower:
        run.finish("sft", {"loss": 1.0})
        run.log({"stage": "sft", "step": 1})
        before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
        assert follower.done("sft") == {"loss": 1.0}
        follower.finish("ppo", {})
        follower.undo("sft")
        follower.log({"stage": "sft", "step": 1})
        follower.write_jsonl("rows.jsonl", [{"x": 1}])
        follower.truncate_metrics(lambda row: False)
        assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == before
    with opened(tmp_path / "run") as run:  # and it held no lock
        assert run.metrics() == [{"stage": "sft", "step": 1}]
