"""Checks of a base: is it there, and does everything that training rests on hold for it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.prompts import marked
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.doctor.finding import Finding, carried_out
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.base import Base, load_base
from alpaca_rlhf.models.batches import answer, collate, example, prompt_ids, segments
from alpaca_rlhf.models.forward import loss_logprobs
from alpaca_rlhf.settings import Lora

_ROWS = (
    Instruction("Name the capital of France.", "", "Paris."),
    Instruction("Translate into English.", "Guten Tag.", "Good day."),
    Instruction("And of Italy?", "", "Rome.", history=(("Capital of France?", "Paris."),)),
)
_ANSWERS = ("Paris.", "Grüße aus Köln, 你好!", "  two  spaces,\n\na blank line and `code`")
_SHOWN = 300


def base_checks(name: str, template: str, lora: Lora) -> Iterator[Finding]:
    """Load a base and try it.

    Args:
        name: `embedded`, a folder or a hub id.
        template: Prompt template to try with.
        lora: Shape of the adapters.
    """
    try:
        base = load_base(name)
        adapters = Adapters(base, lora, template=template)
    except UserError as error:
        yield Finding("base", str(error), "bad", "see the message")
        return
    held = sum(p.numel() * p.element_size() for p in base.model.parameters()) / 2**20
    weights = base.parameters / 1e6
    what = f"{name}: {weights:,.1f} M weights in {held:,.0f} MiB, context {base.context}"
    yield Finding("base", f"{what}, fingerprint {base.fingerprint}")
    yield from carried_out(
        {
            "tokenizer": partial(_tokenizer, base, template),
            "end of text": partial(_ends, base, template),
            "what carries loss": partial(_mask, base, template),
            "a new adapter": partial(_starts_at_the_base, adapters),
            "gradients": partial(_gradients, adapters),
            "save and reload": partial(_reloads, adapters),
        }
    )


def _tokenizer(base: Base, template: str) -> Finding:
    lost = []
    for text in _ANSWERS:
        one = example(base, template, _ROWS[0], text)
        back = answer(base, template, one.completion[:-1])
        if back.strip() != text.strip():
            lost.append(f"{text!r} comes back as {back!r}")
        if one.prompt != prompt_ids(base, template, _ROWS[0]):
            lost.append(f"the prompt before {text!r} has other tokens than alone")
    if lost:
        todo = "such texts are learned as they come back; take a base with another tokenizer"
        return Finding("tokenizer", "; ".join(lost), "warning", todo)
    count = len(base.tokenizer)
    return Finding("tokenizer", f"{count:,} tokens; texts come back whole, {template} template")


def _ends(base: Base, template: str) -> Finding:
    eos = base.tokenizer.convert_ids_to_tokens(base.eos_id)
    taught = example(base, template, _ROWS[0], "Paris.").completion[-1] == base.eos_id
    found = f"{eos} ({base.eos_id}) ends each answer and is learned; padding is {base.pad_id}"
    if not taught or base.pad_id == base.eos_id:
        return Finding("end of text", found, "bad", "report it: no answer would end")
    return Finding("end of text", found)


def _mask(base: Base, template: str) -> Finding:
    shown = []
    for row in _ROWS[1:]:
        text = marked(segments(base, example(base, template, row, row.output or "")))
        shown.append(text if len(text) <= _SHOWN else "..." + text[-_SHOWN:])
    return Finding("what carries loss", "in [[ ]]:\n" + "\n---\n".join(shown))


def _stats(adapters: Adapters, role: str | None) -> torch.Tensor:
    rows = [example(adapters.base, adapters.template, row, row.output or "") for row in _ROWS]
    with torch.no_grad(), adapters.using(role):
        return loss_logprobs(adapters, collate(adapters.base, rows)).double()


def _starts_at_the_base(adapters: Adapters) -> Finding:
    adapters.add("doctor")
    kl = float((_stats(adapters, None) - _stats(adapters, "doctor")).abs().max())
    found = f"differs from the base by {kl:g} nats at most"
    if kl != 0:
        todo = "report it: PPO's KL would not begin at 0"
        return Finding("a new adapter", found, "bad", todo)
    return Finding("a new adapter", f"{found}: KL begins at 0")


def _gradients(adapters: Adapters) -> Finding:
    adapters.trainable("doctor")
    rows = [example(adapters.base, adapters.template, row, row.output or "") for row in _ROWS]
    with adapters.using("doctor"), adapters.training():
        batch = collate(adapters.base, rows)
        (-loss_logprobs(adapters, batch).mean()).backward()  # type: ignore[no-untyped-call]
    own = adapters.parameters("doctor")
    reached = sum(p.grad is not None and bool(p.grad.any()) for k, p in own.items() if "_B" in k)
    wanted = sum("_B" in key for key in own)
    finite = all(bool(p.grad.isfinite().all()) for p in own.values() if p.grad is not None)
    adapters.trainable()
    found = f"reach {reached} of {wanted} layers{'' if finite else ', and some are not finite'}"
    if reached != wanted or not finite:
        return Finding("gradients", found, "bad", "report it: these layers would not learn")
    return Finding("gradients", found)


def _reloads(adapters: Adapters) -> Finding:
    with torch.no_grad():
        for parameter in adapters.parameters("doctor").values():
            parameter.add_(0.01)
    with tempfile.TemporaryDirectory() as name:
        adapters.save("doctor", Path(name) / "adapter")
        adapters.load("again", Path(name) / "adapter")
    same = adapters.digest("doctor") == adapters.digest("again")
    same &= torch.equal(_stats(adapters, "doctor"), _stats(adapters, "again"))
    if not same:
        todo = "report it: what is trained could not be loaded again"
        return Finding("save and reload", "another adapter comes back", "bad", todo)
    return Finding("save and reload", "the same weights and the same log-probabilities")
