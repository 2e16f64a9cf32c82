"""The judges of docs/guides/judges.md, run as they are written there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.judges import Judge, JudgeFailure, Response, ScoreLog, load_function
from alpaca_rlhf.settings.judge_names import parse_judge
from tests.endpoints import serving

GUIDE = Path(__file__).parent.parent / "docs" / "guides" / "judges.md"
BLOCKS = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", GUIDE.read_text(), re.DOTALL))
PROMPT = Instruction("Thank me.", source="test")


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """Score completions by a judge of the guide; with its parts."""
    monkeypatch.chdir(tmp_path)

    def score(file, *completions, finished=True):
        Path(file).write_text(BLOCKS[file])
        name = parse_judge(f"{file}:score")
        function = load_function(name, "--inputs.judge")
        judge = Judge(name, function, function.digest, function.files, ScoreLog(Path("log.jsonl")))
        responses = [Response(PROMPT, text, finished) for text in completions]
        return judge.scores(responses, stage="rank")

    return score


def test_the_guide_has_these_judges():
    assert set(BLOCKS) == {"polite.py", "contact.py", "words.py", "graded.py"}
    assert len([line for line in BLOCKS["polite.py"].splitlines() if line.strip()]) <= 10


def test_a_regular_expression(judged):
    best, rude, long = judged("polite.py", "I am glad to help.", "No.", "Please. " * 5)
    assert (best.score, rude.score, long.score) == pytest.approx((1.0, 0.5, 0.7))
    assert judged("polite.py", "No", finished=False)[0].score == 0


def test_a_json_schema(judged):
    texts = ['{"name": "Ann", "age": 3}', '{"name": "Ann", "age": "3"}', "{", '{"name": "Ann"}']
    fits, wrong_type, broken, missing = judged("contact.py", *texts)
    assert fits.parts == {"is_json": 1, "fits": 1, "finished": 1} and fits.score == pytest.approx(1)
    assert wrong_type.score == missing.score == pytest.approx(0.4)
    assert broken.parts["is_json"] == 0 and broken.score == pytest.approx(0.1)


def test_a_declared_file(judged, tmp_path):
    (tmp_path / "words.txt").write_text("cat dog")
    assert [rating.score for rating in judged("words.py", "a cat", "")] == [0.5, 0]


def test_a_call_to_a_model(judged, monkeypatch):
    def answer(handler, body):
        text = body["messages"][0]["content"]
        said = "Grade: 7." if "fine" in text else "12" if "super" in text else "no idea"
        handler.give(200, {"choices": [{"message": {"content": said}}]})

    with serving(answer) as server:
        monkeypatch.setenv("GRADER_URL", server.url)
        monkeypatch.setenv("GRADER_KEY", "secret")
        scores = judged("graded.py", "a fine one", "super", "what")
        assert [rating.score for rating in scores] == [0.7, 1.0, 0.0]
        assert server.headers[0]["Authorization"] == "Bearer secret" and len(server.bodies) == 3
        assert json.loads(json.dumps(server.bodies[0]))["temperature"] == 0
    with pytest.raises(JudgeFailure, match=r"graded\.py:\d+: score\(\) raised URLError"):
        judged("graded.py", "another fine one")
