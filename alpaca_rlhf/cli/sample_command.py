"""`alpaca-rlhf sample --run RUN`: fill the app's queue with answers to rank."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from annotated_types import Gt, Interval

from alpaca_rlhf.cli.chat import choose
from alpaca_rlhf.cli.terminal import PROGRAM, Terminal, next_lines
from alpaca_rlhf.core import gpu_lock, quiet
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.preferences.store import Store
from alpaca_rlhf.serving import folders
from alpaca_rlhf.serving.filling import Draws, fill, origin_of
from alpaca_rlhf.serving.manner import Manner
from alpaca_rlhf.serving.served import EndpointModel
from alpaca_rlhf.settings import Loop, Sampler
from alpaca_rlhf.settings.bounds import Bounded, PositiveInt, Seed, Share
from alpaca_rlhf.sources.run_prompts import RunPrompts
from alpaca_rlhf.sources.sampled import queue_sampled
from alpaca_rlhf.sources.verdicts import open_store

ABOUT = "fill the queue of the app with answers to rank, to the prompts of a run's rank split"
_STAGE = "fill"


@dataclass(frozen=True)
class Fill(Bounded):
    """Flags of `alpaca-rlhf sample --run`."""

    run: Path = Path("runs/quickstart")
    """Run folder to take prompts, base and adapters from."""
    db: str | None = None
    """Where the queue is: a file, or postgresql+psycopg://user@host/name; by default
    preferences.db in the run folder."""
    policy: str | None = None
    """Who answers: base, sft, best_of_k, ppo, in later rounds ppo.2 ...; by default the last."""
    k: Annotated[int, Interval(ge=2, le=9), "people rank so many at once"] = 4
    """Answers a prompt; those that say the same are one."""
    n: PositiveInt | None = None
    """Prompts at most; by default all of them."""
    temperature: Annotated[float, Gt(0), "else all answers to a prompt are the same"] = 1.0
    """Divides the logits; at 0 all answers are the same."""
    top_p: Share = 1.0
    """Nucleus mass; 1 keeps the whole distribution."""
    max_new_tokens: PositiveInt | None = None
    """Completion tokens at most; by default as many as in the run."""
    seed: Seed = 0
    """Another seed, other answers."""
    sampler: Sampler = field(default_factory=Sampler)
    """A model behind HTTP that answers instead of --policy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.policy is not None and self.sampler.url is not None:
            raise ValueError("--policy: the model at --sampler.url answers already; leave one out")


def wanted(words: list[str]) -> bool:
    """Whether `sample` means the queue and not the stage of a loop."""
    return any(one == "--run" or one.startswith("--run=") for one in words)


def run(asked: Fill, terminal: Terminal) -> int:
    """Fill the queue; run again it goes on where it stopped.

    Returns:
        The exit code, 0.

    Raises:
        UserError: There is no such run or policy, or no prompts to rank; or the model behind HTTP
            is gone, and what it has written is kept.
    """
    settings = folders.settings_of(asked.run)
    who = _policy(asked) if asked.sampler.url is None else asked.sampler.model
    with open_store(asked.run, asked.db, say=terminal.say) as store:
        terminal.say(
            f"sample: {asked.k} answers of {who} to each prompt of the rank split of "
            f"{asked.run}, for the queue in {store.database.shown}; Ctrl-C at any time, the same "
            "command goes on"
        )
        own = queue_sampled(asked.run, store)
        if own:
            terminal.say(f"  {own} sets that the run has sampled itself are in the queue now")
        rows = RunPrompts(asked.run, settings).to_rank()[: asked.n]
        if not rows:
            raise UserError(f"--run {asked.run}: has no prompts to rank; it was given its rankings")
        work = _by_policy if asked.sampler.url is None else _by_http
        work(store, asked, settings, who, rows, terminal)
        waiting = store.progress(0)
        terminal.say(f"  {waiting.sets - waiting.sets_ranked} sets wait for somebody to rank them")
    words = [PROGRAM, "app", "--run", str(asked.run), *(["--db", asked.db] if asked.db else [])]
    for line in next_lines([(shlex.join(words), "rank them in a browser")]):
        terminal.say(line)
    return 0


def _policy(asked: Fill) -> str:
    policies = folders.policies(asked.run)
    found = list(policies)[-1] if asked.policy is None else choose(list(policies), asked.policy)
    if found is None:
        raise UserError(f"--policy {asked.policy}: {asked.run} has {', '.join(policies)}")
    return found


def _by_policy(
    store: Store,
    asked: Fill,
    settings: Loop,
    who: str,
    rows: Sequence[Instruction],
    terminal: Terminal,
) -> None:
    quiet.quiet(settings.base)
    with gpu_lock.Loan(asked.run, terminal.say) as loan:
        loan.take()
        from alpaca_rlhf.serving.speaker import Speaker

        quiet.quiet_transformers(settings.base)
        terminal.start(_STAGE, f"answers of {who} to {len(rows)} prompts")
        speaker = Speaker(settings, folders.policies(asked.run))
        batch = max(1, settings.sampling.batch_size // asked.k)
        told = _fill(store, speaker, asked, who, rows, batch, terminal)
        terminal.finish(_STAGE, told)


def _by_http(
    store: Store,
    asked: Fill,
    settings: Loop,
    who: str,
    rows: Sequence[Instruction],
    terminal: Terminal,
) -> None:
    folder = asked.run / "sampler"
    folder.mkdir(exist_ok=True)
    terminal.start(_STAGE, f"answers of {who} at {asked.sampler.url} to {len(rows)} prompts")
    with EndpointModel(
        asked.sampler, folder, max_tokens=settings.sampling.max_new_tokens
    ) as served:
        batch = max(1, 4 * asked.sampler.concurrency // asked.k)
        told = _fill(store, served, asked, who, rows, batch, terminal)
        terminal.finish(_STAGE, f"{told}; {served.account.line()}")


def _fill(
    store: Store,
    draws: Draws,
    asked: Fill,
    who: str,
    rows: Sequence[Instruction],
    batch: int,
    terminal: Terminal,
) -> str:
    told = ""
    for now in fill(
        store,
        draws,
        rows,
        who,
        k=asked.k,
        manner=Manner(asked.temperature, asked.top_p, asked.max_new_tokens, asked.seed),
        origin=origin_of(asked.run, who),
        batch=batch,
    ):
        terminal.step(_STAGE, now.done, now.total, {})
        told = f"{now.new} sets added, {now.total - now.new - now.alike} were there already"
        if now.alike:
            told += f", {now.alike} left out because all their answers say the same"
    return told
