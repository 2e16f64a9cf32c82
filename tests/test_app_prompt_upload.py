"""Prompts to rank from the page: the firewall's verdict, the queue, and who may call it."""

from __future__ import annotations

import csv
import gzip
import io
import json
import time
import tracemalloc
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest

from alpaca_rlhf.app import uploads
from alpaca_rlhf.app.added_answers import AddedAnswers
from alpaca_rlhf.app.data_tab import data_tab
from alpaca_rlhf.app.page_layout import Tab
from alpaca_rlhf.app.prefetch import keep_filled
from alpaca_rlhf.app.prompt_upload import MAX_LISTED, PromptUpload
from alpaca_rlhf.app.uploads import MAX_PROMPTS
from alpaca_rlhf.app.worker import Worker
from alpaca_rlhf.core import gpu_lock
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Completion, Instruction
from alpaca_rlhf.data import ReadLimit
from alpaca_rlhf.data.readers.rows import RowFile
from alpaca_rlhf.preferences import passwords
from alpaca_rlhf.preferences.schema import Audit
from alpaca_rlhf.preferences.store import Store
from alpaca_rlhf.serving import run_contents
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.sources.run_prompts import RunPrompts
from tests import apps, attacks
from tests.browser import NO_CHROMIUM, browser, chromium, visit
from tests.databases import candidates
from tests.model_app import nothing_serious, run_without_weights
from tests.screenshots import open_tab
from tests.test_preferences_store import rows as rows_of

NEW = [Instruction("Which rivers flow into the Black Sea?"), Instruction("Praise an old bicycle.")]
LONG = 60.0


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(passwords, "LOG_N", 4)
    monkeypatch.setattr(gpu_lock, "POLL_S", 0.02)


@pytest.fixture
def run(tmp_path):
    return run_without_weights(tmp_path / "run")


class Answers:
    """A policy server without a model: four answers to everything."""

    def __init__(self):
        self.asked = []

    def fingerprint(self, policy):
        return f"of {policy}"

    def candidates(self, policy, rows, sampling_settings, *, k):
        self.asked += [row.instruction for row in rows]
        return [
            [Completion(row.id, f"answer {j}", f"of {policy}", sample=j) for j in range(k)]
            for row in rows
        ]


@contextmanager
def working(run, server=None):
    worker = Worker(run, load=lambda: server or Answers(), has_gpu=lambda: False)
    try:
        yield worker
    finally:
        worker.close()


def upload_of(run, store, worker):
    """The real thing, but for the tokenizer: a prompt of more than 300 characters is too long."""

    def contents():
        return run_contents.settings_of(run), lambda row: len(row.instruction) <= 300

    return PromptUpload(store, AddedAnswers(store, worker), contents)


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def until(true):
    ends = time.monotonic() + LONG
    while not true():
        assert time.monotonic() < ends, "it never came"
        time.sleep(0.02)


def splits_of(run):
    return RunPrompts(run, run_contents.settings_of(run)).splits


# --- the verdict ----------------------------------------------------------------------------------


def test_every_prompt_is_taken_or_counted_with_its_reason_before_anything_is_added(run, store):
    splits = splits_of(run)
    ppo, rank, sft = splits["ppo"][0], splits["rank"][0], splits["sft"][0]
    near_eval = splits["eval"][0].instruction + " now"
    sent = [
        *({"instruction": prompt.instruction, "output": "unused"} for prompt in NEW),
        {"instruction": NEW[0].instruction},
        {"instruction": ppo.instruction},
        {"instruction": sft.instruction},
        {"instruction": near_eval},
        {"instruction": rank.instruction},
        {"instruction": "x" * 301},
        {"instruction": ""},
        {"answer": 42},
    ]
    with working(run) as worker:
        upload = upload_of(run, store, worker)
        shown = upload.verdict(jsonl(sent), ".jsonl", "en")
        assert "2 of 10 rows can be added; 6 are refused, 2 cannot be used." in shown
        assert shown.count("<li>") == 6
        for line in (
            "1 repeated in the upload",
            "1 the same as a prompt of PPO",
            "1 the same as a prompt of SFT",
            "1 too near to a prompt of the evaluation",
            "1 to be ranked already",
            "1 too long for the base with an answer",
        ):
            assert line in shown
        assert near_eval in shown and f"↔ {splits['eval'][0].instruction}" in shown
        assert "Add 2 prompts" in shown and "upload.jsonl:9" in shown
        assert store.added_prompts() == [] and str(run.parent) not in shown
        chinese = upload.verdict(jsonl(sent), ".jsonl", "zh-CN")
        assert "10 行中有 2 行可以加入" in chinese


