"""The doctor: its findings on a sound machine, and that it notices each defect."""

import json
import shutil
from importlib import metadata
from types import SimpleNamespace

import httpx
import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit
from huggingface_hub import errors

from alpaca_rlhf.cli.main import main
from alpaca_rlhf.doctor import base, base_checks, machine, machine_checks
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.hub import hub_refusal
from alpaca_rlhf.planner import Device, device_of, fitted
from alpaca_rlhf.settings import Loop, Lora
from alpaca_rlhf.stages.preflight import local_gpu

LORA = Lora(r=4, alpha=8)
GIB = 2**30


def of(findings, what):
    return next(finding for finding in findings if finding.what == what)


def test_a_sound_machine_and_base(tmp_path, capsys):
    assert main(["doctor", "--json", "True", "--out", str(tmp_path)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["good"]
    names = [finding["what"] for finding in report["findings"]]
    assert names == [
        *("python", "libraries", "torch", "card", "precision", "4-bit arithmetic", "memory"),
        *("disk", "base", "attention", "tokenizer", "end of text", "what carries loss"),
        *("a new adapter", "gradients", "save and reload"),
    ]
    assert all(finding["todo"] for finding in report["findings"] if finding["verdict"] != "ok")
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_as_lines_it_ends_with_the_next_command(tmp_path, capsys):
    assert main(["doctor", "--out", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "### Response:[[" in output, "what carries loss is shown"
    assert output.rstrip().splitlines()[-1].lstrip().startswith("alpaca-rlhf quickstart")


def test_a_kernel_with_a_wrong_backward_is_seen(monkeypatch):
    """The trap of bitsandbytes on AVX512-BF16: the product is right, and its gradient is not."""
    forward = Linear4bit.forward

    def wrong(self, x):
        out = forward(self, x)
        return out.detach() + 0.5 * (out - out.detach())

    monkeypatch.setattr(Linear4bit, "forward", wrong)
    finding = machine._four_bit(torch.device("cpu"))
    assert finding.verdict == "bad" and "do not train here" in finding.todo


@pytest.mark.parametrize("native", [True, False])
def test_the_precision_of_a_card(monkeypatch, native):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    finding = machine._precision(torch.device("cuda"))
    assert finding.found.startswith("bfloat16" if native else "float16")
    assert finding.verdict == ("ok" if native else "warning")


def test_a_driver_without_a_build_for_it_is_seen(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert machine._torch().verdict == "bad"


@pytest.fixture
def rocm(monkeypatch):
    """A build for ROCm, which has a card of AMD's behind `torch.cuda`."""
    card = SimpleNamespace(name="AMD Radeon RX 7900 XTX", major=11, minor=0, total_memory=24 * GIB)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", "7.1.0")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: card)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number=0: (12 * GIB, 24 * GIB))


def test_a_build_for_rocm_and_its_card_are_named_as_such(rocm, monkeypatch):
    built = machine._torch()
    assert built.verdict == "ok" and built.found.endswith("built for ROCm 7.1.0")
    card = machine._gpu()
    assert "AMD Radeon RX 7900 XTX (compute 11.0, 12.0 of 24.0 GiB free)" in card.found
    assert "rocm-smi" in card.todo and "nvidia" not in card.todo
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    none = machine._gpu()
    assert none.verdict == "bad" and "rocm-smi" in none.todo


def test_a_card_of_amd_is_planned_for_with_what_is_free_on_it(rocm):
    """The planner knows none by name, so it takes the rates of the slowest of that memory."""
    gpu = local_gpu()
    assert gpu.name == "AMD Radeon RX 7900 XTX" and gpu.gib == 12
    assert device_of(gpu) == Device("cuda", 2, capability=None)
    taken = fitted(Loop(base="llama-3.1-8b"), gpu)
    assert taken.sft.micro_batch_size >= 1 and taken.sampling.batch_size > 0
    assert taken != Loop(base="llama-3.1-8b")


def test_a_library_that_is_missing_or_too_old_is_named(monkeypatch):
    real = metadata.version
    needs = ["peft>=0.21", "nowhere-to-be-found>=1", 'krippendorff; extra == "dev"']
    monkeypatch.setattr(metadata, "requires", lambda name: needs)
    monkeypatch.setattr(metadata, "version", lambda name: "0.3" if name == "peft" else real(name))
    finding = machine._libraries()
    assert finding.verdict == "bad"
    assert finding.found == "peft 0.3 where >=0.21 is needed; nowhere-to-be-found is missing"


def test_a_full_disk_is_bad(monkeypatch, tmp_path):
    full = shutil._ntuple_diskusage(10**12, 10**12 - 2**29, 2**29)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: full)
    finding = machine._disk(tmp_path / "not" / "there")
    assert finding.verdict == "bad" and finding.found.startswith("0.5 GiB")


def test_a_check_that_fails_is_a_finding(monkeypatch, tmp_path):
    def broken(device):
        raise OSError("libcudart.so: cannot open\nand more")

    monkeypatch.setattr(machine, "_four_bit", broken)
    finding = of(machine_checks(tmp_path), "4-bit arithmetic")
    assert (finding.verdict, finding.found) == ("bad", "OSError: libcudart.so: cannot open")


# --- the base -------------------------------------------------------------------------------------


def test_a_base_that_is_not_there_is_one_finding(tmp_path, capsys):
    assert main(["doctor", "--base", str(tmp_path / "x"), "--out", str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert f"--base {tmp_path / 'x'}: no such folder" in output
    assert "a new adapter" not in output


def test_what_does_not_learn_or_reload_is_seen(tiny_folder, monkeypatch):
    findings = list(base_checks(str(tiny_folder), "alpaca", LORA))
    assert {finding.verdict for finding in findings} == {"ok"}, findings
    save = Adapters.save

    def forgetful(self, name, folder, head=None):
        with torch.no_grad():
            first = next(iter(self.parameters(name).values()))
            first.add_(1)
            save(self, name, folder, head)
            first.sub_(1)

    monkeypatch.setattr(Adapters, "save", forgetful)
    monkeypatch.setattr(Adapters, "trainable", lambda self, *names: None)
    findings = list(base_checks(str(tiny_folder), "alpaca", LORA))
    assert of(findings, "save and reload").verdict == "bad"
    assert of(findings, "gradients").verdict == "bad"
    monkeypatch.setattr(base, "_stats", lambda adapters, role: torch.rand(3))
    findings = list(base_checks(str(tiny_folder), "alpaca", LORA))
    assert of(findings, "a new adapter").verdict == "bad"


# --- the hub --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("after", "warned"),
    [
        ("{{ m.content }}\n", {"end of text", "what carries loss"}),  # no token closes a reply
        ("{{ m.content | replace('.', '') }}{{ eos_token }}", {"what carries loss"}),
    ],
)
def test_a_template_that_loses_earlier_replies_is_a_warning_and_no_more(
    after, warned, tiny_folder, tmp_path, capsys
):
    """Rows of one turn train with it, so every check of the gradients is made with those."""
    folder = tmp_path / "base"
    shutil.copytree(tiny_folder, folder)
    (folder / "chat_template.jinja").write_text(
        f"{{% for m in messages %}}<{{{{ m.role }}}}>{after}{{% endfor %}}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    words = ["doctor", "--json", "True", "--base", str(folder), "--out", str(tmp_path / "runs")]
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out)
    of_base = report["findings"][8:]
    assert of_base[0]["what"] == "base" and len(of_base) == 8
    assert {each["what"] for each in of_base if each["verdict"] == "warning"} == warned
    assert not [finding for finding in of_base if finding["verdict"] == "bad"]
    shown = of_base[4]["found"]
    assert "Good day." in shown and "Rome." not in shown and "alters its earlier replies" in shown
    assert "SFT refuses such rows" in of_base[4]["todo"]


def raised(kind):
    """As transformers raises it: an OSError, caused by the hub's own."""
    request = httpx.Request("GET", "https://huggingface.co/a/b")
    if issubclass(kind, errors.HfHubHTTPError):
        inner = kind("no", response=httpx.Response(403, request=request))
    else:
        inner = kind("no")
    try:
        raise OSError("You are trying to access a gated repo.\nMake sure ...") from inner
    except OSError as error:
        return error


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        (errors.GatedRepoError, "accept it at https://huggingface.co/a/b, then log in"),
        (errors.RepositoryNotFoundError, "the hub has no such model, or it is private"),
        (errors.OfflineModeIsEnabled, "unset HF_HUB_OFFLINE"),
        (httpx.ConnectError, "unset HF_HUB_OFFLINE"),
    ],
)
def test_what_the_hub_refuses_is_one_line_with_the_way_out(monkeypatch, kind, remedy):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refusal = hub_refusal("a/b", raised(kind))
    assert refusal.startswith("--base a/b: ") and remedy in refusal and "\n" not in refusal
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert "unset" not in hub_refusal("a/b", raised(kind))


def test_another_error_is_none_of_the_hubs():
    assert hub_refusal("a/b", ValueError("no")) is None
