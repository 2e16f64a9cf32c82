"""What a run of generate would send and cost, without sending anything."""

from __future__ import annotations

import math

from alpaca_rlhf.cli.terminal import Terminal, next_lines
from alpaca_rlhf.core.prompts import worksheet
from alpaca_rlhf.data import recipe_of
from alpaca_rlhf.llm.budget import price
from alpaca_rlhf.llm.probe import prompt_fields
from alpaca_rlhf.llm.wire import estimate_tokens, prompt_of
from alpaca_rlhf.settings import Generate, Loop

ACCEPTED = 0.5
"""Share of the tasks that is taken to be accepted; the run shows the true one."""

_LISTED = 8  # tasks that a request of Self-Instruct lists


def show(settings: Loop, terminal: Terminal, *, command: str) -> int:
    """Print the first prompt, and about how many tokens and how much money the run takes.

    Returns:
        The exit code, 0.

    Raises:
        UserError: The seed tasks cannot be read or are too few.
    """
    from alpaca_rlhf.sources import source_of

    now, end = settings.generate, settings.generate.endpoint
    seeds = source_of(settings).seeds()
    prompt = recipe_of(now, seeds, settings.seed).phase(0)[0].prompt
    api = end.api if end.url is not None else "completions"
    teacher = f"{end.model} at {end.url}" if end.url is not None else settings.base
    terminal.say(f"dry run: nothing is asked. The first prompt, for {teacher}:")
    fields = prompt_fields(api, prompt)
    for message in fields.get("messages", []):
        terminal.say(f"--- {message['role']}\n{message['content']}")
    if api == "completions":
        terminal.say(f"---\n{prompt}")
    terminal.say("---")
    tokens_in = estimate_tokens(prompt_of(fields))
    terminal.say(
        f"a request: about {tokens_in} tokens in, at most {now.max_new_tokens} out "
        "(a token is taken for 4 bytes)"
    )
    a_row = requests_a_row(now, estimate_tokens(worksheet(seeds)) / len(seeds))
    for label, count in (
        (
            f"{now.target} rows, if {ACCEPTED:.0%} of the tasks are accepted",
            min(now.max_requests, math.ceil(now.target * a_row)),
        ),
        ("at most, --generate.max-requests", now.max_requests),
    ):
        total = count * tokens_in, count * now.max_new_tokens
        usd = price(end, *total)
        cost = "no prices given" if usd is None else f"${usd:.2f} at your prices"
        if end.url is None:
            cost = "no money but power"
        terminal.say(f"{label}: {count} requests, {total[0]:,} tokens in, {total[1]:,} out, {cost}")
    terminal.say()
    for line in next_lines([(command, "the real run")]):
        terminal.say(line)
    return 0


def requests_a_row(settings: Generate, task_tokens: float) -> float:
    """About how many requests one accepted row takes.

    Args:
        settings: The recipe and its numbers.
        task_tokens: Tokens of a task on a worksheet, with its output.
    """
    needed = {
        "alpaca": 1 / max(1.0, settings.max_new_tokens / task_tokens),
        "self-instruct": 1 / _LISTED + 2,  # its share of a list, its kind, its instances
        "evol": 2,  # the task, its answer
    }
    return needed[settings.recipe] / ACCEPTED
