"""Several heads on one reward adapter: their resamples, their mean less K deviations, their use."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.evaluation.accuracy_words import ensemble_in_words
from alpaca_rlhf.models.heads import HEAD, EnsembleHead, ScalarHead
from alpaca_rlhf.models.scoring import score
from alpaca_rlhf.settings import Loop, Reward
from alpaca_rlhf.settings.parsing import parse
from alpaca_rlhf.stages import uncertainty
from alpaca_rlhf.training.bootstrap import bootstrap_counts
from alpaca_rlhf.training.groups import Group
from alpaca_rlhf.training.held_out import evaluate_reward
from alpaca_rlhf.training.reward import ensemble_loss, micro_batch
from tests import test_ppo
from tests.test_reward import SETTINGS, groups, train

SEVERAL = replace(SETTINGS, heads=3, pessimism=1.0)


def by_hand(pessimism):
    """Two heads, one for each of two hidden units."""
    head = EnsembleHead(2, (0, 1), pessimism=pessimism)
    with torch.no_grad():
        head.weight.copy_(torch.eye(2))
    return head


def normalised(heads=3, pessimism=1.0, hidden_size=8):
    head = EnsembleHead(hidden_size, range(heads), pessimism=pessimism)
    drawn = torch.randn(40, hidden_size, generator=torch.Generator().manual_seed(0))
    head.normalise(head.members(drawn))
    return head


# --- the heads and their score --------------------------------------------------------------------


def test_the_score_is_the_mean_less_so_many_deviations():
    """Heads that say 1 and 3 have mean 2 and deviation 1; where both say 5 nothing is taken."""
    hidden = torch.tensor([[1.0, 3.0], [5.0, 5.0]])
    assert by_hand(0.0)(hidden).tolist() == [2.0, 5.0]
    assert by_hand(0.5)(hidden).tolist() == [1.5, 5.0]
    assert by_hand(2.0).all_scores(hidden).tolist() == [[0.0, 1.0, 3.0], [5.0, 5.0, 5.0]]


def test_each_head_is_normalised_by_itself():
    """Scores of 0 and 2, and of 10 and 30, are the same once each has mean 0 and deviation 1."""
    head, hidden = by_hand(1.0), torch.tensor([[0.0, 10.0], [2.0, 30.0]])
    head.normalise(head.members(hidden))
    assert head.members(hidden).tolist() == [[-1.0, -1.0], [1.0, 1.0]]
    assert head(hidden).tolist() == [-1.0, 1.0]
    assert head.log_odds == pytest.approx(5.5), "a unit was 1 and 10"


@torch.no_grad()
def test_the_common_score_has_mean_0_and_deviation_1_once_rescaled(tmp_path):
    head, hidden = normalised(heads=4, pessimism=2.0), torch.randn(200, 8)
    before, members = head(hidden), head.members(hidden)
    assert before.mean() < -0.3, "pessimism takes something everywhere"
    head.rescale(members)
    scores = head(hidden)
    assert float(scores.mean()) == pytest.approx(0, abs=1e-5)
    assert float(scores.std(correction=0)) == pytest.approx(1, abs=1e-5)
    assert torch.equal(scores.argsort(), before.argsort())
    assert torch.equal(head.members(hidden), members), "each head's own scale stays"
    head.rescale(members)
    assert torch.equal(head(hidden), scores), "again changes nothing"
    head.save(tmp_path)
    assert torch.equal(ScalarHead.load(tmp_path, 8)(hidden), scores)


def test_heads_of_an_earlier_version_keep_their_score(tmp_path):
    head, hidden = normalised(), torch.randn(20, 8)
    head.save(tmp_path)
    tensors = load_file(tmp_path / HEAD)
    earlier = {k: t for k, t in tensors.items() if k not in ("heads.centre", "heads.spread")}
    assert len(earlier) == len(tensors) - 2
    save_file(earlier, tmp_path / HEAD)
    assert torch.equal(ScalarHead.load(tmp_path, 8)(hidden), head(hidden))


def test_a_head_that_always_says_the_same_cannot_be_normalised():
    head = by_hand(0.0)
    with pytest.raises(ValueError, match="cannot normalise on 2 scores"):
        head.normalise(torch.tensor([[0.0, 1.0], [2.0, 1.0]]))
    assert head.gain.tolist() == [1.0, 1.0]


def test_each_head_starts_from_a_seed_of_its_own():
    head = EnsembleHead(64, (4, 9, 4))
    for row, seed in zip(head.weight, (4, 9, 4), strict=True):
        assert torch.equal(row, ScalarHead(64, seed=seed).weight)
    assert [name for name, _ in head.named_parameters()] == ["weight"]


def test_heads_compute_in_fp32_inside_autocast():
    head = by_hand(0.0)
    with torch.no_grad():
        head.weight.copy_(torch.eye(2) * (1 + 2**-9))
    with torch.autocast("cpu", torch.bfloat16):
        members = head.members(torch.ones(1, 2, dtype=torch.bfloat16))
    assert members.dtype == torch.float32 and members.tolist() == [[1 + 2**-9] * 2]


def test_their_mean_is_one_linear_head():
    head = normalised()
    hidden = torch.randn(20, 8, generator=torch.Generator().manual_seed(1))
    assert type(head.mean) is ScalarHead
    assert torch.allclose(head.mean(hidden), head.members(hidden).mean(1), atol=1e-5)
    lone = ScalarHead(8, seed=2)
    assert lone.mean is lone


def test_a_folder_holds_its_heads_and_pessimism_and_their_mean(tmp_path):
    head, hidden = normalised(heads=4, pessimism=0.7), torch.randn(20, 8)
    head.save(tmp_path)
    again = ScalarHead.load(tmp_path, 8)
    assert type(again) is EnsembleHead and len(again.weight) == 4
    assert float(again.pessimism) == pytest.approx(0.7)
    assert torch.equal(again.all_scores(hidden), head.all_scores(hidden))
    plain = load_file(tmp_path / HEAD)
    scores = plain["gain"] * (hidden @ plain["weight"]) + plain["bias"]
    assert torch.allclose(scores, head.members(hidden).mean(1), atol=1e-5)
    with pytest.raises(UserError, match="hidden size 8, this base has 16"):
        ScalarHead.load(tmp_path, 16)


def test_one_head_is_saved_as_ever(tmp_path):
    ScalarHead(8, seed=1).save(tmp_path)
    assert set(load_file(tmp_path / HEAD)) == {"weight", "gain", "bias"}
    assert type(ScalarHead.load(tmp_path, 8)) is ScalarHead


# --- training -------------------------------------------------------------------------------------


def test_each_head_draws_as_many_rankings_as_there_are():
    """With replacement: a ranking comes up once on average, and not at all for (1 - 1/G)^G."""
    counts = bootstrap_counts(50, 400, seed=3)
    assert counts.shape == (400, 50) and counts.dtype == torch.float32
    assert counts.sum(1).tolist() == [50.0] * 400
    assert float((counts == 0).float().mean()) == pytest.approx(0.98**50, abs=0.01)
    assert counts.mean(0).sub(1).abs().max() < 0.25, "five standard errors"
    assert float(counts.var()) == pytest.approx(0.98, abs=0.05)
    assert torch.equal(bootstrap_counts(50, 2, seed=3), counts[:2])
    assert not torch.equal(counts[0], counts[1])
    assert not torch.equal(bootstrap_counts(50, 2, seed=4), counts[:2])


def test_a_head_learns_from_a_ranking_as_often_as_it_has_drawn_it():
    """Of two heads one has drawn it twice, by a gap of 1; the other, which is wrong, never."""
    members = torch.tensor([[1.0, 0.0], [0.0, 9.0]], requires_grad=True)
    group = Group("p", (), ((0, 1),))
    loss = ensemble_loss(members, group, SEVERAL, torch.tensor([2.0, 0.0]))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)))
    loss.backward()
    slope = 1 / (1 + math.e)
    assert members.grad.tolist() == [[pytest.approx(-slope), 0.0], [pytest.approx(slope), 0.0]]


def references():
    return [example for group in groups(8, seed=5) for example in group.examples]


def test_heads_learn_the_ranking_and_differ(tiny, tmp_path):
    data, held_out = groups(48), groups(20, seed=9)
    adapters = tiny("reward", trained=False)
    settings = replace(SEVERAL, epochs=2, micro_batch_size=8)
    head, result = train(adapters, tmp_path, data, held_out, settings, references=references())
    assert type(head) is EnsembleHead and head.pessimism == 1
    members = score(adapters, "reward", head.members, references(), batch_size=8)
    assert members.mean(0).abs().max() < 1e-4
    assert torch.allclose(members.std(0, correction=0), torch.ones(3), atol=1e-4)
    assert (members - members.mean(1, keepdim=True)).abs().max() > 0.01
    assert result.accuracy > 0.8 and result.held_out.mean_accuracy > 0.8
    assert result.held_out.disagreement > 0
    assert result.reference_std > 0


def test_one_head_measures_the_same_with_and_without_references(tiny, tmp_path):
    """Its gaps are log-odds: it is normalised after it was measured."""
    data, held_out = groups(8), groups(4, seed=9)
    plain, without = train(tiny("reward"), tmp_path / "a", data, held_out)
    head, result = train(tiny("reward"), tmp_path / "b", data, held_out, references=references())
    assert result.held_out == without.held_out
    assert torch.equal(head.weight, plain.weight) and not torch.equal(head.gain, plain.gain)
    assert (without.held_out.mean_accuracy, without.held_out.disagreement) == (None, None)


def test_the_held_out_figures_are_those_of_the_score_that_is_used(tiny):
    adapters, data = tiny("reward"), groups(12)
    micro = micro_batch("reward", Reward())
    examples = [example for group in data for example in group.examples]
    head = EnsembleHead(128, range(4), pessimism=3.0)
    head.normalise(score(adapters, "reward", head.members, examples, batch_size=8))
    evaluation = evaluate_reward(adapters, "reward", head, data, micro)
    members = score(adapters, "reward", head.members, examples, batch_size=8).numpy()
    lowered = (members.mean(1) - 3 * members.std(1)) * float((1 / head.gain).mean())
    assert evaluation.scores == pytest.approx(lowered.tolist(), abs=1e-4)
    assert evaluation.disagreement == pytest.approx(members.std(1).mean(), abs=1e-5)
    by_mean = evaluate_reward(adapters, "reward", head.mean, data, micro)
    assert evaluation.mean_accuracy == by_mean.accuracy != evaluation.accuracy


# --- who uses the score ---------------------------------------------------------------------------


def several(adapters, pessimism):
    head = EnsembleHead(128, (7, 8, 9), pessimism=pessimism)
    examples = [example for group in groups(4) for example in group.examples]
    head.normalise(score(adapters, "reward", head.members, examples, batch_size=8))
    return head


def test_a_policy_is_rewarded_by_the_mean_less_the_deviations(tiny, tmp_path):
    """The first update samples the same completions, and its score is lower by K deviations."""
    first = []
    for pessimism in (0.0, 2.0):
        adapters, _ = test_ppo.cast(tiny)
        head = several(adapters, pessimism)
        settings = replace(test_ppo.SETTINGS, updates=1, missing_eos_score=None)
        rows = test_ppo.train(adapters, head, tmp_path / str(pessimism), settings)
        first.append(rows[0])
    assert first[0]["mean_tokens"] == first[1]["mean_tokens"]
    assert first[1]["score"] < first[0]["score"] - 0.1


def test_values_start_as_the_mean_of_the_heads(tiny):
    adapters, _ = test_ppo.cast(tiny)
    head = several(adapters, 2.0)
    critic = test_ppo.ppo._critic(adapters, head, test_ppo.SETTINGS, 0)
    hidden = torch.randn(5, 128)
    assert torch.allclose(critic.head(hidden), head.members(hidden).mean(1), atol=1e-5)


def test_disagreement_by_hand():
    """One head gives the first completion three to one, the other one to one."""
    apart = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
    assert uncertainty.order_disagreement(apart) == pytest.approx(0.125)
    assert uncertainty.order_disagreement(torch.tensor([[5.0, 5.0], [1.0, 1.0]])) == 0
    three = torch.cat([apart, apart[1:]])
    assert uncertainty.order_disagreement(three) == pytest.approx(0.25 / 3)


def test_people_are_asked_first_where_the_heads_disagree(monkeypatch):
    """The heads agree that the first prompt is a toss-up, and differ on the last."""
    prompts = [Instruction(text) for text in ("toss-up", "clear", "differ")]
    members = torch.tensor(
        [[0.0, 0.0], [0.0, 0.0], [4.0, 3.0], [0.0, 0.0], [2.0, -2.0], [0.0, 0.0]]
    )
    written = {}
    monkeypatch.setattr(uncertainty, "score", lambda *args, **options: members)
    monkeypatch.setattr(uncertainty, "prompt_ids", lambda *args: (1,))
    ctx = SimpleNamespace(
        settings=SimpleNamespace(
            queues_uncertain=True, template="brief", sampling=SimpleNamespace(batch_size=8)
        ),
        run=SimpleNamespace(done=lambda stage: {}, write_jsonl=written.__setitem__),
        load=lambda role, stage: None,
        load_head=lambda stage: by_hand(0.0),
        adapters=None,
        base=None,
    )
    samples = [[SimpleNamespace(ids=(2,))] * 2 for _ in prompts]
    ordered = uncertainty.order_by_uncertainty(ctx, 2, prompts, samples)
    assert [prompt.instruction for prompt in ordered] == ["differ", "clear", "toss-up"]
    rows = written["sample.2/uncertainty.jsonl"]
    assert [set(row) for row in rows] == [{"prompt_id", "disagreement"}] * 3
    assert rows[-1]["disagreement"] == 0


# --- refusals and words ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--reward.pessimism", "1"], r"--reward\.pessimism 1 .*give --reward\.heads 4"),
        (
            ["--reward.heads", "2", "--reward.criteria-weight", "0.5"],
            r"--reward\.heads 2: --reward\.criteria-weight 0\.5",
        ),
        (["--reward.heads", "0"], r"--reward\.heads must be > 0"),
        (["--reward.heads", "2", "--reward.pessimism", "-1"], r"--reward\.pessimism must be"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(flags, words):
    with pytest.raises(UserError, match=words) as refused:
        parse(Loop, flags, prog="test", description="")
    assert "\n" not in str(refused.value)


def test_the_heads_in_words():
    measured = {"heads": 4, "pessimism": 1.0, "mean_accuracy": 0.7149, "disagreement": 0.214}
    assert ensemble_in_words(measured) == (
        "4 heads, which differ by 0.21 on a held-out completion; the score is their mean less 1 "
        "times their deviation; the mean alone has 0.715"
    )
    assert ensemble_in_words(measured | {"pessimism": 0.0}).endswith("; the score is their mean")
