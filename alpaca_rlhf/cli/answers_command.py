"""`alpaca-rlhf answers`: prompts and a policy's answers as JSON lines, for other benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alpaca_rlhf.cli.chat import choose
from alpaca_rlhf.cli.terminal import Terminal
from alpaca_rlhf.core import gpu_lock, quiet
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.serving import run_contents
from alpaca_rlhf.serving.answer_files import AnswerFile, read_rows
from alpaca_rlhf.serving.sampling_settings import SamplingSettings
from alpaca_rlhf.settings.bounds import Bounded, NonNegativeFloat, PositiveInt, Seed, Share

_STAGE = "answers"


@dataclass(frozen=True)
class Answers(Bounded):
    """Flags of `alpaca-rlhf answers`."""

    prompts: Path
    """File of prompts: any format that `import` reads; every column is kept in the answers."""
    policy: str | None = None
    """The policy that answers: base, sft, best_of_k, ppo, in later rounds ppo.2 ...; by default
    the last."""
    out: Path | None = None
    """File to write; by default `answers/POLICY-PROMPTS.jsonl` in the run folder."""
    column: str = "response"
    """Column of the answer: `response` as IFEval reads it, `output` as AlpacaEval does."""
    temperature: NonNegativeFloat = 0.0
    """Divides the logits; 0 is greedy."""
    top_p: Share = 1.0
    """Nucleus mass; 1 keeps the whole distribution."""
    max_new_tokens: PositiveInt | None = None
    """Completion tokens at most; by default as many as in the run."""
    seed: Seed = 0
    """Another seed, other answers."""


def run(operands: Sequence[str], flags: Answers, terminal: Terminal) -> int:
    """Answer every prompt of a file.

    Returns:
        The exit code, 0.

    Raises:
        UserError: There is no such run, policy or file, or a prompt is too long.
    """
    # 1. Refuse what is wrong before torch is loaded.
    run = Path(operands[0])
    run_contents.refuse_missing(run, "answers")
    settings = run_contents.settings_of(run)
    policies = run_contents.policies(run)
    policy = list(policies)[-1] if flags.policy is None else choose(list(policies), flags.policy)
    if policy is None:
        raise UserError(f"--policy {flags.policy}: {run} has {', '.join(policies)}")
    prompts = read_rows(flags.prompts)
    out = flags.out or run / "answers" / f"{policy}-{flags.prompts.stem}.jsonl"
    sampling_settings = SamplingSettings(
        flags.temperature, flags.top_p, flags.max_new_tokens, flags.seed
    )
    file = AnswerFile(out, policy, sampling_settings, flags.column)
    file.refuse_existing()
    replaced = sum(flags.column in prompt.columns for prompt in prompts)
    if replaced:
        terminal.say(
            f"column `{flags.column}` of {replaced:,} rows is replaced in {out}; --column NAME "
            "keeps both"
        )
    # 2. Answer, batch by batch.
    with gpu_lock.Loan(run, terminal.say) as loan:
        loan.take()
        with quiet.loading(settings.base):
            from alpaca_rlhf.serving.policy_server import PolicyServer
        terminal.start(_STAGE, f"{policy} of {run} to {len(prompts)} prompts of {flags.prompts}")
        policy_server = PolicyServer(settings, policies)
        for done, total in file.write(policy_server, prompts, batch=settings.sampling.batch_size):
            terminal.step(_STAGE, done, total, {})
        terminal.finish(_STAGE, f"{len(prompts)} answers in {out}, column `{flags.column}`")
    return 0
