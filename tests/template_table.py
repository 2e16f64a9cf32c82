"""The table of chat templates: the same ids in every stage, the end learned, the date frozen."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import read_instructions, read_pairs
from alpaca_rlhf.exporting.ollama import modelfile, ollama_template
from alpaca_rlhf.exporting.tokenizer import conversation, exported_tokenizer, ids_of, puts_bos
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.base import Base
from alpaca_rlhf.models.batches import example, prompt_ids
from alpaca_rlhf.models.rollout import sample
from alpaca_rlhf.models.template_traits import frozen_clock
from alpaca_rlhf.serving.policy_server import PolicyServer
from alpaca_rlhf.serving.sampling_settings import SamplingSettings
from alpaca_rlhf.settings import Lora, Sampling
from tests.go_templates import go_render, stops_of_modelfile, template_of_modelfile
from tests.published_templates import (
    CONVERSATIONS,
    DAY,
    ENDS,
    OUR_ENDS,
    base_with_template,
    dialogue,
    row_of,
    tokenizer_with,
    write_rows,
)

REPLY = "Red."
COLUMNS = {
    "sft_is_pair": "SFT ids = pair ids",
    "sft_is_chat": "= chat ids",
    "sft_is_exported": "= exported ids",
    "sft_is_ollama": "= Ollama's ids",
    "end_learned": "end learned",
    "stop_honoured": "stop honoured",
    "date_frozen": "date frozen",
}
"""Columns of the table and their headings; each is a count of the ten conversations or a truth."""


def table_row(name: str, folder: Path) -> dict[str, Any]:
    """One template's row: counts of conversations with the ids of SFT, and three truths."""
    base = base_with_template(name, folder)
    exported = exported_tokenizer(base, "chat")
    text = modelfile(exported, ".", base.stop_ids)
    conversations = list(CONVERSATIONS.values())
    # 1. The ids of SFT and of pairs, from files; those of the app's chat, and of the export.
    reply = {"role": "assistant", "content": REPLY}
    sft_rows = [{"messages": [*turns, reply]} for turns in conversations]
    pair_rows = [{"prompt": turns, "chosen": REPLY, "rejected": "No."} for turns in conversations]
    sft = read_instructions(write_rows(folder / "sft.jsonl", *sft_rows))
    pairs = read_pairs(write_rows(folder / "pairs.jsonl", *pair_rows))
    examples = [example(base, "chat", row, REPLY) for row in sft]
    ids = [made.prompt for made in examples]
    policy_server = object.__new__(PolicyServer)
    policy_server._base, policy_server._template = base, "chat"
    talks = [row_of(turns) for turns in conversations]
    chat = [
        policy_server._ids(replace(row, system=""), SamplingSettings(system=row.system))
        for row in talks
    ]
    # 2. The ids of what Ollama renders, after the bos token that it adds.
    bos = (exported.bos_token_id,) if puts_bos(exported) else ()
    rendered = go_render(template_of_modelfile(text), conversations)
    ollama = [(*bos, *exported(part, add_special_tokens=False)["input_ids"]) for part in rendered]
    # 3. The end of a reply, and the date.
    end = base.tokenizer.convert_tokens_to_ids({**ENDS, **OUR_ENDS}[name])
    is_stop = {**ENDS, **OUR_ENDS}[name] in stops_of_modelfile(text)
    learned = [m.completion[-1] == end and m.completion.count(end) == 1 for m in examples]
    return {
        "template": name,
        "sft_is_pair": _same(ids, (prompt_ids(base, "chat", pair.prompt) for pair in pairs)),
        "sft_is_chat": _same(ids, chat),
        "sft_is_exported": _same(ids, (ids_of(exported, "chat", row) for row in talks)),
        "sft_is_ollama": _same(ids, ollama),
        "end_learned": all(learned),
        "stop_honoured": draws_the_end(base, end) and is_stop,
        "date_frozen": is_frozen(base, talks),
    }


def in_ollama(template: str) -> dict[str, Any]:
    """The count of the ten conversations that Go renders as a template does, and the line on it."""
    tokenizer = tokenizer_with(frozen_clock(template, date.fromisoformat(DAY), name="a template"))
    told = ollama_template(tokenizer)
    if told.text is None:
        return {"same": 0, "told": told.line}
    rendered = go_render(told.text, list(CONVERSATIONS.values()))
    messages = [conversation(tokenizer, "chat", row_of(turns)) for turns in CONVERSATIONS.values()]
    bos = "<s>" if puts_bos(tokenizer) else ""
    same = [
        bos + text
        == tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        for text, turns in zip(rendered, messages, strict=True)
    ]
    return {"same": sum(same), "told": "" if told.exact else told.line}


def is_good(row: dict[str, Any]) -> bool:
    """All ten conversations have the same ids everywhere, and the three truths hold."""
    return all(row[column] in (True, len(CONVERSATIONS)) for column in COLUMNS)


def markdown(rows: Iterable[dict[str, Any]]) -> str:
    """The table."""
    total = len(CONVERSATIONS)
    lines = [f"| template | {' | '.join(COLUMNS.values())} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for row in rows:
        cells = [
            ("yes" if row[column] else "NO")
            if isinstance(row[column], bool)
            else f"{row[column]} of {total}"
            for column in COLUMNS
        ]
        lines.append(f"| {row['template']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _same(ids: list[tuple[int, ...]], others: Iterable[Any]) -> int:
    return sum(tuple(other) == expected for expected, other in zip(ids, others, strict=True))


def draws_the_end(base: Base, end: int) -> bool:
    """A policy that draws the end after a prompt has finished, and draws no more."""
    ids = prompt_ids(base, "chat", row_of(dialogue("Name a colour.")))
    head = base.model.lm_head.weight
    before = head.detach().clone()
    try:
        with torch.no_grad():  # a head that draws the end after this prompt
            state = base.model.model(torch.tensor([ids])).last_hidden_state[0, -1]
            head.zero_()
            head[end] = state
        adapters = Adapters(base, Lora(r=4), template="chat")
        greedy = Sampling(temperature=0, max_new_tokens=4)
        ((drawn,),) = sample(adapters, None, [ids], ["a"], sampling=greedy, seed=0)
    finally:
        with torch.no_grad():
            head.copy_(before)
    return drawn.ids == (end,) and drawn.finished


class _Later(datetime):
    """A clock of another year."""

    @classmethod
    def now(cls, tz: Any = None) -> "_Later":
        return cls(2031, 7, 9, tzinfo=tz)


def is_frozen(base: Base, rows: list[Instruction]) -> bool:
    """The ids are the same in another year."""
    today = [prompt_ids(base, "chat", row) for row in rows]
    with patch("transformers.utils.chat_template_utils.datetime", _Later):
        return today == [prompt_ids(base, "chat", row) for row in rows]
