"""Mistakes of people who come with a LLaMA and files of their own, each with what they are told.

`MISTAKES` is the table: a command as it is typed and what its one line must hold. `prepare` makes
the folder in which they are typed, `prepare_runs` those that need a finished run, and
`CIRCUMSTANCES` what else must be the case meanwhile. `docs/mistakes.md` holds the whole lines;
`page` writes it.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import socket
import subprocess
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from alpaca_rlhf import __version__
from alpaca_rlhf.core.locks import Lock

__all__ = [
    "BEGIN",
    "CIRCUMSTANCES",
    "MISTAKES",
    "Mistake",
    "page",
    "plain",
    "prepare",
    "prepare_runs",
]

_QUESTIONS = (
    *("Name the capital of France.", "Why does bread rise in a warm oven?", "Who wrote Hamlet?"),
    *("Describe a lighthouse.", "How do bees find flowers?", "Give a tip for a first interview."),
    *("Translate `good morning` into Spanish.", "What melts at zero degrees?", "Sum 12 and 30."),
    *("List three tools of a carpenter.", "Explain tides to a child.", "Is a tomato a fruit?"),
    *("Rhyme with `stone`.", "Where do penguins live?", "Correct: he go to school yesterday."),
    *("Suggest a name for a grey cat.", "When was the moon first visited?", "Define inflation."),
    *("Write a slogan for an umbrella shop.", "Which planet has rings?", "Plan a picnic."),
    *("Compare a violin with a guitar.", "Shorten: it is raining very heavily outside."),
    *("What do vegetarians not eat?", "Recommend a board game for two.", "Spell `necessary`."),
)
_FILES = "--inputs.judge human --inputs.prompts prompts.jsonl --template brief --config small.yaml"
_BASE = f"sft {_FILES} --inputs.data rows.jsonl --out new --base"
_DATA = f"sft {_FILES} --out new --base model --inputs.data"
_LOOP = f"loop {_FILES} --inputs.data rows.jsonl --out new --base model"
BEGIN = f"sft {_FILES} --inputs.data rows.jsonl --out done --base model"
"""The command that begins the run `done`."""


@dataclass(frozen=True)
class Mistake:
    """A command that a newcomer types by mistake.

    Attributes:
        about: The mistake, in a few words.
        command: The words after `alpaca-rlhf`.
        told: Parts of the line that answers it.
        circumstance: A key of `CIRCUMSTANCES`; empty if the files alone make the mistake.
    """

    about: str
    command: str
    told: tuple[str, ...]
    circumstance: str = ""


MISTAKES = (
    # --- the base
    Mistake(
        "base: an adapter",
        f"{_BASE} adapter",
        (
            "--base adapter: ",
            "it holds an adapter, which is no base",
            "org/llama",
            "--inputs.sft-adapter adapter",
        ),
    ),
    Mistake(
        "base: a run folder",
        f"{_BASE} done",
        ("--base done: ", "alpaca-rlhf export done --to merged"),
    ),
    Mistake("base: LLaMA's original weights", f"{_BASE} original", ("--base original: ", ".pth")),
    Mistake(
        "base: a folder of the hub's cache",
        f"{_BASE} models--a--b",
        ("did you mean --base models--a--b/snapshots/abc?",),
    ),
    Mistake(
        "base: a file of weights",
        f"{_BASE} model/model.safetensors",
        ("is a file, and a base is a folder; give its folder, --base model",),
    ),
    Mistake(
        "base: an address",
        f"{_BASE} https://huggingface.co/meta-llama/Llama-3.2-1B",
        ("give the hub id, --base meta-llama/Llama-3.2-1B",),
    ),
    Mistake("base: a name of Ollama's", f"{_BASE} llama3.1:8b", ("--base llama3.1:8b: ", "Ollama")),
    Mistake("base: a name in capitals", f"{_BASE} SmolLM2", ("did you mean --base smollm2?",)),
    Mistake("base: a path of Windows", _BASE + r" 'C:\models\llama'", ("no such folder",)),
    Mistake("base: nothing", f"{_BASE} ''", ("--base is empty",)),
    Mistake(
        "base: half-downloaded weights",
        f"{_BASE} half",
        ("half/model.safetensors: is cut short", "download it again"),
    ),
    Mistake(
        "base: a pointer of git-lfs",
        f"{_BASE} lfs",
        ("lfs/model.safetensors: is a pointer of git-lfs", "lfs pull"),
    ),
    Mistake(
        "base: a missing shard",
        f"{_BASE} shard",
        ("--base shard: shard/model-00002-of-00002.safetensors: is missing", "download it again"),
    ),
    Mistake(
        "base: no tokenizer",
        f"{_BASE} untokenized",
        ("--base untokenized: holds no tokenizer (tokenizer.json or tokenizer.model)",),
    ),
    Mistake("base: pickled weights", f"{_BASE} pickle", ("--base pickle: ",)),
    Mistake(
        "base: half a GGUF file",
        f"{_BASE} half.gguf",
        ("--base half.gguf: is cut short or damaged", "download it again"),
    ),
    # --- rows to train on
    Mistake(
        "rows: UTF-16", f"{_DATA} utf16.jsonl", ("utf16.jsonl: is UTF-16 text; convert it: iconv",)
    ),
    Mistake(
        "rows: a spreadsheet named .csv",
        f"{_DATA} excel.csv",
        ("excel.csv: is a zip archive or a spreadsheet",),
    ),
    Mistake("rows: a PDF", f"{_DATA} book.pdf", ("book.pdf: is a PDF",)),
    Mistake(
        "rows: a torn gzip file",
        f"{_DATA} torn.jsonl.gz",
        ("torn.jsonl.gz: cannot be unpacked", "download it again"),
    ),
    Mistake(
        "rows: nested columns in Parquet",
        f"{_DATA} nested.parquet",
        (
            "nested.parquet: row 1: expected a column `instruction`",
            "columns here: sample",
            "--inputs.columns OLD=instruction",
        ),
    ),
    Mistake(
        "rows: columns in another language",
        f"{_DATA} deutsch.jsonl",
        (
            "deutsch.jsonl:1: ",
            "columns here: Antwort, Frage",
            "--inputs.columns OLD=instruction,OLD=output",
        ),
    ),
    Mistake("rows: an empty file", f"{_DATA} empty.jsonl", ("empty.jsonl: no rows in it",)),
    Mistake("rows: an empty list", f"{_DATA} emptylist.json", ("emptylist.json: no rows in it",)),
    Mistake("rows: blank lines", f"{_DATA} blank.jsonl", ("blank.jsonl: no rows in it",)),
    Mistake(
        "rows: prompts without answers",
        f"{_DATA} prompts.jsonl",
        ("prompts.jsonl:1: the output is empty or absent",),
    ),
    Mistake(
        "rows: preference pairs",
        f"{_DATA} pairs.jsonl",
        ("pairs.jsonl:1: ", "--inputs.rankings takes"),
    ),
    Mistake(
        "rows: a misspelled file",
        f"{_DATA} rowz.jsonl",
        ("rowz.jsonl: no such file; did you mean rows.jsonl?",),
    ),
    Mistake(
        "rows: a folder", f"{_DATA} folder", ("folder: is a folder; give one of the files in it",)
    ),
    Mistake(
        "rows: plain text",
        f"{_DATA} notes.txt",
        ("notes.txt: is plain text; if each line is a prompt: ",),
    ),
    Mistake(
        "rows: a table without a header",
        f"{_DATA} noheader.csv",
        ("noheader.csv:2: expected a column `instruction`",),
    ),
    Mistake(
        "rows: Latin-1", f"{_DATA} latin1.csv", ("latin1.csv:2: not UTF-8", "iconv -f WINDOWS-1252")
    ),
    Mistake("rows: a comma too many", f"{_DATA} comma.jsonl", ("comma.jsonl:1: not JSON",)),
    Mistake(
        "rows: Python in place of JSON", f"{_DATA} python.jsonl", ("python.jsonl:1: not JSON",)
    ),
    Mistake("rows: NaN", f"{_DATA} nan.jsonl", ("nan.jsonl:1: not JSON: NaN; write null",)),
    Mistake(
        "rows: a pattern in quotes",
        f"{_DATA} '*.jsonl'",
        ("*.jsonl: no such file; one file is read",),
    ),
    Mistake(
        "rows: two files with a comma",
        f"{_DATA} rows.jsonl,more.jsonl",
        ("no such file; one file is read",),
    ),
    Mistake(
        "rows: two files",
        f"{_DATA} rows.jsonl more.jsonl",
        ("unexpected 'more.jsonl' after --inputs.data rows.jsonl, which takes one value",),
    ),
    Mistake(
        "rows: texts in place of rows",
        f"{_DATA} texts.jsonl",
        ("texts.jsonl:1: expected an object with named columns, got text",),
    ),
    Mistake(
        "rows: splits in one object",
        f"{_DATA} splits.json",
        ("splits.json: is one object, and its rows lie in `train` (others in test)", "python3 -c"),
    ),
    # --- settings
    Mistake(
        "an empty batch", f"{_LOOP} --sft.batch-size 0", ("--sft.batch-size must be > 0, got 0",)
    ),
    Mistake(
        "a huge learning rate",
        f"{_LOOP} --sft.lr 20",
        ("--sft.lr must be in (0, 1], got 20",),
    ),
    Mistake(
        "half an epoch",
        f"{_LOOP} --sft.epochs 0.5",
        ("--sft.epochs expects a whole number, got '0.5'",),
    ),
    Mistake("one answer to rank", f"{_LOOP} --rank.k 1", ("--rank.k must be 2 to 9, got 1",)),
    Mistake(
        "greedy PPO", f"{_LOOP} --ppo.temperature 0", ("--ppo.temperature must be > 0, got 0",)
    ),
    Mistake("greedy samples", f"{_LOOP} --rank.temperature 0", ("--rank.temperature",)),
    Mistake("a misspelled policy", f"{_LOOP} --policies pp0", ("got 'pp0'; did you mean ppo?",)),
    Mistake(
        "policies with commas",
        f"{_LOOP} --policies=ppo,dpo",
        ("got 'ppo,dpo'; put spaces between them: ppo dpo",),
    ),
    Mistake(
        "one policy misspelled",
        f"{_LOOP} --policies ppo dpo bestofk",
        ("got 'bestofk'; did you mean best-of-k?",),
    ),
    Mistake(
        "another kit's flag",
        f"{_LOOP} --epochs 3",
        ("--epochs: no such flag, did you mean --sft.epochs?",),
    ),
    Mistake(
        "a decimal comma", f"{_LOOP} --sft.lr 0,0001", ("--sft.lr expects a number, got '0,0001'",)
    ),
    Mistake(
        "a unit",
        f"{_LOOP} --sft.max-length 8k",
        ("--sft.max-length expects a whole number, got '8k'",),
    ),
    Mistake(
        "more than all held out",
        f"{_LOOP} --sft.held-out 1.5",
        ("--sft.held-out must be at least 0 and below 1",),
    ),
    Mistake("no seed", f"{_LOOP} --seed -1", ("--seed must be at least 0",)),
    Mistake(
        "a template of another kit",
        f"{_LOOP} --template llama3",
        ("--template expects one of brief, alpaca, chat, got 'llama3'",),
    ),
    Mistake(
        "no settings file", f"{_LOOP} --config none.yaml", ("--config none.yaml: cannot be read",)
    ),
    Mistake("a tab in YAML", f"{_LOOP} --config tab.yaml", ("tab.yaml:2: is not YAML",)),
    Mistake(
        "a misspelled setting",
        f"{_LOOP} --config typo.yaml",
        ("typo.yaml:2: sft.learning_rate: no such setting",),
    ),
    Mistake(
        "no judge", f"{_LOOP} --inputs.judge chatgpt", ("--inputs.judge 'chatgpt' names no judge",)
    ),
    Mistake(
        "too few prompts",
        f"{_LOOP} --rank.prompts 400",
        ("--inputs.prompts prompts.jsonl: 20 prompts", "--rank.prompts is 400", "rank lacks"),
    ),
    # --- runs and commands
    Mistake("no run", "chat runs/nowhere", ("error: runs/nowhere: holds no run",)),
    Mistake(
        "no run, by a flag", "chat --run runs/nowhere", ("error: --run runs/nowhere: holds no run",)
    ),
    Mistake(
        "no run to judge", "judge runs/nowhere --by checks", ("error: runs/nowhere: holds no run",)
    ),
    Mistake(
        "a policy that was not trained",
        "chat done --policy ppo",
        ("--policy ppo: done has base, sft",),
    ),
    Mistake("a question without a flag", "chat done 'What is it?'", ("unexpected 'What is it?'",)),
    Mistake(
        "no reward model",
        "judge done --by reward",
        ("--by reward: done has no reward model yet; train it: alpaca-rlhf reward --out done",),
    ),
    Mistake("people as a judge", "judge done --by human", ("--by human: people rank in the app",)),
    Mistake(
        "no reward model to export", "export done --to reward", ("done: has no reward model yet",)
    ),
    Mistake("the base exported", "export done --policy base", ("--policy base: ",)),
    Mistake(
        "a format that is not made",
        "export done --to onnx",
        ("--to expects one of adapter, merged, reward, gguf, got 'onnx'",),
    ),
    Mistake("answers without prompts", "answers done", ("--prompts is missing: give it a path",)),
    Mistake(
        "a misspelled file of prompts",
        "answers done --prompts promts.jsonl",
        ("promts.jsonl: no such file; did you mean prompts.jsonl?",),
    ),
    Mistake(
        "another base",
        "sft --base embedded --out done",
        ("--out done: holds another run: base was model, now embedded",),
    ),
    Mistake(
        "another seed",
        "sft --seed 7 --out done",
        ("--out done: holds another run: seed was 0, now 7",),
    ),
    Mistake(
        "a run of a newer version",
        "chat newer",
        (
            "newer/config.yaml:",
            "sparkles: no such setting",
            "made by another version, alpaca-rlhf 9.0",
            "update this one",
        ),
    ),
    Mistake(
        "the settings of a run of a newer version",
        f"{_BASE} model --config newer/config.yaml",
        (
            "newer/config.yaml:",
            "sparkles: no such setting",
            "made by another version, alpaca-rlhf 9.0",
            "or leave out what it does not know",
        ),
    ),
    Mistake(
        "a card without its family",
        "plan --base model --card 4090",
        ("--card 4090: did you mean rtx-4090? Else give its memory in GiB, or one of rtx-3060,",),
    ),
    Mistake(
        "a file of answers without answers",
        "checks score --file prompts.jsonl",
        ("prompts.jsonl:1: no answer; expected it in `answer` or `output`", "here: instruction"),
    ),
    Mistake("a folder that is no run", "evaluate --out nowhere", ("--out nowhere: holds no run",)),
    Mistake("another kit's command", "train", ("train: no such command; did you mean sft",)),
    Mistake("another command for the report", "eval", ("did you mean evaluate",)),
    Mistake(
        "two kinds in one import",
        "import rows.jsonl pairs.jsonl --out imported",
        ("rows.jsonl holds instructions, pairs.jsonl holds pairs",),
    ),
    Mistake(
        "an import into a full folder",
        "import rows.jsonl --out folder",
        ("something is there already; give another folder",),
    ),
    Mistake("a base that is not fetched", "base get llama", ("llama",)),
    # --- what changed meanwhile, and what else is at work
    Mistake(
        "rows: one row of ten megabytes",
        f"{_DATA} huge.jsonl",
        ("huge.jsonl: no row to train on fits into --sft.max-length 128 tokens; raise it",),
    ),
    Mistake(
        "prompts: one of ten megabytes",
        "loop --inputs.judge human --template brief --config small.yaml --base model --out new"
        " --inputs.data rows.jsonl --inputs.prompts hugeprompt.jsonl",
        ("hugeprompt.jsonl: a prompt has 10,400,000 characters", "leave it out"),
    ),
    Mistake(
        "evaluated on the rows to train on",
        "loop --inputs.judge human --template brief --config small.yaml --base model --out new"
        " --inputs.data answered.jsonl --inputs.prompts answered.jsonl",
        ("prompts leak between stages", "alpaca-rlhf split --data", "--inputs.leaks drop"),
    ),
    Mistake(
        "a file of rows that was changed under its run",
        f"sft {_FILES} --inputs.data changed.jsonl --out changed --base model",
        ("--out changed: changed.jsonl was changed since this run began; put back what it held",),
    ),
    Mistake(
        "two commands on one run",
        f"sft {_FILES} --inputs.data rows.jsonl --out done --base model",
        ("--out done: is in use by process ", "wait for it or use another --out"),
        "at work",
    ),
    Mistake(
        "a run in a read-only folder",
        f"sft {_FILES} --inputs.data rows.jsonl --out readonly/done --base model",
        ("readonly/done", "cannot be written", "use another --out"),
        "read-only",
    ),
    Mistake(
        "a new run in a read-only folder",
        f"sft {_FILES} --inputs.data rows.jsonl --out readonly/new --base model",
        ("readonly/new", "cannot be written", "use another --out"),
        "read-only",
    ),
    Mistake(
        "a port that is taken",
        "app done --port PORT",
        ("--port ", "give another one"),
        "port taken",
    ),
)


@contextmanager
def _at_work(folder: Path) -> Iterator[Mapping[str, str]]:
    """Another command holds the run `done`."""
    with Lock(folder / "done" / ".lock") as lock:
        lock.write_owner(str(os.getpid()))
        yield {}


@contextmanager
def _read_only(folder: Path) -> Iterator[Mapping[str, str]]:
    """The folder `readonly` holds a run and takes no writes, not even those of root."""
    place = folder / "readonly"
    place.mkdir()
    if os.geteuid():
        shutil.copytree(folder / "done", place / "done")
        place.chmod(0o555)
        try:
            yield {}
        finally:
            place.chmod(0o755)
            shutil.rmtree(place)
        return
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("root writes everywhere, and mounting a read-only disk is not allowed here")
    try:
        shutil.copytree(folder / "done", place / "done")
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        yield {}
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
        place.rmdir()


@contextmanager
def _port_taken(folder: Path) -> Iterator[Mapping[str, str]]:
    """Somebody listens on a port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield {"PORT": str(listener.getsockname()[1])}


