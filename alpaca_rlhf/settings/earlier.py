"""Settings of runs that were begun before a default changed, or before a setting existed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from alpaca_rlhf.settings.loop import Loop
from alpaca_rlhf.settings.policies import POLICIES, PolicyName
from alpaca_rlhf.settings.quickstart import QUICKSTART

logger = logging.getLogger(__name__)

CHANGED: Mapping[str, Any] = {
    "ppo.missing_eos_score": -1.0,
    "sft.batch_size": 128,
    "reward.batch_size": 16,
}
"""Settings whose default changed, and the earlier one; a run that has it goes on with it unless
another value is given."""

ADDED: Mapping[str, Any] = {
    "reward.control": True,
    "reward.source": "rankings",
    "best_of_k.control": False,
    "ppo.control": False,
    "ppo.temperature": 1.0,
    "evaluate.dev": False,
    "evaluate.max_cluster": 1.0,
    "evaluate.temperature": 1.0,
    "evaluate.dev_prompts": 0,
    "generate.attempts": 4,
    "generate.min_score": 0.8,
    "generate.edit": False,
    "inputs.languages": "en",
    "policies": ["ppo", "best-of-k"],
}
"""Settings that are newer than some runs, and the value that those runs have; they keep it unless
another than the default is given."""

_ABSENT = object()


def with_earlier_defaults(settings: Loop) -> Loop:
    """Return the settings with what their run was begun with, where defaults have changed since."""
    begun = _config(settings.out)
    if not begun:
        return settings
    for path, value in {**CHANGED, **added(settings.out)}.items():
        defaults = (Loop(), QUICKSTART) if path in ADDED else (Loop(),)
        is_default = _at(settings, path) in [_at(default, path) for default in defaults]
        keeps = path in ADDED or _in(begun, path) == value
        if is_default and keeps and _at(settings, path) != value:
            flag = "--" + path.replace("_", "-")
            logger.info("%s goes on with %s %s, as it began", settings.out, flag, value)
            settings = _changed(settings, path, value)
    return settings


def added(out: Path) -> dict[str, Any]:
    """Settings that the run in a folder is older than, and the values that it has; else empty."""
    begun = _config(out)
    return {
        path: value
        for path, value in ADDED.items()
        if _group_of(begun, path) is not None and _in(begun, path) is _ABSENT
    }


def begun_policies(settings: Loop) -> tuple[PolicyName, ...]:
    """The policies that the run in the folder was begun with; the chosen ones in a new run."""
    begun = _config(settings.out)
    named = begun.get("policies", ADDED["policies"] if begun else settings.policies)
    return tuple(policy for policy in POLICIES if policy in named)


def _group_of(begun: Mapping[str, Any], path: str) -> Mapping[str, Any] | None:
    """The settings among which a path stands; None where the run has no such group."""
    section, dot, _ = path.partition(".")
    group = begun.get(section) if dot else begun or None
    return group if isinstance(group, Mapping) else None


def _config(out: Path) -> Mapping[str, Any]:
    """The settings in a run folder; empty where there are none to read: opening it says more."""
    try:
        begun = yaml.safe_load((out / "config.yaml").read_bytes())
    except (OSError, yaml.YAMLError):
        return {}
    return begun if isinstance(begun, Mapping) else {}


def _in(begun: Mapping[str, Any], path: str) -> Any:
    value: Any = begun
    for name in path.split("."):
        value = value.get(name, _ABSENT) if isinstance(value, Mapping) else _ABSENT
    return value


def _at(settings: Any, path: str) -> Any:
    """A setting as it stands in a file: a list where it is a tuple."""
    for name in path.split("."):
        settings = getattr(settings, name)
    return list(settings) if isinstance(settings, tuple) else settings


def _changed(settings: Any, path: str, value: Any) -> Any:
    name, _, rest = path.partition(".")
    return replace(
        settings, **{name: _changed(getattr(settings, name), rest, value) if rest else value}
    )
