"""What lanes of preprocessing stages have in common, whatever they decode on: rows of bytes in, refusals by row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np

from tessera_runtime.engines.base import InputRefused, RunFailed, Signature
from tessera_runtime.engines.staging import Staged, Staging
from tessera_runtime.preprocess.errors import MediaRefused


class MediaLane(ABC):
    def __init__(self, signature: Signature, max_batch: int) -> None:
        self._signature = signature
        self._staging = Staging(signature, max_batch)
        self._staged: Staged | None = None

    def stage(self, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, np.ndarray]:
        self._staged = self._staging.stage(shapes)
        return self._staged.given

    def run(self) -> Mapping[str, np.ndarray]:
        assert self._staged is not None, "staged before it is run"
        (given,) = self._staged.given.values()
        try:
            return self.decode(given)
        except MediaRefused as refused:
            where = f"[{refused.at}]" if len(given) > 1 else ""
            raise InputRefused(f"inputs.{self._signature.inputs[0].name}{where}: {refused}") from (
                refused
            )
        except MemoryError as error:
            raise RunFailed(f"no memory for what the media decode to: {error}") from error
        finally:
            given.fill(b"")  # what clients sent is not kept until the next batch

    @abstractmethod
    def decode(self, given: np.ndarray) -> Mapping[str, np.ndarray]:
        """The outputs for ``given``, object ``[rows]`` of ``bytes``. Raises MediaRefused with the row, RunFailed."""

    def close(self) -> None:
        self._staged = None
        self._staging.close()
