"""Load on a running server: requests at times drawn in advance, or as fast as answers come.

Problem: a load generator in Python easily measures itself. It is late when it is busy and then reports the
server as fast (coordinated omission), it burns a millisecond per request in client libraries, and it
steals the processor from whatever else its process does.

Approach: requests are encoded once, before the load starts; connections are bare asyncio protocols that
write those bytes and find the answer's end; the load runs in a process of its own, on cores of its own where
wanted; and open-loop latency counts from the moment a request was *meant* to be sent, so that lateness of
the client shows as latency and is reported as lateness too.

    LoadPlan ──process──▶ drive ──▶ pool ──▶ http1 | http2 ──▶ server
        Progress, Finished ◀──┘

    LoadFailed      no connection, or the process of the load ended without a result
"""

from tessera_cli.loadgen.plan import (
    ClosedLoop,
    Finished,
    LoadFailed,
    LoadPlan,
    OpenLoop,
    Phase,
    Progress,
    Protocol,
    Started,
    Target,
)
from tessera_cli.loadgen.process import LoadProcess
from tessera_cli.loadgen.samples import Samples, Summary, summarise

__all__ = [
    "ClosedLoop",
    "Finished",
    "LoadFailed",
    "LoadPlan",
    "LoadProcess",
    "OpenLoop",
    "Phase",
    "Progress",
    "Protocol",
    "Samples",
    "Started",
    "Summary",
    "Target",
    "summarise",
]
