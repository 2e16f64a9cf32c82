"""The reward stage from files, through the command line: what it makes, and what it refuses."""

import json
from types import SimpleNamespace

import pytest
import torch

from alpaca_rlhf.cli import main as cli
from alpaca_rlhf.models.batches import Example
from alpaca_rlhf.models.heads import CriteriaHead, EnsembleHead, ScalarHead
from alpaca_rlhf.stages.reward import _finished_ones, check_saved

COLOURS = ["amber", "black", "coral", "denim", "ebony", "fawn", "green", "hazel", "ivory", "jade"]


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pair(colour, **more):
    prompt = f"Name a thing that is {colour}."
    return {"prompt": prompt, "chosen": f"{colour} paint", "rejected": "no", **more}


def tree(colour, *replies, rank=True):
    ranks = [n if rank is True else rank for n in range(len(replies))]
    said = [
        {"role": "assistant", "text": text, "rank": n, "replies": []}
        for n, text in zip(ranks, replies, strict=True)
    ]
    text = f"Name a thing that is {colour}."
    return {"prompt": {"role": "prompter", "text": text, "replies": said}}


@pytest.fixture
def go(tmp_path, tiny_folder):
    """Runs `alpaca-rlhf reward` on a ranking file and a handful of rows, on a tiny base."""
    words = "how why when where who which whose what whom whether".split()
    rows = [{"instruction": f"{w} {i} {i * 7} {w * 3}"} for i in range(8) for w in words]
    data = written(
        tmp_path / "data.jsonl",
        [{"instruction": f"Count to {n}.", "output": "one two"} for n in range(6)],
    )
    prompts = written(tmp_path / "prompts.jsonl", rows)

    def run(rankings, *more):
        flags = ["--inputs.judge", "human", "--inputs.data", data, "--inputs.prompts", prompts]
        flags += ["--inputs.rankings", rankings, "--base", tiny_folder, "--template", "brief"]
        flags += ["--out", tmp_path / "run", "--lora.r", 4, "--sampling.max-new-tokens", 8]
        flags += ["--ppo.batch-size", 6, "--ppo.minibatch-size", 6, "--best-of-k.prompts", 6]
        flags += ["--evaluate.prompts", 6, "--evaluate.bootstrap", 20, "--sft.epochs", 1]
        flags += ["--sft.lr", 1e-3, "--ppo.max-new-tokens", 8]
        flags += ["--reward.gate", 0.01, "--reward.held-out", 0.4, *more]
        return cli.main(["reward", *map(str, flags)])

    return run


def facts(tmp_path):
    return json.loads((tmp_path / "run" / "ledger.json").read_text())["reward"]["facts"]


def test_pairs_with_margins(go, tmp_path, capsys):
    """And one that is far too long: counted, and told."""
    rows = [pair(one, margin=0.5 * n) for n, one in enumerate(COLOURS)]
    rows.append(pair("red " * 90))
    path = written(tmp_path / "pairs.jsonl", rows)
    assert go(path, "--reward.margin", 1, "--reward.max-length", 120) == 0, capsys.readouterr().err
    said = " ".join("".join(capsys.readouterr()).split())
    before = "2 of 22 completions are longer than --reward.max-length 120 tokens and left out, and "
    before += "with them 1 of 11 rankings; raise it to train on them"
    after = "2 completions beyond --reward.max-length left out, 1 rankings"
    assert said.index(before) < said.index("held-out accuracy") < said.index(after)
    found = facts(tmp_path)
    assert found["pairs"] + found["held_out_pairs"] == 10
    assert (found["too_long"], found["left_out"], found["undecided"]) == (2, 1, 0)
    assert (found["rows"]["used"], found["rows"]["left_out"]) == (10, {"too long": 1})
    assert found["reference_std"] > 0
    assert 0 <= found["reference_finished"] <= found["reference_completions"] > 0
    assert set(found["accuracy_by"]) == {"completions", "preferred_is", "confidence"}
    assert found["shuffled_label_accuracy"] is found["shuffled_label_ci95"] is None
    assert not (tmp_path / "run" / "reward_shuffled").exists(), "unasked"
    folder = tmp_path / "run" / "reward" / "adapter"
    assert type(ScalarHead.load(folder, 128)) is ScalarHead


