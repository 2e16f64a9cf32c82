"""The stages of the loop, each from files to files: what `pipeline` runs in order.

A stage is a function of the settings, the seed and the files of earlier stages. Killed and run again it goes on from
its last checkpoint, or begins anew, and ends with the same files.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from alpaca_rlhf.config import UserError
from alpaca_rlhf.context import Context, suffixed
from alpaca_rlhf.data import (
    Drop,
    GenerationProgress,
    check_disjoint,
    read_instructions,
    read_pairs,
    read_ranking_trees,
    write_instructions,
)
from alpaca_rlhf.data import generate as self_instruct
from alpaca_rlhf.evaluation.win_rate import accuracy_interval, best_of_n_kl
from alpaca_rlhf.models.batches import decode, prompt_ids
from alpaca_rlhf.models.rollout import Sampled, sample, score
from alpaca_rlhf.models.teacher import LocalTeacher
from alpaca_rlhf.preferences import ScoreJudge, append, read, wrong_share
from alpaca_rlhf.records import Completion, Instruction, Ranking
from alpaca_rlhf.training import groups as reward_groups
from alpaca_rlhf.training.best_of_k import choose
from alpaca_rlhf.training.ppo import PPOPrompt, train_ppo
from alpaca_rlhf.training.reward import Group, train_reward
from alpaca_rlhf.training.sft import encode, split_held_out, train_sft


@dataclass(frozen=True)
class Outcome:
    """What a stage did."""

    examples: int
    """Rows, prompts or rankings it worked through."""
    tokens: int
    """Tokens it generated or trained on."""
    summary: str
    """One line for the person who watches."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Numbers for the report."""


def generate(ctx: Context, round_: int) -> Outcome:
    """Self-instruct: the bare base writes new tasks after the pattern of the seed tasks."""
    seeds = ctx.source.seeds()
    known = {ctx.source.key(row) or row.id for row in seeds}

    def novel(row: Instruction) -> Drop | None:
        key = ctx.source.key(row) or row.id
        if key in known:
            return Drop("duplicate", f"there is a task {key} already", row=row)
        known.add(key)
        return None

    log = ctx.log("generate")
    ctx.run.truncate_metrics(lambda row: row["stage"] != "generate")

    def progress(now: GenerationProgress) -> None:
        counts = {f"rejected_{rule.replace(' ', '_')}": n for rule, n in now.dropped.items()}
        log({"step": now.kept, "steps": now.target, "requests": now.requests, "accepted": now.kept, **counts})

    settings = ctx.settings.generate
    made = self_instruct(
        LocalTeacher(ctx.adapters, settings),
        seeds,
        settings,
        seed=ctx.settings.seed,
        folder=ctx.run.folder("generate"),
        rules=(),
        accept=ctx.source.accept,
        novel=novel,
        progress=progress,
    )
    write_instructions(ctx.run.folder("generate") / "rows.jsonl", made.rows)
    facts: dict[str, Any] = {"requests": made.requests, "dropped": len(made.drops)}
    gold = ctx.source.gold
    if gold is not None:
        right = [gold(row, row.output or "", True).parts["correct"] for row in made.rows]
        facts["correct"] = sum(right) / len(right)
    summary = f"{len(made.rows)} new tasks, {len(made.drops)} dropped"
    return Outcome(len(made.rows), made.tokens, summary, facts)


def sft(ctx: Context, round_: int) -> Outcome:
    """Supervised fine-tuning on the seed tasks and the generated ones."""
    if ctx.settings.inputs.data is not None:
        rows = read_instructions(ctx.settings.inputs.data)
    else:
        rows = ctx.source.seeds() + read_instructions(ctx.run.path / "generate" / "rows.jsonl")
    splits = {"sft": rows, **{name: ctx.source.prompts(name) for name in ctx.source.names()}}
    overlap = check_disjoint(splits, ctx.source.key, raise_on_leak=True)
    settings = ctx.settings.sft
    kept, out = split_held_out(rows, settings.held_out)
    examples, too_long = encode(ctx.adapters, kept, settings.max_length)
    held_out, also_too_long = encode(ctx.adapters, out, settings.max_length)
    ctx.adapters.add("sft", seed=ctx.settings.seed)
    result = train_sft(
        ctx.adapters,
        "sft",
        examples,
        held_out,
        settings,
        seed=ctx.settings.seed,
        checkpoints=ctx.checkpoints("sft"),
        log=ctx.log("sft"),
    )
    ctx.adapters.save("sft", ctx.adapter_folder("sft"))
    counts = {"sft": len(rows), "overlap": overlap}
    summary = f"held-out loss {result.loss_before:.2f} -> {result.loss_after:.2f} nats a token on {len(held_out)} rows"
    facts = {**asdict(result), "too_long": too_long + also_too_long, "prompts": counts}
    return Outcome(result.examples, result.tokens, summary, facts)


