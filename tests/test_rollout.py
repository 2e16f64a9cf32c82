"""Sampling: what it must equal, what it must not depend on, and how often each token comes."""

import math
from contextlib import closing, contextmanager
from itertools import chain

import pytest
import torch

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.models import rollout, scoring
from alpaca_rlhf.models.batches import Example, collate, left_pad
from alpaca_rlhf.models.decode_graph import captured
from alpaca_rlhf.models.heads import ScalarHead
from alpaca_rlhf.models.rollout import sample
from alpaca_rlhf.models.scoring import logprobs, score
from alpaca_rlhf.settings import Sampling

PROMPTS = [(1, 20, 30, 40), (1, 21), (1, *range(50, 70)), (1, 22, 32), (1, 300, 301)]
KEYS = ["a", "b", "c", "d", "e"]
STOPS = frozenset({2, *range(100, 130)})  # many, so that rows finish at different times


def draw(adapters, role="policy", prompts=PROMPTS, keys=KEYS, *, k=1, seed=0, **sampling):
    numbers = {"max_new_tokens": 12, "batch_size": 64, **sampling}
    return sample(adapters, role, prompts, keys, k=k, sampling=Sampling(**numbers), seed=seed)


def with_stops(adapters, stops=STOPS):
    object.__setattr__(adapters.base, "stop_ids", stops)
    return adapters


@pytest.fixture
def adapters(tiny):
    return with_stops(tiny("policy", "sft"))


# --- greedy ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stops", [frozenset({2}), STOPS])
def test_greedy_equals_generate(tiny, stops):
    """Token for token that of transformers, in fp32, for a left-padded batch of odd lengths."""
    adapters = with_stops(tiny("policy"), stops)
    ours = draw(adapters, temperature=0, max_new_tokens=24)
    ids, mask = left_pad(adapters.base, PROMPTS)
    with torch.no_grad(), adapters.using("policy"):
        theirs = adapters.base.model.generate(
            input_ids=ids,
            attention_mask=mask.long(),
            do_sample=False,
            max_new_tokens=24,
            eos_token_id=sorted(stops),
            pad_token_id=0,
        )[:, ids.shape[1] :]
    lengths = set()
    for (one,), other in zip(ours, theirs.tolist(), strict=True):
        ends = [i for i, token in enumerate(other) if token in stops]
        expected = other[: ends[0] + 1] if ends else other
        assert list(one.ids) == expected
        assert one.finished == bool(ends)
        lengths.add(len(expected))
    assert len(lengths) > 1 or stops == frozenset({2})


def test_greedy_draws_k_equal_completions(adapters):
    for own in draw(adapters, temperature=0, k=3):
        assert own[0] == own[1] == own[2]


# --- what a completion does not depend on ---------------------------------------------------------


def test_a_completion_does_not_depend_on_its_batch(adapters):
    """Batch size, partners, K, order: the same key and sample draw the same tokens."""
    reference = draw(adapters, k=4)
    assert len({one.ids for own in reference for one in own}) > 15, "they are different"
    for batch_size in (1, 2, 3, 5, 7):
        assert draw(adapters, k=4, batch_size=batch_size) == reference
    assert draw(adapters, k=2) == [own[:2] for own in reference]
    for i in range(5):
        assert draw(adapters, prompts=[PROMPTS[i]], keys=[KEYS[i]], k=4) == [reference[i]]
    turned = draw(adapters, prompts=PROMPTS[::-1], keys=KEYS[::-1], k=4)
    assert turned == reference[::-1]


def test_a_completion_does_not_depend_on_rows_that_finish_first(adapters):
    """With more stop tokens other rows leave sooner; until its own stop nothing changes."""
    with_stops(adapters, frozenset({2}))
    never = draw(adapters, k=8, max_new_tokens=16)
    with_stops(adapters)
    often = draw(adapters, k=8, max_new_tokens=16)
    finished = 0
    for one, other in zip(chain.from_iterable(never), chain.from_iterable(often), strict=True):
        ends = [i for i, token in enumerate(one.ids) if token in STOPS]
        expected = one.ids[: ends[0] + 1] if ends else one.ids
        assert other.ids == expected
        finished += bool(ends) and other.finished
    assert 5 < finished < 40