def test_trees_with_ties(go, tmp_path, capsys):
    """Rankings in which nobody wins are counted apart; soft ties teach, and are not measured on."""
    rows = [tree(one, f"{one} paint", "no", "maybe") for one in COLOURS]
    rows += [tree(f"{one}ish", f"{one} paint", "no", rank=0) for one in COLOURS]
    rows += [tree(f"very {one}", "the same", "the same") for one in COLOURS]
    path = written(tmp_path / "some_tree.jsonl", rows)
    assert go(path, "--reward.ties", "soft") == 0, capsys.readouterr().err
    found = facts(tmp_path)
    assert found["undecided"] == 10
    account = found["rows"]
    assert account["left_out"]["tie"] == 10, "nobody learns from them: they are not used"
    assert account["used"] + sum(account["left_out"].values()) == account["rows"] == 30
    assert [row["is"] for row in found["accuracy_by"]["tiers_apart"]] == ["1", "2"]
    assert found["held_out_pairs"] % 3 == 0
    assert found["pairs"] > 30 - found["held_out_pairs"]


def test_several_heads_from_the_rankings_to_the_saved_score(go, tmp_path, capsys):
    """With a control, a subset and a second reward model beside, all of as many heads."""
    rows = [pair(f"{one} {n}") for n in range(4) for one in COLOURS]
    flags = ["--reward.heads", 3, "--reward.pessimism", 0.5, "--reward.control", True]
    flags += ["--reward.curve", 1, "--watch.every", 1, "--evaluate.dev-prompts", 4]
    assert go(written(tmp_path / "pairs.jsonl", rows), *flags) == 0, capsys.readouterr().err
    said = " ".join("".join(capsys.readouterr()).split())
    assert "(3 heads, which differ by " in said and "their mean less 0.5 times their dev" in said
    found = facts(tmp_path)
    assert (found["heads"], found["pessimism"]) == (3, 0.5)
    assert 0 <= found["mean_accuracy"] <= 1 and found["disagreement"] > 0
    assert len(found["learning_curve"]) == 2
    for stage in ("reward", "reward_shuffled", "reward_second"):
        head = ScalarHead.load(tmp_path / "run" / stage / "adapter", 128)
        assert type(head) is EnsembleHead and head.weight.shape == (3, 128)
        assert float(head.pessimism) == 0.5


def one_line(capsys, *words):
    error = capsys.readouterr().err.strip().splitlines()
    assert "Traceback" not in "".join(error)
    for word in words:
        assert word in error[-1], error


def test_a_ranking_file_without_two_completions_is_refused(go, tmp_path, capsys):
    path = written(tmp_path / "lone_tree.jsonl", [tree(one, "yes") for one in COLOURS])
    assert go(path) == 2
    one_line(capsys, "lone_tree.jsonl", "at least two completions")
    assert not (tmp_path / "run" / "sft").exists(), "before anything is trained"


@pytest.mark.parametrize("replies", [("red", "blue"), ("red", "red")])
def test_rankings_in_which_nobody_wins_are_refused(go, tmp_path, capsys, replies):
    rank = True if replies[0] == replies[1] else 0
    path = written(tmp_path / "x_tree.jsonl", [tree(one, *replies, rank=rank) for one in COLOURS])
    assert go(path) == 2
    one_line(capsys, "x_tree.jsonl", "none of the 10 rankings", "--reward.ties soft")


def test_pairs_with_two_equal_answers_are_refused(go, tmp_path, capsys):
    path = written(tmp_path / "pairs.jsonl", [pair("red"), pair("blue", rejected="blue paint")])
    assert go(path) == 2
    one_line(capsys, "pairs.jsonl:2: ", "the same")


@pytest.mark.parametrize("margin", ["much", -1, True])
def test_margins_that_are_none_are_refused(go, tmp_path, capsys, margin):
    path = written(tmp_path / "pairs.jsonl", [pair("red"), pair("blue", margin=margin)])
    assert go(path) == 2
    one_line(capsys, "pairs.jsonl:2: ", "`margin` must be a number of at least 0")


def test_a_margin_without_end_is_no_json(go, tmp_path, capsys):
    path = written(tmp_path / "pairs.jsonl", [pair("red"), pair("blue", margin=float("inf"))])
    assert go(path) == 2
    one_line(capsys, "pairs.jsonl:2: ", "not JSON: Infinity")


def test_prompts_that_all_lie_near_others_are_refused(go, tmp_path, capsys):
    rows = [{"prompt": "Count to 3.", "chosen": "one", "rejected": "two"}]
    assert go(written(tmp_path / "pairs.jsonl", rows)) == 2
    one_line(capsys, "--inputs.rankings", "pairs.jsonl", "each of its 1 prompts lies near")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--reward.margin", 1), ("--reward.margin 1", "column `margin`")),
        (("--reward.criteria-weight", 0.5), ("--reward.criteria-weight 0.5", "stars")),
        (("--reward.max-length", 5), ("0 rankings to train on", "--reward.max-length 5")),
        (("--reward.gate", 55), ("--reward.gate must be", "55")),
    ],
)
def test_what_the_rankings_cannot_give_is_refused(go, tmp_path, capsys, flags, words):
    path = written(tmp_path / "pairs.jsonl", [pair(one) for one in COLOURS])
    assert go(path, *flags) == 2
    one_line(capsys, *words)


