"""Every stage on a random base, and the most that its tensors take: on a CPU, or on a card.

The stages are the real ones, with completions that never stop by themselves, so that every row is
as long as it may be.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from alpaca_rlhf.models import rollout
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.base import load_base
from alpaca_rlhf.models.batches import Example, TokenCounts
from alpaca_rlhf.models.heads import ScalarHead
from alpaca_rlhf.planner import Device, Lengths, PeakMemory, Shape
from alpaca_rlhf.settings import Loop, Sampling
from alpaca_rlhf.training import ppo as ppo_module
from alpaca_rlhf.training.candidates import draw, rescore
from alpaca_rlhf.training.groups import Group
from alpaca_rlhf.training.loop import Checkpoints
from alpaca_rlhf.training.ppo import train_ppo
from alpaca_rlhf.training.reward import train_reward
from alpaca_rlhf.training.rollouts import RolloutPrompt
from alpaca_rlhf.training.sft import train_sft
from benchmarks import little_llama
from benchmarks.measure import LiveBytes, tensors_of

STAGES = (
    "generate",
    "sft",
    "sample",
    "chat",
    "reward",
    "ppo: rollout",
    "ppo: scoring",
    "ppo: update",
    "best_of_k",
)
"""What is compared."""


_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "qwen3": ("Qwen3", {}),
    "gemma3_text": ("Gemma3Text", {}),
}
"""Name of each family's classes in transformers, and what it is configured with."""


def write_base(folder: Path, shape: Shape) -> Path:
    """A random base of the shape in bf16, as a checkpoint; fast, however large it is."""
    import transformers

    little_llama.write_tokenizer(folder, shape.vocabulary)
    kind, options = _FAMILIES[shape.family]
    if shape.gemma:
        options = {**options, "query_pre_attn_scalar": shape.head_size}
        options |= {"sliding_window": shape.window}
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_size,
        max_position_embeddings=shape.context,
        tie_word_embeddings=shape.tied,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=shape.vocabulary - 1,
        **options,
    )
    with torch.device("meta"):
        model = getattr(transformers, kind.removesuffix("Text") + "ForCausalLM")(config)
    model = model.to(torch.bfloat16)
    model = model.to_empty(device="cpu")
    model.tie_weights()
    generator = torch.Generator().manual_seed(0)
    drawn = (torch.randn(2**20, generator=generator) * 0.02).bfloat16()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.fill_(1)
                continue
            flat = parameter.view(-1)
            for start in range(0, len(flat), len(drawn)):
                part = flat[start : start + len(drawn)]
                part.copy_(drawn[: len(part)])
    model.save_pretrained(folder, max_shard_size="4GB")
    return folder


def adapters_of(
    folder: Path, settings: Loop, *, dtype: torch.dtype | None, checkpointing: bool, device: str
) -> Adapters:
    """A base that never stops by itself; no adapters yet."""
    base = load_base(str(folder), dtype=dtype, device=device)
    base = replace(base, stop_ids=frozenset())  # every completion is as long as may be
    adapters = Adapters(
        base, settings.lora, template="brief", dense_gib=settings.sampling.dense_gib
    )
    adapters.checkpointing(checkpointing)
    return adapters


class Meter:
    """Most bytes of tensors in each phase.

    Args:
        adapters: What is there before the first phase.
        on_card: Whether torch's own count of the card is read; else live tensors are counted.
    """

    def __init__(self, adapters: Adapters, *, on_card: bool) -> None:
        self.adapters = adapters
        self.on_card = on_card
        self.peaks: dict[str, int] = {}
        self._live: LiveBytes | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure a block; `phase` may cut it."""
        counting: AbstractContextManager[Any]
        if self.on_card:
            torch.cuda.reset_peak_memory_stats()
            yield
        else:
            self._live = counting = LiveBytes(list(tensors_of(self.adapters.base.model)))
            with counting:
                yield
        self._note(name)

    def _note(self, name: str) -> None:
        if self._live is not None:
            peak, self._live.peak = self._live.peak, self._live.live
        else:
            peak = torch.cuda.max_memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        self.peaks[name] = max(self.peaks.get(name, 0), peak)

    def phase(self, name: str, before: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with what it takes noted apart from what was before it."""

        def measured(*args: Any, **kwargs: Any) -> Any:
            self._note(before)
            found = work(*args, **kwargs)
            self._note(name)
            return found

        return measured


