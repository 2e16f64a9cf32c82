"""Append-only events on the disk, one JSON object a line, whose writer may be killed anywhere.

    manifest.json        what the run is, and the sha256 of every closed segment
    events-00000.jsonl   the oldest events; a segment is closed once it has reached its size
    events-00001.jsonl   ... the newest one is open
    .lock                held by the one process that writes

A segment stands in the manifest, whole, before the next one begins. So at most the newest segment
has no hash yet, and only it may end in a torn line, which is cut when the store is opened.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from alpaca_rlhf.core import jsonl
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.files import atomic_write, json_text, sync_folder, writing
from alpaca_rlhf.core.locks import Lock, LockHeld

SCHEMA = 1
"""Version of the layout."""

SEGMENT_BYTES = 64 * 2**20
"""A segment that has so many bytes is closed."""

_BLOCK = 2**20
_MANIFEST, _LOCK = "manifest.json", ".lock"
_KINDS = {"segments": list, "teachers": list, "seeds": dict, "settings": dict, "counts": dict}

Event = dict[str, Any]


class EventStore:
    """The events of one run, opened to write. Locked to this process until it is closed.

    Args:
        folder: Where they lie; it is made if it is not there.
        segment_bytes: Size at which a segment is closed.

    Raises:
        UserError: Another process has it open; a closed segment is not what was written; files are
            missing; it cannot be written.
    """

    def __init__(self, folder: Path, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.folder = folder
        self._segment_bytes = segment_bytes
        self._stream: BinaryIO | None = None
        self._lock = _locked(folder)
        try:
            for left in folder.glob(".*.tmp"):
                left.unlink()
            self.manifest: dict[str, Any] = {"schema": SCHEMA, "segments": []}
            names = _segment_names(folder)
            if (folder / _MANIFEST).exists():
                self.manifest = read_manifest(folder)
            elif names:
                raise UserError(
                    f"{folder / _MANIFEST}: is missing, but {names[0]} is there; put it back, or "
                    "move the folder away to begin anew"
                )
            self._verify(names)
            self._resume(names)
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> EventStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files and let others in.

        Raises:
            UserError: The disk was full, and still is: what was not acknowledged is not written.
        """
        try:
            if self._stream is not None:
                with writing(self.folder / self._name()):
                    self._stream.close()
        finally:
            self._lock.close()

    def describe(self, **facts: Any) -> None:
        """Put facts into the manifest: whole, on the disk, before this returns."""
        if any(self.manifest.get(name) != value for name, value in facts.items()):
            self.manifest |= facts
            self._write_manifest()

    def replay(self) -> Iterator[tuple[str, Event]]:
        """Every event in order, with `file:line`; one at a time, so that none is held."""
        return read_events(self.folder)

    def append(self, events: Iterable[Event]) -> None:
        """Write events and return when the disk has them.

        Raises:
            UserError: The disk is full.
        """
        waiting: list[bytes] = []
        for event in events:
            line = jsonl.encode([event], self._name())
            waiting.append(line)
            self._bytes += len(line)
            self._events += 1
            self._digest.update(line)
            if self._bytes >= self._segment_bytes:
                self._write(waiting)
                self._close_segment()
                waiting = []
        self._write(waiting)

    def _name(self) -> str:
        return f"events-{len(self.manifest['segments']):05}.jsonl"

    def _verify(self, names: list[str]) -> None:
        """Every closed segment is what it was when it was closed, and nothing else lies there."""
        listed = self.manifest["segments"]
        for one in listed:
            path = self.folder / one["file"]
            if _digest_of(path).hexdigest() != one["sha256"]:
                raise _damaged(path)
        own = {one["file"] for one in listed} | {self._name()}
        for name in names:
            if name not in own:
                raise UserError(
                    f"{self.folder / name}: {_MANIFEST} does not know it; put back the manifest "
                    "that belongs to it, or take the file away"
                )

    def _resume(self, names: list[str]) -> None:
        """Cut a torn last line, and close what a killed process left full."""
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
            new = self._stream is None
            if self._stream is None:
                self._stream = path.open("ab")
            self._stream.write(b"".join(lines))
            self._stream.flush()
            os.fsync(self._stream.fileno())
            if new:
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
    """What a folder of events says of itself.

    Raises:
        UserError: It is not there, cannot be read, or is of another version.
    """
    path = folder / _MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise UserError(f"{path}: is not JSON any more; put back a copy of it") from None
    if not isinstance(manifest, Mapping) or manifest.get("schema") != SCHEMA:
        raise UserError(f"{path}: is not a manifest of schema {SCHEMA}; it is of another version")
    for name, kind in _KINDS.items():
        if not isinstance(manifest.get(name, kind()), kind):
            raise UserError(f"{path}: its {name} cannot be read; put back a copy of it")
    for one in manifest.get("segments", [None]):
        if not isinstance(one, dict) or not {"file", "sha256"} <= one.keys():
            raise UserError(f"{path}: its segments cannot be read; put back a copy of it")
    return dict(manifest)


def read_events(folder: Path) -> Iterator[tuple[str, Event]]:
    """Every event in order, with `file:line`. A torn last line of the newest segment is left out.

    Takes no lock: it may be used while another process writes. A closed segment that is not what
    was written is told once it has been read.

    Raises:
        UserError: A line is not an event; a closed segment is missing or damaged.
    """
    closed = read_manifest(folder)["segments"] if (folder / _MANIFEST).exists() else []
    sums = {one["file"]: one["sha256"] for one in closed}
    for name in sorted({*sums, *_segment_names(folder)}):
        path = folder / name
        digest = hashlib.sha256()
        with _opened(path) as stream:
            for number, line in enumerate(stream, 1):
                if name not in sums and not line.endswith(b"\n"):
                    return
                digest.update(line)
                try:
                    event = json.loads(line)
                except ValueError:
                    event = None
                if not isinstance(event, dict):
                    raise UserError(
                        f"{path}:{number}: not an event; the file was damaged, set it aside"
                    )
                yield f"{path}:{number}", event
        if name in sums and digest.hexdigest() != sums[name]:
            raise _damaged(path)


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise UserError(f"{path}: is missing; put it back") from None


def _damaged(path: Path) -> UserError:
    return UserError(
        f"{path}: is damaged, its sha256 is not the one in {_MANIFEST}; put back a copy of it, or "
        "move the folder away to begin anew"
    )


def _segment_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("events-*.jsonl"))


def _digest_of(path: Path) -> hashlib._Hash:
    digest = hashlib.sha256()
    with _opened(path) as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest


def _locked(folder: Path) -> Lock:
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return Lock(folder / _LOCK)
        except LockHeld:
            raise UserError(
                f"{folder}: another process generates there; wait for it or use another --out"
            ) from None
