"""Answers to given prompts by a model that follows instructions, kept by a judge.

Rejection sampling (RAFT, arXiv 2304.06767; Llama 2, arXiv 2307.09288 section 3.2.3), with a judge
in place of the reward model: the teacher answers each prompt until an answer passes the caller's
check, and the rows that pass are what SFT demonstrates. For an instruct base as its own teacher.
With editing it drafts answers to the requests alone, which are then edited until they meet the
constraints of `checks`. Prompts that differ in their constraints alone share a draft.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from alpaca_rlhf.checks.editing import draft_request, edit_draft
from alpaca_rlhf.core.prompts import user_text
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data.generation.filters import Drop
from alpaca_rlhf.data.generation.recipe import SOURCE, GenerationRequest
from alpaca_rlhf.data.generation.teachers import Reply


class AnswersRecipe:
    """Passes over the prompts that have no accepted answer yet, in their order.

    Args:
        prompts: The prompts to answer; their outputs are not looked at.
        attempts: Passes at most, so answers to one prompt at most.
        editing: Ask for a draft without the constraints that editing can meet, and edit it.
    """

    def __init__(
        self, prompts: Sequence[Instruction], *, attempts: int, editing: bool = False
    ) -> None:
        self._editing = editing
        self._unanswered = [replace(prompt, output=None) for prompt in prompts]
        self._attempts = attempts

    def phase(self, first: int) -> list[GenerationRequest]:
        """One pass over the prompts without an answer; empty once there is none, or no attempt."""
        if not self._attempts:
            return []
        self._attempts -= 1
        if not self._editing:
            return [GenerationRequest("reply", user_text(row), row) for row in self._unanswered]
        by_text: dict[str, list[Instruction]] = {}
        for row in self._unanswered:
            by_text.setdefault(draft_request(row), []).append(row)
        return [
            GenerationRequest("reply", text, first_row, tuple(others))
            for text, (first_row, *others) in by_text.items()
        ]

    def read(self, ask: GenerationRequest, reply: Reply) -> tuple[list[Instruction], list[Drop]]:
        """The prompt with the reply as its output; a reply that was cut is none.

        Editing takes the whole sentences of a draft, so that one may be cut; each prompt that
        shares the draft has its own answer.
        """
        if ask.about is None:
            return [], []
        if self._editing:
            prompts = (ask.about, *ask.siblings)
            edited = [
                replace(prompt, output=edit_draft(prompt, reply.text), source=SOURCE)
                for prompt in prompts
            ]
            unusable = "the draft has no sentences that can be used"
            drops = [Drop("empty", unusable, row) for row in edited if not row.output]
            return [row for row in edited if row.output], drops
        row = replace(ask.about, output=reply.text.strip(), source=SOURCE)
        if reply.finish_reason != "eos":
            return [], [Drop("cut", "the reply ends before the teacher did", row)]
        if not row.output:
            return [], [Drop("empty", "the reply is empty", row)]
        return [row], []

    def learn(self, ask: GenerationRequest, reply: Reply, accepted: Sequence[Instruction]) -> None:
        """A prompt with an accepted answer is not asked again."""
        answered = {row.id for row in accepted}
        if answered:
            self._unanswered = [row for row in self._unanswered if row.id not in answered]
