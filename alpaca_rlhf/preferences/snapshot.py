"""A snapshot: the verdicts of a moment as files, which training reads instead of the database.

    manifest.json    what it is, with the sha256 of every file
    rankings.jsonl   a ranking a line, with its prompt and completions; canonical JSON
    pairs.jsonl      the pairs that they decide, as TRL's trainers read them
    demonstrations.jsonl       better answers that people wrote, as instructions for a new run
    demonstration_pairs.jsonl  each of them above the answers that it surpasses, as `pairs.jsonl`
    thumbs.jsonl     replies of chats with a thumb, as TRL's trainers read labelled completions
    guidelines.jsonl           every version of the guidelines, by its number in `rankings.csv`
    rankings.csv     for a spreadsheet; the only one with times and the numbers of the database
    README.md        so that `datasets.load_dataset(folder)` finds the configurations

The bytes of `rankings.jsonl` and `pairs.jsonl` depend on what was said, not on when or in which
order it arrived. The folder is whole or not there at all.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from alpaca_rlhf import __version__
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.files import json_text, new_folder, writing
from alpaca_rlhf.core.prompts import chat_messages
from alpaca_rlhf.core.records import Completion, Instruction, Ranking
from alpaca_rlhf.preferences.judges import JUDGE
from alpaca_rlhf.preferences.stored_text import restored_history

if TYPE_CHECKING:
    from alpaca_rlhf.preferences.guidelines import Guidelines  # loads SQLAlchemy

SCHEMA = 1
KIND = "alpaca_rlhf.snapshot"
MANIFEST, RANKINGS, PAIRS, TABLE = "manifest.json", "rankings.jsonl", "pairs.jsonl", "rankings.csv"
"""Its files."""
DEMONSTRATIONS, DEMONSTRATION_PAIRS = "demonstrations.jsonl", "demonstration_pairs.jsonl"
THUMBS, GUIDELINES = "thumbs.jsonl", "guidelines.jsonl"
"""Its files of better answers, thumbs and guidelines, which are no part of the rankings."""
SOURCE = "demonstration"
"""`Instruction.source` of a better answer."""

Ranked = tuple[Instruction, list[Completion], Ranking]
"""A ranking with its prompt and its completions."""

_README = f"""---
configs:
- config_name: pairs
  data_files: {PAIRS}
  default: true
- config_name: rankings
  data_files: {RANKINGS}
---

