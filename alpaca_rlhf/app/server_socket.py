"""The socket that the app is served on, bound before anything slow begins."""

from __future__ import annotations

import errno
import socket

from alpaca_rlhf.core.errors import UserError

_PORTS_TRIED = 50
_IN_USE = (errno.EADDRINUSE, errno.EACCES)


def listen(host: str, port: int | None, default_port: int) -> socket.socket:
    """Bind a socket to serve on.

    Args:
        host: Address.
        port: The port that was asked for; None takes the first free one from `default_port` on.
        default_port: The first port to try.

    Raises:
        UserError: The port is in use, or this machine has no such address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    ports = [port] if port is not None else range(default_port, default_port + _PORTS_TRIED)
    for candidate in ports:
        listener = socket.socket(family, socket.SOCK_STREAM)
        # A restart may bind its old port at once.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, candidate))
            return listener
        except OSError as error:
            listener.close()
            if error.errno not in _IN_USE:
                raise UserError(
                    f"--host {host}: the app cannot listen there ({error.strerror})"
                ) from None
            problem = error.strerror
    if port is None:
        last = default_port + _PORTS_TRIED - 1
        raise UserError(f"--port: {default_port} to {last} are all taken; give another one")
    raise UserError(f"--port {port}: the app cannot listen there ({problem}); give another one")
