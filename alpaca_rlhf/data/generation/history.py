"""The history of a generation run on the disk, and its replay without a teacher."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.files import atomic_write
from alpaca_rlhf.core.records import Instruction, content_hash
from alpaca_rlhf.data.generation.answers import AnswersRecipe
from alpaca_rlhf.data.generation.bootstrap import SelfInstructRecipe
from alpaca_rlhf.data.generation.events import Event, read_events, read_manifest
from alpaca_rlhf.data.generation.evolve import EvolRecipe
from alpaca_rlhf.data.generation.filters import Drop
from alpaca_rlhf.data.generation.recipe import GenerationRequest, Recipe, Schedule
from alpaca_rlhf.data.generation.teachers import Reply, Teacher
from alpaca_rlhf.data.generation.worksheets import AlpacaRecipe
from alpaca_rlhf.settings import Generate

_SEEDS = "seeds.jsonl"
_REPLY_KEYS = ("text", "finish_reason", "tokens")
_PLAIN = (str, int, float, bool)
_IDENTITY = ("recipe", "seed", "seeds")
"""Facts of the manifest that a resumed run must share; the replay checks the others."""


@dataclass(frozen=True)
class AnsweredRequest:
    """An answered request of a run."""

    number: int
    """Number, from 0."""
    ask: GenerationRequest
    """The request."""
    reply: Reply
    """The reply."""
    kept: list[Instruction]
    """Accepted rows; tasks without an output if the request was for drafts."""
    dropped: list[Drop]
    """Dropped rows."""


def recipe_of(settings: Generate, seeds: Sequence[Instruction], seed: int) -> Recipe:
    """The recipe that the settings name, in its initial state.

    Raises:
        UserError: It needs more seed tasks.
    """
    size = settings.batch_size
    if settings.recipe == "self-instruct":
        return SelfInstructRecipe(seeds, seed=seed, batch_size=size)
    if not seeds:
        raise UserError("generate: there are no seed tasks")
    if settings.recipe == "answers":
        return AnswersRecipe(seeds, attempts=settings.attempts, editing=settings.edit)
    if settings.recipe == "evol":
        return EvolRecipe(seeds, seed=seed, batch_size=size)
    count = settings.demonstrations
    if len(seeds) < count:
        raise UserError(
            f"--generate.demonstrations {count} needs as many seed tasks, got {len(seeds)}"
        )
    return AlpacaRecipe(seeds, seed=seed, demonstrations=count, batch_size=size)


def run_facts(
    folder: Path,
    manifest: Mapping[str, Any],
    settings: Generate,
    seeds: Sequence[Instruction],
    seed: int,
    teacher: Teacher,
) -> dict[str, Any]:
    """The manifest's facts about a run; writes the seed tasks beside it.

    Raises:
        UserError: The manifest says that another run lies there.
    """
    # 1. The run's identity and settings; seeds are hashed as they lie in their file.
    lines = "".join(json.dumps(row.to_json(), ensure_ascii=False) + "\n" for row in seeds)
    data = lines.encode("utf-8", "surrogatepass")
    digest = hashlib.sha256(data).hexdigest()
    teacher_facts = {
        "name": str(getattr(teacher, "name", type(teacher).__name__)),
        "licence": str(getattr(teacher, "licence", "") or "unknown"),
    }
    facts: dict[str, Any] = {
        "recipe": settings.recipe,
        "seed": seed,
        "seeds": {"file": _SEEDS, "rows": len(seeds), "sha256": digest},
        "settings": _plain_settings(settings),
    }
    # 2. Refuse the folder of another run.
    for name in _IDENTITY:
        if name in manifest and manifest[name] != facts[name]:
            difference = {"seeds": "other seed tasks", "seed": f"seed {manifest[name]}"}.get(
                name, f"--generate.recipe {manifest[name]}"
            )
            raise UserError(
                f"{folder / 'manifest.json'}: made with {difference}; choose a new folder, or go "
                "back to what it was made with"
            )
    # 3. Write the seeds once; a resumed run may add a teacher.
    if "seeds" not in manifest:
        atomic_write(folder / _SEEDS, data)
    teachers = list(manifest.get("teachers", []))
    facts["teachers"] = teachers if teacher_facts in teachers else [*teachers, teacher_facts]
    return facts


def seeds_of(folder: Path) -> list[Instruction]:
    """The seed tasks of a run.

    Raises:
        UserError: The file is unreadable, or not the one that the manifest lists.
    """
    path = folder / _SEEDS
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if hashlib.sha256(data).hexdigest() != read_manifest(folder).get("seeds", {}).get("sha256"):
        raise UserError(f"{path}: is not the file that the manifest knows; put it back")
    text = data.decode("utf-8", "surrogatepass")
    return [Instruction.from_json(json.loads(line)) for line in text.split("\n")[:-1]]


def settings_of(folder: Path) -> tuple[Generate, int]:
    """The settings and the seed of a run.

    Raises:
        UserError: The manifest is unreadable, or of another version.
    """
    manifest = read_manifest(folder)
    try:
        # Settings that this version no longer has are passed over.
        known_names = {field.name for field in fields(Generate)}
        values = {
            name: value for name, value in manifest["settings"].items() if name in known_names
        }
        return Generate(**values), int(manifest["seed"])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(
            f"{folder / 'manifest.json'}: its settings are of another version"
        ) from None


def requests(folder: Path) -> Iterator[tuple[Recipe, AnsweredRequest]]:
    """Yield each answered request of a run in order, its prompt rebuilt, with its recipe.

    The run's decisions are taken over. The recipe is in its state at the time of the request.

    Raises:
        UserError: Files are missing or damaged, or belong to another run.
    """
    settings, seed = settings_of(folder)
    recipe = recipe_of(settings, seeds_of(folder), seed)
    schedule = Schedule(recipe, size=settings.batch_size, max_requests=settings.max_requests)
    for where, event in read_events(folder):
        # 1. The recipe must lead to the prompt whose hash the event holds.
        chunk = schedule.chunk()
        try:
            if not chunk or content_hash(chunk[0].prompt) != event["prompt"]:
                raise KeyError("prompt")
            request = _request(event, chunk[0])
        except (KeyError, TypeError, AttributeError):
            raise UserError(
                f"{where}: does not follow from the seed tasks and settings beside it"
            ) from None
        # 2. The recipe learns from it only afterwards, as in the run.
        yield recipe, request
        recipe.learn(request.ask, request.reply, request.kept)
        schedule.advance()


def event_of(
    number: int,
    ask: GenerationRequest,
    reply: Reply,
    accepted: Sequence[Instruction],
    dropped: Sequence[Drop],
) -> Event:
    """The event of an answered request, including fields that a teacher adds to `Reply`."""
    extra = {
        field.name: value
        for field in fields(reply)
        if field.name not in _REPLY_KEYS and isinstance(value := getattr(reply, field.name), _PLAIN)
    }
    return {
        "request": number,
        "step": ask.step,
        "prompt": content_hash(ask.prompt),
        "finish_reason": reply.finish_reason,
        "tokens": reply.tokens,
        **extra,
        "text": reply.text,
        "drafts" if ask.drafts else "kept": [row.to_json() for row in accepted],
        "dropped": [_drop_json(drop) for drop in dropped],
    }


def reply_of(event: Event) -> Reply:
    """The reply in an event; raises KeyError or TypeError if it holds none."""
    required = {name: event[name] for name in _REPLY_KEYS}
    optional = {field.name: event[field.name] for field in fields(Reply) if field.name in event}
    return Reply(**{**required, **optional})


def drop_from_json(columns: Mapping[str, Any]) -> Drop:
    """Rebuild a `Drop` from its columns in an event."""
    row = columns["row"]
    known_names = {field.name for field in fields(Drop)}
    values = {name: value for name, value in columns.items() if name in known_names}
    return Drop(**{**values, "row": None if row is None else Instruction.from_json(row)})


def _plain_settings(settings: Generate) -> dict[str, Any]:
    """The plain values among the settings, without the address of an endpoint."""
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    return {name: value for name, value in values.items() if isinstance(value, _PLAIN)}


def _request(event: Event, ask: GenerationRequest) -> AnsweredRequest:
    return AnsweredRequest(
        number=event["request"],
        ask=ask,
        reply=reply_of(event),
        kept=[Instruction.from_json(row) for row in event["drafts" if ask.drafts else "kept"]],
        dropped=[drop_from_json(columns) for columns in event["dropped"]],
    )


def _drop_json(drop: Drop) -> dict[str, Any]:
    row = drop.row.to_json() if drop.row else None
    return {
        "rule": drop.rule,
        "detail": drop.detail,
        "near": drop.near,
        "score": drop.score,
        "row": row,
    }
