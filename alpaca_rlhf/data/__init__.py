"""The data room: instructions made, read, filtered, kept apart. No torch here.

`formats`, `conversations` and `comparisons` read files, `self_instruct` lets a teacher write new
tasks, `filters` and `novelty` decide which of them stay, and `splits` is the firewall between the
prompts of the stages.
"""

from alpaca_rlhf.data.comparisons import (
    dialogue,
    holds_trees,
    ranked_prompts,
    read_pairs,
    read_ranking_trees,
)
from alpaca_rlhf.data.decisions import Check
from alpaca_rlhf.data.events import EventStore, read_events, read_manifest
from alpaca_rlhf.data.filters import RULES, Drop, Rule, drop_reason, rule_set
from alpaca_rlhf.data.formats import read_instructions, read_prompts, write_instructions
from alpaca_rlhf.data.history import Request, recipe_of, requests, seeds_of, settings_of
from alpaca_rlhf.data.novelty import Neighbour, NoveltyIndex, tokens
from alpaca_rlhf.data.recipe import Ask, StepName, StepTeacher
from alpaca_rlhf.data.refilter import Refiltered, kept_by_rouge, refilter
from alpaca_rlhf.data.self_instruct import Drops, Generated, GenerationProgress, generate
from alpaca_rlhf.data.splits import (
    Firewall,
    Leak,
    answered_prompts,
    check_disjoint,
    clusters,
    prompt_text,
    split_prompts,
)
from alpaca_rlhf.data.teachers import Reply, Teacher, TeacherStop, for_step
from alpaca_rlhf.data.worksheets import demonstrations, parse_worksheet

__all__ = [
    "RULES",
    "Ask",
    "Check",
    "Drop",
    "Drops",
    "EventStore",
    "Firewall",
    "Generated",
    "GenerationProgress",
    "Leak",
    "Neighbour",
    "NoveltyIndex",
    "Refiltered",
    "Reply",
    "Request",
    "Rule",
    "StepName",
    "StepTeacher",
    "Teacher",
    "TeacherStop",
    "answered_prompts",
    "check_disjoint",
    "clusters",
    "demonstrations",
    "dialogue",
    "drop_reason",
    "for_step",
    "generate",
    "holds_trees",
    "kept_by_rouge",
    "parse_worksheet",
    "prompt_text",
    "ranked_prompts",
    "read_events",
    "read_instructions",
    "read_manifest",
    "read_pairs",
    "read_prompts",
    "read_ranking_trees",
    "recipe_of",
    "refilter",
    "requests",
    "rule_set",
    "seeds_of",
    "settings_of",
    "split_prompts",
    "tokens",
    "write_instructions",
]