@pytest.mark.parametrize("flag", ["--reward.margin", "--reward.criteria-weight"])
def test_negative_weights_are_refused(go, tmp_path, capsys, flag):
    path = written(tmp_path / "pairs.jsonl", [pair(one) for one in COLOURS])
    assert go(path, flag, -1) == 2
    one_line(capsys, flag, "-1")


# --- what was saved -------------------------------------------------------------------------------


class Context:
    """As much of a run as the check of its files needs."""

    def __init__(self, adapters, folder):
        self.adapters, self.base, self.folder = adapters, adapters.base, folder

    def adapter_folder(self, stage):
        return self.folder / stage

    def load(self, role, stage):
        self.adapters.load(role, self.folder / stage)

    def load_head(self, stage):
        return ScalarHead.load(self.folder / stage, 128)


ONE = Example((1, 20, 30), (50, 60, 2))
CUT = Example((1, 20, 30), (50, 60, 70))
EMPTY = Example((1, 20, 30), ())


@pytest.mark.parametrize(
    ("finished", "cut", "used"),
    [(30, 0, 30), (20, 80, 20), (19, 80, 99), (0, 5, 5), (5, 0, 5), (4, 1, 5)],
)
def test_scores_are_normalised_on_completions_that_stopped(finished, cut, used):
    """PPO scores no others; where fewer than 20 stopped, all serve, and it is said."""
    examples = [CUT, EMPTY][:cut] + [ONE] * finished + [CUT] * (cut - 2)
    found = _finished_ones(examples, {2, 3})
    assert len(found.examples) == used
    assert (found.sampled, found.finished) == (finished + cut, finished)
    words = str(found)
    if cut == 0:
        assert words == f"scores normalised on {used} completions of SFT"
    else:
        assert f"{finished} " in words and f"{finished + cut} completions" in words
        assert ("of which only" in words) == (used > finished)


@pytest.mark.parametrize("head", [ScalarHead(128, seed=3), CriteriaHead(128, "ab", seed=3)])
def test_what_was_saved_is_read_back_and_compared(tiny, tmp_path, head):
    head.normalise(torch.tensor([1.0, 2.0, 5.0]))
    ctx = Context(tiny("reward"), tmp_path)
    before = ctx.adapters.digest("reward")
    ctx.adapters.save("reward", tmp_path / "reward", head)
    check_saved(ctx, "reward", head, ONE)
    assert ctx.adapters.digest("reward") == before


@pytest.mark.parametrize("broken", ["head", "adapter"])
def test_a_file_that_scores_otherwise_is_an_error(tiny, tmp_path, broken):
    """One bit in the bias, or in one weight of the adapter."""
    from safetensors.torch import load_file, save_file

    head = ScalarHead(128, seed=3)
    ctx = Context(tiny("reward"), tmp_path)
    ctx.adapters.save("reward", tmp_path / "reward", head)
    name = "head.safetensors" if broken == "head" else "adapter_model.safetensors"
    state = load_file(str(tmp_path / "reward" / name))
    key = "bias" if broken == "head" else next(k for k in state if "lora_B" in k)
    state[key].view(-1)[0] += 1e-3
    save_file(state, str(tmp_path / "reward" / name))
    with pytest.raises(RuntimeError, match="reopened, it scores"):
        check_saved(ctx, "reward", head, ONE)


def test_ppo_sees_the_numbers_of_the_stage(tiny, tmp_path):
    """PPO scores with the file; its rows are those of training, bit for bit."""
    from alpaca_rlhf.models.batches import collate
    from alpaca_rlhf.models.scoring import score, scores

    adapters, head = tiny("reward", dtype=torch.bfloat16), CriteriaHead(128, "ab", seed=3)
    adapters.save("reward", tmp_path / "reward", head)
    examples = [ONE, Example((1, 21), (31, 41, 2))]
    before = score(adapters, "reward", head, examples, batch_size=2)
    ctx = SimpleNamespace(adapters=tiny(dtype=torch.bfloat16))
    ctx.adapters.load("reward", tmp_path / "reward")
    read = ScalarHead.load(tmp_path / "reward", 128)
    batch = collate(ctx.adapters.base, examples)
    after = scores(ctx.adapters, "reward", read, batch, micro_batch_size=2)
    assert torch.equal(before, after)
