"""The numbers of SmolLM2 135M without a graphics card: a real LLaMA, an hour or two on two cores.

`recipes/smollm2_135m_cpu.py` and the app's *New run* both read them.
All other settings keep the defaults of `loop.py`, which are meant for a 7-8B base.
Alternatives that were tried and measured: `docs/experiments.md`.
"""

from pathlib import Path
from typing import Any

from alpaca_rlhf.core.bases import SMOLLM2
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
    Inputs,
    Loop,
    Lora,
    Rank,
    Reward,
    Sampling,
    Value,
)

ANSWER_TOKENS = 96  # most prompts ask for less; an answer that runs on is no good answer

# An answer that does not stop has the lowest score of all. One in ten does not, and without a limit
# these few would rule every update.
CLIP_SCORE = 2.0

# As many completions as PPO's, in groups whose other scores are the baseline.
GROUPS: dict[str, Any] = {
    "updates": 12,
    "prompts": 20,
    "k": 4,
    "minibatch_size": 40,
    "lr": 2e-4,
    "clip_score": CLIP_SCORE,
    "max_new_tokens": ANSWER_TOKENS,
}

SMOLLM2_135M = Loop(
    base=SMOLLM2,
    template="chat",  # the base is an instruct model: its own template
    out=Path("runs/smollm2_135m"),
    inputs=Inputs(judge="checks"),
    # As published it meets every constraint in 3 answers of 100, too few to learn from. So it
    # drafts plain answers, whose sentences are arranged until they meet the constraints; three
    # drafts of five make an answer that the judge likes.
    generate=Generate(
        recipe="answers",
        edit=True,
        target=900,
        attempts=2,
        min_score=0.6,
        temperature=0.4,
        max_new_tokens=128,
    ),
    lora=Lora(r=16, alpha=32),
    # At temperature 1 so small a model writes gibberish, and gibberish cannot be ranked.
    sampling=Sampling(temperature=0.7, max_new_tokens=ANSWER_TOKENS, batch_size=96),
    # A small base learns from larger and more steps than a 7B one.
    sft=SFT(lr=1e-3, epochs=2, batch_size=8, micro_batch_size=2, max_length=256),
    rank=Rank(prompts=400, k=4, noise=0.0),
    reward=Reward(lr=3e-4, batch_size=8, micro_batch_size=1, max_length=256),
    ppo=PPO(
        updates=12,
        batch_size=80,
        minibatch_size=40,
        micro_batch_size=4,
        epochs=1,
        lr=2e-4,
        kl_coef=0.05,
        clip=Clip(score=CLIP_SCORE),
        max_new_tokens=ANSWER_TOKENS,
        lam=1.0,  # in so few updates the value learns little, so each token has the whole return
        value=Value(lr=5e-3, warmup=1),
    ),
    best_of_k=BestOfK(k=4, prompts=240, keep=0.5, lr=3e-4, epochs=2),
    dpo=DPO(lr=1e-4, batch_size=8, max_length=256),
    grpo=GRPO(**GROUPS),
    rloo=RLOO(**GROUPS),
    evaluate=Evaluate(prompts=200, watts=65.0),
)
"""The settings of SmolLM2 135M."""
