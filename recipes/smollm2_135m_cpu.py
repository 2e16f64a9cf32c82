"""SmolLM2 135M without a graphics card: a real LLaMA, unattended, judged by rules.

    alpaca-rlhf base get smollm2                   the weights, 98 MB, once
    python recipes/smollm2_135m_cpu.py --quick     a first look: a twelfth of it
    python recipes/smollm2_135m_cpu.py             the experiment, an hour or two
    python recipes/smollm2_135m_cpu.py --dry-run   the plan, and every stage on a tiny random model
    python recipes/smollm2_135m_cpu.py --policies ppo best-of-k dpo grpo rloo    all five policies

The judge checks what prompts ask for ("in two sentences", "no commas"); the kit brings the prompts.
Its numbers stand, with their reasons, in alpaca_rlhf/settings/smollm2.py; flags change any of them.
`--inputs.judge human` and files of your own let you rank instead.
"""

import sys
from dataclasses import replace
from pathlib import Path

from alpaca_rlhf.cli.main import recipe
from alpaca_rlhf.settings.smollm2 import SMOLLM2_135M

EXPERIMENT = SMOLLM2_135M  # or dataclasses.replace(SMOLLM2_135M, seed=1, out=Path("runs/mine"))

SHORTER = 64  # most answers fit; in a first look the few that do not count as unfinished

QUICK = replace(
    EXPERIMENT,
    out=Path("runs/smollm2_135m_quick"),
    generate=replace(EXPERIMENT.generate, target=120),
    sampling=replace(EXPERIMENT.sampling, max_new_tokens=SHORTER),
    sft=replace(EXPERIMENT.sft, batch_size=4),
    rank=replace(EXPERIMENT.rank, prompts=32),
    reward=replace(EXPERIMENT.reward, batch_size=4),
    ppo=replace(EXPERIMENT.ppo, updates=3, batch_size=16, minibatch_size=8, max_new_tokens=SHORTER),
    best_of_k=replace(EXPERIMENT.best_of_k, prompts=12),
    dpo=replace(EXPERIMENT.dpo, batch_size=4),
    grpo=replace(EXPERIMENT.grpo, updates=3, prompts=4, minibatch_size=8, max_new_tokens=SHORTER),
    rloo=replace(EXPERIMENT.rloo, updates=3, prompts=4, minibatch_size=8, max_new_tokens=SHORTER),
    evaluate=replace(EXPERIMENT.evaluate, prompts=28, rerank=False),
)
"""A twelfth of it: what SFT buys, and all other stages at work, with too little to gain from."""

if __name__ == "__main__":
    sys.exit(recipe(EXPERIMENT, __doc__, architecture="smollm2-135m", card="cpu", quick=QUICK))
