"""What may be wrong with media that a client sends."""

from __future__ import annotations


class MediaRefused(ValueError):
    """An image or a recording that is not decoded: corrupt, of an unknown format or too large. The message is for the
    client. Sending the same bytes again cannot help.
    """

    def __init__(self, message: str, at: int = 0) -> None:
        super().__init__(message)
        self.at = at
        """Its row, where several were given."""
