"""The frozen base, in NF4 with double quantisation.

Linear layers are quantised from the dtype in which the checkpoint stores them, whatever the machine
computes in, so that the same checkpoint is the same base everywhere. Nothing is upcast: embeddings,
norms and head are in the compute dtype, so that a 7B base needs 3.6 GiB (QLoRA, arXiv 2305.14314,
with 4.127 bits a weight in the linear layers).
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Literal

import torch
from bitsandbytes.nn.modules import Linear4bit
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from alpaca_rlhf.core.bases import (
    EMBEDDED,
    SMOLLM2,
    is_gguf,
    refuse_no_checkpoint,
    refuse_no_folder,
)
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.files import FULL, is_full
from alpaca_rlhf.core.runs import data_path
from alpaca_rlhf.models.checkpoint import (
    StoredTensor,
    eight_bit_kind,
    stored_dtype,
    stored_tensors,
)
from alpaca_rlhf.models.devices import default_device, multiplies_in_4_bit
from alpaca_rlhf.models.families import check_config, is_nf4, refuse_quantized, taken_families
from alpaca_rlhf.models.fingerprint import EarlierFingerprints, fingerprint_of, own_parameters
from alpaca_rlhf.models.gguf_base import checkpoint
from alpaca_rlhf.models.hub import hub_refusal
from alpaca_rlhf.models.pinned_base import pinned_checkpoint
from alpaca_rlhf.models.template_traits import frozen_clock, template_text, template_traits
from alpaca_rlhf.models.text_base import Texts

logger = logging.getLogger(__name__)

Quantization = Literal["nf4", "none"]


@dataclass(frozen=True)
class Base:
    """A frozen base with its tokenizer and special tokens."""

    name: str
    """`embedded`, `smollm2`, a folder, a GGUF file or a hub id, as typed by the user."""
    model: PreTrainedModel
    """The causal language model, every parameter frozen, in eval mode."""
    tokenizer: Any
    """The base's fast tokenizer."""
    quantization: Quantization
    """`nf4` (double-quantised), or `none` for tests in full precision."""
    dtype: torch.dtype
    """Compute dtype: that of `default_dtype`."""
    pad_id: int
    """Padding token, never eos. Masks are explicit, so its meaning never matters."""
    eos_id: int
    """Token that ends a completion in the plain templates, as SFT teaches it."""
    stop_ids: frozenset[int]
    """Tokens that end a generation: eos, those of the generation configuration, and the one after
    a reply in the chat template."""
    fingerprint: str
    """Hash of configuration, stored weights and tokenizer; an adapter fits this base only."""
    day: str = ""
    """The date that the chat template prints, frozen as YYYY-MM-DD; empty if it prints none."""
    quantized_from: torch.dtype | None = None
    """Dtype that the weights had before they were quantised; by default `dtype`."""
    earlier: EarlierFingerprints | None = None
    """The fingerprints that earlier versions gave this base."""

    @property
    def device(self) -> torch.device:
        """Device that holds the base."""
        return next(self.model.parameters()).device

    @property
    def parameters(self) -> int:
        """Number of weights, 4-bit ones counted one by one."""
        return sum(_numel(p) for _, p in own_parameters(self.model))

    @property
    def context(self) -> int:
        """Longest sequence in tokens."""
        return int(self.model.config.max_position_embeddings)

    def autocast(self) -> AbstractContextManager[Any]:
        """Precision of every forward: rollouts, reference and training alike."""
        if self.dtype in (torch.bfloat16, torch.float16):
            return torch.autocast(self.device.type, self.dtype)
        return nullcontext()


