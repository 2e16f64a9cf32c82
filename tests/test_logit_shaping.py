"""Settings of a chat that change what is drawn, against those of `transformers`."""

from threading import Event

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.models import rollout
from alpaca_rlhf.models.logit_shaping import LogitShaping
from alpaca_rlhf.models.rollout import stream
from alpaca_rlhf.models.streaming import before_stop, stream_text
from alpaca_rlhf.serving.policy_server import PolicyServer
from alpaca_rlhf.serving.run_contents import policies, settings_of
from alpaca_rlhf.serving.sampling_settings import SamplingSettings
from alpaca_rlhf.settings import Sampling
from tests.model_app import make_run

PROMPTS = [(1, 20, 30, 40), (1, *range(50, 60))]


@pytest.fixture
def adapters(tiny):
    adapters = tiny("policy", "sft")
    object.__setattr__(adapters.base, "stop_ids", frozenset())
    return adapters


@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_tokens_are_drawn_from_the_distribution_of_transformers(top_p):
    """For each uniform number the token at which their distribution function passes it."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 40, generator=generator) * 3
    history = torch.randint(0, 40, (1, 12), generator=generator)
    theirs = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(1.4),
            TemperatureLogitsWarper(1.2),
            TopKLogitsWarper(9),
            TopPLogitsWarper(top_p),
            MinPLogitsWarper(0.04),
        ]
    )(history, logits.clone()).softmax(-1)[0]
    shaping = LogitShaping(top_k=9, min_p=0.04, repetition_penalty=1.4)
    uniform = torch.linspace(0, 1 - 1e-9, 4001, dtype=torch.float64)
    drawn = rollout._pick(
        shaping.penalised(logits, history).expand(len(uniform), -1),
        Sampling(temperature=1.2, top_p=top_p),
        uniform,
        shaping,
    )
    shares = torch.bincount(drawn, minlength=40) / len(uniform)
    assert 1 < (theirs > 0).sum() <= 9
    assert torch.equal(shares > 0, theirs > 0)
    assert torch.allclose(shares, theirs, atol=1e-3)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_with_a_penalty_is_that_of_generate(adapters, prompt):
    sampling = Sampling(temperature=0, max_new_tokens=12)
    shaping = LogitShaping(repetition_penalty=1.5)

    def drawn(**options):
        steps = stream(adapters, None, [prompt], ["a"], k=2, sampling=sampling, seed=0, **options)
        rows = [[], []]
        for tokens in steps:
            for token in tokens:
                rows[token.row].append(token.id)
        assert rows[0] == rows[1]
        return rows[0]

    ids = torch.tensor([prompt])
    with torch.no_grad(), adapters.using(None):
        theirs = adapters.base.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            repetition_penalty=1.5,
            eos_token_id=None,
            pad_token_id=0,
        )[0, len(prompt) :]
    assert drawn(shaping=shaping) == theirs.tolist() != drawn()


def test_an_answer_ends_before_a_stop_text_and_is_gone_on_with(adapters):
    sampling = Sampling(temperature=0, max_new_tokens=16)

    def texts(prompt, n_tokens=16, **options):
        settings = Sampling(temperature=0, max_new_tokens=n_tokens)
        tokens = stream(adapters, "sft", [prompt], ["a"], sampling=settings, seed=0)
        return [
            update for (update,) in stream_text(adapters, tokens, rows=1, stop=Event(), **options)
        ]

    whole = texts(PROMPTS[0])[-1]
    assert len(whole.sampled.ids) == sampling.max_new_tokens and len(whole.text) > 12
    # 1. A text in the middle ends it: no further token is drawn, and none of it is shown.
    middle = whole.text[8:10]
    cut = texts(PROMPTS[0], stop_texts=("never there", middle))[-1]
    assert cut.text == whole.text[: whole.text.index(middle)] and cut.sampled.finished
    assert len(cut.sampled.ids) < len(whole.sampled.ids)
    # 2. Begun with its first tokens, it goes on to the same text.
    begun = whole.sampled.ids[:6]
    rest = texts((*PROMPTS[0], *begun), 10, begun=begun)
    assert rest[-1].text == whole.text and rest[-1].sampled.ids == whole.sampled.ids[6:]
    assert len(rest[0].text) < len(whole.text)
    # 3. A stop text that stands in the beginning cuts nothing of it; a later one ends it.
    kept = rest[0].text
    there = next(
        kept[at : at + 2] for at in range(len(kept)) if kept[at : at + 2] not in kept[at + 1 :]
    )
    again = texts((*PROMPTS[0], *begun), 10, begun=begun, stop_texts=(there,))
    assert all(update.text.startswith(kept[:-1]) for update in again)


@pytest.mark.parametrize(
    "shaped", [{"top_k": 5}, {"min_p": 0.1}, {"repetition_penalty": 1.2}, {"stop": ("x",)}]
)
def test_whole_samples_refuse_what_only_a_stream_follows(tmp_path, tiny_folder, shaped):
    run, row = make_run(tmp_path / "run", tiny_folder, ("sft",)), Instruction("One?")
    settings = SamplingSettings(max_new_tokens=2, **shaped)
    server = PolicyServer(settings_of(run), policies(run), settings)
    for sampled in (
        lambda: server.answer("sft", row, 0),
        lambda: server.candidates("sft", [row], settings, k=2),
    ):
        with pytest.raises(ValueError, match=next(iter(shaped))):
            sampled()
    plain = SamplingSettings(max_new_tokens=2, temperature=1.2, top_p=0.9)
    assert len(server.candidates("sft", [row], plain, k=2)[0]) == 2


def test_the_first_of_several_stop_texts_counts():
    assert before_stop("a User: b System: c", ("System:", "User:")) == "a "
    assert before_stop("nothing", ("x",)) == "nothing" == before_stop("nothing", ())


def test_of_equal_logits_so_many_are_kept():
    kept = LogitShaping(top_k=3).likeliest(torch.tensor([[1.0, 1.0, 1.0, 1.0, 0.0]]))
    assert int(kept.isfinite().sum()) == 3


def test_a_stop_text_in_a_beginning_does_not_count():
    begun = "a User: b Us"
    for rest, text in (
        ("", begun),
        ("er", f"{begun}er"),
        ("er: c", "a User: b "),
        ("x", f"{begun}x"),
    ):
        assert before_stop(begun + rest, ("User:",), n_begun=len(begun)) == text
    assert before_stop("a.b.", (".",), n_begun=2) == "a.b"
