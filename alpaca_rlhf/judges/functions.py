"""Functions of the user's as judges: loading them from a file or a module, and where they fail."""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.provenance import sha256_of
from alpaca_rlhf.core.records import Instruction, content_hash
from alpaca_rlhf.core.scorers import Response
from alpaca_rlhf.judges.process_state import JudgeProcess
from alpaca_rlhf.settings.judge_names import JudgeName

BATCH_RESPONSES = 32
"""Responses that a batched judge receives at once, unless it names another number: as many as are
decoded together by default."""
FILES = "FILES"
"""Name of the list in which a module names the files that its scores depend on."""

_AGAIN = "mend it and run the same command again"
"""The end of a refusal of a file that Python cannot run: the next step."""
_NOTHING = Response(Instruction(""), "", True)
_HINTS = {
    "Instruction": "; its text is prompt.instruction",
    "Response": "; its texts are response.prompt.instruction and response.completion",
}
"""Expressions for the texts of an object that was taken for one, by the name of its type."""
_PLACES = {
    **dict.fromkeys(("prompt", "instruction", "question"), 0),
    **dict.fromkeys(("completion", "response", "answer", "reply"), 1),
    "finished": 2,
}
"""Names of a judge's parameters, with their places."""


def batched(function: Callable[..., Any] | None = None, *, size: int = BATCH_RESPONSES) -> Any:
    """Mark a function as one that scores a list of responses at once.

    Args:
        function: Takes a list of `Response`, and returns a score for each, in their order.
        size: Responses at once, at most.
    """

    def mark(function: Any) -> Any:
        function.batched, function.batch_size = True, size
        return function

    return mark if function is None else mark(function)


@dataclass(frozen=True)
class JudgeFunction:
    """A user's function, ready to be called."""

    call: Callable[..., Any]
    """The function, or the method of an object."""
    title: str
    """Its name, for messages: `score`."""
    place: str
    """Its file and line: `judge.py:12`."""
    folder: Path
    """Folder of its file: an error is told at the last line of a file in there."""
    batch_size: int | None
    """Responses at once; None if it takes one at a time."""
    digest: str
    """Hash of the function's name, its module, and the files that the module declares."""
    files: tuple[Path, ...]
    """The module, then the files that it declares."""
    process: JudgeProcess = field(default_factory=JudgeProcess)
    """Its working folder and environment; enter it to call the function."""

    def __call__(self, responses: list[Response]) -> Any:
        """Call it: with the list if it is batched, else with the one response's three values."""
        return self.call(*responses[0]) if self.batch_size is None else self.call(responses)

    def same_code(self, other: JudgeFunction) -> bool:
        """True if it computes what another does, by whatever name and from whatever file.

        Where both declare files, those must hold the same too.
        """
        try:
            # The module comes first; another file may import this one and declare nothing.
            digests, other_digests = (
                [sha256_of(path) for path in function.files[1:]] for function in (self, other)
            )
            if digests and other_digests and digests != other_digests:
                return False
            return bool(_content(self.call) == _content(other.call))
        except Exception:  # arrays, a closure that holds itself: nothing shows that they are equal
            return False

    def place_of(self, trace: TracebackType | None) -> str:
        """`file:line` of the user's code at which an exception arose."""
        return _place_in(self.folder, trace) or self.place


def load_function(name: JudgeName, flag: str) -> JudgeFunction:
    """Load the function of a file or a module.

    Args:
        name: A judge's name of the kind `function`.
        flag: The flag that named it, as typed, for messages.

    Raises:
        UserError: The file or module is missing or cannot be run, or the function is missing or
            cannot be called as a judge; the message names the line.
    """
    # 1. Run the module.
    process = JudgeProcess()
    load = _from_file if name.is_file else _from_module
    module = load(name, flag, process)
    file = None if module.__file__ is None else Path(module.__file__)
    where = name.place if name.is_file else str(file or name.place)
    # 2. The function, or an object with one.
    member = _member(module, name, where)
    judge = member
    if inspect.isclass(member):
        judge = _instance(member, name.function, where, process)
    size = _batch_size(judge, where)
    is_object = not inspect.isroutine(judge) and (hasattr(judge, "score") or size is not None)
    call = judge
    if is_object:
        method = "score" if size is None else "score_batch"
        call = getattr(judge, method, None)
        if not callable(call):
            raise UserError(
                f"{where}: {name.function} is batched and has no score_batch(); "
                "write def score_batch(self, responses)"
            )
    if not callable(call):
        raise UserError(
            f"{where}: {name.function} is {type(judge).__name__}, not a function; write "
            f"def {name.function}(prompt, completion, finished)"
        )
    place = _place_of_definition(call, where)
    _refuse_signature(call, name.function, place, batched=size is not None)
    # 3. The hash of all that its scores depend on.
    folder = file.parent if file is not None else Path()
    files = ((file,) if file is not None else ()) + _declared(module, folder, where)
    digest = content_hash(name.function, *(sha256_of(path) for path in files))
    return JudgeFunction(call, name.function, place, folder, size, digest, files, process)


