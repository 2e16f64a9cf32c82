"""The settings of a run that an admin begins on the page, chosen from the lists of the app.

Whatever a browser sends, each field is one of these lists, a number within bounds, a plain name of
a folder, or the name of an upload.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from alpaca_rlhf.app.run_choice import is_run_name
from alpaca_rlhf.app.uploads import UploadKind, Uploads
from alpaca_rlhf.core.bases import EMBEDDED, SMOLLM2, smollm2_folder
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.templates import default_template
from alpaca_rlhf.data import read_prompts
from alpaca_rlhf.settings import Inputs, Loop
from alpaca_rlhf.settings.policies import POLICIES, PolicyName
from alpaca_rlhf.settings.quickstart import QUICKSTART
from alpaca_rlhf.settings.smollm2 import SMOLLM2_135M
from alpaca_rlhf.sources import Source, reading_of, source_of

BASES = (EMBEDDED, SMOLLM2)
"""Bases that every app offers."""
JUDGES = ("human", "gold", "checks")
"""Judges that every app offers: none of them runs code of the user's, or asks a server."""
NUMBERS = {"prompts": (4, 5000), "k": (2, 9), "rounds": (1, 5)}
"""Bounds of the numbers of the form."""
DEFAULT_PROMPTS = 100
"""Prompts to rank that the form suggests where no recipe says otherwise: an hour of one person."""

_SHARES = (1.0, 0.8, 0.6)
"""Shares of the uploaded prompts that the splits may add up to, tried in turn: near-duplicates go
to one split together, and those near a row to train on are left out."""
_EVAL_SHARE = 4
"""One prompt in so many of those that are not ranked is for the evaluation."""
_MIN_POLICY_PROMPTS = 8
"""Prompts of a policy below which no round is held in reserve."""

FieldProblem = Literal[
    "name", "taken", "base", "not_fetched", "judge", "number", "policies", "upload", "field",
    "gold_files", "gold_base", "no_prompts", "too_few",
]  # fmt: skip


class FormRefused(Exception):
    """The form asks for what cannot be.

    Args:
        problem: Key of the reason.
        detail: The value, or further words.
    """

    def __init__(self, problem: FieldProblem, detail: str = "") -> None:
        super().__init__(problem, detail)
        self.problem = problem
        self.detail = detail


_STARTS = {EMBEDDED: QUICKSTART, SMOLLM2: SMOLLM2_135M}
"""Bases with settings of their own."""


@dataclass(frozen=True)
class Offer:
    """The lists that an app was started with."""

    bases: tuple[str, ...] = BASES
    """Bases to choose from."""
    judges: tuple[str, ...] = JUDGES
    """Judges to choose from."""
    recipe: Loop | None = None
    """All other settings; by default those of the quickstart for the embedded base, those of its
    recipe for SmolLM2, and the loop's own for any other."""

    def start_of(self, base: str) -> Loop:
        """The settings on a base, before the form's."""
        start = self.recipe or _STARTS.get(base, Loop())
        if base == start.base:
            return start
        template = "brief" if base == EMBEDDED else default_template(base)
        return replace(start, base=base, template=template)

    @property
    def columns(self) -> str:
        """New names for columns of uploaded files."""
        return "" if self.recipe is None else self.recipe.inputs.columns

    @property
    def suggested(self) -> Loop:
        """The settings that the form is filled with."""
        start = self.start_of(self.bases[0])
        if self.recipe is not None:
            return start
        return replace(start, rank=replace(start.rank, prompts=DEFAULT_PROMPTS))

    @property
    def suggested_judge(self) -> str:
        """The judge that the form begins with: the recipe's, unless it is that of any settings."""
        judge = (self.recipe or Loop()).inputs.judge
        return self.judges[0] if judge == Inputs().judge else judge


