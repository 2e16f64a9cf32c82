"""The loop, or a part of it, run for a person at a terminal, with results and next commands."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from alpaca_rlhf.cli import own_files
from alpaca_rlhf.cli.ranking import RankingSession
from alpaca_rlhf.cli.terminal import Terminal, result_lines
from alpaca_rlhf.core import processes
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.runs import finished
from alpaca_rlhf.core.shell_words import quoted
from alpaca_rlhf.pipeline import run_loop, takes_policies
from alpaca_rlhf.serving import run_contents
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.settings.another_run import command_of_another
from alpaca_rlhf.settings.policies import POLICIES, POLICY_STAGES
from alpaca_rlhf.settings.quickstart import QUICKSTART
from alpaca_rlhf.settings.steps import order, suffixed
from alpaca_rlhf.sources.sampled import candidate_sets, queue_stage
from alpaca_rlhf.sources.standing import standing_of_stage
from alpaca_rlhf.sources.verdicts import open_store
from alpaca_rlhf.stages import PeopleNeeded

_REWARDED = "ppo"
"""A policy that learns from a reward model, for a run that has none."""


def run(
    settings: Loop, terminal: Terminal, *, kind: str, command: str, until: str | None = None
) -> int:
    """Run the remaining stages, then show the results and the next commands.

    Args:
        settings: All settings.
        terminal: Terminal to write to.
        kind: Kind of the run folder.
        command: Command as typed, for the report.
        until: The last stage to run; None runs all.

    Returns:
        The exit code, 0.

    Raises:
        UserError: Anything that the user can fix.
    """
    _refuse_replaced(settings, until)
    try:
        out = run_loop(settings, terminal, kind=kind, command=command, until=until)
    except PeopleNeeded as wait:  # no error: it is a person's turn
        terminal.say(str(wait))
        return 0
    if until is not None and until not in terminal.stages:
        terminal.say(f"nothing to do: {until} is done already")
    report = run_contents.report_of(out) if until is None else None
    if report is not None:
        terminal.say()
        for line in result_lines(report):
            terminal.say(line)
        terminal.say(f"report: {out / 'report.html'}")
    terminal.say()
    terminal.say_next(_after(settings, out, kind, until))
    return 0


def rank_by_people(
    settings: Loop, terminal: Terminal, *, annotator: str, kind: str, command: str
) -> int:
    """Let a person rank the completions of a run, which are sampled first if necessary.

    Returns:
        The exit code, 0.

    Raises:
        UserError: Anything that the user can fix.
    """
    if processes.count() > 1:
        raise UserError("rank: one person ranks in one terminal; run it without accelerate launch")
    _refuse_replaced(settings, "rank")
    out = run_loop(settings, terminal, kind=kind, command=command, until="sample")
    # 1. The first round that is not ranked yet.
    done = run_contents.stages_done(out)
    rounds = range(1, settings.all_rounds + 1)
    round_ = next((number for number in rounds if suffixed("rank", number) not in done), None)
    resume = [(f"alpaca-rlhf loop --out {quoted(out)}", "go on with all that follows")]
    if round_ is None:
        terminal.say("nothing to do: the rankings of every round were taken")
        terminal.say()
        terminal.say_next(resume)
        return 0
    # 2. A later round samples from the policy of the round before, so the loop runs up to here.
    if suffixed("sample", round_) not in done:
        try:
            run_loop(settings, terminal, kind=kind, command=command)
        except PeopleNeeded:
            terminal.say("it is your turn")
    # 3. Rank, one prompt after the other.
    stage = suffixed("sample", round_)
    with open_store(out, say=terminal.say) as store:
        sets = candidate_sets(out, stage)
        queue_stage(out, stage, store)
        session = RankingSession(sets, store, annotator, ask=terminal.ask, say=terminal.say)
        session.run()
        standing = standing_of_stage(out, stage, store)
    at_least = settings.rank.at_least
    enough = not standing.missing(at_least)
    if standing.ranked == standing.prompts:
        terminal.say("every prompt is ranked")
    else:
        text = "that is enough to go on" if enough else f"{standing.missing(at_least)} left"
        terminal.say(f"{standing.line(at_least)}; {text}; your verdicts are kept")
    terminal.say()
    further = [(command, "go on ranking")] if standing.waiting or not enough else []
    terminal.say_next([*(resume if enough else []), *further])
    return 0


def _refuse_replaced(settings: Loop, until: str | None) -> None:
    if until is None or until in [name for name, _ in order(settings)]:
        return
    chosen = " ".join(settings.policies)
    if until in POLICY_STAGES:
        policy = until.replace("_", "-")
        raise UserError(
            f"{policy}: not a part of this run, which has --policies {chosen}; "
            + _adding(settings, policy, policy)
        )
    by_judge = settings.reward.source == "judge" and until in ("sample", "rank", "reward")
    if until == "reward" and not by_judge:
        raise UserError(
            f"reward: not a part of this run, since --policies {chosen} needs no reward model; "
            + _adding(settings, _REWARDED, until)
        )
    replacement = "--reward.source judge" if by_judge else _replacement(settings, until)
    raise UserError(f"{until}: not a part of this run, because it has {replacement}")


def _replacement(settings: Loop, until: str) -> str:
    """The flags of the user's own files that take the place of a stage."""
    inputs = settings.inputs
    if until != "generate":  # nothing is sampled and ranked
        return "--inputs.rankings"
    if inputs.untrained:
        return "--inputs.rankings without rows, so that the base is taken as it is"
    given = {
        "--inputs.data": inputs.data,
        "--inputs.splits": inputs.splits,
        "--inputs.sft-adapter": inputs.sft_adapter,
    }
    return " and ".join(flag for flag, path in given.items() if path is not None)


