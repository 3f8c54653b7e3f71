"""A blocking HTTP/2 client that can misbehave: it sends the frames that it is told to, and reads what comes."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field

import numpy as np
from hpack import Decoder, Encoder

from tessera_runtime.protocol.http2 import frames
from tessera_runtime.protocol.messages import SERVICE, ModelInferRequest, ModelInferResponse

_PATIENCE_S = 20

INFER = f"/{SERVICE}/ModelInfer"
LIVE = f"/{SERVICE}/ServerLive"


@dataclass(frozen=True)
class Frame:
    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def code(self) -> int:
        """Of RST_STREAM or GOAWAY."""
        at = 0 if self.kind == frames.RST_STREAM else 4
        return int.from_bytes(self.payload[at : at + 4], "big")

    @property
    def last(self) -> int:
        """Of GOAWAY."""
        return int.from_bytes(self.payload[:4], "big")


@dataclass
class Reply:
    headers: dict[str, str] = field(default_factory=dict)
    data: bytes = b""

    @property
    def status(self) -> int:
        return int(self.headers["grpc-status"])

    @property
    def message(self) -> bytes:
        size = int.from_bytes(self.data[1:5], "big")
        assert self.data[0] == 0
        assert len(self.data) == 5 + size
        return self.data[5:]


class RawHttp2:
    """``greet=False`` leaves out the preface and SETTINGS."""

    def __init__(self, port: int, greet: bool = True, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(_PATIENCE_S)
        self.socket.connect(("127.0.0.1", port))
        self._file = self.socket.makefile("rb")
        self.encoder = Encoder()
        self._decoder = Decoder()
        self._replies: dict[int, Reply] = {}
        self.pings: list[Frame] = []
        """The server's own, none of them acknowledged."""
        if greet:
            self.send(frames.PREFACE, frames.settings_frame({}))

    def __enter__(self) -> RawHttp2:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        self.socket.close()

    def send(self, *parts: bytes) -> None:
        self.socket.sendall(b"".join(parts))

    def frame(self, kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> None:
        self.send(frames.frame(kind, flags, stream, payload))

    def headers(
        self, stream: int, path: str = INFER, end: bool = False, **more: str
    ) -> dict[str, str]:
        """Open a call; underscores of ``more`` are dashes."""
        fields = call_fields(path) | {name.replace("_", "-"): more[name] for name in more}
        flags = frames.END_HEADERS | (frames.END_STREAM if end else 0)
        self.frame(frames.HEADERS, flags, stream, self.encoder.encode(fields.items()))
        return fields

    def data(self, stream: int, payload: bytes, end: bool = True) -> None:
        self.frame(frames.DATA, frames.END_STREAM if end else 0, stream, payload)

    def call(self, stream: int, message: bytes, path: str = INFER, **more: str) -> None:
        self.headers(stream, path, **more)
        self.data(stream, framed(message))

    def read(self) -> Frame | None:
        """The next frame; None at the end of the connection."""
        try:
            head = self._file.read(9)
            if len(head) < 9:
                return None
            high, low, kind, flags, stream = frames.HEADER.unpack(head)
            return Frame(kind, flags, stream, self._file.read(high << 8 | low))
        except ConnectionResetError:
            return None

    def expect(self, kind: int) -> Frame:
        """The next frame of ``kind``; others are read over."""
        while (found := self.read()) is not None:
            self._note(found)
            if found.kind == kind and not (kind == frames.SETTINGS and found.flags & frames.ACK):
                return found
        raise AssertionError(f"the connection ended before a frame of kind {kind}")

    def reply(self, stream: int) -> Reply:
        """All of an answer."""
        while not self._ended(stream):
            found = self.read()
            assert found is not None, "the connection ended before the answer"
            assert (found.kind, found.stream) != (frames.RST_STREAM, stream), found
            self._note(found)
        return self._replies.pop(stream)

    def _ended(self, stream: int) -> bool:
        return "ended" in self._replies.setdefault(stream, Reply()).headers

    def _note(self, found: Frame) -> None:
        reply = self._replies.setdefault(found.stream, Reply())
        if found.kind == frames.HEADERS:
            assert found.flags & frames.END_HEADERS
            reply.headers |= dict(self._decoder.decode(found.payload))
        elif found.kind == frames.DATA:
            reply.data += found.payload
        else:
            if found.kind == frames.PING and not found.flags & frames.ACK:
                self.pings.append(found)
            return
        if found.flags & frames.END_STREAM:
            reply.headers["ended"] = "yes"

    def barrier(self) -> None:
        """Return when the server has taken all that was sent; an acknowledged PING says so."""
        self.frame(frames.PING, payload=b"barrier\0")
        while not ((found := self.expect(frames.PING)).flags & frames.ACK):
            assert found.payload != b"barrier\0"

    def goaway(self) -> Frame:
        found = self.expect(frames.GOAWAY)
        while self.read() is not None:
            pass
        return found


def call_fields(path: str) -> dict[str, str]:
    return {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "test",
        "te": "trailers",
        "content-type": "application/grpc",
    }


def framed(message: bytes, compressed: int = 0) -> bytes:
    return struct.pack(">BI", compressed, len(message)) + message


def identity_request(
    request_id: str = "", rows: int = 1, values: np.ndarray | None = None
) -> bytes:
    array = np.ones((rows, 16), np.float32) if values is None else values
    request = ModelInferRequest(
        model_name="test.identity", id=request_id, raw_input_contents=[array.tobytes()]
    )
    request.inputs.add(name="INPUT0", datatype="FP32", shape=array.shape)
    return request.SerializeToString()


def answer_id(reply: Reply) -> str:
    assert reply.status == 0, reply.headers
    return ModelInferResponse.FromString(reply.message).id
