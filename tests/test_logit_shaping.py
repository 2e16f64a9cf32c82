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

from alpaca_rlhf.models import rollout
from alpaca_rlhf.models.logit_shaping import LogitShaping
from alpaca_rlhf.models.rollout import stream
from alpaca_rlhf.models.streaming import before_stop, stream_text
from alpaca_rlhf.settings import Sampling

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


def test_the_first_of_several_stop_texts_counts():
    assert before_stop("a User: b System: c", ("System:", "User:")) == "a "
    assert before_stop("nothing", ("x",)) == "nothing" == before_stop("nothing", ())


def test_of_equal_logits_so_many_are_kept():
    kept = LogitShaping(top_k=3).likeliest(torch.tensor([[1.0, 1.0, 1.0, 1.0, 0.0]]))
    assert int(kept.isfinite().sum()) == 3
