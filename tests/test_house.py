"""The rules of the house, read from the source. A failure names the file, the line and the rule."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "alpaca_rlhf"

LAYERS = (
    {"core"},
    {"settings"},
    {"checks", "llm", "preferences", "smallworld"},
    {"data"},
    {"judges"},
    {"models"},
    {"training"},
    {"evaluation"},
    {"report"},
    {"sources", "planner"},
    {"stages"},
    {"doctor", "pipeline", "exporting"},
    {"serving"},
    {"app"},
    {"cli"},
    {"__main__"},
)
"""Rooms, lowest layer first: an import goes down, or to a neighbour's public names."""

HEAVY = ("torch", "transformers", "peft", "bitsandbytes", "datasets", "accelerate")
"""Packages that the first five layers must not load."""

DATABASE = ("sqlalchemy", "alembic", "psycopg", "sqlite3")
"""Packages that only the preferences room touches: everything else asks its `Store`."""

LAYER = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}
FREEZING = "model.requires_grad_(False)"

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "_data" not in path.parts)


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    return module.partition(".")[2].partition(".")[0]


def place(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


@cache
def nodes(path: Path) -> list[ast.AST]:
    """Every node of a module."""
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def imports(path: Path) -> Iterator[tuple[ast.AST, str, str]]:
    """(node, module, name), made absolute; `name` is empty for `import module`."""
    package = name_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in nodes(path):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name, ""
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node, module, alias.name


def test_every_module_has_a_layer():
    rooms = {room_of(name_of(path)) for path in MODULES} - {""}
    assert not rooms - set(LAYER), "new rooms need a place in LAYERS, and in docs/architecture.md"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_down(path):
    here = room_of(name_of(path))
    for node, module, name in imports(path):
        if module.split(".")[0] in ("recipes", "tests", "benchmarks"):
            pytest.fail(f"{place(path, node)}: the package does not import {module}")
        if module.split(".")[0] != "alpaca_rlhf":
            continue
        there = room_of(module) or name
        if there == here or there.startswith("__version"):
            continue
        where = f"{place(path, node)}: {here} imports {module}"
        assert here, f"{where}: the package's __init__ imports nothing"
        assert {here, there} <= set(LAYER), f"{where}: a room without a layer"
        assert LAYER[there] <= LAYER[here], f"{where}: {there} lies above {here}"
        assert not name.startswith("_"), f"{where}: {name} is private to {there}"
        if LAYER[there] == LAYER[here]:
            inside = module.count(".") > 1
            assert not inside, f"{where}: take it from alpaca_rlhf.{there}, not from its inside"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_habits_stay_in_their_rooms(path):
    switches = path != PACKAGE / "models" / "adapters.py"
    freezes = set()  # models/base.py may freeze the whole base, and that alone
    if path == PACKAGE / "models" / "base.py":
        calls = [node for node in nodes(path) if isinstance(node, ast.Call)]
        freezes = {id(call.func) for call in calls if ast.unparse(call) == FREEZING}
    for node in nodes(path):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"{place(path, node)}: no print; log or use the console"
        if not switches or not isinstance(node, ast.Attribute) or id(node) in freezes:
            continue
        what = f"{place(path, node)}: only models/adapters.py touches {node.attr}"
        assert node.attr not in ("requires_grad_", "_active_adapter", "set_adapter"), what
        assert node.attr != "requires_grad" or isinstance(node.ctx, ast.Load), what


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_the_preferences_room_holds_sql(path):
    if room_of(name_of(path)) == "preferences":
        return
    for node, module, _ in imports(path):
        assert module.split(".")[0] not in DATABASE, f"{place(path, node)}: imports {module}"


VAGUE_NAMES = frozenset("one own found said told asked made says thing stuff".split())
"""Pronouns and bare participles that no variable, parameter or attribute may be called."""

KEPT_NAMES = {("doctor/finding.py", "found")}
"""Names that stand in files which people keep: here the JSON of `doctor --json`."""

QUESTION_WORDS = ("What ", "Whether ", "How ", "Who ", "Where ", "That ")
"""Words that open a docstring which says nothing of the thing itself."""


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_names_say_what_they_hold(path):
    assert path.name != "utils.py", f"{path.relative_to(ROOT)}: name it after what it does"
    for node in nodes(path):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        elif isinstance(node, ast.arg):
            name = node.arg
        else:
            continue
        if (path.relative_to(PACKAGE).as_posix(), name) in KEPT_NAMES:
            continue
        assert name not in VAGUE_NAMES, f"{place(path, node)}: {name} does not say what it holds"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_docstrings_say_the_thing_itself(path):
    for node in nodes(path):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            text = node.value.value
            opens = isinstance(text, str) and text.startswith(QUESTION_WORDS)
            assert not opens, f"{place(path, node)}: say what it is or does, not {text[:30]!r}"


HOMES = {
    "fcntl": {"core/locks.py"},
    "msvcrt": {"core/locks.py"},
    "httpx": {"llm/wire.py", "llm/client.py", "models/hub.py"},
    "jinja2": {"core/html.py", "report/render.py"},
    "tyro": {"settings/parsing.py", "settings/leaves.py"},
}
"""Libraries that one place wraps for the whole package, and that place."""


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_each_thing_has_one_home(path):
    here = path.relative_to(PACKAGE).as_posix()
    for node, module, _ in imports(path):
        homes = HOMES.get(module.split(".")[0])
        assert homes is None or here in homes, f"{place(path, node)}: {module} belongs to {homes}"


LIGHT = [path for path in MODULES if room_of(name_of(path)) in set().union(*LAYERS[:5])]


def test_the_first_five_layers_load_no_torch():
    """In one process, module by module: the first to load something heavy is named."""
    program = f"""
import importlib, sys
for name in {[name_of(path) for path in LIGHT]!r}:
    importlib.import_module(name)
    heavy = [one for one in {HEAVY!r} if one in sys.modules]
    if heavy:
        sys.exit(f"{{name}} loads {{', '.join(heavy)}}")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_every_dependency_is_pinned_within_its_range():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    assert pins["torch"] == "2.13.0"
    for text in project["dependencies"] + project["optional-dependencies"]["dev"]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(pins[canonicalize_name(wanted.name)]), text


def test_the_rules_see_what_they_look_for(tmp_path, monkeypatch):
    """The reader itself, on a file with one of each."""
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "alpaca_rlhf" / "data" / "filters.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import torch\nfrom . import rows\nfrom ..models import base\n"
        "from .rows import x\nfrom alpaca_rlhf.core.errors import UserError\n"
    )
    assert [(module, name) for _, module, name in imports(path)] == [
        ("torch", ""),
        ("alpaca_rlhf.data", "rows"),
        ("alpaca_rlhf.models", "base"),
        ("alpaca_rlhf.data.rows", "x"),
        ("alpaca_rlhf.core.errors", "UserError"),
    ]
