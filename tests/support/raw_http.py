"""A blocking HTTP/1.1 client that can misbehave: it sends what it is told and reads one answer at a time."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass

import numpy as np

_PATIENCE_S = 20


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict:
        return json.loads(self.body)


class RawClient:
    def __init__(self, port: int, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(_PATIENCE_S)
        try:
            self.socket.connect(("127.0.0.1", port))
        except OSError:
            self.socket.close()
            raise
        self._file = self.socket.makefile("rb")

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        self.socket.close()

    def send(self, *parts: bytes) -> None:
        for part in parts:
            self.socket.sendall(part)

    def read(self, without_body: bool = False) -> Answer:
        line = self._file.readline()
        assert line.startswith(b"HTTP/1.1 "), line
        headers: dict[str, str] = {}
        while (text := self._file.readline().decode().rstrip("\r\n")) != "":
            name, _, value = text.partition(":")
            headers[name.lower()] = value.strip()
        size = 0 if without_body else int(headers.get("content-length", 0))
        return Answer(int(line.split()[1]), headers, self._file.read(size))

    def ended(self) -> bool:
        """Whether the server has ended the connection; waits for it."""
        try:
            return self._file.read(1) == b""
        except ConnectionResetError:
            return True


def request(
    method: str, path: str, body: bytes = b"", headers: str = "", version: str = "1.1"
) -> bytes:
    """``headers``: whole lines, each with its CR LF."""
    if body:
        headers += f"Content-Length: {len(body)}\r\n"
    return f"{method} {path} HTTP/{version}\r\nHost: test\r\n{headers}\r\n".encode() + body


def json_infer(request_id: str = "", rows: int = 1, fill: float = 1.0) -> bytes:
    """The JSON body of a request to ``test.identity``."""
    given = {
        "name": "INPUT0",
        "shape": [rows, 16],
        "datatype": "FP32",
        "data": [fill] * (16 * rows),
    }
    return json.dumps({"id": request_id, "inputs": [given]}).encode()


def binary_infer(values: np.ndarray, datatype: str = "FP32") -> tuple[bytes, str]:
    """Body and headers of a binary request with one input."""
    given = {
        "name": "INPUT0",
        "shape": list(values.shape),
        "datatype": datatype,
        "parameters": {"binary_data_size": values.nbytes},
    }
    text = json.dumps({"inputs": [given], "parameters": {"binary_data_output": True}}).encode()
    return text + values.tobytes(), f"Inference-Header-Content-Length: {len(text)}\r\n"


INFER = "/v2/models/test.identity/infer"
