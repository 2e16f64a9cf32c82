"""Sizes of a base of a family that is taken, from its configuration alone: no weights, no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpaca_rlhf.core.bases import (
    EMBEDDED,
    SMOLLM2,
    is_gguf,
    refuse_no_checkpoint,
    refuse_no_folder,
    smollm2_folder,
)
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.runs import data_path
from alpaca_rlhf.models.families import check_config
from alpaca_rlhf.models.gguf_header import read_header
from alpaca_rlhf.models.hub import hub_refusal

NF4_BLOCK = 64
"""Weights that share a scale (bitsandbytes' default block of 4-bit quantisation)."""
SCALE_BLOCK = 256
"""Scales that share a second-level scale: double quantisation (QLoRA, arXiv 2305.14314)."""
ADAPTED = 7
"""Linear layers of a decoder layer, all of which have an adapter."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a base."""

    name: str
    """The base as the user typed it."""
    hidden: int
    """Hidden size H."""
    inner: int
    """Width of the feed-forward block."""
    layers: int
    """Number of decoder layers."""
    heads: int
    """Number of query heads."""
    kv_heads: int
    """Number of key and value heads; fewer than `heads` under grouped-query attention."""
    head_size: int
    """Width of a head."""
    vocabulary: int
    """Vocabulary size V."""
    context: int
    """Longest sequence, in tokens."""
    tied: bool = False
    """The output head shares the embedding matrix."""
    attention_bias: bool = False
    """Query, key, value and output projections have a bias."""
    family: str = "llama"
    """Model type, which tells what its layers have beside those of a LLaMA."""
    window: int | None = None
    """Tokens that a layer with a sliding window attends to."""
    windowed: int = 0
    """Layers with a sliding window."""

    @property
    def qkv_bias(self) -> bool:
        """Query, key and value projections alone have a bias."""
        return self.family == "qwen2"

    @property
    def head_norms(self) -> bool:
        """The queries and keys of every head are normalised."""
        return self.family in ("qwen3", "gemma3_text")

    @property
    def gemma(self) -> bool:
        """Embeddings are scaled, blocks are normalised after as well as before, all in fp32."""
        return self.family == "gemma3_text"

    @property
    def queries(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_size

    @property
    def keys(self) -> int:
        """Width of all key heads together."""
        return self.kv_heads * self.head_size

    @property
    def linears(self) -> tuple[tuple[int, int], ...]:
        """(in, out) of query, key, value, output, gate, up and down."""
        h, q, k, i = self.hidden, self.queries, self.keys, self.inner
        return ((h, q), (h, k), (h, k), (q, h), (h, i), (h, i), (i, h))

    @property
    def layer_weights(self) -> int:
        """4-bit weights of one decoder layer."""
        return sum(a * b for a, b in self.linears)

    @property
    def largest(self) -> int:
        """Weights of the largest 4-bit matrix."""
        return max(a * b for a, b in self.linears)

    @property
    def embeddings(self) -> int:
        """Weights of the embeddings and, unless tied, of the output head."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All weights of the base."""
        return self.layers * self.layer_weights + self.embeddings + self._small

    @property
    def _small(self) -> int:
        norms = ((4 if self.gemma else 2) * self.layers + 1) * self.hidden
        norms += 2 * self.layers * self.head_size if self.head_norms else 0
        biases = self.queries + 2 * self.keys + (self.hidden if self.attention_bias else 0)
        return norms + (self.layers * biases if self.attention_bias or self.qkv_bias else 0)

    def nf4_bytes(self) -> int:
        """Bytes of 4-bit codes, their scales in 8 bits, and the scales of the scales in float32."""
        total = 0
        for a, b in self.linears:
            scales = -(-a * b // NF4_BLOCK)
            code_tables = 4 * (16 + 256) + 4  # for codes and for scales, and the scales' offset
            total += -(-a * b // 2) + scales + 4 * -(-scales // SCALE_BLOCK) + code_tables
        return total * self.layers

    def plain_bytes(self, width: int) -> int:
        """Bytes of embeddings, output head, norms and biases, at `width` bytes a weight."""
        rotary = 2 * 4 * self.head_size // 2 * (2 if self.gemma else 1)
        return (self.embeddings + self._small) * width + rotary

    def adapter_weights(self, rank: int) -> int:
        """Weights of one adapter on all linear layers."""
        return self.layers * rank * sum(a + b for a, b in self.linears)


# config.json of the models on the hub; none of their weights is needed
KNOWN_SHAPES: dict[str, tuple[int, int, int, int, int, int, int, int, bool]] = {
    "llama-2-7b": (4096, 11008, 32, 32, 32, 128, 32000, 4096, False),
    "llama-2-13b": (5120, 13824, 40, 40, 40, 128, 32000, 4096, False),
    "llama-3-8b": (4096, 14336, 32, 32, 8, 128, 128256, 8192, False),
    "llama-3.1-8b": (4096, 14336, 32, 32, 8, 128, 128256, 131072, False),
    "llama-3.2-1b": (2048, 8192, 16, 32, 8, 64, 128256, 131072, True),
    "llama-3.2-3b": (3072, 8192, 28, 24, 8, 128, 128256, 131072, True),
    "tinyllama-1.1b": (2048, 5632, 22, 32, 4, 64, 32000, 2048, False),
    "smollm2-135m": (576, 1536, 30, 9, 3, 64, 49152, 8192, True),
    "smollm2-360m": (960, 2560, 32, 15, 5, 64, 49152, 8192, True),
    "smollm2-1.7b": (2048, 8192, 24, 32, 32, 64, 49152, 8192, True),
    "mistral-7b": (4096, 14336, 32, 32, 8, 128, 32000, 32768, False),
    "qwen3-0.6b": (1024, 3072, 28, 16, 8, 128, 151936, 40960, True),
    "qwen3-1.7b": (2048, 6144, 28, 16, 8, 128, 151936, 40960, True),
    "qwen3-4b": (2560, 9728, 36, 32, 8, 128, 151936, 40960, True),
    "qwen3-8b": (4096, 12288, 36, 32, 8, 128, 151936, 40960, False),
    "gemma-3-270m": (640, 2048, 18, 4, 1, 256, 262144, 32768, True),
    "gemma-3-1b": (1152, 6912, 26, 4, 1, 256, 262144, 32768, True),
}
"""Hidden, inner, layers, heads, key-value heads, head size, vocabulary, context, tied."""

_SMOLLM2_SIZES = "smollm2-135m"
_GEMMA_WINDOW, _GEMMA_PATTERN = 512, 6
"""Window of the known Gemma 3 models; every sixth layer attends to everything."""
_VARIANTS = ("-hf", "-it", "-pt", "-base", "-instruct")
"""Endings of names whose shape is that of the name without them."""


def known_shape(name: str) -> Shape | None:
    """Look up a well-known shape by name, also as a hub id such as `meta-llama/Llama-2-7b-hf`."""
    # The same model is `Llama-2-7b-hf` and `Meta-Llama-3-8B` on the hub.
    key = name.rpartition("/")[2].lower().replace("meta-llama", "llama")
    for ending in _VARIANTS:
        key = key.removesuffix(ending)
    sizes = KNOWN_SHAPES.get(key)
    if sizes is None:
        return None
    if key.startswith("gemma"):
        layers = sizes[2]
        windowed = layers - layers // _GEMMA_PATTERN
        return Shape(name, *sizes, family="gemma3_text", window=_GEMMA_WINDOW, windowed=windowed)
    return Shape(name, *sizes, family="qwen3" if key.startswith("qwen3") else "llama")


def shape_of(base: str) -> Shape:
    """Read the sizes of `embedded`, `smollm2`, a folder, a GGUF file, a known name or a hub id.

    Of a folder its config.json is read, of a GGUF file the header; `smollm2` need not be there.
    For a hub id only config.json is read, from the cache or over the network; known names need
    neither.

    Raises:
        UserError: The base does not exist, or is of no family that is taken.
    """
    if base == SMOLLM2 and not smollm2_folder().is_dir():
        return Shape(base, *KNOWN_SHAPES[_SMOLLM2_SIZES])
    places = {EMBEDDED: data_path("cria"), SMOLLM2: smollm2_folder()}
    try:
        if is_gguf(base):
            return shape_from_config(base, read_header(Path(base).expanduser()).config)
        folder = places.get(base) or Path(base).expanduser()
        path = folder / "config.json"
        has_config = path.is_file()
    except (OSError, RuntimeError) as error:
        raise UserError(f"--base {base}: no such folder ({error})") from None
    if not has_config:
        if base in places:
            raise UserError(f"--base {base}: {folder} has no config.json")
        if base and folder.is_dir():
            refuse_no_checkpoint(base, folder)
        shape = known_shape(base)
        if shape is not None:
            return shape
        refuse_no_folder(base)
        if base.count("/") != 1:
            raise UserError(
                f"--base {base}: no such folder, and no known shape; give `embedded`, `smollm2`, a "
                f"folder, a GGUF file, a hub id, or one of {', '.join(KNOWN_SHAPES)}"
            )
        path = _from_hub(base)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--base {base}: {path} could not be read ({error})") from None
    return shape_from_config(base, config)


def shape_from_config(base: str, config: Mapping[str, Any]) -> Shape:
    """Read the sizes from the contents of a config.json.

    Raises:
        UserError: The base is refused, or a size is missing or senseless.
    """
    if not isinstance(config, Mapping):
        raise UserError(f"--base {base}: config.json is not a table of settings")
    check_config(base, config)
    kind = str(config["model_type"])
    try:
        heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
        if heads < 1:
            raise ValueError("num_attention_heads")
        layers = int(config["num_hidden_layers"])
        window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
        shape = Shape(
            name=base,
            hidden=hidden,
            inner=int(config["intermediate_size"]),
            layers=layers,
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_size=int(config.get("head_dim") or hidden // heads),
            vocabulary=int(config["vocab_size"]),
            context=int(config["max_position_embeddings"]),
            tied=bool(config.get("tie_word_embeddings", kind == "gemma3_text")),
            attention_bias=bool(config.get("attention_bias", False)),
            family=kind,
            window=int(window) if window else None,
            windowed=_windowed(config, kind, layers) if window else 0,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"--base {base}: config.json has no usable {error}") from None
    for size in ("hidden", "inner", "layers", "heads", "kv_heads", "head_size", "vocabulary"):
        if getattr(shape, size) < 1:
            raise UserError(f"--base {base}: config.json gives {getattr(shape, size)} for {size}")
    return shape


def _windowed(config: Mapping[str, Any], kind: str, layers: int) -> int:
    """Number of layers with a sliding window."""
    types = config.get("layer_types")
    if types:
        return list(types).count("sliding_attention")
    if kind == "gemma3_text":
        return layers - layers // int(config.get("sliding_window_pattern") or _GEMMA_PATTERN)
    if kind in ("qwen2", "qwen3"):
        return max(0, layers - int(config.get("max_window_layers") or 0))
    return layers


def _from_hub(base: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(base, "config.json"))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        refusal = hub_refusal(base, error)
        refusal = refusal or f"--base {base}: its config.json could not be read ({reason})"
        names = ", ".join(KNOWN_SHAPES)
        raise UserError(f"{refusal}; a plan can also use one of {names}") from None
