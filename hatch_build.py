"""Ahead-of-time compilation of the modules that every request passes through, when a wheel is built.

mypyc compiles the very sources, so the pure Python wheel, the default, is the same program at nearly twice the CPU per
request. ``TESSERA_COMPILE`` names the Python of an environment with the dependencies, whose types are read; a C
compiler is needed. The modules are listed in ``pyproject.toml``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

VARIABLE = "TESSERA_COMPILE"
REQUIREMENTS = ["mypy==2.4.1", "setuptools==84.2.1"]

# Another process, for setuptools changes what it is imported into.
_BUILD = """
import json, sys
from mypyc.build import mypycify
from setuptools import setup

paths, out = json.loads(sys.argv[1]), sys.argv[2]
modules = mypycify(paths, opt_level="3", debug_level="0", target_dir=out + "/c", group_name="tessera")
arguments = ["-q", "build_ext", "--build-lib", out + "/lib", "--build-temp", out + "/objects"]
setup(name="tessera", ext_modules=modules, packages=[], script_args=arguments)
"""
_SHOWN = 4000


class CompileHook(BuildHookInterface[Any]):
    """Adds the compiled modules beside their sources, where :data:`VARIABLE` is set."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        return REQUIREMENTS if os.environ.get(VARIABLE) else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Raises RuntimeError with what the compiler said."""
        python = os.environ.get(VARIABLE)
        if not python or version != "standard":
            return
        self._out = tempfile.TemporaryDirectory(prefix="tessera-compiled-")
        paths = [f"--python-executable={python}", "--no-incremental", *self.config["modules"]]
        argv = [sys.executable, "-c", _BUILD, json.dumps(paths), self._out.name]
        done = subprocess.run(argv, cwd=self.root, capture_output=True, text=True)
        if done.returncode:
            said = done.stdout[-_SHOWN:] + done.stderr[-_SHOWN:]
            raise RuntimeError(
                f"compiling failed (without {VARIABLE} nothing is compiled):\n{said}"
            )
        built = Path(self._out.name) / "lib"
        for library in built.rglob("*.so"):
            build_data["force_include"][str(library)] = str(library.relative_to(built))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if hasattr(self, "_out"):
            self._out.cleanup()
