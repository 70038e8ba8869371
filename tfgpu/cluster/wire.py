"""Authenticated messages over one TCP connection.

Both sides prove that they know a token, without sending it; each message then carries a MAC made
with a key of this connection alone, so that nothing can be put in, changed or repeated on the
way. Nothing is encrypted.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import select
import socket
import struct
import threading
import time
from typing import Any, NamedTuple

PROTOCOL = "tfgpu-cluster/1"

BLOCKED_AFTER = 10.0
"""Seconds after which a send that does not get on is an error."""

_SIZES = struct.Struct("!IQ")
_MAC = 32
_LARGEST_HEADER = 16 << 20
_LARGEST_BODY = 64 << 20


class WireError(ConnectionError):
    """The other side is none of ours, or what it sent was changed on the way."""


class TokenError(WireError):
    """The other side does not have the same token."""


class Message(NamedTuple):
    """What one side said.

    Attributes:
        kind: What it is about.
        fields: What JSON holds.
        body: Bytes that JSON does not hold.
    """

    kind: str
    fields: dict[str, Any]
    body: bytes


class Connection:
    """One side of a connection; `send` may be called from any thread, `receive` from one.

    Make it with `accept` or `connect`.
    """

    def __init__(self, sock: socket.socket, *, key: bytes, is_server: bool):
        self._socket = sock
        self._key = key
        self._out, self._in = (b"s", b"c") if is_server else (b"c", b"s")
        self._sent = self._received = 0
        self._lock = threading.Lock()
        self._buffer = bytearray()

    def send(self, kind: str, body: bytes = b"", **fields: Any) -> None:
        """Sends a message.

        Raises:
            OSError: The connection is gone, or nothing has been taken for `BLOCKED_AFTER`.
        """
        header = json.dumps([kind, fields]).encode()
        with self._lock:
            mac = self._mac(self._out, self._sent, header, body)
            self._sent += 1
            frame = _SIZES.pack(len(header), len(body)) + header
            self._socket.sendall(frame + mac if not body else frame)
            if body:
                self._socket.sendall(body)
                self._socket.sendall(mac)

    def receive(self, timeout: float) -> Message | None:
        """Returns the next message; None when it has not come within `timeout` seconds.

        Raises:
            EOFError: The other side has closed the connection.
            WireError: It said what it cannot have said.
            OSError: The connection is gone.
        """
        end = time.monotonic() + timeout
        while (message := self._taken()) is None:
            left = max(0.0, end - time.monotonic())
            ready = select.poll()
            ready.register(self._socket, select.POLLIN)
            if not ready.poll(left * 1000):
                return None
            data = self._socket.recv(1 << 20)
            if not data:
                raise EOFError
            self._buffer += data
        return message

    def _taken(self) -> Message | None:
        """Takes a message out of the buffer, when there is a whole one."""
        buffer = self._buffer
        if len(buffer) < _SIZES.size:
            return None
        sizes = _SIZES.unpack_from(buffer)
        if sizes[0] > _LARGEST_HEADER or sizes[1] > _LARGEST_BODY:
            raise WireError("a message is too large to be one")
        ends = [_SIZES.size + sizes[0], _SIZES.size + sum(sizes), _SIZES.size + sum(sizes) + _MAC]
        if len(buffer) < ends[2]:
            return None
        header, body = bytes(buffer[_SIZES.size : ends[0]]), bytes(buffer[ends[0] : ends[1]])
        mac = self._mac(self._in, self._received, header, body)
        if not hmac.compare_digest(mac, buffer[ends[1] : ends[2]]):
            raise WireError("a message was changed on its way")
        self._received += 1
        del buffer[: ends[2]]
        kind, fields = json.loads(header)
        return Message(kind, fields, body)

    def close(self) -> None:
        """Closes the connection; what was sent still arrives."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        self._socket.close()

    def _mac(self, side: bytes, number: int, header: bytes, body: bytes) -> bytes:
        mac = hmac.new(self._key, side + struct.pack("!QI", number, len(header)), hashlib.sha256)
        mac.update(header)
        mac.update(body)
        return mac.digest()


