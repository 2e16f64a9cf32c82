"""Export of data for others: JSON lines, Parquet or a `datasets` folder, with a data card.

A folder made by `import`, a run that holds a generation, and a folder of splits can be exported.
All rows pass through the readers again, so no broken row is exported, and the sha256 in a manifest
must be that of its file.
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
from alpaca_rlhf.data.readers.detection import (
    FORMATS,
    Columns,
    Converted,
    DetectedFormat,
    Format,
    Kind,
)
from alpaca_rlhf.data.readers.formats import instructions_of
from alpaca_rlhf.data.readers.importing import MANIFEST, LineFile, RowTally, refuse_broken
from alpaca_rlhf.data.readers.rows import RowFile

Target = Literal["datasets", "jsonl", "parquet"]
"""Formats of an export."""

SPLITS = ("sft", "rank", "ppo", "dev", "eval")
"""Files of a folder of splits, without their suffix."""

_BATCH_ROWS, _BATCH_CHARS = 5000, 2**24
_TASKS = DetectedFormat(
    Format(
        "prompts",
        "instructions",
        "",
        lambda row: True,
        lambda row, source: Converted([task.to_json() for task in instructions_of(row, source)]),
    ),
    guessed=False,
)
_FORMATS_OF_KINDS: dict[Kind, DetectedFormat] = {
    "instructions": _TASKS,
    "prompts": _TASKS,
    "pairs": DetectedFormat(FORMATS["chosen-rejected"], guessed=False),
    "rankings": DetectedFormat(FORMATS["ranking-list"], guessed=False),
}


@dataclass(frozen=True)
class Exportable:
    """The data of a folder that can be exported."""

    kind: Kind
    """Kind of its records."""
    splits: dict[str, Path]
    """Files of records, by the name of their split."""
    manifest: Mapping[str, Any]
    """Manifest of the folder; empty for splits."""


def exportable(folder: Path) -> Exportable:
    """Find the data of a folder that can be exported.

    Raises:
        UserError: There is none, or a file does not match its manifest.
    """
    for data_folder in (folder, folder / "generate"):
        if (data_folder / MANIFEST).is_file():
            return _with_manifest(data_folder)
    paths = {name: folder / f"{name}.jsonl" for name in SPLITS}
    splits = {name: path for name, path in paths.items() if path.is_file() and path.stat().st_size}
    if not splits:
        raise UserError(
            f"{folder}: holds nothing to export; give a folder that `import` made, a run with a "
            "generation, or a folder of splits"
        )
    return Exportable("instructions", splits, {})


def export(
    data: Exportable,
    out: Path,
    to: Target,
    *,
    note: Callable[[str, RowTally], None] = lambda split, tally: None,
) -> dict[str, int]:
    """Write all splits and the data card to a new folder.

    Args:
        data: Data to export.
        out: The folder; it must not exist yet.
        to: Format of the export.
        note: Called after each record with the name of its split.

    Returns:
        Records by split.

    Raises:
        UserError: A row is broken, or the folder cannot be written.
    """
    tallies = {name: RowTally(RowFile(path)) for name, path in data.splits.items()}

    def records(split: str) -> Iterator[Columns]:
        tally = tallies[split]
        for record in tally.records_of(_FORMATS_OF_KINDS[data.kind]):
            yield record
            note(split, tally)
        refuse_broken([tally], allowed=False)

    with new_folder(out) as folder:
        if to == "jsonl":
            _write_jsonl(folder / "data", tallies, records)
        elif to == "parquet":
            _write_parquet(folder / "data", data.kind, tallies, records)
        else:
            _write_datasets(folder, data, tallies, records)
        counts = {name: tally.records for name, tally in tallies.items()}
        atomic_write(folder / "README.md", card_of(data.kind, counts, data.manifest, to))
    return counts


def _with_manifest(folder: Path) -> Exportable:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
        if "kind" in manifest:
            kind, file, sha256 = manifest["kind"], str(manifest["file"]), manifest["sha256"]
        else:  # the manifest of a generation
            kind, file, sha256 = "instructions", "rows.jsonl", None
        if kind not in _FORMATS_OF_KINDS or Path(file).name != file:
            raise ValueError(kind)
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{path}: is not a manifest of an import or a generation, or is one of another version"
        ) from None
    rows = folder / file
    if not rows.is_file():
        raise UserError(f"{rows}: is missing; repeat the import or the generation")
    if sha256 is not None and sha256_of(rows) != sha256:
        raise UserError(f"{rows}: is not the file that {path} describes; import it again")
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
    data: Exportable,
    splits: Mapping[str, Any],
    records: Callable[[str], Iterator[Columns]],
) -> None:
    import datasets
    from pyarrow import ipc

    datasets.disable_progress_bars()
    # Arrow files beside the folder, so that the library maps the rows instead of holding them.
    with writing(folder), tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        parts = {}
        for name in splits:
            path = Path(scratch) / f"{name}.arrow"
            with ipc.new_stream(str(path), _schema(data.kind)) as writer:
                for batch in _batches(records(name), data.kind):
                    writer.write_batch(batch)
            parts[name] = datasets.Dataset.from_file(str(path))
            parts[name].info.license = str(data.manifest.get("licence", ""))
        dataset = next(iter(parts.values())) if len(parts) == 1 else datasets.DatasetDict(parts)
        dataset.save_to_disk(str(folder))


def _batches(records: Iterator[Columns], kind: Kind) -> Iterator[Any]:
    """Arrow record batches, bounded in rows and in characters."""
    import pyarrow

    schema = _schema(kind)
    batch: list[Columns] = []
    size = 0
    for record in records:
        batch.append(record)
        size += sum(len(str(value)) for value in record.values())
        if len(batch) >= _BATCH_ROWS or size >= _BATCH_CHARS:
            yield pyarrow.RecordBatch.from_pylist(batch, schema=schema)
            batch, size = [], 0
    if batch:
        yield pyarrow.RecordBatch.from_pylist(batch, schema=schema)


def _schema(kind: Kind) -> Any:
    """The Arrow schema of a kind, the same whatever the rows hold."""
    import pyarrow

    text, texts = pyarrow.string(), pyarrow.list_(pyarrow.string())
    columns = {"instruction": text, "input": text}
    if kind in ("instructions", "prompts"):
        columns |= {"output": text, "source": text}
        columns |= {"masked_replies": pyarrow.list_(pyarrow.int64())}
    elif kind == "pairs":
        columns |= {"chosen": text, "rejected": text, "source": text, "margin": pyarrow.float64()}
    else:
        columns |= {"responses": texts, "ranks": pyarrow.list_(pyarrow.int64())}
        columns |= {"annotator": text, "source": text}
    columns |= {"history": pyarrow.list_(texts), "system": text}
    return pyarrow.schema(list(columns.items()))
