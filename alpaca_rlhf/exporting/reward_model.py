"""A reward adapter and its head as a sequence classifier of transformers with one label.

The classifier reads the last token that is not padding. Ours reads the last token of the
completion, the eos where there is one. They are the same as long as no completion can end in the
padding token; so the padding token is one that no text is made of, new if need be.

Its head has no bias. The gain of the normalisation is folded into its weights; what is left, one
number for all completions, stands in `config.json` as `score_bias`. It changes no order, no
difference of scores and no advantage; who wants the very scores adds it.
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
from alpaca_rlhf.models.heads import ScalarHead
from alpaca_rlhf.models.merging import Weight, merged

_PAD = "<|pad|>"
_EMBEDDING = "model.embed_tokens.weight"
_REPLIES = ("Yes.", "Red, orange and yellow", "I do not know!", "9, 4")
"""What is scored after each probe; every second time as if it had been cut."""


def with_padding(tokenizer: Any, config: Any, base: Base) -> int:
    """Give tokenizer and configuration a padding token that no text is made of; its id."""
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
    """Tensors of the classifier; its embedding has so many rows, new ones zero."""
    out = []
    for one in merged(adapters.base, role):
        if one.name.startswith("lm_head."):
            continue
        if one.name == _EMBEDDING and one.shape[0] < rows:
            out.append(_grown(one, rows))
        else:
            out.append(one)
    weight = (head.gain * head.total).detach().float().cpu()[None]
    return [*out, Weight("score.weight", tuple(weight.shape), lambda: weight)]


def classifier_config(config: Any, head: ScalarHead) -> Any:
    """The configuration as that of the classifier; changed in place."""
    config.num_labels = 1
    config.id2label, config.label2id = {0: "score"}, {"score": 0}
    config.score_bias = float(head.bias)
    family = str(config.architectures[0]).removesuffix("ForCausalLM")
    config.architectures = [f"{family}ForSequenceClassification"]
    config.tie_word_embeddings = False
    return config


def scored_examples(base: Base, template: str, rows: Sequence[Instruction]) -> list[Example]:
    """Completions to compare scores on: finished and cut ones of several lengths."""
    out = []
    for number, row in enumerate(rows):
        for turn in range(2):
            reply = _REPLIES[(number + turn) % len(_REPLIES)]
            out.append(example(base, template, row, reply, finished=not turn))
    return [one for one in out if len(one) <= base.context]


def read_classifier(
    folder: Path, dtype: torch.dtype, options: Mapping[str, Any]
) -> tuple[Any, float]:
    """What anybody else reads there, placed by `options`, and the bias beside it."""
    read = AutoModelForSequenceClassification.from_pretrained
    model: Any = read(str(folder), dtype=dtype, **options)
    return model.eval(), float(model.config.score_bias)


def _grown(one: Weight, rows: int) -> Weight:
    def make() -> torch.Tensor:
        own = one.make()
        return torch.cat([own, own.new_zeros(rows - len(own), own.shape[1])])

    return replace(one, shape=(rows, one.shape[1]), make=make)
