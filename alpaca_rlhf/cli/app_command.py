"""`alpaca-rlhf app`: the app in a browser, and who may sign in to it."""

from __future__ import annotations

import getpass
import ipaddress
import shlex
import socket
import sys
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from alpaca_rlhf.cli.terminal import PROGRAM, Terminal, next_lines
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.data import holds_rankings, read_rankings
from alpaca_rlhf.preferences import DATABASE, manifest_of, read_snapshot
from alpaca_rlhf.serving import folders
from alpaca_rlhf.sources.sampled import queue_sampled
from alpaca_rlhf.sources.verdicts import open_store

if TYPE_CHECKING:
    from alpaca_rlhf.preferences.store import Store

ABOUT = "chat, compare, rank and look at the rankings in a browser"
USUAL_PORT = 7860
_SECRET, _SNAPSHOTS = "app.secret", "snapshots"
_SFT = Path("sft/adapter")


@dataclass(frozen=True)
class App:
    """Flags of `alpaca-rlhf app`."""

    run: Path = Path("runs/quickstart")
    """Run folder to take base and adapters from. Without one people can rank all the same."""
    db: str | None = None
    """Where the rankings are: a file, or postgresql+psycopg://user@host/name; by default
    preferences.db in the run folder, or here where there is no run."""
    host: str = "127.0.0.1"
    """Address to listen on. Another one than this machine's own needs accounts."""
    port: int | None = None
    """Port; by default 7860, or the next one that is free."""
    url: str | None = None
    """Address that people type, where a proxy on this machine stands before the app, e.g.
    https://rank.example.org."""
    open: bool = False
    """Whether to open the page in this machine's browser."""
    secret: Path | None = None
    """File with what sign-ins are signed with, made if absent; by default app.secret beside the
    database."""
    add_user: str | None = None
    """Add somebody of this name who may sign in, and do nothing else; asks for the password."""
    role: Literal["annotator", "admin"] | None = None
    """Role for --add-user; the first one is an admin."""

    add_gold: Path | None = None
    """Add rankings whose order is known (any file of rankings, or a snapshot) as gold questions,
    and do nothing else; people get some of them among their tasks, and the Data tab says how many
    they passed."""

    def __post_init__(self) -> None:
        if self.port is not None and not 0 < self.port < 65536:
            raise ValueError(f"--port must be from 1 to 65535, got {self.port}")
        if self.role is not None and self.add_user is None:
            raise ValueError("--role belongs to --add-user NAME")
        if self.url is not None:
            parts = urlsplit(self.url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(f"--url {self.url}: write it whole, e.g. https://rank.example.org")
            if parts.path not in ("", "/") or parts.query:
                raise ValueError(f"--url {self.url}: the app needs a name of its own, not a path")


def run(asked: App, terminal: Terminal) -> int:
    """Add somebody, or serve until Ctrl-C.

    Returns:
        The exit code, 0.

    Raises:
        UserError: The database, the address or the password will not do.
    """
    from alpaca_rlhf.app import environment

    environment.own_environment()
    has_run = folders.holds_run(asked.run)
    home = asked.run if has_run else Path()
    with open_store(home, asked.db, say=terminal.say) as store:
        if asked.add_user is not None:
            return _add_user(store, asked, terminal)
        if asked.add_gold is not None:
            return _add_gold(store, asked.add_gold, terminal)
        if has_run:
            added = queue_sampled(asked.run, store)
            if added:
                terminal.say(f"{added} prompts that {asked.run} has sampled are new in the queue")
        return _serve(store, asked, home, has_run, terminal)


def password_of(name: str) -> str:
    """A password that is typed twice on a terminal, or is the first line of another input.

    Raises:
        UserError: The two differ, or there is none.
    """
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        if not line:
            raise UserError("--add-user: the password is read from the input, which is empty")
        return line.rstrip("\n")
    first = getpass.getpass(f"password for {name}: ")
    if getpass.getpass("again: ") != first:
        raise UserError("--add-user: the two passwords differ; run it again")
    return first


def _add_user(store: Store, asked: App, terminal: Terminal) -> int:
    name = asked.add_user or ""
    first = not store.any_accounts()
    if first and asked.role == "annotator":
        raise UserError("--role annotator: the first account must be an admin; leave --role out")
    role = asked.role or ("admin" if first else "annotator")
    store.add_annotator(name, password_of(name), role=role, actor="command line")
    terminal.say(f"{name} may sign in as {role} to the app with {store.database.shown}")
    again = [PROGRAM, "app", *(["--db", asked.db] if asked.db else [])]
    if asked.run != App.run:
        again += ["--run", str(asked.run)]
    for line in next_lines([(shlex.join(again), "open the app")]):
        terminal.say(line)
    return 0


def _add_gold(store: Store, path: Path, terminal: Terminal) -> int:
    snapshot = manifest_of(path) is not None
    if not snapshot and not holds_rankings(path):
        raise UserError(
            f"--add-gold {path}: holds pairs or instructions, no rankings; give answers with their "
            "ranks, or the folder of a snapshot"
        )
    ranked = read_snapshot(path) if snapshot else read_rankings(path)
    orders = {prompt.id: said.tiers for prompt, _, said in ranked}
    rows = {prompt.id: (prompt, own) for prompt, own, _ in ranked}
    new = store.add_sets(rows.values(), origin=str(path), gold=orders)
    known = len(rows) - new
    told = f"; {known} were in the queue already and stay what they are" if known else ""
    terminal.say(f"{new} gold questions added to {store.database.shown}{told}")
    return 0


def _serve(store: Store, asked: App, home: Path, has_run: bool, terminal: Terminal) -> int:
    local = is_local(asked.host) and asked.url is None
    accounts = store.any_accounts()
    if not local and not accounts:
        what = f"--host {asked.host}" if asked.url is None else f"--url {asked.url}"
        raise UserError(
            f"{what}: others could reach the app, and nobody would have to sign in; make an "
            f"account first: {PROGRAM} app --add-user NAME"
        )
    file = store.database.file
    beside = file.parent if file else home
    about = f"run {asked.run}" if has_run else "no run: ranking only"
    terminal.say(f"app: {about}; rankings in {store.database.shown}; Ctrl-C ends it")
    where = _listen(asked)
    port = where.getsockname()[1]
    address = asked.url or f"http://{_shown(asked.host)}:{port}"
    from alpaca_rlhf.app import server, session
    from alpaca_rlhf.app.tabs import tabs

    worker, shown = tabs(
        store,
        asked.run if has_run else None,
        _exports(asked, beside, has_run),
        refill=_refill(asked),
    )
    app = server.make(
        store,
        session.read_secret(asked.secret or beside / _secret_name(file)),
        shown,
        server.Place(
            run=str(asked.run) if has_run else "",
            snapshots=(beside / _SNAPSHOTS).absolute(),
            hosts=_hosts(asked),
            local=local,
        ),
        status=worker.status if worker is not None else lambda language: "",
    )

    def ready() -> None:
        terminal.say(f"the app is at {address}")
        who = "everybody signs in" if accounts else "no accounts: whoever sits here is the admin"
        terminal.say(f"  {who}; more accounts: {PROGRAM} app --add-user NAME")
        if not local and not address.startswith("https"):
            terminal.say("  passwords travel unencrypted: put a proxy with https before it (--url)")
        if asked.open:
            webbrowser.open(address)

    try:
        server.serve(app, where, behind_proxy=asked.url is not None, ready=ready)
    finally:
        if worker is not None:
            worker.close()
    return 0


def _listen(asked: App) -> socket.socket:
    from alpaca_rlhf.app.listening import listen

    return listen(asked.host, asked.port, USUAL_PORT)


def is_local(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _shown(host: str) -> str:
    if host in ("0.0.0.0", "::"):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def _hosts(asked: App) -> list[str]:
    """Names by which the app may be called; addresses are always good."""
    names = ["localhost", asked.host]
    if not is_local(asked.host):
        names += [socket.gethostname(), socket.getfqdn()]
    if asked.url is not None:
        names.append(urlsplit(asked.url).hostname or "")
    return names


def _refill(asked: App) -> str:
    """The command that fills the queue."""
    words = [PROGRAM, "sample", "--run", str(asked.run)]
    return shlex.join([*words, *(["--db", asked.db] if asked.db else [])])


def _secret_name(file: Path | None) -> str:
    return _SECRET if file is None or file.name == DATABASE else f"{file.name}.secret"


def _exports(asked: App, beside: Path, has_run: bool) -> Any:
    """Where snapshots go, and the command that trains on one."""
    from alpaca_rlhf.app.data import Exports

    ready = (
        has_run
        and (asked.run / _SFT).is_dir()
        and folders.settings_of(asked.run).inputs.seeds is None  # it cannot be taken back by a flag
    )

    def command(folder: Path) -> str:
        words = [PROGRAM, "reward", "--inputs.judge", "human", "--inputs.rankings", str(folder)]
        if ready:
            words += ["--config", str(asked.run / "config.yaml")]
            words += ["--inputs.sft-adapter", str(asked.run / _SFT)]
            words += ["--out", f"{asked.run}-people"]
        else:
            words += ["--inputs.data", "ROWS", "--inputs.prompts", "PROMPTS"]
            words += ["--out", "runs/people"]
        return shlex.join(words)

    return Exports((beside / _SNAPSHOTS).absolute(), command, own_files=not ready)
