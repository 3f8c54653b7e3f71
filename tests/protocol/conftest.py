from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.front_ends import FrontEnds
from support.served_models import served_plane


@pytest.fixture
def served() -> Iterator[FrontEnds]:
    with FrontEnds(served_plane()) as front_ends:
        yield front_ends
