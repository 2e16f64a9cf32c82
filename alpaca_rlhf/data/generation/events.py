"""An append-only store of events, one JSON object a line, whose writer may be killed anywhere.

    manifest.json        description of the run, and the sha256 of every closed segment
    events-00000.jsonl   the oldest events; a segment is closed once it reaches its size
    events-00001.jsonl   ... the newest one is open
    .lock                held by the one process that writes

The manifest lists a complete segment before the next one begins. So at most the newest segment has
no hash yet, and only it may end in a torn line, which is cut when the store is opened.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

from alpaca_rlhf.core import jsonl
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.files import atomic_write, json_text, sync_folder, writing
from alpaca_rlhf.core.locks import Lock, LockHeld

SCHEMA = 1
"""Version of the layout."""

SEGMENT_BYTES = 64 * 2**20
"""Size at which a segment is closed, in bytes."""

_MANIFEST, _LOCK = "manifest.json", ".lock"
_KINDS = {"segments": list, "teachers": list, "seeds": dict, "settings": dict, "counts": dict}

Event = dict[str, Any]
"""One event, a JSON object."""


class EventStore:
    """The events of one run, opened to write and locked to this process until it is closed.

    Args:
        folder: Folder of the store, made if absent.
        segment_bytes: Size at which a segment is closed.

    Raises:
        UserError: Another process has it open; a closed segment has changed; files are missing; the
            folder is not writable.
    """

    def __init__(self, folder: Path, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.folder = folder
        self._segment_bytes = segment_bytes
        self._stream: BinaryIO | None = None
        self._lock = _locked(folder)
        try:
            for temporary in folder.glob(".*.tmp"):
                temporary.unlink()
            self.manifest: dict[str, Any] = {"schema": SCHEMA, "segments": []}
            names = _segment_names(folder)
            if (folder / _MANIFEST).exists():
                self.manifest = read_manifest(folder)
            elif names:
                raise UserError(
                    f"{folder / _MANIFEST}: is missing, but {names[0]} is there; put it back, or "
                    "move the folder away to start over"
                )
            self._verify(names)
            self._resume(names)
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files and release the lock.

        Raises:
            UserError: The disk is still full: events that were not acknowledged are not written.
        """
        try:
            if self._stream is not None:
                with writing(self.folder / self._name()):
                    self._stream.close()
        finally:
            self._lock.close()

    def describe(self, **facts: Any) -> None:
        """Put facts into the manifest; they are on the disk when this returns."""
        if any(self.manifest.get(name) != value for name, value in facts.items()):
            self.manifest |= facts
            self._write_manifest()

    def replay(self) -> Iterator[tuple[str, Event]]:
        """Yield each event in order with its `file:line`; one at a time is in memory."""
        return read_events(self.folder)

    def append(self, events: Iterable[Event]) -> None:
        """Write events; they are on the disk when this returns.

        Raises:
            UserError: The disk is full.
        """
        pending: list[bytes] = []
        for event in events:
            line = jsonl.encode([event], self._name())
            pending.append(line)
            self._bytes += len(line)
            self._events += 1
            self._digest.update(line)
            # A segment ends with a whole event.
            if self._bytes >= self._segment_bytes:
                self._write(pending)
                self._close_segment()
                pending = []
        self._write(pending)

    def _name(self) -> str:
        return f"events-{len(self.manifest['segments']):05}.jsonl"

    def _verify(self, names: list[str]) -> None:
        """Check that closed segments are unchanged and that no unknown segment is there."""
        segments = self.manifest["segments"]
        for segment in segments:
            _verify_segment(self.folder / segment["file"], segment["sha256"])
        known_names = {segment["file"] for segment in segments} | {self._name()}
        for name in names:
            if name not in known_names:
                raise UserError(
                    f"{self.folder / name}: {_MANIFEST} does not know it; put back the manifest "
                    "that belongs to it, or remove the file"
                )

    def _resume(self, names: list[str]) -> None:
        """Cut a torn last line, and close a segment that a killed process left full."""
        path = self.folder / self._name()
        self._bytes = self._events = 0
        self._digest = hashlib.sha256()
        if path.name not in names:
            return
        with writing(path), path.open("r+b") as stream:
            self._bytes = jsonl.cut_torn_tail(stream)
            os.fsync(stream.fileno())
            stream.seek(0)
            for line in stream:
                self._events += 1
                self._digest.update(line)
        if self._bytes >= self._segment_bytes:
            self._close_segment()

    def _write(self, lines: list[bytes]) -> None:
        if not lines:
            return
        path = self.folder / self._name()
        with writing(path):
            new_file = self._stream is None
            if self._stream is None:
                self._stream = path.open("ab")
            self._stream.write(b"".join(lines))
            self._stream.flush()
            os.fsync(self._stream.fileno())
            if new_file:  # the folder must know the file before its events count
                sync_folder(self.folder)

    def _close_segment(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        closed = {
            "file": self._name(),
            "events": self._events,
            "bytes": self._bytes,
            "sha256": self._digest.hexdigest(),
        }
        self.manifest["segments"] = [*self.manifest["segments"], closed]
        self._write_manifest()
        self._bytes = self._events = 0
        self._digest = hashlib.sha256()

    def _write_manifest(self) -> None:
        text = json_text(self.manifest, _MANIFEST, indent=2) + "\n"
        atomic_write(self.folder / _MANIFEST, text)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a folder of events.

    Raises:
        UserError: It is missing, unreadable, or of another version.
    """
    path = folder / _MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise UserError(f"{path}: is no longer valid JSON; put back a copy of it") from None
    if not isinstance(manifest, Mapping) or manifest.get("schema") != SCHEMA:
        raise UserError(f"{path}: is not a manifest of schema {SCHEMA}; it is of another version")
    for name, kind in _KINDS.items():
        if not isinstance(manifest.get(name, kind()), kind):
            raise UserError(f"{path}: its {name} cannot be read; put back a copy of it")
    for segment in manifest.get("segments", [None]):
        if not isinstance(segment, dict) or not {"file", "sha256"} <= segment.keys():
            raise UserError(f"{path}: its segments cannot be read; put back a copy of it")
    return dict(manifest)


def read_events(folder: Path) -> Iterator[tuple[str, Event]]:
    """Yield each event in order with its `file:line`; a torn last line is left out.

    Takes no lock: it may be used while another process writes. A closed segment is checked against
    its sha256 before its first event.

    Raises:
        UserError: A line is not an event; a closed segment is missing or damaged.
    """
    closed = read_manifest(folder)["segments"] if (folder / _MANIFEST).exists() else []
    sha256_of = {segment["file"]: segment["sha256"] for segment in closed}
    for name in sorted({*sha256_of, *_segment_names(folder)}):
        path = folder / name
        if name in sha256_of:
            _verify_segment(path, sha256_of[name])
        for number, _, event in jsonl.lines(
            path, expected="an event", mend="the file was damaged, set it aside"
        ):
            yield f"{path}:{number}", event


def _verify_segment(path: Path, sha256: str) -> None:
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256")
    except FileNotFoundError:
        raise UserError(f"{path}: is missing; put it back") from None
    if digest.hexdigest() != sha256:
        raise UserError(
            f"{path}: is damaged, its sha256 is not the one in {_MANIFEST}; put back a copy of it, "
            "or move the folder away to start over"
        )


def _segment_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("events-*.jsonl"))


def _locked(folder: Path) -> Lock:
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return Lock(folder / _LOCK)
        except LockHeld:
            raise UserError(
                f"{folder}: another process generates there; wait for it or use another --out"
            ) from None
