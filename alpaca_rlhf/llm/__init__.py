"""Talking to a model behind an OpenAI-compatible endpoint: one client, its budget and its cache."""
