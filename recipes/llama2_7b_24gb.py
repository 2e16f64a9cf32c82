"""Llama 2 7B on one 24 GB card: SFT, ranking by people, reward model, PPO and best-of-4.

    python recipes/llama2_7b_24gb.py --dry-run     every stage in a minute, on a tiny random model
    python recipes/llama2_7b_24gb.py               stops when it is your turn to rank
    alpaca-rlhf app --run runs/llama2_7b           rank in the browser, in many sittings if you like
    python recipes/llama2_7b_24gb.py               goes on to the report

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
    out=Path("runs/llama2_7b"),
    inputs=Inputs(
        data=Path("my/instructions.jsonl"),  # instruction, input, output
        prompts=Path("my/prompts.jsonl"),  # 1,300 that lie near none of them: 500 + 500 + 300
        judge="human",
    ),
    lora=Lora(r=16, alpha=32),
    # No grouped-query attention: keys and values take 512 KiB a token, four times Llama 3's, so
    # fewer completions at once: 16 of 512 tokens, 4 GiB.
    sampling=Sampling(max_new_tokens=256, batch_size=16),
    sft=SFT(lr=2e-4, epochs=3, micro_batch_size=4, max_length=512),
    rank=Rank(prompts=500, k=4),  # about 45 s each
    reward=Reward(lr=1e-4, micro_batch_size=1),  # 4 completions at once
    ppo=PPO(updates=40, batch_size=256, minibatch_size=64, micro_batch_size=4, kl_coef=0.02),
    best_of_k=BestOfK(k=4, prompts=500, lr=1e-4, epochs=2),
    evaluate=Evaluate(prompts=300),
)

if __name__ == "__main__":
    sys.exit(recipe(EXPERIMENT, __doc__, architecture="llama-2-7b", card="24"))
