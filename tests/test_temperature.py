"""The temperature of every stage that samples: what it is, what is refused, and what it changes."""

from types import SimpleNamespace

import pytest
import torch

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.models.batches import Example, collate
from alpaca_rlhf.models.forward import token_logprobs, token_logprobs_and_values
from alpaca_rlhf.models.heads import ScalarHead
from alpaca_rlhf.models.vocabulary import target_logprobs
from alpaca_rlhf.pipeline import run_loop
from alpaca_rlhf.settings import PPO, BestOfK, Evaluate, Loop, Rank, Sampling
from alpaca_rlhf.settings.earlier import with_earlier_defaults
from alpaca_rlhf.settings.parsing import parse
from alpaca_rlhf.stages import arm_answers
from alpaca_rlhf.stages.context import Context
from tests.test_pipeline import Quiet

STAGES = ("sample", "ppo", "best_of_k", "evaluate")


def test_each_stage_has_its_own_and_takes_that_of_sampling():
    plain = Loop(sampling=Sampling(temperature=0.6))
    assert [plain.temperature_of(stage) for stage in STAGES] == [0.6] * 4
    own = Loop(
        rank=Rank(temperature=1.2),
        ppo=PPO(temperature=0.7),
        best_of_k=BestOfK(temperature=0.8),
        evaluate=Evaluate(temperature=0.9),
    )
    assert [own.temperature_of(stage) for stage in STAGES] == [1.2, 0.7, 0.8, 0.9]
    assert [Loop().temperature_of(stage) for stage in STAGES] == [1.0] * 4


@pytest.mark.parametrize("flag", ["rank", "ppo", "best-of-k", "evaluate"])
def test_0_is_refused_where_completions_must_differ(flag, capsys):
    with pytest.raises(UserError, match=rf"--{flag}\.temperature must be > 0"):
        parse(Loop, [f"--{flag}.temperature", "0"], prog="test", description="")


@pytest.mark.parametrize(
    ("given", "flag"),
    [
        ({}, "rank"),
        ({"rank": Rank(temperature=1.0)}, "ppo"),
        ({"rank": Rank(temperature=1.0), "ppo": PPO(temperature=1.0)}, "best-of-k"),
    ],
)
def test_greedy_sampling_is_refused_before_anything_is_done(tmp_path, given, flag):
    settings = Loop(out=tmp_path / "run", sampling=Sampling(temperature=0.0), **given)
    with pytest.raises(UserError, match=rf"--sampling\.temperature 0 .* --{flag}\.temperature"):
        run_loop(settings, Quiet(), kind="loop", command="test")
    assert not (tmp_path / "run").exists()


def test_an_older_run_goes_on_at_1_where_nothing_else_could_be_set(tmp_path):
    """PPO and the evaluation always sampled at 1; what was ranked followed `sampling`."""
    (tmp_path / "config.yaml").write_text(
        "{sampling: {temperature: 0.6}, ppo: {lr: 0.1}, evaluate: {shown: 3}, reward: {lr: 0.1}}"
    )
    settings = with_earlier_defaults(Loop(out=tmp_path, sampling=Sampling(temperature=0.6)))
    assert [settings.temperature_of(stage) for stage in STAGES] == [0.6, 1.0, 0.6, 1.0]


def test_two_words_by_hand():
    """Logits 1.4 and 0 at temperature 0.7 are 2 and 0: p = 0.8808, its slope 0.1192 / 0.7."""
    hidden = torch.tensor([[1.4]], requires_grad=True)
    weight = torch.tensor([[1.0], [0.0]])
    found = target_logprobs(hidden, weight, torch.tensor([0]), temperature=0.7)
    found.logprobs.sum().backward()
    assert found.logprobs.item() == pytest.approx(-0.126928, abs=1e-5)
    assert hidden.grad.item() == pytest.approx(0.119203 / 0.7, abs=1e-5)


def test_the_forward_of_an_update_has_the_temperature_in_its_gradient_too(tiny):
    """Both ways that PPO takes log-probabilities, against a plain forward of the same weights."""
    adapters, head = tiny("policy"), ScalarHead(128, seed=1)
    example = Example((1, 20, 30), (50, 60, 2))
    batch = collate(adapters.base, [example])
    adapters.trainable("policy")
    parameters = list(adapters.parameters("policy").values())

    def gradient(logprobs):
        return torch.autograd.grad(logprobs.sum(), parameters, allow_unused=True)

    with adapters.using("policy"):
        ids = torch.tensor([example.prompt + example.completion])
        logits = adapters.base.model(input_ids=ids).logits[0, 2:-1] / 0.7
        plain = logits.log_softmax(-1).gather(1, ids[0, 3:, None])[:, 0]
        ours = token_logprobs(adapters, batch, temperature=0.7)[0]
        joint, _ = token_logprobs_and_values(adapters, head, batch, share=0.0, temperature=0.7)
        assert torch.allclose(ours, plain, atol=1e-5) and torch.equal(ours, joint[0])
        expected, found, shared = gradient(plain), gradient(ours), gradient(joint)
        assert torch.equal(
            token_logprobs(adapters, batch), token_logprobs(adapters, batch, temperature=1.0)
        )
    for a, b, c in zip(expected, found, shared, strict=True):
        assert torch.allclose(a, b, atol=1e-5) and torch.equal(b, c)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_evaluations_kl_is_that_of_its_temperature(tiny, temperature):
    """Policy and SFT alike, against plain forwards; 0 exactly for an unchanged policy."""
    adapters = tiny("sft")
    adapters.add("policy", copy_of="sft")
    settings = Loop(template="brief", evaluate=Evaluate(temperature=temperature))
    ctx = Context(settings, SimpleNamespace(path=None), SimpleNamespace(), Quiet())
    ctx.__dict__.update(base=adapters.base, adapters=adapters)
    row = Instruction("Name a colour.")
    completion = arm_answers.Completion("", True, (50, 60, 2))

    def measured():
        return arm_answers.kl_estimates(ctx, "policy", [row], [completion], few_shot=False)

    assert list(measured().values()) == [[0.0], [0.0]]
    with torch.no_grad():
        for parameter in adapters.parameters("policy").values():
            parameter.mul_(2)
    prompt = arm_answers.arm_prompt(ctx, row, few_shot=False)
    ids = torch.tensor([prompt + completion.ids])
    logs = {}
    for role in ("policy", "sft"):
        with torch.no_grad(), adapters.using(role):
            logits = adapters.base.model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        logs[role] = (logits.double() / temperature).log_softmax(-1)
    said = torch.tensor(completion.ids)[:, None]
    expected = (logs["policy"] - logs["sft"]).gather(1, said).sum().item()
    assert measured()["kl_from_sft_nats"] == pytest.approx([expected], abs=1e-4)
    assert abs(expected) > 1e-3
    assert ctx.sampling("evaluate").temperature == temperature
    assert ctx.sampling("evaluate", temperature=0.0).temperature == 0, "greedy stands apart"
