"""The run folder, and the only place that writes its files.

    config.yaml       the resolved settings
    provenance.json   versions, commit, machine, inputs
    metrics.jsonl     one line a logged step
    ledger.json       finished stages and their results
    train.log         output of a training that was started in the app

Whole files are written beside their place, flushed to the disk and renamed, so that a killed run
leaves the old file or the new one. A line of a `.jsonl` counts once its newline stands; a torn
last line is dropped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import date
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from alpaca_rlhf.core import jsonl, provenance
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.files import atomic_write, json_text, writing
from alpaca_rlhf.core.locks import Lock, LockHeld
from alpaca_rlhf.core.provenance import measure

__all__ = ["RunFolder", "atomic_write", "data_path", "finished", "measure"]

CONFIG, _PROVENANCE, METRICS = "config.yaml", "provenance.json", "metrics.jsonl"
LEDGER, LOCK = "ledger.json", ".lock"
TRAINING_LOG = "train.log"


def data_path(name: str) -> Path:
    """The path of the kit's own data: `data/<name>` of a checkout or of an installed package."""
    package = Path(__file__).parent.parent
    installed = package / "_data"
    return (installed if installed.is_dir() else package.parent / "data") / name


def finished(out: Path) -> tuple[str, ...]:
    """Names of the finished stages in a run folder's ledger; empty where it cannot be read."""
    try:
        return tuple(json.loads((out / LEDGER).read_bytes()))
    except (OSError, ValueError, TypeError):
        return ()


def day_of(out: Path) -> str:
    """The day on which the run in a folder began, as YYYY-MM-DD; empty where there is no run.

    A chat template that prints the date prints this one, so that a resumed run has the same ids.
    """
    try:
        started = json.loads((out / _PROVENANCE).read_bytes())["started"]
        return date.fromisoformat(str(started)[:10]).isoformat()
    except (OSError, ValueError, KeyError, TypeError):
        return ""


