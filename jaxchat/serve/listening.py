"""The socket of the server. Nothing heavy is imported: a port in use is told at once."""

from __future__ import annotations

import errno
import socket

from jaxchat.config.operations import ServeConfig
from jaxchat.errors import ConfigError

BACKLOG = 512


def listen(config: ServeConfig) -> socket.socket:
    """A socket at the configured address. Raises ConfigError where it cannot be used."""
    try:
        found = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as error:
        raise ConfigError(
            f"--host {config.host} is no address of this machine ({error.strerror}); "
            "use 127.0.0.1, or 0.0.0.0 for all of its addresses."
        ) from error
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            why = "is in use by another program; end that, or name another with --port"
        elif error.errno == errno.EACCES:
            why = "is for administrators only; name one above 1023 with --port"
        else:
            why = f"cannot be used ({error.strerror}); name another address with --host"
        raise ConfigError(f"port {config.port} of {config.host} {why}.") from error
    return sock


def url_of(sock: socket.socket) -> str:
    """Where a browser finds it."""
    host, port = sock.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
