"""Rows to learn from in which the chat template alters an earlier reply.

Qwen3's template and those of DeepSeek's distillations cut the thought out of every reply but the
last. SFT would learn from a text that the row does not have, so such a row is broken there. Every
other stage takes the prompt as the template renders it.
"""

from __future__ import annotations

from dataclasses import replace

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import BadRow, read_instructions
from alpaca_rlhf.models.text_base import TextBase
from alpaca_rlhf.models.turns import LostReply
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.sources import read_rows, reading_of
from alpaca_rlhf.training.sft import RowEncoder


def refuse_lost_replies(base: TextBase, settings: Loop) -> None:
    """Refuse rows of the user's file of which the chat template alters an earlier reply.

    With --inputs.broken drop, SFT leaves them out and counts them.

    Raises:
        UserError: `file:line:` of the first such row, with their number.
    """
    inputs = settings.inputs
    if inputs.rows is None or inputs.broken == "drop" or settings.template != "chat":
        return
    # 1. The conversations that are lost.
    encoder = RowEncoder(base, settings.template, settings.sft.max_length)
    rows, _ = read_rows(inputs)
    lost = {row.id for row in rows if row.history and _is_lost(encoder, row)}
    if not lost:
        return

    # 2. Read the file again, which knows the line of each row.
    def refuse(row: Instruction) -> None:
        if row.id in lost:
            raise BadRow(
                f"the chat template of {base.name} alters an earlier reply of this conversation, "
                "or closes it with no token, so nothing can be learned from it"
            )

    some_left = any(row.id not in lost for row in rows)
    drop = "leave such rows out with --inputs.broken drop, or " if some_left else ""
    reading = replace(
        reading_of(inputs, "instructions", inputs.rows),
        refuse=refuse,
        way_out=f"; {drop}begin a run with --template alpaca",
    )
    read_instructions(inputs.rows, reading)


def _is_lost(encoder: RowEncoder, row: Instruction) -> bool:
    try:
        encoder.encode(row)
    except LostReply:
        return True
    return False
