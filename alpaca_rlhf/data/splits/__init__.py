"""The split of each prompt: near-duplicate clusters, dealing, decontamination and the firewall."""

from alpaca_rlhf.data.splits.assignments import (
    SplitAssignment,
    files_of,
    read_assignments,
    write_assignments,
)
from alpaca_rlhf.data.splits.clusters import (
    answered_prompts,
    cluster_numbers,
    clusters,
    prompt_text,
)
from alpaca_rlhf.data.splits.dealing import Dealing, deal, deal_rest, split_prompts
from alpaca_rlhf.data.splits.decontamination import EvaluationPrompts
from alpaca_rlhf.data.splits.firewall import Firewall, Leak, check_disjoint

__all__ = [
    "Dealing",
    "EvaluationPrompts",
    "Firewall",
    "Leak",
    "SplitAssignment",
    "answered_prompts",
    "check_disjoint",
    "cluster_numbers",
    "clusters",
    "deal",
    "deal_rest",
    "files_of",
    "prompt_text",
    "read_assignments",
    "split_prompts",
    "write_assignments",
]