def sample_completions(ctx: Context, round_: int) -> Outcome:
    """K completions of each new prompt, from SFT or, in later rounds, from the last policy."""
    stage, settings = suffixed("sample", round_), ctx.settings.rank
    prompts = ctx.source.prompts(suffixed("rank", round_))
    role = "sft" if round_ == 1 else "policy"
    ctx.load(role, "sft" if round_ == 1 else suffixed("ppo", round_ - 1))
    seed = ctx.settings.seed * 10 + round_
    drawn = _sample(ctx, role, prompts, k=settings.k, seed=seed, stage=stage)
    fingerprint, how = ctx.adapters.digest(role), _sampling_words(ctx)
    completions = [
        Completion(
            prompt_id=prompt.id,
            text=decode(ctx.base, one.ids),
            adapter=fingerprint,
            sampling=how,
            seed=seed,
            sample=j,
            finish_reason="eos" if one.finished else "length",
            n_tokens=len(one.ids),
        )
        for prompt, own in zip(prompts, drawn, strict=True)
        for j, one in enumerate(own)
    ]
    ctx.run.folder(stage)
    write_instructions(ctx.run.path / stage / "prompts.jsonl", prompts)
    ctx.run.write_jsonl(f"{stage}/completions.jsonl", [one.to_json() for one in completions])
    tokens = sum(one.n_tokens for one in completions)
    return Outcome(len(completions), tokens, f"{settings.k} completions for each of {len(prompts)} prompts")


def rank(ctx: Context, round_: int) -> Outcome:
    """Put the completions of each prompt in order: by the gold judge with noise, or by people."""
    stage, settings = suffixed("rank", round_), ctx.settings.rank
    prompts, completions = _sampled(ctx, round_)
    by_prompt: dict[str, list[Completion]] = {}
    for one in completions.values():
        by_prompt.setdefault(one.prompt_id, []).append(one)
    path = ctx.run.folder(stage) / "rankings.jsonl"
    if ctx.settings.inputs.judge == "human":
        rankings = read(path, completions) if path.exists() else []
        missing = len(prompts) - len({r.prompt_id for r in rankings})
        if missing > 0:
            raise PeopleNeeded(
                f"{missing} of {len(prompts)} prompts are not ranked yet: "
                f"rank them with `alpaca-rlhf rank --out {ctx.run.path}`, then run the same command again"
            )
        return Outcome(len(rankings), 0, f"{len(rankings)} rankings by people", {"noise": 0.0, "verdicts": 0})
    gold = ctx.source.gold
    assert gold is not None
    scores: dict[str, float] = {}

    def score_of(prompt: Instruction, completion: Completion) -> float:
        scores[completion.id] = gold(prompt, completion.text, completion.finish_reason == "eos").score
        return scores[completion.id]

    judge = ScoreJudge("gold", score_of, noise=settings.noise, tie_below=settings.tie_below, seed=ctx.settings.seed)
    rankings = [judge.rank(prompts[key], own) for key, own in by_prompt.items()]
    path.unlink(missing_ok=True)
    append(path, *rankings)
    verdicts = sum(len(_pairs(r)) for r in rankings)
    facts = {
        "noise": settings.noise,
        "verdicts": verdicts,
        "measured_wrong_share": wrong_share(rankings, scores),
        "mean_gold": sum(scores.values()) / len(scores),
    }
    summary = f"{verdicts} verdicts, {100 * facts['measured_wrong_share']:.1f}% of them wrong on purpose"
    return Outcome(len(rankings), 0, summary, facts)


class PeopleNeeded(UserError):
    """The run waits for people's rankings."""


