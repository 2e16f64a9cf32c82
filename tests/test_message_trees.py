"""OpenAssistant's flat messages: gathered into trees, with the line of each."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.data import FileAccount, Reading, ranked_prompts, read_rankings
from tests.mutations import tried

Row = dict[str, Any]


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def message(name: str, parent: str | None, text: str, **more: object) -> Row:
    """One message as the hub has it; people ask in those whose name has an even length."""
    role = "prompter" if len(name) % 2 == 0 else "assistant"
    row = {"message_id": name, "parent_id": parent, "role": role, "text": text, "rank": None}
    labels = {"name": ["quality"], "value": [0.5], "count": [3]}
    extra = {"lang": "en", "deleted": False, "tree_state": "ready_for_export", "labels": labels}
    return {**row, **extra, "emojis": {"name": [], "count": []}, **more}


TREE = [
    message("aa", None, "What?"),
    message("b", "aa", "This.", rank=1.0),
    message("c", "aa", "That.", rank=0.0),
    message("dd", "c", "And why?"),
    message("e", "dd", "So.", rank="0"),
    message("f", "dd", "Because.", rank=1),
    message("g", "dd", "Nobody ranked this."),
]
OTHER = [message("hh", None, "Who?"), message("i", "hh", "Ann."), message("j", "hh", "Bob.")]


def flat(tree: Row) -> list[Row]:
    """The messages of a nested tree, each as a row."""
    rows, stack = [], [(None, tree["prompt"])]
    while stack:
        parent, node = stack.pop()
        row = {name: value for name, value in node.items() if name != "replies"}
        rows.append({**row, "parent_id": parent})
        stack += [(row["message_id"], reply) for reply in reversed(node.get("replies") or [])]
    return rows


def test_messages_in_any_order_are_ranked_as_their_trees(tmp_path) -> None:
    rows = [TREE[at] for at in (4, 2, 0, 6, 1, 3, 5)]
    first, second = read_rankings(write(tmp_path / "a.jsonl", *rows))
    texts = {answer.id: answer.text for _, answers, _ in (first, second) for answer in answers}
    assert first[0].instruction == "What?" and not first[0].history
    assert [texts[name] for (name,) in first[2].tiers] == ["That.", "This."]
    assert second[0].instruction == "And why?" and second[0].history == (("What?", "That."),)
    assert [texts[name] for (name,) in second[2].tiers] == ["So.", "Because."]


def test_every_message_is_used_or_counted(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    lost = [message("kk", "nowhere", "Lost?"), message("l", "kk", "Lost too.", rank=0)]
    round_trip = [message("mm", "n", "Round?"), message("n", "mm", "Round.")]
    path = write(Path("a.jsonl"), *TREE, *OTHER, *lost, *round_trip)
    reading = Reading("rankings", account=FileAccount("a.jsonl"))
    assert len(ranked_prompts(path, reading)) == 2
    account = reading.account
    assert (account.rows, account.used) == (14, 7)
    assert account.left_out == {"unusable": 7}
    assert account.omitted == {"without a rank": 1}
    assert account.unread == {name: 10 for name in ("lang", "tree_state", "labels", "emojis")}
    code, said, _ = tried(["import", "a.jsonl", "--out", "out"])
    assert code == 0 and "14 rows read, 7 good (2 records), 7 not" in said
    manifest = json.loads(Path("out/manifest.json").read_text())
    assert manifest["rows_dropped"] == {
        "a message before it is not in the file, or is broken": 4,
        "no message of the tree has two replies with a rank": 3,
    }
    dropped = [json.loads(line)["place"] for line in Path("out/dropped.jsonl").open()]
    assert sorted(dropped) == sorted(f"a.jsonl:{line}" for line in range(8, 15))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"text": None}, "no format"),
        ({"text": 3}, "column `text` of a message must be text"),
        ({"message_id": "aa"}, "`message_id` is that of an earlier message"),
        ({"role": "owl"}, "must be prompter or assistant, got owl"),
        ({"rank": "first"}, "`rank` must be a whole number, got first"),
        ({"rank": 0.5}, "`rank` must be a whole number"),
        ({"rank": True}, "`rank` must be a whole number"),
        ({"deleted": "perhaps"}, "`deleted` of a message must be true or false"),
        ({"parent_id": 3}, "`parent_id` of a message must be text"),
        ({"images": ["x.png"]}, "column `images` is not supported"),
        ({"text": "half \ud800"}, "holds half of a surrogate pair"),
    ],
)
def test_a_bad_message_is_named_with_its_line(tmp_path, change, says) -> None:
    rows = [*TREE[:4], TREE[4] | change, *TREE[5:]]
    path = write(tmp_path / "a.jsonl", *OTHER, *rows)
    says = "column `text` of a message must be text" if says == "no format" else says
    with pytest.raises(UserError) as refusal:
        read_rankings(path)
    assert str(refusal.value).startswith(f"{path}:8: ") and says in str(refusal.value)
    reading = Reading("rankings", drop_broken=True)
    read_rankings(path, reading)
    assert reading.account.rows == reading.account.used + reading.account.left_out.total() == 10


def test_an_empty_question_is_named_with_its_line(tmp_path) -> None:
    path = write(tmp_path / "a.jsonl", *TREE[:3], TREE[3] | {"text": " "}, *TREE[4:])
    with pytest.raises(UserError, match=r"a\.jsonl:4: the human's last turn is empty"):
        read_rankings(path)


def test_columns_of_messages_are_renamed_and_left_out(tmp_path) -> None:
    rows = [{("body" if name == "text" else name): row[name] for name in row} for row in TREE]
    path = write(tmp_path / "a.jsonl", *rows)
    command = ["import", str(path), "--columns", "body=text,labels=-", "--out", str(tmp_path / "o")]
    code, said, err = tried(command)
    assert code == 0, err
    assert "2 records" in said and "`labels`" not in said and "`emojis` (7 rows)" in said


@pytest.mark.parametrize("container", ["parquet", "pandas", "dataset", "csv"])
def test_tables_of_messages(tmp_path, container) -> None:
    """Ranks that are floats with gaps, absent parents that are NaN, structs that are not read."""
    path = tmp_path / "a.parquet"
    if container == "parquet":
        import pyarrow
        from pyarrow import parquet

        rows = [row | {"rank": None if row["rank"] is None else int(row["rank"])} for row in TREE]
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif container == "pandas":
        import pyarrow
        from pyarrow import parquet

        rows = [
            row | {"rank": float("nan" if row["rank"] is None else row["rank"])} for row in TREE
        ]
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif container == "dataset":
        import datasets

        rows = [row | {"rank": None if row["rank"] is None else int(row["rank"])} for row in TREE]
        path = tmp_path / "saved"
        datasets.Dataset.from_list(rows).save_to_disk(str(path))
    else:
        path = tmp_path / "a.csv"
        lines = ["message_id,parent_id,role,text,rank,deleted"]
        names = lines[0].split(",")
        lines += [",".join(str("" if row[n] is None else row[n]) for n in names) for row in TREE]
        path.write_text("\n".join(lines))
    code, said, err = tried(["import", str(path), "--out", str(tmp_path / "out")])
    assert code == 0, err
    assert "7 rows read, 7 good (2 records), 0 not" in said and "1 without a rank" in said


def test_real_trees_give_the_same_rankings_as_messages(shared: Path, tmp_path) -> None:
    import gzip

    path = shared / "data" / "oasst_en_100_tree.jsonl.gz"
    trees = [json.loads(line) for line in gzip.open(path)]
    rows = [row for tree in trees for row in flat(tree)]
    assert len({row["message_id"] for row in rows}) == len(rows)
    firsts = [row["message_id"] for row in rows if row["parent_id"] is None]
    random.Random(0).shuffle(rows)
    rows.sort(key=lambda row: firsts.index(row["message_id"]) if row["parent_id"] is None else 999)
    messages = tmp_path / "messages.jsonl"
    write(messages, *rows)

    def contents(file: Path) -> list[object]:
        return [
            (prompt.instruction, prompt.history, sorted(ranks(answers, ranking)))
            for prompt, answers, ranking in read_rankings(file)
        ]

    def ranks(answers, ranking):
        texts = {answer.id: answer.text for answer in answers}
        return [(at, texts[name]) for at, tier in enumerate(ranking.tiers) for name in tier]

    assert sorted(map(repr, contents(messages))) == sorted(map(repr, contents(path)))
    assert len(contents(messages)) == 212