Rankings of completions, exported by alpaca-rlhf. `{MANIFEST}` has the sha256 of every file.
"""
_HEADER = (
    "assignment",
    "annotator",
    "prompt",
    "order",
    "all_bad",
    "seconds",
    "comment",
    "ranked_at",
    "guidelines",
)
_COLUMNS = (
    "annotator",
    "instruction",
    "input",
    "history",
    "source",
    "completions",
    "revision",
    "tiers",
    "all_bad",
    "comment",
    "input_method",
)
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")


@dataclass(frozen=True)
class Manifest:
    """The contents of a snapshot in figures."""

    rankings: int
    """Rankings."""
    judged: int
    """Those of them by judges."""
    pairs: int
    """Pairs that they decide, those of equal texts left out."""
    max_ranking: int
    """The newest ranking of the database at that moment."""
    created: str
    """When, in UTC."""
    sha256: str
    """Of `rankings.jsonl`, which is what a reward model is trained on."""
    demonstrations: int = 0
    """Better answers that people wrote; no pair of theirs is in `pairs`."""
    demonstration_pairs: int = 0
    """Pairs of a better answer and one that it surpasses."""
    thumbs: int = 0
    """Replies of chats with a thumb up or down."""


@dataclass(frozen=True)
class Apart:
    """Everything in a snapshot that is no ranking."""

    demonstrations: Iterable[Mapping[str, Any]] = ()
    """Rows as `demonstrations.counted` gives them, in its order."""
    thumbs: Iterable[Mapping[str, Any]] = ()
    """Rows as `chats.thumbs` gives them, in its order."""
    guidelines: Iterable[Guidelines] = ()
    """All versions, the oldest first."""


def write(
    folder: Path,
    verdicts: Iterable[Mapping[str, Any]],
    apart: Apart = Apart(),
    *,
    max_ranking: int,
    created: str,
) -> Manifest:
    """Write a snapshot, one ranking in memory at a time.

    Args:
        folder: Where; nothing may be there.
        verdicts: Rows as `reading.verdicts` gives them, in its order.
        apart: Better answers, thumbs and guidelines.
        max_ranking: The newest ranking of the database.
        created: When.

    Raises:
        UserError: There is something already, or it cannot be written.
    """
    rankings = judged = pairs = n_demonstrations = n_demonstration_pairs = n_thumbs = 0
    with writing(folder), new_folder(folder) as inside, ExitStack() as stack:
        # 1. A file of each kind, hashed as it is written.
        names = (RANKINGS, PAIRS, TABLE, DEMONSTRATIONS, DEMONSTRATION_PAIRS, THUMBS, GUIDELINES)
        files = {name: stack.enter_context(_HashedFile(inside / name)) for name in names}
        files[TABLE].add(_csv(_HEADER))
        # 2. Add each ranking to rankings, pairs and table.
        for row in verdicts:
            files[RANKINGS].add(_canonical(_ranking(row)) + "\n")
            files[TABLE].add(_csv(_cells(row)))
            lines = _pairs(row)
            files[PAIRS].add("".join(lines))
            pairs += len(lines)
            rankings += 1
            judged += row["annotator"].startswith(JUDGE)
        # 3. Better answers, thumbs and guidelines, apart.
        for row in apart.demonstrations:
            files[DEMONSTRATIONS].add(_canonical(_instruction(row)) + "\n")
            lines = _demonstration_pairs(row)
            files[DEMONSTRATION_PAIRS].add("".join(lines))
            n_demonstrations += 1
            n_demonstration_pairs += len(lines)
        for row in apart.thumbs:
            completion = [_message("assistant", row["text"])]
            labelled = {"prompt": _prompt_messages(row), "completion": completion}
            files[THUMBS].add(_canonical(labelled | {"label": row["up"]}) + "\n")
            n_thumbs += 1
        for version in apart.guidelines:
            row = {"version": version.version, "text": version.text}
            files[GUIDELINES].add(_canonical(row) + "\n")
        # 4. Describe them in the manifest, once all their bytes are written.
        stack.close()
        sums = {name: file.digest.hexdigest() for name, file in files.items()}
        manifest = Manifest(
            rankings,
            judged,
            pairs,
            max_ranking,
            created,
            sums[RANKINGS],
            n_demonstrations,
            n_demonstration_pairs,
            n_thumbs,
        )
        facts = {"kind": KIND, "schema": SCHEMA, "version": __version__, **asdict(manifest)}
        text = json_text(facts | {"files": sums}, MANIFEST, indent=2) + "\n"
        (inside / MANIFEST).write_text(text, encoding="utf-8")
        (inside / "README.md").write_text(_README, encoding="utf-8")
    return manifest


def manifest_of(path: Path) -> Path | None:
    """The manifest of a snapshot, given its folder or the manifest itself; None if it is none."""
    path = Path(path)
    if path.is_dir():
        return path / MANIFEST
    return path if path.name == MANIFEST else None


def read_manifest(path: Path) -> Manifest:
    """The manifest of a snapshot, after comparing its rankings with their sha256.

    Raises:
        UserError: It is no snapshot, of a newer version, or was changed since it was written.
    """
    file = manifest_of(path)
    try:
        facts = json.loads((file or path).read_text(encoding="utf-8"))
        if not isinstance(facts, dict) or facts.get("kind") != KIND:
            raise ValueError("it is no manifest")
        if facts["schema"] > SCHEMA:
            raise UserError(f"{file}: was made by a newer version; update alpaca-rlhf")
        # Earlier versions counted nothing apart.
        apart: dict[str, Any] = {"demonstrations": 0, "demonstration_pairs": 0, "thumbs": 0}
        columns = apart | facts
        manifest = Manifest(**{name: columns[name] for name in Manifest.__dataclass_fields__})
        with (Path(file or path).parent / RANKINGS).open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: is no snapshot that can be read ({error}); export one on the Data tab"
        ) from None
    if sha256 != manifest.sha256:
        raise UserError(
            f"{Path(file or path).parent / RANKINGS}: was changed since it was exported (sha256 "
            f"{sha256[:12]}, the manifest says {manifest.sha256[:12]}); export it anew"
        )
    return manifest


def read_snapshot(
    path: Path, sampled: Iterable[tuple[Instruction, Sequence[Completion]]] = ()
) -> list[Ranked]:
    """All rankings of a snapshot, each with its prompt and completions.

    Args:
        path: Its folder, or its `manifest.json`.
        sampled: Prompts and completions of a run, in which its own rankings are given: the database
            replaces what it cannot hold, such as zero bytes, and so would the texts here.

    Raises:
        UserError: It is no snapshot, or was changed since it was written.
    """
    exact = {
        completion.id: (prompt, completion)
        for prompt, completions in sampled
        for completion in completions
    }
    return list(_rows(path, exact))


def _rows(path: Path, exact: Mapping[str, tuple[Instruction, Completion]]) -> Iterator[Ranked]:
    read_manifest(path)
    file = manifest_of(path)
    assert file is not None
    with (file.parent / RANKINGS).open(encoding="utf-8") as stream:
        for line in stream:
            row = json.loads(line)
            # 1. The run's own texts where it sampled all of them, otherwise the snapshot's.
            keys = [columns["id"] for columns in row["completions"]]
            if all(key in exact for key in keys):
                prompt = exact[keys[0]][0]
                completions = {key: exact[key][1] for key in keys}
            else:
                prompt = Instruction(
                    row["instruction"],
                    row["input"],
                    source=row["source"],
                    **restored_history(row["history"]),
                )
                completions = {
                    columns.pop("id"): Completion(prompt_id=prompt.id, **columns)
                    for columns in row["completions"]
                }
            # 2. The verdict, by the ids of these texts: a text that the database had to change
            #    hashes to another id than its key.
            criteria: dict[str, dict[str, int]] = {}
            for star in row["stars"]:
                stars = criteria.setdefault(completions[star["completion"]].id, {})
                stars[star["criterion"]] = star["stars"]
            tiers = tuple(tuple(completions[key].id for key in tier) for tier in row["tiers"])
            ranking = Ranking(
                prompt.id, tiers, row["annotator"], criteria, row["duration_s"], row["revision"]
            )
            yield prompt, list(completions.values()), ranking


class _HashedFile:
    """A file with the running sha256 of what goes into it."""

    def __init__(self, path: Path) -> None:
        self.digest = hashlib.sha256()
        self._path = path
        self._stream: IO[bytes]

    def __enter__(self) -> _HashedFile:
        self._stream = self._path.open("wb", buffering=2**20)
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def add(self, text: str) -> None:
        """Append text, and take it into the hash."""
        data = text.encode()
        self.digest.update(data)
        self._stream.write(data)


def _canonical(row: object) -> str:
    # One spelling of each row, so that the same rankings have the same sha256.
    return json.dumps(
        row, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")
    )


def _ranking(row: Mapping[str, Any]) -> dict[str, Any]:
    """A line of `rankings.jsonl`. Every line has the same columns, as `datasets` requires."""
    stars = [
        {"completion": key, "criterion": criterion, "stars": count}
        for key, by_criterion in sorted(row["criteria"].items())
        for criterion, count in sorted(by_criterion.items())
    ]
    columns = {name: row[name] for name in _COLUMNS}
    return columns | {"stars": stars, "duration_s": row["duration_ms"] / 1000}


def _pairs(row: Mapping[str, Any]) -> list[str]:
    """Lines of `pairs.jsonl`, as TRL's conversational preference data with an explicit prompt.

    Canonical too, from parts that are made once: K completions stand in K (K - 1) / 2 pairs.
    """
    texts = {columns["id"]: columns["text"] for columns in row["completions"]}
    replies = {key: _canonical([_message("assistant", text)]) for key, text in texts.items()}
    middle = f',"prompt":{_canonical(_prompt_messages(row))},"rejected":'
    return [
        f'{{"chosen":{replies[chosen]}{middle}{replies[rejected]}}}\n'
        for better, worse in combinations(row["tiers"], 2)
        for chosen in better
        for rejected in worse
        if texts[chosen] != texts[rejected]
    ]


def _prompt_messages(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """The prompt of a row as messages: the system text, the earlier turns, and the question."""
    context = restored_history(row["history"])
    return chat_messages(Instruction(row["instruction"], row["input"], **context))


def _instruction(row: Mapping[str, Any]) -> dict[str, Any]:
    """A line of `demonstrations.jsonl`, which SFT reads as a file of instructions."""
    return Instruction(
        row["instruction"],
        row["input"],
        row["text"],
        source=SOURCE,
        **restored_history(row["history"]),
    ).to_json()


def _demonstration_pairs(row: Mapping[str, Any]) -> list[str]:
    """Lines of `demonstration_pairs.jsonl`: the better answer above each that was shown."""
    prompt, chosen = _prompt_messages(row), [_message("assistant", row["text"])]
    return [
        _canonical({"chosen": chosen, "prompt": prompt, "rejected": [_message("assistant", text)]})
        + "\n"
        for text in row["surpassed"]
    ]


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _cells(row: Mapping[str, Any]) -> list[str]:
    """A line of `rankings.csv`."""
    number = {columns["id"]: str(n) for n, columns in enumerate(row["completions"], 1)}
    order = " > ".join(" = ".join(number[key] for key in tier) for tier in row["tiers"])
    ranked_at = datetime.fromtimestamp(row["created_ms"] / 1000, UTC)
    return [
        str(row["id"]),
        row["annotator"],
        row["instruction"],
        order,
        "yes" if row["all_bad"] else "no",
        str(row["duration_ms"] / 1000),
        row["comment"],
        ranked_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        str(row.get("guideline") or ""),  # of judges, and before there were any, none
    ]


def _csv(cells: Iterable[str]) -> str:
    """One line of a table in which no cell is a formula: a spreadsheet runs those it opens."""
    line = io.StringIO()
    # A leading apostrophe makes a spreadsheet show a formula as text.
    csv.writer(line, quoting=csv.QUOTE_ALL).writerow(
        f"'{cell}" if cell.lstrip(" ").startswith(_FORMULA_STARTS) else cell for cell in cells
    )
    return line.getvalue()
