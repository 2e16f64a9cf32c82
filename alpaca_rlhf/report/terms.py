"""What every figure of the report means. `docs/metrics.md` says the same of every logged number."""

from __future__ import annotations

TERMS = (
    (
        "Gold score",
        "A judge outside the training, from 0 to 1, on whole completions. In the small world it "
        "knows the right answer, and here it judges without the annotator's noise.",
    ),
    (
        "Parts of the gold score",
        "Correct: the right answer. Complete: all of it. Well-formed: a proper sentence. To the "
        "point: nothing that was not asked. Helpful extra: a true fact more. Friendly: polite "
        "words. Each is the mean over prompts of a number from 0 to 1.",
    ),
    (
        "Temperature 1 and greedy",
        "Sampling from the policy as it is, and taking the likeliest token each time. A policy "
        "that has only grown surer of itself gains at temperature 1 and not greedy.",
    ),
    (
        "95% interval",
        "The evaluation prompts are drawn again, with repetition, many times; the interval holds "
        "the middle 95% of the results. It covers the choice of prompts, not the luck of another "
        "training seed.",
    ),
    (
        "Gain over SFT",
        "The mean over prompts of the policy's gold score minus SFT's on the same prompt. Pairing "
        "takes out how hard the prompts are.",
    ),
    (
        "Win rate against SFT",
        "Share of prompts on which the policy's completion has the higher gold score; a tie "
        "counts one half, so that one half means no difference.",
    ),
    (
        "KL from SFT",
        "How far the policy has moved from its SFT reference: log-probability under the policy "
        "minus under SFT, summed over a completion's tokens, averaged over samples at temperature "
        "1, in nats. k1 is that plain estimate; k3 has the same mean and is never negative.",
    ),
    ("Stop rate", "Share of completions that end by themselves and do not run into the limit."),
    ("Tokens", "Mean length of a completion in tokens, its end token included."),
    (
        "Score",
        "What the reward model gives a completion, scaled so that SFT completions have mean 0 and "
        "standard deviation 1. PPO is trained on it; it is no proof of quality.",
    ),
    (
        "Held-out accuracy",
        "Share of preference pairs of unseen prompts in which the reward model scores the "
        "preferred completion higher. Its interval is resampled over prompts.",
    ),
    (
        "Calibration error, log loss",
        "The difference of two scores says how likely the model thinks the first one preferred. "
        "Calibration error is how far those chances lie from how often it is right; log loss is "
        "minus the log of the chance it gave the annotator's side, in nats.",
    ),
    (
        "Held-out facts and phrasings",
        "Evaluation prompts about facts, or worded in ways, that no training prompt used: "
        "following instructions is not remembering them.",
    ),
    (
        "Clipped share, explained variance",
        "PPO ignores a token once its probability has changed by more than the clip range; the "
        "share of such tokens says how hard an update pulls. Explained variance is 1 minus the "
        "variance of the value's error over that of the return.",
    ),
    (
        "Cost",
        "Seconds times the power and the price of electricity in the settings, and what a teacher "
        "behind HTTP took at the prices in the settings.",
    ),
)
"""Term and meaning, in the order in which a reader meets them."""
