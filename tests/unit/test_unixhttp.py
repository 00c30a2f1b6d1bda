"""The agent's answers are read whole or not at all, however they come in; what is no answer is refused."""

import contextlib
import socket
import threading

import pytest

from qrep import unixhttp

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def answering(tmp_path):
    """answering(parts): a server that says these pieces one by one; returns (path, what it was asked)."""
    threads = []

    def make(*parts):
        path, asked = str(tmp_path / f"{len(threads)}.sock"), []
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(path)
        listening.listen()

        def serve():
            with listening:
                connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):  # who has read enough hangs up
                asked.append(connection.recv(65536))
                for part in parts:
                    connection.sendall(part)

        threads.append(threading.Thread(target=serve, daemon=True))
        threads[-1].start()
        return path, asked

    yield make
    for thread in threads:
        thread.join(10)


def read(path):
    response = unixhttp.request(path, "GET", "/v1/status", timeout=10)
    try:
        return response.status, response.read()
    finally:
        response.close()


def test_a_request_says_what_its_body_is_and_that_it_is_the_only_one(answering):
    path, asked = answering(OK + b"Content-Length: 0\r\n\r\n")
    unixhttp.request(path, "POST", "/v1/jobs", b"{}", 10).close()
    head, _, body = asked[0].partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"POST /v1/jobs HTTP/1.1", b"Host: localhost", b"Connection: close", b"Content-Type: application/json", b"Content-Length: 2",
    ] and body == b"{}"  # fmt: skip


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"content-length: 6\r\n\r\nab\ncd\nnot of it",
        CHUNKED + b"2\r\nab\r\n3;x=y\r\n\ncd\r\n1\r\n\n\r\n0\r\n\r\n",
        OK + b"\r\nab\ncd\n",  # to the end
    ],
)
def test_a_body_is_the_same_in_one_piece_and_byte_by_byte(answering, answer):
    for parts in ([answer], [answer[at : at + 1] for at in range(len(answer))]):
        assert read(answering(*parts)[0]) == (200, b"ab\ncd\n")
        response = unixhttp.request(answering(*parts)[0], "GET", "/", timeout=10)
        assert list(response) == [b"ab", b"cd"]
        response.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"what?\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", OK, OK + b"Content-Length: 5\r\n\r\nabcd", OK + b"Content-Length: -1\r\n\r\n", OK + b"Content-Length: 4_0\r\n\r\n",
        CHUNKED + b"5\r\nabcd", CHUNKED + b"2\r\nabc\r\n0\r\n\r\n", CHUNKED + b"x\r\n", CHUNKED + b"fffffffffff\r\n", CHUNKED + b"2\r\nab\r\n", b"x" * (200 << 10),
    ],
)  # fmt: skip
def test_what_is_no_answer_or_ends_early_is_refused(answering, answer):
    with pytest.raises((unixhttp.BadAnswer, BrokenPipeError, ConnectionResetError)):
        read(answering(answer)[0])
