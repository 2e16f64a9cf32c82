"""The noisy judge: right without noise, consistent, repeatable, and wrong as often as it says."""

import random
from collections import Counter

import pytest

from alpaca_rlhf.core.records import Completion, Instruction, Ranking
from alpaca_rlhf.preferences import Judge, ScoreJudge, dispersion, wrong_share


def completions(prompt: Instruction, count: int = 4) -> list[Completion]:
    return [Completion(prompt.id, f"answer {i}", sample=i) for i in range(count)]


def rankings(
    noise: float,
    prompts: int,
    k: int = 4,
    levels: int = 10_000,
    tie_below: float = 0.0,
    seed: int = 0,
):
    rng = random.Random(7)
    scores: dict[str, float] = {}
    judge = ScoreJudge("gold", lambda _, one: scores[one.id], noise, tie_below, seed)
    made = []
    for i in range(prompts):
        prompt = Instruction(f"prompt {i}")
        answers = completions(prompt, k)
        scores.update({one.id: rng.randrange(levels) / levels for one in answers})
        made.append(judge.rank(prompt, answers))
    return made, scores


def test_without_noise_the_order_is_that_of_the_scores_and_near_scores_tie() -> None:
    prompt = Instruction("p")
    answers = completions(prompt, 5)
    scores = dict(zip((one.id for one in answers), (0.5, 0.9, 0.48, 0.88, 0.46), strict=True))
    judge: Judge = ScoreJudge("gold", lambda _, one: scores[one.id], tie_below=0.03)
    ranking = judge.rank(prompt, answers)
    by_text = {one.id: one.text[-1] for one in answers}
    tiers = [{by_text[one] for one in tier} for tier in ranking.tiers]
    assert tiers == [
        {"1", "3"},
        {"0", "2"},
        {"4"},
    ]  # 0.46 is 0.04 below the best of its neighbours' tier
    assert ranking.annotator == "judge:gold" and ranking.prompt_id == prompt.id
    assert wrong_share([ranking], scores) == 0


def test_equal_scores_tie_even_without_a_margin() -> None:
    prompt = Instruction("p")
    ranking = ScoreJudge("gold", lambda *_: 0.5, noise=0.3).rank(prompt, completions(prompt))
    assert len(ranking.tiers) == 1


@pytest.mark.parametrize(("k", "noise"), [(4, 0.08), (4, 0.05), (2, 0.08), (9, 0.2), (3, 0.45)])
def test_the_share_of_wrong_verdicts_is_the_noise(k: int, noise: float) -> None:
    share = wrong_share(*rankings(noise, 1500, k))
    assert 0.8 * noise <= share <= 1.3 * noise


@pytest.mark.parametrize("seed", range(5))
def test_the_share_holds_with_ties_and_a_few_hundred_prompts(seed: int) -> None:
    made, scores = rankings(0.08, 400, levels=8, tie_below=0.03, seed=seed)
    assert any(len(tier) > 1 for ranking in made for tier in ranking.tiers)
    assert 0.8 * 0.08 <= wrong_share(made, scores) <= 1.3 * 0.08


def test_repeatable_whatever_the_order_and_changed_by_the_seed() -> None:
    prompt = Instruction("p")
    answers = completions(prompt)
    judge = ScoreJudge("gold", lambda _, one: one.sample, noise=0.4)
    assert judge.rank(prompt, answers) == judge.rank(prompt, answers[::-1])
    first, _ = rankings(0.3, 50)
    again, _ = rankings(0.3, 50)
    other, _ = rankings(0.3, 50, seed=1)
    assert first == again != other


def test_near_ranks_are_mistaken_more_often_than_far_ones() -> None:
    prompt_count = 3000
    turned: Counter[tuple[int, int]] = Counter()
    judge = ScoreJudge("gold", lambda _, one: -one.sample, noise=0.1)
    for i in range(prompt_count):
        prompt = Instruction(f"prompt {i}")
        sample = {one.id: one.sample for one in completions(prompt)}
        order = [sample[tier[0]] for tier in judge.rank(prompt, completions(prompt)).tiers]
        turned.update(
            (a, b) for a in range(4) for b in range(a + 1, 4) if order.index(a) > order.index(b)
        )
    assert min(turned[0, 1], turned[1, 2], turned[2, 3]) > 2 * turned[0, 3]
    assert sum(turned.values()) / (6 * prompt_count) == pytest.approx(0.1, abs=0.01)


def test_dispersion_by_hand() -> None:
    # Two tiers are turned round with probability q / (1 + q).
    assert dispersion(2, 0.2) == pytest.approx(0.25)
    assert dispersion(1, 0.2) == dispersion(4, 0.0) == 0
    # Three tiers: (q / (1 + q) + (q + 2 q^2) / (1 + q + q^2)) / 3 pairs, at q = 1/2:
    assert dispersion(3, (1 / 3 + 4 / 7) / 3) == pytest.approx(0.5)


def test_wrong_share_by_hand() -> None:
    scores = {"a": 3.0, "b": 2.0, "c": 2.0, "d": 1.0}
    # b>a wrong, b=c not counted, b>d right, a>c right, a>d right, c>d right
    assert wrong_share(
        [Ranking("p", (("b",), ("a",), ("c",), ("d",)), "x")], scores
    ) == pytest.approx(1 / 5)
    assert wrong_share([Ranking("p", (("a", "d"), ("b",)), "x")], scores) == pytest.approx(1 / 2)
    assert wrong_share([], scores) == 0


def test_misuse_is_refused() -> None:
    prompt = Instruction("p")
    with pytest.raises(ValueError, match=r"below 0\.5"):
        ScoreJudge("gold", lambda *_: 0.0, noise=0.5)
    with pytest.raises(ValueError, match="at least 2 completions"):
        ScoreJudge("gold", lambda *_: 0.0).rank(prompt, completions(prompt, 1))
    with pytest.raises(ValueError, match="belongs to prompt"):
        ScoreJudge("gold", lambda *_: 0.0).rank(prompt, completions(Instruction("q")))
    with pytest.raises(ValueError, match="scores nan"):
        ScoreJudge("gold", lambda *_: float("nan")).rank(prompt, completions(prompt))
