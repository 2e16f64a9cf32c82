"""The planner: hand-worked sizes, properties of its arithmetic, and what a real run takes."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.sizes import LOGITS_PER_CHUNK
from alpaca_rlhf.planner import (
    Budget,
    Device,
    Lengths,
    PeakMemory,
    Rates,
    Shape,
    StageWork,
    changed_flags,
    device_of,
    find_gpu,
    largest_fitting,
    shape_from_config,
    shape_of,
)
from alpaca_rlhf.planner.passes import Rows
from alpaca_rlhf.planner.tape import Tape
from alpaca_rlhf.settings import PPO, Inputs, Loop, Lora, Sampling, Value
from tests import forked

ROOT = Path(__file__).parent.parent
CUDA = Device("cuda", 2)


def gib(phases, item):
    return max(phase.items.get(item, 0) for phase in phases) / 2**30


# --- shapes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # as the model cards and the safetensors index files say
        ("llama-2-7b", 6_738_415_616),
        ("llama-3-8b", 8_030_261_248),
        ("llama-3.2-1b", 1_235_814_400),
        ("smollm2-135m", 134_515_008),
        ("Qwen/Qwen3-0.6B", 596_049_920),
        ("Qwen/Qwen3-8B-Base", 8_190_735_360),
        ("google/gemma-3-270m-it", 268_098_176),
        ("google/gemma-3-1b-pt", 999_885_952),
    ],
)
def test_known_shapes_have_the_parameters_of_the_models(name, parameters):
    assert shape_of(name).parameters == parameters


def test_a_hub_id_of_a_known_model_needs_no_network():
    assert shape_of("meta-llama/Llama-2-7b-hf").layers == 32
    assert shape_of("meta-llama/Llama-3.2-1B").tied


def test_the_embedded_base_is_read_from_its_folder():
    config = json.loads((ROOT / "data/cria/config.json").read_text())
    assert shape_of("embedded").hidden == config["hidden_size"]


def test_four_bits_and_their_scales_are_4_127_bits_a_weight():
    """QLoRA, arXiv 2305.14314 section 3: 8 / 64 + 32 / (64 * 256) bits beside the 4."""
    shape = shape_of("llama-2-7b")
    weights = shape.layers * shape.layer_weights
    assert 8 * shape.nf4_bytes() / weights == pytest.approx(4.127, abs=1e-3)


def test_an_adapter_of_rank_16_on_llama_2_7b():
    # per layer: 4 x 16 (4096 + 4096) + 3 x 16 (4096 + 11008) = 1,249,280; 32 layers
    assert shape_of("llama-2-7b").adapter_weights(16) == 39_976_960


def test_a_config_without_a_size_is_told():
    with pytest.raises(UserError, match="hidden_size"):
        shape_from_config("x", {"model_type": "llama", "num_attention_heads": 2})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([], "not a table"),
        ({"num_attention_heads": 0}, "no usable num_attention_heads"),
        ({"num_hidden_layers": -2}, "-2 for layers"),
    ],
)
def test_a_config_that_makes_no_sense_is_told(config, message):
    sizes = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "vocab_size": 99}
    sizes |= {"num_attention_heads": 2, "num_hidden_layers": 2, "max_position_embeddings": 64}
    with pytest.raises(UserError, match=message):
        shape_from_config("x", {**sizes, **config} if isinstance(config, dict) else config)


# --- the arithmetic -------------------------------------------------------------------------------


def test_a_block_lives_as_long_as_its_name():
    tape = Tape()
    first = tape.new(100, "a")
    second = tape.new(50, "b")
    del first
    third = tape.new(20, "b")
    assert (tape.peak, tape.live, tape.at_peak) == (150, 70, {"a": 100, "b": 50})
    del second, third
    assert tape.live == 0


def test_nothing_is_left_on_the_tape_after_any_stage(monkeypatch):
    tapes = []
    init = Tape.__init__

    def seen(self):
        init(self)
        tapes.append(self)

    monkeypatch.setattr(Tape, "__init__", seen)
    settings = replace(Loop(), ppo=PPO(value=Value(trunk="separate")))
    PeakMemory(shape_of("llama-3.2-1b"), CUDA, settings).all()
    assert len(tapes) > 10
    assert {tape.live for tape in tapes} == {0}


def test_keys_and_values_of_llama_2_are_half_a_mebibyte_a_token():
    """2 x 32 layers x 4096 x 2 bytes, for 32 completions of 256 + 256 - 1 tokens; a little more
    while the last layer is extended."""
    plan = PeakMemory(shape_of("llama-2-7b"), CUDA, Loop())
    exact = 32 * 511 * 0.5 / 1024
    assert exact < gib(plan.sample(), "keys and values") < exact * 1.04


def test_grouped_queries_keep_a_quarter_of_the_keys():
    shape = shape_of("llama-2-7b")
    plans = [PeakMemory(replace(shape, kv_heads=n), CUDA, Loop()) for n in (32, 8)]
    full, quarter = (gib(plan.sample(), "keys and values") for plan in plans)
    assert quarter == pytest.approx(full / 4, rel=0.02)


def test_the_optimiser_keeps_eight_bytes_a_weight_or_two():
    plan = PeakMemory(shape_of("llama-2-7b"), CUDA, Loop())
    eight = replace(Loop().sft, optimizer="adamw8bit")
    small = replace(plan, settings=replace(Loop(), sft=eight))
    assert gib([next(plan.sft())], "optimiser") == pytest.approx(39_976_960 * 8 / 2**30, rel=1e-3)
    assert gib([next(small.sft())], "optimiser") == pytest.approx(39_976_960 * 2 / 2**30, rel=0.02)


def test_each_further_reward_head_is_a_row_of_weights():
    """Of Llama-2-7B: 4096 weights, gradients and two moments of four bytes each."""
    loop = Loop()
    peaks = []
    for heads in (1, 5):
        settings = replace(loop, reward=replace(loop.reward, heads=heads))
        plan = PeakMemory(shape_of("llama-2-7b"), CUDA, settings)
        peaks.append(next(plan.reward()).items["optimiser"])
    assert peaks[1] - peaks[0] == 4 * 4096 * 16


def test_logits_are_bounded_whatever_the_batch():
    """At most 2^24 numbers at once: 64 MiB in fp32, at most six such tables at a time."""
    for micro in (1, 4, 64):
        sft = replace(Loop().sft, micro_batch_size=micro)
        plan = PeakMemory(
            shape_of("llama-3-8b"), CUDA, replace(Loop(), sft=sft), checkpointing=False
        )
        for phase in plan.sft():
            assert phase.items.get("logits", 0) <= 6 * 4 * LOGITS_PER_CHUNK


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_checkpointing_keeps_a_state_a_layer(kv_heads):
    """Twelve layers more cost twelve states more, and without checkpointing far more."""
    shape = Shape("x", 256, 704, 4, 4, kv_heads, 64, 512, 4096)
    peaks = {}
    for layers in (4, 16):
        for checkpointing in (True, False):
            deeper = replace(shape, layers=layers)
            plan = PeakMemory(deeper, CUDA, Loop(), checkpointing=checkpointing)
            peaks[layers, checkpointing] = next(plan.sft()).items["activations"]
    state = 4 * 512 * 256 * 2
    assert peaks[16, True] - peaks[4, True] == 12 * state
    assert peaks[16, False] - peaks[4, False] > 12 * 15 * state


def test_a_separate_value_has_an_adapter_and_an_optimiser_of_its_own():
    base = PeakMemory(shape_of("llama-2-7b"), CUDA, Loop())
    separate = replace(base, settings=replace(Loop(), ppo=PPO(value=Value(trunk="separate"))))
    difference = separate.peak("ppo") - base.peak("ppo")
    assert difference == pytest.approx(39_976_960 * (4 + 8), rel=0.02)


def test_the_copy_of_the_base_is_made_only_within_its_limit():
    item = "16-bit copy of the base"
    settings = replace(Loop(), sampling=Sampling(dense_gib=4.0))
    assert gib(PeakMemory(shape_of("llama-2-7b"), CUDA, settings).sample(), item) == 0
    small = PeakMemory(shape_of("llama-3.2-1b"), CUDA, settings)
    # 16 layers of 60,817,408 weights (grouped queries), two bytes each
    for phases in (small.sample(), small.generate()):
        assert gib(phases, item) == pytest.approx(16 * 60_817_408 * 2 / 2**30)


def test_stages_that_files_take_the_place_of_are_not_planned(tmp_path):
    inputs = Inputs(data=tmp_path / "d", prompts=tmp_path / "p", judge="human")
    plan = PeakMemory(shape_of("llama-2-7b"), CUDA, replace(Loop(), inputs=inputs))
    assert "generate" not in plan.all() and "sample" in plan.all()


def test_prompts_of_a_micro_batch_are_counted_where_it_has_most():
    for k in range(1, 7):
        for count in range(1, 10):
            parts = [range(start, start + count) for start in range(0, 60 * count, count)]
            most = max(len({row // k for row in part}) for part in parts)
            rows = Rows(count, prompt=5, completion=7, k=k)
            assert (rows.prompts, rows.repeated) == (most, 5 * (count - most)), (k, count)


def test_parts_of_a_minibatch_begin_anew_in_each():
    for k, cut, count in [(4, 6, 4), (4, 8, 3), (3, 4, 2), (4, 40, 4), (5, 10, 4)]:
        minibatches = [range(start, start + cut) for start in range(0, 60 * cut, cut)]
        parts = [rows[at : at + count] for rows in minibatches for at in range(0, cut, count)]
        most = max(len({row // k for row in part}) for part in parts)
        assert Rows(count, prompt=5, completion=7, k=k, cut=cut).prompts == most, (k, cut, count)


# --- against measurement --------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 5, 7, 9, 10])
def test_planned_is_within_a_tenth_of_the_live_bytes(number):
    from tests.planned import CASES, FAMILY_CASES, compared

    comparison = compared((*CASES, *FAMILY_CASES)[number])
    errors = {
        stage: row["error"]
        for stage, row in comparison["stages"].items()
        if abs(row["error"]) > 0.1
    }
    assert not errors


def test_the_plan_still_says_what_was_measured_of_every_case():
    """docs/proof/plan.json, which `python -m tests.prove plan` writes."""
    from tests.planned import CASES, forecast

    proof = json.loads((ROOT / "docs/proof/plan.json").read_text())
    measured = {entry["case"]["name"]: entry["stages"] for entry in proof["cases"]}
    assert set(measured) == {case.name for case in CASES}
    for case in CASES:
        for stage, planned in forecast(case).items():
            measured_bytes = measured[case.name][stage]["measured"]
            assert abs(planned / measured_bytes - 1) <= 0.05, (case.name, stage)


# --- choosing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "card"), [("llama-2-7b", 24), ("llama-3-8b", 24), ("llama-2-7b", 12)]
)
def test_what_is_chosen_fits_and_is_the_largest(base, card):
    budget = Budget(shape_of(base), find_gpu(str(card)))
    settings = largest_fitting(budget, Loop(base=base))
    assert all(
        phase.peak <= card * 2**30
        for phases in budget.phases(settings).values()
        for phase in phases
    )
    size = settings.sampling.batch_size
    larger = replace(settings, sampling=replace(settings.sampling, batch_size=2 * size))
    assert size == 128 or not budget.fits(larger, ("sample", "ppo", "best_of_k", "evaluate"))


def test_choosing_changes_no_result():
    from alpaca_rlhf.pipeline import FREE

    before = Loop(base="llama-3-8b")
    after = largest_fitting(Budget(shape_of("llama-3-8b"), find_gpu("12")), before)
    flags = {flag.removeprefix("--").replace("-", "_") for flag in changed_flags(before, after)}
    assert flags and flags <= {*FREE, "generate.batch_size"}
    assert after.sft.max_length == before.sft.max_length


def test_lengths_are_shortened_only_where_that_is_allowed():
    settings = Loop(base="llama-2-7b", sft=replace(Loop().sft, max_length=4096))
    budget = Budget(shape_of("llama-2-7b"), find_gpu("6.5"))
    with pytest.raises(UserError, match=r"sft .*lower --sft.max-length"):
        largest_fitting(budget, settings)
    assert largest_fitting(budget, settings, lengths=True).sft.max_length < 4096


@pytest.mark.parametrize(
    ("base", "card", "chosen"),
    [
        ("llama-3-8b", "24", "off"),
        ("llama-3-8b", "16", "off"),
        ("llama-3-8b", "13", 5),
        ("llama-3-8b", "12", 3),
        ("llama-3-8b", "10", "auto"),
        ("llama-3.2-1b", "12", "off"),
        ("smollm2-135m", "cpu", "auto"),
    ],
)
def test_activations_are_kept_where_enough_tokens_fit(base, card, chosen):
    gpu = find_gpu(card)
    budget = Budget(shape_of(base), gpu, device=device_of(gpu))
    before = Loop(base=base)
    after = largest_fitting(budget, before)
    assert after.checkpointing == chosen
    flags = changed_flags(before, after)
    assert ("--checkpointing" in flags) == (chosen != "auto")
    for settings in (replace(before, checkpointing="on"), replace(before, checkpointing="off")):
        try:
            kept = largest_fitting(budget, settings)
        except UserError:
            continue
        assert kept.checkpointing == settings.checkpointing, "a choice of the user's stays"
    if isinstance(chosen, int):
        fewer = replace(before, checkpointing=chosen + 1)
        with contextlib.suppress(UserError):  # or not even one row fits with fewer
            kept = largest_fitting(budget, fewer)
            tokens = [kept.sft.micro_batch_size * 512, kept.ppo.micro_batch_size * 512]
            assert min(tokens) < 1024 or not budget.fits(kept, ("sft", "reward", "ppo"))
    if chosen == "off":
        recomputed = largest_fitting(budget, replace(before, checkpointing="on"))
        rows = after.sft.micro_batch_size, recomputed.sft.micro_batch_size
        assert rows[0] * after.sft.max_length >= 1024 and rows[0] <= rows[1]
        seconds = [
            StageWork(shape_of(base), s, budget.lengths, 1000, s.checkpoints_on("cuda"))
            .all()["sft"]
            .seconds(Rates(tflops=20, bandwidth=500), 32)
            for s in (after, recomputed)
        ]
        assert seconds[0] < 0.8 * seconds[1]


def test_keeping_activations_that_do_not_fit_is_told_with_the_flag():
    budget = Budget(shape_of("llama-3-8b"), find_gpu("8"))
    settings = replace(Loop(base="llama-3-8b"), checkpointing="off")
    with pytest.raises(UserError, match="give --checkpointing on, or"):
        largest_fitting(budget, settings)


def test_choosing_twice_changes_nothing():
    budget = Budget(shape_of("llama-2-7b"), find_gpu("12"))
    once = largest_fitting(budget, Loop(base="llama-2-7b"))
    assert largest_fitting(budget, once) == once


def test_a_name_of_a_card_that_nobody_knows_is_refused():
    for text in ("rtx-9999", "0", "-4", "nan", "3070"):
        with pytest.raises(UserError, match="--card"):
            find_gpu(text)


def test_the_cpu_is_no_card_of_its_size():
    assert find_gpu("cpu").tflops < 1 < find_gpu("8").tflops
    plan = json.loads(run("plan", "--base", "smollm2-135m", "--card", "cpu", "--json").stdout)
    items = {
        item for stage in plan["stages"] for phase in stage["phases"] for item in phase["items_gib"]
    }
    assert "activations" in items and not {item for item in items if "CUDA" in item}


def test_the_plan_of_a_cpu_tells_what_the_process_takes():
    """Not its tensors alone: Python with torch takes half a GiB before a base is loaded."""
    plan = json.loads(run("plan", "--base", "smollm2", "--card", "cpu", "--json").stdout)
    for stage in plan["stages"]:
        for phase in stage["phases"]:
            tensors = sum(
                size for item, size in phase["items_gib"].items() if item != "libraries and gaps"
            )
            assert 0.5 <= phase["peak_gib"] - tensors < 0.5 + 0.1 * tensors


# --- time -----------------------------------------------------------------------------------------


def test_training_costs_six_operations_a_weight_and_token_with_checkpointing():
    """Forward, forward again, and the gradient of the input: 2 each, for 6.5e9 weights."""
    shape = shape_of("llama-2-7b")
    settings = replace(Loop(), lora=Lora(r=1, alpha=2))
    plan = StageWork(shape, settings, Lengths(), rows=1000)
    tokens = 1000 * 3 * 256
    assert plan.all()["sft"].flops == pytest.approx(6 * 6.476e9 * tokens, rel=0.05)


def test_time_falls_with_faster_cards_and_grows_with_the_work():
    work = StageWork(shape_of("llama-2-7b"), Loop(), Lengths(), rows=100).all()
    for stage_work in work.values():
        slow, fast = stage_work.seconds(Rates(10, 100), 32), stage_work.seconds(Rates(20, 200), 32)
        assert 0 < fast <= slow
        assert (stage_work * 2).seconds(Rates(10, 100), 32) == pytest.approx(2 * slow)


# --- the command ----------------------------------------------------------------------------------


def run(*arguments):
    return forked.run("-m", "alpaca_rlhf", *arguments, cwd=ROOT)


def test_plan_shows_a_table_without_torch():
    program = (
        "import sys; from alpaca_rlhf.cli.main import main;"
        "code = main(['plan', '--base', 'llama-2-7b', '--card', '24']);"
        "sys.exit(code or ('torch' in sys.modules and 'torch was loaded'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines()[1:14])) <= 80
    for word in ("sft", "ppo", "KV cache", "16-bit copy", "kWh", "projected", "next:"):
        assert word in done.stdout


def peaks(width, capsys, monkeypatch, *arguments):
    """Lines of a plan as a terminal of some width shows it."""
    from alpaca_rlhf.cli import main as cli

    monkeypatch.setenv("COLUMNS", str(width))
    assert cli.main(["plan", "--base", "llama-2-7b", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("width", [40, 60, 79, 120])
def test_no_width_cuts_a_peak(capsys, monkeypatch, width):
    lines = peaks(width, capsys, monkeypatch, "--card", "12")
    plan = json.loads("\n".join(peaks(80, capsys, monkeypatch, "--card", "12", "--json")))
    for stage in plan["stages"]:
        peak = f"{stage['peak_gib']:.2f}"
        rows = [line.split() for line in lines if line.split()[:1] == [stage["name"]]]
        assert any(peak in row for row in rows), (stage["name"], peak)
    assert any("activ." in line for line in lines) == (width > 60)


def test_a_card_that_nobody_named_is_said_to_be_assumed(capsys, monkeypatch):
    assumed = [line for line in peaks(120, capsys, monkeypatch) if "no --card was given" in line]
    assert len(assumed) == 1 and "24 GiB, rates of l4" in assumed[0] and "--card cpu" in assumed[0]
    named = peaks(120, capsys, monkeypatch, "--card", "24")
    assert not any("no --card was given" in line for line in named)


def test_plan_as_json_adds_up():
    plan = json.loads(run("plan", "--base", "llama-3-8b", "--card", "24", "--json").stdout)
    for stage in plan["stages"]:
        for phase in stage["phases"]:
            assert sum(phase["items_gib"].values()) == pytest.approx(phase["peak_gib"])
        assert stage["peak_gib"] == max(phase["peak_gib"] for phase in stage["phases"])
    assert plan["largest"]["--checkpointing"] == "off"
    assert plan["largest"]["--sampling.batch-size"] > 32
    assert plan["measured"] is False


def test_prices_are_the_users():
    flags = ("--watts", "1000", "--price-kwh", "2", "--price-hour", "3", "--json")
    plan = json.loads(run("plan", "--base", "llama-2-7b", "--card", "24", *flags).stdout)
    sft = next(stage for stage in plan["stages"] if stage["name"] == "sft")
    hours = sft["seconds"] / 3600
    assert sft["kwh"] == pytest.approx(hours)
    assert sft["cost"] == pytest.approx(5 * hours)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plan", "--base", "llama-2-7b", "--card", "4"), "--card 4: "),
        (("plan", "--base", "no-such-model", "--card", "24"), "--base no-such-model"),
        (("plan", "--base", "llama-2-7b", "--card", "small"), "--card small"),
        (("plan", "--base", "llama-2-7b", "--price-kwh", "-1"), "--price-kwh"),
        (("loop", "--base", "llama-2-7b", "--auto", "--card"), "--card needs a value"),
        (("loop", "--base", "llama-2-7b", "--auto", "--card", "3"), "--card 3: "),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_2(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and message in done.stderr


def test_the_benchmark_for_a_card_runs_dry_on_a_cpu(tmp_path):
    done = forked.run(
        "benchmarks/gpu/plan.py",
        "--dry-run",
        "--json",
        tmp_path / "out",
        cwd=ROOT,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out").read_text())
    assert result["measured_on_gpu"] is False
    assert [row["name"] for row in result["rows"]] == ["llama-2-7b, 24 GiB", "llama-3.1-8b, 24 GiB"]
    assert result["summary"]["largest_error"] <= 0.1
