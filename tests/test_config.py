"""The settings as users give them: what wins, what is refused, and where the message points."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.runs import RunFolder
from alpaca_rlhf.settings import PPO, SFT, Evaluate, Inputs, Loop, Reward, Value
from alpaca_rlhf.settings.earlier import config_of, with_earlier_defaults
from alpaca_rlhf.settings.parsing import parse, to_yaml
from alpaca_rlhf.settings.quickstart import QUICKSTART


@dataclass(frozen=True)
class Inner:
    lr: float = 1e-3
    """Speed."""
    layers: tuple[int, ...] = (1, 2)
    """Which."""

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"--inner.lr must be > 0,\n got {self.lr:g}")


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    """The inside."""
    mode: Literal["fast", "slow"] = "fast"
    """How."""
    check: bool = True
    """Whether."""
    limit: int | None = None
    """At most."""
    note: str | None = None
    """Remark."""
    max_length: int = 8
    """Longest."""
    out: Path = Path("runs/x")
    """Destination."""


@dataclass(frozen=True)
class Needy:
    size: int
    """No default."""


def read(*argv: str, cls: type = Outer, default: object = None) -> Outer:
    return parse(cls, argv, prog="kit thing", description="Does a thing.", default=default)


def refusal(*argv: str, cls: type = Outer) -> str:
    with pytest.raises(UserError) as caught:
        read(*argv, cls=cls)
    message = str(caught.value)
    assert "\n" not in message
    assert "╭" not in message
    return message


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> str:
        Path("run.yaml").write_text(text, encoding="utf-8")
        return "run.yaml"

    return write


def test_defaults_below_yaml_below_flags(file):
    name = file("inner:\n  lr: 3e-4\n  layers: [4]\nmax_length: 16\n")
    made = read("--max-length", "32", "--config", name)
    assert made == Outer(inner=Inner(lr=3e-4, layers=(4,)), max_length=32)
    assert isinstance(made.inner.lr, float)
    assert read("--inner.lr=0.5", default=Outer(max_length=99)) == Outer(Inner(0.5), max_length=99)
    assert read("--config", name, default=Outer(check=False)).check is False


def test_a_later_file_stands_above_an_earlier_one(file):
    first = file("max_length: 1\nmode: slow\n")
    Path("second.yaml").write_text("max-length: 2\n")
    made = read(f"--config={first}", "--config", "second.yaml")
    assert (made.max_length, made.mode) == (2, "slow")


def test_flags_as_people_type_them():
    made = read(
        "--inner.layers", "3", "-4", "--check", "false", "--limit", "None", "--max_length=3"
    )
    assert made == Outer(Inner(layers=(3, -4)), check=False, limit=None, max_length=3)
    assert read("--note=--dashes").note == "--dashes"
    assert read("--note", "").note == ""
    assert read("--max-length", "1", "--max-length", "2").max_length == 2


def test_yaml_values_of_every_kind(file):
    text = "check: no\nlimit: null\nnote: 'yes'\nout: a b/c\ninner:\n  layers: []\n"
    made = read("--config", file(text))
    assert made == Outer(Inner(layers=()), check=False, note="yes", out=Path("a b/c"))
    assert read("--config", file("inner:\n")) == Outer()
    assert read("--config", file("# nothing\n")) == Outer()
    assert read("--config", file("inner.lr: 2\n")).inner.lr == 2.0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--inner.lr", "abc"], "--inner.lr expects a number, got 'abc'"),
        (["--max_length", "1.5"], "--max_length expects a whole number, got '1.5'"),
        (["--mode", "quick"], "--mode expects one of fast, slow, got 'quick'"),
        (["--check", "maybe"], "--check expects True or False, got 'maybe'"),
        (["--limit", "x"], "--limit expects a whole number or None, got 'x'"),
        (
            ["--inner.layers", "x"],
            "--inner.layers expects a list of values, each a whole number, got 'x'",
        ),
        (["--inner.lr", "-1"], "--inner.lr must be > 0, got -1"),
        (["--inner.lr", "inf"], "--inner.lr expects a finite number, got inf"),
        (["--inner.lr", "--mode", "slow"], "--inner.lr needs a value: a number"),
        (["--config"], "--config needs a value: a path"),
        (
            ["--inner.rl", "1"],
            "--inner.rl: no such flag; inner has lr, layers; see kit thing --help",
        ),
        (
            ["--inner.layer", "1"],
            "--inner.layer: no such flag, did you mean --inner.layers?; see kit thing --help",
        ),
        (["--lr", "1"], "--lr: no such flag, did you mean --inner.lr?; see kit thing --help"),
        (
            ["--inner", "1"],
            "--inner: no such flag, it is a group: --inner.lr, --inner.layers; "
            "see kit thing --help",
        ),
        (["--zzz"], "--zzz: no such flag; see kit thing --help"),
        (["stray"], "unexpected 'stray': every setting is a flag; see kit thing --help"),
        (["-x"], "unexpected '-x': every setting is a flag; see kit thing --help"),
        (
            ["--mode", "slow", "fast"],
            "unexpected 'fast' after --mode slow, which takes one value: every setting is a flag; "
            "see kit thing --help",
        ),
    ],
)
def test_a_bad_flag_is_named_as_typed(argv, message, capfd):
    assert refusal(*argv) == message
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\ninner:\n  lr: abc\n", "run.yaml:3: inner.lr expects a number, got 'abc'"),
        ("inner:\n  lr: -1\n", "run.yaml:2: --inner.lr must be > 0, got -1"),
        ("inner: {lr: .inf}\n", "run.yaml:1: inner.lr expects a number, got '.inf'"),
        ("inner: {lr: inf}\n", "run.yaml:1: inner.lr expects a finite number, got inf"),
        (
            "inner:\n  zzz: 1\n",
            "run.yaml:2: inner.zzz: no such setting; inner has lr, layers",
        ),
        ("max_lenth: 1\n", "run.yaml:1: max_lenth: no such setting, did you mean max_length?"),
        ("lr: 1\n", "run.yaml:1: lr: no such setting, did you mean inner.lr?"),
        (
            "mode: fast\ncheck: true\nmode: slow\n",
            "run.yaml:3: mode stands twice (first on line 1); keep one",
        ),
        (
            "inner: {lr: 1}\ninner.lr: 2\n",
            "run.yaml:2: inner.lr stands twice (first on line 1); keep one",
        ),
        ("inner: 3\n", "run.yaml:1: inner is a group: write lr, layers indented below it"),
        ("inner: [3]\n", "run.yaml:1: inner is a group: write lr, layers indented below it"),
        ("mode: {a: 1}\n", "run.yaml:1: mode expects one of fast, slow, got a mapping"),
        ("max_length: [1]\n", "run.yaml:1: max_length expects a whole number, got a list"),
        (
            "inner:\n  layers: 1\n",
            "run.yaml:2: inner.layers expects a list of values, each a whole number, "
            "got a single value",
        ),
        (
            "max_length:\n",
            "run.yaml:1: max_length is empty; give it a whole number or delete the line",
        ),
        ("[1]: 2\n", "run.yaml:1: a key must be a plain word"),
        ("- 1\n", "run.yaml:1: expected `key: value` lines, got a list"),
        ("just words\n", "run.yaml:1: expected `key: value` lines, got a single value"),
    ],
)
def test_a_bad_line_of_yaml_is_named_by_file_and_line(file, text, message, capfd):
    assert refusal("--config", file(text)) == message
    assert capfd.readouterr() == ("", "")


def test_yaml_that_cannot_be_read(file):
    assert refusal("--config", "gone.yaml") == (
        "--config gone.yaml: cannot be read (No such file or directory)"
    )
    assert refusal("--config", ".") == "--config .: cannot be read (Is a directory)"
    assert refusal("--config", file("a: [1\nb: 2\n")).startswith("run.yaml:2: is not YAML: ")
    assert refusal("--config", file("a: *b\n")).startswith("run.yaml:1: is not YAML: ")
    Path("run.yaml").write_bytes(b"note: \xff\n")
    assert refusal("--config", "run.yaml").startswith("run.yaml: is not YAML in UTF-8")


def test_a_flag_mends_what_the_file_has_wrong(file):
    assert read("--config", file("inner: {lr: -1}\n"), "--inner.lr", "2").inner.lr == 2.0


def test_what_has_no_default_must_be_given(file):
    assert refusal(cls=Needy) == "--size is missing: give it a whole number"
    assert read("--config", file("size: 3\n"), cls=Needy) == Needy(3)
    assert read(cls=Needy, default=Needy(4)) == Needy(4)


def test_help_shows_docstrings_and_the_defaults_in_force(capsys):
    with pytest.raises(SystemExit) as left:
        read("--help", default=Outer(max_length=77))
    assert left.value.code == 0
    shown = capsys.readouterr().out
    for text in (
        "kit thing",
        "Does a thing.",
        "--config FILE.yaml",
        "--inner.lr",
        "Speed.",
        "77",
    ):
        assert text in shown


def test_the_kits_own_settings():
    for typed, meant in (
        ("--sft.learn", "sft has lr, epochs, batch_size"),
        ("--ppo.kl", "did you mean --ppo.kl-coef?"),
        ("--sfx.lr", "did you mean --sft.lr?"),
        ("--basis", "did you mean --base?"),
        ("--ppo.clip.rati", "did you mean --ppo.clip.ratio?"),
        ("--ppo.clib.ratio", "did you mean --ppo.clip.ratio?"),
    ):
        assert meant in refusal(typed, "1", cls=Loop)
    made = read("--ppo.kl-coef", "0.05", "--best-of-k.k", "8", "--sft.lr", "1e-4", cls=Loop)
    assert (made.ppo.kl_coef, made.best_of_k.k, made.sft.lr) == (0.05, 8, 1e-4)
    assert refusal("--sft.lr", "-1", cls=Loop) == "--sft.lr must be > 0, got -1"
    assert refusal("--rounds", "0", cls=Loop) == "--rounds must be > 0, got 0"
    alone = refusal("--best-of-k.pool", "True", cls=Loop)
    assert "--best-of-k.pool" in alone and "--rounds 1" in alone
    assert read("--best-of-k.pool", "True", "--rounds", "2", cls=Loop).best_of_k.pool
    uneven = refusal("--ppo.minibatch-size", "7", cls=Loop)
    assert "--ppo.batch-size 256 must be a multiple of --ppo.minibatch-size 7" in uneven
    assert read("--config", "/dev/null", cls=Loop) == Loop()


def test_resolved_settings_read_back(file):
    loop = Loop(sft=SFT(lr=2e-5), ppo=PPO(kl_coef=1 / 3), out=Path("runs/日本 1"), base="on")
    assert read("--config", file(to_yaml(loop)), cls=Loop) == loop
    outer = Outer(Inner(1e-30, ()), limit=None, note="a: 'b'\n# \"c\"\t", check=False)
    assert read("--config", file(to_yaml(outer))) == outer


@pytest.mark.parametrize("odd", ["\x85", "\u2028", "\u2029", "\ufeff", "\r", "\x07", "\U0001f600"])
def test_odd_characters_read_back(file, odd):
    for note in (odd, f"a{odd}b", f"{odd} a", f"a {odd}", f"a\n{odd}\nb: c"):
        outer = Outer(Inner(1.0, ()), note=note)
        assert read("--config", file(to_yaml(outer))) == outer


@given(
    lr=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    layers=st.lists(st.integers()),
    note=st.text().filter(lambda text: text != "None"),
    limit=st.none() | st.integers(),
)
def test_any_settings_read_back(tmp_path_factory, lr, layers, note, limit):
    made = Outer(Inner(lr, tuple(layers)), note=note, limit=limit)
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(to_yaml(made).encode())
    assert read("--config", str(file)) == made


@pytest.mark.parametrize(
    ("begun", "typed", "used"),
    [
        ("{ppo: {missing_eos_score: -1.0}}", None, -1.0),
        ("{ppo: {missing_eos_score: -1.0}}", -2.0, -2.0),
        ("{ppo: {missing_eos_score: -1.0}}", -1.0, -1.0),
        ("{ppo: {missing_eos_score: null}}", None, None),
        (
            "{ppo: {missing_eos_score: -2.0}}",
            None,
            None,
        ),  # refused, or taken, like any other change
        ("{ppo: 3}", None, None),
        ("[", None, None),
        (None, None, None),
    ],
)
def test_a_run_begun_before_goes_on_with_the_default_of_its_time(tmp_path, begun, typed, used):
    if begun is not None:
        (tmp_path / "config.yaml").write_text(begun)
    settings = Loop(out=tmp_path, ppo=PPO(missing_eos_score=typed))
    assert with_earlier_defaults(settings).ppo.missing_eos_score == used


@pytest.mark.parametrize(
    ("begun", "typed", "used"),
    [
        ("{reward: {gate: 0.5}}", False, True),
        ("{reward: {control: false}}", False, False),
        ("{reward: {control: false}}", True, True),  # refused, or taken, like any other change
        ("{reward: 3}", False, False),
        (None, False, False),
    ],
)
def test_a_run_older_than_a_setting_goes_on_with_what_it_had(tmp_path, begun, typed, used):
    if begun is not None:
        (tmp_path / "config.yaml").write_text(begun)
    settings = Loop(out=tmp_path, reward=Reward(control=typed))
    assert with_earlier_defaults(settings).reward.control is used


@pytest.mark.parametrize("section", [field.name for field in fields(Loop) if field.name != "out"])
def test_a_run_older_than_any_setting_is_opened_as_it_was(tmp_path, section):
    """Whatever its file lacks, a whole section or half of one: nothing counts as changed."""
    settings = replace(QUICKSTART, out=tmp_path)
    config = yaml.safe_load(to_yaml(settings))
    RunFolder.open(tmp_path, to_yaml(settings), kind="loop").close()
    lacking = [{name: value for name, value in config.items() if name != section}]
    if isinstance(config[section], dict):
        for half in (slice(0, None, 2), slice(1, None, 2)):
            some = dict(list(config[section].items())[half])
            lacking.append(config | {section: some})
    for older in lacking:
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(older))
        asked = config_of(with_earlier_defaults(settings))
        with RunFolder.open(tmp_path, asked.text, kind="loop", before=asked.before) as run:
            assert run.changed == []


def older_run(out, settings, *lacking):
    """A run folder whose file lacks some settings."""
    RunFolder.open(out, to_yaml(settings), kind="loop").close()
    (out / "config.yaml").write_text(to_yaml(settings, without=lacking))


def test_what_an_older_run_did_may_be_changed_like_any_setting(tmp_path):
    settings = replace(QUICKSTART, out=tmp_path)
    older_run(tmp_path, settings, "reward.control", "generate.attempts", "evaluate.dev_prompts")
    other = replace(settings, generate=replace(settings.generate, attempts=7))
    asked = config_of(with_earlier_defaults(other))
    options = {"kind": "loop", "before": asked.before}
    with pytest.raises(UserError, match=r"generate\.attempts was 4, now 7"):
        RunFolder.open(tmp_path, asked.text, **options)
    free = {"generate.attempts"}
    RunFolder.open(tmp_path, asked.text, free=lambda done: free, **options).close()
    begun = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert begun["generate"]["attempts"] == 7
    assert "control" not in begun["reward"]
    assert "dev_prompts" not in begun["evaluate"], "the next version sees that the run is older"


def test_a_judge_by_its_earlier_name_is_the_same_judge(tmp_path):
    settings = Loop(out=tmp_path, inputs=Inputs(data=Path("rows.jsonl"), judge="human"))
    RunFolder.open(tmp_path, to_yaml(settings), kind="loop").close()
    text = (tmp_path / "config.yaml").read_text().replace("judge: human", "judge: people")
    (tmp_path / "config.yaml").write_text(text)
    asked = config_of(settings)
    with RunFolder.open(tmp_path, asked.text, kind="loop", before=asked.before) as run:
        assert run.changed == []


def test_an_older_run_on_its_dev_split_goes_on_or_says_why_not(tmp_path):
    """The small world always had one; of one's own prompts none was dealt then."""
    settings = Loop(out=tmp_path / "small", evaluate=Evaluate(split="dev"))
    older_run(settings.out, settings, "evaluate.dev_prompts")
    assert with_earlier_defaults(settings).evaluate == settings.evaluate
    own = Inputs(data=Path("rows.jsonl"), prompts=Path("prompts.jsonl"), judge="human")
    older_run(tmp_path / "own", Loop(out=tmp_path / "own", inputs=own), "evaluate.dev_prompts")
    settings = Loop(out=tmp_path / "own", inputs=own, evaluate=Evaluate(split="dev"))
    with pytest.raises(UserError, match=r"^--out .*own: .* with --evaluate\.dev-prompts 0; "):
        with_earlier_defaults(settings)


