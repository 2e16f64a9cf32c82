"""The loop, or a part of it, run for a person at a terminal, with results and next commands."""

from __future__ import annotations

from pathlib import Path

from alpaca_rlhf.cli import own_files
from alpaca_rlhf.cli.ranking import RankingSession
from alpaca_rlhf.cli.terminal import Terminal, result_lines
from alpaca_rlhf.core import processes
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.shell_words import quoted
from alpaca_rlhf.pipeline import run_loop
from alpaca_rlhf.serving import run_contents
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.settings.policies import POLICY_STAGES
from alpaca_rlhf.settings.steps import order, suffixed
from alpaca_rlhf.sources.sampled import candidate_sets, queue_stage
from alpaca_rlhf.sources.standing import standing_of_stage
from alpaca_rlhf.sources.verdicts import open_store
from alpaca_rlhf.stages import PeopleNeeded

_REPLACED_BY = {
    "generate": "--inputs.data, --inputs.splits or --inputs.sft-adapter",
    "sample": "--inputs.rankings",
    "rank": "--inputs.rankings",
}
"""Stages that a run skips, with the flags of the user's own files that replace them."""


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
    if until in POLICY_STAGES:
        policy, chosen = until.replace("_", "-"), " ".join(settings.policies)
        raise UserError(
            f"{policy}: not a part of this run, which has --policies {chosen}; "
            f"give --policies {chosen} {policy}"
        )
    by_judge = settings.reward.source == "judge" and until in ("sample", "rank", "reward")
    replacement = "--reward.source judge" if by_judge else _REPLACED_BY[until]
    raise UserError(f"{until}: not a part of this run, because it has {replacement}")


def _after(settings: Loop, out: Path, kind: str, until: str | None) -> list[tuple[str, str]]:
    folder = quoted(out)
    if until is None:
        rows = [
            (f"alpaca-rlhf chat --run {folder}", "talk to it; /compare asks every policy"),
            (f"alpaca-rlhf chat --run {folder} --policy sft", "as it was before the rankings"),
        ]
        if kind == "quickstart":
            seed = settings.seed + 1
            new_out = quoted(out.with_name(f"{out.name}-seed{seed}"))
            rows += [
                (
                    f"alpaca-rlhf quickstart --seed {seed} --out {new_out}",
                    "the same with other randomness",
                ),
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
