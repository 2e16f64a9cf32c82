"""Wrong inputs and full disks, end to end: one line, exit code 2, nothing harmed."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from alpaca_rlhf.cli import main as cli
from alpaca_rlhf.core import files
from alpaca_rlhf.planner import disk_needs, shape_of
from alpaca_rlhf.planner.disk import SPARE
from alpaca_rlhf.settings import SFT, Loop, Sampling
from alpaca_rlhf.settings.parsing import parse
from alpaca_rlhf.settings.quickstart import QUICKSTART
from tests.prove import SMALL, weights, without_times
from tests.test_foreign import foreign

ROOT = Path(__file__).parent.parent


def refused(capsys, *words: object) -> str:
    """The one line with which a command ends with code 2."""
    assert cli.main([str(one) for one in words]) == 2
    return only_line(capsys.readouterr().err)


def only_line(told: str) -> str:
    lines = [one for one in told.splitlines() if "kernels" not in one]
    assert len(lines) == 1 and "Traceback" not in told, told
    return lines[0]


# --- the base -------------------------------------------------------------------------------------


@contextmanager
def hub(status: int, code: str):
    """A hub that refuses everything, as the real one does."""

    class Refuses(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", "Access to model is restricted.")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refuses)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("command", ["sft", "plan"])
@pytest.mark.parametrize(
    ("status", "code", "told"),
    [
        (401, "GatedRepo", "accept it at https://huggingface.co/some/gated, then log in"),
        (404, "RepoNotFound", "the hub has no such model, or it is private"),
    ],
)
def test_a_base_that_the_hub_does_not_give(tmp_path, command, status, code, told):
    out = tmp_path / "run"
    with hub(status, code) as url:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": url}
        environment |= {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
        environment |= dict.fromkeys(("no_proxy", "NO_PROXY"), "127.0.0.1")
        environment.pop("HF_TOKEN", None)
        words = [command, "--base", "some/gated", "--out", str(out)]
        done = subprocess.run(
            [sys.executable, "-m", "alpaca_rlhf", *words],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 2, done.stdout + done.stderr
    line = only_line(done.stderr)
    assert line.startswith("error: --base some/gated: ") and told in line
    assert not out.exists(), "nothing is begun"


def test_a_base_that_is_not_there_is_told_before_anything_is_written(tmp_path, capsys):
    line = refused(capsys, "loop", "--base", tmp_path / "x", "--out", tmp_path / "run")
    assert f"--base {tmp_path / 'x'}: no such folder" in line
    assert not (tmp_path / "run").exists()


def test_an_adapter_from_another_base(tmp_path, capsys, tiny_folder):
    theirs = foreign(str(tiny_folder), tmp_path / "theirs")
    capsys.readouterr()
    words = ["sft", "--base", "embedded", "--out", tmp_path / "run", "--template", "brief"]
    line = refused(capsys, *words, "--inputs.sft-adapter", theirs, *SMALL)
    assert f"--inputs.sft-adapter {theirs}: does not fit --base embedded" in line
    assert "made for another model" in line


# --- the run folder -------------------------------------------------------------------------------


def test_a_run_folder_of_another_recipe(tmp_path, capsys):
    out = tmp_path / "run"
    assert cli.main(["generate", "--out", str(out), "--base", "embedded", *SMALL]) == 0
    capsys.readouterr()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    other = Loop(base="embedded", template="alpaca", lora=QUICKSTART.lora)
    assert cli.recipe(other, "Another recipe.", argv=["--out", str(out)]) == 2
    line = only_line(capsys.readouterr().err)
    assert str(out) in line and "holds another run" in line and "use another --out" in line
    assert "holds another run" in refused(capsys, "quickstart", "--out", out)
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert {path: one for path, one in after.items() if path.name != ".lock"} == {
        path: one for path, one in before.items() if path.name != ".lock"
    }


# --- the card and the processor -------------------------------------------------------------------


@pytest.fixture
def card(monkeypatch):
    """Makes this machine look as if it had a card with so much free memory."""
    import torch

    def make(free_gib: float, *, bf16: bool = True, capability=(8, 6)) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        found = SimpleNamespace(name="NVIDIA Tiny", total_memory=24 * 2**30)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: found)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
        free = int(free_gib * 2**30)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (free, 24 * 2**30))
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)

    return make


def test_a_card_too_small_is_refused_before_the_base_is_loaded(tmp_path, capsys, card, monkeypatch):
    import alpaca_rlhf.stages.context as context

    monkeypatch.setattr(context, "load_base", lambda name, **options: pytest.fail("it was loaded"))
    card(0.3)
    line = refused(capsys, "quickstart", "--out", tmp_path / "run", *SMALL)
    assert "NVIDIA Tiny, has 0.3 GiB free" in line
    assert "generate of --base embedded needs" in line and "use a larger card" in line


def test_what_fits_is_said_where_the_settings_do_not(card, caplog):
    """8 billion weights in 4 bit: 24 GiB hold the model, but not 64 rows of 1,024 at once."""
    from alpaca_rlhf.core.errors import UserError
    from alpaca_rlhf.stages.preflight import check_gpu

    shape = shape_of("llama-3.1-8b")
    large = Loop(
        base="llama-3.1-8b",
        sft=SFT(batch_size=64, micro_batch_size=64, max_length=1024),
        sampling=Sampling(batch_size=2),
    )
    card(23)
    check_gpu(shape, large, [("reward", 1)])
    assert caplog.text == "", "of what is not to be run nothing is said"
    check_gpu(shape, large, [("sft", 1)])
    assert "sft is planned to take" in caplog.text
    assert "lower --sft.micro-batch-size, or give --auto" in caplog.text
    card(3)
    with pytest.raises(UserError, match=r"3 GiB free: sft of --base llama-3.1-8b needs"):
        check_gpu(shape, large, [("sft", 1)])


def test_a_large_base_without_a_card_is_warned_of(caplog):
    import torch

    from alpaca_rlhf.stages.preflight import check_gpu

    if torch.cuda.is_available():
        pytest.skip("there is a card here")
    check_gpu(shape_of("embedded"), QUICKSTART, [("sft", 1)])
    assert caplog.text == ""
    check_gpu(shape_of("llama-3.1-8b"), Loop(), [("sft", 1)])
    assert "no graphics card is seen" in caplog.text and "8.0 billion" in caplog.text


def test_a_processor_without_bf16_computes_in_float32(tmp_path):
    """There is no flag for the precision of a run: what the machine lacks cannot be asked for."""
    import torch

    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        environment = dict(os.environ)
    else:  # oneDNN is told to forget what the processor can do
        environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    environment |= {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "alpaca_rlhf"]
    asked = [*command, "doctor", "--json", "True", "--out", str(tmp_path)]
    done = subprocess.run(asked, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = {one["what"]: one for one in json.loads(done.stdout)["findings"]}
    assert found["precision"]["found"] == "float32: the processor has no bfloat16"
    assert {found[one]["verdict"] for one in ("4-bit arithmetic", "gradients")} == {"ok"}
    asked = [*command, "loop", "--dtype", "bfloat16"]
    done = subprocess.run(asked, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "--dtype" in only_line(done.stderr)


# --- a disk that is full before -------------------------------------------------------------------


def test_what_a_run_writes_by_hand():
    """Llama 3.1 8B at rank 16 has 41,943,040 weights an adapter; three checkpoints, 12 B each."""
    settings = Loop(base="llama-3.1-8b")
    found = disk_needs(shape_of(settings.base), settings, [("sft", 1), ("ppo", 1)])
    assert found["adapters"] == 2 * 4 * 41_943_040
    assert found["checkpoints"] == 3 * 12 * 41_943_040
    assert found["text"] == 0, "neither writes completions"
    assert disk_needs(shape_of(settings.base), settings, [])["checkpoints"] == 0


def test_a_disk_too_small_is_refused_before_anything_is_written(tmp_path, capsys, monkeypatch):
    from alpaca_rlhf.stages import preflight

    monkeypatch.setattr(preflight, "free_bytes", lambda place: 10 * 2**20)
    line = refused(capsys, "quickstart", "--out", tmp_path / "run", *SMALL)
    assert f"--out {tmp_path / 'run'}: this run needs 0.0" in line
    assert "has 0.01 GiB free; free some space, or give another --out" in line
    assert not (tmp_path / "run").exists()


def test_weights_to_download_count_where_they_go(tmp_path, monkeypatch):
    """Of 8 billion weights in 16 bit 15 GiB come from the hub, unless they are here."""
    from alpaca_rlhf.core.errors import UserError
    from alpaca_rlhf.stages import preflight

    settings = Loop(base="some/llama", out=tmp_path / "run")
    shape = shape_of("llama-3.1-8b")
    monkeypatch.setattr(preflight.constants, "HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
    monkeypatch.setattr(preflight, "free_bytes", lambda place: 12 * 2**30)
    with pytest.raises(UserError, match=r"needs 1\d GiB, 15.0 of them for the weights.*HF_HOME"):
        preflight.check_disk(shape, settings, [("sft", 1)])
    snapshot = tmp_path / "cache" / "hub" / "models--some--llama"
    (snapshot / "refs").mkdir(parents=True)
    (snapshot / "refs" / "main").write_text("c" * 40)
    (snapshot / "snapshots" / ("c" * 40)).mkdir(parents=True)
    (snapshot / "snapshots" / ("c" * 40) / "model.safetensors").write_bytes(b"")
    monkeypatch.setattr(
        preflight,
        "try_to_load_from_cache",
        lambda name, file: room_cached(name, file, tmp_path / "cache" / "hub"),
    )
    preflight.check_disk(shape, settings, [("sft", 1)])


def room_cached(name, file, cache):
    from huggingface_hub import try_to_load_from_cache

    return try_to_load_from_cache(name, file, cache_dir=cache)


# --- a disk that fills up during a run ------------------------------------------------------------


def quickstart(out: Path) -> int:
    return cli.main(["quickstart", "--out", str(out), *SMALL])


def products(out: Path) -> dict[str, object]:
    """The files that a run made, apart from times and places."""
    names = ("generate/rows.jsonl", "sample/completions.jsonl", "rank/snapshot/rankings.jsonl")
    found: dict[str, object] = {
        name: (out / name).read_bytes() for name in (*names, "best_of_k/candidates.jsonl")
    }
    rows = (out / "metrics.jsonl").read_text().splitlines()
    found["metrics"] = [without_times(json.loads(one)) for one in rows]
    found["report"] = without_times(json.loads((out / "report.json").read_text()))
    return found | {"weights": weights(out), "answers": (out / "answers.jsonl").read_bytes()}


def test_the_estimate_holds_what_a_run_writes(whole_run):
    settings = parse(Loop, SMALL, prog="test", description="", default=QUICKSTART)
    from alpaca_rlhf.settings.steps import order

    planned = sum(disk_needs(shape_of("embedded"), settings, order(settings)).values())
    assert whole_run.peak < planned < 2 * whole_run.peak + SPARE


def test_a_full_disk_anywhere_ends_with_one_line_and_harms_nothing(
    tmp_path, capsys, monkeypatch, whole_run
):
    """No space at the 2nd flush, then after so many more each time it is run again."""
    out = tmp_path / "run"
    left = [1]
    flush = os.fsync

    def full(number):
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= 1
        flush(number)

    monkeypatch.setattr(files.os, "fsync", full)
    told = []
    step = whole_run.flushes // 6 + 7
    while (code := quickstart(out)) != 0:
        assert code == 2 and len(told) < 40
        line = only_line(capsys.readouterr().err)
        assert str(out) in line and "No space left on device" in line
        assert "free some space and run it again" in line
        told.append(line)
        assert not list(out.rglob("*.tmp")), "nothing half made takes up space"
        left[0] = step
    assert len(told) >= 4, told
    assert len({one.partition(" cannot be")[0] for one in told}) >= 3, "in different files"
    assert products(out) == products(whole_run.path)
