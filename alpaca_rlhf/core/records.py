"""Records that flow between the rooms: frozen records of text, and one bundle of tensors.

Text records are frozen dataclasses, because they are hashed and stored. `Rollout` holds tensors
that are sliced together. Nothing here imports torch at run time, so that `--help` and the data
rooms start at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    from torch import Tensor

FinishReason = Literal["eos", "length"]


_TRANSCRIPT_MARKS = (
    "Human:", "<extra_id_1>", "[INST]", "<|im_start|>", "<|start_header_id|>", "<start_of_turn>",
    "<|system|>", "<|user|>", "<|prompter|>", "<|START_OF_TURN_TOKEN|>", "<\uff5cUser\uff5c>",
    "### Instruction:", "### User:", "USER:",
)  # fmt: skip
"""Marks of turns in texts that may be whole dialogues, or be rendered with a chat template (see
`transcripts.py` and `template_marks.py` in `data/readers/`)."""


def content_hash(*parts: str) -> str:
    """The first 16 hex digits of the SHA-256 of `parts`, each preceded by its length."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(f"{len(data)}:".encode())
        digest.update(data)
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Instruction:
    """One task in Alpaca's three columns, or the last turn of a conversation.

    `output` is None where only the prompt is known.
    """

    instruction: str
    """The request."""
    input: str = ""
    """The material that the request is about; empty if there is none."""
    output: str | None = None
    """The reference answer, or None."""
    source: str = ""
    """Its origin: seed, self_instruct, a file name ..."""
    history: tuple[tuple[str, str], ...] = ()
    """Earlier turns of a conversation, (user, assistant), oldest first; empty for a lone task."""
    system: str = ""
    """The system text before the first turn; empty if there is none."""
    masked_replies: tuple[int, ...] = ()
    """Positions in `history` of replies that carry no loss in SFT."""

    @property
    def id(self) -> str:
        """Hash of instruction, input, history and system text.

        A prompt's id is the same whatever its output.
        """
        earlier_messages = [message for turn in self.history for message in turn]
        # Turns come in twos, so a system text after them cannot be taken for one.
        system = [self.system] if self.system else []
        return content_hash(self.instruction, self.input, *earlier_messages, *system)

    def to_json(self) -> dict[str, Any]:
        """Its columns, for a JSON line.

        `history`, `system` and `masked_replies` are left out where there are none.
        """
        columns: dict[str, Any] = {
            "instruction": self.instruction,
            "input": self.input,
            "output": self.output,
            "source": self.source,
        }
        masked = {"masked_replies": self.masked_replies} if self.masked_replies else {}
        return columns | self.dialogue_columns() | masked

    def dialogue_columns(self) -> dict[str, Any]:
        """The columns `history` and `system` of a JSON line, left out where there are none.

        A text that looks like a transcript, or like messages as JSON, has its `history` even if it
        is empty: beside one, the readers take an instruction as it stands.
        """
        columns: dict[str, Any] = {}
        looks_read = any(mark in self.instruction for mark in _TRANSCRIPT_MARKS)
        if self.history or looks_read or self.instruction.lstrip().startswith("["):
            columns["history"] = self.history
        return columns | ({"system": self.system} if self.system else {})

    @classmethod
    def from_json(cls, columns: Mapping[str, Any]) -> Instruction:
        """Restore what `to_json` gave; unknown columns raise TypeError."""
        history = tuple((user, reply) for user, reply in columns.get("history", ()))
        masked = tuple(columns.get("masked_replies", ()))
        return cls(**{**columns, "history": history, "masked_replies": masked})


@dataclass(frozen=True)
class Completion:
    """One generated text."""

    prompt_id: str
    """`Instruction.id` of the prompt it answers."""
    text: str
    """The decoded completion, without the eos token."""
    adapter: str = ""
    """Fingerprint of the adapter that wrote it; empty for text not written by a model of ours."""
    sampling: str = ""
    """The sampling settings, e.g. `temperature=1.0 top_p=1.0`."""
    seed: int = 0
    """Seed of the sampling noise."""
    sample: int = 0
    """Its number among the K samples of its prompt, from 0."""
    finish_reason: FinishReason = "eos"
    """`eos`: it stopped by itself; `length`: it was cut."""
    n_tokens: int = 0
    """Completion tokens, the eos included."""

    @property
    def id(self) -> str:
        """Hash of its prompt, text, adapter, sampling settings and noise."""
        return content_hash(
            self.prompt_id, self.text, self.adapter, self.sampling, f"{self.seed}/{self.sample}"
        )

    def to_json(self) -> dict[str, Any]:
        """Its fields and its id, for a JSON line."""
        return {"id": self.id, **asdict(self)}


@dataclass(frozen=True)
class Ranking:
    """One annotator's order of the completions of one prompt.

    Append-only: a correction is a new revision.
    """

    prompt_id: str
    """`Instruction.id` of the prompt."""
    tiers: tuple[tuple[str, ...], ...]
    """Completion ids, best tier first; ties share a tier."""
    annotator: str
    """A person's name, or `judge:<name>`."""
    criteria: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Completion id to criterion to stars (1 to 5); may be empty."""
    duration_s: float = 0.0
    """Seconds the annotator took."""
    revision: int = 0
    """0 for the first verdict, then 1, 2 ...: the highest revision counts."""

    def __post_init__(self) -> None:
        ids = [completion_id for tier in self.tiers for completion_id in tier]
        if len(ids) < 2:
            raise ValueError(
                f"ranking of {self.prompt_id}: needs at least 2 completions, got {len(ids)}"
            )
        if len(set(ids)) != len(ids):
            raise ValueError(f"ranking of {self.prompt_id}: a completion stands in two places")
        if any(not tier for tier in self.tiers):
            raise ValueError(f"ranking of {self.prompt_id}: a tier is empty")

    def to_json(self) -> dict[str, Any]:
        """Its fields, for a JSON line."""
        return asdict(self)


@dataclass(frozen=True)
class PreferencePair:
    """Two completions of one prompt, the better one first."""

    prompt: Instruction
    """The prompt both answer."""
    chosen: str
    """Text of the better completion."""
    rejected: str
    """Text of the worse one."""
    group: str
    """The prompt's id: no split ever parts a group."""
    margin: float = 0.0
    """Lead of the better one, as a share of `--reward.margin`; 0 if unknown."""


@dataclass(frozen=True)
class Rollout:
    """A batch of sampled completions. Masks are carried, never inferred from ids."""

    prompt_ids: Tensor
    """(B, P) int64, left-padded."""
    completion_ids: Tensor
    """(B, C) int64, right-padded."""
    prompt_mask: Tensor
    """(B, P) bool, True on prompt tokens."""
    completion_mask: Tensor
    """(B, C) bool, True through the first eos."""
    logprobs: Tensor
    """(B, C) float32, log-probability under the policy that sampled, from the training forward; 0
    where masked."""
    ref_logprobs: Tensor
    """(B, C) float32, the same under the frozen SFT adapter."""
    scores: Tensor
    """(B,) float32, score of the whole completion."""

    def __len__(self) -> int:
        return int(self.prompt_ids.shape[0])

    def __getitem__(self, rows: Any) -> Self:
        """The chosen rows of every tensor."""
        return replace(
            self, **{name: getattr(self, name)[rows] for name in self.__dataclass_fields__}
        )


@dataclass(frozen=True)
class ValuedRollout(Rollout):
    """A rollout for PPO, which has a value function."""

    values: Tensor
    """(B, C) float32, value of the state before each token."""