def load_base(
    name: str = EMBEDDED,
    *,
    quantization: Quantization = "nf4",
    dtype: torch.dtype | None = None,
    device: str | None = None,
    day: str = "",
    rounded_to: torch.dtype | None = None,
) -> Base:
    """Load, quantise and freeze a base.

    Args:
        name: `embedded`, `smollm2`, a folder with a Hugging Face checkpoint, a GGUF file or a hub
            id.
        quantization: `nf4`, or `none` for full precision.
        dtype: Compute dtype; by default `default_dtype` of the device.
        device: `cpu`, `cuda` ...; by default `default_device`.
        day: The date that a chat template prints instead of that of the clock, as YYYY-MM-DD; by
            default today's.
        rounded_to: Dtype that the weights are rounded to before they are quantised, as earlier
            versions did; by default they are quantised from the dtype they are stored in.

    Raises:
        UserError: There is no such base, it is quantised in another way than NF4, or it is not a
            causal language model of a family that is taken, with its tokenizer.
    """
    target = torch.device(device) if device else default_device()
    if quantization == "nf4" and not multiplies_in_4_bit(target):
        logger.warning(
            "bitsandbytes has no kernel for 4-bit weights on %s: the base stays in %s, which takes "
            "four times the memory; ALPACA_RLHF_DEVICE=cpu computes in 4 bit on the processor",
            target.type,
            dtype or default_dtype(target),
        )
        quantization = "none"
    dtype = dtype or default_dtype(target)
    source = base_source(name)
    config = base_config(name)
    tokenizer, tensors = _files_of(name, source)
    with _refusals(name):
        kind = eight_bit_kind(tensors)
        if kind is not None:
            raise refuse_quantized(name, kind, config.to_dict())
        stored = rounded_to or stored_dtype(tensors) or dtype
        model = _load(
            source, quantization, dtype, stored if quantization == "nf4" else dtype, target
        )
    if not hasattr(model, "lm_head") or not hasattr(getattr(model, "model", None), "layers"):
        raise UserError(
            f"--base {name}: {config.architectures} is no causal language model; {taken_families()}"
        )
    eos_id = _eos_id(tokenizer, name)
    rows = embedding_rows(model)
    for token_id in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token_id is not None and token_id >= rows:
            raise UserError(
                f"--base {name}: its tokenizer's {tokenizer.convert_ids_to_tokens(token_id)} is "
                f"token {token_id}, and the base has {rows} embeddings; resize them and save it, "
                "or take the tokenizer that it was trained with"
            )
    fingerprint = fingerprint_of(model, tokenizer, quantization, tensors)
    earlier = EarlierFingerprints(name, model, tokenizer, quantization, tensors)
    model.requires_grad_(False)
    model.eval()  # type: ignore[no-untyped-call]
    day = _freeze_clock(tokenizer, day, name)
    return Base(
        name=name,
        model=model,
        tokenizer=tokenizer,
        quantization=quantization,
        dtype=dtype,
        pad_id=_pad_id(tokenizer, int(model.config.vocab_size)),
        eos_id=eos_id,
        stop_ids=_stop_ids(tokenizer, model.generation_config, rows),
        fingerprint=fingerprint,
        day=day,
        quantized_from=stored,
        earlier=earlier,
    )


_TOKENIZER_FILES = ("*token*", "vocab*", "*.tiktoken")
"""Names of files of which every tokenizer has one."""


def read_texts(name: str) -> Texts:
    """Read the tokenizer of a base, and look whether its weights are whole; none is read.

    Raises:
        UserError: One of its files is absent, cut short or cannot be read.
    """
    source = base_source(name)
    tokenizer, _ = _files_of(name, source)
    eos_id = _eos_id(tokenizer, name)
    _freeze_clock(tokenizer, "", name)
    config = base_config(name)
    try:
        generation = GenerationConfig.from_pretrained(source)
    except OSError:  # there is none beside the weights, so it is made as for a loaded model
        generation = GenerationConfig.from_model_config(config)
    stop_ids = _stop_ids(tokenizer, generation, int(config.vocab_size))
    return Texts(name, tokenizer, eos_id, stop_ids, int(config.max_position_embeddings))


def _stop_ids(tokenizer: Any, generation: Any, embeddings: int) -> frozenset[int]:
    stops = getattr(generation, "eos_token_id", None)
    stop_ids = {tokenizer.eos_token_id} | set(
        stops if isinstance(stops, list) else [stops] if stops is not None else []
    )
    chat = template_traits(tokenizer)
    if chat is not None and chat.end_id is not None and chat.end_id < embeddings:
        stop_ids.add(chat.end_id)
    return frozenset(int(token_id) for token_id in stop_ids)


