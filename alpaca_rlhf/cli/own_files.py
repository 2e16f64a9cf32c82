"""The user's own files: what a run on a base of one's own needs, and commands that repeat it."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from alpaca_rlhf.cli.terminal import PROGRAM
from alpaca_rlhf.core.bases import EMBEDDED
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.quiet import loading
from alpaca_rlhf.core.shell_words import quoted
from alpaca_rlhf.serving import run_contents
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.settings.another_run import command_of_another
from alpaca_rlhf.settings.leaves import leaves_of

ROWS, PROMPTS = "ROWS.jsonl", "PROMPTS.jsonl"
"""Stand for the user's files in a command that is suggested."""
_BY_PEOPLE = ["--inputs.prompts", PROMPTS, "--inputs.judge", "human"]
_NO_PROMPTS = ("generate", "sft")
"""Stages that rank nothing."""


def refuse_small_world(settings: Loop, until: str | None) -> None:
    """Refuse to rank a base or rows of the user's own by the small world's tasks and gold judge.

    A run of the small world that was begun earlier goes on.

    Raises:
        UserError: Files or a judge are missing, or the base cannot be read, which is said first.
    """
    if settings.inputs.prompts_from != "small world":
        return
    rows = settings.inputs.rows or settings.inputs.sft_adapter
    if rows is None:
        if settings.base == EMBEDDED or run_contents.holds_run(settings.out):
            return
    elif until in _NO_PROMPTS or not _lacks_prompts(settings):
        return
    elif "sample" in run_contents.stages_done(settings.out):
        return
    with loading(settings.base):
        from alpaca_rlhf.stages.preflight import shape_of_run

    shape_of_run(settings)
    if rows is None:
        base = quoted(settings.base)
        raise UserError(
            f"--base {settings.base}: outside the quickstart a base needs files to train on and a "
            f"judge: give --inputs.data {ROWS} --inputs.prompts {PROMPTS} --inputs.judge human (or "
            "--inputs.seeds shipped instead of the data, or --inputs.splits); `"
            f"{PROGRAM} quickstart --base {base}` tries it on the small world"
        )
    raise UserError(
        f"--inputs.judge gold knows only the small world, and {rows} is your own: give "
        f"{shlex.join(_BY_PEOPLE)}"
        + (
            f", in a new run: `{with_prompts(settings, settings.out)}`"
            if run_contents.holds_run(settings.out)
            else ""
        )
    )


def _lacks_prompts(settings: Loop) -> bool:
    """True if a run was given rows or an adapter, and no prompts that would fit them."""
    inputs = settings.inputs
    if inputs.prompts_from != "small world":
        no_prompts = inputs.prompts is None and inputs.splits is None
        return no_prompts and inputs.prompts_from == "files"
    own_base = settings.base != EMBEDDED
    return inputs.rows is not None or (own_base and inputs.sft_adapter is not None)


def ends_at_sft(settings: Loop) -> bool:
    """True if nothing can be ranked after SFT, because prompts or a judge are missing."""
    return _lacks_prompts(settings)


def with_prompts(settings: Loop, run: Path) -> str:
    """The command that goes on from the SFT adapter of a run with prompts, in a new run."""
    flags = ["--inputs.seeds", "None"] if settings.inputs.seeds is not None else []
    flags += ["--inputs.sft-adapter", str(run / "sft" / "adapter")]
    flags += ["--inputs.prompts", PROMPTS]
    flags += _ranked_by_people(settings) if settings.inputs.judge == "gold" else []
    return command_of_another(replace(settings, out=run), flags, suffix="ranked")


def reward_on_snapshot(settings: Loop, snapshot: Path) -> str:
    """The command that trains a reward model on what people ranked in a run, in a new run.

    Args:
        settings: The settings of the run, whose SFT adapter the new one takes.
        snapshot: Folder of the snapshot.
    """
    inputs = settings.inputs
    flags = ["--inputs.rankings", str(snapshot)]
    flags += ["--inputs.sft-adapter", str(settings.out / "sft" / "adapter")]
    flags += ["--inputs.seeds", "None"] if inputs.seeds is not None else []
    flags += _ranked_by_people(settings)
    # 1. DPO alone needs no reward model. Best-of-K does, and the prompts that nobody ranks any more
    #    are enough for it.
    if not settings.rewarded:
        prompts = min(settings.best_of_k.prompts, settings.rank.prompts)
        flags += ["--policies", *settings.policies, "best-of-k", "--best-of-k.prompts"]
        flags += [str(prompts)]
    # 2. The kit's own prompts do not go with rankings from a file, so that no look can be taken.
    if settings.watch.every and inputs.prompts is None and inputs.splits is None:
        flags += ["--watch.every", "0", "--watch.patience", "0"]
    return command_of_another(settings, flags, suffix=f"people-{snapshot.name}", command="reward")


def _ranked_by_people(settings: Loop) -> list[str]:
    """The flags that put people in the place of a run's judge, and take back what only it could."""
    flags = ["--inputs.judge", "human"]
    flags += ["--judge.url", "None"] if settings.judge.url is not None else []
    flags += ["--reward.source", "rankings"] if settings.reward.source == "judge" else []
    flags += ["--evaluate.judge", "None"] if settings.evaluate.judge == "gold" else []
    flags += ["--watch.scorer", "None"] if settings.watch.scorer == "gold" else []
    return flags


def loop_command(settings: Loop, *more: str) -> str:
    """The command `loop` with the settings that were given, and names in place of missing files.

    Args:
        settings: What was given.
        more: Further words.
    """
    flags = given(settings)
    inputs = settings.inputs
    if settings.base != EMBEDDED and inputs.judge == "gold":
        flags += [] if inputs.rows or inputs.sft_adapter else ["--inputs.data", ROWS]
        flags += _BY_PEOPLE
    return shlex.join([PROGRAM, "loop", *flags, *more])


def given(settings: Loop, default: Loop | None = None) -> list[str]:
    """The flags of the settings that differ from the defaults, the general ones first.

    Args:
        settings: The settings.
        default: The command's defaults; None takes those of `loop`.
    """
    default = Loop() if default is None else default
    leaves = sorted(leaves_of(Loop, required=False), key=lambda leaf: _rank(leaf.path))
    flags: list[str] = []
    for leaf in leaves:
        value = _at(settings, leaf.path)
        if value != _at(default, leaf.path):
            several = isinstance(value, (list, tuple))
            flags += [leaf.flag, *map(str, value if several else [value])]
    return flags


def _rank(path: str) -> int:
    return 0 if "." not in path else 1 if path.startswith("inputs.") else 2


def _at(settings: Any, path: str) -> Any:
    for name in path.split("."):
        settings = getattr(settings, name)
    return settings
