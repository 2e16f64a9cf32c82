"""Exports for other programs: adapter, merged model, reward model, GGUF; each one checked."""
