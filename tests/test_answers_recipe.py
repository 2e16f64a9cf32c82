"""The stage `generate` with the recipe `answers`: a teacher answers, a judge keeps what is good."""

from contextlib import contextmanager
from importlib import import_module

import pytest

from alpaca_rlhf.checks import read_request
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.runs import RunFolder
from alpaca_rlhf.core.scorers import Response
from alpaca_rlhf.data import Reply, read_instructions
from alpaca_rlhf.pipeline import run_loop
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.settings.parsing import parse, to_yaml
from alpaca_rlhf.sources import source_of
from alpaca_rlhf.stages import generate, judging
from alpaca_rlhf.stages.context import Context
from tests.whole_run import Quiet

TARGET = 6


class FunctionTeacher:
    """A teacher that answers by a function of the prompt and the request's number."""

    def __init__(self, answer):
        self.answer = answer
        self.prompts = []

    def complete(self, prompts, *, seed, first):
        self.prompts += prompts
        texts = [self.answer(prompt, first + i) for i, prompt in enumerate(prompts)]
        return [Reply(text, "eos" if text else "length", len(text)) for text in texts]


@pytest.fixture
def answering(tmp_path, monkeypatch):
    """Run the stage with a teacher that is a function, and no model."""

    def run(answer, *words, judge="checks"):
        teacher = FunctionTeacher(answer)

        @contextmanager
        def teacher_of(ctx, facts):
            yield teacher

        module = import_module("alpaca_rlhf.stages.generate")
        monkeypatch.setattr(module, "teacher_of", teacher_of)
        words = ["--generate.recipe", "answers", "--generate.target", str(TARGET), *words]
        words += ["--inputs.judge", judge, "--out", str(tmp_path / "run")]
        settings = parse(Loop, words, prog="test", description="")
        source = source_of(settings)
        judges = judging.open_judges(settings, lambda: source)
        with RunFolder.open(settings.out, to_yaml(settings), kind="loop", inputs={}) as folder:
            outcome = generate(Context(settings, folder, source, Quiet(), judges), 1)
        rows = read_instructions(settings.out / "generate" / "rows.jsonl")
        return outcome, rows, teacher, judges.ranks

    return run


def plain(prompt, number):
    """An answer about the prompt; one of five is cut, and one of five is no answer."""
    first, second = sorted(read_request(prompt).core.strip(".?").split(), key=len)[-2:]
    about = f"My aunt told us of {first} on a bright day. For her neighbours {second} was a joy. "
    good = about + "We talked until it was dark and the rain had come."
    return {1: "word", 2: ""}.get(number % 5, good)


def test_answers_that_the_checks_like_become_rows(answering):
    outcome, rows, teacher, judge = answering(plain, "--generate.min-score", "0.3")
    assert rows and outcome.examples == len(rows) <= TARGET
    responses = [Response(row, row.output, True) for row in rows]
    assert min(score.score for score in judge.scores(responses, stage="test")) >= 0.3
    assert len(teacher.prompts) == outcome.facts["requests"] > TARGET
    assert outcome.facts["dropped"] == outcome.facts["requests"] - len(rows)
    assert "correct" not in outcome.facts and "kept by checks, from" in outcome.summary


def test_no_answer_that_the_judge_likes_is_one_line(answering):
    with pytest.raises(UserError, match=r"^generate: 0 of \d+ rows accepted .* judge \d+"):
        answering(lambda prompt, number: "word", "--generate.attempts", "2")


BATCHED = """from alpaca_rlhf.judges import batched

SIZES = []

@batched(size=5)
def score(responses):
    SIZES.append(len(responses))
    return [response.completion.startswith("My aunt") for response in responses]
"""


def test_a_batched_judge_gets_the_answers_of_a_batch_together(answering, tmp_path):
    (tmp_path / "mine.py").write_text(BATCHED)
    words = ("--generate.batch-size", "12")
    judge = f"{tmp_path}/mine.py:score"
    outcome, rows, _, judged = answering(plain, *words, judge=judge)
    sizes = judged.source.call.__globals__["SIZES"]
    # 12 replies, of which 2 are cut, are 10 answers.
    assert sizes[:2] == [5, 5] and len(rows) == TARGET
    # Again: the events are replayed, the scores read back.
    again, same_rows, nobody, judged = answering(None, *words, judge=judge)
    assert same_rows == rows and not nobody.prompts
    assert not judged.source.call.__globals__["SIZES"]
    assert again.facts == outcome.facts


def test_too_many_rows_are_refused_before_the_run_has_a_folder(tmp_path):
    words = (
        "--inputs.judge",
        "checks",
        "--generate.recipe",
        "answers",
        "--generate.target",
        "9999",
    )
    settings = parse(Loop, [*words, "--out", str(tmp_path / "run")], prog="test", description="")
    with pytest.raises(UserError, match=r"^--generate\.target: .*ask for at most \d+$"):
        run_loop(settings, Quiet(), kind="loop", command="test")
    assert not any(tmp_path.iterdir())
