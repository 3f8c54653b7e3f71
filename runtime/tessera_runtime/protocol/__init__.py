"""Front ends: the Open Inference Protocol v2 over HTTP and gRPC.

Both turn bytes into the calls of :class:`tessera_runtime.dataplane.DataPlane` and its answers into bytes; they
know nothing of queues or engines. :func:`~tessera_runtime.protocol.http_server.start_http` and
:func:`~tessera_runtime.protocol.grpc_server.start_grpc` are the two entry points::

    http_server ─▶ http1 (connection) ─┬─▶ head, routes, chunked, body, compression     bytes ⇄ requests
                                       ├─▶ v2json ─┬─▶ tensors, parameters              requests ⇄ calls
    grpc_server ─▶ http2 (connections) │           │                                    bytes ⇄ streams
                └▶ grpc_head, grpc_call ─▶ grpc_infer ─▶ grpc_request, grpc_reply ─▶ grpc_codec
                └▶ grpc_rpc ─▶ grpc_methods, grpc_health, grpc_reflection               everything but inference
                                       └─▶ rest, describe                               the same over HTTP

Servers call each other for single members of a service by the same protocol: :mod:`~tessera_runtime.protocol.peer_client`
asks, :mod:`~tessera_runtime.protocol.member_call` is what is said beside the request.
"""
