"""A folder of data made ready for others: JSON lines, Parquet or a `datasets` folder, with a card.

What can be exported: a folder that `import` made, a run that holds a generation, and a folder of
splits. All rows pass through the readers again, so nothing broken leaves the house, and the sha256
in a manifest must be that of its file.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.files import atomic_write, new_folder, writing
from alpaca_rlhf.core.provenance import sha256_of
from alpaca_rlhf.data.readers.data_card import card_of
from alpaca_rlhf.data.readers.detection import FORMATS, Columns, DetectedFormat, Format, Kind
from alpaca_rlhf.data.readers.formats import instructions_of
from alpaca_rlhf.data.readers.importing import MANIFEST, LineFile, RowTally, refuse_broken
from alpaca_rlhf.data.readers.rows import RowFile

Target = Literal["datasets", "jsonl", "parquet"]
"""What to make."""

SPLITS = ("sft", "rank", "ppo", "eval")
"""Files of a folder of splits, without their ending."""

_BATCH_ROWS, _BATCH_BYTES = 5000, 2**24
_TASKS = DetectedFormat(
    Format(
        "prompts",
        "instructions",
        "",
        lambda row: True,
        lambda row, source: [one.to_json() for one in instructions_of(row, source)],
    ),
    guessed=False,
)
_LOOKS: dict[Kind, DetectedFormat] = {
    "instructions": _TASKS,
    "prompts": _TASKS,
    "pairs": DetectedFormat(FORMATS["chosen-rejected"], guessed=False),
    "rankings": DetectedFormat(FORMATS["ranking-list"], guessed=False),
}


@dataclass(frozen=True)
class Exportable:
    """What a folder holds for others."""

    kind: Kind
    """What its records are."""
    splits: dict[str, Path]
    """Files of records, by the name of their split."""
    manifest: Mapping[str, Any]
    """What the folder says of itself."""


def exportable(folder: Path) -> Exportable:
    """Look into a folder.

    Raises:
        UserError: It holds nothing to export, or a file is not the one that the manifest knows.
    """
    for place in (folder, folder / "generate"):
        if (place / MANIFEST).is_file():
            return _with_manifest(place)
    found = {name: folder / f"{name}.jsonl" for name in SPLITS}
    found = {name: path for name, path in found.items() if path.is_file() and path.stat().st_size}
    if not found:
        raise UserError(
            f"{folder}: holds nothing to export; give a folder that `import` made, a run with a "
            "generation, or a folder of splits"
        )
    return Exportable("instructions", found, {})


def export(
    found: Exportable,
    out: Path,
    to: Target,
    *,
    note: Callable[[str, RowTally], None] = lambda split, tally: None,
) -> dict[str, int]:
    """Write all splits and the card to a new folder.

    Args:
        found: What to export.
        out: The folder; nothing may be there yet.
        to: What to make.
        note: Called after each record with the name of its split.

    Returns:
        Records by split.

    Raises:
        UserError: A row is broken; the folder cannot be written.
    """
    tallies = {name: RowTally(RowFile(path)) for name, path in found.splits.items()}

    def records(split: str) -> Iterator[Columns]:
        tally = tallies[split]
        for record in tally.records_of(_LOOKS[found.kind]):
            yield record
            note(split, tally)
        refuse_broken([tally], allowed=False)

    with new_folder(out) as folder:
        if to == "jsonl":
            _write_jsonl(folder / "data", tallies, records)
        elif to == "parquet":
            _write_parquet(folder / "data", found.kind, tallies, records)
        else:
            _write_datasets(folder, found, tallies, records)
        counts = {name: tally.records for name, tally in tallies.items()}
        atomic_write(folder / "README.md", card_of(found.kind, counts, found.manifest, to))
    return counts


def _with_manifest(place: Path) -> Exportable:
    path = place / MANIFEST
    try:
        manifest = json.loads(path.read_text())
        if "kind" in manifest:
            kind, file, sha256 = manifest["kind"], str(manifest["file"]), manifest["sha256"]
        else:
            kind, file, sha256 = "instructions", "rows.jsonl", None
        if kind not in _LOOKS or Path(file).name != file:
            raise ValueError(kind)
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path}: is no manifest of ours, or of another version") from None
    rows = place / file
    if not rows.is_file():
        raise UserError(f"{rows}: is missing; run again what makes it")
    if sha256 is not None and sha256_of(rows) != sha256:
        raise UserError(f"{rows}: is not the file that {path} knows; import it anew")
    return Exportable(kind, {"train": rows}, manifest)


def _write_jsonl(
    folder: Path, splits: Mapping[str, Any], records: Callable[[str], Iterator[Columns]]
) -> None:
    with writing(folder):
        folder.mkdir()
    for name in splits:
        with LineFile(folder / f"{name}.jsonl") as lines:
            for record in records(name):
                lines.write(json.dumps(record, ensure_ascii=False))


def _write_parquet(
    folder: Path, kind: Kind, splits: Mapping[str, Any], records: Callable[[str], Iterator[Columns]]
) -> None:
    from pyarrow import parquet

    with writing(folder):
        folder.mkdir()
        for name in splits:
            with parquet.ParquetWriter(folder / f"{name}.parquet", _schema(kind)) as writer:
                for batch in _batches(records(name), kind):
                    writer.write_batch(batch)


def _write_datasets(
    folder: Path,
    found: Exportable,
    splits: Mapping[str, Any],
    records: Callable[[str], Iterator[Columns]],
) -> None:
    import datasets
    from pyarrow import ipc

    datasets.disable_progress_bars()
    with writing(folder), tempfile.TemporaryDirectory(dir=folder.parent) as beside:
        made = {}
        for name in splits:
            path = Path(beside) / f"{name}.arrow"
            with ipc.new_stream(str(path), _schema(found.kind)) as writer:
                for batch in _batches(records(name), found.kind):
                    writer.write_batch(batch)
            made[name] = datasets.Dataset.from_file(str(path))
            made[name].info.license = str(found.manifest.get("licence", ""))
        whole = next(iter(made.values())) if len(made) == 1 else datasets.DatasetDict(made)
        whole.save_to_disk(str(folder))


def _batches(records: Iterator[Columns], kind: Kind) -> Iterator[Any]:
    """Record batches, bounded in rows and in bytes."""
    import pyarrow

    schema = _schema(kind)
    waiting: list[Columns] = []
    size = 0
    for record in records:
        waiting.append(record)
        size += sum(len(str(value)) for value in record.values())
        if len(waiting) >= _BATCH_ROWS or size >= _BATCH_BYTES:
            yield pyarrow.RecordBatch.from_pylist(waiting, schema=schema)
            waiting, size = [], 0
    if waiting:
        yield pyarrow.RecordBatch.from_pylist(waiting, schema=schema)


def _schema(kind: Kind) -> Any:
    """Columns of a kind, the same whatever the rows hold."""
    import pyarrow

    text, texts = pyarrow.string(), pyarrow.list_(pyarrow.string())
    columns = {"instruction": text, "input": text}
    if kind in ("instructions", "prompts"):
        columns |= {"output": text, "source": text, "history": pyarrow.list_(texts)}
    elif kind == "pairs":
        columns |= {"chosen": text, "rejected": text, "source": text, "margin": pyarrow.float64()}
    else:
        columns |= {"responses": texts, "ranks": pyarrow.list_(pyarrow.int64())}
        columns |= {"annotator": text, "source": text}
    return pyarrow.schema(list(columns.items()))
