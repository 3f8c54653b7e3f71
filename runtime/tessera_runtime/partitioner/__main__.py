"""``python -m tessera_runtime.partitioner``."""

from tessera_runtime.partitioner.main import main

main()
