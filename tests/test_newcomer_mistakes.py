"""Mistakes of newcomers, typed at the command line: one line, exit code 2, and nothing is begun."""

from __future__ import annotations

import os
import shlex
import shutil

import pytest

from tests.forked import run
from tests.newcomer_mistakes import BEGIN, MISTAKES, prepare


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
    shutil.copytree(folder / "done", folder / "newer")
    with (folder / "newer" / "config.yaml").open("a") as file:
        file.write("sparkles: 3\n")
    return folder


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.about)
def test_a_mistake_is_answered_in_one_line(folder, mistake):
    done = typed(folder, mistake.command)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    for part in mistake.told:
        assert part in done.stderr
    begun = (folder / "new").exists()
    shutil.rmtree(folder / "new", ignore_errors=True)
    assert not begun


def test_help_before_a_command_is_its_help(folder):
    done = typed(folder, "help chat")
    assert done.returncode == 0 and "usage: alpaca-rlhf chat" in done.stdout
