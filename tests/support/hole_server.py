"""Servers on loopback that are no MLflow, each in its own way: silent, too slow, broken, or something else."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

OK = b"HTTP/1.1 200 OK\r\n"
HOW = ("silent", "reset", "500", "html", "health only", "drip", "drips its answers")


@contextlib.contextmanager
def hole_server(how: str) -> Iterator[str]:
    """The address of a server that answers as `how` says, for as long as the block lasts."""
    over = threading.Event()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)

        def accept() -> None:
            while not over.is_set():
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

        def answer(connection: socket.socket) -> None:
            with contextlib.suppress(OSError), connection:
                respond(connection)

        def respond(connection: socket.socket) -> None:
            if how == "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            words = b"" if how == "silent" else connection.recv(65_536)
            healthy = how in ("health only", "drips its answers") and b"/health" in words.split(b"\r\n")[0]
            if healthy:
                connection.sendall(OK + b"Content-Length: 2\r\nConnection: close\r\n\r\nOK")
            elif how in ("silent", "health only"):
                over.wait(600)
            elif how in ("drip", "drips its answers"):
                for byte in OK + b"X-Padding: " + b"a" * 100_000:
                    connection.sendall(bytes([byte]))
                    if over.wait(0.5):
                        return
            elif how == "500":
                connection.sendall(b"HTTP/1.1 500 oops\r\nContent-Length: 4\r\nConnection: close\r\n\r\noops")
            else:
                page = b"<html>login</html>"
                head = b"Content-Type: text/html\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(page)
                connection.sendall(OK + head + page)

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            over.set()
