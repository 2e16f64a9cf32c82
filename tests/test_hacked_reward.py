"""A reward that pays for length, on the embedded base: the policy ruins itself, and looks save it.

A right answer is worth more with each sentence, up to three, and SFT has mostly seen short ones, so
that length is good at first. Every update's policy is scored on prompts of `eval`, which chose
nothing. The looks see prompts of `dev` alone, and looking changes nothing that is learned
(`test_watching.py`), so one run is both: unwatched it ends at its last update, watched at the one
that the looks keep.
"""

import random
import re
from pathlib import Path

from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.base import load_base
from alpaca_rlhf.models.batches import answer, prompt_ids
from alpaca_rlhf.settings import RLOO, SFT, Lora, Sampling
from alpaca_rlhf.smallworld import GoldJudge, answered_task, recognise
from alpaca_rlhf.sources.small_world import SmallWorld
from alpaca_rlhf.training.group_policy import train_in_groups
from alpaca_rlhf.training.loop import Checkpoints
from alpaca_rlhf.training.rloo import rloo_method
from alpaca_rlhf.training.rollouts import RolloutPrompt, sample_from_policy
from alpaca_rlhf.training.sft import encode, train_sft
from alpaca_rlhf.training.watching import Watch

TOKENS = 48
MOSTLY_SHORT = {"terse": 0.4, "sentence": 0.4, "extra": 0.1, "polite": 0.1}
SIZES = {"ppo": 400, "eval": 192, "dev": 96}


def short_answers(rows, seed):
    """Rows with right answers, four fifths of them short, whatever they ask for."""
    rng = random.Random(seed)
    return [
        answered_task(recognise(row.instruction, row.input), rng, MOSTLY_SHORT, followed=0)
        for row in rows
    ]


def worth(row, completion, finished):
    """Score of a completion in [0, 1]: 0 if it is wrong, does not stop or repeats itself."""
    task = recognise(row.instruction, row.input)
    verdict = GoldJudge().verdict(task, completion, finished)
    sentences = re.findall(r"[^.!?]+[.!?]*", completion)
    return 0.0 if verdict.penalty else verdict.correct * min(len(sentences), 3) / 3


def length(prompts, completions):
    """A judge that pays for tokens and for nothing else."""
    return [(len(completion.ids) - 12) / 6 for completion in completions]


def course_of(seed: int, folder: Path) -> tuple[list[float], int]:
    """Mean worth on `eval` from SFT on, update by update; and the update that is kept."""
    world = SmallWorld(seed, 300, SIZES)
    adapters = Adapters(load_base("embedded"), Lora(), template="brief")
    base, rows = adapters.base, {}

    def tokenized(split):
        rows.update({row.id: row for row in world.prompts(split)})
        return [
            RolloutPrompt(row.id, prompt_ids(base, "brief", row)) for row in world.prompts(split)
        ]

    def judge(prompts, completions):
        return [
            worth(rows[p.key], answer(base, "brief", c.ids), c.finished)
            for p, c in zip(prompts, completions, strict=True)
        ]

    # 1. A short SFT.
    adapters.add("sft", seed=seed)
    examples = encode(adapters, short_answers(world.unanswered(), seed), 512).examples
    sft = SFT(lr=4e-3, epochs=2, batch_size=8, micro_batch_size=8)
    checkpoints = Checkpoints(folder / "sft")
    train_sft(
        adapters,
        "sft",
        examples,
        [],
        sft,
        seed=seed,
        checkpoints=checkpoints,
        log=lambda row: None,
    )
    adapters.add("policy", copy_of="sft")

    # 2. RLOO against length, without a KL term, with a look after every update.
    held_out, course = tokenized("eval"), []
    sampling = Sampling(max_new_tokens=TOKENS, batch_size=256)

    def measure(_row=None):
        completions = sample_from_policy(adapters, held_out, 0, sampling=sampling, seed=seed)
        scores = judge(held_out, completions)
        course.append(sum(scores) / len(scores))

    measure()
    looks = Watch(tokenized("dev"), judge, every=1, patience=0)
    numbers = RLOO(
        updates=10,
        prompts=16,
        k=4,
        minibatch_size=64,
        micro_batch_size=32,
        lr=2e-3,
        kl_coef=0.0,
        missing_eos_score=-2.0,
        max_new_tokens=TOKENS,
    )
    train_in_groups(
        adapters,
        length,
        tokenized("ppo"),
        rloo_method(numbers),
        seed=seed,
        rollout_batch_size=256,
        checkpoints=Checkpoints(folder / "rloo"),
        log=measure,
        watch=looks,
    )
    assert looks.kept_step is not None
    return course, looks.kept_step


def test_a_reward_of_length_ruins_what_looks_keep(tmp_path):
    """Of the best gain half is lost at the end, and four fifths are kept by the looks."""
    course, kept = course_of(0, tmp_path)
    gains = [score - course[0] for score in course]
    best = max(gains)
    assert best > 0.03, course
    assert gains[-1] <= 0.5 * best, course
    assert gains[kept] >= 0.8 * best, (course, kept)
