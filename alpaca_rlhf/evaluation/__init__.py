"""Statistics of policies and reward models: intervals, win rates, accuracy."""
