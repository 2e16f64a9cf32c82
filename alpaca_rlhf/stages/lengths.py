"""The lengths of rows and prompts against those that a run has room for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.models.batches import chars_of, max_chars, prompt_ids
from alpaca_rlhf.models.text_base import TextBase
from alpaca_rlhf.models.turns import LostReply
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.training.sft import RowEncoder, split_held_out


def refuse_long_rows(base: TextBase, settings: Loop, rows: Sequence[Instruction]) -> None:
    """Refuse rows of the user's of which SFT could train on none.

    Raises:
        UserError: Each is longer than --sft.max-length, or than the base's context, or is a
            conversation that the chat template alters.
    """
    training_rows, _ = split_held_out(rows, settings.sft.held_out)
    encoder = RowEncoder(base, settings.template, settings.sft.max_length)
    lost = 0
    for row in training_rows:
        try:
            if encoder.encode(row) is not None:
                return
        except LostReply:
            lost += 1
    if training_rows:
        raise no_row_left(base, settings, all_lost=lost == len(training_rows))


def no_row_left(base: TextBase, settings: Loop, *, all_lost: bool) -> UserError:
    """The refusal of rows that are all too long, or all lost (see `lost_replies`)."""
    if all_lost:
        return UserError(
            f"{settings.inputs.rows}: the chat template of {base.name} alters an earlier reply of "
            "every row to train on; begin a run with --template alpaca, or give other rows"
        )
    return UserError(
        f"{settings.inputs.rows}: no row to train on fits into --sft.max-length "
        f"{settings.sft.max_length} tokens; raise it, or give shorter rows"
    )


def refuse_long_prompts(
    base: TextBase, settings: Loop, splits: Mapping[str, Sequence[Instruction]]
) -> None:
    """Refuse prompts that leave no room for a completion.

    Raises:
        UserError: There is one; the message names it and the flag.
    """
    for name, rows in splits.items():
        # Nothing is sampled on these; rows that are too long are counted.
        if name == "sft" or (name == "rank" and settings.inputs.rankings is not None):
            continue
        flag, new_tokens = (
            ("--ppo.max-new-tokens", settings.ppo.max_new_tokens)
            if name.partition(".")[0] == "ppo"
            else ("--sampling.max-new-tokens", settings.sampling.max_new_tokens)
        )
        for row in rows:
            length = len(prompt_ids(base, settings.template, row))
            if length + new_tokens > base.context:
                raise UserError(
                    f"a prompt of the {name} split has {length} tokens, with {flag} {new_tokens} "
                    f"more than the {base.context} of the base: {row.instruction[:60]!r}; "
                    f"leave it out or lower {flag}"
                )


def has_room(base: TextBase, settings: Loop, row: Instruction) -> bool:
    """True if the context of the base holds a prompt and an answer to be ranked.

    Raises:
        UserError: The chat template cannot show the prompt.
    """
    # Tokens of a text that is far too long would take minutes to find.
    if chars_of(row) > max_chars(base, base.context):
        return False
    length = len(prompt_ids(base, settings.template, row))
    return length + settings.sampling.max_new_tokens <= base.context


def refuse_huge_prompts(base: TextBase, path: Path, prompts: Sequence[Instruction]) -> None:
    """Refuse prompts that are beyond the base's context whatever they say.

    Their near-duplicates and their tokens would take minutes to find.

    Raises:
        UserError: There is one.
    """
    most_chars = max_chars(base, base.context)
    for row in prompts:
        if chars_of(row) > most_chars:
            raise UserError(
                f"{path}: a prompt has {chars_of(row):,} characters, and the base reads "
                f"{base.context} tokens: {row.instruction[:60]!r}; leave it out"
            )
