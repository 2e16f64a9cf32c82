"""The data room: instructions made, read, filtered, kept apart. No torch here.

`formats`, `conversations`, `comparisons` and `ranked` read rows of files (`rows`), whose format
`detection` tells and `importing` makes our own; `self_instruct` lets a teacher write new
tasks, `filters` and `novelty` decide which of them stay, and `splits` is the firewall between the
prompts of the stages.
"""

from alpaca_rlhf.data.comparisons import dialogue, read_pairs
from alpaca_rlhf.data.decisions import Check
from alpaca_rlhf.data.detection import FORMATS, Format, FormatName, Kind, Look, look
from alpaca_rlhf.data.events import EventStore, read_events, read_manifest
from alpaca_rlhf.data.exporting import Exportable, Target, export, exportable
from alpaca_rlhf.data.filters import RULES, Drop, Rule, drop_reason, rule_set
from alpaca_rlhf.data.formats import read_instructions, read_prompts, write_instructions
from alpaca_rlhf.data.history import Request, requests, seeds_of, settings_of
from alpaca_rlhf.data.importing import (
    Broken,
    Imported,
    Tally,
    import_rows,
    one_kind,
    refuse_broken,
)
from alpaca_rlhf.data.novelty import Neighbour, NoveltyIndex, tokens
from alpaca_rlhf.data.problems import BadRow
from alpaca_rlhf.data.ranked import holds_rankings, ranked_prompts, read_rankings
from alpaca_rlhf.data.recipe import Ask, StepName, StepTeacher
from alpaca_rlhf.data.refilter import Refiltered, kept_by_rouge, refilter
from alpaca_rlhf.data.rows import Rows, open_rows
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
from alpaca_rlhf.data.teachers import Reply, Teacher
from alpaca_rlhf.data.worksheets import demonstrations, parse_worksheet

__all__ = [
    "FORMATS",
    "RULES",
    "Ask",
    "BadRow",
    "Broken",
    "Check",
    "Drop",
    "Drops",
    "EventStore",
    "Exportable",
    "Firewall",
    "Format",
    "FormatName",
    "Generated",
    "GenerationProgress",
    "Imported",
    "Kind",
    "Leak",
    "Look",
    "Neighbour",
    "NoveltyIndex",
    "Refiltered",
    "Reply",
    "Request",
    "Rows",
    "Rule",
    "StepName",
    "StepTeacher",
    "Tally",
    "Target",
    "Teacher",
    "answered_prompts",
    "check_disjoint",
    "clusters",
    "demonstrations",
    "dialogue",
    "drop_reason",
    "export",
    "exportable",
    "generate",
    "holds_rankings",
    "import_rows",
    "kept_by_rouge",
    "look",
    "one_kind",
    "open_rows",
    "parse_worksheet",
    "prompt_text",
    "ranked_prompts",
    "read_events",
    "read_instructions",
    "read_manifest",
    "read_pairs",
    "read_prompts",
    "read_rankings",
    "refilter",
    "refuse_broken",
    "requests",
    "rule_set",
    "seeds_of",
    "settings_of",
    "split_prompts",
    "tokens",
    "write_instructions",
]
