"""`alpaca-rlhf app`: the app in a browser, and its accounts."""

from __future__ import annotations

import getpass
import ipaddress
import re
import shlex
import socket
import sys
import threading
import webbrowser
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from annotated_types import Interval

from alpaca_rlhf.cli import own_files
from alpaca_rlhf.cli.terminal import PROGRAM, Terminal
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.shell_words import quoted
from alpaca_rlhf.data import FileAccount, Reading, holds_rankings, read_rankings
from alpaca_rlhf.preferences import DATABASE, manifest_of, read_snapshot
from alpaca_rlhf.serving import run_contents
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.settings.bounds import Bounded
from alpaca_rlhf.settings.judge_names import canonical, parse_judge
from alpaca_rlhf.settings.leaves import REPEATS
from alpaca_rlhf.settings.parsing import parse
from alpaca_rlhf.sources.sampled import queue_sampled
from alpaca_rlhf.sources.verdicts import open_store

if TYPE_CHECKING:
    from alpaca_rlhf.app.new_run import Offer
    from alpaca_rlhf.app.new_run_page import RunSwitch
    from alpaca_rlhf.app.run_choice import RunChoice
    from alpaca_rlhf.app.training import Closed, TrainingCommand
    from alpaca_rlhf.preferences.store import Store

USUAL_PORT = 7860
_PREFIX = re.compile(r"/|(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]+)+/?")
_SECRET, _SNAPSHOTS = "app.secret", "snapshots"
_SFT = Path("sft/adapter")


@dataclass(frozen=True)
class App(Bounded):
    """Flags of `alpaca-rlhf app`."""

    run: Path = Path("runs/quickstart")
    """Run folder to take base and adapters from. Without one people can rank all the same."""
    db: str | None = None
    """Database of the rankings: a file, or postgresql+psycopg://user@host/name; by default
    preferences.db in the run folder, or here where there is no run."""
    host: str = "127.0.0.1"
    """Address to listen on. Another one than this machine's own needs accounts."""
    port: Annotated[int, Interval(ge=1, le=65535)] | None = None
    """Port; by default 7860, or the next one that is free."""
    url: str | None = None
    """Address that people type, where a proxy on this machine stands before the app, e.g.
    https://rank.example.org, or https://example.org/rank below a path."""
    root_path: str | None = None
    """Path below which a proxy shows the app, e.g. /rank; by default the path of --url."""
    open: bool = False
    """Open the page in this machine's browser."""
    secret: Path | None = None
    """File with what sign-ins are signed with, made if absent; by default app.secret beside the
    database."""
    add_user: str | None = None
    """Add somebody of this name who may sign in, and do nothing else; asks for the password."""
    role: Literal["annotator", "admin"] | None = None
    """Role for --add-user; the first one is an admin."""

    allow_training: bool = False
    """Let admins start and stop the training of the run from the page, and begin new runs, where
    others can reach the app too (--host, --url, --root-path); on this machine alone they always
    may."""
    allow_base: tuple[str, ...] = field(default=(), metadata={REPEATS: True})
    """A base that new runs on the page may have, beside `embedded` and `smollm2`: a folder, a GGUF
    file or a hub id. May stand several times."""
    allow_judge: tuple[str, ...] = field(default=(), metadata={REPEATS: True})
    """A judge that new runs on the page may have, beside `human`, `gold` and `checks`: in the forms
    of --inputs.judge. May stand several times."""
    recipe: Path | None = None
    """Settings of new runs on the page (a YAML file, as for --config), apart from those of the
    form."""
    set_password: str | None = None
    """Set a new password of somebody who has an account, such as an admin who has lost it, and do
    nothing else; asks for the password. All their sessions end."""
    add_gold: Path | None = None
    """Add rankings whose order is known (any file of rankings, or a snapshot) as gold questions,
    and do nothing else; people get some of them among their tasks, and the Data tab says how many
    they passed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for judge in self.allow_judge:
            try:
                parse_judge(judge)
            except ValueError as error:
                raise ValueError(f"--allow-judge {error}") from None
        if self.role is not None and self.add_user is None:
            raise ValueError("--role belongs to --add-user NAME")
        if self.url is not None:
            parts = urlsplit(self.url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(f"--url {self.url}: write it whole, e.g. https://rank.example.org")
            if parts.query or parts.fragment or parts.username:
                raise ValueError(
                    f"--url {self.url}: give scheme, name and path alone, e.g. "
                    "https://example.org/rank"
                )
        for flag, value, path in (
            ("--root-path", self.root_path, self.root_path),
            ("--url", self.url, urlsplit(self.url or "").path),
        ):
            if path and not _PREFIX.fullmatch(path):
                raise ValueError(
                    f"{flag} {value}: the path must begin with a slash and have letters, digits, "
                    "-, _, . and ~ alone, e.g. /rank"
                )
        if self.url is not None and self.root_path is not None:
            if urlsplit(self.url).path.rstrip("/") not in ("", self.root_path.rstrip("/")):
                raise ValueError(
                    f"--root-path {self.root_path}: --url {self.url} has another path; give one"
                )

    @property
    def prefix(self) -> str:
        """The path before the app's own paths, without a slash at its end; mostly empty."""
        return (self.root_path or urlsplit(self.url or "").path).rstrip("/")

    @property
    def origin(self) -> str:
        """Scheme and host of `--url`; empty without it."""
        parts = urlsplit(self.url or "")
        return f"{parts.scheme}://{parts.netloc}" if parts.netloc else ""


