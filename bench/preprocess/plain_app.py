"""Plain servers: the request handler decodes the image, calls the network and answers.

``POST /full`` decodes at full size with Pillow, ``POST /scaled`` with the decoder of the stage; the body is an image, the
answer the network's output, FP32. As such servers do, each takes one request after the other and batches none. Every
``PORT:CORES`` is a process of its own, which all end with this one, as this one does with its input.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from aiohttp import web
from bench.models.served import Model, load
from bench.preprocess.transforms import IMAGE, decoded, decoded_at_full_size

from tessera_runtime.preprocess.image import ImageStage

MOST_BYTES = 16 << 20

Decode = Callable[[bytes], npt.NDArray[np.float32]]
Handler = Callable[[web.Request], Awaitable[web.Response]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--network", required=True)
    parser.add_argument("servers", nargs="+", metavar="PORT:CORES")
    chosen = parser.parse_args()
    model = load(chosen.models, (chosen.network,))  # on one thread: a pool would not survive a fork
    fork = multiprocessing.get_context("fork")
    for server in chosen.servers:
        port, _, cores = server.partition(":")
        where = [int(core) for core in cores.split(",")]
        fork.Process(target=serve, args=(model, int(port), where), daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    sys.stdin.read()


def serve(model: Model, port: int, cores: list[int]) -> None:
    """Until it is ended. The network may use all of ``cores``."""
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(len(cores))
    stage = ImageStage(IMAGE)

    def handler(decode: Decode) -> Handler:
        async def answer(request: web.Request) -> web.Response:
            row = decode(await request.read())
            return web.Response(body=model(row[None]).tobytes())

        return answer

    async def live(_: web.Request) -> web.Response:
        return web.Response()

    app = web.Application(client_max_size=MOST_BYTES)
    app.router.add_get("/live", live)
    app.router.add_post("/full", handler(decoded_at_full_size))
    app.router.add_post("/scaled", handler(lambda encoded: decoded(stage, encoded)))
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None)


if __name__ == "__main__":
    main()
