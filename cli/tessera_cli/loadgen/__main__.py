"""``python -m tessera_cli.loadgen``: the child of :class:`tessera_cli.loadgen.process.LoadProcess`."""

import sys

from tessera_cli.loadgen.process import serve_parent

serve_parent(sys.stdin.buffer, sys.stdout.buffer)
