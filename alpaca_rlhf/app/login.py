"""Signing in and out: a page of our own that works without scripts and loads nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from functools import partial
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from alpaca_rlhf.app.gate import (
    Authenticator,
    RateLimits,
    accepts_json,
    client_address,
    retry_after,
    set_session_cookie,
)
from alpaca_rlhf.app.language import preferred_language, translations
from alpaca_rlhf.app.login_session import LoginSessions
from alpaca_rlhf.app.rate_limit import RateLimit
from alpaca_rlhf.app.rendering import render
from alpaca_rlhf.app.theme import LOGIN_STYLE
from alpaca_rlhf.preferences.people import MAX_NAME_CHARS, MAX_PASSWORD_CHARS, MIN_PASSWORD_CHARS
from alpaca_rlhf.preferences.store import Store

_MAX_CONCURRENT_HASHES = 2
_MAX_FORM_BYTES = 4096
_MAX_USUAL = 10_000


class Login:
    """The pages `/login`, `/logout` and `/password`.

    Args:
        store: The accounts.
        sessions: Makes the cookies.
        authenticator: Knows whether there are accounts to sign in to.
        limits: Limits of failed sign-ins.
        prefix: The path before the app's own paths.
    """

    def __init__(
        self,
        store: Store,
        sessions: LoginSessions,
        authenticator: Authenticator,
        limits: RateLimits,
        prefix: str = "",
    ) -> None:
        self._store = store
        self._sessions = sessions
        self._authenticator = authenticator
        self._limits = limits
        self._prefix = prefix
        # Addresses from which a name has signed in.
        self._usual: set[tuple[str, str]] = set()
        # A hash takes 32 MiB and a tenth of a second: many at once would stop the app.
        # Requests that wait for one hold no thread.
        self._hashing = asyncio.Semaphore(_MAX_CONCURRENT_HASHES)

    def routes(self) -> list[Route]:
        """The routes to put before Gradio's."""
        return [
            Route("/login", self.show, methods=["GET"]),
            Route("/login", self.sign_in, methods=["POST"]),
            Route("/logout", self.sign_out, methods=["POST"]),
            Route("/password", self.show_password, methods=["GET"]),
            Route("/password", self.change_password, methods=["POST"]),
        ]

    async def show(self, request: Request) -> Response:
        """The form; without accounts there is nothing to sign in to."""
        if not await run_in_threadpool(self._authenticator.needs_login):
            return RedirectResponse(f"{self._prefix}/", 303)
        return self._page(request, "")

    async def sign_in(self, request: Request) -> Response:
        """Check a name and a password; the response does not tell which of them is wrong."""
        body = await request.body()
        fields = parse_qs(body[:_MAX_FORM_BYTES].decode("utf-8", "replace"), keep_blank_values=True)
        name, password = (fields.get(field, [""])[0] for field in ("name", "password"))
        address, folded_name = client_address(request), name.strip().casefold()
        counters: list[tuple[RateLimit, Hashable]] = [
            (self._limits.failures, address),
            (self._limits.guesses, (address, folded_name)),
        ]
        if (address, folded_name) not in self._usual:
            counters.append((self._limits.names, folded_name))
        async with self._hashing:
            wait_s = max(limit.wait_s(key) for limit, key in counters)
            if wait_s:
                return self._refusal(request, "login.wait", 429, retry_after(wait_s))
            # Counted before the password is checked: two may be checked at the same time.
            for limit, key in counters:
                limit.take(key)
            account = await run_in_threadpool(self._store.sign_in, name, password)
            cookie = None
            if account is not None:
                cookie = await run_in_threadpool(self._sessions.cookie, account.id)
            if account is None or cookie is None:
                return self._refusal(request, "login.wrong", 401)
            for limit, key in counters:
                limit.give_back(key)
            if len(self._usual) >= _MAX_USUAL:
                self._usual.clear()
            self._usual.add((address, folded_name))
        response: Response = RedirectResponse(f"{self._prefix}/", 303)
        if accepts_json(request.headers):
            response = JSONResponse({"account": account.id})
        set_session_cookie(response, request, self._sessions.cookie_name, cookie, self._prefix)
        return response

    async def show_password(self, request: Request) -> Response:
        """The form to change one's own password; without accounts there is none to change."""
        if not await run_in_threadpool(self._authenticator.needs_login):
            return RedirectResponse(f"{self._prefix}/", 303)
        return self._password_page(request)

    async def change_password(self, request: Request) -> Response:
        """Change the password of whoever is signed in; every other session of theirs ends."""
        if not await run_in_threadpool(self._authenticator.needs_login):
            return RedirectResponse(f"{self._prefix}/", 303)
        account = request.state.account
        body = await request.body()
        fields = parse_qs(body[:_MAX_FORM_BYTES].decode("utf-8", "replace"), keep_blank_values=True)
        current, new, again = (fields.get(name, [""])[0] for name in ("current", "new", "again"))
        # 1. The new password, before a guess at the current one is counted.
        if new != again:
            return self._password_page(request, "password.differ", 422)
        if not MIN_PASSWORD_CHARS <= len(new) <= MAX_PASSWORD_CHARS:
            return self._password_page(request, "password.short", 422)
        # 2. The current one, under the limits of signing in.
        key = (client_address(request), account.name.casefold())
        async with self._hashing:
            wait_s = self._limits.guesses.wait_s(key)
            if wait_s:
                return self._password_page(request, "login.wait", 429, retry_after(wait_s))
            self._limits.guesses.take(key)
            known = await run_in_threadpool(self._store.sign_in, account.name, current)
            if known is None or known.id != account.id:
                return self._password_page(request, "password.wrong", 422)
            self._limits.guesses.give_back(key)
            change = partial(
                self._store.change_annotator, password=new, actor=f"annotator:{account.id}"
            )
            await run_in_threadpool(change, account.id)
        # 3. A cookie for the new password: the old ones have ended with it.
        cookie = await run_in_threadpool(self._sessions.cookie, account.id)
        response = RedirectResponse(f"{self._prefix}/", 303)
        name = self._sessions.cookie_name
        set_session_cookie(response, request, name, cookie or "", self._prefix)
        return response

    async def sign_out(self, request: Request) -> Response:
        """End the login; all its cookies are refused from now on, copies and older ones too."""
        cookie = request.cookies.get(self._sessions.cookie_name, "")
        await run_in_threadpool(self._sessions.end, cookie)
        response = RedirectResponse(f"{self._prefix}/login", 303)
        set_session_cookie(response, request, self._sessions.cookie_name, "", self._prefix)
        return response

    def _password_page(
        self,
        request: Request,
        problem: str = "",
        status: int = 200,
        headers: dict[str, str] | None = None,
    ) -> HTMLResponse:
        language = preferred_language(request.headers)
        text = translations("shell", language)
        page = render(
            "password",
            language=language,
            name=request.state.account.name,
            problem=text[problem] if problem else "",
            prefix=self._prefix,
            style=LOGIN_STYLE,
            min_password_chars=MIN_PASSWORD_CHARS,
            max_password_chars=MAX_PASSWORD_CHARS,
            text=text,
        )
        return HTMLResponse(page, status, {"cache-control": "no-store", **(headers or {})})

    def _refusal(
        self, request: Request, reason: str, status: int, headers: dict[str, str] | None = None
    ) -> Response:
        message = translations("shell", preferred_language(request.headers))[reason]
        if accepts_json(request.headers):
            return JSONResponse({"detail": message}, status, headers)
        return self._page(request, message, status, headers)

    def _page(
        self,
        request: Request,
        problem: str,
        status: int = 200,
        headers: dict[str, str] | None = None,
    ) -> HTMLResponse:
        language = preferred_language(request.headers)
        page = render(
            "login",
            language=language,
            problem=problem,
            prefix=self._prefix,
            style=LOGIN_STYLE,
            max_name_chars=MAX_NAME_CHARS,
            max_password_chars=MAX_PASSWORD_CHARS,
            text=translations("shell", language),
        )
        return HTMLResponse(
            page,
            status,
            {"cache-control": "no-store", "content-language": language, **(headers or {})},
        )
