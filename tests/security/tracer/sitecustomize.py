"""Loaded by every Python process that has this folder on its path: notes each attempt to reach a
network in `$CONNECTIONS` beside a copy of this file, and lets none through."""

import socket
from pathlib import Path
from typing import Any, NoReturn

NOTES = Path(__file__).with_name("connections.txt")


def _refuse(what: str) -> NoReturn:
    with NOTES.open("a") as notes:
        notes.write(f"{what}\n")
    raise OSError(f"no network here: {what}")


def _connect(self: socket.socket, address: Any) -> None:
    if self.family != socket.AF_UNIX:
        _refuse(f"connect {address}")
    _own_connect(self, address)


def _sendto(self: socket.socket, *args: Any) -> int:
    if self.family != socket.AF_UNIX:
        _refuse(f"sendto {args[-1]}")
    return _own_sendto(self, *args)


def _getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> NoReturn:
    _refuse(f"getaddrinfo {host}")


_own_connect, _own_sendto = socket.socket.connect, socket.socket.sendto
socket.socket.connect = _connect  # type: ignore[method-assign]
socket.socket.connect_ex = _connect  # type: ignore[method-assign, assignment]
socket.socket.sendto = _sendto  # type: ignore[method-assign, assignment]
socket.getaddrinfo = _getaddrinfo
socket.gethostbyname = _getaddrinfo
