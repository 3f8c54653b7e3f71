"""How documents name places: products, device ids, MIG profiles, slices and geometries."""

from __future__ import annotations

from typing import Annotated

from tessera_core.api.records import ListOf, Record
from tessera_core.api.scalars import integer, matching
from tessera_core.gpu.geometry import Placement

_MIG = r"[1-9][0-9]*g\.[1-9][0-9]*gb(?:[+-][a-z0-9.]{1,16})*"
_CPU = r"cpu-[1-9][0-9]{0,4}"

PRODUCT = matching(r"\S{1,128}", "an NVML product name without spaces, or cpu", 128)
DEVICE_ID = matching(
    r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}", "a device id such as GPU-5a1c…: no spaces", 128
)
MIG_PROFILE = matching(_MIG, 'a MIG profile such as "1g.10gb"', 64)
SLICE_KIND = matching(
    rf"full|{_CPU}|{_MIG}", '"full", a MIG profile such as "1g.10gb", or "cpu-N" for N cores', 64
)
"""Of a device class: what kind of slice."""
SLICE_NAME = matching(
    rf"full|{_CPU}(?:@[0-9]{{1,5}})?|{_MIG}@[0-9]{{1,2}}",
    '"full", a placed MIG profile such as "1g.10gb@4", or "cpu-N" or "cpu-N@first" for N cores',
    64,
)
"""On one device: which slice."""
START = integer(0, 15)
"""First memory slice of a placement."""
JPEG_ENGINES = integer(0, 64)
"""Decoders of JPEG in hardware, as NVML counts them; absent where nobody has asked."""
GEOMETRY = ListOf(
    Record(Placement, profile=Annotated[str, MIG_PROFILE], start=Annotated[int, START]), most=16
)
