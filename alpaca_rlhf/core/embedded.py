"""The name of the base model that comes with the package, read by engine and planner alike."""

EMBEDDED = "embedded"
"""Value of `--base` that stands for the model in `data/cria/`."""
