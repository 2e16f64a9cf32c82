"""The quickstart as a script: the whole loop on the embedded base, in minutes, offline.

    python recipes/quickstart.py                    the same as `alpaca-rlhf quickstart`
    python recipes/quickstart.py --ppo.kl-coef 0.05 --out runs/loose-anchor

Its numbers stand, with their reasons, in alpaca_rlhf/settings/quickstart.py. To try others
give flags, or copy this file and change EXPERIMENT.
"""

import sys

from alpaca_rlhf.cli.main import recipe
from alpaca_rlhf.settings.quickstart import QUICKSTART

EXPERIMENT = QUICKSTART  # or dataclasses.replace(QUICKSTART, seed=1, out=Path("runs/mine"))

E = EXPERIMENT
STAGES = f"""
 generate   {E.generate.target} tasks by the base itself, in the manner of {E.generate.seeds} seeds
 sft        {E.sft.epochs} passes over both, learning rate {E.sft.lr:g}
 sample     {E.rank.k} completions for each of {E.rank.prompts} new prompts
 rank       by the gold judge, {E.rank.noise:.0%} of its verdicts wrong on purpose
 reward     {E.reward.epochs} pass over all pairs; the control learns from shuffled verdicts
 ppo        {E.ppo.updates} updates of {E.ppo.batch_size} completions, KL weight {E.ppo.kl_coef:g}
 best_of_k  the reward model's favourite of {E.best_of_k.k} for {E.best_of_k.prompts} prompts
 evaluate   every policy on {E.evaluate.prompts} prompts that no stage has seen
"""

if __name__ == "__main__":
    sys.exit(recipe(EXPERIMENT, f"{__doc__}{STAGES}", kind="quickstart"))
