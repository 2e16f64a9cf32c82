"""A reward adapter and its head as a sequence classifier of transformers with one label.

The classifier reads the last token that is not padding. Our reward model reads the last token of
the completion, eos where there is one. The two agree as long as no completion can end in the
padding token, so that token is one which no text contains, a new one if necessary.

The classifier's head has no bias. The gain of the normalisation is folded into its weights; the
bias, one number for all completions, is stored in `config.json` as `score_bias`. It changes no
order, no difference of scores and no advantage; add it to get the scores of training.

Of several heads their mean is written, which is linear too. What the run's score lies below it, by
pessimism, is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.exporting.tokenizer import spare_pad
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.base import Base
from alpaca_rlhf.models.batches import Example, example
from alpaca_rlhf.models.heads import EnsembleHead, ScalarHead
from alpaca_rlhf.models.merging import Weight, merged

_PAD = "<|pad|>"
_EMBEDDING = "model.embed_tokens.weight"
_REPLIES = ("Yes.", "Red, orange and yellow", "I do not know!", "9, 4")
"""Replies scored after each probe, once finished and once as if cut off."""


def with_padding(tokenizer: Any, config: Any, base: Base) -> int:
    """Give tokenizer and configuration a padding token that no text contains; return its id."""
    pad = spare_pad(tokenizer, base.stop_ids)
    if pad is None:
        tokenizer.add_special_tokens({"pad_token": _PAD})
        pad = int(tokenizer.pad_token_id)
    config.vocab_size = max(int(config.vocab_size), pad + 1)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    tokenizer.padding_side = "right"
    config.pad_token_id = pad
    return pad


def reward_weights(adapters: Adapters, role: str, head: ScalarHead, rows: int) -> list[Weight]:
    """List the classifier's tensors; its embedding is filled up to `rows` rows with zeros."""
    weights = []
    for weight in merged(adapters.base, role):
        if weight.name.startswith("lm_head."):
            continue
        if weight.name == _EMBEDDING and weight.shape[0] < rows:
            weights.append(_grown(weight, rows))
        else:
            weights.append(weight)
    score_weight = (head.gain * head.total).detach().float().cpu()[None]
    return [*weights, Weight("score.weight", tuple(score_weight.shape), lambda: score_weight)]


def of_heads(head: EnsembleHead) -> str:
    """The part of an ensemble that is exported, in words."""
    pessimism = float(head.pessimism)
    below = f", {pessimism:g} times their deviation above the score of the run" if pessimism else ""
    return f"exported is the mean of its {len(head.weight)} heads, one linear head{below}"


def classifier_config(config: Any, head: ScalarHead) -> Any:
    """Turn the configuration into that of the classifier, in place."""
    config.num_labels = 1
    config.id2label, config.label2id = {0: "score"}, {"score": 0}
    config.score_bias = float(head.bias)
    family = str(config.architectures[0]).removesuffix("ForCausalLM")
    config.architectures = [f"{family}ForSequenceClassification"]
    config.tie_word_embeddings = False
    return config


def scored_examples(base: Base, template: str, rows: Sequence[Instruction]) -> list[Example]:
    """Build completions to compare scores on: finished and cut ones of several lengths."""
    examples = []
    for number, row in enumerate(rows):
        for turn in range(2):
            reply = _REPLIES[(number + turn) % len(_REPLIES)]
            examples.append(example(base, template, row, reply, finished=not turn))
    return [scored for scored in examples if len(scored) <= base.context]


def read_classifier(
    folder: Path, dtype: torch.dtype, options: Mapping[str, Any]
) -> tuple[Any, float]:
    """Load the classifier as anybody else would, placed by `options`, and its score bias."""
    read = AutoModelForSequenceClassification.from_pretrained
    model: Any = read(str(folder), dtype=dtype, **options)
    return model.eval(), float(model.config.score_bias)


def _grown(weight: Weight, rows: int) -> Weight:
    """Fill a weight up to `rows` rows with zeros."""

    def make() -> torch.Tensor:
        trained = weight.make()
        return torch.cat([trained, trained.new_zeros(rows - len(trained), trained.shape[1])])

    return replace(weight, shape=(rows, weight.shape[1]), make=make)