def test_a_shorter_limit_gives_a_prefix(adapters):
    short, long = draw(adapters, k=4, max_new_tokens=5), draw(adapters, k=4, max_new_tokens=20)
    for one, other in zip(chain.from_iterable(short), chain.from_iterable(long), strict=True):
        assert one.ids == other.ids[:5]


def test_seed_key_and_sample_change_the_noise(adapters):
    one = draw(adapters, k=2)
    assert draw(adapters, k=2) == one
    assert all(own[0] != own[1] for own in one)
    assert draw(adapters, k=2, seed=1) != one
    assert draw(adapters, k=2, keys=["v", "w", "x", "y", "z"]) != one
    twice = draw(adapters, prompts=[PROMPTS[0]] * 2, keys=["a", "a"])
    assert twice[0] == twice[1]


def test_the_global_random_state_is_neither_read_nor_moved(adapters):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = draw(adapters)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert draw(adapters) == one


# --- work -----------------------------------------------------------------------------------------


def test_the_prompt_is_read_once_for_k_samples(adapters):
    shapes = []
    embedding = adapters.base.model.get_input_embeddings()
    hook = embedding.register_forward_hook(lambda _, args, out: shapes.append(tuple(args[0].shape)))
    draw(adapters, prompts=PROMPTS[:1], keys=KEYS[:1], k=6, max_new_tokens=3)
    hook.remove()
    assert shapes[0] == (1, 4)
    assert shapes[1] == (6, 1)
    assert len(shapes) <= 3


def test_finished_rows_leave_the_batch(adapters):
    rows = []
    embedding = adapters.base.model.get_input_embeddings()
    hook = embedding.register_forward_hook(lambda _, args, out: rows.append(len(args[0])))
    with_stops(adapters, frozenset({2, *range(50, 300)}))
    draw(adapters, k=8, max_new_tokens=12)
    hook.remove()
    assert rows[1:] == sorted(rows[1:], reverse=True)
    assert rows[-1] < 40 / 4
    assert len(rows) < 12, "the batch ends with its last row"


def test_waiting_prompts_take_the_places_of_finished_rows(adapters):
    prompts, keys = PROMPTS * 4, [f"{key}{i}" for i in range(4) for key in KEYS]
    alone = draw(adapters, prompts=prompts, keys=keys, max_new_tokens=24)
    shapes = []
    embedding = adapters.base.model.get_input_embeddings()
    hook = embedding.register_forward_hook(lambda _, args, out: shapes.append(tuple(args[0].shape)))
    together = draw(adapters, prompts=prompts, keys=keys, max_new_tokens=24, batch_size=4)
    hook.remove()
    assert together == alone
    steps = [rows for rows, length in shapes if length == 1]
    assert max(steps) == 4
    order = sorted(range(20), key=lambda i: -len(prompts[i]))
    lengths = [len(alone[i][0].ids) for i in order]
    assert len(steps) < sum(max(lengths[i : i + 4]) - 1 for i in range(0, 20, 4))


def test_how_often_the_tokens_are_read_changes_none(adapters):
    requests = list(zip(PROMPTS, KEYS, strict=True))
    sampling = Sampling(max_new_tokens=20)
    drawn, looks = [], []
    for read_every in (1, 7, 16):
        rows = {}
        with adapters.using("policy"), adapters.decoding():
            steps = list(rollout._decode_steps(adapters, requests, 3, sampling, 0, 2, read_every))
        for token in chain.from_iterable(steps):
            rows.setdefault(token.row, []).append((token.id, token.ends))
        drawn.append(rows)
        looks.append(len(steps))
    assert drawn[0] == drawn[1] == drawn[2] and len(drawn[0]) == 15
    assert looks == sorted(looks, reverse=True) and looks[2] * 3 < looks[0]


