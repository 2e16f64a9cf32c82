"""A deterministic teacher of all recipes, in a process of its own, and how to kill it.

    python -m tests.generation FOLDER RECIPE TARGET ASKED

generates into FOLDER and notes every request it makes in the file ASKED. `killed_runs` is used by
the tests and by `python -m tests.prove generate-kills`.
"""

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import GenerationResult, Reply, generate
from alpaca_rlhf.settings import Generate

ROOT = Path(__file__).resolve().parent.parent
SEGMENT = 20_000
VERBS = "Name List Draft Count Sort Compare Describe Explain Rewrite Add Find Choose".split()
NOUNS = [
    f"{size} {noun}"
    for size in "small large old new".split()
    for noun in "birds cars hats suns rivers lamps".split()
]
SEEDS = [
    Instruction(f"Tell me about seed number {i}, please.", "", f"It is {i}.", "seed")
    for i in range(12)
]


class AnyTeacher:
    """A fixed function of (seed, request number, prompt), with bad rows of every kind."""

    name = "any-teacher"
    licence = "CC0-1.0"

    def __init__(self, asked: Path | None = None, seconds: float = 0.0) -> None:
        self.prompts: dict[int, str] = {}
        self._asked = asked
        self._seconds = seconds

    def complete(self, prompts: Sequence[str], *, seed: int, first: int) -> list[Reply]:
        """Answer each prompt."""
        if self._asked is not None:
            with self._asked.open("a") as stream:
                stream.write(f"{first}\n")
        time.sleep(self._seconds)
        self.prompts |= {first + i: prompt for i, prompt in enumerate(prompts)}
        return [
            self.reply(prompt, random.Random(f"{seed}/{first + i}/{prompt}"))
            for i, prompt in enumerate(prompts)
        ]

    def reply(self, prompt: str, rng: random.Random) -> Reply:
        """An answer that fits the kind of the prompt."""
        if prompt.endswith("Is it classification?"):
            text = rng.choice([" Yes", " No", " yes.", " I cannot say"])
        elif prompt.startswith("Come up with a series"):
            items = [f"{n}. {self.task(rng)}" for n in range(9, 9 + rng.randint(1, 5))]
            text = "\n".join(items).removeprefix("9.")
        elif prompt.startswith("Given the classification task"):
            labels = [f"Class label: {rng.choice('ab')}\nText: {self.task(rng)}" for _ in range(3)]
            text = "\n".join(labels) + "\nTask: Another one"
        elif prompt.startswith("Come up with examples"):
            examples = [f"Example {i}\nList: {rng.randrange(9)}\nOutput: {rng.randrange(99)}"
                     for i in range(1, rng.randint(2, 9))]  # fmt: skip
            text = "\n".join(examples)
        elif prompt.startswith("I want you to act"):
            text = rng.choice([self.task(rng), "Say the given prompt again.", "..."])
        elif prompt.startswith("Below is"):
            text = rng.choice(["It is so.", "", "No \ud800 way."])
        else:
            text = self.worksheet(rng)
        cut = rng.random() < 0.15
        text = text[: rng.randrange(len(text) + 1)] if cut else text
        return Reply(text, "length" if cut else "eos", len(text) // 4)

    def worksheet(self, rng: random.Random) -> str:
        """Blocks from number 4 on."""
        text = ""
        for number in range(4, 4 + rng.randint(1, 4)):
            number = 9 if rng.random() < 0.1 else number
            output = rng.choice(["Done.", "# A\n### B\nin 2020.", "", "句子 ✓"])
            text += f"{number}. Instruction: {self.task(rng)}\n{number}. Input: <noinput>\n"
            text += f"{number}. Output: {output}\n###\n"
        return text

    def task(self, rng: random.Random) -> str:
        """An instruction."""
        words = [rng.choice(VERBS), *(rng.choice(NOUNS) for _ in range(3))]
        return " ".join([*words, f"x{rng.randrange(99)}"])


def settings(recipe: str, target: int = 200) -> Generate:
    """Of a small run."""
    return Generate(target=target, recipe=recipe, batch_size=4, max_requests=5000)  # type: ignore[arg-type]


def run(
    folder: Path, recipe: str, teacher: AnyTeacher | None = None, **more: Any
) -> GenerationResult:
    """A whole run."""
    options = {"seed": 1, "folder": folder, "segment_bytes": SEGMENT, **more}
    run_settings = options.pop("settings", settings(recipe))
    return generate(teacher or AnyTeacher(), SEEDS, run_settings, **options)


def files_of(folder: Path) -> dict[str, str]:
    """sha256 of every file."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.name != ".lock"
    }


def events_in(folder: Path) -> int:
    """Whole lines on the disk."""
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("events-*.jsonl"))


def killed_runs(folder: Path, recipe: str, kills: int, rng: random.Random) -> dict[str, Any]:
    """Run in a process of its own, killed so many times at random moments, then to its end.

    Returns:
        Where it was killed; whether every process began with the first request that was not on the
        disk; and whether the files are those of an undisturbed run.
    """
    calm, killed, asked_file = folder / "calm", folder / "killed", folder / "asked"
    target = 150 + 50 * kills  # so long that no process ends before it is killed
    run(calm, recipe, settings=settings(recipe, target))
    total = events_in(calm)
    at: list[int] = []
    nothing_twice = True
    for kills_left in range(kills, -1, -1):
        done = events_in(killed)
        asked_file.unlink(missing_ok=True)
        command = [
            sys.executable,
            "-m",
            "tests.generation",
            str(killed),
            recipe,
            str(target),
            str(asked_file),
        ]
        process = subprocess.Popen(command, cwd=ROOT)
        if kills_left:
            goal = done + rng.randrange(max(1, (total - done) // (kills_left + 1)))
            while not asked_file.exists() or events_in(killed) < goal:
                time.sleep(0.001)
                assert process.poll() is None, "it ended before it was killed"
            time.sleep(rng.random() * 0.02)
            process.send_signal(signal.SIGKILL)
        code = process.wait()
        assert code == (-signal.SIGKILL if kills_left else 0), code
        first = asked_file.read_text().partition("\n")[0]
        nothing_twice &= not first or int(first) == done  # killed before the line was written
        at += [events_in(killed)] if kills_left else []
    return {
        "recipe": recipe,
        "requests": total,
        "segments": len(json.loads((calm / "manifest.json").read_text())["segments"]),
        "killed_after_requests": at,
        "nothing_asked_twice": nothing_twice,
        "same_files": files_of(killed) == files_of(calm),
    }


if __name__ == "__main__":
    out, which, target, noted = sys.argv[1:]
    slow = AnyTeacher(Path(noted), seconds=0.005)
    run(Path(out), which, slow, settings=settings(which, int(target)))