def run(flags: App, terminal: Terminal) -> int:
    """Add an account or gold questions, or serve the app until Ctrl-C.

    Returns:
        The exit code, 0.

    Raises:
        UserError: The database, the address or the password is not acceptable.
    """
    from alpaca_rlhf.app import environment

    environment.isolate_environment()
    if flags.run != App.run:  # only the default may be absent: people then rank without a run
        run_contents.refuse_missing(flags.run)
    from alpaca_rlhf.app.run_choice import RunChoice

    # 1. The run that the page has gone on to; with a database of its own the app stays where it is.
    offer = _offer(flags)  # before a database is made
    choice = RunChoice(flags.run)
    started_with = flags
    if flags.db is None and choice.current != choice.started_on:
        flags = replace(flags, run=choice.current)
        terminal.say(
            f"the page has gone on from {started_with.run} to {flags.run}; the Train tab goes "
            f"back, and so does an app that starts without {choice.file}"
        )
    with _store_of(flags, terminal) as store:
        if flags.add_user is not None:
            return _add_user(store, flags, terminal)
        if flags.set_password is not None:
            return _set_password(store, flags.set_password, terminal)
        if flags.add_gold is not None:
            return _add_gold(store, flags.add_gold, terminal)
    # 2. Serve one run after the other, on the same port and with the same sessions.
    site = _Site(choice, offer)
    start_as: str | None = None
    while True:
        with _store_of(flags, terminal) as store:
            if run_contents.holds_run(flags.run):
                added = queue_sampled(flags.run, store)
                if added:
                    terminal.say(
                        f"{added} prompts that {flags.run} has sampled are new in the queue"
                    )
            switch = _serve(store, flags, site, terminal, start_as=start_as)
        if switch is None:
            return 0
        flags, start_as = replace(started_with, run=switch.run, open=False), switch.start_as


@dataclass
class _Site:
    """Everything that stays as it is while the app goes from one run to another."""

    choice: RunChoice
    """The runs, and which one the app is on."""
    offer: Offer
    """Choices of new runs."""
    listener: socket.socket | None = None
    """The socket, once it is bound."""


def _store_of(flags: App, terminal: Terminal) -> Store:
    return open_store(_home(flags.run), flags.db, say=terminal.say)


def _home(run: Path) -> Path:
    """The folder of the database: the run's, or this one where there is no run."""
    return run if run_contents.holds_run(run) else Path()