def test_where_nothing_may_be_added_there_is_no_button(run, store):
    sent = jsonl([{"instruction": splits_of(run)["eval"][0].instruction}])
    with working(run) as worker:
        upload = upload_of(run, store, worker)
        assert 'data-upload="add"' not in upload.verdict(sent, ".jsonl", "en")
        assert "0 prompts added" in upload.add(sent, ".jsonl", "en", actor="annotator:1")
    assert rows_of(store, Audit) == []


def test_files_and_pasted_text_are_read_alike(run, store, tmp_path):
    import pyarrow
    import pyarrow.parquet

    texts = [prompt.instruction for prompt in NEW]
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerows([["prompt"], *([text] for text in texts)])
    pyarrow.parquet.write_table(pyarrow.table({"instruction": texts}), tmp_path / "p.parquet")
    objects = [{"instruction": text} for text in texts]
    contents = [
        (jsonl(objects), ".jsonl"),
        (json.dumps(objects).encode(), ".json"),
        (table.getvalue().encode(), ".csv"),
        ((tmp_path / "p.parquet").read_bytes(), ".parquet"),
        (jsonl(objects), "pasted"),
        (json.dumps(objects).encode(), "pasted"),
        (f"  {texts[0]}\r\n\n{texts[1]}\n".encode(), "pasted"),
    ]
    with working(run) as worker:
        upload = upload_of(run, store, worker)
        for content, suffix in contents:
            taken = upload._screened(content, suffix).screening.taken
            assert [row.id for row in taken] == [row.id for row in NEW], suffix
        for content, suffix, why in (
            (b"\xff\xfe", "pasted", "UTF-8"),
            (b"", "pasted", "upload.jsonl"),
            (b"one\ntwo", ".txt", "must end in"),
            (b"[1, 2", ".json", "upload.json"),
            (jsonl([{"instruction": f"{i}"} for i in range(MAX_PROMPTS + 1)]), ".jsonl", "5,000"),
        ):
            with pytest.raises(UserError, match=why) as refused:
                upload.verdict(content, suffix, "en")
            assert "/tmp" not in str(refused.value) and str(tmp_path) not in str(refused.value)


def packed(suffix, folder):
    """A small file that unpacks to 64 MiB of one row, of many rows, or of one text many times."""
    import pyarrow
    import pyarrow.parquet

    if suffix == ".parquet":
        texts = pyarrow.array(["x" * 2**20] * 64).dictionary_encode()
        pyarrow.parquet.write_table(pyarrow.table({"instruction": texts}), folder / "p.parquet")
        return (folder / "p.parquet").read_bytes()
    row = json.dumps({"instruction": "x" * 1000}) + "\n"
    text = {
        ".jsonl.gz": row * 2**16,
        ".json.gz": "[" + row.replace("\n", ",") * 2**16 + row + "]",
        "one.jsonl.gz": json.dumps({"instruction": "x" * 2**26}),
    }[suffix]
    return gzip.compress(text.encode(), compresslevel=1)


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".json.gz", "one.jsonl.gz", ".parquet"])
def test_a_packed_file_is_read_no_further_than_its_limit(run, store, tmp_path, monkeypatch, suffix):
    """In one line, and in memory that does not grow with what it would unpack to."""
    limit = ReadLimit(rows=10**6, unpacked_bytes=4 * 2**20)
    monkeypatch.setattr(uploads, "LIMIT", limit)
    monkeypatch.setattr(uploads, "MAX_PROMPTS", 10**6)
    content, suffix = packed(suffix, tmp_path), suffix.removeprefix("one")
    assert len(content) < 2**20 + 2**19
    with working(run) as worker:
        upload = upload_of(run, store, worker)
        tracemalloc.start()
        try:
            with pytest.raises(UserError, match=r"^upload\S+: holds more than 4 MiB when unpacked"):
                upload.verdict(content, suffix, "en")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 40 * 2**20
    kept = uploads.Uploads(tmp_path / "uploads")
    for kind in ("rows", "prompts"):
        with pytest.raises(UserError, match="holds more than 4 MiB when unpacked"):
            kept.keep(content, kind, suffix)
    assert list((tmp_path / "uploads").iterdir()) == [], "nothing of it is kept"


