"""Times as objects state them: RFC 3339, in UTC, whole seconds. Pure."""

from __future__ import annotations

from datetime import UTC, datetime


def to_time(text: str) -> datetime:
    """Raises ValueError for what is no time of RFC 3339."""
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError(f"time {text!r}: found no zone, expected one such as Z")
    return found.astimezone(UTC)


def to_text(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
