"""The data card: a README that documents the origin of the rows and what was dropped."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

_SIZES = [(10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M")]
_LARGEST = "1M<n<10M"

_DESCRIPTIONS = {
    "instructions": "Tasks with their answers, in Alpaca's columns: `instruction`, `input`, "
    "`output`, `source`, and `history` where a row ends a conversation.",
    "prompts": "Prompts without answers: `instruction`, `input`; `output` is null.",
    "pairs": "Two answers to one prompt, the better one in `chosen`, the other in `rejected`.",
    "rankings": "Several answers to one prompt in `responses`; of their `ranks` the least is the "
    "best, and equal ranks are ties.",
}
_UNKNOWN = "unknown: ask whoever made the data before you use it or hand it on"


def card_of(kind: str, counts: Mapping[str, int], manifest: Mapping[str, Any], target: str) -> str:
    """The data card as Markdown, with the front matter that the hub reads.

    Args:
        kind: Kind of the records.
        counts: Records by split.
        manifest: Manifest of an import or of a generation; empty for splits.
        target: datasets, jsonl or parquet.
    """
    total = sum(counts.values())
    head: dict[str, Any] = {
        "license": _licence_id(str(manifest.get("licence", ""))),
        "size_categories": [next((name for size, name in _SIZES if total < size), _LARGEST)],
    }
    if target != "datasets":
        files = [{"split": name, "path": f"data/{name}.{target}"} for name in counts]
        head["configs"] = [{"config_name": "default", "data_files": files}]
    front = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    sections = [
        f"---\n{front}---\n\n# {kind.capitalize()}\n\n{_DESCRIPTIONS[kind]}",
        _table(["split", "records"], [[name, f"{count:,}"] for name, count in counts.items()]),
        "## Licence and teacher\n\n" + _lines(_origin(manifest)),
        *_sources(manifest),
        *_filters(manifest),
        "## Reading it\n\n    from datasets import load_"
        + ("from_disk\n    rows = load_from_disk(FOLDER)" if target == "datasets" else _LOAD),
    ]
    return "\n\n".join(sections) + "\n"


_LOAD = "dataset\n    rows = load_dataset(FOLDER)"


def _origin(manifest: Mapping[str, Any]) -> dict[str, str]:
    teachers = [
        f"{teacher.get('name')} (licence of its outputs: {teacher.get('licence') or 'unknown'})"
        for teacher in manifest.get("teachers", [])
    ]
    teacher_line = "; ".join(teachers) or str(manifest.get("teacher") or "none is known")
    return {"Licence": str(manifest.get("licence") or _UNKNOWN), "Teacher": teacher_line}


def _sources(manifest: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            str(source.get("name", "")).rsplit("/", 1)[-1],
            str(source.get("format")),
            f"{source.get('rows', 0):,}",
            f"{source.get('rows_kept', 0):,}",
            str(source.get("licence") or ""),
            str(source.get("sha256") or source.get("fingerprint") or "")[:16],
        ]
        for source in manifest.get("sources", [])
    ]
    names = ["file", "format", "rows", "kept", "licence", "sha256"]
    return [f"## Sources\n\n{_table(names, rows)}"] if rows else []


def _filters(manifest: Mapping[str, Any]) -> list[str]:
    """The section on filters and dropped rows; none if the manifest is empty."""
    counts = manifest.get("counts", {})
    dropped = manifest.get("rows_dropped", counts.get("dropped", {}))
    facts = {"Recipe": manifest.get("recipe")}
    facts["Filters"] = manifest.get("settings", {}).get("filters")
    facts["Requests"] = counts.get("requests")
    facts["Answers left out"] = (
        ", ".join(
            f"{count:,} {reason}" for reason, count in manifest.get("answers_dropped", {}).items()
        )
        or None
    )
    lines = _lines({name: str(value) for name, value in facts.items() if value is not None})
    rows = [[str(rule), f"{count:,}"] for rule, count in dropped.items()]
    if not (rows or lines):
        return ["## Dropped rows\n\nNone."] if manifest else []
    table = _table(["dropped because", "rows"], rows) if rows else "No row was dropped."
    return ["## Filters and dropped rows\n\n" + "\n\n".join(filter(None, (lines, table)))]


def _lines(facts: Mapping[str, str]) -> str:
    return "\n".join(f"- {name}: {_cell(value)}" for name, value in facts.items())


def _table(names: list[str], rows: list[list[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    """Text that cannot break a table, with lone surrogates replaced."""
    line = " ".join(text.split()).replace("|", "\\|")
    return line.encode(errors="replace").decode()


def _licence_id(licence: str) -> str:
    """The hub's identifier of a licence, or `unknown` if its name does not look like one."""
    name = re.sub(r"[\s_]+", "-", licence.strip().lower())
    return name if re.fullmatch(r"[a-z][a-z0-9.-]*", name) else "unknown"
