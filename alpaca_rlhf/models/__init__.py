"""The model room: one frozen base, its adapters and heads, batches, and every run without gradients."""
