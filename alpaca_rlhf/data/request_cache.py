"""Everything that crossed the wire, one JSON object a line: so nothing paid for is asked twice.

A reply is on the disk before anyone sees it, so that it survives a kill between the reply and the
event that takes it up. Beside replies there are lines for faults, for spent tokens that are no
reply (a probe's), and for what a probe found. The key is in none of them.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from alpaca_rlhf.config import UserError
from alpaca_rlhf.data.wire import Answer
from alpaca_rlhf.files import append_lines, json_text


def request_key(body: Mapping[str, Any], number: int) -> str:
    """SHA-256 of what is asked (model, messages, params) and of the request's number."""
    text = json.dumps([dict(body), number], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


class RequestCache:
    """The requests of a run. Threads may share it; processes may not.

    Raises:
        UserError: A line of the file is damaged. A torn last line is cut, as by a kill.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._answers: dict[str, Answer] = {}
        self._first: dict[bytes, int] = {}
        self._probes: dict[str, dict[str, Any]] = {}
        self.lines: list[dict[str, Any]] = []
        """What earlier starts left, without the texts."""
        if path.exists():
            self._load(path.read_bytes())

    def answer(self, key: str) -> Answer | None:
        """The answer to a request that was paid for already."""
        return self._answers.get(key)

    def keep(self, key: str, number: int, answer: Answer) -> None:
        """Write an answer; when it returns the disk has it."""
        self._append({"kind": "reply", "key": key, "request": number, **asdict(answer)})
        self._remember(key, number, answer)

    def twin(self, number: int, answer: Answer) -> int | None:
        """The number of another request that got the same text before, or None."""
        with self._lock:
            first = self._first.get(_digest(answer.text), number)
        return None if first == number else first

    def spent(self, answer: Answer) -> None:
        """Note tokens that were paid for without a reply to keep."""
        self._append({"kind": "spent", **asdict(answer), "text": ""})

    def fault(self, number: int, kind: str, detail: str, *, given_up: bool) -> None:
        """Note a request that failed, and whether it is asked again."""
        self._append(
            {
                "kind": "fault",
                "request": number,
                "fault": kind,
                "detail": detail,
                "given_up": given_up,
            }
        )

    def probe(self, key: str) -> dict[str, Any] | None:
        """What a probe of the same endpoint found earlier in this run."""
        return self._probes.get(key)

    def keep_probe(self, key: str, found: Mapping[str, Any]) -> None:
        """Write what a probe found."""
        self._probes[key] = dict(found)
        self._append({"kind": "probe", "key": key, "found": dict(found)})

    def _append(self, line: dict[str, Any]) -> None:
        text = json_text(line, self.path.name) + "\n"
        with self._lock:
            append_lines(self.path, text, sync=True)

    def _remember(self, key: str, number: int, answer: Answer) -> None:
        with self._lock:
            self._answers[key] = answer
            self._first.setdefault(_digest(answer.text), number)

    def _load(self, content: bytes) -> None:
        for number, raw in enumerate(content.split(b"\n")[:-1], 1):
            try:
                line = json.loads(raw)
                kind = line["kind"]
                if kind == "reply":
                    given = {name: line[name] for name in Answer.__dataclass_fields__}
                    self._remember(line["key"], line["request"], Answer(**given))
                elif kind == "probe":
                    self._probes[line["key"]] = line["found"]
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    f"{self.path}:{number}: not a request; the file was damaged, set it aside"
                ) from None
            self.lines.append({name: one for name, one in line.items() if name != "text"})


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
