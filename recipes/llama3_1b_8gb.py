"""Llama 3.2 1B on one 8 GB card: SFT, ranking by people, reward model, PPO and best-of-4.

    python recipes/llama3_1b_8gb.py --dry-run      the plan, and every stage on a tiny random model
    python recipes/llama3_1b_8gb.py                stops when it is your turn to rank
    alpaca-rlhf app --run runs/llama3_1b           rank in the browser, in many sittings if you like
    python recipes/llama3_1b_8gb.py                goes on to the report

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
    base="meta-llama/Llama-3.2-1B",  # gated: accept its licence on the hub, then `hf auth login`
    template="alpaca",
    out=Path("runs/llama3_1b"),
    inputs=Inputs(
        data=Path("my/instructions.jsonl"),  # instruction, input, output
        prompts=Path("my/prompts.jsonl"),  # 1,300 that lie near none of them: 500 + 500 + 300
        judge="human",
    ),
    lora=Lora(r=16, alpha=32),
    # Keys and values take 32 KiB a token: 32 completions of 512 tokens, half a GiB. A 16-bit copy
    # of the base (1.8 GiB) makes sampling twice as fast.
    sampling=Sampling(max_new_tokens=256, batch_size=32),
    sft=SFT(lr=3e-4, epochs=3, micro_batch_size=8, max_length=512),
    rank=Rank(prompts=500, k=4),  # about 45 s each
    reward=Reward(lr=2e-4, micro_batch_size=2),  # 8 completions at once
    ppo=PPO(updates=40, batch_size=256, minibatch_size=64, micro_batch_size=8, kl_coef=0.02),
    best_of_k=BestOfK(k=4, prompts=500, lr=2e-4, epochs=2),
    evaluate=Evaluate(prompts=300),
)

if __name__ == "__main__":
    sys.exit(recipe(EXPERIMENT, __doc__, architecture="llama-3.2-1b", card="8"))
