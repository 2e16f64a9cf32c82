"""A GGUF file as a base: unpacked once into a plain checkpoint in the user's cache.

transformers unpacks the weights; what its reader leaves out is put right here: rotary scaling, the
pre-tokenizer of SmolLM, and tensors that the architecture has no place for. The cache is keyed by
the SHA-256 of the file, so that a changed file is another base.
"""

from __future__ import annotations

import io
import json
import logging
import shutil
from collections.abc import Mapping
from contextlib import redirect_stderr
from functools import lru_cache
from pathlib import Path
from typing import Any

import gguf
import torch
from tokenizers import decoders, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from alpaca_rlhf.core.bases import cached_bases
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.files import nearest_folder, new_folder, writing
from alpaca_rlhf.core.locks import Lock
from alpaca_rlhf.core.provenance import sha256_of
from alpaca_rlhf.models.gguf_header import Header, read_header, refusal

logger = logging.getLogger(__name__)

SOURCE = "source.json"
"""File in a cached checkpoint that says what it was made from."""
CACHE_REMEDY = "let XDG_CACHE_HOME name a folder that you can write to"
_FORMAT = 1
"""Version of the conversion; another one converts anew."""
_SPARE = 64 * 2**20
"""Bytes for the tokenizer and the like."""
_KNOWN_PRE = {"gpt-2", "smollm", *GGUF_PRE_TOKENIZER_SPLITS}


def checkpoint(path: Path) -> Path:
    """The folder of a GGUF file's plain checkpoint, made in the cache if it is not there.

    Raises:
        UserError: The file cannot be a base, or the cache cannot be written.
    """
    if not path.is_file():
        read_header(path)  # says why
    state = path.stat()
    digest = _digest(path.absolute(), state.st_size, state.st_mtime_ns)
    folder = cached_bases() / f"gguf-{digest}"
    with exclusive(folder):
        if not is_cached(folder):
            logger.warning("--base %s is unpacked once into %s", path, folder)
            shutil.rmtree(folder, ignore_errors=True)  # of an earlier version
            with new_folder(folder, flag=f"--base {path}:", remedy=CACHE_REMEDY) as making:
                convert(path, making, {"file": path.name, "sha256": digest})
    return folder


def is_cached(folder: Path) -> bool:
    """True if a folder of the cache holds a checkpoint of this version."""
    try:
        return bool(json.loads((folder / SOURCE).read_bytes())["format"] == _FORMAT)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def exclusive(folder: Path) -> Lock:
    """Wait for other processes that make the same cached checkpoint.

    Raises:
        UserError: The cache cannot be written.
    """
    with writing(folder, CACHE_REMEDY):
        folder.parent.mkdir(parents=True, exist_ok=True)
        return Lock(folder.with_name(f".{folder.name}.lock"), wait=True)


def convert(path: Path, folder: Path, source: Mapping[str, Any]) -> None:
    """Write a GGUF file as a plain checkpoint.

    Quantised weights are unpacked in 32 bit and stored in bfloat16, others in their own dtype.

    Args:
        path: The file.
        folder: An empty folder.
        source: What to note in `source.json`.

    Raises:
        UserError: The file cannot be a base, or the disk has no room.
    """
    header = read_header(path)
    dtype: torch.dtype = getattr(torch, header.dtype)
    _check_room(header, folder, dtype)
    try:
        with redirect_stderr(io.StringIO()):  # the reader's progress bar
            # 1. Configuration, with the rotary scaling that the reader leaves out.
            config: Any = AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name)
            config.rope_parameters = header.rope_parameters
            _check_names(header, config)
            # 2. Weights.
            model: Any = AutoModelForCausalLM.from_pretrained(
                str(path.parent),
                gguf_file=path.name,
                config=config,
                dtype=dtype,
                quantization_config=GgufConfig(dequantize=True),
            )
            # 3. The tokenizer.
            tokenizer: Any = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    except UserError:
        raise
    except Exception as error:  # whatever a foreign file provokes
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise refusal(path, f"transformers cannot unpack it ({reason})") from error
    _tokenise_as_trained(header, tokenizer)
    # 4. The checkpoint, without a trace of the quantisation that is gone.
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        if hasattr(model.config, name):
            delattr(model.config, name)
    model.config.architectures = [type(model).__name__]
    if hasattr(model, "hf_quantizer"):
        del model.hf_quantizer
    model.is_quantized = False
    with writing(folder, CACHE_REMEDY):
        model.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
        note = {"format": _FORMAT, **source, "tensor_types": _types(header), "dtype": header.dtype}
        (folder / SOURCE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")


@lru_cache(maxsize=8)
def _digest(path: Path, size: int, modified_ns: int) -> str:
    """SHA-256 of a file, computed once a process; size and time tell a changed file."""
    return sha256_of(path)


def _check_room(header: Header, folder: Path, dtype: torch.dtype) -> None:
    needed = header.weights * dtype.itemsize + _SPARE
    free = shutil.disk_usage(nearest_folder(folder)).free
    if free < needed:
        raise UserError(
            f"--base {header.path}: unpacked it takes {needed / 2**30:.1f} GiB, and the disk of "
            f"{folder.parent} has {free / 2**30:.1f} GiB left; free some space, or {CACHE_REMEDY}"
        )


def _check_names(header: Header, config: Any) -> None:
    """Compare the file's tensors with those of the architecture, before any is unpacked.

    The reader would leave a tensor without a place out, and fill a missing one with random numbers.
    """
    layers = int(config.num_hidden_layers)
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, header.architecture.upper()), layers)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    places = {
        str(names.get_name(name, try_suffixes=(".weight", ".bias"))): parameter.numel()
        for name, parameter in model.named_parameters()
    }
    there = {
        tensor.name: tensor.weights
        for tensor in header.tensors
        if not tensor.name.startswith("rope_freqs")
    }
    for name in sorted(there.keys() ^ places.keys()):
        reason = (
            f"holds {name}, which a {header.architecture} has no place for"
            if name in there
            else f"lacks {name}"
        )
        raise refusal(header.path, reason)
    for name, weights in there.items():
        if weights != places[name]:
            raise refusal(header.path, f"{name} has {weights} weights in place of {places[name]}")


def _tokenise_as_trained(header: Header, tokenizer: Any) -> None:
    """Put right what the reader leaves out: blanks before text, SmolLM's digits."""
    backend, fields = tokenizer.backend_tokenizer, header.fields
    model, pre = fields.get("tokenizer.ggml.model"), str(fields.get("tokenizer.ggml.pre"))
    if model == "llama" and fields.get("tokenizer.ggml.add_space_prefix") is False:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
        backend.decoder = decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
    elif model == "gpt2" and pre == "smollm":
        # Each digit stands alone, so that the blanks before a number are merged.
        digits = pre_tokenizers.Digits(individual_digits=True)
        rest = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, rest])
    elif model == "gpt2" and pre not in _KNOWN_PRE:
        logger.warning(
            "--base %s: its pre-tokenizer `%s` is not known, and text is cut as GPT-2 does; "
            "answers may be worse than those of the published model",
            header.path,
            pre,
        )


def _types(header: Header) -> dict[str, int]:
    counts: dict[str, int] = {}
    for tensor in header.tensors:
        counts[tensor.type] = counts.get(tensor.type, 0) + 1
    return counts
