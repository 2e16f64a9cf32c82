"""The commands of the README and the guides, run as they are written, each page from its top.

They run in a folder that holds what a clone holds, in this process. Every base is a random little
LLaMA, which lies where the pages name one: in `meta-llama/`, and in the cache of `smollm2`. What
else differs from the page stands in the tables below, with the reason. `test_guides.py` parses all.
"""

from __future__ import annotations

import io
import json
import re
import runpy
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from alpaca_rlhf import pipeline
from alpaca_rlhf.app import server
from alpaca_rlhf.cli import main as cli
from alpaca_rlhf.models import pinned_base
from alpaca_rlhf.preferences.assignment import BetterAnswer, Verdict
from alpaca_rlhf.sources.sampled import queue_sampled
from alpaca_rlhf.sources.verdicts import open_store
from tests.browser import free_port
from tests.endpoints import serving, writer
from tests.pages import PAGES, ROOT, commands
from tests.test_judges import judging, longer
from tests.test_preferences_store import as_shown

NOT_RUN = {
    "alpaca-rlhf base get": "fetches from the network",
    "python recipes/smollm2_135m_cpu.py --quick": "trains for twenty minutes",
    "py --dry-run": "a rehearsal of every stage, which test_recipes.py runs",
    "--db postgresql": "needs a server of PostgreSQL; databases.py starts one for other tests",
}
"""Parts of our commands that are not run, with the reason; `test_guides.py` parses them."""

OTHER_PROGRAMS = {
    "git clone": "the address is the reader's",
    "make ": "these are the targets that run the tests",
    "source ": "a word of the shell",
    "seed tasks|│ rank|report ◀": "a drawing",
    "location |proxy_|client_|}|rank.example|example|re": "test_app_proxy.py runs these servers",
    "transformers serve": "docs/proof/teachers.json has the run",
    "vllm ": "needs a GPU",
    "llama-server |cd runs/.* && ollama|ollama ": "is not installed with the tests",
    "curl ": "asks one of these servers",
}
"""Beginnings of lines that are no commands of ours. Files that they name in `runs/` must exist."""

STOPPED = {
    "alpaca-rlhf quickstart": "any",
    "--inputs.judge checks": "any",
    "--out runs/polite-1b": "any",
    "--policies ppo best-of-k dpo": "evaluate",
    "--out runs/ranked": "best_of_k",
    "--out runs/dpo": "evaluate",
    "--judge http": "evaluate",
}
"""Parts of commands that take minutes, whose judge has nothing to tell apart in what a random model
says, or whose answers need not end, and the stage before which they are stopped. The README's own
loop goes to its end."""

SHORTENED = {
    "generate --base": ["--dry-run"],
    "--generate.endpoint.url": ["--generate.target", "6"],
    "sample --run": ["--n", "4"],
}
"""Parts of commands that take minutes, and the flags with which they take seconds."""

STATES = {
    "--policies ppo best-of-k dpo": "rewarded",
    "alpaca-rlhf loop --out": "ranked",
    "-m alpaca_rlhf loop --out": "ranked",
    "alpaca-rlhf best-of-k --out": "rewarded",
    "alpaca-rlhf ppo --out": "rewarded",
    "alpaca-rlhf duel": "finished",
}
"""Parts of commands that go on with a run, and how far it is by then, since people have ranked and
perhaps a reward model was trained."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""The template of the stand-in of `smollm2`, an instruct base."""

OURS = ("alpaca-rlhf", "accelerate", "python")
MODELS = ("Llama-3.1-8B", "Llama-3.2-1B", "Llama-2-7b-hf")


