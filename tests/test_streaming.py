"""Completions as they come: the tokens of those drawn at once, and whole characters."""

from itertools import chain
from threading import Event

import pytest
import torch

from alpaca_rlhf.models.batches import answer
from alpaca_rlhf.models.rollout import sample, stream
from alpaca_rlhf.models.streaming import Text, stream_text
from alpaca_rlhf.models.turns import text_ids
from alpaca_rlhf.settings import Sampling

PROMPTS = [(1, 20, 30, 40), (1, 21), (1, *range(50, 70))]
KEYS = ["a", "b", "c"]
STOPS = frozenset({2, *range(100, 130)})  # many, so that rows finish at different times


@pytest.fixture
def adapters(tiny):
    adapters = tiny("policy", "sft")
    object.__setattr__(adapters.base, "stop_ids", STOPS)
    return adapters


@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"temperature": 1.3, "top_p": 0.8}])
@pytest.mark.parametrize("k", [1, 3])
def test_a_stream_draws_what_sample_draws(adapters, options, k):
    sampling = Sampling(max_new_tokens=14, batch_size=64, **options)
    for prompts, keys in ((PROMPTS, KEYS), (PROMPTS[:1], KEYS[:1])):
        completions = sample(adapters, "policy", prompts, keys, k=k, sampling=sampling, seed=5)
        rows = [[] for _ in range(len(prompts) * k)]
        ends = [False] * len(rows)
        for tokens in stream(adapters, "policy", prompts, keys, k=k, sampling=sampling, seed=5):
            for token in tokens:
                assert not ends[token.row], "nothing comes after a stop token"
                rows[token.row].append(token.id)
                ends[token.row] = token.ends
        flat = list(chain.from_iterable(completions))
        assert [tuple(row) for row in rows] == [completion.ids for completion in flat]
        assert ends == [completion.finished for completion in flat]
        assert len(set(map(len, rows))) > 1 or len(prompts) == 1


def test_it_stops_between_two_tokens_and_leaves_the_adapters_free(adapters):
    sampling, stop = Sampling(max_new_tokens=14), Event()
    ((completion,),) = sample(adapters, "sft", PROMPTS[1:2], ["zz"], sampling=sampling, seed=1)
    assert len(completion.ids) > 5
    tokens = stream(adapters, "sft", PROMPTS[1:2], ["zz"], sampling=sampling, seed=1)
    for (update,) in stream_text(adapters, tokens, rows=1, stop=stop):
        ids = update.sampled.ids
        if len(ids) == 3:
            stop.set()
        assert torch.is_grad_enabled(), "the caller's own mode"
    assert ids == completion.ids[:4]
    unfinished = stream(adapters, "sft", PROMPTS, KEYS, sampling=sampling, seed=1)
    next(unfinished)
    with pytest.raises(RuntimeError, match="in the middle of decoding"), adapters.using("policy"):
        pass
    unfinished.close()
    with adapters.using("policy"):
        assert adapters.active == "policy"


TEXTS = ["The dog says woof. 12 + 3 = 15.", "naïve 中文 🙂👍🏽 done", "  two"]


@pytest.mark.parametrize("completion", TEXTS)
def test_text_grows_by_whole_characters(adapters, completion):
    ids = list(text_ids(adapters.base, completion)[1:])
    text, previous = Text(adapters.base, "alpaca"), ""
    for token in ids:
        text.add(token)
        assert str(text).startswith(previous) and "\ufffd" not in str(text)
        previous = str(text)
    assert previous == answer(adapters.base, "alpaca", ids)
    assert completion.strip() in previous


def test_what_is_shown_last_is_the_answer_itself_even_where_bytes_are_broken(adapters):
    sampling = Sampling(max_new_tokens=40)
    object.__setattr__(adapters.base, "stop_ids", frozenset({2}))
    (completions,) = sample(adapters, "policy", PROMPTS[:1], ["q"], k=4, sampling=sampling, seed=3)
    tokens = stream(adapters, "policy", PROMPTS[:1], ["q"], k=4, sampling=sampling, seed=3)
    *_, last = stream_text(adapters, tokens, rows=4, stop=Event())
    assert [update.sampled for update in last] == completions
    assert [update.text for update in last] == [
        answer(adapters.base, adapters.template, completion.ids) for completion in completions
    ]
