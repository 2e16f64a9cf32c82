"""What a run made, for other programs: adapter, merged model, reward model, GGUF; each checked."""