def _offer(flags: App) -> Offer:
    """The choices of new runs.

    Raises:
        UserError: The recipe cannot be read, or has no address for the judge `llm`.
    """
    from alpaca_rlhf.app.new_run import BASES, JUDGES, Offer

    recipe = None
    if flags.recipe is not None:
        try:
            recipe = parse(Loop, ["--config", str(flags.recipe)], prog=PROGRAM, description="")
        except UserError as error:
            raise UserError(str(error).replace("--config ", "--recipe ", 1)) from None
    judges = dict.fromkeys((*JUDGES, *map(canonical, flags.allow_judge)))
    if "llm" in judges and (recipe is None or recipe.judge.url is None):
        raise UserError("--allow-judge llm: give its address as judge.url in a --recipe FILE.yaml")
    return Offer(tuple(dict.fromkeys((*BASES, *flags.allow_base))), tuple(judges), recipe)


def password_of(name: str, *, flag: str = "--add-user") -> str:
    """Read a password: typed twice on a terminal, or the first line of any other input.

    Raises:
        UserError: The two differ, or the input is empty.
    """
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        if not line:
            raise UserError(f"{flag}: the password is read from the input, which is empty")
        return line.rstrip("\r\n")
    password = getpass.getpass(f"password for {name}: ")
    if getpass.getpass("again: ") != password:
        raise UserError(f"{flag}: the two passwords differ; run it again")
    return password


def _add_user(store: Store, flags: App, terminal: Terminal) -> int:
    from alpaca_rlhf.preferences.database import db_flag  # SQLAlchemy is slow to load

    name = flags.add_user or ""
    first_account = not store.any_accounts()
    if first_account and flags.role == "annotator":
        raise UserError("--role annotator: the first account must be an admin; leave --role out")
    role = flags.role or ("admin" if first_account else "annotator")
    store.add_annotator(name, password_of(name), role=role, actor="command line")
    terminal.say(f"{name} may sign in as {role} to the app with {store.database.shown}")

    command = [PROGRAM, "app", *db_flag(flags.db)]
    if flags.run != App.run:
        command += ["--run", str(flags.run)]
    terminal.say_next([(shlex.join(command), "open the app")])
    return 0


def _set_password(store: Store, name: str, terminal: Terminal) -> int:
    people = [person for person in store.figures().people if person.has_account]
    person = next((person for person in people if person.name == name), None)
    if not people:
        raise UserError(
            f"--set-password {name}: {store.database.shown} has no accounts, so nobody signs in "
            f"and there is no password to set; --add-user {quoted(name)} makes the first one"
        )
    if person is None:
        names = ", ".join(person.name for person in people)
        raise UserError(
            f"--set-password {name}: nobody of this name has an account in {store.database.shown}; "
            f"there is {names}; --add-user makes an account"
        )
    password = password_of(name, flag="--set-password")
    store.change_annotator(person.id, password=password, actor="command line")
    terminal.say(f"{name} has a new password; all earlier sessions have ended")
    if not person.active:
        terminal.say("  the account is deactivated: an admin activates it on the Data tab")
    return 0


def _add_user_command(flags: App, store: Store) -> str:
    """The command that adds an account to this app's own database, without its password."""
    command = [PROGRAM, "app", *(["--run", str(flags.run)] if flags.run != App.run else [])]
    command += ["--db", store.database.shown] if flags.db else []
    return shlex.join([*command, "--add-user", "NAME"])


def _add_gold(store: Store, path: Path, terminal: Terminal) -> int:
    snapshot = manifest_of(path) is not None
    if not snapshot and not holds_rankings(path):
        raise UserError(
            f"--add-gold {path}: holds pairs or instructions, no rankings; give answers with their "
            "ranks, or the folder of a snapshot"
        )
    # A gold question has one right order: that of the first ranking of its prompt.
    reading = Reading("rankings", account=FileAccount(str(path)))
    ranked = read_snapshot(path) if snapshot else read_rankings(path, reading)
    for line in reading.account.lines():
        terminal.say(line)
    by_prompt = {row[0].id: row for row in reversed(ranked)}
    first = [by_prompt[key] for key in dict.fromkeys(prompt.id for prompt, _, _ in ranked)]
    tiers = {prompt.id: ranking.tiers for prompt, _, ranking in first}
    sets = [(prompt, completions) for prompt, completions, _ in first]
    new = store.add_sets(sets, origin=str(path), gold=tiers)
    known, further = len(sets) - new, len(ranked) - len(sets)
    note = f"; {known} were already in the queue and stay as they are" if known else ""
    note += f"; {further} further rankings of the same prompts left out" if further else ""
    terminal.say(f"{new} gold questions added to {store.database.shown}{note}")
    return 0


