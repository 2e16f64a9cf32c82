"""Sizes that the engine computes with and the planner predicts memory from; and of samples.

They lie below both, so that the planner and the terminal can read them without loading torch.
"""

LOGITS_PER_CHUNK = 2**24
"""Most logits in memory at once while log-probabilities are computed: 64 MiB in float32."""

SCORING_BATCH_FACTOR = 4
"""Completions scored at once, without gradients, for each ranking that is trained on at once."""

LOGPROBS_BATCH_DIVISOR = 4
"""Completions decoded at once for each whose log-probabilities are evaluated at once: those need
the logits of every token, decoding those of one."""
MIN_PROMPTS = 20
"""Prompts and pairs below which no 95% interval is shown and nothing is said to hold: resampling a
handful gives whatever the handful happened to be."""