@pytest.mark.parametrize("sampled", [{"temperature": 0}, {"temperature": 1.0}, {"top_p": 0.9}])
def test_steps_in_place_draw_the_same_tokens(adapters, monkeypatch, sampled):
    """Row by row in fp32: joining, ending, and a cache that grows to its third block.

    They are what a card repeats as a CUDA graph; here each repetition is the step itself.
    """
    prompts = [*PROMPTS, tuple(range(1, 62)), tuple(range(40, 90))]
    given = {"prompts": prompts, "keys": [str(i) for i in range(7)], "k": 2, "batch_size": 6}
    given |= {"max_new_tokens": 90, **sampled}
    with_stops(adapters, frozenset({2, *range(100, 104)}))
    expected = draw(adapters, **given)
    repeated, rooms = [], []

    def captured(step, device):
        repeated.append(device)
        return step

    room = rollout.BlockCache.room.fget
    note = property(lambda cache: rooms.append(room(cache)) or rooms[-1])
    monkeypatch.setattr(rollout.BlockCache, "room", note)
    monkeypatch.setattr(rollout, "steps_in_place", lambda device: True)
    monkeypatch.setattr(rollout, "captured", captured)
    assert draw(adapters, **given) == expected
    assert len({len(one.ids) for row in expected for one in row}) >= 3, "rows end at several places"
    assert len(set(rooms)) >= 3 and len(rooms) > 3 * len(repeated) > 0


class Left:
    """Notes that it was left."""

    def __init__(self, stream, left):
        self.stream, self.left = stream, left

    def close(self):
        self.left.append(self.stream)


def test_without_a_card_a_captured_step_is_the_step():
    assert captured(print, torch.device("cpu")) is print


def test_steps_that_cannot_be_captured_are_taken_and_not_tried_again(adapters, monkeypatch):
    given = {"prompts": PROMPTS, "keys": list("abcde"), "k": 1, "batch_size": 5}
    expected = draw(adapters, **given)
    tried = []
    monkeypatch.setattr(rollout, "steps_in_place", lambda device: True)
    monkeypatch.setattr(rollout, "captured", lambda step, device: tried.append(step))
    assert draw(adapters, **given) == expected
    assert len(tried) == 1


def test_a_card_that_cannot_capture_says_so_once(monkeypatch, caplog):
    @contextmanager
    def graph(_):
        yield
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the caller's")
    left = []
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: closing(Left(stream, left)))
    assert captured([].clear, torch.device("cuda")) is None
    assert left == ["the caller's"], "the stream of a failed capture is left"
    assert caplog.messages == [
        "decoding goes on without a CUDA graph: operation not permitted when stream is capturing"
    ]


def test_progress_is_told(adapters):
    told = []
    sampling = Sampling(max_new_tokens=2, batch_size=4)
    sample(
        adapters,
        None,
        PROMPTS,
        KEYS,
        k=2,
        sampling=sampling,
        seed=0,
        on_batch=told.append,
    )
    assert told == [4, 4, 2]


# --- stops and limits -----------------------------------------------------------------------------


def test_every_stop_id_ends_a_completion_and_is_its_last_token(adapters):
    seen = set()
    for one in chain.from_iterable(draw(adapters, k=16, max_new_tokens=20)):
        assert 1 <= len(one.ids) <= 20
        assert one.finished == (one.ids[-1] in STOPS)
        assert not STOPS & set(one.ids[:-1])
        assert one.finished or len(one.ids) == 20
        seen |= {one.ids[-1]} & STOPS
    assert len(seen) > 3


def test_a_stop_at_the_limit_counts_as_finished(adapters):
    with_stops(adapters, frozenset(range(400)))
    for (one,) in draw(adapters, max_new_tokens=1):
        assert len(one.ids) == 1
        assert one.finished


# --- how often each token comes -------------------------------------------------------------------


def first_token_logits(adapters, prompt):
    with torch.no_grad(), adapters.using("policy"):
        return adapters.base.model(input_ids=torch.tensor([prompt])).logits[0, -1].double()


def too_far(counts, probabilities):
    """True if Pearson's chi-square lies five standard deviations above its mean."""
    expected = probabilities * counts.sum()
    common = expected >= 5
    rest = torch.tensor([expected[~common].sum()]), torch.tensor([counts[~common].sum()])
    expected = torch.cat([expected[common], rest[0]])
    counts = torch.cat([counts[common], rest[1]])
    keep = expected > 0
    assert not counts[~keep].any()
    chi = float(((counts - expected) ** 2 / expected.where(keep, torch.ones(())))[keep].sum())
    freedom = int(keep.sum()) - 1
    return chi > freedom + 5 * math.sqrt(2 * freedom)


