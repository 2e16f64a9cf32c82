"""The card of a dataset: a README that says where its rows come from and what happened to them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

_SIZES = [(10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M")]
_LARGEST = "1M<n<10M"

_WHAT = {
    "instructions": "Tasks with their answers, in Alpaca's columns: `instruction`, `input`, "
    "`output`, `source`, and `history` where a row ends a conversation.",
    "prompts": "Prompts without answers: `instruction`, `input`; `output` is null.",
    "pairs": "Two answers to one prompt, the better one in `chosen`, the other in `rejected`.",
    "rankings": "Several answers to one prompt in `responses`; of their `ranks` the least is the "
    "best, and equal ranks are ties.",
}
_UNKNOWN = "unknown: ask whoever made the data before you use it or hand it on"


def card_of(kind: str, counts: Mapping[str, int], manifest: Mapping[str, Any], made: str) -> str:
    """Markdown with the front matter that the hub reads.

    Args:
        kind: What the records are.
        counts: Records by split.
        manifest: Of an import or of a generation; empty for splits.
        made: datasets, jsonl or parquet.
    """
    total = sum(counts.values())
    head: dict[str, Any] = {
        "license": _licence_id(str(manifest.get("licence", ""))),
        "size_categories": [next((name for size, name in _SIZES if total < size), _LARGEST)],
    }
    if made != "datasets":
        files = [{"split": name, "path": f"data/{name}.{made}"} for name in counts]
        head["configs"] = [{"config_name": "default", "data_files": files}]
    front = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    sections = [
        f"---\n{front}---\n\n# {kind.capitalize()}\n\n{_WHAT[kind]}",
        _table(["split", "records"], [[name, f"{count:,}"] for name, count in counts.items()]),
        "## Licence and teacher\n\n" + _lines(_origin(manifest)),
        *_sources(manifest),
        *_filters(manifest),
        "## Reading it\n\n    from datasets import load_"
        + ("from_disk\n    rows = load_from_disk(FOLDER)" if made == "datasets" else _LOAD),
    ]
    return "\n\n".join(sections) + "\n"


_LOAD = "dataset\n    rows = load_dataset(FOLDER)"


def _origin(manifest: Mapping[str, Any]) -> dict[str, str]:
    teachers = [
        f"{one.get('name')} (licence of its outputs: {one.get('licence') or 'unknown'})"
        for one in manifest.get("teachers", [])
    ]
    teacher = "; ".join(teachers) or str(manifest.get("teacher") or "none is known")
    return {"Licence": str(manifest.get("licence") or _UNKNOWN), "Teacher": teacher}


def _sources(manifest: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            str(one.get("name", "")).rsplit("/", 1)[-1],
            str(one.get("format")),
            f"{one.get('rows', 0):,}",
            f"{one.get('rows_kept', 0):,}",
            str(one.get("licence") or ""),
            str(one.get("sha256") or one.get("fingerprint") or "")[:16],
        ]
        for one in manifest.get("sources", [])
    ]
    names = ["file", "format", "rows", "kept", "licence", "sha256"]
    return [f"## Sources\n\n{_table(names, rows)}"] if rows else []


def _filters(manifest: Mapping[str, Any]) -> list[str]:
    """What was asked of the rows, and what was dropped; nothing of a folder that does not say."""
    counts = manifest.get("counts", {})
    dropped = manifest.get("rows_dropped", counts.get("dropped", {}))
    told = {"Recipe": manifest.get("recipe")}
    told["Filters"] = manifest.get("settings", {}).get("filters")
    told["Requests"] = counts.get("requests")
    lines = _lines({name: str(value) for name, value in told.items() if value is not None})
    rows = [[str(rule), f"{count:,}"] for rule, count in dropped.items()]
    if not (rows or lines):
        return ["## Dropped rows\n\nNone."] if manifest else []
    table = _table(["dropped because", "rows"], rows) if rows else "No row was dropped."
    return ["## Filters and dropped rows\n\n" + "\n\n".join(one for one in (lines, table) if one)]


def _lines(facts: Mapping[str, str]) -> str:
    return "\n".join(f"- {name}: {_cell(value)}" for name, value in facts.items())


def _table(names: list[str], rows: list[list[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    """Text that cannot break a table, and that is no half of a surrogate pair."""
    shown = " ".join(text.split()).replace("|", "\\|")
    return shown.encode(errors="replace").decode()


def _licence_id(licence: str) -> str:
    """The hub's name of a licence, as far as one can tell by its own."""
    name = re.sub(r"[\s_]+", "-", licence.strip().lower())
    return name if re.fullmatch(r"[a-z][a-z0-9.-]*", name) else "unknown"
