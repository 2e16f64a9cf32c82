"""Instruction data written by a teacher: recipes, filters, and the events of a run.

`self_instruct` asks the teacher and decides, `events` and `history` keep and replay its run,
`refilter` decides anew; a recipe is in `worksheets`, `bootstrap` or `evolve`. The teacher behind
HTTP, `endpoint`, is imported by itself, because httpx takes a while to load.
"""

from alpaca_rlhf.data.generation.decisions import Check
from alpaca_rlhf.data.generation.events import EventStore, read_events, read_manifest
from alpaca_rlhf.data.generation.filters import (
    RULES,
    Drop,
    Rule,
    drop_reason,
    is_no_input,
    rule_set,
)
from alpaca_rlhf.data.generation.history import (
    AnsweredRequest,
    recipe_of,
    requests,
    seeds_of,
    settings_of,
)
from alpaca_rlhf.data.generation.recipe import GenerationRequest, StepName, StepTeacher
from alpaca_rlhf.data.generation.refilter import RefilterResult, kept_by_rouge, refilter
from alpaca_rlhf.data.generation.self_instruct import (
    Drops,
    GenerationProgress,
    GenerationResult,
    generate,
)
from alpaca_rlhf.data.generation.teachers import Reply, Teacher, TeacherStop, for_step
from alpaca_rlhf.data.generation.worksheets import demonstrations, parse_worksheet

__all__ = [
    "RULES",
    "AnsweredRequest",
    "Check",
    "Drop",
    "Drops",
    "EventStore",
    "GenerationProgress",
    "GenerationRequest",
    "GenerationResult",
    "RefilterResult",
    "Reply",
    "Rule",
    "StepName",
    "StepTeacher",
    "Teacher",
    "TeacherStop",
    "demonstrations",
    "drop_reason",
    "for_step",
    "generate",
    "is_no_input",
    "kept_by_rouge",
    "parse_worksheet",
    "read_events",
    "read_manifest",
    "recipe_of",
    "refilter",
    "requests",
    "rule_set",
    "seeds_of",
    "settings_of",
]
