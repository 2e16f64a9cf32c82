"""Trackers: which numbers go where, and that none is there unless asked for."""

import importlib.util
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from accelerate import tracking

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.training import trackers
from alpaca_rlhf.training.trackers import tracker

ROWS = [
    {"stage": "sft", "step": 1, "steps": 2, "loss": 2.5, "tokens": 7},
    {"stage": "sft", "step": 2, "steps": 2, "loss": 2.0, "tokens": 9},
    {"stage": "ppo.2", "step": 1, "steps": 4, "kl": 0.0},
]


@dataclass
class Board:
    """Stands for one of accelerate's trackers."""

    project: str
    options: dict = field(default_factory=dict)
    seen: list = field(default_factory=list)
    metrics: list = field(default_factory=list)

    def start(self):
        self.seen.append("started")

    def log(self, values, step=None):
        self.seen.append((step, values))

    @property
    def tracker(self):
        return self

    def define_metric(self, name, step_metric):
        self.metrics.append((name, step_metric))


@pytest.fixture
def boards(monkeypatch):
    """Pretends that both packages are here; what was made of them."""
    made = []

    def make(project, **options):
        made.append(Board(project, options))
        return made[-1]

    monkeypatch.setattr(tracking, "TensorBoardTracker", make)
    monkeypatch.setattr(tracking, "WandBTracker", make)
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: name)
    return made


def test_tensorboard_gets_every_number_at_its_step(boards, tmp_path):
    log = tracker("tensorboard", tmp_path)
    for row in ROWS:
        log(row)
    (board,) = boards
    assert Path(board.options["logging_dir"]) / board.project == tmp_path / "tensorboard"
    assert board.seen == [
        "started",
        (1, {"sft/loss": 2.5, "sft/tokens": 7}),
        (2, {"sft/loss": 2.0, "sft/tokens": 9}),
        (1, {"ppo.2/kl": 0.0}),
    ]


def test_wandb_counts_the_steps_of_each_stage_for_itself(boards, tmp_path):
    """Its own counter may not fall, and ours begins anew with each stage."""
    log = tracker("wandb", tmp_path / "mine")
    for row in ROWS:
        log(row)
    (board,) = boards
    assert board.options["name"] == "mine"
    assert [step for step, _ in board.seen[1:]] == [None] * 3
    assert [v for _, v in board.seen[1:]][1:] == [
        {"sft/loss": 2.0, "sft/tokens": 9, "sft/step": 2},
        {"ppo.2/kl": 0.0, "ppo.2/step": 1},
    ]
    assert board.metrics == [("sft/*", "sft/step"), ("ppo.2/*", "ppo.2/step")]
    tracker("wandb", tmp_path / "mine")
    tracker("wandb", tmp_path / "other")
    ids = [one.options["id"] for one in boards]
    assert ids[0] == ids[1] != ids[2], "a run that goes on is the same run there"


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_a_missing_package_is_told_with_the_line_that_installs_it(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"--track {kind}: .*; pip install {kind}$"):
        tracker(kind, tmp_path)


def test_nothing_is_loaded_unless_asked():
    program = (
        "import sys; from pathlib import Path; from alpaca_rlhf.training.trackers import tracker; "
        "tracker('none', Path('x'))({'stage': 'sft', 'step': 1}); "
        "sys.exit('accelerate.tracking' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parent.parent)
    assert done.returncode == 0


@pytest.mark.skipif(
    not importlib.util.find_spec("tensorboard"), reason="needs tensorboard, which is not installed"
)
def test_tensorboard_itself_reads_what_was_written(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = tracker("tensorboard", tmp_path)
    for row in ROWS:
        log(row)
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(e.step, e.value) for e in found.Scalars("sft/loss")] == [(1, 2.5), (2, 2.0)]