@dataclass(frozen=True)
class NewRunForm:
    """The form, checked: every field is what it may be."""

    name: str
    """Name of the run's folder."""
    base: str
    """One of `Offer.bases`."""
    judge: str
    """One of `Offer.judges`."""
    rows: Path | None
    """Uploaded rows to train on."""
    prompts_file: Path | None
    """Uploaded prompts."""
    prompts: int
    """Prompts to rank, per round."""
    k: int
    """Answers to each."""
    rounds: int
    """Rounds."""
    policies: tuple[PolicyName, ...]
    """Policies to train."""
    drop_broken: bool
    """Leave broken rows out, counted."""


_FIELDS = ("name", "base", "judge", "rows", "prompts_file", *NUMBERS, "policies", "drop_broken")


def read_form(sent: object, offer: Offer, uploads: Uploads) -> NewRunForm:
    """Check what a browser has sent.

    Raises:
        FormRefused: A field is missing, unknown, or not one of the choices.
    """
    # 1. The fields, and no others.
    if not isinstance(sent, Mapping):
        raise FormRefused("field")
    unknown = next((name for name in sent if name not in _FIELDS), None)
    if unknown is not None:
        raise FormRefused("field", str(unknown)[:80])
    # 2. Choices from the lists.
    name = sent.get("name")
    if not isinstance(name, str) or not is_run_name(name):
        raise FormRefused("name")
    base, judge = sent.get("base"), sent.get("judge")
    if not isinstance(base, str) or base not in offer.bases:
        raise FormRefused("base")
    if base == SMOLLM2 and not smollm2_folder().is_dir():
        raise FormRefused("not_fetched")
    if not isinstance(judge, str) or judge not in offer.judges:
        raise FormRefused("judge")
    policies = sent.get("policies")
    if not isinstance(policies, list) or not policies:
        raise FormRefused("policies")
    if not all(isinstance(policy, str) and policy in POLICIES for policy in policies):
        raise FormRefused("policies")
    # 3. Numbers within their bounds.
    numbers = {key: _number(key, sent.get(key)) for key in NUMBERS}
    # 4. Uploads by their names.
    rows = _upload(sent.get("rows"), "rows", uploads)
    prompts = _upload(sent.get("prompts_file"), "prompts", uploads)
    if judge == "gold" and (rows or prompts):
        raise FormRefused("gold_files")
    if judge == "gold" and base != EMBEDDED:
        raise FormRefused("gold_base")
    if judge not in ("gold", "checks") and prompts is None:
        raise FormRefused("no_prompts")
    chosen = tuple(policy for policy in POLICIES if policy in policies)
    drop_broken = sent.get("drop_broken") is True
    return NewRunForm(
        name, base, judge, rows, prompts, **numbers, policies=chosen, drop_broken=drop_broken
    )


def _number(key: str, value: object) -> int:
    low, high = NUMBERS[key]
    if type(value) is not int or not low <= value <= high:
        raise FormRefused("number", f"{low}-{high}")
    return value


def _upload(name: object, kind: UploadKind, uploads: Uploads) -> Path | None:
    if name in (None, ""):
        return None
    path = uploads.path(name, kind)
    if path is None:
        raise FormRefused("upload")
    return path


def settings_of_form(form: NewRunForm, offer: Offer, folder: Path) -> tuple[Loop, Source]:
    """The settings of a run in its folder, and its tasks, dealt to the splits.

    Where prompts are uploaded the numbers of the policies and of the evaluation are lowered to what
    the ranking leaves over, with a round in reserve if there is enough.

    Raises:
        FormRefused: There are too few prompts.
        UserError: A file cannot be read, or the settings do not go together.
    """
    # 1. The form's settings above those of the recipe.
    start = offer.start_of(form.base)
    generate = start.generate
    if generate.recipe == "answers" and form.judge != "checks":
        # No judge keeps the base's answers, so the base writes tasks after the shipped seeds.
        generate = replace(generate, recipe="alpaca", edit=False)
    at_least = start.rank.at_least
    if at_least is not None and at_least > form.prompts:
        at_least = None  # all of them
    try:
        settings = replace(
            start,
            out=folder / form.name,
            inputs=_inputs(form, start.inputs),
            judge=start.judge if form.judge == "llm" else replace(start.judge, url=None),
            generate=generate,
            rank=replace(start.rank, prompts=form.prompts, k=form.k, at_least=at_least),
            rounds=form.rounds,
            more_rounds=0,
            policies=form.policies,
        )
    except ValueError as error:
        raise UserError(" ".join(str(error).split())) from None
    if form.prompts_file is None:
        return settings, source_of(settings)
    # 2. As many prompts for each split as there are.
    reading = reading_of(settings.inputs, "prompts", form.prompts_file)
    n = len({row.id for row in read_prompts(form.prompts_file, reading)})
    tried: Loop | None = None
    problem: Exception | None = None
    for share in _SHARES:
        try:
            fitted = within(settings, int(n * share))
            if fitted == tried:
                break
            tried = fitted
            return fitted, source_of(fitted)
        except (FormRefused, UserError) as error:
            # The first tells what is wrong; the others may only tell that a share is too small.
            problem = problem or error
    assert problem is not None
    raise problem


