"""Checks of a base: can it be loaded, and does it meet everything that training relies on."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.kernels import WORDS
from alpaca_rlhf.core.prompts import marked
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.doctor.finding import Finding, carried_out
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.attention import packed_kernel
from alpaca_rlhf.models.base import Base, load_base
from alpaca_rlhf.models.batches import (
    Example,
    answer,
    collate,
    example,
    prompt_ids,
    segments,
    sft_example,
)
from alpaca_rlhf.models.devices import float64
from alpaca_rlhf.models.forward import loss_logprobs
from alpaca_rlhf.models.template_traits import THOUGHT, THOUGHT_END, end_id, template_traits
from alpaca_rlhf.models.turns import LostReply
from alpaca_rlhf.settings import Lora

_ROWS = (
    Instruction("Name the capital of France.", "", "Paris."),
    Instruction("Translate into English.", "Guten Tag.", "Good day."),
    Instruction("And of Italy?", "", "Rome.", history=(("Capital of France?", "Paris."),)),
)
_ANSWERS = ("Paris.", "Grüße aus Köln, 你好!", "  two  spaces,\n\na blank line and `code`")
_PREVIEW_CHARS = 300


def base_checks(name: str, template: str, lora: Lora) -> Iterator[Finding]:
    """Load a base and check it.

    Args:
        name: `embedded`, a folder or a hub id.
        template: Prompt template to check it with.
        lora: Shape of the adapters.
    """
    try:
        base = load_base(name)
        adapters = Adapters(base, lora, template=template)
    except UserError as error:
        problem, _, todo = str(error).rpartition("; ")
        yield Finding("base", problem or todo, "bad", todo)
        return
    mebibytes = sum(p.numel() * p.element_size() for p in base.model.parameters()) / 2**20
    weights = base.parameters / 1e6
    size = f"{name}: {weights:,.1f} M weights in {mebibytes:,.0f} MiB, context {base.context}"
    yield Finding("base", f"{size}, fingerprint {base.fingerprint}")
    yield from carried_out(
        {
            "attention": partial(_attention, base),
            "tokenizer": partial(_tokenizer, base, template),
            "end of text": partial(_ends, base, template),
            "what carries loss": partial(_mask, base, template),
            "a new adapter": partial(_starts_at_the_base, adapters),
            "gradients": partial(_gradients, adapters),
            "save and reload": partial(_reloads, adapters),
        }
    )


def _attention(base: Base) -> Finding:
    """Name the attention kernel that training and scoring will run."""
    kernel = packed_kernel(base.device, base.dtype, base.model.config)
    state = f"{kernel}: {WORDS[kernel]}"
    if kernel == "math":
        todo = "nothing: the plan counts them; long rows take much memory on a card before sm80"
        return Finding("attention", state, "warning", todo)
    return Finding("attention", state)


def _tokenizer(base: Base, template: str) -> Finding:
    """Check that answers survive tokenisation, and that a prompt's ids do not depend on them."""
    problems = []
    for text in _ANSWERS:
        taught = example(base, template, _ROWS[0], text)
        decoded = answer(base, template, taught.completion[:-1])
        if decoded.strip() != text.strip():
            problems.append(f"{text!r} comes back as {decoded!r}")
        if taught.prompt != prompt_ids(base, template, _ROWS[0]):
            problems.append(f"the prompt has other tokens before {text!r} than alone")
    if problems:
        todo = "such texts are learned as they come back; take a base with another tokenizer"
        return Finding("tokenizer", "; ".join(problems), "warning", todo)
    count = len(base.tokenizer)
    return Finding("tokenizer", f"{count:,} tokens; texts come back whole, {template} template")


def _ends(base: Base, template: str) -> Finding:
    """Check that one token ends every answer, is learned, stops, and differs from padding."""
    end = end_id(base.tokenizer, template)
    token, eos = base.tokenizer.convert_ids_to_tokens([end, base.eos_id])
    is_learned = example(base, template, _ROWS[0], "Paris.").completion[-1] == end
    state = f"{token} ({end}) ends each answer, is learned and stops; padding is {base.pad_id}"
    if end != base.eos_id:
        state += f"; it is the chat template's end of turn, not the tokenizer's eos {eos}"
    if not is_learned or end not in base.stop_ids or base.pad_id == end:
        return Finding("end of text", state, "bad", "report it: no answer would end")
    chat = template_traits(base.tokenizer) if template == "chat" else None
    if chat is not None and chat.end_id is None:
        todo = "SFT refuses rows of several turns; use a template that closes its replies"
        state += "; the chat template closes a reply with no token, so the tokenizer's eos does"
        return Finding("end of text", state, "warning", todo)
    return Finding("end of text", state)


