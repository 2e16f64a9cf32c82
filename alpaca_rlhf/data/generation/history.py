"""What a run of generation leaves on the disk, and reading it again without a teacher."""

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
from alpaca_rlhf.data.generation.bootstrap import SelfInstructRecipe
from alpaca_rlhf.data.generation.events import Event, read_events, read_manifest
from alpaca_rlhf.data.generation.evolve import EvolRecipe
from alpaca_rlhf.data.generation.filters import Drop
from alpaca_rlhf.data.generation.recipe import Ask, Recipe, Schedule
from alpaca_rlhf.data.generation.teachers import Reply, Teacher
from alpaca_rlhf.data.generation.worksheets import AlpacaRecipe
from alpaca_rlhf.settings import Generate

_SEEDS = "seeds.jsonl"
_OWN = ("text", "finish_reason", "tokens")
_PLAIN = (str, int, float, bool)
_DECIDES = ("recipe", "seed", "seeds")
"""Facts of the manifest that no second run may change; of others the replay tells."""


@dataclass(frozen=True)
class Request:
    """An answered request of a run."""

    number: int
    """Its number, from 0."""
    ask: Ask
    """What was asked."""
    reply: Reply
    """What came."""
    kept: list[Instruction]
    """Rows that stayed; of a step of drafts, tasks without an output."""
    dropped: list[Drop]
    """The others."""


def recipe_of(settings: Generate, seeds: Sequence[Instruction], seed: int) -> Recipe:
    """The recipe that the settings name, at its beginning.

    Raises:
        UserError: It needs more seed tasks.
    """
    size = settings.batch_size
    if settings.recipe == "self-instruct":
        return SelfInstructRecipe(seeds, seed=seed, batch_size=size)
    if not seeds:
        raise UserError("generate: there are no seed tasks")
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
    """What the manifest says of a run; the seed tasks are written beside it.

    Raises:
        UserError: The manifest says that another run lies there.
    """
    lines = "".join(json.dumps(row.to_json(), ensure_ascii=False) + "\n" for row in seeds)
    data = lines.encode("utf-8", "surrogatepass")
    digest = hashlib.sha256(data).hexdigest()
    who = {
        "name": str(getattr(teacher, "name", type(teacher).__name__)),
        "licence": str(getattr(teacher, "licence", "") or "unknown"),
    }
    facts: dict[str, Any] = {
        "recipe": settings.recipe,
        "seed": seed,
        "seeds": {"file": _SEEDS, "rows": len(seeds), "sha256": digest},
        "settings": _plain_settings(settings),
    }
    for name in _DECIDES:
        if name in manifest and manifest[name] != facts[name]:
            what = {"seeds": "other seed tasks", "seed": f"seed {manifest[name]}"}.get(
                name, f"--generate.recipe {manifest[name]}"
            )
            raise UserError(
                f"{folder / 'manifest.json'}: made with {what}; choose a new folder, or go back "
                "to what it was made with"
            )
    if "seeds" not in manifest:
        atomic_write(folder / _SEEDS, data)
    teachers = list(manifest.get("teachers", []))
    facts["teachers"] = teachers if who in teachers else [*teachers, who]
    return facts


def seeds_of(folder: Path) -> list[Instruction]:
    """The seed tasks of a run.

    Raises:
        UserError: They are not those that the manifest knows.
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
        UserError: The manifest cannot be read.
    """
    manifest = read_manifest(folder)
    try:
        known = {one.name for one in fields(Generate)}
        given = {name: value for name, value in manifest["settings"].items() if name in known}
        return Generate(**given), int(manifest["seed"])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(
            f"{folder / 'manifest.json'}: its settings are of another version"
        ) from None


def requests(folder: Path) -> Iterator[tuple[Recipe, Request]]:
    """Every answered request of a run in order, with its prompt made again, and its recipe.

    What the run decided is taken as it was. The recipe is that of the moment of the request.

    Raises:
        UserError: Files are missing or damaged, or belong to another run.
    """
    settings, seed = settings_of(folder)
    recipe = recipe_of(settings, seeds_of(folder), seed)
    schedule = Schedule(recipe, size=settings.batch_size, most=settings.max_requests)
    for where, event in read_events(folder):
        chunk = schedule.chunk()
        try:
            if not chunk or content_hash(chunk[0].prompt) != event["prompt"]:
                raise KeyError("prompt")
            request = _request(event, chunk[0])
        except (KeyError, TypeError, AttributeError):
            raise UserError(
                f"{where}: does not follow from the seed tasks and settings beside it"
            ) from None
        yield recipe, request
        recipe.learn(request.ask, request.reply, request.kept)
        schedule.taken()


def event_of(
    number: int, ask: Ask, reply: Reply, kept: Sequence[Instruction], dropped: Sequence[Drop]
) -> Event:
    """The event of an answered request. What a teacher adds to `Reply` is kept with it."""
    more = {
        one.name: value
        for one in fields(reply)
        if one.name not in _OWN and isinstance(value := getattr(reply, one.name), _PLAIN)
    }
    return {
        "request": number,
        "step": ask.step,
        "prompt": content_hash(ask.prompt),
        "finish_reason": reply.finish_reason,
        "tokens": reply.tokens,
        **more,
        "text": reply.text,
        "drafts" if ask.drafts else "kept": [row.to_json() for row in kept],
        "dropped": [_drop_json(drop) for drop in dropped],
    }


def reply_of(event: Event) -> Reply:
    """The reply that an event holds; a KeyError or TypeError if it holds none."""
    given = {name: event[name] for name in _OWN}
    more = {one.name: event[one.name] for one in fields(Reply) if one.name in event}
    return Reply(**{**given, **more})


def drop_from_json(columns: Mapping[str, Any]) -> Drop:
    """A `Drop` as an event holds it."""
    row = columns["row"]
    known = {one.name for one in fields(Drop)}
    given = {name: value for name, value in columns.items() if name in known}
    return Drop(**{**given, "row": None if row is None else Instruction.from_json(row)})


def _plain_settings(settings: Generate) -> dict[str, Any]:
    """Settings that are one value; how a teacher is reached is not what it was asked."""
    values = {one.name: getattr(settings, one.name) for one in fields(settings)}
    return {name: value for name, value in values.items() if isinstance(value, _PLAIN)}


def _request(event: Event, ask: Ask) -> Request:
    return Request(
        number=event["request"],
        ask=ask,
        reply=reply_of(event),
        kept=[Instruction.from_json(row) for row in event["drafts" if ask.drafts else "kept"]],
        dropped=[drop_from_json(one) for one in event["dropped"]],
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
