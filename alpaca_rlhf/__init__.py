"""alpaca-rlhf: one frozen 4-bit LLaMA, four small adapters, one consumer GPU.

Shape letters, used in every docstring of this package: B batch, K samples a prompt, P prompt
tokens,
C completion tokens, T = P + C, H hidden size, V vocabulary.
"""

__version__ = "0.1.0"
