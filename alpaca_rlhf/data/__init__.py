"""The data room: instructions made, read, filtered, kept apart. No torch here.

`formats`, `conversations`, `comparisons`, `ranked` and `seeds` read rows of files (`rows`), whose
format `detection` tells and `importing` makes our own; `self_instruct` lets a teacher write new
tasks, `filters`, `novelty` and `decontamination` decide which of them stay, `clusters` says which
prompts are near-duplicates, `assignments` gives each prompt its split once and for good, and
`splits` is the firewall between the prompts of the stages.
"""

from alpaca_rlhf.data.generation.decisions import Check
from alpaca_rlhf.data.generation.events import EventStore, read_events, read_manifest
from alpaca_rlhf.data.generation.filters import RULES, Drop, Rule, drop_reason, rule_set
from alpaca_rlhf.data.generation.history import Request, recipe_of, requests, seeds_of, settings_of
from alpaca_rlhf.data.generation.recipe import Ask, StepName, StepTeacher
from alpaca_rlhf.data.generation.refilter import Refiltered, kept_by_rouge, refilter
from alpaca_rlhf.data.generation.self_instruct import Drops, Generated, GenerationProgress, generate
from alpaca_rlhf.data.generation.teachers import Reply, Teacher, TeacherStop, for_step
from alpaca_rlhf.data.generation.worksheets import demonstrations, parse_worksheet
from alpaca_rlhf.data.readers.comparisons import dialogue, read_pairs
from alpaca_rlhf.data.readers.detection import (
    FORMATS,
    DetectedFormat,
    Format,
    FormatName,
    Kind,
    detect_format,
)
from alpaca_rlhf.data.readers.exporting import Exportable, Target, export, exportable
from alpaca_rlhf.data.readers.formats import read_instructions, read_prompts, write_instructions
from alpaca_rlhf.data.readers.importing import (
    BrokenRowPolicy,
    Imported,
    RowTally,
    import_rows,
    one_kind,
    refuse_broken,
)
from alpaca_rlhf.data.readers.problems import BadRow
from alpaca_rlhf.data.readers.ranked import holds_rankings, ranked_prompts, read_rankings
from alpaca_rlhf.data.readers.rows import Rows, open_rows
from alpaca_rlhf.data.readers.seeds import SHIPPED, read_seeds, seed_file
from alpaca_rlhf.data.splits.assignments import (
    Dealing,
    SplitAssignment,
    deal,
    files_of,
    read_assignments,
    write_assignments,
)
from alpaca_rlhf.data.splits.clusters import answered_prompts, clusters, prompt_text
from alpaca_rlhf.data.splits.decontamination import EvaluationPrompts
from alpaca_rlhf.data.splits.firewall import Firewall, Leak, check_disjoint, split_prompts
from alpaca_rlhf.data.splits.novelty import Neighbour, NoveltyIndex, tokens

__all__ = [
    "FORMATS",
    "RULES",
    "SHIPPED",
    "Ask",
    "Assigned",
    "BadRow",
    "Broken",
    "Check",
    "Dealt",
    "Drop",
    "Drops",
    "Evaluation",
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
    "TeacherStop",
    "answered_prompts",
    "check_disjoint",
    "clusters",
    "deal",
    "demonstrations",
    "dialogue",
    "drop_reason",
    "export",
    "exportable",
    "files_of",
    "for_step",
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
    "read_assignments",
    "read_events",
    "read_instructions",
    "read_manifest",
    "read_pairs",
    "read_prompts",
    "read_rankings",
    "read_seeds",
    "recipe_of",
    "refilter",
    "refuse_broken",
    "requests",
    "rule_set",
    "seed_file",
    "seeds_of",
    "settings_of",
    "split_prompts",
    "tokens",
    "write_assignments",
    "write_instructions",
]
