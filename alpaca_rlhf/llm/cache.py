"""Everything that crossed the wire, one JSON object a line: so nothing paid for is asked twice.

Events are written in the order of the requests; replies come in any order. Each is on the disk here
before anyone sees it, so that it survives a kill before its event. Beside replies there are lines
for faults and for what a probe found. The key is in none of them.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from alpaca_rlhf.core import jsonl
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.llm.wire import Answer

PROBE = -1
"""Number of a probe's requests. They are asked anew each time."""

Line = dict[str, Any]


def request_key(body: Mapping[str, Any], number: int) -> str:
    """SHA-256 of what is asked (model, messages, params) and of the request's number."""
    text = json.dumps([dict(body), number], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


class RequestCache:
    """The requests of a run. Threads may share it; processes may not. Texts stay on the disk.

    Args:
        path: Its file.
        replay: Called with each line that earlier starts left.

    Raises:
        UserError: A line of the file is damaged. A torn last line is left out, as by a kill.
    """

    def __init__(self, path: Path, replay: Callable[[Line], None]) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._places: dict[str, int] = {}
        self._first: dict[bytes, int] = {}
        self._probes: dict[str, Line] = {}
        if path.exists():
            self._load(replay)

    def answer(self, key: str) -> Answer | None:
        """The answer to a request that was paid for already."""
        with self._lock:
            place = self._places.get(key)
        if place is None:
            return None
        with self.path.open("rb") as stream:
            stream.seek(place)
            return _answer(json.loads(stream.readline()))

    def keep(self, key: str, number: int, answer: Answer) -> None:
        """Write an answer; when it returns the disk has it."""
        line = {"kind": "reply", "key": key, "request": number, **asdict(answer)}
        self._remember(line, self._append(line))

    def twin(self, number: int, answer: Answer) -> int | None:
        """The number of another request that got the same text before, or None."""
        with self._lock:
            first = self._first.get(_digest(answer.text), number)
        return None if first == number else first

    def fault(self, number: int, kind: str, detail: str, *, given_up: bool) -> None:
        """Note a request that failed, and whether it is asked again."""
        line = {"kind": "fault", "request": number, "fault": kind}
        self._append({**line, "detail": detail, "given_up": given_up})

    def probe(self, key: str) -> Line | None:
        """What a probe of the same endpoint found earlier in this run."""
        return self._probes.get(key)

    def keep_probe(self, key: str, found: Mapping[str, Any]) -> None:
        """Write what a probe found."""
        self._probes[key] = dict(found)
        self._append({"kind": "probe", "key": key, "found": dict(found)})

    def _append(self, line: Line) -> int:
        """Write a line. Returns where it begins."""
        with self._lock:
            return jsonl.append(self.path, [line], sync=True)

    def _remember(self, line: Line, place: int) -> None:
        if line["request"] != PROBE:
            with self._lock:
                self._places[line["key"]] = place
                self._first.setdefault(_digest(line["text"]), line["request"])

    def _load(self, replay: Callable[[Line], None]) -> None:
        mend = "the file was damaged, set it aside"
        for number, start, line in jsonl.lines(self.path, expected="a request", mend=mend):
            try:
                if line["kind"] == "reply":
                    _answer(line)
                    self._remember(line, start)
                elif line["kind"] == "probe":
                    self._probes[line["key"]] = line["found"]
                replay(line)
            except (ValueError, KeyError, TypeError, AttributeError):
                raise UserError(f"{self.path}:{number}: is not a request; {mend}") from None


def _answer(line: Line) -> Answer:
    return Answer(**{name: line[name] for name in Answer.__dataclass_fields__})


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
