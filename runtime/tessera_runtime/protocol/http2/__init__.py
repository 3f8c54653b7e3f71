"""HTTP/2 (RFC 9113) for servers, as much of it as gRPC needs: frames, header blocks, flow control, limits.

It knows nothing of gRPC: :mod:`~tessera_runtime.protocol.http2.connection` turns bytes into streams and hands
each request to the ``open_stream`` of its hub.
"""
