"""Completions as they come: the tokens of those drawn at once, and whole characters."""

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
    made = tiny("policy", "sft")
    object.__setattr__(made.base, "stop_ids", STOPS)
    return made


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0}, {"temperature": 1.3, "top_p": 0.8}])
@pytest.mark.parametrize("k", [1, 3])
def test_a_stream_draws_what_sample_draws(adapters, sampling, k):
    how = Sampling(max_new_tokens=14, batch_size=64, **sampling)
    for prompts, keys in ((PROMPTS, KEYS), (PROMPTS[:1], KEYS[:1])):
        drawn = sample(adapters, "policy", prompts, keys, k=k, sampling=how, seed=5)
        rows = [[] for _ in range(len(prompts) * k)]
        ends = [False] * len(rows)
        for step in stream(adapters, "policy", prompts, keys, k=k, sampling=how, seed=5):
            for one in step:
                assert not ends[one.row], "nothing comes after a stop token"
                rows[one.row].append(one.id)
                ends[one.row] = one.ends
        flat = [one for own in drawn for one in own]
        assert [tuple(row) for row in rows] == [one.ids for one in flat]
        assert ends == [one.finished for one in flat]
        assert len(set(map(len, rows))) > 1 or len(prompts) == 1


def test_it_stops_between_two_tokens_and_leaves_the_adapters_free(adapters):
    how, stop = Sampling(max_new_tokens=14), Event()
    (whole,) = sample(adapters, "sft", PROMPTS[1:2], ["zz"], sampling=how, seed=1)
    assert len(whole[0].ids) > 5
    seen = []
    for (one,) in stream_text(
        adapters, "sft", PROMPTS[1:2], ["zz"], sampling=how, seed=1, stop=stop
    ):
        seen.append(one.sampled.ids)
        if len(one.sampled.ids) == 3:
            stop.set()
        assert torch.is_grad_enabled(), "the caller's own mode"
    assert seen[-1] == whole[0].ids[: len(seen[-1])] and len(seen[-1]) == 4
    left = stream(adapters, "sft", PROMPTS, KEYS, sampling=how, seed=1)
    next(left)
    with pytest.raises(RuntimeError, match="in the middle of decoding"), adapters.using("policy"):
        pass
    left.close()
    with adapters.using("policy"):
        assert adapters.active == "policy"


SAID = ["The dog says woof. 12 + 3 = 15.", "naïve 中文 🙂👍🏽 done", "  two"]


@pytest.mark.parametrize("said", SAID)
def test_text_grows_by_whole_characters(adapters, said):
    ids = list(text_ids(adapters.base, said)[1:])
    text, before = Text(adapters.base, "alpaca"), ""
    for token in ids:
        text.add(token)
        now = str(text)
        assert now.startswith(before) and "\ufffd" not in now
        before = now
    assert before == answer(adapters.base, "alpaca", ids)
    assert said.strip() in before


def test_what_is_shown_last_is_the_answer_itself_even_where_bytes_are_broken(adapters):
    how = Sampling(max_new_tokens=40)
    object.__setattr__(adapters.base, "stop_ids", frozenset({2}))
    (drawn,) = sample(adapters, "policy", PROMPTS[:1], ["q"], k=4, sampling=how, seed=3)
    *_, last = stream_text(
        adapters, "policy", PROMPTS[:1], ["q"], k=4, sampling=how, seed=3, stop=Event()
    )
    assert [one.sampled for one in last] == drawn
    assert [one.text for one in last] == [
        answer(adapters.base, adapters.template, one.ids) for one in drawn
    ]