def reward(ctx: Context, round_: int) -> Outcome:
    """The reward adapter, from SFT, on all rankings so far; and a control trained on shuffled verdicts."""
    stage, settings = suffixed("reward", round_), ctx.settings.reward
    ctx.load("sft", "sft")
    train, held_out = ranking_groups(ctx, round_)
    seed = ctx.settings.seed
    intervals: dict[str, Any] = {}
    for name, chosen in ((f"{stage}_shuffled", reward_groups.shuffled(train, seed)), (stage, train)):
        done = ctx.run.done(name) if name != stage else None
        if done is None:
            ctx.adapters.add("reward", copy_of="sft", seed=seed)
            head, result = train_reward(
                ctx.adapters,
                "reward",
                chosen,
                held_out,
                settings,
                seed=seed,
                checkpoints=ctx.checkpoints(name),
                log=ctx.log(name),
            )
            interval = accuracy_interval(result.correct, resamples=ctx.settings.evaluate.bootstrap, seed=seed)
            done = {"accuracy": result.accuracy, "ci95": interval.ci95}
            if name != stage:
                ctx.run.finish(name, done)
        intervals[name] = done
    reference = _reference_examples(ctx, train)
    head.normalise(score(ctx.adapters, "reward", head, reference, batch_size=settings.micro_batch_size * 4))
    ctx.adapters.save("reward", ctx.adapter_folder(stage), head)
    if result.accuracy < settings.gate:
        raise UserError(
            f"{stage}: held-out accuracy {result.accuracy:.3f} is below --reward.gate {settings.gate:g}: a policy trained "
            "on it would learn noise; give it more rankings, or check them"
        )
    control = intervals[f"{stage}_shuffled"]
    facts = {
        "pairs": result.pairs,
        "held_out_pairs": sum(map(len, result.correct)),
        "held_out_accuracy": result.accuracy,
        "ci95": intervals[stage]["ci95"],
        "shuffled_label_accuracy": control["accuracy"],
        "shuffled_label_ci95": control["ci95"],
        "calibration_error": result.calibration_error,
        "length_correlation": result.length_correlation,
    }
    summary = f"held-out accuracy {result.accuracy:.3f}, with shuffled labels {control['accuracy']:.3f}"
    tokens = sum(len(e) for g in train for e in g.examples) * settings.epochs
    return Outcome(result.rankings, tokens, summary, facts)


def ppo(ctx: Context, round_: int) -> Outcome:
    """PPO from SFT or, in later rounds, from the last policy; SFT stays the reference."""
    stage, settings = suffixed("ppo", round_), ctx.settings.ppo
    ctx.load("sft", "sft")
    ctx.load("reward", suffixed("reward", round_))
    head = ctx.load_head(suffixed("reward", round_))
    ctx.load("policy", "sft" if round_ == 1 else suffixed("ppo", round_ - 1))
    rows = ctx.source.prompts(suffixed("ppo", round_))
    prompts = [PPOPrompt(row.id, prompt_ids(ctx.base, ctx.settings.template, row)) for row in rows]
    by_key = {row.id: row for row in rows}
    gold = ctx.source.gold

    def watch(asked: Any, completions: Any) -> dict[str, float]:
        if gold is None:
            return {}
        seen = [
            gold(by_key[p.key], decode(ctx.base, c.ids), c.finished) for p, c in zip(asked, completions, strict=True)
        ]
        return {
            "gold_score": sum(g.score for g in seen) / len(seen),
            "gold_correct": sum(g.parts["correct"] for g in seen) / len(seen),
        }

    train_ppo(
        ctx.adapters,
        head,
        prompts,
        settings,
        seed=ctx.settings.seed * 10 + round_,
        rollout_batch_size=ctx.settings.sampling.batch_size,
        checkpoints=ctx.checkpoints(stage),
        log=ctx.log(stage),
        watch=watch,
    )
    ctx.adapters.save("policy", ctx.adapter_folder(stage))
    rows_logged = [row for row in ctx.run.metrics() if row["stage"] == stage]
    first, last = rows_logged[0], rows_logged[-1]
    tokens = round(sum(row["mean_tokens"] for row in rows_logged) * settings.batch_size)
    summary = f"score {first['score']:+.2f} -> {last['score']:+.2f}, KL {last['kl']:.2f} nats a completion"
    return Outcome(settings.updates * settings.batch_size, tokens, summary, {"kl_at_start": first["kl"]})


