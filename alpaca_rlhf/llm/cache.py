"""The request cache: every reply as a JSON line, so that nothing paid for is asked twice.

Events are written in the order of the requests; replies come in any order. Each reply is on the
disk here before anyone uses it, so that it survives a kill before its event. Other lines record
faults and the findings of probes. The API key is in none of them.
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
"""Number of the requests of a probe, which are never answered from the cache."""

Line = dict[str, Any]


def request_key(body: Mapping[str, Any], number: int) -> str:
    """SHA-256 of a request's body (model, messages, params) and of its number."""
    text = json.dumps([dict(body), number], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


class RequestCache:
    """Cache of the replies of a run. Threads may share it; processes may not.

    Only keys, offsets and digests are in memory; the texts stay on the disk.

    Args:
        path: The cache file.
        replay: Called with each line that earlier starts wrote.

    Raises:
        UserError: A line of the file is damaged. A torn last line, as a kill leaves it, is ignored.
    """

    def __init__(self, path: Path, replay: Callable[[Line], None]) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._offsets: dict[str, int] = {}
        self._first_request: dict[bytes, int] = {}
        self._probes: dict[str, Line] = {}
        if path.exists():
            self._load(replay)

    def answer(self, key: str) -> Answer | None:
        """The answer to a request, or None if it was never answered."""
        with self._lock:
            offset = self._offsets.get(key)
        if offset is None:
            return None
        with self.path.open("rb") as stream:
            stream.seek(offset)
            return _answer(json.loads(stream.readline()))

    def keep(self, key: str, number: int, answer: Answer) -> None:
        """Write an answer; it is on the disk when this returns."""
        line = {"kind": "reply", "key": key, "request": number, **asdict(answer)}
        self._remember(line, self._append(line))

    def twin(self, number: int, answer: Answer) -> int | None:
        """The number of an earlier request that got the same text, or None."""
        with self._lock:
            earlier = self._first_request.get(_digest(answer.text), number)
        return None if earlier == number else earlier

    def fault(self, number: int, kind: str, detail: str, *, given_up: bool) -> None:
        """Write a fault, and whether its request is given up."""
        line = {"kind": "fault", "request": number, "fault": kind}
        self._append({**line, "detail": detail, "given_up": given_up})

    def probe(self, key: str) -> Line | None:
        """The findings of an earlier probe of the same endpoint in this run, or None."""
        return self._probes.get(key)

    def keep_probe(self, key: str, findings: Mapping[str, Any]) -> None:
        """Write the findings of a probe."""
        self._probes[key] = dict(findings)
        self._append({"kind": "probe", "key": key, "found": dict(findings)})

    def _append(self, line: Line) -> int:
        """Write a line and return the byte at which it begins."""
        with self._lock:
            return jsonl.append(self.path, [line], sync=True)

    def _remember(self, line: Line, offset: int) -> None:
        if line["request"] != PROBE:
            with self._lock:
                self._offsets[line["key"]] = offset
                self._first_request.setdefault(_digest(line["text"]), line["request"])

    def _load(self, replay: Callable[[Line], None]) -> None:
        mend = "the file was damaged, set it aside"
        for number, start, line in jsonl.lines(self.path, expected="a request", mend=mend):
            try:
                if line["kind"] == "reply":
                    # Raises now if a field is missing, rather than when the answer is used.
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
