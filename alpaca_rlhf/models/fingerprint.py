"""The fingerprint of a base: a hash of all that an adapter depends on.

It is taken from the checkpoint as stored, so it is the same on every machine and in every compute
dtype. Earlier versions hashed the weights as loaded, quantised from the compute dtype of the
machine; those fingerprints are verified by their own formula.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from typing import Any

import torch
from bitsandbytes.functional import quantize_4bit
from torch import Tensor, nn

from alpaca_rlhf.models.checkpoint import StoredTensor

logger = logging.getLogger(__name__)

_MARK = "2-"
"""Begins a fingerprint of this formula; earlier ones are 16 hexadecimal digits alone."""
_DIGITS = 16
_EARLIER_CONFIGURATION = (
    "model_type",
    "hidden_act",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_parameters",
)
"""Configuration keys that change the model's function but no shape of a weight."""
_CONFIGURATION = (
    *_EARLIER_CONFIGURATION,
    "hidden_activation",
    "layer_types",
    "query_pre_attn_scalar",
    "sliding_window",
)
_EARLIER_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
"""Compute dtypes in which an earlier version may have loaded a base."""


class EarlierFingerprints:
    """The fingerprints that earlier versions gave a base, one for each compute dtype.

    Args:
        name: The base, as typed.
        model: The base as loaded.
        tokenizer: Its tokenizer, with the chat template as published.
        quantization: `nf4` or `none`.
        tensors: The checkpoint's tensors.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        tokenizer: Any,
        quantization: str,
        tensors: Mapping[str, StoredTensor],
    ) -> None:
        self._name = name
        self._model = model
        self._tensors = tensors
        self._tokenizer = tokenizer
        self._quantization = quantization
        # The chat template may be changed later: the date is written into it.
        self._special = _special(tokenizer)
        self._told = False
        self.dtype_of = cache(self._dtype_of)

    def fits(self, fingerprint: object) -> bool:
        """True if an earlier version gave this base that fingerprint; says so, once."""
        dtype = self.dtype_of(fingerprint)
        if dtype is None:
            return False
        if not self._told:
            logger.warning(
                "--base %s: its adapters were made by an earlier version, which quantised it from "
                "%s; it is the same base, and they are taken",
                self._name,
                str(dtype).removeprefix("torch."),
            )
            self._told = True
        return True

    def _dtype_of(self, fingerprint: object) -> torch.dtype | None:
        """Dtype from which an earlier version quantised this base; None if it is another base."""
        is_earlier = isinstance(fingerprint, str) and len(fingerprint) == _DIGITS
        if not is_earlier:
            return None
        for dtype in _EARLIER_DTYPES:
            if self._computed(dtype) == fingerprint:
                return dtype
        return None

    @cached_property
    def _start(self) -> hashlib._Hash:
        """The digest of all but the weights; most bases have no adapter that asks for it."""
        return _identity(
            self._model, self._tokenizer, self._special, self._quantization, _EARLIER_CONFIGURATION
        )

    @torch.no_grad()
    def _computed(self, dtype: torch.dtype) -> str | None:
        """The fingerprint in a compute dtype, one tensor in memory at a time."""
        digest = self._start.copy()
        for name, parameter in own_parameters(self._model):
            stored = self._tensors.get(name)
            if stored is None:
                return None
            weight = stored.load()
            if hasattr(parameter, "quant_state") and weight.is_floating_point():
                weight = weight.to(parameter.device, dtype).contiguous()
                weight = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)[0]
            elif weight.is_floating_point():
                weight = weight.to(dtype)
            _add_loaded(digest, name, weight)
        return digest.hexdigest()[:_DIGITS]


def fingerprint_of(
    model: nn.Module, tokenizer: Any, quantization: str, tensors: Mapping[str, StoredTensor]
) -> str:
    """Hash quantisation, configuration, vocabulary, special tokens, chat template and weights.

    Args:
        model: The base as loaded.
        tokenizer: Its tokenizer, with the chat template as published.
        quantization: `nf4` or `none`.
        tensors: The checkpoint's tensors; where there are none, the loaded ones are hashed.
    """
    digest = _identity(model, tokenizer, _special(tokenizer), quantization, _CONFIGURATION)
    if not tensors:
        for name, parameter in own_parameters(model):
            _add_loaded(digest, name, parameter)
        return _MARK + digest.hexdigest()[:_DIGITS]
    is_tied = bool(getattr(model.config, "tie_word_embeddings", False))
    for name, tensor in sorted(tensors.items()):
        # Checkpoints may or may not hold a tied head, and numbers that are computed anyway.
        if name.endswith("inv_freq") or (is_tied and name == "lm_head.weight"):
            continue
        digest.update(f"{name} {tensor.shape}".encode())
        digest.update(tensor.sample())
    return _MARK + digest.hexdigest()[:_DIGITS]


def own_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Parameters of the base by name, without those of adapters."""
    return sorted(
        (n.replace(".base_layer", ""), p) for n, p in model.named_parameters() if "lora_" not in n
    )


def _special(tokenizer: Any) -> list[Any]:
    return [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.chat_template]


def _identity(
    model: nn.Module,
    tokenizer: Any,
    special: Sequence[Any],
    quantization: str,
    keys: tuple[str, ...],
) -> hashlib._Hash:
    """A digest of all but the weights."""
    digest = hashlib.sha256(quantization.encode())
    settings = {key: getattr(model.config, key, None) for key in keys}
    digest.update(json.dumps([settings, special], sort_keys=True, default=str).encode())
    digest.update(
        json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=False).encode(
            "utf-8", "surrogatepass"
        )
    )
    return digest


def _add_loaded(digest: hashlib._Hash, name: str, weight: Tensor) -> None:
    """Hash the shape and 1024 evenly spaced elements of a weight as loaded."""
    digest.update(f"{name} {tuple(weight.shape)}".encode())
    flat = weight.detach().flatten()
    sample = flat[:: -(-len(flat) // 1024)]
    if sample.dtype != torch.uint8:  # rounded to steps that bf16, fp16 and fp32 copies agree on
        sample = (sample.float() * 1024).round().int()
    digest.update(sample.cpu().contiguous().view(torch.uint8).numpy().tobytes())
