"""A wheel holds all that the tree has, and runs without a clone."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.prove import SMALL

ROOT = Path(__file__).parent.parent


def tracked(folder):
    """Files of a folder that git knows; of a checkout without git, all that are no caches."""
    listed = subprocess.run(
        ["git", "ls-files", "-zco", "--exclude-standard", "--", folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode == 0 and listed.stdout:
        return {name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}
    return {
        str(path.relative_to(ROOT))
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built as `pip wheel` does."""
    pytest.importorskip("hatchling", reason="hatchling builds the wheel: pip install -e '.[dev]'")
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder in which the wheel was installed, and nothing else."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    command += ["--disable-pip-version-check", "--target", str(target), str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True)
    if "No module named pip" in done.stderr:
        pytest.skip("pip installs the wheel, and is not in this environment")
    assert done.returncode == 0, done.stderr
    return target


def run(installed, folder, *words, **environment):
    """A command of the installed package, in a folder that is no clone."""
    program = (
        "import sys, alpaca_rlhf; from alpaca_rlhf.cli.main import main;"
        f"assert alpaca_rlhf.__file__.startswith({str(installed)!r}), alpaca_rlhf.__file__;"
        "sys.exit(main())"
    )
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, words)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"} | environment,
        capture_output=True,
        text=True,
    )


def test_every_file_of_the_tree_is_in_the_wheel(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    code = tracked("alpaca_rlhf")
    data = {name.replace("data/", "alpaca_rlhf/_data/", 1) for name in tracked("data")}
    assert not (code | data) - names
    others = {name for name in names - code - data if ".dist-info/" not in name}
    assert not others, "nothing but the package"
    for kind in (".css", ".html", ".js", ".json", ".jsonl", ".safetensors", "py.typed"):
        assert any(name.endswith(kind) for name in names), kind
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_console_script_is_declared(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
    assert "alpaca-rlhf = alpaca_rlhf.cli.main:main" in archive.read(name).decode()


SHORT = (
    "--policies ppo --reward.control False --evaluate.rerank False --sft.epochs 1 --reward.epochs 1"
).split()
"""Each kind of stage once: what is asked is whether the wheel holds all that they read."""


def test_the_quickstart_runs_from_a_wheel_without_a_clone(installed, tmp_path):
    """The embedded base, seeds, templates of the report and migrations come out of the wheel."""
    done = run(installed, tmp_path, "quickstart", "--out", "run", *SMALL, *SHORT)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert {"base", "sft", "ppo"} <= set(report["policies"])
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    said = run(installed, tmp_path, "chat", "--run", "run", "--prompt", "What is 1 + 1?")
    assert said.returncode == 0 and said.stdout.strip(), said.stderr
    assert run(installed, tmp_path, "runs", "list", ".").stdout.count("run") > 1