class Clone:
    """A folder with what a clone holds, in which commands are typed."""

    def __init__(self, folder: Path, model: Path, urls: dict[str, str]) -> None:
        self.folder = folder
        self.states = folder / "states"
        self._urls = urls
        self._seen: set[str] = set()
        for name in ("data", "docs", "recipes"):
            (folder / name).symlink_to(ROOT / name)
        smollm2 = folder / "cache" / "alpaca_rlhf" / "bases" / "smollm2"
        for place in (*(folder / "meta-llama" / name for name in MODELS), smollm2):
            shutil.copytree(model, place)
            config = json.loads((place / "config.json").read_text())
            # Most words are bytes to its tokenizer, so the samples take many tokens.
            config["max_position_embeddings"] = 2048
            (place / "config.json").write_text(json.dumps(config))
        (smollm2 / "chat_template.jinja").write_text(CHAT_TEMPLATE)

    def follow(self, name: str) -> list[str]:
        """Run the commands of a page; returns those that did not end well."""
        for left in ("runs", "mine", "splits"):
            shutil.rmtree(self.folder / left, ignore_errors=True)
        failed = []
        for words in commands(PAGES[name].read_text()):
            line = " ".join(words)
            if words[0] not in OURS:
                named = [self.folder / place for place in re.findall(r"runs/[\w./-]+", line)]
                if not all(place.exists() for place in named):
                    failed.append(line)
                continue
            if any(part in line for part in NOT_RUN):
                continue
            begins = re.search("--(base|judge|inputs.judge) |quickstart", line)
            place = re.search(r"\bruns/\w+", line)
            state = next((state for part, state in STATES.items() if part in line), "")
            if "--more-rounds" in line:  # the page's run is finished
                state = ""
            typed = line.rpartition("-m alpaca_rlhf ")[2].removeprefix("alpaca-rlhf ")
            opens = typed.startswith(("app", "chat")) and "--add-user" not in typed
            alone = not place or opens or (state and not begins)
            if typed in self._seen and alone:  # an earlier page had it, and no later line needs it
                continue
            if place and not begins and (state or not (self.folder / place[0]).exists()):
                self._put(place[0], state or "finished")
            self._seen.add(typed)
            if not self.type(words):
                failed.append(line)
        return failed

    def _put(self, place: str, state: str) -> None:
        shutil.rmtree(self.folder / place, ignore_errors=True)
        shutil.copytree(self.states / state, self.folder / place)

    def type(self, words: list[str], answers: str = "a long password\n") -> bool:
        """Type a command; returns True if it ended well, or where `STOPPED` stops it."""
        line = " ".join(words)
        words = [self._placed(word, line) for word in words]
        more = next((more for part, more in SHORTENED.items() if part in line), [])
        if more and more[0] in words:
            at = words.index(more[0])
            words[at : at + len(more)] = []
        words += more
        stage = next((stage for part, stage in STOPPED.items() if part in line), None)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            patch.setenv("XDG_CACHE_HOME", str(self.folder / "cache"))
            patch.setattr(sys, "stdin", io.StringIO(answers))
            patch.setattr(server, "serve", _begin)
            patch.setattr(pinned_base, "is_cached", Path.is_dir)
            if stage:
                patch.setattr(pipeline, "_run_stage", _stopping_before(stage))
            if words[0] == "python":
                patch.setattr(sys, "argv", words[1:])
                with pytest.raises(SystemExit) as end:
                    runpy.run_path(words[1], run_name="__main__")
                code = end.value.code
            else:  # test_processes.py starts several processes
                words = words[6:] if words[0] == "accelerate" else words[1:]
                code = cli.main(words)
        return code == (130 if stage else 0)

    def _placed(self, word: str, line: str) -> str:
        """A word with the addresses, ports and names of this test."""
        kind = "judge" if "--judge" in line else "writer"
        word = re.sub(r"http://127.0.0.1:(8000|11434)/v1", self._urls[kind], word)
        return {"0.0.0.0": "127.0.0.1", "7860": str(free_port())}.get(word, word)


def _begin(app, listener, *, on_ready, **_):
    """Serve no request: test_app_server.py does."""
    on_ready()


def _stopping_before(stage):
    """Commands that run the stages of a loop, and are interrupted before one of them."""
    run_stage = pipeline._run_stage

    def run(context, step):
        if stage in ("any", step.stage):
            raise KeyboardInterrupt
        run_stage(context, step)

    return run


def write_better_answers(run):
    """Rank two prompts as one does in the app, each with a better answer of one's own."""
    with open_store(run) as store:
        queue_sampled(run, store)
        me = store.local().id
        for text in ("A better answer.", "Another one, which is better still."):
            task = store.claim(me)
            tiers = as_shown(task).tiers
            store.submit(me, task.id, Verdict(tiers, better=BetterAnswer(text)))


@pytest.fixture(scope="module")
def clone(tmp_path_factory, tiny_folder):
    """A clone with the run of the README: ranked by people, with a reward model, and finished."""
    with ExitStack() as stack:
        servers = {"writer": serving(writer()), "judge": judging(longer)}
        urls = {name: stack.enter_context(each).url for name, each in servers.items()}
        clone = Clone(tmp_path_factory.mktemp("clone"), tiny_folder, urls)
        begin, sample = (
            next(words for words in commands(PAGES["README"].read_text()) if words[1:2] == [name])
            for name in ("sft", "sample")
        )
        mine = clone.folder / "runs" / "mine"
        rank = ["alpaca-rlhf", "rank", "--out", "runs/mine"]
        assert clone.type(begin) and clone.type(sample)
        write_better_answers(mine)
        assert clone.type(rank, "1 2\n" * 20)
        shutil.copytree(mine, clone.states / "ranked")
        assert clone.type(["alpaca-rlhf", "reward", "--out", "runs/mine"])
        shutil.copytree(mine, clone.states / "rewarded")
        assert clone.type(["alpaca-rlhf", "loop", "--out", "runs/mine"])
        shutil.copytree(mine, clone.states / "finished")
        [snapshot] = (path.parent for path in mine.glob("rank/**/manifest.json"))
        for state in clone.states.iterdir():  # as the Data tab exports it
            shutil.copytree(snapshot, state / "snapshots" / "NAME")
        yield clone


@pytest.mark.parametrize("name", PAGES)
def test_the_commands_of_a_page_run_as_they_are_written(clone, name):
    assert clone.follow(name) == []


def test_every_line_of_another_program_has_its_reason():
    lines = [" ".join(words) for page in PAGES.values() for words in commands(page.read_text())]
    others = [line for line in lines if line.split()[0] not in OURS]
    assert [line for line in others if not re.match("|".join(OTHER_PROGRAMS), line)] == []
    for start in OTHER_PROGRAMS:
        assert any(re.match(start, line) for line in others), start


@pytest.mark.parametrize("part", [*NOT_RUN, *STOPPED, *SHORTENED, *STATES])
def test_what_is_not_taken_literally_stands_on_a_page(part):
    lines = [" ".join(words) for page in PAGES.values() for words in commands(page.read_text())]
    assert any(part in line for line in lines)
