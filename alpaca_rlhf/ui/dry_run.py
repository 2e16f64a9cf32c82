"""What a run of generate would send and cost, without sending anything."""

from __future__ import annotations

import math

from alpaca_rlhf.config import UserError
from alpaca_rlhf.data import demonstrations
from alpaca_rlhf.data.budget import price
from alpaca_rlhf.data.probe import probe_body
from alpaca_rlhf.data.wire import estimate_tokens, prompt_of
from alpaca_rlhf.prompts import worksheet, worksheet_prompt
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.ui.terminal import Terminal, next_lines

ACCEPTED = 0.5
"""Share of the tasks that is taken to be accepted; the run shows the true one."""


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
    if len(seeds) < now.demonstrations:
        raise UserError(
            f"--generate.demonstrations {now.demonstrations} needs as many seed tasks, "
            f"got {len(seeds)}"
        )
    shown = demonstrations(seeds, now.demonstrations, seed=settings.seed, request=0)
    prompt = worksheet_prompt(shown)
    api = end.api if end.url is not None else "completions"
    teacher = f"{end.model} at {end.url}" if end.url is not None else settings.base
    terminal.say(f"dry run: nothing is asked. The first prompt, for {teacher}:")
    for message in probe_body(api, prompt).get("messages", []):
        terminal.say(f"--- {message['role']}\n{message['content']}")
    if api == "completions":
        terminal.say(f"---\n{prompt}")
    terminal.say("---")
    tokens_in = estimate_tokens(prompt_of(probe_body(api, prompt)))
    task = estimate_tokens(worksheet(seeds)) / len(seeds)
    tasks = max(1.0, now.max_new_tokens / task)
    requests = min(now.max_requests, math.ceil(now.target / (tasks * ACCEPTED)))
    terminal.say(
        f"a request: about {tokens_in} tokens in, at most {now.max_new_tokens} out, "
        f"about {tasks:.1f} tasks (a token is taken for 4 bytes)"
    )
    for label, count in (
        (f"{now.target} rows, if {ACCEPTED:.0%} of the tasks are accepted", requests),
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