def _closed_to_new_runs(flags: App, *, local: bool) -> Closed | None:
    """The reason why no browser may begin a run."""
    if flags.db is not None:
        return "database"
    return None if local or flags.allow_training else "flag"


def _training_command(flags: App, store: Store, *, local: bool) -> TrainingCommand:
    """The command that trains the run, and whether a browser may start it."""
    from alpaca_rlhf.app.training import TrainingCommand

    words = ["loop", "--out", str(flags.run)]
    process = [sys.executable, "-m", "alpaca_rlhf", *words]
    file = store.database.file
    if file is None or file.resolve() != (flags.run / DATABASE).resolve():
        shown = shlex.join([PROGRAM, *words, "--inputs.rankings", "SNAPSHOT"])
        return TrainingCommand(process, shown, "database")
    is_open = local or flags.allow_training
    return TrainingCommand(process, shlex.join([PROGRAM, *words]), None if is_open else "flag")


def _serve(
    store: Store, flags: App, site: _Site, terminal: Terminal, *, start_as: str | None = None
) -> RunSwitch | None:
    """Serve the app on one run until Ctrl-C, or until the page goes on to another run.

    Args:
        store: The database.
        flags: All flags; `run` is the run that the app is on now.
        site: What stays when the app goes on to another run.
        terminal: Terminal to write to.
        start_as: Who has asked on the page for the training of this run.
    """
    has_run, home = run_contents.holds_run(flags.run), _home(flags.run)
    # 1. Nobody beyond this machine may reach an app without accounts.
    behind_proxy = flags.url is not None or bool(flags.prefix)
    local = is_local(flags.host) and not behind_proxy
    accounts = store.any_accounts()
    if not local and not accounts:
        flag = f"--host {flags.host}" if not flags.prefix else f"--root-path {flags.root_path}"
        flag = flag if flags.url is None else f"--url {flags.url}"
        raise UserError(
            f"{flag}: others could reach the app, and nobody would have to sign in; make an "
            f"account first: {_add_user_command(flags, store)}"
        )
    file = store.database.file
    folder = file.parent if file else home
    about = f"run {flags.run}" if has_run else "no run: ranking, and New run on the Train tab"
    terminal.say(f"app: {about}; rankings in {store.database.shown}; Ctrl-C ends it")
    # 2. Where a proxy shows the app, its own paths must not lie. Gradio is slow to load.
    from alpaca_rlhf.app import gate

    if flags.prefix and flags.prefix.split("/")[1] in gate.own_names():
        flag = f"--url {flags.url}" if flags.root_path is None else f"--root-path {flags.root_path}"
        raise UserError(
            f"{flag}: {flags.prefix} is a path of the app itself; give another one, e.g. /rank"
        )
    # 3. Take the port before torch is loaded, so that a taken port is reported at once.
    site.listener = site.listener or _listen(flags)
    port = site.listener.getsockname()[1]
    address = (flags.origin or f"http://{_url_host(flags.host)}:{port}") + flags.prefix
    from alpaca_rlhf.app import login_session, server
    from alpaca_rlhf.app.new_run_page import NewRuns
    from alpaca_rlhf.app.tabs import tabs

    # 4. Build the tabs and the server, and serve.
    switches: list[RunSwitch] = []
    stop = threading.Event()

    def leave(switch: RunSwitch) -> None:
        switches.append(switch)
        stop.set()

    app_tabs = tabs(
        store,
        flags.run if has_run else None,
        _exports(flags, folder, has_run),
        refill=_refill(flags),
        command=_training_command(flags, store, local=local),
        new_runs=NewRuns(
            store,
            site.choice,
            site.offer,
            closed=_closed_to_new_runs(flags, local=local),
            switch=leave,
        ),
    )
    app = server.build_app(
        store,
        login_session.read_secret(_secret_file(flags, site.choice, file)),
        app_tabs.tabs,
        server.Deployment(
            run=str(flags.run) if has_run else "",
            snapshots=(folder / _SNAPSHOTS).absolute(),
            hosts=_hosts(flags),
            local=local,
            origin=flags.origin,
            prefix=flags.prefix,
        ),
        status=app_tabs.worker.status if app_tabs.worker else lambda language: "",
        own_routes=app_tabs.routes(),
    )

    def ready() -> None:
        terminal.say(f"the app is at {address}")
        access = "everybody signs in" if accounts else "no accounts: whoever sits here is the admin"
        terminal.say(f"  {access}; more accounts: {_add_user_command(flags, store)}")
        if not local and not address.startswith("https"):
            terminal.say(
                "  passwords travel unencrypted: put a proxy with https in front of it (--url)"
            )
        if flags.open:
            webbrowser.open(address)

    if start_as is not None and app_tabs.train is not None:
        refused = app_tabs.train.start_first(actor=start_as)
        if refused is not None:  # another one was faster: the Train tab says so and offers it anew
            terminal.say(f"the training of {flags.run} was not started ({refused.reason})")
    try:
        server.serve(app, site.listener, behind_proxy=behind_proxy, on_ready=ready, stop=stop)
    finally:
        goes_on = app_tabs.train is not None and app_tabs.train.training.state.activity != "idle"
        if goes_on and not switches:
            command = shlex.join([PROGRAM, "loop", "--out", str(flags.run)])
            terminal.say(
                f"the training of {flags.run} goes on without the app; once it has ended or is "
                f"stopped, `{command}` goes on with it"
            )
        app_tabs.close()
    return switches[0] if switches else None