def best_of_k(ctx: Context, round_: int) -> Outcome:
    """Sample K, keep the reward model's favourite, fine-tune on the winners; from SFT, later from the last best-of-K."""
    stage, settings = suffixed("best_of_k", round_), ctx.settings.best_of_k
    before = "sft" if round_ == 1 else suffixed("best_of_k", round_ - 1)
    ctx.load("policy", before)
    ctx.load("reward", suffixed("reward", round_))
    head = ctx.load_head(suffixed("reward", round_))
    rows = ctx.source.prompts(suffixed("ppo", round_))[: settings.prompts]
    winners = choose(
        ctx.adapters,
        "policy",
        head,
        [prompt_ids(ctx.base, ctx.settings.template, row) for row in rows],
        [row.id for row in rows],
        k=settings.k,
        sampling=ctx.settings.sampling,
        seed=ctx.settings.seed * 10 + round_,
        score_batch_size=ctx.settings.sampling.batch_size,
    )
    result = train_sft(
        ctx.adapters,
        "policy",
        winners.examples,
        [],
        replace(ctx.settings.sft, lr=settings.lr, epochs=settings.epochs),
        seed=ctx.settings.seed,
        checkpoints=ctx.checkpoints(stage),
        log=ctx.log(stage),
        stage=stage,
    )
    ctx.adapters.save("policy", ctx.adapter_folder(stage))
    mean = float(winners.scores.mean())
    facts = {
        "mean_score": mean,
        "mean_best_score": winners.mean_best,
        "sampler_kl_bound_nats": best_of_n_kl(settings.k),
    }
    summary = f"winners score {winners.mean_best:+.2f}, all candidates {mean:+.2f}"
    return Outcome(len(winners.examples), result.tokens, summary, facts)


Stage = Callable[[Context, int], Outcome]


def _sample(
    ctx: Context, role: str | None, rows: list[Instruction], *, k: int, seed: int, stage: str
) -> list[list[Sampled]]:
    done = 0

    def on_batch(n: int) -> None:
        nonlocal done
        done += n
        ctx.reporter.step(stage, done, len(rows) * k, {})

    return sample(
        ctx.adapters,
        role,
        [prompt_ids(ctx.base, ctx.settings.template, row) for row in rows],
        [row.id for row in rows],
        k=k,
        sampling=ctx.settings.sampling,
        seed=seed,
        on_batch=on_batch,
    )


def _sampling_words(ctx: Context) -> str:
    sampling = ctx.settings.sampling
    return f"temperature={sampling.temperature:g} top_p={sampling.top_p:g}"


def _sampled(ctx: Context, round_: int) -> tuple[dict[str, Instruction], dict[str, Completion]]:
    stage = suffixed("sample", round_)
    prompts = {
        row["instruction"] + "\0" + row["input"]: Instruction(row["instruction"], row["input"])
        for row in ctx.run.read_jsonl(f"{stage}/prompts.jsonl")
    }
    completions = []
    for row in ctx.run.read_jsonl(f"{stage}/completions.jsonl"):
        row.pop("id")
        completions.append(Completion(**row))
    return {p.id: p for p in prompts.values()}, {c.id: c for c in completions}


def _groups(ctx: Context, round_: int) -> list[Group]:
    """All rankings so far, of files or of every round up to this one."""
    path = ctx.settings.inputs.rankings
    if path is not None:
        if path.name.removesuffix(".gz").endswith("tree.jsonl"):
            trees = read_ranking_trees(path)
            prompts = {prompt.id: prompt for prompt, _, _ in trees}
            completions = {one.id: one for _, own, _ in trees for one in own}
            return reward_groups.from_rankings(ctx.adapters, [r for _, _, r in trees], prompts, completions)
        pairs: dict[str, Any] = {}
        for pair in read_pairs(path):
            pairs.setdefault(pair.group, []).append(pair)
        return reward_groups.from_pairs(ctx.adapters, pairs.values())
    groups: list[Group] = []
    for earlier in range(1, round_ + 1):
        own_prompts, own = _sampled(ctx, earlier)
        rankings = read(ctx.run.path / suffixed("rank", earlier) / "rankings.jsonl", own)
        groups += reward_groups.from_rankings(ctx.adapters, rankings, own_prompts, own)
    return groups


def ranking_groups(ctx: Context, round_: int) -> tuple[list[Group], list[Group]]:
    """All rankings up to a round, as groups to train on and held-out ones."""
    return reward_groups.split_held_out(_groups(ctx, round_), ctx.settings.reward.held_out)


def _reference_examples(ctx: Context, groups: list[Group]) -> list[Any]:
    """Completions of the SFT adapter: those of the first round; of files, whatever they hold."""
    if ctx.settings.inputs.rankings is not None:
        return [e for g in groups for e in g.examples][:512]
    prompts, completions = _sampled(ctx, 1)
    return [
        reward_groups.completion_example(ctx.adapters, prompts[one.prompt_id], one) for one in completions.values()
    ]


def _pairs(ranking: Ranking) -> list[tuple[str, str]]:
    tiers = ranking.tiers
    return [(a, b) for i, tier in enumerate(tiers) for later in tiers[i + 1 :] for a in tier for b in later]


def free_memory(ctx: Context, stage: str) -> None:
    """Drop a finished stage's checkpoints."""
    shutil.rmtree(ctx.run.path / "checkpoints" / stage, ignore_errors=True)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
