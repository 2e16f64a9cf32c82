"""The data room: instructions made, read, filtered, kept apart. No torch here.

`formats`, `conversations` and `comparisons` read files, `self_instruct` lets a teacher write new
tasks, `filters`, `novelty` and `decontamination` decide which of them stay, `clusters` says which
prompts are near-duplicates, `assignments` gives each prompt its split once and for good, and
`splits` is the firewall between the prompts of the stages.
"""

from alpaca_rlhf.data.assignments import (
    Assigned,
    Dealt,
    deal,
    files_of,
    read_assignments,
    write_assignments,
)
from alpaca_rlhf.data.clusters import answered_prompts, clusters, prompt_text
from alpaca_rlhf.data.comparisons import (
    dialogue,
    holds_trees,
    ranked_prompts,
    read_pairs,
    read_ranking_trees,
)
from alpaca_rlhf.data.decontamination import Evaluation
from alpaca_rlhf.data.filters import RULES, Drop, Rule, drop_reason, rule_set
from alpaca_rlhf.data.formats import read_instructions, read_prompts, write_instructions
from alpaca_rlhf.data.novelty import Neighbour, NoveltyIndex, tokens
from alpaca_rlhf.data.self_instruct import Generated, GenerationProgress, demonstrations, generate
from alpaca_rlhf.data.splits import Firewall, Leak, check_disjoint, split_prompts
from alpaca_rlhf.data.teachers import Reply, Teacher
from alpaca_rlhf.data.worksheets import parse_worksheet

__all__ = [
    "RULES",
    "Assigned",
    "Dealt",
    "Drop",
    "Evaluation",
    "Firewall",
    "Generated",
    "GenerationProgress",
    "Leak",
    "Neighbour",
    "NoveltyIndex",
    "Reply",
    "Rule",
    "Teacher",
    "answered_prompts",
    "check_disjoint",
    "clusters",
    "deal",
    "demonstrations",
    "dialogue",
    "drop_reason",
    "files_of",
    "generate",
    "holds_trees",
    "parse_worksheet",
    "prompt_text",
    "ranked_prompts",
    "read_assignments",
    "read_instructions",
    "read_pairs",
    "read_prompts",
    "read_ranking_trees",
    "rule_set",
    "split_prompts",
    "tokens",
    "write_assignments",
    "write_instructions",
]