def _inputs(form: NewRunForm, start: Inputs) -> Inputs:
    """The inputs of a run: files and judge are the form's, everything else is the recipe's."""
    # Files of the recipe would stand beside, or in the place of, those that are uploaded.
    makes_rows = form.rows is None and form.judge not in ("gold", "checks")
    return replace(
        start,
        data=form.rows,
        seeds=(start.seeds or Path("shipped")) if makes_rows else None,
        prompts=form.prompts_file,
        splits=None,
        rankings=None,
        sft_adapter=None,
        judge=form.judge,
        broken="drop" if form.drop_broken else "refuse",
        leaks="drop",
    )


def within(settings: Loop, n: int) -> Loop:
    """Settings whose splits take no more than `n` prompts of the user's.

    Raises:
        FormRefused: The ranking alone takes nearly all of them.
    """
    # 1. Prompts of the evaluation, and of a policy in each round.
    ranked = settings.rank.prompts
    rest = n - ranked * settings.rounds
    n_eval = min(settings.evaluate.prompts, max(2, rest // _EVAL_SHARE))
    spare = rest - n_eval
    n_policy = (spare - ranked) // (settings.rounds + 1)
    if n_policy < _MIN_POLICY_PROMPTS:
        n_policy = spare // settings.rounds
    if n_policy < 2:
        raise FormRefused("too_few", f"{n}, {ranked * settings.rounds}")
    # 2. Batches that divide: powers of two where they have to be smaller.
    ppo, batch = settings.ppo, min(settings.ppo.batch_size, _power_of_two(n_policy))
    if batch < ppo.batch_size:
        minibatch = min(ppo.minibatch_size, batch)
        minibatch = minibatch if batch % minibatch == 0 else batch
        micro = min(ppo.micro_batch_size, minibatch)
        ppo = replace(ppo, batch_size=batch, minibatch_size=minibatch, micro_batch_size=micro)
    groups = {}
    for name in ("grpo", "rloo"):
        group = getattr(settings, name)
        if group.prompts > n_policy:
            prompts = _power_of_two(n_policy)
            minibatch = min(group.minibatch_size, prompts * group.k)
            minibatch = minibatch if prompts * group.k % minibatch == 0 else prompts * group.k
            micro = min(group.micro_batch_size, minibatch)
            group = replace(
                group, prompts=prompts, minibatch_size=minibatch, micro_batch_size=micro
            )
        groups[name] = group
    best_of_k = replace(settings.best_of_k, prompts=min(settings.best_of_k.prompts, n_policy))
    # 3. What is left over is for further rounds, and not for `dev` unless a recipe asks for it.
    evaluate = replace(settings.evaluate, prompts=n_eval)
    if not (settings.watch.every or evaluate.dev or evaluate.split == "dev"):
        evaluate = replace(evaluate, dev_prompts=0)
    return replace(settings, ppo=ppo, best_of_k=best_of_k, evaluate=evaluate, **groups)


def _power_of_two(n: int) -> int:
    """The largest power of two that is not above `n`."""
    return 1 << (n.bit_length() - 1)
