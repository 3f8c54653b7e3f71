"""A plain server: its request handler decodes the image, calls the network and answers. One process.

``POST /full`` decodes at full size with Pillow, ``POST /scaled`` with the decoder of the stage; the body is an image, the
answer the network's output, FP32. As such servers do, it takes one request after the other and batches none.
"""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import torch
from aiohttp import web
from bench.models.served import load
from bench.preprocess.photographs import IMAGE, decoded, decoded_at_full_size

from tessera_runtime.preprocess.image import ImageStage

MOST_BYTES = 16 << 20

Decode = Callable[[bytes], np.ndarray]
Handler = Callable[[web.Request], Awaitable[web.Response]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--network", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True, help="of the network")
    chosen = parser.parse_args()
    model = load(chosen.models, (chosen.network,))
    torch.set_num_threads(chosen.threads)
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
    web.run_app(app, host="127.0.0.1", port=chosen.port, print=None, access_log=None)


if __name__ == "__main__":
    main()
