"""Frames that are no request: settings, pings, windows, resets; and what each of them may cost."""

from __future__ import annotations

from tessera_runtime.protocol.http2 import frames
from tessera_runtime.protocol.http2.budget import Budget
from tessera_runtime.protocol.http2.frames import BadConnection, BadStream, Code
from tessera_runtime.protocol.http2.hub import Hub
from tessera_runtime.protocol.http2.lifetime import Lifetime
from tessera_runtime.protocol.http2.stream import Stream

_MAX_DROPPED = 1000
"""Streams answered before the client had sent everything, whose remaining frames are still expected."""


class Control(Lifetime):
    """A connection without its requests."""

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub)
        limits = hub.limits
        self._dropped: dict[int, None] = {}
        # Read for every frame, so kept here.
        self.stream_window = limits.stream_window
        self._connection_window = limits.connection_window
        self._spent = 0
        """Bytes of the connection's receive window that are used up."""
        self._frames = Budget(limits.frame_burst, limits.frames_per_s, hub.now)
        self._resets = Budget(limits.reset_burst, limits.resets_per_s, hub.now)

    def _take_control(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        self._charge(self._frames, "frames that ask for nothing")
        match kind:
            case frames.WINDOW_UPDATE:
                self._take_window_update(number, payload)
            case frames.PING:
                _expect(number == 0, Code.PROTOCOL_ERROR, "PING on a stream")
                _expect(len(payload) == 8, Code.FRAME_SIZE_ERROR, "PING of another size than 8")
                self.take_ping(flags, payload)
            case frames.SETTINGS:
                self._take_settings(flags, number, payload)
            case frames.RST_STREAM:
                _expect(len(payload) == 4, Code.FRAME_SIZE_ERROR, "RST_STREAM of a wrong size")
                self._check_known(number)
                self._dropped.pop(number, None)
                stream = self.streams.get(number)
                if stream is not None:
                    self._charge(self._resets, "resets")
                    self._cancel(stream)
            case frames.GOAWAY:
                # The client opens no more streams, and closes the connection when it has its answers.
                _expect(number == 0, Code.PROTOCOL_ERROR, "GOAWAY on a stream")
            case frames.PUSH_PROMISE:
                raise BadConnection(Code.PROTOCOL_ERROR, "PUSH_PROMISE of a client")
            case frames.PRIORITY:
                _expect(number != 0, Code.PROTOCOL_ERROR, "PRIORITY without a stream")
                if len(payload) != 5:
                    raise BadStream(Code.FRAME_SIZE_ERROR, "PRIORITY of another size than 5")
                if int.from_bytes(payload[:4], "big") & frames.MAX_STREAM == number:
                    raise BadStream(Code.PROTOCOL_ERROR, "a stream that depends on itself")

    def _take_settings(self, flags: int, number: int, payload: bytes) -> None:
        _expect(number == 0, Code.PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & frames.ACK:
            _expect(not payload, Code.FRAME_SIZE_ERROR, "SETTINGS that acknowledge and set")
            return
        for identifier, value in frames.read_settings(payload):
            if identifier == frames.Setting.INITIAL_WINDOW_SIZE:
                change, self.peer_window = value - self.peer_window, value
                for stream in self.streams.values():
                    stream.window += change
                    if stream.window > frames.MAX_WINDOW:
                        raise BadConnection(Code.FLOW_CONTROL_ERROR, "a stream's window overflows")
            elif identifier == frames.Setting.MAX_FRAME_SIZE:
                self._max_frame = value
        self._write(frames.frame(frames.SETTINGS, frames.ACK, 0))
        if self._waiting:
            self._pump()

    def _take_window_update(self, number: int, payload: bytes) -> None:
        _expect(len(payload) == 4, Code.FRAME_SIZE_ERROR, "WINDOW_UPDATE of another size than 4")
        credit = int.from_bytes(payload, "big") & frames.MAX_WINDOW
        if number == 0:
            _expect(credit > 0, Code.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
            self._widen(None, credit)
            return
        self._check_known(number)
        stream = self.streams.get(number)
        if stream is not None:
            if not credit:
                raise BadStream(Code.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
            self._widen(stream, credit)

    def _check_known(self, number: int) -> None:
        if not number & 1 or number > self.last:
            raise BadConnection(Code.PROTOCOL_ERROR, "a frame on an idle stream")

    # --- bounds --------------------------------------------------------------------------------------

    def _charge(self, budget: Budget, what: str) -> None:
        sent = self.answered - self.answered_before
        if sent:
            # An answer is worth the window updates, pings and cancellations that come with it.
            self.answered_before = self.answered
            self._frames.earn(8 * sent)
            self._resets.earn(sent)
        if not budget.spend(self.hub.now):
            raise BadConnection(Code.ENHANCE_YOUR_CALM, f"too many {what}")

    def _spend_window(self, size: int) -> None:
        self._spent += size
        window = self._connection_window
        if self._spent > window:
            raise BadConnection(Code.FLOW_CONTROL_ERROR, "more than the connection's window")
        if self._spent * 4 >= window:
            self._write(frames.window_update(0, self._spent))
            self._spent = 0

    def replenish(self, stream: Stream) -> None:
        """Let the client send more to a stream that wants it."""
        window = self.stream_window
        if stream.allowed * 2 <= window and not stream.holds():
            self.grant(stream, window - stream.allowed)

    def grant(self, stream: Stream, credit: int) -> None:
        """Let the client send ``credit`` bytes more."""
        if credit > 0 and not stream.ended:
            stream.allowed += credit
            self._write(frames.window_update(stream.id, credit))

    # --- ends of streams -----------------------------------------------------------------------------

    def reset(self, number: int, code: Code) -> None:
        """End a stream at once; the client will read an error."""
        stream = self.streams.get(number)
        if stream is not None:
            self._cancel(stream)
            if not stream.ended:
                self._drop(number)
        self._charge(self._resets, "broken streams")
        self._write(frames.reset(number, code))

    def _drop(self, number: int) -> None:
        if len(self._dropped) >= _MAX_DROPPED:
            del self._dropped[next(iter(self._dropped))]
        self._dropped[number] = None

    def _cancel(self, stream: Stream) -> None:
        self._remove(stream)
        self._drop_queue(stream)
        stream.cancel()
        self.check_done()

    def _forget(self, stream: Stream) -> None:
        self._remove(stream)
        if not stream.ended:
            self._drop(stream.id)
            self._write(frames.reset(stream.id, Code.NO_ERROR))
        if self.last_taken is not None:
            self.check_done()

    def _remove(self, stream: Stream) -> None:
        stream.over = True
        self.hub.calls -= 1
        self.streams.pop(stream.id, None)


def _expect(fits: bool, code: Code, message: str) -> None:
    if not fits:
        raise BadConnection(code, message)