def accept(sock: socket.socket, *, token: bytes, ident: str, timeout: float = 5.0) -> Connection:
    """Makes the server's side of a connection that was accepted.

    Args:
        sock: Is closed when it fails.
        token: What both sides know.
        ident: Tells this server from another one at the same address.
        timeout: Seconds the other side has to prove itself.

    Raises:
        TokenError: It has another token.
        OSError: It is none of ours, or gone.
    """
    try:
        _configure(sock, timeout)
        mine = secrets.token_hex(16)
        _write_line(sock, {"protocol": PROTOCOL, "nonce": mine, "ident": ident})
        answer = _read_line(sock, timeout)
        theirs = str(answer.get("nonce"))
        proof = _proof(token, b"client", mine, theirs)
        if not hmac.compare_digest(proof, str(answer.get("proof"))):
            _write_line(sock, {"refused": "token"})
            raise TokenError("another token")
        _write_line(sock, {"proof": _proof(token, b"server", mine, theirs)})
        sock.settimeout(None)
        key = bytes.fromhex(_proof(token, b"session", mine, theirs))
        return Connection(sock, key=key, is_server=True)
    except BaseException:
        sock.close()
        raise


def connect(
    address: tuple[str, int], *, token: bytes, timeout: float = 5.0
) -> tuple[Connection, str]:
    """Connects to a server of `accept`.

    Args:
        address: Host and port.
        token: What both sides know.
        timeout: Seconds to wait for each answer.

    Returns:
        The connection, and the server's `ident`.

    Raises:
        TokenError: The server has another token.
        WireError: Something else answers there.
        OSError: Nothing does, or the host is unknown.
    """
    sock = socket.create_connection(address, timeout=timeout)
    try:
        _configure(sock, timeout)
        try:
            hello = _read_line(sock, timeout)
            if hello.get("protocol") != PROTOCOL:
                raise WireError("something else than this version of tfgpu answers")
        except (TimeoutError, EOFError, ValueError) as error:
            raise WireError("something else than tfgpu answers") from error
        theirs, mine = str(hello.get("nonce")), secrets.token_hex(16)
        _write_line(sock, {"nonce": mine, "proof": _proof(token, b"client", theirs, mine)})
        answer = _read_line(sock, timeout)
        if "refused" in answer:
            raise TokenError("another token")
        proof = _proof(token, b"server", theirs, mine)
        if not hmac.compare_digest(proof, str(answer.get("proof"))):
            raise TokenError("another token")
        sock.settimeout(None)
        key = bytes.fromhex(_proof(token, b"session", theirs, mine))
        return Connection(sock, key=key, is_server=False), str(hello.get("ident"))
    except BaseException:
        sock.close()
        raise


def _configure(sock: socket.socket, timeout: float) -> None:
    sock.settimeout(timeout)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    seconds = struct.pack("ll", int(BLOCKED_AFTER), 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)


def _proof(token: bytes, who: bytes, server_nonce: str, client_nonce: str) -> str:
    text = b"|".join([who, server_nonce.encode(), client_nonce.encode()])
    return hmac.new(token, text, hashlib.sha256).hexdigest()


def _write_line(sock: socket.socket, value: dict[str, Any]) -> None:
    sock.sendall(json.dumps(value).encode() + b"\n")


def _read_line(sock: socket.socket, timeout: float) -> dict[str, Any]:
    """Reads a short JSON object and not a byte more, from somebody who may be anybody."""
    end = time.monotonic() + timeout
    line = bytearray()
    while not line.endswith(b"\n"):
        sock.settimeout(max(0.01, end - time.monotonic()))
        byte = sock.recv(1)
        if not byte:
            raise EOFError
        line += byte
        if len(line) > 1000:
            raise ValueError("too long a line")
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError("no object")
    return value
