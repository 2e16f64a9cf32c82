"""The judges of a run: those that its settings name, loaded before anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from alpaca_rlhf.checks import Checks
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.provenance import sha256_of
from alpaca_rlhf.core.records import Instruction, content_hash
from alpaca_rlhf.core.runs import RunFolder
from alpaca_rlhf.core.scorers import Scores
from alpaca_rlhf.judges import Judge, JudgeFailure, ScoreLog, load_function
from alpaca_rlhf.judges.functions import JudgeFunction
from alpaca_rlhf.judges.judge import MEND
from alpaca_rlhf.judges.score_log import LOG
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.settings.judge_names import SCORERS, JudgeName, parse_judge
from alpaca_rlhf.settings.policies import REWARDED_STAGES
from alpaca_rlhf.settings.steps import Step, suffixed
from alpaca_rlhf.sources import SmallWorld, Source
from alpaca_rlhf.stages.reward_judge import RewardScorer, reward_files

RANKS, EVALUATES, WATCHES = "inputs.judge", "evaluate.judge", "watch.scorer"
"""The settings that name a judge."""
LEFT_OUT = (
    "--reward.source judge: {judge} gives the reward itself; sample, rank and reward are left out, "
    "and no gate is held"
)
"""First line of a run whose judge gives the reward."""
_NOTE = "judges"
"""Entry of `provenance.json` with the files of each judge."""


@dataclass(frozen=True)
class GoldScorer:
    """The small world's gold judge."""

    gold: Callable[[Instruction, str, bool], Scores]
    """Scores a completion of a task of the small world."""

    def score(self, prompt: Instruction, completion: str, finished: bool) -> Scores:
        """Score a completion."""
        return self.gold(prompt, completion, finished)


@dataclass(frozen=True)
class Judges:
    """The judges of a run that rate one completion at a time."""

    ranks: Judge | None = None
    """The judge that ranks; None where people or a model that compares do."""
    evaluates: Judge | None = None
    """The judge that compares the policies; None leaves it to a reward model trained on held-out
    rankings."""
    held_out: Judge | None = None
    """The judge that looks at the policies while they train; None where nothing does."""

    @property
    def watches(self) -> Judge | None:
        """The judge of the evaluation, if it is a rule of the kit's, which costs nothing.

        It scores every update of PPO for the report.
        """
        judge = self.evaluates
        return judge if judge is not None and judge.name.kind in ("gold", "checks") else None

    def lend(self, adapters: Callable[[], Adapters]) -> None:
        """Let judges that are reward models use the run's base, once they need it."""
        for scorer in self.reward_models():
            scorer.adapters = adapters

    def refuse_other_base(self, adapters: Adapters) -> None:
        """Refuse reward models of another base, now that the run's is loaded.

        Raises:
            UserError: One of them belongs to another base, template or shape.
        """
        for scorer in self.reward_models():
            scorer.refuse_other_base(adapters)

    def reward_models(self) -> list[RewardScorer]:
        """Those of them that are reward models."""
        sources = [judge.source for judge in self.by_setting().values()]
        return [source for source in sources if isinstance(source, RewardScorer)]

    def by_setting(self) -> dict[str, Judge]:
        """The judges by the setting that names them; one judge that does both stands once."""
        judges = {} if self.ranks is None else {RANKS: self.ranks}
        if self.evaluates is not None and self.evaluates is not self.ranks:
            judges[EVALUATES] = self.evaluates
        if self.held_out is not None and self.held_out not in (self.ranks, self.evaluates):
            judges[WATCHES] = self.held_out
        return judges


def open_judges(settings: Loop, source: Callable[[], Source]) -> Judges:
    """Load the judges that a run's settings name.

    Args:
        settings: Every number of the run.
        source: Returns the run's tasks and verdicts; asked only for the gold judge, so that a
            judge that cannot be loaded is told of before prompts that cannot be read.

    Raises:
        UserError: A judge cannot be loaded, or knows nothing of the run's prompts.
    """

    def opened(name: JudgeName, setting: str) -> Judge:
        size = settings.sampling.batch_size
        return open_judge(name, f"--{setting}", source, settings.out / LOG, batch_size=size)

    ranks = opened(settings.inputs.judge_name, RANKS) if settings.inputs.scorer else None
    if settings.evaluate.judge is None:
        # Who gave the reward does not compare the policies that it trained.
        evaluates = None if settings.reward.source == "judge" else ranks
    else:
        name = parse_judge(settings.evaluate.judge)
        same = ranks is not None and name == ranks.name
        evaluates = ranks if same else opened(name, EVALUATES)
    judges = Judges(ranks, evaluates)
    if settings.watch.every and settings.watch.scorer is not None and settings.rewarded:
        name = parse_judge(settings.watch.scorer)
        named = [judge for judge in (ranks, evaluates) if judge is not None and judge.name == name]
        judges = Judges(ranks, evaluates, named[0] if named else opened(name, WATCHES))
        _refuse_reward_as_scorer(settings, judges)
    for scorer in judges.reward_models():
        scorer.refuse_other_settings(settings)
    return judges


