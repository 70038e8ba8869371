"""Messages arrive as they were sent, from whom they should, or not at all."""

import socket
import threading

import pytest

from tfgpu.cluster import wire


@pytest.fixture
def pair():
    """Makes the two sides of a connection: server and client."""
    made = []

    def make(**tokens):
        made.extend(_pair(**tokens))
        return made

    yield make
    for side in made:
        side.close()


def _pair(token_of_server=b"t", token_of_client=b"t"):
    listener = socket.create_server(("127.0.0.1", 0))
    made = {}

    def serve():
        sock, _ = listener.accept()
        try:
            made["server"] = wire.accept(sock, token=token_of_server, ident="me")
        except OSError as error:
            made["server"] = error

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        made["client"], made["ident"] = wire.connect(
            listener.getsockname(), token=token_of_client, timeout=5
        )
    finally:
        thread.join(10)
        listener.close()
    return made["server"], made["client"]


def test_a_message_arrives_whole(pair):
    server, client = pair()
    body = bytes(range(256)) * 10_000
    client.send("greeting", body, number=1, text="é")
    message = server.receive(5)
    assert message == ("greeting", {"number": 1, "text": "é"}, body)


def test_without_a_message_receive_comes_back(pair):
    server, _ = pair()
    assert server.receive(0.01) is None


def test_a_closed_connection_is_an_end(pair):
    server, client = pair()
    client.close()
    with pytest.raises(EOFError):
        server.receive(5)


def test_another_token_is_refused_on_both_sides(pair):
    with pytest.raises(wire.TokenError):
        pair(token_of_client=b"other")


@pytest.mark.parametrize("where", [12, 20, -1])
def test_a_changed_byte_is_noticed(pair, where):
    server, client = pair()
    sent = bytearray()
    real = client._socket

    class Recorder:
        def sendall(self, data):
            sent.extend(data)

    client._socket = Recorder()
    client.send("greeting", b"body", number=1)
    sent[where] ^= 1
    real.sendall(sent)
    client._socket = real
    with pytest.raises((wire.WireError, ValueError)):
        server.receive(5)


def test_a_repeated_message_is_noticed(pair):
    server, client = pair()
    sent = bytearray()
    real = client._socket

    class Recorder:
        def sendall(self, data):
            sent.extend(data)

    client._socket = Recorder()
    client.send("stop")
    real.sendall(sent + sent)
    client._socket = real
    assert server.receive(5).kind == "stop"
    with pytest.raises(wire.WireError):
        server.receive(5)


def test_something_else_at_the_address_is_told():
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        sock, _ = listener.accept()
        sock.sendall(b"SSH-2.0-OpenSSH\n")
        sock.close()

    thread = threading.Thread(target=serve)
    thread.start()
    with pytest.raises(wire.WireError, match="something else"):
        wire.connect(listener.getsockname(), token=b"", timeout=2)
    thread.join(5)
    listener.close()
