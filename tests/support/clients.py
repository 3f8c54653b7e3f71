"""Asking a running server: one request, many at once, and a steady load that checks every answer."""

from __future__ import annotations

import itertools
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self, TypeVar

import numpy as np
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client
from tritonclient.utils import np_to_triton_dtype

from support.model_files import rows
from tessera_runtime.target import Ports

PATIENCE_S = 30.0

Result = TypeVar("Result")


def infer_http(client, model: str, x: np.ndarray, name: str = "x", **options: object):
    """One HTTP request with binary tensors."""
    given = http_client.InferInput(name, x.shape, np_to_triton_dtype(x.dtype))
    given.set_data_from_numpy(x)
    return client.infer(model, [given], **options)


def infer_grpc(client, model: str, x: np.ndarray, name: str = "x", **options: object):
    given = grpc_client.InferInput(name, x.shape, np_to_triton_dtype(x.dtype))
    given.set_data_from_numpy(x)
    return client.infer(model, [given], **options)


class Crowd:
    """Requests in flight at once over one gRPC channel, each on a thread of its own."""

    def __init__(self, grpc_port: int, threads: int = 32) -> None:
        self.client = grpc_client.InferenceServerClient(f"127.0.0.1:{grpc_port}")
        self._pool = ThreadPoolExecutor(threads)

    def ask(self, model: str, x: np.ndarray, **options: object) -> Future[np.ndarray]:
        """The first output, in the future."""
        return self.submit(self._infer, model, x, options)

    def submit(self, function: Callable[..., Result], *given: object) -> Future[Result]:
        """Any other blocking call, on one of the threads."""
        return self._pool.submit(function, *given)

    def _infer(self, model: str, x: np.ndarray, options: dict[str, object]) -> np.ndarray:
        options.setdefault("client_timeout", PATIENCE_S)
        result = infer_grpc(self.client, model, x, **options)
        return result.as_numpy(result.get_response().outputs[0].name)

    def close(self) -> None:
        self._pool.shutdown(wait=True)
        self.client.close()


class CheckedLoad(ABC):
    """Clients on threads of their own, from entry to exit of the ``with`` block.

    Every answer is compared with ``answers``: any of these functions of the input may be the right one,
    since versions change meanwhile.
    """

    def __init__(self, answers: Sequence[Callable[[np.ndarray], np.ndarray]], clients: int) -> None:
        self.answered = 0
        self.problems: list[str] = []
        self._answers = answers
        self._stop = threading.Event()
        self._moved = threading.Condition()
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"load-{number}")
            for number in range(clients)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        assert not any(thread.is_alive() for thread in self._threads), "a request hangs"

    def wait_answers(self, more: int) -> None:
        """Until ``more`` answers have come, so that the load is known to have seen the present state."""
        with self._moved:
            wanted = self.answered + more
            moved = self._moved.wait_for(
                lambda: self.answered >= wanted or self.problems, PATIENCE_S
            )
        assert moved, f"{self.answered} of {wanted} answers came"

    def check(self) -> None:
        """No request failed and no answer was wrong."""
        assert self.problems == []
        assert self.answered > 0

    @abstractmethod
    def _run(self, number: int) -> None:
        """Until ``_stop`` is set."""

    def _ask(self, who: object, infer: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> None:
        try:
            y = infer(x)
            problem = "" if any(np.array_equal(y, f(x)) for f in self._answers) else f"{x}→{y}"
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        with self._moved:
            if problem:
                self.problems.append(f"{type(who).__name__}: {problem}")
            else:
                self.answered += 1
            self._moved.notify_all()


class Load(CheckedLoad):
    """A closed loop of clients, half of them over HTTP, half over gRPC."""

    def __init__(
        self,
        ports: Ports,
        model: str,
        *answers: Callable[[np.ndarray], np.ndarray],
        clients: int = 4,
    ) -> None:
        super().__init__(answers, clients)
        self._ports = ports
        self._model = model

    def _run(self, number: int) -> None:
        if number % 2:
            client = grpc_client.InferenceServerClient(f"127.0.0.1:{self._ports.grpc}")
            infer = infer_grpc
        else:
            client = http_client.InferenceServerClient(
                f"127.0.0.1:{self._ports.http}", network_timeout=PATIENCE_S
            )
            infer = infer_http

        def first(x: np.ndarray) -> np.ndarray:
            result = infer(client, self._model, x)
            response = result.get_response()
            outputs = response["outputs"] if isinstance(response, dict) else response.outputs
            name = outputs[0]["name"] if isinstance(response, dict) else outputs[0].name
            return result.as_numpy(name)

        for sent in itertools.count():
            if self._stop.is_set():
                break
            self._ask(client, first, rows(number * 1000 + sent % 1000, 1 + sent % 3))
        client.close()
