"""A reward model as a judge: `reward:FOLDER`, of another run or exported, on the same base.

It is loaded when the first score is asked for. The score is the chance that the completion is
preferred to an average one of the SFT that the model was normalised on: the sigmoid of its reward.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.scorers import Response
from alpaca_rlhf.models.adapter_files import check_settings
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.base import Base
from alpaca_rlhf.models.batches import Example, example
from alpaca_rlhf.models.devices import float64
from alpaca_rlhf.models.heads import HEAD, ScalarHead
from alpaca_rlhf.models.scoring import score
from alpaca_rlhf.settings import Loop

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", HEAD)
"""Files of a reward adapter of ours."""
_CONFIG = "config.json"
_OFFLINE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def reward_files(folder: Path, flag: str) -> list[Path]:
    """The files of a reward model, whose hash is its digest.

    Args:
        folder: A reward adapter with its head, or an exported classifier.
        flag: What named it, as typed, for messages.

    Raises:
        UserError: It holds no reward model.
    """
    if all((folder / name).is_file() for name in ADAPTER_FILES):
        return [folder / name for name in ADAPTER_FILES]
    weights = sorted(folder.glob("*.safetensors"))
    if _is_classifier(folder) and weights:
        return [folder / _CONFIG, *weights]
    near = [
        place for place in (folder / "adapter", folder / "reward" / "adapter") if place.is_dir()
    ]
    meant = f"; did you mean reward:{near[0]}?" if near else ""
    raise UserError(
        f"{flag} reward:{folder}: holds no reward model (neither {', '.join(ADAPTER_FILES)} nor "
        f"what `alpaca-rlhf export --to reward` writes){meant}"
    )


def _is_classifier(folder: Path) -> bool:
    try:
        config = json.loads((folder / _CONFIG).read_bytes())
        return "score_bias" in config
    except (OSError, ValueError, TypeError):
        return False


@dataclass
class RewardScorer:
    """A reward model that scores in the run's own batches, on the run's base."""

    folder: Path
    batch_size: int
    """Responses scored at once."""
    role: str
    """The adapter's name beside the run's own."""
    place: str
    """The flag with its value, as typed, for messages."""
    adapters: Callable[[], Adapters] | None = field(default=None, init=False)
    """Gives the run's base with its adapters, once a stage needs it."""
    batched: Literal[True] = field(default=True, init=False)
    _loaded: _Classifier | None = field(default=None, init=False)

    def score_batch(self, responses: Sequence[Response]) -> list[float]:
        """Score completions, in [0, 1].

        Raises:
            UserError: The reward model belongs to another base, or cannot be read.
        """
        assert self.adapters is not None
        adapters = self.adapters()
        examples = [
            example(
                adapters.base,
                adapters.template,
                response.prompt,
                response.completion,
                finished=response.finished,
            )
            for response in responses
        ]
        rewards = self._rewards(adapters, examples)
        return [float(value) for value in torch.sigmoid(float64(rewards))]

    def refuse_other_settings(self, settings: Loop) -> None:
        """Refuse a reward adapter of another template or shape; the base is not loaded for it.

        Raises:
            UserError: The message names the flag and both values.
        """
        if (self.folder / HEAD).is_file():
            known = {"base_name": settings.base, "template": settings.template}
            check_settings(self.folder, settings.lora, known, self.place, lambda _: False)

    def refuse_other_base(self, adapters: Adapters) -> None:
        """Refuse a reward model of another base, once the run's is loaded.

        Raises:
            UserError: The message names the flag and both bases.
        """
        if (self.folder / HEAD).is_file():
            check_settings(
                self.folder,
                adapters.lora,
                adapters.fingerprint(),
                self.place,
                adapters.fits_earlier,
            )
        else:
            _refuse_other_vocabulary(self.folder, adapters.base)

    def _rewards(self, adapters: Adapters, examples: Sequence[Example]) -> torch.Tensor:
        """(N,) rewards."""
        if not (self.folder / HEAD).is_file():
            return self._classifier(adapters.base).rewards(examples)
        if self.role not in adapters.names:
            adapters.load(self.role, self.folder)
        return score(
            adapters, self.role, self._head(adapters.base), examples, batch_size=self.batch_size
        )

    def _head(self, base: Base) -> ScalarHead:
        head = ScalarHead.load(self.folder, int(base.model.config.hidden_size))
        return head.to(base.device)

    def _classifier(self, base: Base) -> _Classifier:
        if self._loaded is None:
            self._loaded = _Classifier(self.folder, base)
        return self._loaded


def _refuse_other_vocabulary(folder: Path, base: Base) -> None:
    """Refuse an exported reward model that does not read the run's tokens.

    Raises:
        UserError: Its tokenizer cannot be read, or has another vocabulary.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), **_OFFLINE)
    except Exception as error:  # whatever a cut or foreign file provokes
        raise _unreadable(folder, error) from None
    known = tokenizer.get_vocab()
    if any(known.get(token) != number for token, number in base.tokenizer.get_vocab().items()):
        raise UserError(
            f"{folder}: its vocabulary is not that of --base {base.name}; give a reward model "
            "on the same base"
        )


def _unreadable(folder: Path, error: Exception) -> UserError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UserError(f"{folder}: cannot be read ({reason}); export it anew")


class _Classifier:
    """An exported reward model, which is a sequence classifier of its own.

    Args:
        folder: Its folder.
        base: The run's base, whose tokens it must read.

    Raises:
        UserError: It cannot be read, or has another vocabulary.
    """

    def __init__(self, folder: Path, base: Base) -> None:
        read: Any = AutoModelForSequenceClassification.from_pretrained
        _refuse_other_vocabulary(folder, base)
        try:
            model = read(str(folder), dtype=base.dtype, **_OFFLINE)
        except Exception as error:  # whatever a cut or foreign file provokes
            raise _unreadable(folder, error) from None
        self._model = model.to(base.device).eval()
        self._bias = float(model.config.score_bias)
        self._pad = int(model.config.pad_token_id)

    @torch.no_grad()
    def rewards(self, examples: Sequence[Example]) -> torch.Tensor:
        """(N,) rewards of a batch."""
        rows = [[*scored.prompt, *scored.completion] for scored in examples]
        width = max(map(len, rows))
        ids = torch.tensor([row + [self._pad] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        device = self._model.device
        logits: torch.Tensor = self._model(
            input_ids=ids.to(device), attention_mask=mask.to(device)
        ).logits
        return logits[:, 0].float().cpu() + self._bias
