"""A snapshot: the verdicts of a moment as files, which training reads instead of the database.

    manifest.json    what it is, with the sha256 of every file
    rankings.jsonl   a ranking a line, with its prompt and completions; canonical JSON
    pairs.jsonl      the pairs that they decide, as TRL's trainers read them
    rankings.csv     for a spreadsheet
    README.md        so that `datasets.load_dataset(folder)` finds the configurations

The folder is whole or not there at all.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import IO, Any

from alpaca_rlhf import __version__
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.files import json_text, new_folder
from alpaca_rlhf.core.records import Completion, Instruction, Ranking
from alpaca_rlhf.preferences.rankings import JUDGE

SCHEMA = 1
KIND = "alpaca_rlhf.snapshot"
MANIFEST, RANKINGS, PAIRS, TABLE = "manifest.json", "rankings.jsonl", "pairs.jsonl", "rankings.csv"
"""Its files."""

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
_COLUMNS = ("assignment", "annotator", "prompt", "order", "all_bad", "seconds", "comment")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


@dataclass(frozen=True)
class Manifest:
    """What a snapshot holds."""

    rankings: int
    """Rankings."""
    judged: int
    """Those of them by judges."""
    pairs: int
    """Pairs that they decide, those of equal texts left out."""
    max_ranking: int
    """The newest ranking of the database then."""
    created: str
    """When, in UTC."""
    sha256: str
    """Of `rankings.jsonl`, which is what a reward model is trained on."""


def write(
    folder: Path, verdicts: Iterable[Mapping[str, Any]], *, max_ranking: int, created: str
) -> Manifest:
    """Write a snapshot, one ranking in memory at a time.

    Args:
        folder: Where; nothing may be there.
        verdicts: Rows as `reading.verdicts` gives them.
        max_ranking: The newest ranking of the database.
        created: When.

    Raises:
        UserError: There is something already, or it cannot be written.
    """
    rankings = judged = pairs = 0
    with new_folder(folder) as inside, ExitStack() as stack:
        files = {name: stack.enter_context(_File(inside / name)) for name in (RANKINGS, PAIRS)}
        files[TABLE] = stack.enter_context(_File(inside / TABLE))
        files[TABLE].add(_csv(_COLUMNS))
        for row in verdicts:
            files[RANKINGS].add(_canonical(_ranking(row)) + "\n")
            files[TABLE].add(_csv(_cells(row)))
            lines = _pairs(row)
            files[PAIRS].add("".join(lines))
            pairs += len(lines)
            rankings += 1
            judged += row["annotator"].startswith(JUDGE)
        stack.close()
        sums = {name: one.digest.hexdigest() for name, one in files.items()}
        made = Manifest(rankings, judged, pairs, max_ranking, created, sums[RANKINGS])
        facts = {"kind": KIND, "schema": SCHEMA, "version": __version__, **asdict(made)}
        text = json_text(facts | {"files": sums}, MANIFEST, indent=2) + "\n"
        (inside / MANIFEST).write_text(text, encoding="utf-8")
        (inside / "README.md").write_text(_README, encoding="utf-8")
    return made


def manifest_of(path: Path) -> Path | None:
    """The manifest of a snapshot, given its folder or the manifest itself; None if it is none."""
    path = Path(path)
    if path.is_dir():
        return path / MANIFEST
    return path if path.name == MANIFEST else None


def read_manifest(path: Path) -> Manifest:
    """What a snapshot holds, after comparing its rankings with their sha256.

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
        made = Manifest(**{name: facts[name] for name in Manifest.__dataclass_fields__})
        with (Path(file or path).parent / RANKINGS).open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: is no snapshot that can be read ({error}); export one on the Data tab"
        ) from None
    if found != made.sha256:
        raise UserError(
            f"{Path(file or path).parent / RANKINGS}: was changed since it was exported (sha256 "
            f"{found[:12]}, the manifest says {made.sha256[:12]}); export it anew"
        )
    return made


def read_snapshot(path: Path) -> list[tuple[Instruction, list[Completion], Ranking]]:
    """All rankings of a snapshot, each with its prompt and completions.

    Args:
        path: Its folder, or its `manifest.json`.

    Raises:
        UserError: It is no snapshot, or was changed since it was written.
    """
    return list(_rows(path))