def test_rows_are_counted_while_they_are_read(tmp_path):
    """Those that lie flat, as messages of one tree, and those that are broken included."""
    path = tmp_path / "rows.jsonl"
    flat = {"message_id": "1", "parent_id": None, "text": "Hi", "role": "prompter"}
    for row in (flat, {"instruction": "Hi"}, {"answer": 1}):
        path.write_bytes(jsonl({**row, **({"message_id": str(i)} if row is flat else {})}
                               for i in range(12)))  # fmt: skip
        read = []
        with pytest.raises(UserError, match="has more than 10 rows"):
            for number, _ in RowFile(path, limit=ReadLimit(10, 2**20)):
                read.append(number)
        assert len(read) <= 10


# --- into the queue -------------------------------------------------------------------------------


def test_what_is_added_is_answered_ranked_like_others_and_there_after_a_restart(run, tmp_path):
    sent, server = jsonl([{"instruction": row.instruction} for row in NEW]), Answers()
    path = run / "preferences.db"
    with Store(path) as store, working(run, server) as worker:
        upload = upload_of(run, store, worker)
        assert "2 prompts added" in upload.add(sent, ".jsonl", "en", actor="annotator:7")
        until(lambda: not store.added_prompts(unanswered=True))
        assert "2 to be ranked already" in upload.add(sent, ".jsonl", "en", actor="annotator:7")
        assert server.asked == [row.instruction for row in NEW]
        (entry,) = (row for row in rows_of(store, Audit) if row.action == "add_prompts")
        assert (entry.actor, entry.after) == ("annotator:7", {"added": 2, "refused": {}})
        assert "2 of them have answers" in upload.progress("en")
    with Store(path) as store:
        ann = store.add_annotator("ann", "long enough")
        tasks = [store.claim(ann), None]
        tasks[1] = store.claim(ann, holding=[tasks[0].id])
        assert {task.prompt.id for task in tasks} == {row.id for row in NEW}
        assert all(len(task.completions) == 4 for task in tasks)
    assert (run / "config.yaml").exists() and not (run / "uploads").exists()


def test_what_waits_for_answers_is_shown_and_can_be_taken_back(run, tmp_path):
    hostile = Instruction(apps.HOSTILE[0])
    rest = [Instruction(f"Count to {i} aloud.") for i in range(MAX_LISTED + 2)]
    with victim_of(run, tmp_path) as victim, victim.visitor("boss") as boss:
        store = victim.store
        (answered,) = candidates(1)
        store.add_prompts([answered[0], *rest, hostile, *NEW], actor="annotator:1", refused={})
        store.add_sets([answered], origin="test")
        shown = boss.get("/prompts").json()["progress"]
        assert "Without answers yet: 105" in shown and "5 older ones are not shown" in shown
        assert "&lt;img" in shown and "<img" not in shown and NEW[0].instruction in shown
        assert answered[0].instruction not in shown, "it can be browsed and left out"
        ids = [NEW[0].id, hostile.id, answered[0].id, "' OR 1=1 --"]
        reply = boss.post("/prompts?do=remove", json=ids)
        assert reply.status_code == 200 and "2 prompts taken back" in reply.json()["html"]
        assert NEW[0].instruction not in reply.json()["progress"]
        kept = {prompt.id for prompt in store.added_prompts()}
        assert kept == {answered[0].id, NEW[1].id, *(prompt.id for prompt in rest)}
        (entry,) = (row for row in rows_of(store, Audit) if row.action == "remove_prompts")
        assert entry.actor == f"annotator:{victim.boss}" and entry.after["removed"] == 2
        for body in ({"ids": ids}, "x", None, [1], [None]):
            assert boss.post("/prompts?do=remove", json=body).status_code == 422
        assert boss.post("/prompts?do=remove", content=b"[" * 10**5).status_code == 422
        with victim.visitor("ann") as ann:
            assert ann.post("/prompts?do=remove", json=[NEW[1].id]).status_code == 403
        # Taken back, it can be added again.
        assert store.add_prompts([NEW[0]], actor="annotator:1", refused={}) == 1


