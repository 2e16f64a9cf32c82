"""The socket that the app is served on, taken before anything slow begins."""

from __future__ import annotations

import errno
import socket

from alpaca_rlhf.core.errors import UserError

_NEXT = 50
_TAKEN = (errno.EADDRINUSE, errno.EACCES)


def listen(host: str, port: int | None, usual: int) -> socket.socket:
    """A socket to serve on.

    Args:
        host: Address.
        port: The port that was asked for; None takes the first free one from `usual` on.
        usual: See there.

    Raises:
        UserError: The port is taken, or this machine has no such address.
    """
    kind = socket.AF_INET6 if ":" in host else socket.AF_INET
    for number in [port] if port is not None else range(usual, usual + _NEXT):
        one = socket.socket(kind, socket.SOCK_STREAM)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((host, number))
            return one
        except OSError as error:
            one.close()
            if error.errno not in _TAKEN:
                raise UserError(
                    f"--host {host}: cannot be listened on ({error.strerror})"
                ) from None
            problem = error.strerror
    if port is None:
        raise UserError(f"--port: {usual} to {usual + _NEXT - 1} are all taken; give another one")
    raise UserError(f"--port {port}: cannot be listened on ({problem}); give another one")
