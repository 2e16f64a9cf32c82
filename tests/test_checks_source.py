"""The source of verifiable prompts: splits, rounds, slices, keys, and rows that it accepts."""

import pytest

from alpaca_rlhf.checks import Checks, cores, read_request
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import check_disjoint
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.settings.parsing import parse
from alpaca_rlhf.sources import source_of
from alpaca_rlhf.sources.checks import ChecksSource

SIZES = {
    "sft": 500, "rank": 700, "rank.2": 400, "ppo": 500, "ppo.2": 300, "dev": 200, "eval": 300,
}  # fmt: skip


@pytest.fixture(scope="module")
def source():
    return ChecksSource(0, SIZES)


def test_splits_are_whole_apart_and_the_same_for_a_seed(source):
    prompts = {name: source.prompts(name) for name in SIZES}
    assert source.names() == [name for name in SIZES if name != "sft"]
    for name, rows in prompts.items():
        assert len({row.id for row in rows}) == len(rows) == SIZES[name]
    splits = {**prompts, "sft": [*source.seeds(), *prompts["sft"]]}
    assert check_disjoint(splits, source.key) == 0
    again, other = ChecksSource(0, {"eval": 50}), ChecksSource(1, SIZES)
    assert again.prompts("eval") == prompts["eval"][:50]
    assert {row.id for row in other.prompts("eval")} != {row.id for row in prompts["eval"]}


def test_held_out_kinds_and_phrasings_are_for_the_evaluation_alone(source):
    for name in SIZES:
        rows = source.prompts(name)
        slices = source.slices(rows)
        assert sorted(i for part in slices.values() for i in part) == list(range(len(rows)))
        if name in ("eval", "dev"):
            sizes = {part: len(indices) / len(rows) for part, indices in slices.items()}
            assert sizes == pytest.approx(
                {"trained": 0.5, "held_out_kinds": 0.3, "held_out_phrasings": 0.2}, abs=0.01
            )
        else:
            assert len(slices["trained"]) == len(rows)
    rows = source.prompts("eval")
    kinds = {
        check.kind.name
        for i in source.slices(rows)["held_out_kinds"]
        for check in read_request(rows[i].instruction).constraints
    }
    assert len(kinds) >= 6


def test_evaluation_prompts_have_instructions_of_their_own(source):
    """No instruction comes twice there, so the prompts are independent for the intervals."""
    requests = [read_request(row.instruction).core for row in source.prompts("eval")]
    assert len(set(requests)) == len(requests) == SIZES["eval"]


def test_languages():
    sizes = {"sft": 20, "eval": 20}
    chinese = ChecksSource(0, sizes, "zh")
    assert all(not row.instruction.isascii() for row in chinese.prompts("eval"))
    assert len(chinese.seeds()) >= 5 and all(
        not row.instruction.isascii() for row in chinese.seeds()
    )
    both = ChecksSource(0, {"eval": 300}, "both")
    share = sum(not row.instruction.isascii() for row in both.prompts("eval")) / 300
    assert 0.01 < share < 0.2
    assert all(row.instruction.isascii() for row in ChecksSource(0, sizes).prompts("eval"))


@pytest.mark.parametrize(
    ("split", "flag"), [("eval", "--evaluate.prompts"), ("rank.2", "--rank.prompts")]
)
def test_more_prompts_than_there_are(split, flag):
    source = ChecksSource(0, {"rank": 10, split: 100_000})
    with pytest.raises(
        UserError, match=rf"^{flag}: there are \d+ verifiable prompts .* not 100000"
    ):
        source.prompts(split)


def test_the_advice_on_too_many_rows_to_generate_can_be_taken():
    with pytest.raises(UserError, match=r"not 1250 rows with 4 prompts each") as refused:
        ChecksSource(0, {"sft": 5000}, prompts_per_row=4).prompts("sft")
    most = int(str(refused.value).rpartition("at most ")[2])
    assert len(ChecksSource(0, {"sft": 4 * most}, prompts_per_row=4).prompts("sft")) == 4 * most


def test_the_key_is_the_instruction_whatever_its_constraints(source):
    row = source.prompts("eval")[0]
    core = read_request(row.instruction).core
    key = source.key(row)
    assert (
        key
        == source.key(Instruction(core))
        == source.key(Instruction(f"{core} Use only uppercase letters."))
    )
    assert key == source.key(Instruction(f"please {core}"))  # near it
    assert key != source.key(source.prompts("eval")[1])
    mine = Instruction("Why does my kettle whistle so loudly on Mondays?")
    assert source.key(mine) == source.key(Instruction(f"{mine.instruction} Do not use any commas."))


def test_rows_that_a_teacher_writes(source):
    def rule(instruction, output=None):
        drop = source.accept(Instruction(instruction, "", output))
        return drop and drop.rule

    mine = "Why does my kettle whistle so loudly?"
    good = "The kettle has a narrow hole in its lid and steam rushes through it when water boils."
    assert rule(f"{mine} Do not use any commas.", good) is None
    assert rule(f"{mine} Do not use any commas.") is None
    assert rule(f"{mine} Do not use any commas.", f"Well, {good}") == "not met"
    assert rule(mine, good) == "no constraint"
    assert rule(f"{mine} Include a semicolon.", good) == "held out"
    assert rule(f"{mine} Not a single comma may appear in the reply.", good) == "held out"
    taken = read_request(source.prompts("eval")[0].instruction).core
    assert rule(f"{taken} Do not use any commas.", good) == "leak"
    trained = read_request(source.prompts("sft")[0].instruction).core
    assert rule(f"{trained} Do not use any commas.") is None
    assert all(source.accept(row) is None for row in source.seeds())


def test_the_judge_scores_every_prompt(source):
    for row in source.prompts("eval")[:40]:
        assert (
            source.gold(row, "Well.", True).score == Checks().score(row, "Well.", True).score < 0.1
        )


def settings_of(*words):
    return parse(Loop, ["--inputs.judge", "checks", *words], prog="test", description="")


def test_the_judge_checks_brings_its_own_prompts():
    """A policy stage gets a new prompt for each of its samples, as far as there are so many."""
    words = ["--ppo.batch-size", "48", "--ppo.minibatch-size", "48", "--ppo.updates", "16"]
    words += ["--rank.prompts", "40", "--best-of-k.prompts", "50", "--evaluate.prompts", "30"]
    words += ["--generate.target", "60", "--rounds", "2", "--evaluate.dev-prompts", "20"]
    source = source_of(settings_of(*words))
    assert isinstance(source, ChecksSource)
    assert {name: len(source.prompts(name)) for name in source.names()} == {
        "rank": 40, "ppo": 768, "rank.2": 40, "ppo.2": 768, "eval": 30, "dev": 20,
    }  # fmt: skip
    assert len(source.prompts("sft")) == 60
    many = source_of(settings_of(*words, "--ppo.updates", "900"))
    assert 1000 < len(many.prompts("ppo")) < 48 * 900
    chinese = source_of(settings_of(*words, "--inputs.languages", "both"))
    assert any(not row.instruction.isascii() for row in chinese.prompts("rank"))
    with pytest.raises(UserError, match=r"^--rank\.prompts: there are"):
        source_of(settings_of("--rank.prompts", "90000")).prompts("rank")


def test_instructions_are_enough_for_the_default_sizes():
    assert len(cores()) >= 2500
    settings = {"sft": 1000, "rank": 2000, "ppo": 2000, "dev": 300, "eval": 300}
    for seed in (0, 100):
        source = ChecksSource(seed, settings)
        assert all(len(source.prompts(name)) == n for name, n in settings.items())