def _from_file(name: JudgeName, flag: str, process: JudgeProcess) -> ModuleType:
    path = name.path
    if not path.is_file():
        raise UserError(f"{flag} {name.text}: there is no file {name.place}; check the path")
    # A file of the user's must not shadow a library by its name.
    title = f"alpaca_rlhf_judge_{path.stem}_{sha256_of(path)[:8]}"
    spec = importlib.util.spec_from_file_location(title, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[title] = module
    _let_import_from(path.resolve().parent)
    _guarded(lambda: spec.loader.exec_module(module), path.parent, name.place, process)  # type: ignore[union-attr]
    return module


def _from_module(name: JudgeName, flag: str, process: JudgeProcess) -> ModuleType:
    _let_import_from(Path.cwd())
    # 1. The folder of the package at the top. To find that imports nothing yet.
    try:
        spec = importlib.util.find_spec(name.place.partition(".")[0])
    except ValueError:  # a module without a spec: __main__
        spec = None
    locations = list(spec.submodule_search_locations or []) if spec is not None else []
    folder = Path(locations[0]) if locations else Path.cwd()
    # 2. The packages above the module, then the module: all of it is the user's code.
    modules: list[ModuleType] = []

    def load() -> None:
        try:
            exists = spec is not None and importlib.util.find_spec(name.place) is not None
        except ModuleNotFoundError as error:
            if not f"{name.place}.".startswith(f"{error.name}."):
                raise  # a package that the user's code imports
            exists = False
        if exists:
            modules.append(importlib.import_module(name.place))

    _guarded(load, folder, name.place, process)
    if not modules:
        raise UserError(
            f"{flag} {name.text}: there is no module {name.place}; install it, or give "
            f"FILE.py:{name.function}"
        )
    return modules[0]


def _let_import_from(folder: Path) -> None:
    """Let a judge import modules that lie beside it, after everything that is installed."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _guarded(run: Callable[[], Any], folder: Path, where: str, process: JudgeProcess) -> None:
    """Run a user's module, and tell what goes wrong in one line."""
    try:
        with process.entered():
            run()
    except SyntaxError as error:
        file = where if error.filename is None else _short(Path(error.filename))
        line = f"{file}:{error.lineno or 1}"
        raise UserError(f"{line}: is not Python: {error.msg}; {_AGAIN}") from None
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        place = _place_in(folder, error.__traceback__) or where
        missing = isinstance(error, ModuleNotFoundError)
        step = "install that module, or put it beside the judge" if missing else _AGAIN
        raise UserError(f"{place}: loading the judge raised {described(error)}; {step}") from None


def described(error: BaseException) -> str:
    """An exception on one line: its type, its message, and where the texts of a prompt are."""
    try:
        message = " ".join(str(error).split())
    except Exception:  # a user's class may fail even here
        message = ""
    line = f"{type(error).__name__}: {message}" if message else type(error).__name__
    if isinstance(error, (AttributeError, TypeError)):
        line += next((hint for name, hint in _HINTS.items() if f"'{name}'" in message), "")
    return line


def _member(module: ModuleType, name: JudgeName, where: str) -> Any:
    member: Any = module
    for part in name.function.split("."):
        if not hasattr(member, part):
            functions = [
                key
                for key, value in vars(module).items()
                if inspect.isfunction(value) and value.__module__ == module.__name__
            ]
            step = f"it defines none; write def {name.function}(prompt, completion, finished)"
            if functions:
                (nearest,) = difflib.get_close_matches(part, functions, n=1, cutoff=0)
                step = f"it defines {', '.join(functions)}; give {name.place}:{nearest}"
            raise UserError(f"{where}: has no function {name.function}; {step}")
        member = getattr(member, part)
    return member


def _instance(judge_class: type, title: str, where: str, process: JudgeProcess) -> Any:
    try:
        with process.entered():
            return judge_class()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise UserError(
            f"{where}: {title}() raised {described(error)}; a class is made without arguments"
        ) from None


def _batch_size(judge: Any, where: str) -> int | None:
    """Responses at once that a judge asks for; None if it takes one at a time."""
    if getattr(judge, "batched", False) is not True:
        return None
    size = getattr(judge, "batch_size", BATCH_RESPONSES)
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise UserError(f"{where}: the batch size must be a whole number above 0, got {size!r}")
    return size


def _refuse_signature(call: Any, title: str, place: str, *, batched: bool) -> None:
    """Refuse a function that cannot be called as a judge, or that would not return at once."""
    if inspect.iscoroutinefunction(call) or inspect.isasyncgenfunction(call):
        raise UserError(f"{place}: {title}() is async; make it a plain function")
    if inspect.isgeneratorfunction(call):
        raise UserError(f"{place}: {title}() is a generator; return a number, without yield")
    expected = "(responses)" if batched else "(prompt, completion, finished)"
    try:
        signature = inspect.signature(call)
    except (TypeError, ValueError):  # written in C
        return
    try:
        signature.bind(*([[_NOTHING]] if batched else _NOTHING))
    except TypeError:
        raise UserError(
            f"{place}: {title}{signature} cannot be called as {title}{expected}; give it these "
            "arguments"
        ) from None
    # Swapped arguments would raise nothing, and score the wrong text.
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [name for name, parameter in signature.parameters.items() if parameter.kind in kinds]
    if not batched and any(_PLACES.get(name, i) != i for i, name in enumerate(names[:3])):
        raise UserError(
            f"{place}: {title}{signature} is called as {title}{expected}; put its parameters in "
            "this order"
        )


def _declared(module: ModuleType, folder: Path, where: str) -> tuple[Path, ...]:
    """The files that a module names in `FILES`, relative to its own folder."""
    names = getattr(module, FILES, ())
    if isinstance(names, (str, Path)) or not isinstance(names, Sequence):
        raise UserError(f"{where}: {FILES} must be a list of file names, got {names!r:.60}")
    paths = []
    for name in names:
        if not isinstance(name, (str, Path)):
            raise UserError(f"{where}: {FILES} must be a list of file names, got {names!r:.60}")
        path = folder / Path(name).expanduser()
        if not path.is_file():
            raise UserError(
                f"{where}: {FILES} names {name}, and there is no file {_short(path)}; put it "
                f"there, or take it out of {FILES}"
            )
        paths.append(path)
    return tuple(paths)


def _content(value: Any) -> Any:
    """A value that is equal for two loads of one function: its file, its code, and what is bound.

    A function of another file, or with other values bound to it, is another one.
    """
    if isinstance(value, functools.partial):
        bound = (*map(_content, value.args), *sorted(value.keywords.items()))
        return (_content(value.func), bound) if bound else _content(value.func)
    function = getattr(value, "__func__", value)
    code = getattr(function, "__code__", None)
    if code is None:
        return value
    file = Path(code.co_filename)
    closure = [_content(cell.cell_contents) for cell in function.__closure__ or ()]
    owner = getattr(value, "__self__", None)
    state = getattr(owner, "__dict__", None)
    digest = sha256_of(file) if file.is_file() else code.co_filename
    return digest, code, function.__defaults__, function.__kwdefaults__, closure, state


def _place_of_definition(call: Any, where: str) -> str:
    code = getattr(inspect.unwrap(call), "__code__", None)
    if code is None:
        return where
    return f"{_short(Path(code.co_filename))}:{code.co_firstlineno}"


def _place_in(folder: Path, trace: TracebackType | None) -> str:
    """`file:line` of the deepest frame in a folder; empty if there is none."""
    root = folder.resolve()
    for frame in reversed(traceback.extract_tb(trace)):
        if frame.filename.startswith("<"):  # no file: `<frozen ...>`, `<string>`
            continue
        path = Path(frame.filename)
        if path.resolve().is_relative_to(root) and "site-packages" not in path.parts:
            return f"{_short(path)}:{frame.lineno}"
    return ""


def _short(path: Path) -> str:
    """A path as a person would type it: relative to where they are, if it lies there."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
