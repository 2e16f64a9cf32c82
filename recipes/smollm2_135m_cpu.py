"""SmolLM2 135M without a graphics card: a real LLaMA, unattended, judged by rules.

    alpaca-rlhf base get smollm2                   the weights, 98 MB, once
    python recipes/smollm2_135m_cpu.py --quick     a first look: a fifth of it
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

QUICK = replace(
    EXPERIMENT,
    out=Path("runs/smollm2_135m_quick"),
    generate=replace(EXPERIMENT.generate, target=300),
    rank=replace(EXPERIMENT.rank, prompts=100),
    ppo=replace(EXPERIMENT.ppo, updates=6, batch_size=40, minibatch_size=20),
    best_of_k=replace(EXPERIMENT.best_of_k, prompts=60),
    grpo=replace(EXPERIMENT.grpo, updates=6, prompts=10, minibatch_size=20),
    rloo=replace(EXPERIMENT.rloo, updates=6, prompts=10, minibatch_size=20),
    evaluate=replace(EXPERIMENT.evaluate, prompts=50),
)
"""A fifth of it: enough to see every stage at work, too little for tight intervals."""

if __name__ == "__main__":
    sys.exit(recipe(EXPERIMENT, __doc__, architecture="smollm2-135m", card="cpu", quick=QUICK))
