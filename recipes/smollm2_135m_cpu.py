"""SmolLM2 135M without a graphics card: a real small LLaMA from the hub, and you rank.

    python recipes/smollm2_135m_cpu.py --dry-run   the plan, and every stage on a tiny random model
    python recipes/smollm2_135m_cpu.py             stops when it is your turn to rank
    alpaca-rlhf app --run runs/smollm2_135m        rank in the browser, in many sittings if you like
    python recipes/smollm2_135m_cpu.py             goes on to the report

Flags change any number. See recipes/README.md for what it needs.
"""

import sys
from pathlib import Path

from alpaca_rlhf.cli.main import recipe
from alpaca_rlhf.settings import (
    PPO,
    SFT,
    BestOfK,
    Evaluate,
    Inputs,
    Loop,
    Lora,
    Rank,
    Reward,
    Sampling,
)

EXPERIMENT = Loop(
    base="HuggingFaceTB/SmolLM2-135M",  # Apache-2.0, 0.3 GB, no account needed
    template="alpaca",
    out=Path("runs/smollm2_135m"),
    inputs=Inputs(
        data=Path("my/instructions.jsonl"),  # instruction, input, output
        prompts=Path("my/prompts.jsonl"),  # 350 that lie near none of them: 150 + 120 + 80
        judge="human",
    ),
    lora=Lora(r=16, alpha=32),
    sampling=Sampling(max_new_tokens=64, batch_size=32),  # a processor is busy with 32 at once
    # A small base learns from larger steps than a 7B one.
    sft=SFT(lr=1e-3, epochs=2, batch_size=16, micro_batch_size=4, max_length=256),
    rank=Rank(prompts=150, k=4),  # two hours of yours
    reward=Reward(lr=5e-4, batch_size=8, micro_batch_size=2, max_length=256),
    ppo=PPO(
        updates=10,
        batch_size=64,
        minibatch_size=32,
        micro_batch_size=8,
        lr=2e-4,
        kl_coef=0.1,
        max_new_tokens=64,
    ),
    best_of_k=BestOfK(k=4, prompts=120, lr=3e-4, epochs=2),
    evaluate=Evaluate(prompts=80, watts=65.0),
)

if __name__ == "__main__":
    sys.exit(recipe(EXPERIMENT, __doc__, architecture="smollm2-135m", card="cpu"))
