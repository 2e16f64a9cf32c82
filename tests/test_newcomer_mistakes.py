"""Mistakes of newcomers, typed at the command line: one line, exit code 2, and nothing is begun."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.forked import run
from tests.newcomer_mistakes import (
    BEGIN,
    CIRCUMSTANCES,
    MISTAKES,
    page,
    plain,
    prepare,
    prepare_runs,
)

PAGE = Path(__file__).parent.parent / "docs" / "mistakes.md"


def typed(folder, command):
    """Type a command in the folder."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return run("-m", "alpaca_rlhf", *shlex.split(command), cwd=folder, env=environment)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_folder):
    """The newcomer's files, bases and runs."""
    folder = tmp_path_factory.mktemp("newcomer")
    prepare(folder, tiny_folder)
    done = typed(folder, BEGIN)
    assert done.returncode == 0, done.stderr
    prepare_runs(folder)
    return folder


@pytest.fixture(scope="module")
def documented():
    """The lines of the page."""
    return dict(re.findall(r"^\| ([^|]+) \| `` (.+) `` \| 2 \|$", PAGE.read_text(), re.MULTILINE))


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.about)
def test_a_mistake_is_answered_in_one_line(folder, mistake, documented, request):
    with CIRCUMSTANCES[mistake.circumstance](folder) as words:
        command = mistake.command
        for name, word in words.items():
            command = command.replace(name, word)
        done = typed(folder, command)
    begun = (folder / "new").exists()
    shutil.rmtree(folder / "new", ignore_errors=True)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    for part in mistake.told:
        assert part in done.stderr
    assert not begun
    if request.config.getoption("--write-mistakes"):
        documented[mistake.about] = plain(done.stderr)
    assert documented.get(mistake.about) == plain(done.stderr), "docs/mistakes.md says otherwise"


def test_the_page_holds_every_mistake_and_no_other(documented, request):
    if request.config.getoption("--write-mistakes"):
        PAGE.write_text(page({mistake.about: documented[mistake.about] for mistake in MISTAKES}))
        return
    text = PAGE.read_text()
    assert list(documented) == [mistake.about for mistake in MISTAKES]
    assert text == page(documented), "its text is that of tests/newcomer_mistakes.py"


def test_help_before_a_command_is_its_help(folder):
    done = typed(folder, "help chat")
    assert done.returncode == 0 and "usage: alpaca-rlhf chat" in done.stdout
