"""Signing in and out: a page of our own, which works without scripts and loads nothing."""

from __future__ import annotations

import asyncio
from html import escape
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from alpaca_rlhf.app.guards import Rates, Who, address, as_json, asks_for_json, give_cookie
from alpaca_rlhf.app.language import preferred, words
from alpaca_rlhf.app.session import Sessions
from alpaca_rlhf.app.theme import LOGIN_STYLE
from alpaca_rlhf.preferences.store import Store

_AT_ONCE = 2
_FORM_BYTES = 4096


class Login:
    """The pages `/login` and `/logout`.

    Args:
        store: Knows the accounts.
        sessions: Makes the cookies.
        who: Whether there is anything to sign in to.
        rates: How often one may fail.
    """

    def __init__(self, store: Store, sessions: Sessions, who: Who, rates: Rates) -> None:
        self._store = store
        self._sessions = sessions
        self._who = who
        self._rates = rates
        # A hash takes 32 MiB and a tenth of a second: many at once would stop the app.
        # Who waits for one holds no thread.
        self._hashing = asyncio.Semaphore(_AT_ONCE)

    def routes(self) -> list[Route]:
        """What to put before Gradio."""
        return [
            Route("/login", self.show, methods=["GET"]),
            Route("/login", self.sign_in, methods=["POST"]),
            Route("/logout", self.sign_out, methods=["POST"]),
        ]

    async def show(self, request: Request) -> Response:
        """The form; without accounts there is nothing to sign in to."""
        if not await run_in_threadpool(self._who.needs_login):
            return RedirectResponse("/", 303)
        return _page(request, "")

    async def sign_in(self, request: Request) -> Response:
        """Take a name and a password; the answer does not tell which of them is wrong."""
        body = await request.body()
        given = parse_qs(body[:_FORM_BYTES].decode("utf-8", "replace"), keep_blank_values=True)
        name, password = (given.get(one, [""])[0] for one in ("name", "password"))
        where, key = address(request), name.strip().casefold()
        counted = ((self._rates.failures, where), (self._rates.guesses, (where, key)))
        async with self._hashing:
            wait = max(limit.wait_s(of) for limit, of in counted)
            if wait:
                told = {"retry-after": str(int(wait) + 1)}
                return self._refused(request, "login.wait", 429, told)
            # Counted before the password is looked at: two may be looked at together.
            for limit, of in counted:
                limit.take(of)
            account = await run_in_threadpool(self._store.sign_in, name, password)
            cookie = None
            if account is not None:
                cookie = await run_in_threadpool(self._sessions.cookie, account.id)
            if account is None or cookie is None:
                return self._refused(request, "login.wrong", 401)
            for limit, of in counted:
                limit.give(of)
        response: Response = RedirectResponse("/", 303)
        if asks_for_json(request.headers):
            response = JSONResponse({"account": account.id})
        give_cookie(response, request, self._sessions.name, cookie)
        return response

    async def sign_out(self, request: Request) -> Response:
        """End the session; its cookie is not taken any more, even from a copy."""
        self._sessions.end(request.cookies.get(self._sessions.name, ""))
        response = RedirectResponse("/login", 303)
        give_cookie(response, request, self._sessions.name, "")
        return response

    @staticmethod
    def _refused(
        request: Request, why: str, status: int, headers: dict[str, str] | None = None
    ) -> Response:
        says = words("shell", preferred(request.headers))[why]
        if asks_for_json(request.headers):
            return JSONResponse({"detail": says}, status, headers)
        return _page(request, says, status, headers)


def _page(
    request: Request, problem: str, status: int = 200, headers: dict[str, str] | None = None
) -> HTMLResponse:
    language = preferred(request.headers)
    says = {key: escape(text) for key, text in words("shell", language).items()}
    told = f'<p class="problem" role="alert">{escape(problem)}</p>' if problem else ""
    # Somebody who comes by a link from another site has sent no cookie, though they have one.
    look = f"if(!{as_json(bool(problem))})fetch('/status').then(r=>r.ok&&location.replace('/'))"
    return HTMLResponse(
        f"""<!doctype html>
<html lang="{language}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{says["login.title"]} · alpaca-rlhf</title>
<style>{LOGIN_STYLE}</style>
</head>
<body>
<main>
<h1>alpaca-rlhf</h1>
{told}
<form method="post" action="/login">
<label for="name">{says["login.name"]}</label>
<input id="name" name="name" autocomplete="username" autocapitalize="none" required autofocus
 maxlength="80">
<label for="password">{says["login.password"]}</label>
<input id="password" name="password" type="password" autocomplete="current-password" required
 maxlength="1000">
<button>{says["login.sign_in"]}</button>
</form>
</main>
<script>{look}</script>
</body>
</html>
""",
        status,
        {"cache-control": "no-store", "content-language": language, **(headers or {})},
    )