def _eos_id(tokenizer: Any, name: str) -> int:
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"--base {name}: its tokenizer has no eos token, so no completion could end"
        )
    return int(tokenizer.eos_token_id)


def _files_of(name: str, source: str) -> tuple[Any, dict[str, StoredTensor]]:
    """The tokenizer of a base, and the tensors that its files list."""
    with _refusals(name):
        if Path(source).is_dir() and not any(
            path for kind in _TOKENIZER_FILES for path in Path(source).glob(kind)
        ):
            raise UserError(
                f"--base {name}: holds no tokenizer (tokenizer.json or tokenizer.model); copy its "
                "tokenizer files from where the weights come from"
            )
        tokenizer = AutoTokenizer.from_pretrained(source)
        try:
            tensors = stored_tensors(source)
        except UserError as error:
            raise UserError(f"--base {name}: {error}") from None
    if not tensors:
        raise UserError(
            f"--base {name}: holds no weights in safetensors, and pickled ones (.bin) are not "
            "read; save it again with transformers' save_pretrained"
        )
    return tokenizer, tensors


def _freeze_clock(tokenizer: Any, day: str, name: str) -> str:
    """Write the date into a chat template that asks for it, so that a prompt's ids stay.

    Exports carry the template with the date on. A template that computes its format is left alone:
    only `--template chat` refuses it.

    Returns:
        The date, or "" where the template prints none.
    """
    template = template_text(tokenizer)
    if template is None or "strftime_now" not in template:
        return ""
    frozen_day = date.fromisoformat(day) if day else datetime.now(UTC).date()
    try:
        frozen = frozen_clock(template, frozen_day, name=name)
    except UserError:
        return ""
    if isinstance(tokenizer.chat_template, dict):
        tokenizer.chat_template = {**tokenizer.chat_template, "default": frozen}
    else:
        tokenizer.chat_template = frozen
    return frozen_day.isoformat()


def embedding_rows(model: Any) -> int:
    """Rows of a model's input embeddings: one more than the largest token id that it can read."""
    return int(model.get_input_embeddings().weight.shape[0])


def base_config(name: str) -> Any:
    """Configuration of a base as transformers reads it; no weights are fetched from the hub.

    Raises:
        UserError: There is no such base, the hub does not provide it, or it is refused.
    """
    source = base_source(name)
    with _refusals(name):
        # A family that transformers does not know is refused for what it is, too.
        check_config(name, PreTrainedConfig.get_config_dict(source)[0])
        return AutoConfig.from_pretrained(source)


