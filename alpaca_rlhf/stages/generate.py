"""The generate stage: self-instruct."""

from __future__ import annotations

from typing import Any

from alpaca_rlhf.data import GenerationProgress, kept_by_rouge, write_instructions
from alpaca_rlhf.data import generate as self_instruct
from alpaca_rlhf.stages.context import Context
from alpaca_rlhf.stages.outcome import Outcome
from alpaca_rlhf.stages.teachers import teacher_of


def generate(ctx: Context, round_: int) -> Outcome:
    """Self-instruct: a teacher writes new tasks after the pattern of the seed tasks."""
    log = ctx.log("generate")
    ctx.run.truncate_metrics(lambda row: row["stage"] != "generate")

    def progress(now: GenerationProgress) -> None:
        counts = {f"rejected_{rule.replace(' ', '_')}": n for rule, n in now.dropped.items()}
        log(
            {
                "step": now.kept,
                "steps": now.target,
                "requests": now.requests,
                "accepted": now.kept,
                "tokens": now.tokens,
                "failed": now.failed,
                **({} if now.usd is None else {"cost_usd": now.usd}),
                **counts,
            }
        )

    settings = ctx.settings.generate
    facts: dict[str, Any] = {}
    with teacher_of(ctx, facts) as teacher:
        made = self_instruct(
            teacher,
            ctx.source.seeds(),
            settings,
            seed=ctx.settings.seed,
            folder=ctx.run.folder("generate"),
            rules=ctx.source.rules,
            accept=ctx.source.accept,
            novel=ctx.source.novelty(),
            progress=progress,
        )
    write_instructions(ctx.run.folder("generate") / "rows.jsonl", made.rows)
    wrong = len(made.drops) - made.drops.counts.get("surplus", 0)
    by_rouge, asked = kept_by_rouge(ctx.run.folder("generate"))
    facts |= {
        "requests": made.requests,
        "dropped": len(made.drops),
        "accepted_share": len(made.rows) / (len(made.rows) + wrong),
        "rouge_alone": {"kept": by_rouge, "of": asked},
    }
    gold = ctx.source.gold
    if gold is not None:
        right = [gold(row, row.output or "", True).parts["correct"] for row in made.rows]
        facts["correct"] = sum(right) / len(right)
    summary = f"{len(made.rows)} new tasks, {len(made.drops)} dropped"
    if ctx.source.novelty() is not None:
        summary += f" (ROUGE-L alone would have kept {by_rouge} of {asked})"
    return Outcome(len(made.rows), made.tokens, summary, facts)
