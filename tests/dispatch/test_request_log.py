"""Which requests are logged."""

from __future__ import annotations

import pytest

from tessera_runtime.dispatch.request_log import sampled

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"


@pytest.mark.parametrize(
    ("traceparent", "expected"),
    [
        (f"{TRACE}-01", True),
        (f"{TRACE}-03", True),
        (f"{TRACE}-00", False),
        (f"{TRACE}-02", False),
        ("", False),
        ("nonsense", False),
    ],
)
def test_a_request_is_logged_when_its_caller_samples_it(traceparent: str, expected: bool) -> None:
    assert sampled(traceparent) is expected