def _listen(flags: App) -> socket.socket:
    from alpaca_rlhf.app.server_socket import listen

    return listen(flags.host, flags.port, USUAL_PORT)


def is_local(host: str) -> bool:
    """True if only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _url_host(host: str) -> str:
    if host in ("0.0.0.0", "::"):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def _hosts(flags: App) -> list[str]:
    """Host names that requests may use; IP addresses are always accepted."""
    names = ["localhost", flags.host]
    if not is_local(flags.host):
        names += [socket.gethostname(), socket.getfqdn()]
    if flags.url is not None:
        names.append(urlsplit(flags.url).hostname or "")
    return names


def _refill(flags: App) -> str:
    """The command that fills the queue."""
    command = [PROGRAM, "sample", "--run", str(flags.run)]
    from alpaca_rlhf.preferences.database import db_flag  # loads SQLAlchemy

    return shlex.join([*command, *db_flag(flags.db)])


def _secret_file(flags: App, choice: RunChoice, file: Path | None) -> Path:
    """The file of the cookies' key.

    It lies with the run that the app was started on, so that a login holds on every other run.
    """
    if flags.secret is not None:
        return flags.secret
    home = _home(choice.started_on)
    if flags.db is None:
        return home / _SECRET
    return (file.parent if file else home) / _secret_name(file)


def _secret_name(file: Path | None) -> str:
    return _SECRET if file is None or file.name == DATABASE else f"{file.name}.secret"


def _exports(flags: App, folder: Path, has_run: bool) -> Any:
    """The folder of snapshots, and the command that trains on one."""
    from alpaca_rlhf.app.data_tab import Exports

    def is_trained() -> bool:  # the page may have trained the run since the app was started
        return has_run and (flags.run / _SFT).is_dir()

    def command(snapshot: Path) -> str:
        if is_trained():
            return own_files.reward_on_snapshot(run_contents.settings_of(flags.run), snapshot)
        words = [PROGRAM, "reward", "--inputs.judge", "human", "--inputs.rankings", str(snapshot)]
        words += ["--inputs.data", "ROWS", "--inputs.prompts", "PROMPTS"]
        return shlex.join([*words, "--out", f"runs/people-{snapshot.name}"])

    return Exports((folder / _SNAPSHOTS).absolute(), command, lambda: not is_trained())
