"""Programs of the bench that run in processes of their own and answer questions, one line of JSON each way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from bench.peers.base import ONE_THREAD, ROOT
from bench.processes import start_session

Answerer = Callable[[dict[str, Any]], dict[str, Any]]


class ChildFailed(Exception):
    """A program could not answer, or ended; the message says which and why."""


class Child:
    """``python -m module arguments``; a context manager."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        cores: Sequence[int],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._name = module.rpartition(".")[2]
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
        self._process = start_session(
            [sys.executable, "-m", module, *arguments],
            cores,
            ONE_THREAD | {"PYTHONPATH": path} | dict(environment or {}),
            subprocess.PIPE,
            stdin=subprocess.PIPE,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None, "pipes"
            try:
                stream.close()
            except BrokenPipeError:
                pass  # it has ended
        self._process.wait()

    def ask(self, **question: Any) -> dict[str, Any]:
        """Raises ChildFailed."""
        self.send(**question)
        return self.receive()

    def send(self, **question: Any) -> None:
        stdin = self._process.stdin
        assert stdin is not None, "a pipe"
        try:
            stdin.write(json.dumps(question).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            raise ChildFailed(f"{self._name} ended with {self._process.wait()}") from None

    def receive(self) -> dict[str, Any]:
        """The answer to what was sent. Raises ChildFailed."""
        stdout = self._process.stdout
        assert stdout is not None, "a pipe"
        line = stdout.readline()
        if not line:
            raise ChildFailed(f"{self._name} ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ChildFailed(f"{self._name}: {answer['error']}")
        return answer


def answer_questions(start: Callable[[], Answerer]) -> None:
    """The program's side: answer standard input until it ends. What ``start`` or an answer raises is an answer too."""
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)  # what libraries print is no answer
        answerer: Answerer | None = None
        for line in sys.stdin:
            try:
                answerer = answerer or start()
                answer = answerer(json.loads(line))
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"[:2000]}
            print(json.dumps(answer), file=out, flush=True)