def _adding(settings: Loop, policy: str, command: str) -> str:
    """The next step that adds a policy to a run: a flag, or a new run where the flag is refused."""
    policies = tuple(name for name in POLICIES if name in (*settings.policies, policy))
    flags = ["--policies", *policies]
    try:
        chosen = replace(settings, policies=policies)
    except ValueError as error:
        return f"it cannot be added: {error}"
    is_new = not run_contents.holds_run(settings.out)
    if is_new or takes_policies(chosen, finished(settings.out)):
        return f"give {' '.join(flags)}"
    if run_contents.kind_of(settings.out) == "quickstart":  # the small world is its alone
        command = "quickstart"
    another = command_of_another(settings, flags, suffix=policy, command=command)
    return f"this run can take {policy} no more, so begin another: {another}"


def _with_other_seed(settings: Loop, out: Path) -> str:
    """The command that runs a quickstart as this one was, with another seed."""
    seed = settings.seed + 1
    same_place = replace(settings, seed=QUICKSTART.seed, out=QUICKSTART.out)
    flags = own_files.given(same_place, QUICKSTART)
    words = [*flags, "--seed", str(seed), "--out", str(out.with_name(f"{out.name}-seed{seed}"))]
    return shlex.join(["alpaca-rlhf", "quickstart", *words])


def _after(settings: Loop, out: Path, kind: str, until: str | None) -> list[tuple[str, str]]:
    folder = quoted(out)
    if until is None:
        rows = [
            (f"alpaca-rlhf chat --run {folder}", "talk to it; /compare asks every policy"),
            (f"alpaca-rlhf chat --run {folder} --policy sft", "as it was before the rankings"),
        ]
        if kind == "quickstart":
            rows += [
                (_with_other_seed(settings, out), "the same with other randomness"),
                ("alpaca-rlhf loop --help", "with a base and data of your own"),
            ]
        return rows
    names = [name for name, round_ in order(settings) if round_ == 1]
    following = names[names.index(until) + 1 :][:1]
    rows = [(f"alpaca-rlhf loop --out {folder}", "all that is left, then the report")]
    if until == "sft" and own_files.ends_at_sft(settings):
        command = own_files.with_prompts(settings, out)
        rows, following = [(command, "all that is left, with prompts to rank")], []
    for name in following:
        rows.insert(0, (f"alpaca-rlhf {name.replace('_', '-')} --out {folder}", "the next stage"))
    if len(run_contents.policies(out)) > 1:
        rows.append((f"alpaca-rlhf chat --run {folder}", "talk to what there is"))
    return rows