def test_an_app_that_was_killed_goes_on_with_the_answers(run, store):
    store.add_prompts(NEW, actor="annotator:1", refused={})
    with working(run) as worker:
        AddedAnswers(store, worker).start()
        until(lambda: not store.added_prompts(unanswered=True))


def test_what_is_taken_back_while_others_are_answered_is_not_answered(run, store):
    class Removing(Answers):
        def candidates(self, policy, rows, *args, **options):
            store.remove_prompts([NEW[1].id], actor="annotator:1")
            return super().candidates(policy, rows, *args, **options)

    store.add_prompts(NEW, actor="annotator:1", refused={})
    server = Removing()
    with working(run, server) as worker:
        answers = AddedAnswers(store, worker)
        answers.start()
        until(lambda: not answers.running)
    assert server.asked == [NEW[0].instruction]
    assert store.progress(0).sets == 1


def test_before_sft_prompts_wait(run, store):
    (run / "sft" / "adapter" / "adapter_config.json").unlink()
    with working(run) as worker:
        upload = upload_of(run, store, worker)
        sent = jsonl([{"instruction": NEW[0].instruction}])
        assert "1 prompts added" in upload.add(sent, ".jsonl", "en", actor="annotator:1")
        assert "once SFT is done" in upload.progress("en")
        assert worker.state.phase == "empty", "the base is not loaded for nothing"


def test_the_queue_is_topped_up_with_added_prompts_too(run, store):
    worker = Worker(run, load=Answers, has_gpu=lambda: False)
    worker.when_idle = lambda find_work: setattr(worker, "find_work", find_work)
    keep_filled(store, worker)
    server, stop = Answers(), SimpleNamespace(is_set=lambda: False)
    list(worker.find_work()(server, stop))
    assert len(server.asked) == 5 and worker.find_work() is None, "the rank split is answered"
    store.add_prompts(NEW, actor="annotator:1", refused={})
    list(worker.find_work()(server, stop))
    assert server.asked[5:] == [row.instruction for row in NEW] and worker.find_work() is None


# --- from outside ---------------------------------------------------------------------------------


@contextmanager
def victim_of(run, tmp_path):
    """An app with the upload, three accounts and tasks."""
    victim = attacks.Victim(tmp_path)
    with victim.store, working(run) as worker:
        upload = upload_of(run, victim.store, worker)
        tabs = [
            Tab("rank", apps.stand_in),
            Tab(
                "data",
                partial(data_tab, exports=apps.exports(tmp_path / "snapshots"), upload=True),
                admin=True,
            ),
        ]
        victim.app = apps.house(victim.store, tmp_path, tabs=tabs, own_routes=upload.routes())
        yield victim


def test_only_admins_upload_and_only_from_the_page(run, tmp_path):
    sent = jsonl([{"instruction": NEW[0].instruction}])
    posts = [f"/prompts?do={action}&suffix=.jsonl" for action in ("check", "add", "answer")]
    with victim_of(run, tmp_path) as victim:
        for name, status in (("ann", 403), ("", 401)):
            with victim.visitor(name) as client:
                for path in ("/prompts", "/prompts/"):
                    assert client.get(path).status_code in (status, 404, 307)
                assert client.get("/prompts").status_code == status
                for path in posts:
                    assert client.post(path, content=sent).status_code == status
        with victim.visitor("boss") as boss:
            for origin in ("https://evil.example", "null", ""):
                for path in posts:
                    forged = boss.post(path, content=sent, headers={"origin": origin})
                    assert forged.status_code == 403
            for suffix in ("", ".txt", "/../../x.jsonl", ".jsonl/../x", "pasted/..", ".jsonl\0"):
                query = {"do": "add", "suffix": suffix}
                assert boss.post("/prompts", content=sent, params=query).status_code == 422
            for action in ("", "drop", "check;add"):
                query = {"do": action, "suffix": ".jsonl"}
                assert boss.post("/prompts", content=sent, params=query).status_code == 422
            headers = {"content-length": str(2**40)}
            assert boss.post(posts[1], content=b"x", headers=headers).status_code == 413
            assert victim.store.added_prompts() == []
            hostile = jsonl([{"instruction": f"{apps.HOSTILE[0]} {'x' * 300}", apps.HOSTILE[0]: 1}])
            shown = boss.post(posts[0], content=hostile).json()["html"]
            assert "&lt;img" in shown and "<img" not in shown
            assert boss.post(posts[1], content=sent).status_code == 200
        (added,) = victim.store.added_prompts()
        assert added.instruction == NEW[0].instruction
        (entry,) = (row for row in rows_of(victim.store, Audit) if row.action == "add_prompts")
        assert entry.actor == f"annotator:{victim.boss}"