def _mask(base: Base, template: str) -> Finding:
    """Show which text of a row carries loss."""
    previews = []
    if template == "chat" and base.day:
        state = "the chat template prints today's date; a run keeps that of its first day"
        previews.append(f"{state}, here {base.day}")
    learned = _learned(base, template)
    for taught in learned[1:]:
        text = marked(segments(base, taught))
        previews.append(text if len(text) <= _PREVIEW_CHARS else "..." + text[-_PREVIEW_CHARS:])
    state = "in [[ ]]:\n" + "\n---\n".join(previews)
    if len(learned) < len(_ROWS):
        todo = "SFT refuses such rows; give rows of one turn, or use --template alpaca for them"
        state += "\n---\nnothing of a conversation: the chat template alters its earlier replies"
        return Finding("what carries loss", state, "warning", todo)
    chat = template_traits(base.tokenizer) if template == "chat" else None
    if chat is not None and chat.opens_thought:
        todo = f"begin each output with a thought and {THOUGHT_END}, or use --template alpaca"
        state += f"\n---\nthe chat template opens a thought ({THOUGHT}) before each reply: an "
        state += f"output without {THOUGHT_END} is learned as a thought that never ends"
        return Finding("what carries loss", state, "warning", todo)
    return Finding("what carries loss", state)


def _learned(base: Base, template: str) -> list[Example]:
    """The rows that SFT takes: a conversation only where the template leaves its replies whole."""
    learned = []
    for row in _ROWS:
        with suppress(LostReply):
            learned.append(sft_example(base, template, row))
    return learned


def _stats(adapters: Adapters, role: str | None) -> torch.Tensor:
    """Log-probabilities in float64 of every learned token under an adapter."""
    learned = _learned(adapters.base, adapters.template)
    with torch.no_grad(), adapters.using(role):
        return float64(loss_logprobs(adapters, collate(adapters.base, learned)))


def _starts_at_the_base(adapters: Adapters) -> Finding:
    """Check that a new adapter changes no log-probability."""
    adapters.add("doctor")
    difference = float((_stats(adapters, None) - _stats(adapters, "doctor")).abs().max())
    state = f"differs from the base by {difference:g} nats at most"
    if difference != 0:
        todo = "report it: PPO's KL would not begin at 0"
        return Finding("a new adapter", state, "bad", todo)
    return Finding("a new adapter", f"{state}: KL begins at 0")


def _gradients(adapters: Adapters) -> Finding:
    """Check that a loss reaches every layer's adapter with finite gradients."""
    adapters.trainable("doctor")
    learned = _learned(adapters.base, adapters.template)
    with adapters.using("doctor"), adapters.training():
        batch = collate(adapters.base, learned)
        (-loss_logprobs(adapters, batch).mean()).backward()  # type: ignore[no-untyped-call]
    parameters = adapters.parameters("doctor")
    # B starts at zero, so in the first step only B has a gradient
    gradients = {key: tensor.grad for key, tensor in parameters.items() if tensor.grad is not None}
    reached = sum("_B" in key and bool(gradient.any()) for key, gradient in gradients.items())
    expected = sum("_B" in key for key in parameters)
    finite = all(bool(gradient.isfinite().all()) for gradient in gradients.values())
    adapters.trainable()
    state = f"reach {reached} of {expected} layers{'' if finite else ', and some are not finite'}"
    if reached != expected or not finite:
        return Finding("gradients", state, "bad", "report it: these layers would not learn")
    return Finding("gradients", state)


def _reloads(adapters: Adapters) -> Finding:
    """Check that an adapter that is saved and reloaded is the same."""
    # 1. Change every weight, so that an empty adapter would be noticed.
    with torch.no_grad():
        for parameter in adapters.parameters("doctor").values():
            parameter.add_(0.01)
    # 2. Save it and load it under another name.
    with tempfile.TemporaryDirectory() as folder:
        adapters.save("doctor", Path(folder) / "adapter")
        adapters.load("again", Path(folder) / "adapter")
    # 3. The weights and their effect must be the same.
    same = adapters.digest("doctor") == adapters.digest("again")
    same &= torch.equal(_stats(adapters, "doctor"), _stats(adapters, "again"))
    if not same:
        todo = "report it: a trained adapter could not be loaded again"
        return Finding("save and reload", "a different adapter was loaded", "bad", todo)
    return Finding("save and reload", "the same weights and the same log-probabilities")
