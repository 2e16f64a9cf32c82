"""Named LoRA adapters on one frozen base, and the switch between them.

Roles: `sft` (the frozen reference), `policy`, `reward`, `value`; None is the bare base. PEFT makes,
stores and runs the adapters; only the switch is ours, because PEFT's own `set_adapter` and
`disable_adapter` silently lose or misplace gradients while a graph still waits for its backward
(huggingface/peft issues 2832 and 2759). Ours

- never touches `requires_grad`: two adapters accumulate gradients one after the other in one step;
- refuses to switch while a graph made with the active adapter still waits for its backward;
- makes the recomputation of a checkpointed layer check that it sees the adapter it was made with.
"""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils.save_and_load import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import Cache

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import content_hash
from alpaca_rlhf.models import attention, dense, lora_product
from alpaca_rlhf.models.adapter_files import read_adapter, write_adapter
from alpaca_rlhf.models.base import Base, embedding_rows
from alpaca_rlhf.models.batches import Batch
from alpaca_rlhf.models.compatibility import check_base, native_logprobs
from alpaca_rlhf.models.heads import ScalarHead
from alpaca_rlhf.models.template_traits import check_chat
from alpaca_rlhf.models.vocabulary import TokenLogprobs, target_logprobs
from alpaca_rlhf.settings import Lora, Sampling


class _Graph:
    """Token for the autograd graph of one forward; garbage-collected with it."""

    def __init__(self, adapter: str | None) -> None:
        self.adapter = adapter
        self.waiting = True