def first_tokens(adapters, count=4000, **sampling):
    (own,) = draw(
        adapters,
        prompts=PROMPTS[:1],
        keys=["x"],
        k=count,
        max_new_tokens=1,
        batch_size=count,
        **sampling,
    )
    vocabulary = adapters.base.model.config.vocab_size
    return torch.bincount(torch.tensor([one.ids[0] for one in own]), minlength=vocabulary).double()


def test_the_first_token_has_the_softmax_distribution_at_each_temperature(adapters):
    logits = first_token_logits(adapters, PROMPTS[0])
    counts = {t: first_tokens(adapters, temperature=t) for t in (0.5, 1.0, 1.5)}
    for temperature, own in counts.items():
        assert not too_far(own, (logits / temperature).softmax(0))
    assert too_far(counts[0.5], logits.softmax(0)), "the bound is sharp enough to see a temperature"
    assert too_far(counts[1.5], logits.softmax(0))


def test_top_p_keeps_the_smallest_set_that_holds_the_mass(adapters):
    probabilities = first_token_logits(adapters, PROMPTS[0]).softmax(0)
    kept, mass = [], 0.0
    for token in probabilities.argsort(descending=True).tolist():
        if mass >= 0.6:
            break
        kept.append(token)
        mass += float(probabilities[token])
    assert 3 < len(kept) < 200
    nucleus = torch.zeros_like(probabilities)
    nucleus[kept] = probabilities[kept] / mass
    counts = first_tokens(adapters, top_p=0.6)
    assert counts[nucleus == 0].sum() == 0
    assert not too_far(counts, nucleus)


def test_a_tiny_top_p_is_greedy(adapters):
    assert draw(adapters, top_p=1e-6) == draw(adapters, temperature=0)


@pytest.mark.parametrize(
    ("uniform", "token"), [(0.0, 1), (0.24, 1), (0.26, 2), (0.74, 2), (0.76, 4), (1 - 2**-53, 4)]
)
def test_a_token_is_the_inverted_distribution_function(uniform, token):
    """Probabilities 0, 1/4, 1/2, 0, 1/4, 0: an impossible token never comes, at either end."""
    logits = torch.tensor([[0, 1 / 4, 1 / 2, 0, 1 / 4, 0]]).log()
    found = rollout._pick(logits, Sampling(), torch.tensor([uniform], dtype=torch.float64))
    assert found.tolist() == [token]


def test_recomputed_logprobs_are_those_of_the_sampler(adapters, monkeypatch):
    """The decode loop's cached, left-padded forward and the training forward agree in fp32."""
    seen = []
    pick = rollout._pick

    def spy(logits, sampling, uniform, shaping):
        chosen = pick(logits, sampling, uniform, shaping)
        seen.append(logits.log_softmax(-1).gather(-1, chosen[:, None])[:, 0])
        return chosen

    monkeypatch.setattr(rollout, "_pick", spy)
    with_stops(adapters, frozenset())
    own = draw(adapters, k=2, max_new_tokens=10)
    order = sorted(range(5), key=lambda i: -len(PROMPTS[i]))
    examples = [Example(PROMPTS[i], one.ids) for i in order for one in own[i]]
    batch = collate(adapters.base, examples)
    again, _ = logprobs(adapters, "policy", batch, micro_batch_size=3)
    assert torch.allclose(torch.stack(seen, 1), again, atol=1e-4)
    other, _ = logprobs(adapters, "sft", batch, micro_batch_size=3)
    assert not torch.allclose(again, other, atol=1e-2)


# --- roles ----------------------------------------------------------------------------------------


def test_sampling_in_train_mode_is_refused(adapters):
    with pytest.raises(RuntimeError, match="train mode"), adapters.training():
        draw(adapters)


