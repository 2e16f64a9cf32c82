"""One verdict on a base from its configuration: the families that are taken, and those refused.

Training, doctor, plan and exports ask here, so that none takes what another refuses. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alpaca_rlhf.core.errors import UserError

FAMILIES = {
    "llama": "LLaMA",
    "mistral": "Mistral",
    "qwen2": "Qwen 2 and 2.5",
    "qwen3": "Qwen 3",
    "gemma3_text": "Gemma 3 (text)",
}
"""Model types that are computed, planned, merged and exported, with their names for people."""

_ACTIVATIONS = {"gemma3_text": ("gelu_pytorch_tanh", "gelu_tanh")}
"""Activations of the feed-forward block, where not SiLU."""
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_LAYER_NORM = "its blocks have LayerNorm and biases, or no gate"
_NO_ATTENTION = "some of its layers are recurrent, without attention"
_REASONS = {
    "bert": "it is an encoder, or has the layers of one",
    "bloom": _LAYER_NORM,
    "cohere": "its logits are scaled, and its attention and feed-forward blocks run in parallel",
    "cohere2": "its logits are scaled, and its attention and feed-forward blocks run in parallel",
    "falcon": _LAYER_NORM,
    "falcon_h1": _NO_ATTENTION,
    "gemma": "its norms and scaled embeddings are those of the first Gemma",
    "gemma2": "its attention scores and its logits are capped",
    "glm": "its gate and up matrices are fused into one, and half of each head is rotated",
    "glm4": "its gate and up matrices are fused into one, and half of each head is rotated",
    "gpt2": _LAYER_NORM,
    "gpt_neox": _LAYER_NORM,
    "gpt_oss": "its attention has learned sinks, and its feed-forward block is a mixture",
    "gptj": _LAYER_NORM,
    "granite": "its embeddings, attention scores and logits are scaled",
    "jamba": _NO_ATTENTION,
    "lfm2": _NO_ATTENTION,
    "llama4_text": "it is a mixture of experts",
    "mamba": _NO_ATTENTION,
    "mamba2": _NO_ATTENTION,
    "mpt": _LAYER_NORM,
    "olmo": "its norms have no weights",
    "olmo2": "its norms stand after the blocks instead of before them",
    "olmo3": "its norms stand after the blocks instead of before them",
    "opt": _LAYER_NORM,
    "phi": _LAYER_NORM,
    "phi3": "its query, key and value matrices are fused into one, its gate and up into another",
    "qwen3_next": _NO_ATTENTION,
    "recurrent_gemma": _NO_ATTENTION,
    "rwkv": _NO_ATTENTION,
    "smollm3": "some of its layers have no rotary positions",
    "stablelm": _LAYER_NORM,
    "starcoder2": _LAYER_NORM,
}
"""The difference from the families that are taken, by model type."""

_METHODS = {
    "aqlm": "AQLM",
    "auto-round": "AutoRound",
    "auto_round": "AutoRound",
    "awq": "AWQ",
    "bitnet": "BitNet",
    "compressed-tensors": "compressed-tensors",
    "eetq": "EETQ (int8)",
    "exl2": "EXL2",
    "exl3": "EXL3",
    "fbgemm_fp8": "FP8 (FBGEMM)",
    "fouroversix": "FP4",
    "fp8": "FP8",
    "fp_quant": "FP4 (FP-Quant)",
    "gptq": "GPTQ",
    "higgs": "HIGGS",
    "hqq": "HQQ",
    "metal": "Metal",
    "modelopt": "ModelOpt",
    "mxfp4": "MXFP4",
    "quanto": "Quanto",
    "quark": "Quark",
    "sinq": "SINQ",
    "spqr": "SpQR",
    "torchao": "torchao",
    "vptq": "VPTQ",
}
"""Quantisation methods of checkpoints, as people write them."""

_SUFFIX = re.compile(
    r"[-_.](unsloth|bnb|gptq|awq|autoround|hqq|aqlm|eetq|exl[23]|quanto|torchao|quantized|"
    r"fp8|fp4|nvfp4|mxfp4|int[48]|w\d+a\d+|g\d+|[2348][-_]?bits?|dynamic|kv)$",
    re.IGNORECASE,
)
"""An ending that a quantised copy adds to the name of its original."""
_BASE_MODEL = re.compile(r"^base_model:\s*(?:\n\s*-\s*)?[\"']?([\w.-]+/[\w.-]+)", re.MULTILINE)


def check_config(base: str, config: Mapping[str, Any]) -> None:
    """Refuse a base that cannot be trained and exported, for its true reason.

    Args:
        base: The base, as typed.
        config: Contents of its config.json.

    Raises:
        UserError: It is quantised in another way than NF4, of another family, or of a taken family
            with a setting that changes what its layers compute.
    """
    _check_quantization(base, config)
    kind = str(config.get("model_type") or "")
    reason = _difference(kind, config)
    if reason is not None:
        name = (config.get("architectures") or [kind or "a model without a model_type"])[0]
        raise UserError(f"--base {base}: {name} is not taken: {reason}; {taken_families()}")


def taken_families() -> str:
    """The families that are taken, as the end of a refusal."""
    *names, last = FAMILIES.values()
    return f"bases of these families are: {', '.join(names)} and {last}"


def is_nf4(config: Mapping[str, Any]) -> bool:
    """True if a checkpoint is stored in bitsandbytes' NF4 already."""
    settings = quantization_of(config)
    return (
        settings.get("quant_method", "").startswith("bitsandbytes")
        and bool(settings.get("load_in_4bit") or settings.get("_load_in_4bit"))
        and settings.get("bnb_4bit_quant_type", "fp4") == "nf4"
    )


