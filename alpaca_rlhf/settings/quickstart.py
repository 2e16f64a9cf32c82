"""The numbers of the quickstart: the whole loop on the embedded base, minutes on two CPU cores.

`recipes/quickstart.py` and `alpaca-rlhf quickstart` both read them.
All other settings keep the defaults of `loop.py`, which are meant for a 7-8B base.
Alternatives that were tried and measured on the development split: `docs/experiments.md`.
"""

from pathlib import Path
from typing import Any

from alpaca_rlhf.core.bases import EMBEDDED
from alpaca_rlhf.settings import (
    DPO,
    GRPO,
    PPO,
    RLOO,
    SFT,
    BestOfK,
    Clip,
    Evaluate,
    Generate,
    Loop,
    Rank,
    Reward,
    Sampling,
    Value,
)

# Answers in the small world are one to three short sentences: 48 tokens hold them, and a completion
# that runs on is cut early, which saves most of the time.
ANSWER_TOKENS = 48

_IN_GROUPS: dict[str, Any] = {  # as many completions, and steps, as PPO's
    "updates": 9,
    "prompts": 64,
    "minibatch_size": 64,
    "micro_batch_size": 32,
    "lr": 1e-3,
    "missing_eos_score": -2.0,
    "max_new_tokens": ANSWER_TOKENS,
    "clip_score": 3.0,
}

QUICKSTART = Loop(
    base=EMBEDDED,
    template="brief",  # two headings and nothing else: short, and not in the corpus of the base
    out=Path("runs/quickstart"),
    generate=Generate(
        target=300,  # with the seeds 600 rows, enough to learn the format
        seeds=300,
        batch_size=64,
        temperature=0.8,  # more right answers than at 1.0, more styles than at 0.7
        max_new_tokens=96,  # two or three tasks a worksheet
    ),
    # An adapter on a few million weights learns far from where one on 7B does: about twenty times
    # the usual rates, on all of the data at a small batch.
    sft=SFT(lr=4e-3, epochs=3, batch_size=8, micro_batch_size=8),
    sampling=Sampling(max_new_tokens=ANSWER_TOKENS, batch_size=256),
    rank=Rank(
        prompts=900,  # half of the pairs are ties: 600 leave too few to learn from
        k=4,
        noise=0.06,  # at least one verdict in twenty is wrong, as people's are
    ),
    # Small batches and two passes: at 8 and one the form that is asked for is learned by half.
    reward=Reward(
        lr=1e-3,
        head_lr=1e-3,
        epochs=2,
        batch_size=4,
        micro_batch_size=4,
        held_out=0.3,
        control=True,
    ),
    ppo=PPO(
        updates=9,
        batch_size=256,  # at 128 the noise of the gradient costs right answers
        minibatch_size=64,
        micro_batch_size=32,
        epochs=1,
        lr=1e-3,
        kl_coef=0.3,  # at 0.1 right answers are lost
        missing_eos_score=-2.0,  # two standard deviations below SFT's mean: worse than a bad answer
        max_new_tokens=ANSWER_TOKENS,
        value=Value(
            lr=1e-2, warmup=1
        ),  # a head alone: at 1e-3 it comes too late (docs/experiments.md)
        clip=Clip(score=3.0),  # one score must not rule a batch
    ),
    best_of_k=BestOfK(k=4, prompts=480, keep=1.0, lr=1e-3, epochs=2, control=True),
    dpo=DPO(lr=5e-4, batch_size=8, micro_batch_size=8),
    grpo=GRPO(**_IN_GROUPS, kl_coef=0.1),
    rloo=RLOO(**_IN_GROUPS, kl_coef=0.3),
    evaluate=Evaluate(prompts=300, watts=65.0),  # a desktop processor, not a graphics card
)
"""The quickstart's settings."""
