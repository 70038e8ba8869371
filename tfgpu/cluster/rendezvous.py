"""How the processes of a training meet, before TensorFlow starts in any of them.

The chief listens at its own address in TF_CONFIG, where TensorFlow will listen later; the others
connect to it. So there is one port for each process, and none besides. When all are there and
equal in what has to be equal, the chief lets them go on, and the connections stay.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import secrets
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tfgpu.cluster import wire
from tfgpu.cluster.identity import differences, host_identity
from tfgpu.cluster.membership import Membership
from tfgpu.cluster.tf_config import Cluster, split_address
from tfgpu.errors import Error, Interrupted, LostWorkerError, MeetingError, RequestError

TOKEN = "TFGPU_CLUSTER_TOKEN"
TOKEN_FILE = "TFGPU_CLUSTER_TOKEN_FILE"
LAUNCHED = "TFGPU_LAUNCHED"
"""Is set in a worker that `tfgpu launch` started, whose own command line starts nothing alone."""

SAY_EVERY = 5.0
"""Seconds between two lines that say who is missing."""


def read_token(variables: Mapping[str, str]) -> bytes:
    """Reads the secret that the processes share.

    Args:
        variables: The environment.

    Returns:
        It; empty when there is none.

    Raises:
        RequestError: The file cannot be read, is empty, or others may read it.
    """
    if token := variables.get(TOKEN, "").strip():
        return token.encode()
    path = variables.get(TOKEN_FILE, "").strip()
    if not path:
        return b""
    try:
        with open(path, "rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise MeetingError(
                    f"{TOKEN_FILE}={path} may be read by others (mode {mode:o}); "
                    f"`chmod 600 {path}`, and take another token if somebody did"
                )
            token_bytes = file.read().strip()
    except OSError as error:
        raise MeetingError(
            f"{TOKEN_FILE}={path} cannot be read ({error.strerror}); name a file with the token"
        ) from error
    if not token_bytes:
        raise MeetingError(f"{TOKEN_FILE}={path} is empty; write a token into it")
    return token_bytes


def join(
    cluster: Cluster,
    *,
    identity: Mapping[str, Mapping[str, Any]],
    token: bytes,
    timeout: float,
    say: Callable[[str], None],
) -> Membership:
    """Waits until all processes of a cluster are there, and compares them.

    Args:
        cluster: What TF_CONFIG says.
        identity: What has to be equal, by kind and name, such as {"setting": {"seed": 0}}.
        token: What all of them know.
        timeout: Seconds to wait.
        say: Takes the lines that say who is missing.

    Returns:
        The membership of this process.

    Raises:
        RequestError: The processes differ, or an address or a port cannot be used; in each
            process alike.
        LostWorkerError: Somebody did not come in time.
    """
    names = [f"{n} ({a})" for n, a in zip(cluster.names, cluster.addresses, strict=True)]
    if cluster.num_workers == 1:
        with _listening(cluster, names[0]):
            return Membership(names=names)
    everything = {**identity, "address": {f"of {i}": name for i, name in enumerate(names)}}
    member = _Member(names, everything, host_identity())
    if cluster.is_chief:
        return _lead(cluster, member, token=token, timeout=timeout, say=say)
    return _follow(cluster, member, token=token, timeout=timeout, say=say)


class _Member(NamedTuple):
    names: Sequence[str]
    identity: Mapping[str, Mapping[str, Any]]
    host: str


@contextlib.contextmanager
def _listening(cluster: Cluster, name: str) -> Iterator[socket.socket]:
    """Holds this process's port, which TensorFlow takes over.

    Raises:
        RequestError: It cannot be had.
    """
    host, port = split_address(cluster.address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        # Like every server, and TensorFlow's: connections of the past do not count as taken, nor
        # do those that stay when this listener gives way to it.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
            listener.listen(128)
        except OSError as error:
            why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be had ({error})"
            raise MeetingError(
                f"port {port} of {name} {why}; end what listens there "
                f"(`ss -ltnp 'sport = :{port}'`), or name another port in TF_CONFIG"
            ) from None
        try:
            yield listener
        finally:
            # A thread that waits in `accept` would keep it open.
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)


# ---- the chief -----------------------------------------------------------------------------


def _lead(
    cluster: Cluster,
    own: _Member,
    *,
    token: bytes,
    timeout: float,
    say: Callable[[str], None],
) -> Membership:
    ident = secrets.token_hex(8)
    arrivals: queue.Queue[Any] = queue.Queue()
    present: dict[int, tuple[wire.Connection, dict[str, Any]]] = {}
    with contextlib.ExitStack() as stack:
        try:
            listener = stack.enter_context(_listening(cluster, own.names[0]))
        except RequestError:
            _refuse_two_chiefs(cluster, own, token, ident)
            raise
        threading.Thread(
            target=_accept, args=(listener, token, ident, arrivals), daemon=True
        ).start()
        _refuse_two_chiefs(cluster, own, token, ident)
        try:
            _gather(cluster, own, present, arrivals, timeout=timeout, say=say)
            hosts = [own.host, *(present[rank][1]["host"] for rank in sorted(present))]
            others = [present[rank][1]["identity"] for rank in sorted(present)]
            different = differences([own.identity, *others], own.names)
            if different:
                raise MeetingError(different)
        except BaseException as error:
            _refuse(present, error)
            raise
        for rank, (connection, _) in present.items():
            connection.send("go", sharing=hosts.count(hosts[rank]))
    # Only now, after the listener is closed: TensorFlow needs the port.
    return Membership(
        rank=0,
        names=own.names,
        peers={rank: connection for rank, (connection, _) in present.items()},
        sharing_cores=hosts.count(own.host),
    )


def _accept(listener: socket.socket, token: bytes, ident: str, arrivals: queue.Queue[Any]) -> None:
    """Takes in whoever connects until the listener is closed; a thread."""

    def greet(sock: socket.socket, where: str) -> None:
        try:
            connection = wire.accept(sock, token=token, ident=ident)
        except wire.TokenError:
            arrivals.put(f"somebody at {where} came with another token and was turned away")
            return
        except (OSError, EOFError, ValueError):
            return  # A port scanner, or a process that died.
        message = None
        with contextlib.suppress(OSError, EOFError, ValueError):
            message = connection.receive(5.0)
        if message is not None and message.kind == "join":
            arrivals.put((connection, message.fields))
        else:
            connection.close()

    while True:
        try:
            sock, address = listener.accept()
        except OSError:
            return
        threading.Thread(target=greet, args=(sock, address[0]), daemon=True).start()


def _refuse_two_chiefs(cluster: Cluster, own: _Member, token: bytes, ident: str) -> None:
    """Asks who answers at the chief's address: it is to be this process, or nobody.

    Another chief of the same cluster refuses this one and stops, with all that came to it.

    Raises:
        RequestError: It is another one.
    """
    try:
        connection, found = wire.connect(split_address(cluster.address), token=token, timeout=2)
    except OSError:
        return  # Nobody of ours; or behind a translated address, not to be reached from here.
    with contextlib.closing(connection):
        if found == ident:
            return
        answer = None
        with contextlib.suppress(OSError, EOFError, ValueError):
            _introduce(connection, cluster, own, problem=None)
            answer = connection.receive(5.0)
        if answer is not None and answer.kind == "refused":
            _raise_refusal(answer.fields["code"], answer.fields["line"])
    raise MeetingError(
        f"{own.names[0]} is there already: the chief of other workers answers at this address; "
        "name another port in TF_CONFIG"
    )


def _introduce(
    connection: wire.Connection, cluster: Cluster, own: _Member, *, problem: str | None
) -> None:
    connection.send(
        "join",
        rank=cluster.rank,
        size=cluster.num_workers,
        identity=own.identity,
        host=own.host,
        problem=problem,
    )


def _gather(
    cluster: Cluster,
    own: _Member,
    present: dict[int, tuple[wire.Connection, dict[str, Any]]],
    arrivals: queue.Queue[Any],
    *,
    timeout: float,
    say: Callable[[str], None],
) -> None:
    """Waits until everybody is there, and says now and then who is not."""
    began = said = time.monotonic()
    told: set[str] = set()
    while len(present) < cluster.num_workers - 1:
        with contextlib.suppress(queue.Empty):
            _take_in(arrivals.get(timeout=0.2), cluster, own, present, say, told)
        _forget_who_left(present, own.names)
        now = time.monotonic()
        missing = [n for r, n in enumerate(own.names) if r and r not in present]
        if missing and now - began > timeout:
            raise LostWorkerError(
                f"{' and '.join(missing)} did not come within {timeout:.0f} s; start it, or give "
                "more time with --join_timeout"
            )
        if missing and now - said > SAY_EVERY:
            said = now
            line = f"waiting for {' and '.join(missing)}, {now - began:.0f} of {timeout:.0f} s"
            say(line)
            for connection, _ in present.values():
                with contextlib.suppress(OSError):
                    connection.send("waiting", line=line)


def _take_in(
    arrival: Any,
    cluster: Cluster,
    own: _Member,
    present: dict[int, tuple[wire.Connection, dict[str, Any]]],
    say: Callable[[str], None],
    told: set[str],
) -> None:
    if isinstance(arrival, str):
        if arrival not in told:
            told.add(arrival)
            say(arrival)
        return
    connection, fields = arrival
    rank, problem = fields["rank"], fields.get("problem")
    if rank == 0 and fields["identity"].get("address") != own.identity["address"]:
        connection.close()  # The chief of other workers, which has this address by mistake.
        return
    if problem is None and (rank == 0 or rank in present):
        problem = f"{own.names[rank]} is there twice; give each process its own task in TF_CONFIG"
    if problem is None and rank >= cluster.num_workers:
        problem = (
            f"a process calls itself number {rank} of {fields['size']}, and TF_CONFIG of "
            f"{own.names[0]} names {cluster.num_workers}; give all of them the same cluster"
        )
    if problem is not None:
        with contextlib.suppress(OSError):
            connection.send("refused", line=problem, code=RequestError.exit_code)
        connection.close()
        raise MeetingError(problem)
    present[rank] = connection, fields


def _forget_who_left(
    present: dict[int, tuple[wire.Connection, dict[str, Any]]], names: Sequence[str]
) -> None:
    """Makes room again for a process that died while it waited; stops with one that was stopped."""
    for rank, (connection, _) in list(present.items()):
        try:
            message = connection.receive(0)
        except (OSError, EOFError, ValueError):
            connection.close()
            del present[rank]
        else:
            if message is not None and message.kind == "bye":
                raise Interrupted(message.fields["signum"], f"{names[rank]} was stopped")


def _refuse(
    present: Mapping[int, tuple[wire.Connection, dict[str, Any]]], error: BaseException
) -> None:
    if not isinstance(error, Error):
        error = Interrupted(_signum(error))
    code, line = error.exit_code, str(error)
    for connection, _ in present.values():
        with contextlib.suppress(OSError):
            connection.send("refused", line=line, code=code)
        connection.close()


def _signum(stop: BaseException) -> int:
    return int(getattr(stop, "signum", signal.SIGINT))


# ---- the others ----------------------------------------------------------------------------


def _follow(
    cluster: Cluster,
    own: _Member,
    *,
    token: bytes,
    timeout: float,
    say: Callable[[str], None],
) -> Membership:
    problem: RequestError | None = None
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_listening(cluster, own.names[cluster.rank]))
        except RequestError as error:
            problem = error  # Which the others are to hear of.
        connection = _reach_chief(cluster, own, token=token, timeout=timeout, say=say)
        try:
            _introduce(connection, cluster, own, problem=str(problem) if problem else None)
            sharing = _wait_for_go(connection, own.names[0], say)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                with contextlib.suppress(OSError):
                    connection.send("bye", signum=_signum(error))
            connection.close()
            raise
    return Membership(
        rank=cluster.rank, names=own.names, peers={0: connection}, sharing_cores=sharing
    )


def _reach_chief(
    cluster: Cluster,
    own: _Member,
    *,
    token: bytes,
    timeout: float,
    say: Callable[[str], None],
) -> wire.Connection:
    """Tries until the chief answers.

    Raises:
        RequestError: Something else does, or the token is another.
        LostWorkerError: Nobody does in time.
    """
    address, chief = split_address(cluster.addresses[0]), own.names[0]
    began = said = time.monotonic()
    while True:
        try:
            return wire.connect(address, token=token)[0]
        except wire.TokenError:
            raise MeetingError(
                f"{chief} has another token; give all processes the same {TOKEN}"
            ) from None
        except wire.WireError as error:
            raise MeetingError(
                f"{chief} cannot be joined: {error} at this address; end what listens there, or "
                "name another port in TF_CONFIG"
            ) from None
        except OSError as error:
            why = error.strerror or str(error)
        now = time.monotonic()
        if now - began > timeout:
            raise LostWorkerError(
                f"{chief} did not come within {timeout:.0f} s ({why}); start it, check the "
                "address, or give more time with --join_timeout"
            )
        if now - said > SAY_EVERY:
            said = now
            say(f"waiting for {chief}, {now - began:.0f} of {timeout:.0f} s ({why})")
        time.sleep(0.2)


def _wait_for_go(connection: wire.Connection, chief: str, say: Callable[[str], None]) -> int:
    """Returns how many processes share the cores, when all are there."""
    while True:
        try:
            message = connection.receive(0.5)
        except (OSError, EOFError, ValueError):
            raise LostWorkerError(f"{chief} left before all had come; start all again") from None
        if message is None:
            continue
        if message.kind == "go":
            return int(message.fields["sharing"])
        if message.kind == "waiting":
            say(message.fields["line"])
        if message.kind == "refused":
            _raise_refusal(message.fields["code"], message.fields["line"])


def _raise_refusal(code: int, line: str) -> None:
    if code == LostWorkerError.exit_code:
        raise LostWorkerError(line)
    if code in (130, 143):
        raise Interrupted(code - 128, line)
    raise MeetingError(line)