class RunFolder:
    """One run's folder, made by `RunFolder.open`, and locked to this process until it is closed.

    Where several processes train together one has opened it; the others `follow`: they read, and
    what they write is dropped, because it is the same.
    """

    def __init__(self, path: Path, lock: Lock | None) -> None:
        self.path = path
        self.changed: list[str] = []
        self._lock = lock
        self._unpinned: tuple[dict[str, Any], str] | None = None

    @classmethod
    def open(
        cls,
        out: Path,
        config_yaml: str,
        *,
        kind: str,
        inputs: Mapping[str, Path] | None = None,
        free: Callable[[Collection[str]], Collection[str]] = lambda done: (),
        before: Mapping[str, Any] | None = None,
        pin: bool = True,
    ) -> RunFolder:
        """Start a run in a new or empty folder, or go on with the same run.

        Args:
            out: The folder.
            config_yaml: The resolved settings (`settings.parsing.to_yaml`).
            kind: What runs there, e.g. `loop`.
            inputs: Name and path of every file that the run reads; a changed file is another run.
            free: Names of the finished stages to dotted names of the settings that may change now;
                `out` always may. What did change stands in `changed`.
            before: Dotted names of settings and what the run there had, where its `config.yaml`
                does not say so: it is older than they are.
            pin: Write the settings of a new run at once; otherwise `pin` does it.

        Raises:
            UserError: It holds another run or other things, is in use, or cannot be written; or
                an input is not there.
        """
        # 1. Hash the inputs: a missing file is refused before anything is touched.
        digests = {
            name: {"path": str(path), "sha256": provenance.sha256_of(path)}
            for name, path in (inputs or {}).items()
        }
        # 2. Lock the folder, unless it belongs to something else.
        with writing(out):
            if out.exists() and not out.is_dir():
                raise UserError(f"--out {out}: is a file; give a folder")
            out.mkdir(parents=True, exist_ok=True)
            _refuse_foreign(out)
            lock = _locked(out)
        run = cls(out, lock)
        try:
            # 3. Remove the half-written files of a killed process.
            for temporary in out.glob(".*.tmp"):
                temporary.unlink()
            # 4. Go on with the same run, or describe a new one.
            if (out / CONFIG).exists():
                changeable = {"out", *free(run.ledger())}
                run.changed = run._refuse_other(
                    config_yaml, kind, digests, changeable, before or {}
                )
                if run.changed:
                    atomic_write(out / CONFIG, config_yaml)
            else:
                settings = yaml.safe_load(config_yaml) or {}
                facts = {
                    "kind": kind,
                    "seed": settings.get("seed"),
                    "started": provenance.now(),
                    **provenance.made_with(),
                }
                run._unpinned = facts | {"inputs": digests}, config_yaml
                if pin:
                    run.pin()
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def follow(cls, out: Path) -> RunFolder:
        """The folder that another process has opened."""
        return cls(out, None)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unlock the folder."""
        if self._lock is not None:
            self._lock.close()

    def pin(self) -> None:
        """Write the settings of a new run: from now on the folder refuses other ones."""
        if self._unpinned is not None:
            facts, config_yaml = self._unpinned
            # The settings come last: a folder that has them is a run.
            self.write_json(_PROVENANCE, facts)
            atomic_write(self.path / CONFIG, config_yaml)
            self._unpinned = None

    @property
    def kind(self) -> str:
        """Purpose of the folder: `quickstart`, `loop` ..."""
        return str(self.read_json(_PROVENANCE).get("kind", "loop"))

    def note(self, **facts: Any) -> None:
        """Add facts to `provenance.json`, e.g. the base's fingerprint."""
        self.write_json(_PROVENANCE, self.read_json(_PROVENANCE) | facts)

    def noted(self, name: str) -> dict[str, Any]:
        """An entry of `provenance.json` that `note` wrote; empty if there is none."""
        if not (self.path / _PROVENANCE).exists():
            return {}
        entry: dict[str, Any] = self.read_json(_PROVENANCE).get(name, {})
        return entry

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one row of metrics, e.g. `{"stage": "sft", "step": 3, "loss": 2.1}`.

        Raises:
            ValueError: A number in it is not finite; the message names the metric.
        """
        self.append_jsonl(METRICS, [row])

    def metrics(self) -> list[dict[str, Any]]:
        """All rows that were logged."""
        return self.read_jsonl(METRICS) if (self.path / METRICS).exists() else []

    def truncate_metrics(self, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Keep only some rows: a resumed stage drops those that it is about to log again."""
        rows = self.metrics()
        remaining = [row for row in rows if keep(row)]
        if len(remaining) < len(rows):
            self.write_jsonl(METRICS, remaining)

    def done(self, stage: str) -> dict[str, Any] | None:
        """The result of a finished stage, None if it has not finished."""
        result: dict[str, Any] | None = self.ledger().get(stage)
        return result

    def finish(self, stage: str, result: Mapping[str, Any]) -> None:
        """Enter a stage as finished, once everything it made is on the disk."""
        self.write_json(LEDGER, self.ledger() | {stage: dict(result)})

    def ledger(self) -> dict[str, Any]:
        """Every finished stage with its result."""
        stages: dict[str, Any] = self.read_json(LEDGER) if (self.path / LEDGER).exists() else {}
        return stages

    def folder(self, name: str) -> Path:
        """A folder inside the run, made if it is not there."""
        path = self.path / name
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
        return path

    def write_json(self, name: str, value: Any) -> None:
        """Write one value, indented. `name` is a path inside the folder, e.g. `report.json`."""
        self._write(name, json_text(value, name, indent=2) + "\n")

    def read_json(self, name: str) -> Any:
        """Read what `write_json` wrote."""
        content = self._read(name)
        try:
            return json.loads(content)
        except ValueError as error:
            raise self._damaged(f"{self.path / name}: is not JSON any more ({error})") from None

    def write_text(self, name: str, text: str) -> None:
        """Write a file of text."""
        atomic_write(self.path / name, text)

    def write_jsonl(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows, one a line, all or nothing."""
        self._write(name, jsonl.encode(rows, name))

    def append_jsonl(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows; when it returns they survive the death of this process."""
        if self._lock is not None:
            jsonl.append(self.path / name, rows)

    def read_jsonl(self, name: str) -> list[dict[str, Any]]:
        """Read rows; a last line without its newline was never whole, and is left out."""
        mend = f"put it back, or use another --out or delete {self.path}"
        lines = jsonl.lines(self.path / name, expected="JSON any more", mend=mend)
        return [line.value for line in lines]

    def _write(self, name: str, content: str | bytes) -> None:
        if self._lock is not None:
            atomic_write(self.path / name, content)

    def _read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise self._damaged(f"{self.path / name}: cannot be read ({error.strerror})") from None

    def _damaged(self, what: str) -> UserError:
        return UserError(f"{what}; put it back, or use another --out or delete {self.path}")

    def undo(self, stage: str) -> None:
        """Forget that a stage is done."""
        self.write_json(LEDGER, {k: v for k, v in self.ledger().items() if k != stage})

    def _refuse_other(
        self,
        config_yaml: str,
        kind: str,
        inputs: Mapping[str, Mapping[str, str]],
        free: Collection[str],
        older: Mapping[str, Any],
    ) -> list[str]:
        facts = self.read_json(_PROVENANCE)
        try:
            before = yaml.safe_load(self._read(CONFIG))
        except yaml.YAMLError:
            raise self._damaged(f"{self.path / CONFIG}: is not YAML any more") from None
        # 1. Compare all settings and inputs with those of the run.
        old = {
            "kind": facts.get("kind"),
            **_flat(before),
            **older,
            **_digests(facts.get("inputs", {})),
        }
        new = {"kind": kind, **_flat(yaml.safe_load(config_yaml)), **_digests(inputs)}
        changed = [key for key in dict.fromkeys([*new, *old]) if old.get(key) != new.get(key)]
        # 2. Refuse the first difference that may not change.
        paths = {_digest_key(name): facts["path"] for name, facts in inputs.items()}
        for key in changed:
            if key not in free:
                if key in old and key in paths:
                    raise UserError(
                        f"--out {self.path}: {paths[key]} was changed since this run began; put "
                        "back what it held, or use another --out"
                    )
                raise UserError(
                    f"--out {self.path}: holds another run: {key} was {old.get(key, 'absent')}, "
                    f"now {new.get(key, 'absent')}; "
                    "use another --out or delete it"
                )
        # 3. Note a resumption under other versions, since the run then mixes them.
        versions = provenance.made_with()
        latest = facts.get("resumed", [facts])[-1]
        if any(latest.get(key) != value for key, value in versions.items()):
            resumed = {"started": provenance.now(), **versions}
            self.note(resumed=[*facts.get("resumed", []), resumed])
        return changed


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping under dotted keys."""
    if not isinstance(value, dict):
        return {prefix.rstrip("."): value} if prefix else {}
    return {
        name: leaf
        for key, inner in value.items()
        for name, leaf in _flat(inner, f"{prefix}{key}.").items()
    }


def _digests(inputs: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    return {_digest_key(name): facts["sha256"] for name, facts in inputs.items()}


def _digest_key(name: str) -> str:
    return f"the sha256 of input {name}"


def _refuse_foreign(out: Path) -> None:
    # A run that was killed before it wrote config.yaml leaves at most these.
    names = {
        path.name
        for path in out.iterdir()
        if not (path.name.startswith(".") and path.suffix == ".tmp")
    }
    if CONFIG not in names and names - {LOCK, _PROVENANCE, TRAINING_LOG}:
        raise UserError(
            f"--out {out}: belongs to something else, it holds {min(names)} but no config.yaml; "
            "use another --out"
        )


def _locked(out: Path) -> Lock:
    path = out / LOCK
    try:
        lock = Lock(path)
    except LockHeld:
        owner = path.read_text(encoding="utf-8").strip() or "of another user"
        raise UserError(
            f"--out {out}: is in use by process {owner}; wait for it or use another --out"
        ) from None
    try:
        lock.write_owner(str(os.getpid()))
    except OSError:
        lock.close()
        raise
    return lock