class _BackwardMark(torch.autograd.Function):
    """Identity that records when the backward has passed through it.

    The autograd graph holds the only strong reference to `graph`; `Adapters` keeps a weak one.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, graph: _Graph) -> Tensor:
        ctx.graph = graph
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        ctx.graph.waiting = False
        return grad, None


class Adapters:
    """The adapters of one base.

    Args:
        base: The frozen base; its linear layers get the LoRA layers.
        lora: Rank and alpha of every adapter.
        template: Prompt template the adapters are trained with; part of the fingerprint.
        dense_gib: Most GiB that a 16-bit copy of the base may take while completions are sampled,
            and on a CPU while an adapter is trained.
    """

    def __init__(
        self,
        base: Base,
        lora: Lora,
        *,
        template: str,
        dense_gib: float = Sampling.dense_gib,
    ) -> None:
        self.base = base
        self.lora = lora
        self.template = template
        self.dense_gib = dense_gib
        self.names: list[str] = []
        self._peft: PeftModel | None = None
        self._layers: list[LoraLayer] = []
        self._active: str | None = None
        self._decoding = False
        self._graphs: weakref.WeakSet[_Graph] = weakref.WeakSet()
        if template == "chat":
            rows = embedding_rows(base.model)
            check_chat(base.tokenizer, name=base.name, rows=rows)
        expected = native_logprobs(base)
        base.model.set_attn_implementation(attention.NAME)
        self._backbone: nn.Module = base.model.model
        self._lm_head: nn.Module = base.model.lm_head
        with torch.no_grad():
            check_base(base, expected, self.hidden, self.target_logprobs)

    # --- creating and copying ---------------------------------------------------------------------

    def add(self, name: str, *, seed: int = 0, copy_of: str | None = None) -> None:
        """Create an adapter, or reset it: A drawn from `seed` and B zero, or a copy of another one.

        It starts frozen.
        """
        self._check_idle(f"add {name!r}")
        if name not in self.names:
            with torch.random.fork_rng():  # PEFT draws from the global generator
                torch.manual_seed(seed)
                self._create(name)
            self.names.append(name)
        source = None if copy_of is None else self.parameters(copy_of)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, parameter in sorted(self.parameters(name).items()):
                if source is not None:
                    parameter.copy_(source[key])
                elif "lora_B" in key:
                    parameter.zero_()
                else:  # Kaiming uniform with a = sqrt(5), as PEFT's LoRA initialises A
                    bound = parameter.shape[1] ** -0.5
                    uniform = torch.rand(parameter.shape, generator=generator, dtype=torch.float32)
                    parameter.copy_((uniform * 2 - 1) * bound)
        self._set_trainable(name, False)

    def _create(self, name: str) -> None:
        config = LoraConfig(
            r=self.lora.r,
            lora_alpha=self.lora.alpha,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        if self._peft is None:
            self._peft = get_peft_model(self.base.model, config, adapter_name=name)
            modules = self.base.model.modules()
            self._layers = [module for module in modules if isinstance(module, LoraLayer)]
            if dense.fuses(self.base.device):
                lora_product.fuse(self._layers, self.base.dtype)
        else:
            self._peft.add_adapter(name, config)
        self._activate(self._active)  # PEFT has switched to the new adapter

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """Fp32 weights of one adapter, under names that are the same for every adapter."""
        if name not in self.names:
            raise KeyError(f"there is no adapter {name!r}; there are {self.names}")
        suffix = f".{name}.weight"
        return {
            key.removesuffix(suffix): parameter
            for key, parameter in self.base.model.named_parameters()
            if "lora_" in key and key.endswith(suffix)
        }

    def trainable(self, *names: str) -> None:
        """Make exactly these adapters trainable and freeze everything else."""
        self._check_idle(f"make {names} trainable")
        for name in self.names:
            self._set_trainable(name, name in names)

    def _set_trainable(self, name: str, trainable: bool) -> None:
        for parameter in self.parameters(name).values():
            parameter.requires_grad_(trainable)
            parameter.grad = None

    def digest(self, name: str) -> str:
        """Hash of an adapter's weights, which identifies a policy in records."""
        weights = [
            key + p.detach().cpu().numpy().tobytes().hex()
            for key, p in sorted(self.parameters(name).items())
        ]
        return content_hash(*weights)

    # --- the switch -------------------------------------------------------------------------------

    @property
    def active(self) -> str | None:
        """Name of the adapter that a forward would use; None is the bare base."""
        return self._active

    @contextlib.contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        """Run forwards and their backwards with one adapter; None is the bare base.

        Raises:
            RuntimeError: A forward with gradients still waits for its backward.
        """
        if name is not None and name not in self.names:
            raise KeyError(f"there is no adapter {name!r}; there are {self.names}")
        previous = self._active
        self._switch(name)
        try:
            yield
            self._switch(previous)
        except BaseException:
            self._activate(previous)  # the error matters, not the graph it left behind
            raise

    def _switch(self, name: str | None) -> None:
        if name != self._active:
            self._check_idle(f"switch from {self._active!r} to {name!r}")
            self._activate(name)

    def _activate(self, name: str | None) -> None:
        self._active = name
        for layer in self._layers:
            layer._active_adapter = [] if name is None else [name]

    def _check_idle(self, action: str) -> None:
        if self._decoding:
            raise RuntimeError(f"cannot {action} in the middle of decoding")
        if any(graph.waiting for graph in self._graphs):
            gc.collect()  # an unreachable graph in a reference cycle must not block for ever
        waiting = [graph.adapter for graph in self._graphs if graph.waiting]
        if waiting:
            raise RuntimeError(
                f"cannot {action}: a forward with {waiting[0]!r} still waits for its backward, "
                "and would lose or misplace its gradients; call backward() first, or drop the loss"
            )

    def checkpointing(self, every: int) -> None:
        """Recompute each `every`-th layer in the backward instead of keeping its activations.

        Exact, slower, and much smaller in memory. 0 recomputes none.
        """
        if every:
            kwargs = {"use_reentrant": False, "context_fn": self._checkpoint_contexts}
            self.base.model.activation_checkpointing_enable(
                activation_checkpointing_kwargs=kwargs, every_n_layers=int(every)
            )
        else:
            self.base.model.activation_checkpointing_disable()  # type: ignore[no-untyped-call]

    def _checkpoint_contexts(self) -> tuple[contextlib.AbstractContextManager[None], Any]:
        made_with = self._active

        @contextlib.contextmanager
        def check() -> Iterator[None]:
            if self._active != made_with:
                raise RuntimeError(
                    f"a layer made with adapter {made_with!r} is recomputed with {self._active!r}; "
                    "call backward() inside the same using() block"
                )
            yield

        return contextlib.nullcontext(), check()

    # --- forwards ---------------------------------------------------------------------------------

    def hidden(self, batch: Batch) -> Tensor:
        """Last hidden states of a batch under the active adapter and the base's autocast.

        Returns:
            (N, H) in the compute dtype, one row for each token of the batch.
        """
        hidden = self._forward(
            input_ids=batch.ids[None],
            attention_mask=attention.no_mask(batch.ids.device),
            position_ids=batch.packing.positions[None],
            use_cache=False,
            packing=batch.packing,
            kernel=attention.packed_kernel(
                self.base.device, self.base.dtype, self.base.model.config
            ),
        )[0]
        if not (torch.is_grad_enabled() and hidden.requires_grad):
            return hidden
        graph = _Graph(self._active)
        self._graphs.add(graph)
        marked: Tensor = _BackwardMark.apply(hidden, graph)  # type: ignore[no-untyped-call]
        return marked

    @torch.no_grad()
    def decode(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """Last hidden states while decoding, without gradients; faster inside `decoding`.

        Args:
            ids: (B, T) int64 new tokens.
            mask: (B, past + T) bool, False where padded on the left; or (B, 1, T, C) in the compute
                dtype, 0 or -inf, over all C columns of a cache that is written in place.
            positions: (B, T) int64 position of each new token in its row.
            cache: Keys and values of the past tokens; extended in place.

        Returns:
            (B, T, H) in the compute dtype.
        """
        return self._forward(
            input_ids=ids,
            attention_mask=mask if mask.ndim == 4 else mask.long(),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )

    @contextlib.contextmanager
    def decoding(self) -> Iterator[None]:
        """Prepare the layers for many calls of `decode`; no gradients and no switch inside."""
        layers, dtype, limit = self._linear_layers(), self.base.dtype, self._max_copy_bytes
        with (
            torch.no_grad(),
            dense.prepared(layers, self._active, dtype, max_copy_bytes=limit),
            dense.fused(self._backbone),
        ):
            self._decoding = True
            try:
                yield
            finally:
                self._decoding = False

    def _forward(self, **inputs: Any) -> Tensor:
        # The layers that `dense` prepared compute in the base's dtype without autocast's casts.
        precision = contextlib.nullcontext() if self._decoding else self.base.autocast()
        with precision:
            hidden: Tensor = self._backbone(**inputs).last_hidden_state
        return hidden

    def target_logprobs(
        self, hidden: Tensor, targets: Tensor, *, temperature: float = 1.0, entropy: bool = False
    ) -> TokenLogprobs:
        """Log-probabilities of (N,) target ids after (N, H) hidden states, fused with the head."""
        dtype = self.base.dtype if hidden.dtype != torch.float64 else hidden.dtype
        return target_logprobs(
            hidden.to(dtype),
            self.base.model.lm_head.weight,
            targets,
            temperature=temperature,
            entropy=entropy,
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """(N, V) logits of (N, H) hidden states, in float32; in float64 if the base is."""
        with self.base.autocast():
            logits: Tensor = self._lm_head(hidden)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Train mode inside, eval mode before and after.

        There is no dropout; activation checkpointing works in train mode only.
        """
        self.base.model.train()
        try:
            with self.dequantized():
                yield
        finally:
            self.base.model.eval()  # type: ignore[no-untyped-call]

    @contextlib.contextmanager
    def dequantized(self) -> Iterator[None]:
        """Keep a copy of the 4-bit weights inside, on a CPU where it fits `dense_gib`.

        For several batches under one adapter, with or without gradients; the numbers are the same.
        """
        if self.base.device.type != "cpu":
            yield
            return
        with dense.copied(self._linear_layers(), max_copy_bytes=self._max_copy_bytes):
            yield

    def _linear_layers(self) -> list[nn.Module]:
        """PEFT's layers, or the bare linear ones where there is no adapter."""
        linear = (module for module in self._backbone.modules() if isinstance(module, nn.Linear))
        return [*(self._layers or linear)]

    @property
    def _max_copy_bytes(self) -> int:
        return int(self.dense_gib * 2**30)

    # --- on disk ----------------------------------------------------------------------------------

    def fingerprint(self) -> dict[str, Any]:
        """Base, quantisation and template that an adapter saved now belongs to.

        `base_name` and `dtype` only tell where it was trained: they need not be those of a run
        that loads it.
        """
        return {
            "base": self.base.fingerprint,
            "base_name": self.base.name,
            "dtype": str(self.base.dtype).removeprefix("torch."),
            "quantization": self.base.quantization,
            "template": self.template,
        }

    def fits_earlier(self, fingerprint: object) -> bool:
        """True if an earlier version gave this base that fingerprint."""
        return self.base.earlier is not None and self.base.earlier.fits(fingerprint)

    def save(
        self, name: str, folder: Path, head: ScalarHead | None = None, *, trained: bool = True
    ) -> None:
        """Write a plain PEFT folder, its head beside it; then reopen it and compare every tensor.

        Raises:
            UserError: It cannot be written: no permission, no space. The previous folder stays.
            RuntimeError: The file does not hold what was trained.
        """
        assert self._peft is not None
        write_adapter(self._peft, name, folder, self.fingerprint(), head, trained)

    def load(self, name: str, folder: Path) -> None:
        """Read a plain PEFT folder as adapter `name`, frozen.

        Raises:
            UserError: It is not there, or it belongs to another base, template or shape.
        """
        weights = read_adapter(folder, self.lora, self.fingerprint(), self.fits_earlier)
        self.add(name)
        assert self._peft is not None
        expected = get_peft_model_state_dict(self._peft, adapter_name=name)
        if {k: t.shape for k, t in weights.items()} != {k: t.shape for k, t in expected.items()}:
            raise UserError(
                f"{folder}: its tensors do not fit --base {self.base.name}; "
                "it was made for another model"
            )
        set_peft_model_state_dict(self._peft, weights, adapter_name=name)
        self._set_trainable(name, False)
