"""Training: losses, the shared loop, SFT, the reward model, PPO and best-of-K."""