@pytest.mark.skipif(chromium() is None, reason=NO_CHROMIUM)
@pytest.mark.parametrize(
    ("language", "width"), [("en-GB", 1280), ("zh-CN", 390)], ids=["desktop", "phone"]
)
def test_an_admin_sees_the_verdict_and_adds_what_may_be_ranked(run, tmp_path, language, width):
    leaking = splits_of(run)["eval"][0].instruction
    file = tmp_path / "mine.csv"
    file.write_text(f"instruction\n{NEW[0].instruction}\n{leaking}\n")
    with (
        victim_of(run, tmp_path) as victim,
        apps.serving(victim.app) as home,
        browser() as opened,
        visit(opened, locale=language, viewport={"width": width, "height": 900}) as page,
    ):
        page.set_default_timeout(300_000)
        page.goto(home)
        page.fill("#name", "boss")
        page.fill("#password", attacks.PASSWORD)
        page.click("button")
        page.locator("[data-account]").wait_for()
        open_tab(page, "data", "en" if language == "en-GB" else language)
        page.locator(".prompt-upload summary").click()
        # 1. A file: what may not be ranked is counted, and nothing is added yet.
        page.set_input_files("#upload-file", str(file))
        page.locator("[data-upload=check]").click()
        page.locator("[data-upload=add]").wait_for()
        assert leaking in page.locator(".reasons").inner_text()
        assert victim.store.added_prompts() == []
        page.locator("[data-upload=add]").click()
        page.locator("[data-part=progress] p").wait_for()
        assert [row.instruction for row in victim.store.added_prompts()] == [NEW[0].instruction]
        # 2. Pasted text; another word in it, and the verdict is gone.
        page.fill("#upload-text", NEW[1].instruction)
        page.locator("[data-upload=check]").click()
        page.locator("[data-upload=add]").wait_for()
        page.locator("#upload-text").press("End")
        page.keyboard.type(" Now.")
        page.locator("[data-upload=add]").wait_for(state="detached")
        page.locator("[data-upload=check]").click()
        page.locator("[data-upload=add]").click()
        page.locator("[data-upload=add]").wait_for(state="detached")
        until(lambda: len(victim.store.added_prompts()) == 2)
        until(lambda: not victim.store.added_prompts(unanswered=True))
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        nothing_serious(page, colours=True)


def test_a_prompt_fits_where_the_base_has_room_for_an_answer_too(tiny_folder):
    from alpaca_rlhf.models.base import read_texts
    from alpaca_rlhf.models.batches import prompt_ids
    from alpaca_rlhf.settings import Sampling
    from alpaca_rlhf.stages.lengths import has_room

    base, row = read_texts(str(tiny_folder)), Instruction("Name a colour.")
    room = base.context - len(prompt_ids(base, "brief", row))
    settings = Loop(template="brief")
    for new_tokens, fits in ((room, True), (room + 1, False)):
        sampling = Sampling(max_new_tokens=new_tokens)
        assert has_room(base, replace(settings, sampling=sampling), row) == fits
    assert not has_room(base, settings, Instruction("a" * 10**7)), "without finding its tokens"


@pytest.mark.parametrize("limit", [None, ReadLimit(10**6, 2**24)])
def test_messages_of_several_row_groups_are_read(tmp_path, limit) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = [
        {"messages": [{"role": "user", "content": f"{i % 7}"}], "source": "here"}
        for i in range(700)
    ]
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=100)
    read = list(RowFile(path, limit=limit))
    assert read == list(enumerate(rows, 1))
