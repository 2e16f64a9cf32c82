"""Models: the frozen base, its adapters and heads, batches, sampling and scoring."""
