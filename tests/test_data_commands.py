"""`alpaca-rlhf data ...` on folders of events: what is told, what is written, what is refused."""

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from alpaca_rlhf.cli import main as cli
from alpaca_rlhf.cli.terminal import generation_line
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import (
    Reply,
    generate,
    kept_by_rouge,
    read_instructions,
    refilter,
    requests,
    rule_set,
)
from alpaca_rlhf.report.generation_figures import figures_of, first_words
from tests.generation import SEEDS, AnyTeacher, run, settings


class Linked(AnyTeacher):
    """Some of its answers hold a link."""

    def worksheet(self, rng) -> str:
        return super().worksheet(rng).replace("Done.", "See https://example.org now.")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run by Alpaca's filters, of a teacher that likes links."""
    path = tmp_path_factory.mktemp("run") / "generate"
    run(path, "alpaca", Linked())
    return path


def told(capsys, *words) -> str:
    assert cli.main(["data", *map(str, words)]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def refused(capsys, *words) -> str:
    assert cli.main(["data", *map(str, words)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


def test_inspect_shows_row_request_prompt_and_neighbours(folder, capsys):
    one = next(one for _, one in requests(folder) if one.kept and one.number > 20)
    row = one.kept[0]
    out = told(capsys, "inspect", folder.parent, row.id[:10])
    assert f"request {one.number} (worksheet): kept" in out and one.ask.prompt in out
    assert row.instruction in out and row.output in out and one.reply.text.strip() in out
    scores = re.findall(r"^  (\d\.\d{3})  [0-9a-f]{16}  ", out, re.MULTILINE)
    assert len(scores) == 5 and scores == sorted(scores, reverse=True)
    assert f"{row.id}  " not in out, "a row is not its own neighbour"
    assert "next:" in out


def test_inspect_shows_why_a_row_was_dropped(folder, capsys):
    drop = next(d for _, one in requests(folder) for d in one.dropped if d.rule == "duplicate")
    out = told(capsys, "inspect", folder, drop.row.id)
    assert f"dropped by duplicate: too near to {drop.detail.partition('to ')[2][:20]}" in out
    assert f"nearest {drop.near} at {drop.score:.3f}" in out


def test_a_block_that_could_not_be_read_is_found_by_its_request(folder, capsys):
    """It has no row and so no id: the reply holds it, with all that came beside it."""
    one = next(one for _, one in requests(folder) if any(d.row is None for d in one.dropped))
    drop = next(drop for drop in one.dropped if drop.row is None)
    out = told(capsys, "drops", folder, "--rule", drop.rule, "--limit", 0)
    assert f"request @{one.number}\n" in out
    out = told(capsys, "inspect", folder, f"@{one.number}")
    assert f"dropped by {drop.rule}: {drop.detail}" in out
    assert one.ask.prompt in out and one.reply.text.strip() in out
    assert all(row.id in out for row in one.kept)
    last = max(one.number for _, one in requests(folder))
    assert f"from @0 to @{last}" in refused(capsys, "inspect", folder, f"@{last + 1}")
    assert "no request of" in refused(capsys, "inspect", folder, "@x")


def test_drops_count_every_rule_and_list_one(folder, capsys):
    counts = json.loads((folder / "manifest.json").read_text())["counts"]["dropped"]
    out = told(capsys, "drops", folder, "--limit", 0)
    for rule, count in counts.items():
        assert re.search(rf"^  {rule} +{count} ", out, re.MULTILINE)
        assert len(re.findall(rf"^{rule}: ", out, re.MULTILINE)) == count
    out = told(capsys, "drops", folder, "--rule", "number", "--limit", 2)
    assert len(re.findall("^number: ", out, re.MULTILINE)) == 2 and "empty: " not in out
    assert f"... 2 of {counts['number']} shown" in out


def test_refilter_asks_nothing_and_says_what_changed(folder, capsys):
    before = {path: path.read_bytes() for path in folder.glob("events-*.jsonl")}
    was = [row for _, one in requests(folder) for row in one.kept]
    linked = [row for row in was if "https" in (row.output or "")]
    out = told(capsys, "refilter", folder.parent, "--filters", "strict")
    rows = read_instructions(folder / "rows-strict.jsonl")
    assert linked and not [row for row in rows if "https" in (row.output or "")]
    gained = [row for row in rows if row not in was]
    assert f"before 200, now {len(rows)}: {len(linked)} lost, {len(gained)} new" in out
    assert f"lost by url: {len(linked)}" in out
    assert {path: path.read_bytes() for path in folder.glob("events-*.jsonl")} == before


@pytest.mark.parametrize("recipe", ["alpaca", "self-instruct", "evol"])
def test_the_same_filters_decide_the_same(tmp_path, recipe):
    made = run(tmp_path, recipe)
    again = refilter(tmp_path, rules=rule_set("alpaca"))
    assert (again.rows, again.drops) == (made.rows, list(made.drops))
    assert not again.gained and not again.lost and again.before == len(made.rows)


def test_refilter_writes_rows_that_are_read_as_a_users_file(tmp_path, capsys):
    """Replies that an earlier version kept may end with an end of turn as text."""

    class Marked(AnyTeacher):
        def reply(self, prompt, rng) -> Reply:
            reply = super().reply(prompt, rng)
            return replace(reply, text=reply.text + "<|im_end|>")

    folder = tmp_path / "generate"
    marked_rows = run(folder, "evol", Marked()).rows
    assert any(row.output.endswith("<|im_end|>") for row in marked_rows)
    told(capsys, "refilter", folder, "--filters", "alpaca")
    rows = read_instructions(folder / "rows-alpaca.jsonl")
    answered = [row for row in marked_rows if row.output != "<|im_end|>"]
    assert {row.id for row in rows} >= {row.id for row in answered}
    assert not any("<|im_end|>" in row.output for row in rows)


def test_rows_that_were_surplus_take_the_place_of_lost_ones(tmp_path):
    made = generate(
        Linked(), SEEDS, settings("alpaca", target=30), seed=1, folder=tmp_path, rules=()
    )
    surplus = [drop.row for drop in made.drops if drop.rule == "surplus"]
    again = refilter(tmp_path, rules=rule_set("strict"))
    assert surplus and set(again.gained) <= set(surplus) and again.gained
    assert again.before == 30 and len(again.rows) == 30 - sum(again.lost.values()) + len(
        again.gained
    )


def test_tasks_that_other_filters_refuse_lose_their_instances(tmp_path):
    given = replace(settings("self-instruct", target=60), filters="alpaca")

    class Maps(AnyTeacher):
        def task(self, rng) -> str:
            return super().task(rng) + rng.choice([" with music", ""])

    made = generate(Maps(), SEEDS, given, seed=1, folder=tmp_path, rules=rule_set("self-instruct"))
    loud = [row for row in made.rows if "music" in row.instruction]
    again = refilter(tmp_path, rules=rule_set("alpaca"))
    assert loud and not [row for row in again.rows if "music" in row.instruction]
    assert again.lost["words"] == len(loud)


def test_what_rouge_alone_would_keep(tmp_path):
    """Two of three tasks say nearly the same; the caller's own check finds all three new."""

    class Three(AnyTeacher):
        def reply(self, prompt, rng) -> Reply:
            block = "{0}. Instruction: {1}\n{0}. Input: <noinput>\n{0}. Output: Yes.\n###\n"
            said = ("Count the small birds here.", "Count the small birds here, now.", "Sing low.")
            return Reply("".join(block.format(n, one) for n, one in enumerate(said, 4)))

    seeds = [Instruction("Say something else entirely.", "", "So.")] * 3
    given = settings("alpaca", target=3)
    made = generate(
        Three(), seeds, given, seed=1, folder=tmp_path, rules=(), novel=lambda row: None
    )
    assert len(made.rows) == 3
    assert kept_by_rouge(tmp_path) == (2, 3)  # LCS 5 of 5 and 6 tokens: F1 is 10/11


def test_report_is_one_page_without_network(folder, tmp_path, capsys):
    out = told(capsys, "report", folder, "--out", tmp_path / "page.html",
               "--usd-per-million-tokens", 1000)  # fmt: skip
    made = json.loads((folder / "manifest.json").read_text())["counts"]
    written = 200 + sum(made["dropped"].values()) - made["dropped"]["surplus"]
    assert f"200 of 200 tasks made; {200 / written:.0%} of the {written} " in out
    page = (tmp_path / "page.html").read_text()
    counts = json.loads((folder / "manifest.json").read_text())["counts"]
    assert not re.findall(r"(?:src|href)=\"(?!#)|<script|@import|url\(", page)
    for text in ("Why the others were dropped", "Acceptance over time", "Nearest seed task",
                 "What they ask for", "spaCy is not installed", "CC0-1.0"):  # fmt: skip
        assert text in page
    for rule, count in counts["dropped"].items():
        assert re.search(rf"<b>{rule}</b>.*?>{count:,}, ", page)
    assert f"${counts['tokens'] / 1000:,.2f}" in page
    assert page.count("<rect") >= 5 and page.count("<title>") > 20


def test_figures_of_the_page_are_those_of_the_events(folder):
    """Acceptance: every point is of 40 rows or more, and the last line ends at the whole."""
    made = figures_of(folder)
    counts = json.loads((folder / "manifest.json").read_text())["counts"]
    assert (made.kept, made.requests, made.tokens) == (200, counts["requests"], counts["tokens"])
    kept = written = 0
    sizes, points = [], {}
    for _, one in requests(folder):
        kept += len(one.kept)
        written += len(one.kept) + sum(drop.rule != "surplus" for drop in one.dropped)
        points[one.number + 1] = (kept, written)
    before = (0, 0)
    for (at, share), (same, all_so_far) in zip(made.acceptance, made.so_far, strict=True):
        kept, written = points[at]
        assert same == at and all_so_far == kept / written
        assert share == (kept - before[0]) / (written - before[1])
        sizes.append(written - before[1])
        before = points[at]
    assert 5 <= len(sizes) <= 60 and min(sizes) >= 40
    duplicate = next(d for _, one in requests(folder) for d in one.dropped if d.rule == "duplicate")
    shown = made.examples["duplicate"]
    assert duplicate.row.instruction in shown and "too near to" in shown
    assert set(made.examples) == set(counts["dropped"])


def test_report_of_hostile_text(tmp_path, capsys):
    class Hostile(AnyTeacher):
        def task(self, rng) -> str:
            return super().task(rng) + " <script>alert(1)</script>"

    run(tmp_path, "alpaca", Hostile())
    told(capsys, "report", tmp_path)
    assert "<script" not in (tmp_path / "report.html").read_text()


def test_refusals_name_the_mend(folder, tmp_path, capsys):
    assert "expected alpaca-rlhf data inspect RUN ID" in refused(capsys, "inspect", folder)
    assert "no row of" in refused(capsys, "inspect", folder, "0123456789abcdef")
    spaced = shutil.copytree(folder, tmp_path / "my run" / "generate")
    line = refused(capsys, "inspect", spaced.parent, "0123456789abcdef")
    typed = shlex.split(line.partition("`")[2].partition("`")[0])
    assert typed == ["alpaca-rlhf", "data", "drops", str(spaced)]
    assert cli.main(typed[1:]) == 0
    assert "is the beginning of" in refused(capsys, "inspect", folder, "")
    assert "did you mean number?" in refused(capsys, "drops", folder, "--rule", "numbers")
    assert "--limit must be at least 0" in refused(capsys, "drops", folder, "--limit", -1)
    assert "holds no generation" in refused(capsys, "report", tmp_path)
    assert "one of self-instruct, alpaca, strict" in refused(
        capsys, "refilter", folder, "--filters", "lenient"
    )
    assert "did you mean drops" in refused(capsys, "drop", folder)
    damaged = tmp_path / "damaged"
    run(damaged, "alpaca")
    (damaged / "seeds.jsonl").unlink()
    assert "seeds.jsonl: cannot be read" in refused(capsys, "drops", damaged)


def test_help_names_all(capsys):
    for words in (["data"], ["data", "--help"], ["data", "refilter", "--help"]):
        assert cli.main(words) == 0
        assert "refilter" in capsys.readouterr().out


def test_the_progress_line_says_how_it_goes():
    row = {"accepted": 41, "rejected_duplicate": 40, "rejected_cut": 15, "rejected_leak": 4}
    row["rejected_surplus"] = 99  # written after the target was reached: no fault of theirs
    assert generation_line(row, 850.4) == ", 41% kept (duplicate 40, cut 15), 850 tokens/s"
    assert generation_line({**row, "cost_usd": 0.021}, None).endswith("cut 15), $0.02")
    assert generation_line({}, None) == ""


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("Write a short story about a fox.", ("write", "story")),
        ("List five animals that live in trees", ("list", "animals")),
        ("Compare the red car with the blue one.", ("compare", "car")),
        ("Please, can you name a bird?", ("name", "bird")),
        ("I want you to say the opposite of wet.", ("say", "opposite")),
        ("Explain, please.", None),
        ("Why?", None),
        ("请说出三种蓝色的东西。", None),
    ],
)
def test_verb_and_noun_without_a_parser(text, want):
    assert first_words(text) == want