@contextmanager
def _nothing(folder: Path) -> Iterator[Mapping[str, str]]:
    yield {}


CIRCUMSTANCES: Mapping[str, Callable[[Path], AbstractContextManager[Mapping[str, str]]]] = {
    "": _nothing,
    "at work": _at_work,
    "read-only": _read_only,
    "port taken": _port_taken,
}
"""The state in which a command is typed; each gives the words that its command leaves open."""


def plain(line: str) -> str:
    """A line without what differs from machine to machine, and from Python to Python."""
    line = re.sub(r"process \d+", "process PID", line)
    line = re.sub(r" \(commit [0-9a-f]{8}\)", "", line)
    line = line.replace(f"this is {__version__}:", "this is VERSION:")
    line = re.sub(r"--port \d+", "--port PORT", line)
    line = re.sub(r"config\.yaml:\d+", "config.yaml:LINE", line)
    line = re.sub(r"not JSON: [^;]+ in column \d+", "not JSON: REASON in column N", line)
    return line.strip().removeprefix("error: ")


def page(lines: Mapping[str, str]) -> str:
    """The text of `docs/mistakes.md` from the line with which each mistake is answered."""
    rows = [f"| {name} | `` {line} `` | 2 |" for name, line in lines.items()]
    return _PAGE.format(count=len(rows), rows="\n".join(rows))


