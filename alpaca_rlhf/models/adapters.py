"""Named LoRA adapters on one frozen base, and the switch between them.

Roles: `sft` (the frozen reference), `policy`, `reward`, `value`; None is the bare base. PEFT makes,
stores and runs the adapters; only the switch is ours, because PEFT's own `set_adapter` and
`disable_adapter` lose or misplace gradients without a word when a graph is still waiting for its
backward (huggingface/peft issues 2832 and 2759). Ours

- never touches `requires_grad`: two adapters accumulate gradients one after the other in one step;
- refuses to switch while a graph made with the active adapter still waits for its backward;
- makes the recomputation of a checkpointed layer check that it sees the adapter it was made with.
"""

from __future__ import annotations

import contextlib
import gc
import json
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils.save_and_load import (
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from torch import Tensor, nn
from transformers import Cache

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.files import atomic_write, sync_folder, writing
from alpaca_rlhf.core.records import content_hash
from alpaca_rlhf.models import attention, dense
from alpaca_rlhf.models.base import Base
from alpaca_rlhf.models.batches import Batch
from alpaca_rlhf.models.heads import ScalarHead
from alpaca_rlhf.models.likeness import check_adapter, check_base, own_logprobs
from alpaca_rlhf.models.vocabulary import Chosen, chosen_logprobs
from alpaca_rlhf.settings import Lora, Sampling

FINGERPRINT = "fingerprint.json"


class _Graph:
    """Stands for one forward's graph; dies with it."""

    def __init__(self, adapter: str | None) -> None:
        self.adapter = adapter
        self.waiting = True


class _Mark(torch.autograd.Function):
    """Identity that notes when the backward has passed through it.

    The autograd graph keeps `graph` alive; we only watch it.
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
        lora: Shape of every adapter.
        template: Prompt template the adapters are trained with; part of the fingerprint.
        dense_gib: Most that a 16-bit copy of the base may take while completions are sampled.
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
        own = own_logprobs(base)
        base.model.set_attn_implementation(attention.NAME)
        self._backbone: nn.Module = base.model.model
        self._lm_head: nn.Module = base.model.lm_head
        with torch.no_grad():
            check_base(base, own, self.hidden, self.chosen)

    # --- making, copying, keeping -----------------------------------------------------------------

    def add(self, name: str, *, seed: int = 0, copy_of: str | None = None) -> None:
        """Make an adapter, or make it anew: A drawn from `seed`, B zero; or a copy of another one.

        It starts frozen.
        """
        self._check_idle(f"add {name!r}")
        if name not in self.names:
            with torch.random.fork_rng():
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
                    drawn = torch.rand(parameter.shape, generator=generator, dtype=torch.float32)
                    parameter.copy_((drawn * 2 - 1) * bound)
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
            self._layers = [m for m in self.base.model.modules() if isinstance(m, LoraLayer)]
        else:
            self._peft.add_adapter(name, config)
        for layer in self._layers:
            layer._active_adapter = [] if self._active is None else [self._active]

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """The fp32 weights of one adapter, by a name that is the same for every adapter."""
        if name not in self.names:
            raise KeyError(f"there is no adapter {name!r}; there are {self.names}")
        ending = f".{name}.weight"
        return {
            key.removesuffix(ending): parameter
            for key, parameter in self.base.model.named_parameters()
            if "lora_" in key and key.endswith(ending)
        }

    def trainable(self, *names: str) -> None:
        """Let exactly these adapters learn; everything else is frozen."""
        self._check_idle(f"make {names} trainable")
        for name in self.names:
            self._set_trainable(name, name in names)

    def _set_trainable(self, name: str, learns: bool) -> None:
        for parameter in self.parameters(name).values():
            parameter.requires_grad_(learns)
            parameter.grad = None

    def digest(self, name: str) -> str:
        """Hash of an adapter's weights, to tell one policy from another in records."""
        parts = [
            key + p.detach().cpu().numpy().tobytes().hex()
            for key, p in sorted(self.parameters(name).items())
        ]
        return content_hash(*parts)

    # --- the switch -------------------------------------------------------------------------------

    @property
    def active(self) -> str | None:
        """The adapter that a forward would use; None is the bare base."""
        return self._active

    @contextlib.contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        """Run forwards, and their backwards, with one adapter. None is the bare base.

        Raises:
            RuntimeError: A forward made with gradients still waits for its backward.
        """
        if name is not None and name not in self.names:
            raise KeyError(f"there is no adapter {name!r}; there are {self.names}")
        before = self._active
        self._switch(name)
        try:
            yield
            self._switch(before)
        except BaseException:
            self._activate(before)  # the error matters, not the graph it left behind
            raise

    def _switch(self, name: str | None) -> None:
        if name != self._active:
            self._check_idle(f"switch from {self._active!r} to {name!r}")
            self._activate(name)

    def _activate(self, name: str | None) -> None:
        self._active = name
        for layer in self._layers:
            layer._active_adapter = [] if name is None else [name]

    def _check_idle(self, what: str) -> None:
        if self._decoding:
            raise RuntimeError(f"cannot {what} in the middle of decoding")
        if any(graph.waiting for graph in self._graphs):
            gc.collect()  # a graph nobody can reach any more must not block for ever
        waiting = [graph.adapter for graph in self._graphs if graph.waiting]
        if waiting:
            raise RuntimeError(
                f"cannot {what}: a forward with {waiting[0]!r} still waits for its backward, "
                "and would lose or misplace its gradients; call backward() first, or drop the loss"
            )

    def checkpointing(self, enabled: bool) -> None:
        """Recompute each layer in the backward instead of keeping its activations.

        Exact, slower, much smaller.
        """
        if enabled:
            kwargs = {"use_reentrant": False, "context_fn": self._checkpoint_contexts}
            self.base.model.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs)
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
            (N, H) in the compute dtype, for each token of the batch.
        """
        out = self._run(
            input_ids=batch.ids[None],
            attention_mask=attention.no_mask(batch.ids.device),
            position_ids=batch.packing.positions[None],
            use_cache=False,
            packing=batch.packing,
        )[0]
        if not (torch.is_grad_enabled() and out.requires_grad):
            return out
        graph = _Graph(self._active)
        self._graphs.add(graph)
        marked: Tensor = _Mark.apply(out, graph)  # type: ignore[no-untyped-call]
        return marked

    @torch.no_grad()
    def decode(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """Last hidden states while decoding, without a gradient; faster inside `decoding`.

        Args:
            ids: (B, T) int64, the tokens that are new.
            mask: (B, past + T) bool, False where padded on the left.
            positions: (B, T) int64.
            cache: Keys and values of the tokens before, extended in place.

        Returns:
            (B, T, H) in the compute dtype.
        """
        return self._run(
            input_ids=ids,
            attention_mask=mask.long(),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )

    @contextlib.contextmanager
    def decoding(self) -> Iterator[None]:
        """Make ready for many calls of `decode` with the active adapter; no gradients inside."""
        limit = int(self.dense_gib * 2**30)
        with torch.no_grad(), dense.ready(self._layers, self._active, self.base.dtype, limit=limit):
            self._decoding = True
            try:
                yield
            finally:
                self._decoding = False

    def _run(self, **inputs: Any) -> Tensor:
        precision = contextlib.nullcontext() if self._decoding else self.base.autocast()
        with precision:
            out: Tensor = self._backbone(**inputs).last_hidden_state
        return out

    def chosen(
        self, hidden: Tensor, targets: Tensor, *, temperature: float = 1.0, entropy: bool = False
    ) -> Chosen:
        """Log-probabilities of (N,) tokens after (N, H) hidden states, fused with the head."""
        dtype = self.base.dtype if hidden.dtype != torch.float64 else hidden.dtype
        return chosen_logprobs(
            hidden.to(dtype),
            self.base.model.lm_head.weight,
            targets,
            temperature=temperature,
            entropy=entropy,
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """(N, V) logits of (N, H) hidden states, in float32 (a float64 base keeps its own)."""
        with self.base.autocast():
            logits: Tensor = self._lm_head(hidden)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Train mode inside, eval mode before and after.

        No dropout exists; checkpointing only works in train mode.
        """
        self.base.model.train()
        try:
            yield
        finally:
            self.base.model.eval()  # type: ignore[no-untyped-call]

    # --- on disk ----------------------------------------------------------------------------------

    def fingerprint(self) -> dict[str, Any]:
        """What a saved adapter fits: base, quantisation and template."""
        return {
            "base": self.base.fingerprint,
            "base_name": self.base.name,
            "quantization": self.base.quantization,
            "template": self.template,
        }

    def save(self, name: str, folder: Path, head: ScalarHead | None = None) -> None:
        """Write a plain PEFT folder, its head beside it; then reopen it and compare every tensor.

        Raises:
            UserError: It cannot be written: no permission, no space. What was there before stays.
            RuntimeError: The file does not hold what was trained.
        """
        temporary = folder.with_name(folder.name + ".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            with writing(folder):
                self._write(name, temporary, head)
                shutil.rmtree(folder, ignore_errors=True)
                temporary.rename(folder)
                sync_folder(folder.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _write(self, name: str, folder: Path, head: ScalarHead | None) -> None:
        assert self._peft is not None
        folder.mkdir(parents=True)
        # the embeddings are the base's; left to itself PEFT asks the hub whether they have grown
        self._peft.save_pretrained(
            str(folder), selected_adapters=[name], save_embedding_layers=False
        )
        if (folder / name).is_dir():
            for file in (folder / name).iterdir():
                file.rename(folder / file.name)
            (folder / name).rmdir()
        (folder / "README.md").unlink(missing_ok=True)
        if head is not None:
            head.save(folder)
        atomic_write(folder / FINGERPRINT, json.dumps(self.fingerprint(), indent=2))
        written = load_peft_weights(str(folder), device="cpu")
        expected = get_peft_model_state_dict(
            self._peft, adapter_name=name, save_embedding_layers=False
        )
        if written.keys() != expected.keys() or not all(
            torch.equal(written[k], expected[k].cpu()) for k in written
        ):
            raise RuntimeError(f"{folder}: reopened adapter differs from the one in memory")
        if name == "sft" and not any(t.any() for k, t in written.items() if "lora_B" in k):
            raise RuntimeError(f"{folder}: every B matrix is zero, so nothing was trained")
        for file in folder.iterdir():
            sync_folder(file)  # a file is flushed the same way
        sync_folder(folder)

    def load(self, name: str, folder: Path) -> None:
        """Read a plain PEFT folder as adapter `name`, frozen.

        Raises:
            UserError: It is not there, or it belongs to another base, template or shape.
        """
        if not (folder / "adapter_config.json").is_file():
            raise UserError(
                f"{folder}: no adapter_config.json; give the folder of a PEFT LoRA adapter"
            )
        config = LoraConfig.from_pretrained(str(folder))
        if (config.r, config.lora_alpha) != (self.lora.r, self.lora.alpha):
            raise UserError(
                f"{folder}: r={config.r}, alpha={config.lora_alpha}, but this run has "
                f"--lora.r {self.lora.r} --lora.alpha {self.lora.alpha}; use the adapter's own"
            )
        if (folder / FINGERPRINT).is_file():
            found = json.loads((folder / FINGERPRINT).read_text())
            for key, ours in self.fingerprint().items():
                if key != "base_name" and found.get(key) != ours:
                    raise UserError(
                        f"{folder}: trained on {found.get('base_name')!r} with {key} "
                        f"{found.get(key)}, but this run has {self.base.name!r} with {key} {ours}"
                    )
        check_adapter(config, folder)
        weights = load_peft_weights(str(folder), device="cpu")
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