def refuse_unknown_prompts(
    settings: Loop, judges: Judges, source: Source, steps: Collection[Step]
) -> None:
    """Refuse prompts that state no constraint where `checks` is to judge their answers.

    Args:
        settings: Every number of the run.
        judges: Its judges.
        source: Its prompts.
        steps: The steps that are yet to be run.

    Raises:
        UserError: There are some; the message names the setting and the first of them.
    """
    if settings.inputs.prompts_from == "checks":
        return  # each of them was composed of constraints
    # 1. The splits that each judge is asked about.
    splits: dict[str, set[str]] = {RANKS: set(), EVALUATES: set(), WATCHES: set()}
    for step in steps:
        if step.stage == "rank":
            splits[RANKS].add(suffixed("rank", step.round))
        if step.stage in REWARDED_STAGES and settings.reward.source == "judge":
            splits[RANKS].add(suffixed("ppo", step.round))
        if step.stage in REWARDED_STAGES and settings.watch.every:
            splits[WATCHES].add("dev")
        if step.stage == "evaluate":
            splits[EVALUATES] |= {settings.evaluate.split, *(["dev"] * settings.evaluate.dev)}
    # 2. Their prompts.
    by_setting = {RANKS: judges.ranks, EVALUATES: judges.evaluates, WATCHES: judges.held_out}
    for setting, judge in by_setting.items():
        if judge is None or not isinstance(judge.source, Checks):
            continue
        by_default = setting == EVALUATES and settings.evaluate.judge is None
        flag = f"--{RANKS if by_default else setting} checks"
        for split in sorted(splits[setting]):
            Checks.refuse_others(source.prompts(split), f"{flag}, split {split}")
        answers = settings.generate.recipe == "answers" and setting == RANKS
        if answers and any(step.stage == "generate" for step in steps):
            Checks.refuse_others(source.unanswered(), f"{flag}, prompts to answer")


def _refuse_reward_as_scorer(settings: Loop, judges: Judges) -> None:
    """Refuse looks by the judge that gives the reward, or by a reward model of this run.

    Raises:
        UserError: It would see nothing that the reward does not.
    """
    scorer, ranks = judges.held_out, judges.ranks
    assert scorer is not None
    by_judge = settings.reward.source == "judge"
    own_model = scorer.name.kind == "reward" and scorer.name.path.resolve().is_relative_to(
        settings.out.resolve()
    )
    if (by_judge and ranks is not None and _same(ranks, scorer)) or own_model:
        raise UserError(
            f"--{WATCHES} {scorer.name.text}: gives the reward, and would see nothing that the "
            f"reward does not; give another one: {SCORERS}"
        )


def refuse_only_judge(settings: Loop, judges: Judges) -> None:
    """Refuse an evaluation whose only judge gave the reward of what it compares.

    Raises:
        UserError: It is the judge of --inputs.judge as the reward, or a reward model of this run.
    """
    if settings.reward.source == "judge":
        ranks, evaluates = judges.ranks, judges.evaluates
        assert ranks is not None
        if evaluates is None:
            raise UserError(
                f"--reward.source judge: {ranks.name.text} gives the reward, and may not be the "
                f"only judge of what it trained; give --evaluate.judge another one: {SCORERS}"
            )
        if _same(ranks, evaluates):
            raise UserError(
                f"--evaluate.judge {evaluates.name.text} gives the reward too, and may not be the "
                f"only judge of what it trained; give another one: {SCORERS}"
            )
    for setting, judge in judges.by_setting().items():
        run = settings.out.resolve()
        if judge.name.kind == "reward" and judge.name.path.resolve().is_relative_to(run):
            raise UserError(
                f"--{setting} {judge.name.text}: is a reward model of this run, and may not judge "
                "what it trained; give one of another run, or another judge"
            )


def _same(judge: Judge, other: Judge) -> bool:
    """True if two judges score by the same rule, whatever their names."""
    if judge is other or (judge.digest and judge.digest == other.digest):
        return True
    source, other_source = judge.source, other.source
    return (
        isinstance(source, JudgeFunction)
        and isinstance(other_source, JudgeFunction)
        and source.same_code(other_source)
    )


