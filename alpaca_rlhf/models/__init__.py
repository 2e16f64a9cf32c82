"""The model room: one frozen base, its adapters and heads, batches, every run without gradients."""
