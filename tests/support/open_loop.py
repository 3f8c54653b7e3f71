"""Load of clients that each send when it is time to, through what a Kubernetes Service is to them: connections are
spread over the servers that say they are ready, which is noticed a little late, and stay where they are.
"""

from __future__ import annotations

import asyncio
import http.client
import itertools
import json
import threading
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import tritonclient.grpc as grpc_client

from support.clients import PATIENCE_S, CheckedLoad, infer_grpc
from support.model_files import rows
from support.server import Server
from tessera_runtime.target import Ports

NOTICED_AFTER_S = 0.2
"""How long a server that is not ready any more still gets new connections."""


class Endpoints:
    """The servers behind one address: a relay that sends each new connection to the next ready one."""

    def __init__(self, *servers: Server) -> None:
        self._servers = [server.ports() for server in servers]
        self._turn = itertools.count()
        self._stop = asyncio.Event()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="endpoints")

    def __enter__(self) -> Endpoints:
        self._thread.start()
        assert self._listening.wait(PATIENCE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(PATIENCE_S)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        http = await asyncio.start_server(lambda r, w: self._relay(r, w, "http"), "127.0.0.1", 0)
        grpc = await asyncio.start_server(lambda r, w: self._relay(r, w, "grpc"), "127.0.0.1", 0)
        self.http, self.grpc = (s.sockets[0].getsockname()[1] for s in (http, grpc))
        self._ready = list(self._servers)
        watching = [asyncio.create_task(self._watch(ports)) for ports in self._servers]
        self._listening.set()
        await self._stop.wait()
        for task in watching:
            task.cancel()
        http.close()
        grpc.close()
        # The clients have gone: so do the relays, each when it has seen it.
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.wait(others, timeout=PATIENCE_S)

    async def _watch(self, ports: Ports) -> None:
        while True:
            await asyncio.sleep(0.02)
            if not await asyncio.to_thread(_ready, ports):
                break
        await asyncio.sleep(NOTICED_AFTER_S)
        self._ready.remove(ports)

    async def _relay(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, front_end: str
    ) -> None:
        ports = self._ready[next(self._turn) % len(self._ready)]
        try:
            there = await asyncio.open_connection("127.0.0.1", getattr(ports, front_end))
        except OSError:
            writer.transport.abort()
            return
        await asyncio.gather(_copy(reader, there[1]), _copy(there[0], writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until either side ends."""
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


class OpenLoad(CheckedLoad):
    """Half of the clients speak HTTP, half gRPC."""

    def __init__(
        self,
        endpoints: Endpoints,
        model: str,
        *answers: Callable[[np.ndarray], np.ndarray],
        clients: int = 8,
        interval_s: float = 0.04,
    ) -> None:
        super().__init__(answers, clients)
        self._endpoints = endpoints
        self._model = model
        self._interval_s = interval_s

    def _run(self, number: int) -> None:
        client = _GrpcClient(self._endpoints) if number % 2 else _HttpClient(self._endpoints)
        due = time.monotonic() + self._interval_s * number / len(self._threads)
        for sent in itertools.count():
            if self._stop.wait(max(0.0, due - time.monotonic())):
                break
            due += self._interval_s
            x = rows(number * 1000 + sent % 1000, 1 + sent % 3)
            self._ask(client, partial(client.infer, self._model), x)
        client.close()


class _HttpClient:
    """One connection at a time, kept while the server keeps it."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._endpoints = endpoints
        self._connection: http.client.HTTPConnection | None = None

    def infer(self, model: str, x: np.ndarray) -> np.ndarray:
        connection = self._connection
        if connection is None:
            port = self._endpoints.http
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
            self._connection = connection
        given = {"name": "x", "shape": x.shape, "datatype": "FP32", "data": x.ravel().tolist()}
        connection.request("POST", f"/v2/models/{model}/infer", json.dumps({"inputs": [given]}))
        response = connection.getresponse()
        text = response.read()
        if response.will_close:
            self.close()
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {text!r}")
        [output] = json.loads(text)["outputs"]
        return np.array(output["data"], np.float32).reshape(output["shape"])

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class _GrpcClient:
    def __init__(self, endpoints: Endpoints) -> None:
        # Channels to one address share a connection, unless they are told not to.
        options = [("grpc.use_local_subchannel_pool", 1)]
        address = f"127.0.0.1:{endpoints.grpc}"
        self._client = grpc_client.InferenceServerClient(address, channel_args=options)

    def infer(self, model: str, x: np.ndarray) -> np.ndarray:
        return infer_grpc(self._client, model, x, client_timeout=PATIENCE_S).as_numpy("y")

    def close(self) -> None:
        self._client.close()


def _ready(ports: Ports) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", ports.http, timeout=PATIENCE_S)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