def open_judge(
    name: JudgeName, flag: str, source: Callable[[], Source], log: Path, *, batch_size: int
) -> Judge:
    """Load a judge that rates one completion at a time.

    Args:
        name: Its name.
        flag: The flag that named it, as typed, for messages.
        source: Returns what knows the gold judge of its tasks, if there is one; only `gold` asks.
        log: File of the scores that the judge has given.
        batch_size: Completions that a reward model scores at once.

    Raises:
        UserError: It cannot be loaded.
    """
    match name.kind:
        case "gold":
            tasks = source()
            if not isinstance(tasks, SmallWorld):
                raise UserError(
                    f"{flag} gold: only the small world has known answers, and the prompts of this "
                    "run are your own; name another judge"
                )
            return Judge(name, GoldScorer(tasks.gold))
        case "checks":
            return Judge(name, Checks())
        case "function":
            function = load_function(name, flag)
            return Judge(name, function, function.digest, function.files, ScoreLog(log))
        case "reward":
            files = reward_files(name.path, flag)
            digest = content_hash(*(sha256_of(path) for path in files))
            place = f"{flag} {name.text}"
            scorer = RewardScorer(name.path, batch_size, f"judge_{digest[:8]}", place)
            return Judge(name, scorer, digest, tuple(files), ScoreLog(log))
        case _:
            raise UserError(f"{flag} {name.text}: this judge gives no scores")


# --- the files of judges --------------------------------------------------------------------------


def refuse_changed(run: RunFolder, judges: Judges, settings: Loop, done: Collection[str]) -> None:
    """Refuse to go on with a judge whose files have changed since the run began.

    A judge that failed may be mended as long as no finished stage has used it.

    Raises:
        UserError: A file has changed; the message names it and how to go on.
    """
    noted = run.noted(_NOTE)
    for setting, judge in judges.by_setting().items():
        entry = noted.get(setting, {})
        if entry.get("judge") != judge.name.text or entry.get("digest") == judge.digest:
            continue
        if entry.get("failed") == entry["digest"] and not _used(setting, settings, done):
            continue
        changed = next(_changed_files(entry["files"], judge), judge.name.text)
        raise UserError(
            f"{changed}: was changed since the run in {run.path} began, so that its scores would "
            f"be those of two judges; put it back, or begin a new run with another --out"
            + _other_way(setting, settings, done)
        )


def note_files(run: RunFolder, judges: Judges) -> None:
    """Note the judges and the hashes of their files in the run's provenance.

    The mark of a judge that has failed stays until its files change.
    """
    before = run.noted(_NOTE)
    noted: dict[str, dict[str, object]] = {}
    for setting, judge in judges.by_setting().items():
        if not judge.digest:
            continue
        noted[setting] = {
            "judge": judge.name.text,
            "digest": judge.digest,
            "files": {str(path): sha256_of(path) for path in judge.files},
        }
        if before.get(setting, {}).get("failed") == judge.digest:
            noted[setting]["failed"] = judge.digest
    if noted and noted != before:
        run.note(**{_NOTE: noted})


def noted_failure(
    run: RunFolder, settings: Loop, done: Collection[str], failure: JudgeFailure
) -> JudgeFailure:
    """Note that a judge has failed, so that it may be mended, and say how.

    Returns:
        The failure; where a finished stage has used the judge, with another way out.
    """
    noted = run.noted(_NOTE)
    failed = [name for name, entry in noted.items() if entry["digest"] == failure.digest]
    if not failed:
        return failure
    run.note(**{_NOTE: noted | {n: noted[n] | {"failed": failure.digest} for n in failed}})
    if not any(_used(setting, settings, done) for setting in failed):
        return failure
    # Mended it would be another judge than the one that ranked, or rewarded an earlier stage.
    way = "a finished stage has used it, so begin anew with another --out"
    if settings.reward.source == "rankings" and failed != [WATCHES]:
        flag = f"--{EVALUATES if _ranked(done) else RANKS}"
        way = f"a finished stage has used it, so mend a copy and give that as {flag}"
    return JudgeFailure(str(failure).replace(MEND, way))


def _changed_files(before: dict[str, str], judge: Judge) -> Iterator[str]:
    now = {str(path): sha256_of(path) for path in judge.files}
    for path in [*now, *before]:
        if now.get(path) != before.get(path):
            yield path


def _used(setting: str, settings: Loop, done: Collection[str]) -> bool:
    """True if a finished stage has used the judge that a setting names."""
    if setting == EVALUATES:
        stages: tuple[str, ...] = ("evaluate",)
    elif setting == WATCHES:
        stages = REWARDED_STAGES
    else:
        stages = REWARDED_STAGES if settings.reward.source == "judge" else ("rank",)
        if settings.generate.recipe == "answers":
            stages = (*stages, "generate")
    return any(name.partition(".")[0] in stages for name in done)


def _ranked(done: Collection[str]) -> bool:
    """True if a ranking has ended, so that --inputs.judge is settled."""
    return any(name.partition(".")[0] == "rank" for name in done)


def _other_way(setting: str, settings: Loop, done: Collection[str]) -> str:
    if setting == RANKS and settings.reward.source == "rankings" and "evaluate" not in done:
        return "; --evaluate.judge may name another judge for the evaluation alone"
    return ""
