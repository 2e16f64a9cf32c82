"""`alpaca-rlhf generate --dry-run`: the requests of a run and their cost; nothing is sent."""

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
"""Assumed share of accepted tasks; the run shows the true one."""

_TASKS_PER_LIST = 8
"""Tasks that a request of Self-Instruct lists."""


def show(settings: Loop, terminal: Terminal, *, command: str) -> int:
    """Print the first prompt, and about how many tokens and how much money the run takes.

    Returns:
        The exit code, 0.

    Raises:
        UserError: The seed tasks cannot be read or are too few.
    """
    from alpaca_rlhf.sources import source_of

    # 1. The first prompt, as the teacher would get it.
    recipe, endpoint = settings.generate, settings.generate.endpoint
    seeds = source_of(settings).seeds()
    prompt = recipe_of(recipe, seeds, settings.seed).phase(0)[0].prompt
    by_http = endpoint.url is not None
    api = endpoint.api if by_http else "completions"
    teacher = f"{endpoint.model} at {endpoint.url}" if by_http else settings.base
    terminal.say(f"dry run: nothing is asked. The first prompt, for {teacher}:")
    fields = prompt_fields(api, prompt)
    for message in fields.get("messages", []):
        terminal.say(f"--- {message['role']}\n{message['content']}")
    if api == "completions":
        terminal.say(f"---\n{prompt}")
    terminal.say("---")
    # 2. Tokens and money, as expected and at most.
    tokens_in = estimate_tokens(prompt_of(fields))
    terminal.say(
        f"a request: about {tokens_in} tokens in, at most {recipe.max_new_tokens} out "
        "(a token is taken for 4 bytes)"
    )
    per_row = requests_a_row(recipe, estimate_tokens(worksheet(seeds)) / len(seeds))
    expected = min(recipe.max_requests, math.ceil(recipe.target * per_row))
    for label, count in (
        (f"{recipe.target} rows, if {ACCEPTED:.0%} of the tasks are accepted", expected),
        ("at most, --generate.max-requests", recipe.max_requests),
    ):
        total_in, total_out = count * tokens_in, count * recipe.max_new_tokens
        usd = price(endpoint, total_in, total_out)
        cost = "no prices given" if usd is None else f"${usd:.2f} at your prices"
        if not by_http:
            cost = "no money but power"
        terminal.say(
            f"{label}: {count} requests, {total_in:,} tokens in, {total_out:,} out, {cost}"
        )
    terminal.say()
    for line in next_lines([(command, "the real run")]):
        terminal.say(line)
    return 0


def requests_a_row(recipe: Generate, task_tokens: float) -> float:
    """Expected number of requests for one accepted row.

    Args:
        recipe: The recipe and its numbers.
        task_tokens: Tokens of a task on a worksheet, with its output.
    """
    requests = {
        "alpaca": 1 / max(1.0, recipe.max_new_tokens / task_tokens),
        "self-instruct": 1 / _TASKS_PER_LIST + 2,  # its share of a list, its kind, its instances
        "evol": 2,  # the task, its answer
        "answers": 1,
    }
    return requests[recipe.recipe] / ACCEPTED