@contextmanager
def _refusals(name: str) -> Iterator[None]:
    """Turn whatever a foreign file or the hub provokes into one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # tokenizers raises no subclass
        if is_full(error):
            raise UserError(
                f"--base {name}: the disk is full ({error}); {FULL}, or let HF_HOME name another"
            ) from error
        refusal = hub_refusal(name, error)
        if refusal is not None:
            raise UserError(refusal) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"--base {name}: cannot be loaded ({reason}); give `embedded`, `smollm2`, a folder, a "
            "GGUF file or a hub id"
        ) from error


def default_dtype(device: torch.device) -> torch.dtype:
    """Compute dtype of a device: bfloat16 where native, else float16, on a CPU or a Mac float32.

    Training scales its losses in float16 (`training/loss_scale.py`).
    """
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    if device.type == "mps":
        return torch.bfloat16 if torch.backends.mps.is_macos_or_newer(14, 0) else torch.float32
    native = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def weights_digest(base: Base) -> str:
    """SHA-256 over every frozen byte of the base: equal before and after any training."""
    digest = hashlib.sha256()
    for name, parameter in own_parameters(base.model):
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        for scale in _scales(parameter):
            digest.update(scale.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def base_source(name: str) -> str:
    """Folder or hub id under which transformers finds a base.

    Raises:
        UserError: There is no such folder, or it holds no checkpoint.
    """
    if name == EMBEDDED:
        folder = data_path("cria")
        if not (folder / "config.json").is_file():
            raise UserError(
                f"--base embedded: {folder} has no model; "
                "make it with `python recipes/pretrain_cria.py --out data/cria`"
            )
        return str(folder)
    if name == SMOLLM2:
        return str(pinned_checkpoint())
    try:
        if is_gguf(name):
            return str(checkpoint(Path(name).expanduser()))
        folder = Path(name).expanduser()
        is_folder = bool(name) and folder.is_dir()
    except (OSError, RuntimeError) as error:
        raise UserError(f"--base {name}: no such folder ({error})") from None
    if is_folder:
        refuse_no_checkpoint(name, folder)
        return str(folder)
    refuse_no_folder(name)
    return name


def _load(
    source: str,
    quantization: Quantization,
    dtype: torch.dtype,
    stored: torch.dtype,
    device: torch.device,
) -> PreTrainedModel:
    """Load a checkpoint whose weights are quantised from `stored`, to compute in `dtype`."""
    options: dict[str, Any] = {
        "dtype": stored,
        "use_safetensors": True,
        "output_loading_info": True,
    }
    if quantization == "nf4":
        options |= nf4_options(source, dtype)
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            options["device_map"] = {"": index}
        elif device.type == "mps":
            options["device_map"] = {"": "mps"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*kernels.*")
        loaded: Any = AutoModelForCausalLM.from_pretrained(source, **options)
    model: PreTrainedModel = loaded[0]
    missing = loaded[1]["missing_keys"]
    if missing:  # transformers would initialise them at random
        raise UserError(
            f"--base {source}: the checkpoint lacks {len(missing)} tensors, "
            f"e.g. {min(missing)}; download it again"
        )
    if quantization == "none":
        model.to(device)  # type: ignore[arg-type]
    compute_in(model, dtype)
    if device.type == "cpu":
        _own_weights(model)
    return model


def nf4_options(source: str, dtype: torch.dtype) -> dict[str, Any]:
    """Options of `from_pretrained` for NF4; none for a checkpoint that is stored so already.

    Args:
        source: A folder or a hub id.
        dtype: Compute dtype.
    """
    if is_nf4(PreTrainedConfig.get_config_dict(source)[0]):
        return {}
    quantization = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": quantization}


def compute_in(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Let a model compute in a dtype with the weights it has: 4-bit codes stay as they are."""
    for module in model.modules():
        if not isinstance(module, Linear4bit):
            for parameter in module.parameters(recurse=False):
                if parameter.is_floating_point():
                    parameter.data = parameter.data.to(dtype)
            continue
        module.compute_dtype = dtype
        module.compute_type_is_set = True
        # On CPUs with AVX512-BF16 the first forward without gradients would repack the weights
        # for a kernel that has no backward, and every later gradient would silently be wrong
        # (bitsandbytes 0.50 nn/modules.py:613). It would compute in bfloat16 in any case.
        module.support_avx512bf16_for_cpu = False
        weight: Any = module.weight
        weight.quant_state.dtype = dtype  # the dtype it is dequantised to
        if module.bias is not None:
            module.bias.data = module.bias.data.to(dtype)


def _own_weights(model: PreTrainedModel) -> None:
    """Copy weights that still lie in the checkpoint's memory map.

    One of them (the embeddings, where the rest was quantised) keeps the whole file mapped.
    """
    for parameter in model.parameters():
        if getattr(parameter, "quant_state", None) is None:
            parameter.data = parameter.data.clone()


def _pad_id(tokenizer: Any, embeddings: int) -> int:
    """A padding token that has an embedding: a `[PAD]` added to the tokenizer alone has none."""
    for candidate in (tokenizer.pad_token_id, tokenizer.unk_token_id):
        if candidate is not None and candidate != tokenizer.eos_token_id and candidate < embeddings:
            return int(candidate)
    return 1 if tokenizer.eos_token_id == 0 else 0


def _numel(parameter: torch.Tensor) -> int:
    state = getattr(parameter, "quant_state", None)
    return int(state.shape.numel()) if state is not None else parameter.numel()


def _scales(parameter: torch.Tensor) -> list[torch.Tensor]:
    """Scales of a 4-bit weight, which complete its codes; they are themselves in 8 bits."""
    state = getattr(parameter, "quant_state", None)
    if state is None:
        return []
    return [state.absmax, *([state.offset, state.state2.absmax] if state.nested else [])]
