"""The program that `test_processes.py` runs in one process and in two.

`python together.py BASE OUT STAGE...`

Writes OUT/<stage>-<process>.pt: gradients of every optimiser step, final weights, logged rows.
"""

import sys
from pathlib import Path

import torch

from alpaca_rlhf.core import processes
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.models.base import load_base
from alpaca_rlhf.settings import DPO, GRPO, PPO, SFT, Clip, Reward, Sampling, Value
from alpaca_rlhf.training.best_of_k import choose
from alpaca_rlhf.training.candidates import draw, rescore
from alpaca_rlhf.training.dpo import (
    ReferencedGroup,
    micro_batch,
    reference_logprobs,
    train_dpo,
)
from alpaca_rlhf.training.group_policy import train_in_groups
from alpaca_rlhf.training.grpo import grpo_method
from alpaca_rlhf.training.loop import Checkpoints, Learner
from alpaca_rlhf.training.ppo import train_ppo
from alpaca_rlhf.training.reward import train_reward
from alpaca_rlhf.training.sft import train_sft
from tests.conftest import with_adapters
from tests.test_faults import rankings
from tests.test_ppo import cast as ppo_cast
from tests.test_ppo import prompts as ppo_prompts
from tests.test_sft import examples


def sft(adapters, folder, log):
    """Batches of 5, 5 and 1: shares are uneven, and once empty."""
    settings = SFT(
        lr=1e-3, epochs=2, batch_size=5, micro_batch_size=2, warmup=0.0, save_every=2, patience=2
    )
    result = train_sft(
        adapters,
        "sft",
        examples(11),
        examples(3, seed=1),
        settings,
        seed=0,
        checkpoints=Checkpoints(folder),
        log=log,
    )
    return adapters.parameters("sft"), result


def reward(adapters, folder, log):
    """Batches of 3 and 1."""
    settings = Reward(lr=1e-3, head_lr=1e-3, epochs=2, batch_size=3, warmup=0.0, save_every=1)
    head, result = train_reward(
        adapters,
        "reward",
        rankings(4),
        rankings(3, seed=1),
        settings,
        seed=0,
        checkpoints=Checkpoints(folder),
        log=log,
    )
    return adapters.parameters("reward") | {"head": head.weight}, result


def ppo(adapters, folder, log, trunk="detached"):
    """Batches of 9 completions, minibatches of 3."""
    settings = PPO(
        updates=2,
        batch_size=9,
        minibatch_size=3,
        micro_batch_size=2,
        epochs=2,
        lr=1e-3,
        max_new_tokens=8,
        value=Value(trunk=trunk, lr=1e-3, warmup=0),
        save_every=1,
        clip=Clip(kl_stop=100.0),
    )
    adapters, head = ppo_cast(lambda *names: adapters)
    train_ppo(
        adapters,
        head,
        ppo_prompts(9),
        settings,
        seed=0,
        rollout_batch_size=16,
        checkpoints=Checkpoints(folder),
        log=log,
    )
    value = adapters.parameters("value") if trunk == "separate" else {}
    named = {f"value {key}": p for key, p in value.items()}
    return adapters.parameters("policy") | named, None


def ppo_separate(adapters, folder, log):
    """The same with an adapter for the value."""
    return ppo(adapters, folder, log, trunk="separate")


def best_of_k(adapters, folder, log):
    """The winners of seven prompts, of three completions each."""
    adapters, head = ppo_cast(lambda *names: adapters)
    asked = ppo_prompts(7)
    drawn = draw(
        adapters,
        "policy",
        [one.ids for one in asked],
        [one.key for one in asked],
        k=3,
        sampling=Sampling(max_new_tokens=8),
        seed=0,
        score_candidates=lambda pool: rescore(adapters, head, pool, batch_size=4),
    )
    winners = choose(drawn)
    settings = SFT(lr=1e-3, epochs=3, batch_size=4, micro_batch_size=1, warmup=0.0)
    result = train_sft(
        adapters,
        "policy",
        winners.examples,
        [],
        settings,
        seed=0,
        checkpoints=Checkpoints(folder),
        log=log,
        stage="best_of_k",
    )
    return adapters.parameters("policy"), (result, drawn, winners)


def dpo(adapters, folder, log):
    """Batches of 3 rankings and 1, against a reference that each process computes a share of."""
    settings = DPO(lr=1e-3, epochs=2, batch_size=3, warmup=0.0, save_every=1)
    groups = [*rankings(4), *rankings(3, seed=1)]
    references = reference_logprobs(adapters, groups, micro_batch("dpo", settings))
    rows = [ReferencedGroup(*pair) for pair in zip(groups, references, strict=True)]
    result = train_dpo(
        adapters,
        "policy",
        rows[:4],
        rows[4:],
        settings,
        seed=0,
        checkpoints=Checkpoints(folder),
        log=log,
    )
    return adapters.parameters("policy"), (result, references)


def grpo(adapters, folder, log):
    """Three groups of three completions, minibatches of 3."""
    settings = GRPO(
        updates=2,
        prompts=3,
        k=3,
        minibatch_size=3,
        micro_batch_size=2,
        lr=1e-3,
        max_new_tokens=8,
        save_every=1,
    )
    adapters, head = ppo_cast(lambda *names: adapters)
    train_in_groups(
        adapters,
        head,
        ppo_prompts(3),
        grpo_method(settings),
        seed=0,
        rollout_batch_size=16,
        checkpoints=Checkpoints(folder),
        log=log,
    )
    return adapters.parameters("policy"), None


STAGES = {
    "sft": sft,
    "reward": reward,
    "ppo": ppo,
    "ppo_separate": ppo_separate,
    "best_of_k": best_of_k,
    "dpo": dpo,
    "grpo": grpo,
}


def refusing(out):
    """A refusal of the main process alone, which all repeat, and the answers that each saw."""
    seen = []

    def work():
        seen.append(processes.count())
        raise UserError("the main one refuses")

    try:
        processes.by_main(work)
    except UserError as error:
        seen.append(str(error))
    seen.append(processes.any_of(processes.index() == 1))
    seen.append(processes.from_main(lambda: [processes.count(), "the main one's"]))
    processes.wait()
    torch.save(seen, out / f"refusing-{processes.index()}.pt")


def go(base, out, stages):
    for stage in stages:
        gradients, rows = [], []
        step = Learner.step

        def spy(learner, step=step, gradients=gradients):
            def look(*_):
                own = sorted(learner.parameters.items())
                gradients.append(torch.cat([p.grad.flatten().double() for _, p in own]))

            learner.max_grad_norm = 1e9  # so that nothing is clipped before we look
            hook = learner.optimizer.register_step_pre_hook(look)
            found = step(learner)
            hook.remove()
            return found

        Learner.step = spy
        adapters = with_adapters(
            load_base(str(base), dtype=torch.float32),
            *("sft", "policy", "reward"),
            trained=True,
        )
        try:
            weights, result = STAGES[stage](adapters, out / stage, rows.append)
        finally:
            Learner.step = step
        weights = {key: p.detach().clone() for key, p in weights.items()}
        found = {"gradients": gradients, "weights": weights, "rows": rows, "result": result}
        torch.save(found, out / f"{stage}-{processes.index()}.pt")


if __name__ == "__main__":
    processes.join()
    go(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    refusing(Path(sys.argv[2]))
