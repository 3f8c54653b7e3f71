"""gRPC calls of many messages, taken no faster than they are answered."""

from __future__ import annotations

from tessera_runtime.errors import Overloaded
from tessera_runtime.protocol.grpc_call import Call, Service
from tessera_runtime.protocol.grpc_head import Head
from tessera_runtime.protocol.http2.connection import Connection
from tessera_runtime.protocol.http2.stream import Received


class Streaming(Call):
    """A call of many messages, which are taken only while :meth:`busy` says no. What has come by then waits
    here, bounded by the stream's window, over all calls by ``max_held``.
    """

    max_messages: int | None = None

    completed = False
    """The client's last message has been taken."""
    _taking = False
    _held_bytes = 0

    def __init__(
        self, service: Service, connection: Connection, number: int, ended: bool, head: Head
    ) -> None:
        super().__init__(service, connection, number, ended, head)
        self._held: list[bytes] = []

    def busy(self) -> bool:
        """Whether no further message may be begun."""
        return self.queued > 0

    def holds(self) -> bool:
        return self._held_bytes > 0

    def receive(self, data: Received, at: int, end: int) -> None:
        if self._held or (self._slot is None and self.busy()):
            self._hold(bytes(data[at:end]))
        else:
            self._taking = True
            super().receive(data, at, end)
            self._taking = False

    def keep(self, data: Received, at: int, end: int) -> int:
        if at < end and self.busy():
            self._hold(bytes(data[at:end]))
            return end
        return at

    def _hold(self, data: bytes) -> None:
        hub = self.connection.hub
        self._held.append(data)
        self._held_bytes += len(data)
        hub.held += len(data)
        if hub.held > self.service.limits.max_held:
            self.stop()
            self.fail(Overloaded("too many requests wait in streams; retry later"))

    def resume(self) -> None:
        """Take what was held, as far as it may go on."""
        if self._taking:
            return
        while self._held and not self.over and not self.busy():
            data = memoryview(b"".join(self._held))
            self._unhold()
            self.receive(data, 0, len(data))
        if not self._held and not self.over:
            if self.ended:
                self.end()
            else:
                self.connection.replenish(self)

    def _unhold(self) -> None:
        self.connection.hub.held -= self._held_bytes
        self._held, self._held_bytes = [], 0

    def drained(self) -> None:
        self.resume()

    def end(self) -> None:
        if not self._held and not self.completed:
            self.completed = True
            super().end()

    def release(self) -> None:
        super().release()
        self._unhold()

    def waits(self) -> bool:
        return not self.ended and self._slot is not None
