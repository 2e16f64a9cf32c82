"""Measuring policies: intervals, win rates, and the report a person reads."""
