"""`alpaca-rlhf chat`: one answer, or a conversation with the policies of a run."""

from __future__ import annotations

from alpaca_rlhf.cli.chat import Chat, Conversation, choose
from alpaca_rlhf.cli.terminal import Terminal
from alpaca_rlhf.core import quiet
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.serving import run_contents
from alpaca_rlhf.serving.sampling_settings import SamplingSettings

__all__ = ["Chat", "run"]


def run(request: Chat, terminal: Terminal) -> int:
    """Answer --prompt, or talk until the person leaves.

    Returns:
        The exit code, 0.

    Raises:
        UserError: There is no such run or policy.
    """
    # 1. Refuse a wrong run or policy before torch is loaded.
    settings = run_contents.settings_of(request.run)
    policies = run_contents.policies(request.run)
    names = list(policies)
    policy = names[-1] if request.policy is None else choose(names, request.policy)
    if policy is None:
        raise UserError(f"--policy {request.policy}: {request.run} has {', '.join(names)}")
    if request.prompt is None:
        listed = ", ".join(names)
        terminal.say(f"chat: {settings.base} with {listed} of {request.run}; /help, /quit")
    # 2. Load the base with every adapter.
    with quiet.loading(settings.base):
        from alpaca_rlhf.serving.policy_server import PolicyServer
    sampling = SamplingSettings(
        request.temperature, max_new_tokens=request.max_new_tokens, seed=request.seed
    )
    policy_server = PolicyServer(settings, policies, sampling)
    # 3. Answer once, or talk.
    if request.prompt is not None:
        instruction = Instruction(request.prompt, request.input)
        terminal.say(policy_server.answer(policy, instruction, 0))
        return 0
    remember = request.remember
    if remember is None:
        remember = run_contents.saw_conversations(request.run)
    Conversation(
        policy_server, names, policy, remember=remember, ask=terminal.ask, say=terminal.say
    ).run()
    return 0
