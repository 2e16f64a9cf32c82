"""`alpaca-rlhf sample --run RUN`: fill the app's queue with answers to rank."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Gt, Interval

from alpaca_rlhf.cli.chat import choose
from alpaca_rlhf.cli.terminal import PROGRAM, Terminal, next_lines
from alpaca_rlhf.core import gpu_lock, quiet
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.serving import run_contents
from alpaca_rlhf.serving.answerer import Answerer
from alpaca_rlhf.serving.filling import fill, origin_of
from alpaca_rlhf.serving.sampling_settings import SamplingSettings
from alpaca_rlhf.serving.served import EndpointModel
from alpaca_rlhf.settings import Loop, Sampler
from alpaca_rlhf.settings.bounds import Bounded, PositiveInt, Seed, Share
from alpaca_rlhf.sources.run_prompts import RunPrompts
from alpaca_rlhf.sources.sampled import queue_sampled
from alpaca_rlhf.sources.verdicts import open_store

if TYPE_CHECKING:
    from alpaca_rlhf.preferences.store import Store

ABOUT = "fill the queue of the app with answers to rank, to the prompts of a run's rank split"
_STAGE = "fill"


@dataclass(frozen=True)
class Fill(Bounded):
    """Flags of `alpaca-rlhf sample --run`."""

    run: Path = Path("runs/quickstart")
    """Run folder to take prompts, base and adapters from. Prompts are taken as they stand in its
    rank split, whatever its --rank.queue."""
    db: str | None = None
    """Database of the queue: a file, or postgresql+psycopg://user@host/name; by default
    preferences.db in the run folder."""
    policy: str | None = None
    """The policy that answers: base, sft, best_of_k, ppo, in later rounds ppo.2 ...; by default
    the last."""
    k: Annotated[
        int, Interval(ge=2, le=9), "one cannot be ranked, and ten are too many to compare"
    ] = 4
    """Answers a prompt; those with the same text count once."""
    n: PositiveInt | None = None
    """Prompts at most; by default all of them."""
    temperature: Annotated[float, Gt(0), "else all answers to a prompt are the same"] | None = None
    """Divides the logits; at 0 all answers are the same. None takes that of the run's
    sample stage."""
    top_p: Share | None = None
    """Nucleus mass; 1 keeps the whole distribution. None takes the run's --sampling.top-p."""
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
    """True if `sample` means the queue and not the stage of a loop."""
    return any(word == "--run" or word.startswith("--run=") for word in words)


def run(flags: Fill, terminal: Terminal) -> int:
    """Fill the queue; run again it goes on where it stopped.

    Returns:
        The exit code, 0.

    Raises:
        UserError: There is no such run or policy, or no prompts to rank; or the model behind HTTP
            is gone, and what it has written is kept.
    """
    settings = run_contents.settings_of(flags.run)
    answerer = _policy(flags) if flags.sampler.url is None else flags.sampler.model
    with open_store(flags.run, flags.db, say=terminal.say) as store:
        terminal.say(
            f"sample: {flags.k} answers of {answerer} to each prompt of the rank split of "
            f"{flags.run}, for the queue in {store.database.shown}; Ctrl-C at any time, the same "
            "command goes on"
        )
        sampled_sets = queue_sampled(flags.run, store)
        if sampled_sets:
            terminal.say(
                f"  {sampled_sets} sets that the run has sampled itself are in the queue now"
            )
        rows = RunPrompts(flags.run, settings).to_rank() + store.added_prompts()
        rows = rows[: flags.n]
        if not rows:
            raise UserError(f"--run {flags.run}: has no prompts to rank; it was given its rankings")
        filling = _Filling(store, flags, settings, answerer, rows, terminal)
        if flags.sampler.url is None:
            filling.by_policy()
        else:
            filling.by_http()
        progress = store.progress(0)
        terminal.say(
            f"  {progress.sets - progress.sets_ranked} sets wait for somebody to rank them"
        )
    from alpaca_rlhf.preferences.database import db_flag  # loads SQLAlchemy

    words = [PROGRAM, "app", "--run", str(flags.run), *db_flag(flags.db)]
    for line in next_lines([(shlex.join(words), "rank them in a browser")]):
        terminal.say(line)
    return 0


def _policy(flags: Fill) -> str:
    policies = run_contents.policies(flags.run)
    if flags.policy is None:
        return list(policies)[-1]
    policy = choose(list(policies), flags.policy)
    if policy is None:
        raise UserError(f"--policy {flags.policy}: {flags.run} has {', '.join(policies)}")
    return policy


@dataclass(frozen=True)
class _Filling:
    """A queue to fill: its store, whose answers it gets, and to which prompts."""

    store: Store
    flags: Fill
    settings: Loop
    answerer: str
    rows: Sequence[Instruction]
    terminal: Terminal

    def by_policy(self) -> None:
        """Let a policy of the run answer, on the run's base."""
        flags, settings = self.flags, self.settings
        with gpu_lock.Loan(flags.run, self.terminal.say) as loan:
            loan.take()
            with quiet.loading(settings.base):
                from alpaca_rlhf.serving.policy_server import PolicyServer
            count = len(self.rows)
            self.terminal.start(_STAGE, f"answers of {self.answerer} to {count} prompts")
            policy_server = PolicyServer(settings, run_contents.policies(flags.run))
            batch = max(1, settings.sampling.batch_size // flags.k)
            self.terminal.finish(_STAGE, self._with(policy_server, batch))

    def by_http(self) -> None:
        """Let the model behind HTTP answer."""
        sampler, folder = self.flags.sampler, self.flags.run / "sampler"
        folder.mkdir(exist_ok=True)
        what = f"answers of {self.answerer} at {sampler.url} to {len(self.rows)} prompts"
        self.terminal.start(_STAGE, what)
        limit = self.settings.sampling.max_new_tokens
        with EndpointModel(sampler, folder, max_tokens=limit) as served:
            batch = max(1, 4 * sampler.concurrency // self.flags.k)
            summary = self._with(served, batch)
            self.terminal.finish(_STAGE, f"{summary}; {served.account.line()}")

    def _with(self, draws: Answerer, batch: int) -> str:
        """Fill it with completions drawn for `batch` prompts at once; returns a summary."""
        flags, summary = self.flags, ""
        for progress in fill(
            self.store,
            draws,
            self.rows,
            self.answerer,
            k=flags.k,
            sampling_settings=self._sampling(),
            origin=origin_of(flags.run, self.answerer),
            batch=batch,
        ):
            self.terminal.step(_STAGE, progress.done, progress.total, {})
            known = progress.total - progress.new - progress.alike
            summary = f"{progress.new} sets added, {known} were there already"
            if progress.alike:
                alike = "left out because all their answers say the same"
                summary += f", {progress.alike} {alike}"
        return summary

    def _sampling(self) -> SamplingSettings:
        """Sampling as in the run, but for what the flags say."""
        flags = self.flags
        run = SamplingSettings.of_stage(self.settings, "sample", seed=flags.seed)
        return replace(
            run,
            temperature=run.temperature if flags.temperature is None else flags.temperature,
            top_p=run.top_p if flags.top_p is None else flags.top_p,
            max_new_tokens=flags.max_new_tokens,
        )