@dataclass(frozen=True)
class Stages:
    """The stages of a loop on made-up rows.

    Args:
        adapters: A base without adapters.
        settings: The loop; every stage takes a few steps of it.
        prompt: Tokens of a prompt.
        meter: What is measured with.
        scratch: A folder for checkpoints.
    """

    adapters: Adapters
    settings: Loop
    prompt: int
    meter: Meter
    scratch: Path

    def all(self, only: Sequence[str] = STAGES) -> dict[str, int]:
        """Peak bytes of every stage, by `stage` or `stage: phase`."""
        adapters, settings, meter = self.adapters, self.settings, self.meter
        policies = "best_of_k" in only or "ppo: update" in only
        if "generate" in only:
            own = settings.generate
            as_asked = Sampling(max_new_tokens=own.max_new_tokens, batch_size=own.batch_size)
            with meter.stage("generate"):
                self._draw(None, as_asked)
        adapters.add("sft")
        if "sft" in only:
            with meter.stage("sft"):
                self._fine_tune("sft", "sft", settings.sft.max_length - self.prompt)
        if "sample" in only:
            with meter.stage("sample"):
                self._draw("sft", settings.sampling, settings.rank.k)
        if "chat" in only:
            with meter.stage("chat"):
                self._draw("sft", replace(settings.sampling, batch_size=1))
        adapters.add("reward", copy_of="sft")
        head = ScalarHead(int(adapters.base.model.config.hidden_size)).to(adapters.base.device)
        if "reward" in only:
            with meter.stage("reward"):
                head = self._reward()
        if policies:
            adapters.add("policy", copy_of="sft")
        if "ppo: update" in only:
            self._ppo(head)
        if "best_of_k" in only:
            adapters.trainable()
            with meter.stage("best_of_k"):
                self._best_of_k(head)
        return meter.peaks

    def _examples(self, count: int, completion: int, seed: int = 0) -> list[Example]:
        shape = little_llama.Shape(vocabulary=int(self.adapters.base.model.config.vocab_size))
        ids = [
            little_llama.random_ids(self.prompt + completion, seed + i, shape) for i in range(count)
        ]
        return [Example(tuple(one[: self.prompt]), tuple(one[self.prompt :])) for one in ids]

    def _prompts(self, count: int) -> list[tuple[int, ...]]:
        """One of them is shorter, so that there is a mask as in a real batch."""
        prompts = [one.prompt for one in self._examples(count, 1)]
        return [*prompts[:-1], prompts[-1][1:]] if count > 1 else prompts

    def _draw(self, role: str | None, sampling: Sampling, k: int = 1) -> None:
        prompts = self._prompts(max(1, sampling.batch_size // k))
        keys = [str(number) for number in range(len(prompts))]
        rollout.sample(self.adapters, role, prompts, keys, k=k, sampling=sampling, seed=0)

    def _checkpoints(self, name: str) -> Checkpoints:
        return Checkpoints(self.scratch / name, bad_batches=self.scratch / "bad")

    def _fine_tune(self, role: str, stage: str, completion: int) -> None:
        """Two steps of two micro-batches."""
        own = self.settings.sft
        examples = self._examples(4 * own.micro_batch_size, completion)
        train_sft(
            self.adapters,
            role,
            examples,
            [],
            replace(own, batch_size=2 * own.micro_batch_size, epochs=1),
            seed=0,
            checkpoints=self._checkpoints(stage),
            log=lambda row: None,
            stage=stage,
            # The stage of best-of-K counts its winners, which may be shorter than rows of SFT.
            largest=TokenCounts.of_largest([[one] for one in examples]),
        )

    def _groups(self, count: int, seed: int) -> list[Group]:
        """Rankings of K completions each, which share their prompt."""
        k, completion = self.settings.rank.k, self.settings.reward.max_length - self.prompt
        pairs = tuple((i, j) for i in range(k) for j in range(i + 1, k))
        groups = []
        for number in range(count):
            examples = self._examples(k, completion, seed + number * k)
            shared = tuple(replace(example, prompt=examples[0].prompt) for example in examples)
            groups.append(Group(prompt_id=f"{seed}-{number}", examples=shared, pairs=pairs))
        return groups

    def _reward(self) -> ScalarHead:
        own = self.settings.reward
        head, _ = train_reward(
            self.adapters,
            "reward",
            self._groups(4 * own.micro_batch_size, 0),
            self._groups(4 * own.micro_batch_size, 1000),
            replace(own, batch_size=2 * own.micro_batch_size, epochs=1),
            seed=0,
            checkpoints=self._checkpoints("reward"),
            log=lambda row: None,
        )
        return head

    def _ppo(self, head: ScalarHead) -> None:
        own = self.settings.ppo
        prompts = [
            RolloutPrompt(str(number), ids)
            for number, ids in enumerate(self._prompts(own.updates * own.batch_size))
        ]
        patched: Any = ppo_module
        originals = patched.sample_from_policy, patched.collect, patched.improve
        sample, collect, improve = originals
        between, phase = "ppo: between", self.meter.phase
        try:
            patched.sample_from_policy = phase("ppo: rollout", between, sample)
            patched.collect = phase("ppo: scoring", between, collect)
            patched.improve = phase("ppo: update", between, improve)
            with self.meter.stage(between):
                train_ppo(
                    self.adapters,
                    head,
                    prompts,
                    own,
                    seed=0,
                    rollout_batch_size=self.settings.sampling.batch_size,
                    checkpoints=self._checkpoints("ppo"),
                    log=lambda row: None,
                )
        finally:
            patched.sample_from_policy, patched.collect, patched.improve = originals

    def _best_of_k(self, head: ScalarHead) -> None:
        own, sampling = self.settings.best_of_k, self.settings.sampling
        prompts = self._prompts(max(1, sampling.batch_size // own.k))
        draw(
            self.adapters,
            "policy",
            prompts,
            [str(number) for number in range(len(prompts))],
            k=own.k,
            sampling=sampling,
            seed=0,
            score_candidates=lambda pool: rescore(
                self.adapters, head, pool, batch_size=sampling.batch_size
            ),
        )
        self._fine_tune("policy", "best_of_k", sampling.max_new_tokens)


def planned(
    shape: Shape, device: Device, settings: Loop, prompt: int, *, checkpointing: bool
) -> dict[str, int]:
    """What the planner says of the same."""
    lengths = Lengths(prompt=prompt, worksheet=prompt, chat=prompt)
    plan = PeakMemory(shape, device, settings, lengths, checkpointing=checkpointing)
    found = {name: list(phases) for name, phases in plan.all().items()}
    peaks = {name: max(one.peak for one in phases) for name, phases in found.items()}
    for one in found["ppo"]:
        name = f"ppo: {one.name if one.name in ('rollout', 'scoring') else 'update'}"
        peaks[name] = max(peaks.get(name, 0), one.peak)
    return {name: peaks[name] for name in STAGES}
