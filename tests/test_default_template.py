"""The prompt template of a new run on a GGUF file, by the file's own header."""

import gguf
import numpy as np
import pytest

from alpaca_rlhf.cli import doctor_command
from alpaca_rlhf.cli import main as cli
from alpaca_rlhf.core import templates
from alpaca_rlhf.core.templates import default_template

INSTRUCT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}<assistant>"


def gguf_file(path, template=None):
    """A file with a vocabulary, one tensor and perhaps a chat template."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_token_list([f"token{number}" for number in range(300)])
    if template is not None:
        writer.add_chat_template(template)
    writer.add_tensor("token_embd.weight", np.zeros((2, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_header_of_a_gguf_file_says_whether_it_is_an_instruct_base(tmp_path):
    assert default_template(str(gguf_file(tmp_path / "instruct.gguf", INSTRUCT))) == "chat"
    assert default_template(str(gguf_file(tmp_path / "BASE.GGUF"))) == "alpaca"
    assert default_template(str(gguf_file(tmp_path / "empty.gguf", ""))) == "alpaca"


def test_no_tensor_is_read(tmp_path, monkeypatch):
    """A tensor that is read is a copy in memory; here a mapped page of the file is all there is."""
    path = gguf_file(tmp_path / "instruct.gguf", INSTRUCT)
    readers = []

    class Watched(gguf.GGUFReader):
        def __init__(self, *args):
            super().__init__(*args)
            readers.append(self)

    monkeypatch.setattr(gguf, "GGUFReader", Watched)
    templates._header_has_chat_template.cache_clear()
    assert default_template(str(path)) == default_template(str(path)) == "chat"
    (reader,) = readers  # a second question reads nothing
    assert isinstance(reader.data, np.memmap)
    assert all(isinstance(tensor.data.base, np.memmap) for tensor in reader.tensors)


def test_a_changed_file_is_read_again(tmp_path):
    path = gguf_file(tmp_path / "model.gguf")
    assert default_template(str(path)) == "alpaca"
    assert default_template(str(gguf_file(path, INSTRUCT))) == "chat"


@pytest.mark.parametrize("damage", ["absent", "empty", "cut", "foreign"])
def test_a_damaged_file_is_left_to_the_loader(damage, tmp_path):
    path = tmp_path / "model.gguf"
    if damage == "cut":
        whole = gguf_file(path, INSTRUCT).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif damage != "absent":
        path.write_bytes(b"" if damage == "empty" else b"PK\x03\x04" * 20)
    assert default_template(str(path)) == "alpaca"


def test_doctor_checks_a_gguf_file_in_its_own_template(tmp_path, monkeypatch, capsys):
    checked = []

    def findings(flags):
        checked.append(flags.template)
        return iter(())

    monkeypatch.setattr(doctor_command, "_findings", findings)
    instruct = gguf_file(tmp_path / "instruct.gguf", INSTRUCT)
    assert cli.main(["doctor", "--base", str(instruct)]) == 0
    assert "--template chat" in capsys.readouterr().out, "the next command has it too"
    assert cli.main(["doctor", "--base", str(gguf_file(tmp_path / "base.gguf"))]) == 0
    assert cli.main(["doctor", "--base", str(instruct), "--template", "brief"]) == 0
    assert checked == ["chat", "alpaca", "brief"]


def test_a_new_run_on_a_gguf_file_says_that_it_takes_its_template(tmp_path, capsys):
    base = gguf_file(tmp_path / "instruct.gguf", INSTRUCT)
    words = ["sft", "--inputs.data", str(tmp_path / "none.jsonl"), "--inputs.judge", "human"]
    words += ["--out", str(tmp_path / "run"), "--base", str(base)]
    assert cli.main(words) == 2
    assert "template: chat, the base's own" in capsys.readouterr().out