_PAGE = """# Mistakes

{count} mistakes of people who come with a base and files of their own, and the one line that
answers each, after `error: `. Every command ends with exit code 2 and prints no traceback, and
nothing is trained.

`tests/test_newcomer_mistakes.py` types them all and compares the lines; the commands and the files
stand in `tests/newcomer_mistakes.py`. After a change of a message
`python -m pytest tests/test_newcomer_mistakes.py --write-mistakes` writes this page anew.

| mistake | what is said | exit code |
|---|---|---|
{rows}
"""


def _lines(path: Path, rows: list[object]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def prepare(folder: Path, model: Path) -> None:
    """Make the files and the folders of the table; `model` is a checkpoint of a small LLaMA."""
    texts = list(_QUESTIONS)
    rows = [{"instruction": text, "output": "Yes, it is."} for text in texts]
    # 1. Good files.
    _lines(folder / "rows.jsonl", rows[:6])
    _lines(folder / "more.jsonl", [{"instruction": "Say hello.", "output": "Hello."}])
    _lines(folder / "prompts.jsonl", [{"instruction": text} for text in texts[6:]])
    pairs = [{"prompt": text, "chosen": "A.", "rejected": "B."} for text in texts[:6]]
    _lines(folder / "pairs.jsonl", pairs)
    (folder / "small.yaml").write_text(
        "lora: {r: 4, alpha: 8}\nsft: {batch_size: 4, epochs: 1, held_out: 0, max_length: 128}\n"
        "sampling: {max_new_tokens: 12}\nrank: {prompts: 4, k: 2}\n"
        "reward: {batch_size: 4, max_length: 128, held_out: 0.4}\n"
        "ppo: {updates: 2, value: {warmup: 1}, batch_size: 4, minibatch_size: 4, epochs: 1,"
        " max_new_tokens: 12}\n"
        "best_of_k: {prompts: 4, k: 2}\nevaluate: {prompts: 4, bootstrap: 50}\n"
    )
    # 2. Bad files.
    text = (folder / "rows.jsonl").read_text()
    (folder / "utf16.jsonl").write_bytes(text.encode("utf-16"))
    with zipfile.ZipFile(folder / "excel.csv", "w") as book:
        book.writestr("[Content_Types].xml", "<Types/>")
    (folder / "book.pdf").write_bytes(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n1 0 obj\n")
    (folder / "torn.jsonl.gz").write_bytes(gzip.compress(text.encode() * 50)[:-20])
    nested = [{"sample": row} for row in rows]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(nested), folder / "nested.parquet")
    _lines(folder / "deutsch.jsonl", [{"Frage": text, "Antwort": "Ja."} for text in texts])
    (folder / "empty.jsonl").write_text("")
    (folder / "blank.jsonl").write_text("\n\n\n")
    (folder / "folder").mkdir()
    (folder / "folder" / "holiday.txt").write_text("x")
    (folder / "notes.txt").write_text("Name the capital.\nParis.\n")
    (folder / "noheader.csv").write_text("Name a cat.,Tom.\nName a dog.,Rex.\n")
    (folder / "latin1.csv").write_bytes("instruction,output\nGrüße?,Schön.\n".encode("latin-1"))
    (folder / "comma.jsonl").write_text(text.replace('"}', '",}', 1))
    (folder / "python.jsonl").write_text("{'instruction': 'a', 'output': 'b'}\n")
    (folder / "nan.jsonl").write_text('{"instruction": "a", "output": NaN}\n' + text)
    (folder / "emptylist.json").write_text("[]")
    _lines(folder / "texts.jsonl", ["a", "b"])
    (folder / "splits.json").write_text(json.dumps({"train": rows, "test": rows}))
    (folder / "tab.yaml").write_text("sft:\n\tlr: 1e-4\n")
    (folder / "typo.yaml").write_text("sft:\n  learning_rate: 1e-4\n")

    _lines(folder / "huge.jsonl", [{"instruction": "Sum up.", "output": "All is well. " * 800_000}])
    _lines(
        folder / "hugeprompt.jsonl",
        [{"instruction": text} for text in (*texts[6:17], "All is well. " * 800_000)],
    )
    _lines(folder / "answered.jsonl", rows)

    # 3. Bases.
    def copied(name: str) -> Path:
        shutil.copytree(model, folder / name)
        return folder / name

    copied("model")
    half = copied("half") / "model.safetensors"
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    (copied("lfs") / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e"
        "adbb8f32b1258daaa5e2ca24d17e2393\nsize 2471645608\n"
    )
    shard = copied("shard")
    (shard / "model.safetensors").rename(shard / "model-00001-of-00002.safetensors")
    index = {
        "metadata": {},
        "weight_map": {
            "model.embed_tokens.weight": "model-00001-of-00002.safetensors",
            "lm_head.weight": "model-00002-of-00002.safetensors",
        },
    }
    (shard / "model.safetensors.index.json").write_text(json.dumps(index))
    for path in copied("untokenized").glob("*token*"):
        path.unlink()
    pickle = copied("pickle")
    (pickle / "model.safetensors").rename(pickle / "pytorch_model.bin")
    adapter = folder / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "org/llama", "peft_type": "LORA"})
    )
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    original = folder / "original"
    original.mkdir()
    (original / "consolidated.00.pth").write_bytes(b"PK")
    (original / "params.json").write_text("{}")
    (original / "tokenizer.model").write_bytes(b"")
    (folder / "half.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    cache = folder / "models--a--b"
    (cache / "snapshots" / "abc").mkdir(parents=True)
    (cache / "refs").mkdir()
    for path in model.iterdir():
        shutil.copy(path, cache / "snapshots" / "abc")


def prepare_runs(folder: Path) -> None:
    """Make the runs of the table from `done`, the one that `BEGIN` began."""
    shutil.copytree(folder / "done", folder / "newer")
    with (folder / "newer" / "config.yaml").open("a") as file:
        file.write("sparkles: 3\n")
    provenance = folder / "newer" / "provenance.json"
    facts = json.loads(provenance.read_text())
    facts["versions"]["alpaca-rlhf"] = "9.0"
    provenance.write_text(json.dumps(facts))
    shutil.copytree(folder / "done", folder / "changed")
    for name in ("config.yaml", "provenance.json"):
        path = folder / "changed" / name
        path.write_text(path.read_text().replace("rows.jsonl", "changed.jsonl"))
    changed = (folder / "rows.jsonl").read_text() + (folder / "more.jsonl").read_text()
    (folder / "changed.jsonl").write_text(changed)
