"""A server of this process on a real port, and raw requests to it."""

import json
import socket
import threading
import time
from contextlib import contextmanager, suppress

import uvicorn

TIMEOUT = 120.0  # of a test that would hang


@contextmanager
def serving(app):
    """Yields: the port of 127.0.0.1 on which the app answers."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started or not thread.is_alive())
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        thread.join(TIMEOUT)


def wait_until(condition) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.01)


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT)


def raw_post(path: str, body: bytes, *headers: str) -> bytes:
    """The bytes of a request; `headers` replace the usual two."""
    given = headers or ("Content-Type: application/json", f"Content-Length: {len(body)}")
    lines = [f"POST {path} HTTP/1.1", "Host: server", "Connection: close", *given]
    return "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + body


def send(port: int, request: bytes) -> tuple[int, str]:
    """The status and the body of the answer; 0 for a connection that is closed without one."""
    with connect(port) as client:
        answer = b""
        with suppress(OSError):  # refused while it is sent
            client.sendall(request)
        with suppress(ConnectionError):
            while piece := client.recv(65536):
                answer += piece
    head, _, content = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]) if head else 0, content.decode("utf-8", "replace")


def post(port: int, path: str, body) -> tuple[int, str]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return send(port, raw_post(path, data))


def is_healthy(port: int) -> bool:
    status, _ = send(port, b"GET /health HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n")
    return status == 200