@pytest.mark.parametrize(
    ("rows", "epochs", "size"),
    [
        (1, 3, 8),  # one step
        (266, 3, 8),  # 102 steps; with 16 they would be 51
        (528, 3, 8),  # 16 leave 99 steps
        (529, 3, 16),  # and here 102
        (1_000, 3, 16),
        (1_175, 3, 32),  # 111, where 128 left 30
        (52_002, 3, 128),  # 1221, as Stanford's
        (10**7, 1, 128),
    ],
)
def test_the_sft_batch_follows_the_rows(rows, epochs, size):
    assert SFT(epochs=epochs).examples_per_step(rows) == size
    assert SFT(epochs=epochs, batch_size=5).examples_per_step(rows) == 5


@pytest.mark.parametrize(
    ("rankings", "size"), [(3, 4), (400, 4), (792, 4), (793, 8), (6_336, 32), (6_337, 64)]
)
def test_the_batch_of_the_reward_model_follows_the_rankings(rankings, size):
    assert Reward().rankings_per_step(rankings) == size
    assert Reward(batch_size=16).rankings_per_step(rankings) == 16


def test_a_run_begun_with_large_batches_goes_on_with_them(tmp_path):
    (tmp_path / "config.yaml").write_text("{sft: {batch_size: 128}, reward: {batch_size: 16}}")
    settings = with_earlier_defaults(Loop(out=tmp_path))
    assert (settings.sft.batch_size, settings.reward.batch_size) == (128, 16)
    typed = with_earlier_defaults(Loop(out=tmp_path, sft=SFT(batch_size=32)))
    assert typed.sft.batch_size == 32, "refused, or taken, like any other change"


