"""What an engine is called: the library and the version of its installed distribution.

The agent must know it without importing the library, so it is not the library's own ``__version__``, which
may say more (torch's names the CUDA it was built for).
"""

from __future__ import annotations

import importlib.metadata
import platform


def library_version(library: str) -> str:
    """``torch-2.8.0``; ``python`` is the interpreter. Raises PackageNotFoundError."""
    if library == "python":
        return f"python-{platform.python_version()}"
    return f"{library}-{importlib.metadata.version(library)}"


def is_installed(library: str) -> bool:
    try:
        importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
