"""Settings of runs that were begun before a default changed, or before a setting existed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.settings.judge_names import canonical
from alpaca_rlhf.settings.leaves import leaves_of
from alpaca_rlhf.settings.loop import Loop
from alpaca_rlhf.settings.parsing import plain, to_yaml
from alpaca_rlhf.settings.policies import POLICIES, POLICY_STAGES, PolicyName, stage_of
from alpaca_rlhf.settings.quickstart import QUICKSTART

logger = logging.getLogger(__name__)

CHANGED: Mapping[str, Any] = {
    "ppo.missing_eos_score": -1.0,
    "sft.batch_size": 128,
    "reward.batch_size": 16,
}
"""Settings whose default changed, and the earlier one; a run that has it goes on with it unless
another value is given."""

WITHOUT: Mapping[str, Any] = {
    "reward.control": True,
    "reward.curve": 0,
    "ppo.temperature": 1.0,
    "evaluate.max_cluster": 1.0,
    "evaluate.temperature": 1.0,
}
"""The behaviour of runs from before a setting existed, where its default does something else. Of
every other setting that a run's file lacks, the run has the default."""

_ABSENT = object()


class Config(NamedTuple):
    """The settings of a run for its folder."""

    text: str
    """YAML. What the run there is older than is left out where it is as it was, so that a later
    version still sees that the run is older."""
    before: Mapping[str, Any]
    """Values of settings that the file there lacks, or has by an earlier name."""


def config_of(settings: Loop) -> Config:
    """The settings as the run in their folder is to have them."""
    older = {path: plain(value) for path, value in _before(settings).items()}
    unchanged = {path for path, value in older.items() if plain(_at(settings, path)) == value}
    before = {path: value for path, value in older.items() if path not in unchanged}
    judge = _in(_begun(settings.out), "inputs.judge")
    if isinstance(judge, str):
        before["inputs.judge"] = canonical(judge)
    return Config(to_yaml(settings, without=unchanged), before)


def with_earlier_defaults(settings: Loop) -> Loop:
    """Return the settings with what their run was begun with, where defaults have changed since.

    Raises:
        UserError: They do not go with a setting that is given.
    """
    begun, before = _begun(settings.out), _before(settings)
    # 1. Defaults that differ from those of then. What is given is kept: it is refused, or taken,
    #    like any other change.
    earlier: dict[str, Any] = {}
    for path, value in before.items():
        if _at(settings, path) in (_at(Loop(), path), _at(QUICKSTART, path)):
            earlier[path] = value
    for path, value in CHANGED.items():
        if _in(begun, path) == value and _at(settings, path) == _at(Loop(), path):
            earlier[path] = value
    # 2. Put them in at once: one may ask for another.
    differing = {path: value for path, value in earlier.items() if _at(settings, path) != value}
    flags = [f"--{path.replace('_', '-')} {value}" for path, value in differing.items()]
    try:
        taken_up: Loop = _replaced(settings, differing)
    except ValueError as error:
        raise UserError(
            f"--out {settings.out}: the run there is older than some settings and would go on with "
            f"{' '.join(flags)}; {error}, or use another --out"
        ) from None
    for flag in flags:
        logger.info("%s goes on with %s, as it began", settings.out, flag)
    return taken_up


def begun_policies(settings: Loop) -> tuple[PolicyName, ...]:
    """The policies that the run in the folder was begun with; the chosen ones in a new run."""
    begun = _begun(settings.out)
    named = begun.get("policies", _without("policies") if begun else settings.policies)
    return tuple(policy for policy in POLICIES if policy in named)


def begun_reward_source(settings: Loop) -> str:
    """The source of the reward that the run in the folder was begun with; of a new run, its own."""
    begun = _begun(settings.out)
    source = _in(begun, "reward.source") if begun else settings.reward.source
    return str(_without("reward.source") if source is _ABSENT else source)


def _without(path: str) -> Any:
    """The value that a setting has in runs from before it existed."""
    return WITHOUT.get(path, _at(Loop(), path))


def _before(settings: Loop) -> dict[str, Any]:
    """Settings that the run in their folder is older than, and the values that it has."""
    begun = _begun(settings.out)
    absent = [path for path in _paths() if begun and _in(begun, path) is _ABSENT]
    before = {path: _without(path) for path in absent}
    # Numbers of policies that the run does not have were never used: they are those of now, and
    # with a policy that is added they are pinned.
    unused = {*POLICY_STAGES} - {stage_of(policy) for policy in begun_policies(settings)}
    for path in absent:
        section = path.partition(".")[0]
        if section in unused and section in settings.policy_stages:
            del before[path]
        elif section in unused:
            before[path] = _at(settings, path)
    # The small world had a dev split from the beginning, the user's own prompts had none.
    if "evaluate.dev_prompts" in before and settings.inputs.prompts_from == "files":
        before["evaluate.dev_prompts"] = 0
    return before


def _paths() -> Iterator[str]:
    return (leaf.path for leaf in leaves_of(Loop, required=False))


def _begun(out: Path) -> Mapping[str, Any]:
    """The settings in a run folder; empty where there are none to read: opening it says more."""
    try:
        begun = yaml.safe_load((out / "config.yaml").read_bytes())
    except (OSError, yaml.YAMLError):
        return {}
    return begun if isinstance(begun, Mapping) else {}


def _in(begun: Mapping[str, Any], path: str) -> Any:
    """A value of nested mappings; None in the place of a mapping is a damaged file, not absent."""
    value: Any = begun
    for name in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(name, _ABSENT)
        if value is _ABSENT:
            return _ABSENT
    return value


def _at(settings: Any, path: str) -> Any:
    for name in path.split("."):
        settings = getattr(settings, name)
    return settings


def _replaced(settings: Any, values: Mapping[str, Any]) -> Any:
    """A copy of nested dataclasses with other values at some dotted paths."""
    fields: dict[str, Any] = {}
    nested: dict[str, dict[str, Any]] = {}
    for path, value in values.items():
        name, _, rest = path.partition(".")
        if rest:
            nested.setdefault(name, {})[rest] = value
        else:
            fields[name] = value
    inner = {name: _replaced(getattr(settings, name), part) for name, part in nested.items()}
    return replace(settings, **fields, **inner)