def test_the_help_of_the_values_rate_says_what_the_quickstart_takes():
    help_text = inspect.getsource(Value).partition("    lr: ")[2].partition("    coef:")[0]
    rate = f"{QUICKSTART.ppo.value.lr:.0e}".replace("e-0", "e-")
    assert f"the quickstart's head learns at {rate}" in " ".join(help_text.split())
    experiments = (Path(__file__).parents[1] / "docs" / "experiments.md").read_text("utf-8")
    assert f"The quickstart's head learns at {rate}." in experiments


def test_activations_are_recomputed_on_a_card_unless_told_otherwise():
    assert [Loop().checkpoints_on(kind) for kind in ("cuda", "cpu")] == [True, False]
    for mode, recomputed in (("on", 1), ("half", 2), (2, 2), (5, 5), ("off", 0)):
        settings = replace(Loop(), checkpointing=mode)
        assert [settings.checkpoints_on(kind) for kind in ("cuda", "cpu")] == [recomputed] * 2


@pytest.mark.parametrize(
    ("text", "checkpointing"), [("3", 3), ("half", "half"), ("off", "off"), ("on", "on")]
)
def test_checkpointing_takes_a_word_or_a_number(text, checkpointing, tmp_path):
    """A run's file with `half`, from before numbers were taken, goes on being read."""
    (tmp_path / "config.yaml").write_text(f"checkpointing: {text}\n", encoding="utf-8")
    for argv in (["--checkpointing", text], ["--config", str(tmp_path / "config.yaml")]):
        settings = parse(Loop, argv, prog="loop", description="")
        assert settings.checkpointing == checkpointing
        assert yaml.safe_load(to_yaml(settings))["checkpointing"] == checkpointing


@pytest.mark.parametrize("text", ["1", "0", "-2", "sometimes", "2.5"])
def test_checkpointing_of_no_layer_or_no_number_is_refused_in_one_line(text):
    with pytest.raises(UserError) as refused:
        parse(Loop, ["--checkpointing", text], prog="loop", description="")
    message = str(refused.value)
    assert message.startswith("--checkpointing") and text in message and "\n" not in message
    assert "`off`" in message or "off, half or" in message or "one of auto" in message