def test_only_the_given_role_speaks(adapters):
    own = {role: draw(adapters, role) for role in ("policy", "sft", None)}
    assert len({tuple(map(tuple, one)) for one in own.values()}) == 3
    assert adapters.active is None
    with torch.no_grad():
        for p in adapters.parameters("policy").values():
            p.add_(0.3)
    assert draw(adapters, "sft") == own["sft"]
    assert draw(adapters, None) == own[None]
    assert draw(adapters, "policy") != own["policy"]
    with torch.no_grad(), adapters.using("policy"):
        inside = draw(adapters, "sft")
        assert adapters.active == "policy"
    assert inside == own["sft"]


def test_scores_do_not_depend_on_their_batch(adapters):
    head = ScalarHead(128, seed=1)
    drawn = zip(PROMPTS, draw(adapters, k=3), strict=True)
    examples = [Example(p, one.ids) for p, own in drawn for one in own]
    one_by_one = score(adapters, "sft", head, examples, batch_size=1)
    assert one_by_one.std() > 0.1
    for size in (2, 4, 100):
        assert torch.allclose(
            score(adapters, "sft", head, examples, batch_size=size), one_by_one, atol=1e-5
        )
    batch = collate(adapters.base, examples)
    found = scoring.scores(adapters, "sft", head, batch, micro_batch_size=4)
    assert torch.allclose(found, one_by_one, atol=1e-5)


# --- out of memory --------------------------------------------------------------------------------


def test_sampling_goes_on_in_smaller_groups_with_the_same_tokens(tiny, monkeypatch, caplog):
    adapters = tiny("sft")
    prompts = [(1, 100 + i, 7) for i in range(9)]
    keys = [f"p{i}" for i in range(9)]
    wide = Sampling(max_new_tokens=6, batch_size=16)

    def draw():
        return sample(adapters, "sft", prompts, keys, k=2, sampling=wide, seed=3)

    whole = draw()
    rearrange, sizes = rollout._Batch.rearrange, []

    def full(batch, prompts, *rest):
        sizes.append(len(prompts))
        if len(prompts) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return rearrange(batch, prompts, *rest)

    monkeypatch.setattr(rollout._Batch, "rearrange", full)
    assert draw() == whole
    assert sizes[:2] == [8, 4] and max(sizes[2:]) == 2 and sum(sizes[2:]) == 9
    assert "out of memory with 8 at once; continuing with 4" in caplog.text


def test_prompts_that_were_done_before_memory_ran_out_are_not_sampled_again(tiny, monkeypatch):
    adapters, told, sizes = tiny("sft"), [], []
    with_stops(adapters, frozenset())
    prompts, keys = [(1, 100 + i, 7) for i in range(9)], [f"p{i}" for i in range(9)]
    four = Sampling(max_new_tokens=6, batch_size=4)

    def draw():
        return sample(adapters, "sft", prompts, keys, sampling=four, seed=3, on_batch=told.append)

    whole = draw()
    told.clear()
    rearrange = rollout._Batch.rearrange

    def full_once(batch, prompts, *rest):
        sizes.append(len(prompts))
        if len(sizes) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return rearrange(batch, prompts, *rest)

    monkeypatch.setattr(rollout._Batch, "rearrange", full_once)
    assert draw() == whole
    assert sizes[:3] == [4, 4, 2] and sum(sizes[2:]) == 5
    assert sum(told) == 9


def test_where_not_one_prompt_fits_it_is_one_line(tiny, monkeypatch):
    def full(*_):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr(rollout._Batch, "rearrange", full)
    with pytest.raises(UserError, match="out of memory with one at a time"):
        sample(tiny("sft"), "sft", [(1, 5)] * 4, list("abcd"), sampling=Sampling(), seed=0)


def test_scoring_goes_on_in_smaller_groups_with_the_same_scores(tiny, monkeypatch):
    adapters = tiny("reward")
    head = ScalarHead(adapters.base.model.config.hidden_size, seed=7)
    examples = [Example((1, 100 + i), (200 + i, 2)) for i in range(7)]
    whole = score(adapters, "reward", head, examples, batch_size=7)
    scores = scoring.completion_scores

    def full(adapters, head, batch):
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return scores(adapters, head, batch)

    monkeypatch.setattr(scoring, "completion_scores", full)
    assert torch.allclose(score(adapters, "reward", head, examples, batch_size=7), whole, atol=1e-6)
