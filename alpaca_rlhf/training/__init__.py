"""The stages that change weights: losses, the shared loop, SFT, reward, PPO, best-of-K.

And the pre-training of the embedded base.
"""
