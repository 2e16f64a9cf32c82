"""Commands in processes of their own, forked from one that has imported torch already.

Importing torch, transformers and bitsandbytes takes seconds, and the tests start some hundred
commands. `run` does what `subprocess.run` does, faster: a server, started once for each worker of
the tests, imports the package and then forks for each command. What a command does before the
modules are loaded (help, refusals without torch, an early Ctrl-C) is tested on `subprocess` itself.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
READ_WHILE_LOADING = (
    *("HF_ENDPOINT", "HF_HOME", "HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES"),
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ONEDNN_MAX_CPU_ISA"),
)
"""Variables that modules read once, while they are imported."""
MODULES = ("alpaca_rlhf.cli.running", "alpaca_rlhf.serving", "alpaca_rlhf.exporting", "peft")


class Forked:
    """A command at work, with the methods of `subprocess.Popen` that the tests use.

    Args:
        words: The command line; the first word, the interpreter, is left out.
        env: Its whole environment.
        stdin: A file descriptor to read from; None reads nothing.
        stdout: A file descriptor to write to, or `subprocess.PIPE`.
        stderr: A file descriptor to write to; None is that of the tests.
        cwd: Its folder; None is that of the tests.
        text: Always true: `stdout` is text.
    """

    def __init__(
        self,
        words: Sequence[object],
        *,
        env: Mapping[str, str],
        stdout: int,
        stdin: int | None = None,
        stderr: int | None = None,
        cwd: Path | str | None = None,
        text: bool = True,
    ) -> None:
        self.stdout = None
        line = [str(word) for word in words[1:]]
        request = {"words": line, "cwd": str(cwd or Path.cwd()), "env": dict(env)}
        body = json.dumps(request).encode()
        reading, writing = os.pipe() if stdout == subprocess.PIPE else (None, stdout)
        nothing = os.open(os.devnull, os.O_RDONLY)
        descriptors = [nothing if stdin is None else stdin, writing]
        descriptors.append(2 if stderr is None else stderr)
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connection.connect(_server())
        socket.send_fds(self._connection, [len(body).to_bytes(8, "big")], descriptors)
        self._connection.sendall(body)
        self.pid = int.from_bytes(self._connection.recv(8), "big")
        os.close(nothing)
        if reading is not None:
            os.close(writing)
            self.stdout = os.fdopen(reading, encoding="utf-8")

    def kill(self) -> None:
        """Send SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; returns the exit code, or minus the signal.

        Raises:
            TimeoutError: It takes longer.
        """
        self._connection.settimeout(timeout)
        with self._connection:
            return os.waitstatus_to_exitcode(int.from_bytes(self._connection.recv(8), "big"))


def run(
    *words: object,
    cwd: Path | str | None = None,
    env: Mapping[str, str] | None = None,
    input: str = "",
    timeout: float | None = 300,
) -> subprocess.CompletedProcess[str]:
    """Run `python WORDS...` to its end: `-m`, a module and arguments, or a script and arguments.

    Args:
        words: The command line after `python`.
        cwd: Its folder; None is that of the tests.
        env: Its whole environment; None is that of the tests.
        input: Its standard input.
        timeout: Seconds after which it is killed; None waits as long as it takes.

    Raises:
        TimeoutExpired: It took longer.
    """
    line = [sys.executable, *map(str, words)]
    environment = dict(os.environ if env is None else env)
    if _loading(environment) != _loading(os.environ):
        return subprocess.run(
            line,
            capture_output=True,
            text=True,
            cwd=cwd,
            env=environment,
            input=input,
            timeout=timeout,
        )
    with tempfile.TemporaryFile() as typed, _output() as out, _output() as err:
        typed.write(input.encode())
        typed.seek(0)
        process = Forked(
            line,
            env=environment,
            cwd=cwd,
            stdin=typed.fileno(),
            stdout=out.fileno(),
            stderr=err.fileno(),
        )
        try:
            code = process.wait(timeout)
        except TimeoutError:
            process.kill()
            raise subprocess.TimeoutExpired(line, timeout) from None
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read())
    return subprocess.CompletedProcess(line, code, *texts)


def _output() -> tempfile._TemporaryFileWrapper[str]:
    return tempfile.TemporaryFile("w+", encoding="utf-8")  # type: ignore[return-value]


def _loading(environment: Mapping[str, str]) -> list[str | None]:
    return [environment.get(name) for name in READ_WHILE_LOADING]


@cache
def _server() -> str:
    """Start the server of this process; returns the path of its socket."""
    path = str(Path(tempfile.mkdtemp(prefix="forked-")) / "socket")
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve()), path],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    atexit.register(process.kill)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n", "the server of commands did not start"
    return path


def _serve(path: str) -> Sequence[str]:
    """Fork for every request. Returns in the forked processes alone: the words of a command."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(path)
    listening.listen()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait
    while True:
        connection, _ = listening.accept()
        if os.fork():
            connection.close()
            continue
        # 1. A process that waits for the command and tells its status.
        listening.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        length, descriptors, _, _ = socket.recv_fds(connection, 8, 3)
        body = b""
        while len(body) < int.from_bytes(length, "big"):
            body += connection.recv(1 << 16)
        pid = os.fork()
        if pid:
            connection.sendall(pid.to_bytes(8, "big"))
            connection.sendall(os.waitpid(pid, 0)[1].to_bytes(8, "big"))
            os._exit(0)
        # 2. The command itself.
        connection.close()
        for target, descriptor in enumerate(descriptors):
            os.dup2(descriptor, target)
            os.close(descriptor)
        request = json.loads(body)
        os.environ.clear()
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        tempfile.tempdir = None  # it may lie elsewhere in this environment
        words: list[str] = request["words"]
        return words


def _end(code: int) -> None:
    """End this process as Python does, without taking every module apart, which takes longer."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # this file's folder holds no modules
    for module in MODULES:
        __import__(module)
    gc.collect()
    gc.freeze()  # what is loaded is never collected, so its pages stay shared
    words = _serve(sys.argv[1])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if words[0] == "-m":
            sys.argv = ["alpaca_rlhf", *words[2:]]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = list(words)
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            raise
        _end(end.code or 0)
