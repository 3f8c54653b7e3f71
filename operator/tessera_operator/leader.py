"""Holds the Lease: waits until this process leads, renews, and says so when it does not lead any more.

``lease.py`` decides; this reads and writes ``coordination.k8s.io/v1`` Leases with the synchronous client, in
threads of its own once it leads.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from kubernetes import client
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from tessera_operator.lease import Record, Seen, Timing, claim, look, must_stop, still_mine

_LOG = logging.getLogger(__name__)
_CONFLICT, _NOT_FOUND = 409, 404


class Leader:
    """One candidate for one Lease. As a context: leads inside, gives the lease back at the end.

    ``on_loss`` is called once, in another thread, when the lease is lost; nothing may be written after that.
    ``epoch_seen`` tells the largest epoch in any object of the cluster.
    """

    def __init__(
        self,
        api: client.ApiClient,
        namespace: str,
        name: str,
        identity: str,
        on_loss: Callable[[], None],
        epoch_seen: Callable[[], int],
        timing: Timing | None = None,
    ) -> None:
        self._leases = client.CoordinationV1Api(api)
        self._namespace, self._name, self._identity = namespace, name, identity
        self._on_loss, self._epoch_seen = on_loss, epoch_seen
        self._timing = timing or Timing()
        self._held: Record | None = None
        self._renewed_s = 0.0
        self._ended = threading.Event()
        self._threads = (
            threading.Thread(target=self._renew, name="lease", daemon=True),
            threading.Thread(target=self._watch, name="lease-watchdog", daemon=True),
        )

    @property
    def epoch(self) -> int:
        """The number of this leader. Raises RuntimeError unless it leads."""
        if self._held is None:
            raise RuntimeError("epoch: this candidate does not lead")
        return self._held.transitions

    def acquire(self, stop: threading.Event) -> bool:
        """Wait until this candidate leads; False when ``stop`` was set first."""
        seen: Seen | None = None
        while not stop.is_set():
            try:
                record = self._read()
                now_s = time.monotonic()
                seen = None if record is None else look(seen, record, now_s)
                wanted = claim(seen, self._identity, now_s, self._timing, self._epoch_seen())
                if wanted is not None:
                    self._held = self._write(wanted)
                    self._renewed_s = now_s
                    _LOG.info("leads as %s, epoch %d", self._identity, wanted.transitions)
                    return True
            except (ApiException, HTTPError) as failed:
                if (
                    getattr(failed, "status", None) != _CONFLICT
                ):  # that is another one who was faster
                    _LOG.warning("the lease could not be read or written: %s", _short(failed))
            stop.wait(self._timing.retry_s)
        return False

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(self._timing.duration_s)
        self._release()

    def _renew(self) -> None:
        held = self._held
        while held is not None and not self._ended.wait(self._timing.retry_s):
            started_s = time.monotonic()
            try:
                self._held = held = self._write(held)
                self._renewed_s = started_s
            except (ApiException, HTTPError) as failed:
                _LOG.warning("the lease could not be renewed: %s", _short(failed))
                if getattr(failed, "status", None) in (_CONFLICT, _NOT_FOUND):
                    held = self._read_again(held)

    def _read_again(self, held: Record) -> Record | None:
        """The record as it is now; None where this leader was deposed."""
        try:
            found = self._read()
        except (ApiException, HTTPError) as failed:
            _LOG.warning("the lease could not be read: %s", _short(failed))
            return held
        if still_mine(held, found):
            return found
        self._lose("somebody else holds it")
        return None

    def _watch(self) -> None:
        """Time is up also while a request hangs, so it is told by a thread that makes none."""
        while not self._ended.wait(self._timing.retry_s / 8):
            if must_stop(self._renewed_s, time.monotonic(), self._timing):
                self._lose(f"not renewed for {self._timing.renew_within_s:g} s")

    def _lose(self, why: str) -> None:
        if self._ended.is_set():
            return
        self._ended.set()
        self._held = None
        _LOG.error("the lease is lost: %s", why)
        self._on_loss()

    def _release(self) -> None:
        """Let the next one lead at once, rather than after the lease has run out."""
        held, self._held = self._held, None
        if held is None:
            return
        try:
            self._write(Record("", held.transitions, held.version))
        except (ApiException, HTTPError) as failed:
            _LOG.warning("the lease could not be given back: %s", _short(failed))

    def _read(self) -> Record | None:
        try:
            lease = self._leases.read_namespaced_lease(
                self._name, self._namespace, _request_timeout=self._timing.renew_within_s
            )
        except ApiException as failed:
            if failed.status == _NOT_FOUND:
                return None
            raise
        return _record(lease)

    def _write(self, record: Record) -> Record:
        """What the server holds now; raises ApiException with 409 where the version was not the last one."""
        lease = client.V1Lease(
            metadata=client.V1ObjectMeta(name=self._name, resource_version=record.version or None),
            spec=client.V1LeaseSpec(
                holder_identity=record.holder,
                lease_transitions=record.transitions,
                lease_duration_seconds=max(1, round(self._timing.duration_s)),
                renew_time=datetime.now(UTC),
            ),
        )
        timeout = {"_request_timeout": self._timing.retry_s * 2}
        if not record.version:
            return _record(self._leases.create_namespaced_lease(self._namespace, lease, **timeout))
        return _record(
            self._leases.replace_namespaced_lease(self._name, self._namespace, lease, **timeout)
        )


def _record(lease: Any) -> Record:
    return Record(
        lease.spec.holder_identity or "",
        lease.spec.lease_transitions or 0,
        lease.metadata.resource_version,
    )


def _short(failed: Exception) -> str:
    return str(failed).partition("\n")[0][:200]