def _rows(path: Path) -> Iterator[tuple[Instruction, list[Completion], Ranking]]:
    read_manifest(path)
    file = manifest_of(path)
    assert file is not None
    with (file.parent / RANKINGS).open(encoding="utf-8") as stream:
        for line in stream:
            row = json.loads(line)
            prompt = Instruction(
                row["instruction"],
                row["input"],
                source=row["source"],
                history=tuple((user, reply) for user, reply in row["history"]),
            )
            own = {
                one.pop("id"): Completion(prompt_id=prompt.id, **one) for one in row["completions"]
            }
            stars: dict[str, dict[str, int]] = {}
            for star in row["stars"]:
                stars.setdefault(own[star["completion"]].id, {})[star["criterion"]] = star["stars"]
            yield (
                prompt,
                list(own.values()),
                Ranking(
                    prompt.id,
                    tuple(tuple(own[one].id for one in tier) for tier in row["tiers"]),
                    row["annotator"],
                    stars,
                    row["duration_s"],
                    row["revision"],
                ),
            )


class _File:
    """A file with the running sha256 of what goes into it."""

    def __init__(self, path: Path) -> None:
        self.digest = hashlib.sha256()
        self._path = path
        self._stream: IO[bytes]

    def __enter__(self) -> _File:
        self._stream = self._path.open("wb", buffering=2**20)
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def add(self, text: str) -> None:
        data = text.encode()
        self.digest.update(data)
        self._stream.write(data)


def _canonical(row: object) -> str:
    return json.dumps(
        row, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")
    )


def _ranking(row: Mapping[str, Any]) -> dict[str, Any]:
    """A line of `rankings.jsonl`. Every line has the same columns, as `datasets` wants it."""
    kept = ("annotator", "instruction", "input", "history", "source", "completions", "revision")
    more = ("tiers", "all_bad", "comment", "input_method", "created_ms")
    stars = [
        {"completion": one, "criterion": name, "stars": given}
        for one, own in sorted(row["criteria"].items())
        for name, given in sorted(own.items())
    ]
    return {
        "assignment": row["id"],
        **{name: row[name] for name in (*kept, *more)},
        "stars": stars,
        "duration_s": row["duration_ms"] / 1000,
    }


def _pairs(row: Mapping[str, Any]) -> list[str]:
    """Lines of `pairs.jsonl`, as TRL's conversational preference data with an explicit prompt.

    Canonical too, from parts that are made once: K completions stand in K (K - 1) / 2 pairs.
    """
    texts = {one["id"]: one["text"] for one in row["completions"]}
    said = {key: _canonical([_said("assistant", text)]) for key, text in texts.items()}
    asked = "\n\n".join(part for part in (row["instruction"], row["input"]) if part)
    prompt = [
        message
        for user, reply in row["history"]
        for message in (_said("user", user), _said("assistant", reply))
    ] + [_said("user", asked)]
    middle = f',"prompt":{_canonical(prompt)},"rejected":'
    return [
        f'{{"chosen":{said[one]}{middle}{said[other]}}}\n'
        for better, worse in combinations(row["tiers"], 2)
        for one in better
        for other in worse
        if texts[one] != texts[other]
    ]


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _cells(row: Mapping[str, Any]) -> list[str]:
    number = {one["id"]: str(at) for at, one in enumerate(row["completions"], 1)}
    order = " > ".join(" = ".join(number[one] for one in tier) for tier in row["tiers"])
    return [
        str(row["id"]),
        row["annotator"],
        row["instruction"],
        order,
        "yes" if row["all_bad"] else "no",
        str(row["duration_ms"] / 1000),
        row["comment"],
    ]


def _csv(cells: Iterable[str]) -> str:
    """One line of a table in which no cell is a formula: a spreadsheet runs those it opens."""
    line = io.StringIO()
    csv.writer(line, quoting=csv.QUOTE_ALL).writerow(
        f"'{one}" if one.lstrip(" ").startswith(_FORMULA) else one for one in cells
    )
    return line.getvalue()
