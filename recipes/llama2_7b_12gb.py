"""Llama 2 7B on one 12 GB card: SFT, ranking by people, reward model, PPO and best-of-4.

    python recipes/llama2_7b_12gb.py --dry-run     the plan, and every stage on a tiny random model
    python recipes/llama2_7b_12gb.py               stops when it is your turn to rank
    alpaca-rlhf app --run runs/llama2_7b_12gb      rank in the browser, in many sittings if you like
    python recipes/llama2_7b_12gb.py               goes on to the report

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
    base="meta-llama/Llama-2-7b-hf",  # gated: accept its licence on the hub, then `hf auth login`
    template="alpaca",
    out=Path("runs/llama2_7b_12gb"),
    inputs=Inputs(
        data=Path("my/instructions.jsonl"),  # instruction, input, output
        prompts=Path("my/prompts.jsonl"),  # 1,000 that lie near none of them: 400 + 400 + 200
        judge="human",
    ),
    lora=Lora(r=16, alpha=32),
    # Keys and values take 512 KiB a token: 8 completions of 448 tokens, 1.75 GiB.
    sampling=Sampling(max_new_tokens=192, batch_size=8),
    # The same batches as on 24 GB, in smaller parts: the results are the same.
    sft=SFT(lr=2e-4, epochs=3, micro_batch_size=2, max_length=512),
    rank=Rank(prompts=400, k=4),  # about 45 s each
    reward=Reward(lr=1e-4, micro_batch_size=1, max_length=448),
    ppo=PPO(
        updates=40,
        batch_size=128,
        minibatch_size=64,
        micro_batch_size=2,
        max_new_tokens=192,
        kl_coef=0.02,
    ),
    best_of_k=BestOfK(k=4, prompts=400, lr=1e-4, epochs=2),
    evaluate=Evaluate(prompts=200),
)

if __name__ == "__main__":
    sys.exit(recipe(EXPERIMENT, __doc__, architecture="llama-2-7b", card="12"))
