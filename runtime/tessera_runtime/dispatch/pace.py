"""How long batches take here, beside what their profile says.

A profile is measured on a quiet device. What is expected under load is the profile's time, times a mean of what
the last batches took over it: it notices neighbours, throttling and a profile of another machine.

Where lengths vary, rows are counted in those of the mean length of late; the ratio is that of such rows.
"""

from __future__ import annotations

WEIGHT = 1 / 16
"""Of the last batch in the mean."""

MOST = 16.0
"""A batch that took longer counts as this: one that hung says little about the next."""


class Pace:
    """Means that forget; :attr:`ratio` times the profile is what a batch is expected to take."""

    __slots__ = ("ratio", "size")

    def __init__(self) -> None:
        self.ratio = 1.0
        self.size = 1.0
        """Of rows, as of :class:`~tessera_core.batching.policy.Padded`. Profiles are measured with the longest: 1."""

    def sent(self, size: float) -> None:
        """A batch of rows of this size was sent."""
        self.size += WEIGHT * (size - self.size)

    def saw(self, took_s: float, profile_s: float) -> None:
        """A batch came back; ``profile_s``: 0 where nothing was known."""
        if profile_s > 0.0:
            self.ratio += WEIGHT * (min(took_s / profile_s, MOST) - self.ratio)

    def doubt(self) -> None:
        """Nothing was run for it is so slow: then nothing would ever show that it is not so slow any more."""
        if self.ratio > 1.0:
            self.ratio += WEIGHT * (1.0 - self.ratio)
