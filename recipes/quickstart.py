"""The quickstart as a script: the whole loop on the embedded base, in minutes, offline.

    python recipes/quickstart.py                    the same as `alpaca-rlhf quickstart`
    python recipes/quickstart.py --ppo.kl-coef 0.05 --out runs/loose-anchor

Its numbers stand, with their reasons, in alpaca_rlhf/quickstart.py. To try others, give flags, or
copy this file and change EXPERIMENT.

1. generate     350 new tasks that the base itself writes after the pattern of 175 seed tasks
2. sft          3 passes over seed and generated tasks
3. sample       4 completions for each of 400 new prompts
4. rank         the gold judge orders them, one verdict in twelve wrong on purpose
5. reward       1 pass over all pairs, and a control on shuffled verdicts
6. ppo          20 updates of 64 completions, anchored to sft
7. best_of_k    the reward model's favourite of 4 for 600 prompts, 2 passes
8. evaluate     every policy on 400 prompts that no stage has seen
"""

import sys

from alpaca_rlhf.cli import recipe
from alpaca_rlhf.quickstart import QUICKSTART

EXPERIMENT = QUICKSTART  # or dataclasses.replace(QUICKSTART, seed=1, out=Path("runs/mine"))

if __name__ == "__main__":
    sys.exit(recipe(EXPERIMENT, __doc__, kind="quickstart"))
