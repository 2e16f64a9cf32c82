"""Upload of prompts to rank, for admins: the firewall's verdict first, then what adds them.

Those that have no answers yet are listed, and can be taken back; the others are found by browsing.
The browser keeps what it uploads and sends it again to add it, so that nothing lies on the server
in between, and what is added has just been screened.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from alpaca_rlhf.app.added_answers import AddedAnswers
from alpaca_rlhf.app.language import preferred_language, translations
from alpaca_rlhf.app.prefetch import ANSWERS_PER_SET
from alpaca_rlhf.app.refusals import for_admins_only
from alpaca_rlhf.app.rendering import render
from alpaca_rlhf.app.uploads import SUFFIXES, read_once
from alpaca_rlhf.core import quiet
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import FileAccount
from alpaca_rlhf.preferences.database import DiskFull
from alpaca_rlhf.preferences.store import Store
from alpaca_rlhf.preferences.stored_text import clean
from alpaca_rlhf.serving import run_contents
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.sources.run_prompts import RunPrompts
from alpaca_rlhf.sources.screening import Screening, screen

PATH = "/prompts"
"""The route; `gate` lets it through."""
PASTED = "pasted"
"""Stands in the place of a suffix for text that was pasted."""

MAX_LISTED = 100
"""Prompts without answers that are listed, the newest."""

Fits = Callable[[Instruction], bool]


@dataclass(frozen=True)
class _Upload:
    account: FileAccount
    screening: Screening


class PromptUpload:
    """Screens prompts against the splits of the run, and adds them to those that are ranked.

    Args:
        store: Keeps what is added.
        answers: Answers what is added.
        contents: Reads the settings of the run as they are now, and a check of a prompt's length.
    """

    def __init__(
        self,
        store: Store,
        answers: AddedAnswers,
        contents: Callable[[], tuple[Loop, Fits]],
    ) -> None:
        self._store = store
        self._answers = answers
        self._contents = contents

    def form(self, language: str) -> str:
        """The form as HTML."""
        text = translations("data", language)
        return render("prompt_upload", text=text, suffixes=",".join(SUFFIXES), k=ANSWERS_PER_SET)

    def progress(self, language: str) -> str:
        """The number of added prompts, and those that have no answers yet, as HTML."""
        added = len(self._store.added_prompts())
        waiting = self._store.added_prompts(unanswered=True)
        return render(
            "prompt_upload_progress",
            text=translations("data", language),
            added=added,
            waiting=len(waiting),
            newest=waiting[: -MAX_LISTED - 1 : -1],
            ready=self._answers.ready,
            running=self._answers.running,
            status=self._answers.status(language),
        )

    def verdict(self, content: bytes, suffix: str, language: str) -> str:
        """The verdict on uploaded prompts as HTML; nothing is added.

        Raises:
            UserError: They cannot be read, or are too many; or a file of the run is gone.
        """
        return self._rendered(self._screened(content, suffix), language)

    def add(self, content: bytes, suffix: str, language: str, *, actor: str) -> str:
        """Add the uploaded prompts that may be ranked, and let them be answered.

        Raises:
            UserError: As in `verdict`.
        """
        upload = self._screened(content, suffix)
        screening = upload.screening
        added = 0
        if screening.taken:
            refused: dict[str, int] = {**screening.refused}
            refused.update((str(reason), n) for reason, n in upload.account.left_out.items())
            added = self._store.add_prompts(screening.taken, actor=actor, refused=refused)
            self._answers.start()
        return self._rendered(upload, language, added=added)

    def _screened(self, content: bytes, suffix: str) -> _Upload:
        # 1. The rows, by the readers of every other file.
        if suffix == PASTED:
            content, suffix = _as_json_lines(content)
        rows, account = read_once(content, suffix)
        # 2. The splits as they are now: training may have added a round, or rows to learn from.
        settings, fits = self._contents()
        prompts = RunPrompts(settings.out, settings)
        known = {prompt.id for prompt in self._store.added_prompts()}
        return _Upload(account, screen(rows, prompts, known=known, fits=fits))

    def _rendered(self, upload: _Upload, language: str, *, added: int | None = None) -> str:
        account, screening = upload.account, upload.screening
        return render(
            "prompt_upload_verdict",
            text=translations("data", language),
            rows=account.rows,
            taken=len(screening.taken),
            refused=sorted(screening.refused.items()),
            examples=screening.examples,
            unusable=account.left_out.total(),
            lines=account.lines(),
            added=added,
        )

    # --- the route --------------------------------------------------------------------------------

    def routes(self) -> list[BaseRoute]:
        """The form and its progress, and what is uploaded; for admins."""
        return [
            Route(PATH, self._get, methods=["GET"]),
            Route(PATH, self._post, methods=["POST"]),
        ]

    async def _get(self, request: Request) -> Response:
        if request.state.account.role != "admin":
            return for_admins_only()
        language = preferred_language(request.headers)

        def work() -> Response:
            return JSONResponse({"html": self.form(language), "progress": self.progress(language)})

        return await run_in_threadpool(work)

    async def _post(self, request: Request) -> Response:
        """Screen, add, answer what waits, or take it back, as the query says."""
        if request.state.account.role != "admin":
            return for_admins_only()
        language = preferred_language(request.headers)
        action, suffix = (request.query_params.get(name, "") for name in ("do", "suffix"))
        content = await request.body()
        actor = f"annotator:{request.state.account.id}"

        def work() -> str:
            if action == "check":
                return self.verdict(content, suffix, language)
            if action == "add":
                return self.add(content, suffix, language, actor=actor)
            if action == "answer":
                self._answers.start()
                return ""
            if action == "remove":
                n_removed = self._store.remove_prompts(_ids_of(content), actor=actor)
                message = translations("data", language)["upload.removed"].format(n=n_removed)
                return render("data_outcome", message=message, kind="good" if n_removed else "bad")
            raise UserError("`do` must be check, add, answer or remove")

        return await run_in_threadpool(self._answered, work, language)

    def _answered(self, work: Callable[[], str], language: str) -> Response:
        """The response of some work, or its refusal in one line."""
        try:
            return JSONResponse({"html": work(), "progress": self.progress(language)})
        except DiskFull:
            message = translations("shell", language)["full"]
        except UserError as error:
            message = str(error)
        return JSONResponse({"html": render("data_outcome", message=message, kind="bad")}, 422)


def contents_of(run: Path) -> tuple[Loop, Fits]:
    """The settings of a run as they are now, and a check that its base has room for a prompt.

    Raises:
        UserError: The settings or the tokenizer cannot be read any more.
    """
    settings = run_contents.settings_of(run)
    with quiet.loading(settings.base):
        from alpaca_rlhf.models.base import read_texts
        from alpaca_rlhf.stages.lengths import has_room
    texts = read_texts(settings.base)
    return settings, lambda row: has_room(texts, settings, row)


def _ids_of(content: bytes) -> list[str]:
    """The ids of the prompts that a browser names.

    Raises:
        UserError: It is no list of ids.
    """
    try:
        ids = json.loads(content)
    except (ValueError, RecursionError):
        ids = None
    if not isinstance(ids, list) or not all(isinstance(key, str) for key in ids):
        raise UserError("the ids of the prompts must be a list of texts")
    return [clean(key) for key in ids[:MAX_LISTED]]


def _as_json_lines(content: bytes) -> tuple[bytes, str]:
    """Pasted text as a file, and its suffix: JSON as it is, else each line as a prompt.

    Raises:
        UserError: It is not text.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise UserError("the text is not UTF-8") from None
    if text.lstrip().startswith("["):
        return content, ".json"
    if text.lstrip().startswith("{"):
        return content, ".jsonl"
    # Empty lines stay, so that a message counts lines as the person does.
    lines = [line.strip() for line in text.split("\n")]
    rows = [json.dumps({"instruction": line}) if line else "" for line in lines]
    return "\n".join(rows).encode(), ".jsonl"
