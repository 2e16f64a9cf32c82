"""Verifiable instructions: requests with constraints on the surface form of the answer, and a judge.

`kinds` says what a kind of constraint is; `lengths`, `letters`, `layouts` and `wording` hold the
kinds, `catalogue` finds them in a text and tells which go together, `scope` whether words that are
found state a constraint or only mention one. `subjects` and `subjects_zh`
hold what the requests are about, `instructions` makes them, `composing` puts constraints to them.
`demonstrations` are answers by hand, `editing` makes answers of a model's drafts. `text` reads an answer, `relevance` tells whether it is one, and `judge` scores it.
"""

from alpaca_rlhf.checks.catalogue import KINDS, Request, compatible, read_request
from alpaca_rlhf.checks.composing import SOURCE, Mixture, Part, compose, example_of
from alpaca_rlhf.checks.demonstrations import demonstrations
from alpaca_rlhf.checks.instructions import Core, bare_request, cores
from alpaca_rlhf.checks.judge import CheckResult, Checks, ChecksWeights, Verdict
from alpaca_rlhf.checks.kinds import Constraint, Kind, Language, write_template

__all__ = [
    "KINDS",
    "SOURCE",
    "CheckResult",
    "Checks",
    "ChecksWeights",
    "Constraint",
    "Core",
    "Kind",
    "Language",
    "Mixture",
    "Part",
    "Request",
    "Verdict",
    "bare_request",
    "compatible",
    "compose",
    "cores",
    "demonstrations",
    "example_of",
    "read_request",
    "write_template",
]
