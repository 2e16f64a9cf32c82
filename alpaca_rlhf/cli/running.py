"""Running the loop, or a part of it, for a person at a terminal: what came out, what is next."""

from __future__ import annotations

import shlex
from pathlib import Path

from alpaca_rlhf.cli.ranking import RankingSession
from alpaca_rlhf.cli.terminal import Terminal, next_lines, result_lines
from alpaca_rlhf.core import processes
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.pipeline import order, run_loop
from alpaca_rlhf.serving import folders
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.sources.sampled import candidate_sets, origin_of_stage
from alpaca_rlhf.sources.verdicts import open_store
from alpaca_rlhf.stages import PeopleNeeded
from alpaca_rlhf.stages.context import suffixed

_GIVEN_BY = {
    "generate": "--inputs.data, --inputs.splits or --inputs.sft-adapter",
    "sample": "--inputs.rankings",
    "rank": "--inputs.rankings",
}
"""Stages that a run is spared where the user's own file takes their place."""


def run(
    settings: Loop, terminal: Terminal, *, kind: str, command: str, until: str | None = None
) -> int:
    """Run the stages that are left, then tell what came out and what may come next.

    Args:
        settings: Every number.
        terminal: Told about everything.
        kind: What the run folder is for.
        command: What the user typed, for the report.
        until: The last stage to run; None runs all.

    Returns:
        The exit code, 0.

    Raises:
        UserError: Anything that the user can mend.
    """
    _refuse_what_is_given(settings, until)
    try:
        out = run_loop(settings, terminal, kind=kind, command=command, until=until)
    except PeopleNeeded as wait:  # nothing is wrong: it is somebody's turn
        terminal.say(str(wait))
        return 0
    if until is not None and until not in terminal.stages:
        terminal.say(f"nothing to do: {until} is done already")
    report = folders.report_of(out) if until is None else None
    if report is not None:
        terminal.say()
        for line in result_lines(report):
            terminal.say(line)
        terminal.say(f"report: {out / 'report.html'}")
    _tell_next(terminal, _after(settings, out, kind, until))
    return 0


def rank_by_people(
    settings: Loop, terminal: Terminal, *, annotator: str, kind: str, command: str
) -> int:
    """Let a person rank what the run sampled, sampling it first if need be.

    Returns:
        The exit code, 0.

    Raises:
        UserError: Anything that the user can mend.
    """
    if processes.count() > 1:
        raise UserError("rank: one person ranks in one terminal; run it without accelerate launch")
    _refuse_what_is_given(settings, "rank")
    out = run_loop(settings, terminal, kind=kind, command=command, until="sample")
    stages_done = folders.stages_done(out)
    continue_run = [(f"alpaca-rlhf loop --out {_quoted(out)}", "go on with all that follows")]
    rounds = range(1, settings.rounds + 1)
    round_ = next((r for r in rounds if suffixed("rank", r) not in stages_done), None)
    if round_ is None:
        terminal.say("nothing to do: every prompt is ranked")
        _tell_next(terminal, continue_run)
        return 0
    if suffixed("sample", round_) not in stages_done:
        try:
            run_loop(settings, terminal, kind=kind, command=command)
        except PeopleNeeded:
            terminal.say("it is your turn")
    stage = suffixed("sample", round_)
    with open_store(out, say=terminal.say) as store:
        sets = candidate_sets(out, stage)
        store.add_sets(sets, origin=origin_of_stage(out, stage))
        session = RankingSession(sets, store, annotator, ask=terminal.ask, say=terminal.say)
        all_ranked = session.run()
    if all_ranked:
        terminal.say("every prompt is ranked")
        _tell_next(terminal, continue_run)
    else:
        terminal.say(f"{session.left} left; your verdicts are kept")
        _tell_next(terminal, [(command, "go on ranking")])
    return 0


def _refuse_what_is_given(settings: Loop, until: str | None) -> None:
    if until in _GIVEN_BY and until not in [name for name, _ in order(settings)]:
        raise UserError(f"{until}: not a part of this run, because it has {_GIVEN_BY[until]}")


def _after(settings: Loop, out: Path, kind: str, until: str | None) -> list[tuple[str, str]]:
    where = _quoted(out)
    if until is None:
        rows = [
            (f"alpaca-rlhf chat --run {where}", "talk to it; /compare asks every policy"),
            (f"alpaca-rlhf chat --run {where} --policy sft", "as it was before the rankings"),
        ]
        if kind == "quickstart":
            seed = settings.seed + 1
            beside = _quoted(out.with_name(f"{out.name}-seed{seed}"))
            again = f"alpaca-rlhf quickstart --seed {seed} --out {beside}"
            rows += [
                (again, "the same with other randomness"),
                ("alpaca-rlhf loop --help", "with a base and data of your own"),
            ]
        return rows
    names = [name for name, round_ in order(settings) if round_ == 1]
    following = names[names.index(until) + 1 :][:1]
    rows = [(f"alpaca-rlhf loop --out {where}", "all that is left, then the report")]
    for name in following:
        rows.insert(0, (f"alpaca-rlhf {name.replace('_', '-')} --out {where}", "the next stage"))
    if len(folders.policies(out)) > 1:
        rows.append((f"alpaca-rlhf chat --run {where}", "talk to what there is"))
    return rows


def _tell_next(terminal: Terminal, commands: list[tuple[str, str]]) -> None:
    terminal.say()
    for line in next_lines(commands):
        terminal.say(line)


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
