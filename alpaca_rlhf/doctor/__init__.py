"""Checks of a machine and a base for anything that would spoil a run."""

from alpaca_rlhf.doctor.base import base_checks
from alpaca_rlhf.doctor.finding import Finding, Verdict
from alpaca_rlhf.doctor.machine import machine_checks

__all__ = ["Finding", "Verdict", "base_checks", "machine_checks"]
