"""Front ends: the Open Inference Protocol v2 over HTTP and gRPC.

Both turn bytes into the calls of :class:`tessera_runtime.dataplane.DataPlane` and its answers into bytes; they
know nothing of queues or engines. :func:`~tessera_runtime.protocol.http_server.start_http` and
:func:`~tessera_runtime.protocol.grpc_server.start_grpc` are the two entry points::

    http_server ─▶ http1 (connection) ─┬─▶ head, routes, chunked, body, compression     bytes ⇄ requests
                                       ├─▶ v2json ─┬─▶ tensors, parameters              requests ⇄ calls
    grpc_server ─▶ grpc_rpc ─▶ grpc_codec ─────────┘
                └▶ grpc_health                      rest, describe                      everything but inference
"""
