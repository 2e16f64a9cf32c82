"""The base of a run, for reward models that score outside of its stages."""

from __future__ import annotations

from alpaca_rlhf.core.runs import day_of
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.base import load_base
from alpaca_rlhf.settings import Loop


def adapters_of(settings: Loop) -> Adapters:
    """Load a run's base, with no adapter on it yet.

    Raises:
        UserError: It cannot be loaded.
    """
    base = load_base(settings.base, day=day_of(settings.out))
    return Adapters(base, settings.lora, template=settings.template)