def quantization_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The quantisation of a checkpoint as its configuration tells it; empty if there is none."""
    settings = config.get("quantization_config") or config.get("compression_config") or {}
    if not isinstance(settings, Mapping):
        settings = settings.to_dict()
    method = settings.get("quant_method", "bitsandbytes")
    # A loaded model has a member of an enumeration there.
    name = str(getattr(method, "value", method) or "bitsandbytes").lower()
    return {**settings, "quant_method": name} if settings else {}


def refuse_quantized(base: str, method: str, config: Mapping[str, Any]) -> UserError:
    """The refusal of a checkpoint that is quantised by a method that cannot be trained."""
    original = _original(base, config)
    way = (
        f"give the full-precision checkpoint, --base {original}"
        if original
        else "give the full-precision checkpoint that it was made from"
    )
    return UserError(
        f"--base {base}: its checkpoint is quantised in {method}, and of the quantised ones only "
        f"bitsandbytes' NF4 (bnb-4bit) can be trained and exported; {way}"
    )


def _check_quantization(base: str, config: Mapping[str, Any]) -> None:
    settings = quantization_of(config)
    if not settings or is_nf4(config):
        return
    method = settings["quant_method"]
    bits = settings.get("bits") or settings.get("w_bit") or settings.get("nbits")
    if method.startswith("bitsandbytes"):
        is_int8 = settings.get("load_in_8bit") or settings.get("_load_in_8bit")
        kind = str(settings.get("bnb_4bit_quant_type", "fp4")).upper()
        name = "int8 (bitsandbytes)" if is_int8 else f"{kind} (bitsandbytes)"
    else:
        name = _METHODS.get(method, method) + (f" ({bits} bits)" if isinstance(bits, int) else "")
    raise refuse_quantized(base, name, config)


def _difference(kind: str, config: Mapping[str, Any]) -> str | None:
    """Name the thing that a base computes and this kit does not; None if there is nothing."""
    # 1. Another family.
    if kind not in FAMILIES:
        if config.get("vision_config") or config.get("audio_config"):
            return "it reads images or sound beside text"
        if any(_is_several(config.get(key)) for key in _EXPERTS):
            return "it is a mixture of experts"
        if config.get("is_encoder_decoder"):
            return "it is an encoder with a decoder"
        return _REASONS.get(kind, "its layers are unknown here")
    # 2. A family that is taken, with a setting that changes what its layers compute.
    if any(config.get(key) for key in ("final_logit_softcapping", "attn_logit_softcapping")):
        return "its attention scores or its logits are capped"
    if config.get("use_bidirectional_attention"):
        return "its tokens attend to later ones"
    if any(_is_several(config.get(key)) for key in _EXPERTS):
        return "it is a mixture of experts"
    activations = _ACTIVATIONS.get(kind, ("silu", "swish"))
    activation = config.get("hidden_act") or config.get("hidden_activation") or activations[0]
    if kind == "gemma3_text":
        activation = config.get("hidden_activation") or activations[0]
    if activation not in activations:
        return f"its feed-forward block has the activation {activation}, not {activations[0]}"
    others = set(config.get("layer_types") or ()) - {"full_attention", "sliding_attention"}
    if others:
        return f"it has layers of the type {min(others)}"
    return None


def _is_several(number: object) -> bool:
    return isinstance(number, int) and number > 1


def _original(base: str, config: Mapping[str, Any]) -> str | None:
    """Name of the full-precision checkpoint: as the model card tells it, or by its own name."""
    try:
        folder = Path(base).expanduser()
        card = folder / "README.md"
        if card.is_file():
            match = _BASE_MODEL.search(card.read_text(encoding="utf-8", errors="replace"))
            if match and match.group(1) != base:
                return match.group(1)
        if folder.is_dir():
            base = str(config.get("_name_or_path") or "")
    except (OSError, RuntimeError):
        pass
    owner, slash, name = base.partition("/")
    if not slash or "/" in name or not owner.strip(".~"):
        return None
    plain = name
    while _SUFFIX.search(plain):
        plain = _SUFFIX.sub("", plain)
    # Who only quantises has no original under that name.
    return f"{owner}/{plain}" if plain != name and owner not in _QUANTISERS else None


_QUANTISERS = ("TheBloke", "bartowski", "neuralmagic", "RedHatAI", "casperhansen", "MaziyarPanahi")
"""Owners on the hub who publish quantised copies of others' models."""
