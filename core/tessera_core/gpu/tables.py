"""The MIG tables, and which product is which board.

Problem: planner, partitioner and tests must agree on what each board can be cut into, with no GPU at hand.
Approach: shapes (slices, starts, maxima) are common to whole families and are written once; the boards add
names, SM counts, memory and copy engines as columns in the order of the shape's rows. Every board names
its recordings. Sources used by several:

- lgip, lgipp: recorded output of ``nvidia-smi mig -lgip`` (profiles, SMs, memory, engines) and ``-lgipp``
  (starts). lgip prints memory in GiB with two decimals; it is a multiple of 64 MiB, which undoes the rounding.
- guide: NVIDIA MIG User Guide, "Supported MIG Profiles",
  https://docs.nvidia.com/datacenter/tesla/mig-user-guide/supported-mig-profiles.html
- mig-parted: https://github.com/NVIDIA/mig-parted/blob/main/deployments/systemd/config-default.yaml
  (profile names by PCI device id).

The mock tables of go-nvml for H100, H200 and B200 differ from hardware (3g of size 3, 48 SMs) and are not
used. Where two drivers printed different memory the smaller is kept: a plan must fit under both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tessera_core.gpu.mig import MEDIA, GpuModel, Inferred, Profile
from tessera_core.gpu.mps import hardware

_NVIDIA_VENDOR = 0x10DE


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a profile kind has in common on all boards of a family."""

    compute_slices: int
    memory_slices: int
    starts: tuple[int, ...]
    max_count: int
    profile_id: int
    attributes: tuple[str, ...] = ()


_SEVEN_SLICES = (
    _Shape(7, 8, (0,), 1, profile_id=0),
    _Shape(4, 4, (0,), 1, profile_id=5),
    _Shape(3, 4, (0, 4), 2, profile_id=9),
    _Shape(2, 2, (0, 2, 4), 3, profile_id=14),
    _Shape(1, 2, (0, 2, 4, 6), 4, profile_id=15),
    _Shape(1, 1, (0, 1, 2, 3, 4, 5, 6), 7, profile_id=19),
    _Shape(1, 1, (0, 1, 2, 3, 4, 5, 6), 1, profile_id=20, attributes=(MEDIA,)),
)
"""A100, H100, H200, H20, GH200 and, by its memory fractions, B200 (lgipp of A100, H100 and H100 NVL)."""

_FOUR_SLICES = (
    _Shape(4, 4, (0,), 1, profile_id=0),
    _Shape(2, 2, (0, 2), 2, profile_id=5),
    _Shape(2, 2, (0, 2), 1, profile_id=6, attributes=(MEDIA,)),
    _Shape(1, 1, (0, 1, 2, 3), 4, profile_id=14),
    _Shape(1, 1, (0, 1, 2, 3), 1, profile_id=21, attributes=(MEDIA,)),
)
"""A30 (lgipp)."""


def _rows(
    shapes: Sequence[_Shape],
    *,
    gb: Sequence[int],
    sms: Sequence[int | None],
    gib: Sequence[float],
    copy_engines: Sequence[int],
    inferred: Sequence[tuple[Inferred, ...]] | None = None,
) -> tuple[Profile, ...]:
    """The profiles of one board: ``shapes`` with a column of each board-specific value."""
    notes = inferred if inferred is not None else [()] * len(shapes)
    return tuple(
        Profile(
            name="+".join((f"{shape.compute_slices}g.{size}gb", *shape.attributes)),
            profile_id=shape.profile_id,
            compute_slices=shape.compute_slices,
            memory_slices=shape.memory_slices,
            starts=shape.starts,
            max_count=shape.max_count,
            sm_count=sm_count,
            memory_mib=round(memory * 16) * 64,
            copy_engines=engines,
            attributes=shape.attributes,
            inferred=why,
        )
        for shape, size, sm_count, memory, engines, why in zip(
            shapes, gb, sms, gib, copy_engines, notes, strict=True
        )
    )


_AMPERE_SMS = (98, 56, 42, 28, 14, 14, 14)
_AMPERE_COPY_ENGINES = (7, 4, 3, 2, 1, 1, 1)
_HOPPER_SMS = (132, 64, 60, 32, 26, 16, 16)
_HOPPER_COPY_ENGINES = (8, 4, 3, 2, 1, 1, 1)

A100_40 = GpuModel(
    name="A100-40",
    products=("NVIDIA-A100-SXM4-40GB", "NVIDIA-A100-PCIE-40GB"),
    pci_device_ids=(0x20B0, 0x20B1, 0x20F1, 0x20F6),
    compute_slices=7,
    memory_slices=8,
    sm_count=108,
    memory_mib=40960,
    profiles=_rows(
        _SEVEN_SLICES,
        gb=(40, 20, 20, 10, 10, 5, 5),
        sms=_AMPERE_SMS,
        gib=(39.25, 19.5, 19.5, 9.625, 9.625, 4.75, 4.75),
        copy_engines=_AMPERE_COPY_ENGINES,
    ),
    source="guide; lgip, lgipp; NVML MiB in go-nvml pkg/nvml/mock; 108 SMs: NVIDIA A100 whitepaper",
)

A100_80 = GpuModel(
    name="A100-80",
    products=("NVIDIA-A100-SXM4-80GB", "NVIDIA-A100-80GB-PCIe", "NVIDIA-A100-PCIE-80GB"),
    pci_device_ids=(0x20B2, 0x20B5, 0x20F3, 0x20F5),
    compute_slices=7,
    memory_slices=8,
    sm_count=108,
    memory_mib=81920,
    profiles=_rows(
        _SEVEN_SLICES,
        gb=(80, 40, 40, 20, 20, 10, 10),
        sms=_AMPERE_SMS,
        gib=(78.75, 39.25, 39.25, 19.5, 19.5, 9.5, 9.5),
        copy_engines=_AMPERE_COPY_ENGINES,
    ),
    source="guide; lgip, lgipp; mig-parted issue 31 (3g.39gb); 108 SMs: NVIDIA A100 whitepaper",
)

A30 = GpuModel(
    name="A30-24",
    products=("NVIDIA-A30", "NVIDIA-A30-PCIE-24GB"),
    pci_device_ids=(0x20B7,),
    compute_slices=4,
    memory_slices=4,
    sm_count=56,
    memory_mib=24576,
    profiles=_rows(
        _FOUR_SLICES,
        gb=(24, 12, 12, 6, 6),
        sms=(56, 28, 28, 14, 14),
        gib=(23.44, 11.69, 11.69, 5.81, 5.81),
        copy_engines=(4, 2, 2, 1, 1),
    ),
    source="guide; lgip (4g printed as 23.44 and as 23.50), lgipp",
)

H100_80_SXM = GpuModel(
    name="H100-80-SXM",
    products=("NVIDIA-H100-80GB-HBM3",),
    pci_device_ids=(0x2330,),
    compute_slices=7,
    memory_slices=8,
    sm_count=132,
    memory_mib=81559,
    profiles=_rows(
        _SEVEN_SLICES,
        gb=(80, 40, 40, 20, 20, 10, 10),
        sms=_HOPPER_SMS,
        gib=(79.25, 39.5, 39.5, 19.62, 19.62, 9.75, 9.75),
        copy_engines=_HOPPER_COPY_ENGINES,
    ),
    source="guide; lgip, lgipp",
)

H100_80_PCIE = GpuModel(
    name="H100-80-PCIe",
    products=("NVIDIA-H100-PCIe",),
    pci_device_ids=(0x2331,),
    compute_slices=7,
    memory_slices=8,
    sm_count=114,
    memory_mib=81559,
    profiles=_rows(
        _SEVEN_SLICES,
        gb=(80, 40, 40, 20, 20, 10, 10),
        sms=(114, 62, 46, 30, 14, 14, 14),
        gib=(79.25, 39.5, 39.5, 19.62, 19.62, 9.75, 9.75),
        copy_engines=_HOPPER_COPY_ENGINES,
    ),
    source="guide; lgip, lgipp",
)

H100_94 = GpuModel(
    name="H100-94",
    products=("NVIDIA-H100-NVL",),
    pci_device_ids=(0x2321, 0x233A),
    compute_slices=7,
    memory_slices=8,
    sm_count=132,
    memory_mib=95830,
    profiles=_rows(
        _SEVEN_SLICES,
        gb=(94, 47, 47, 24, 24, 12, 12),
        sms=_HOPPER_SMS,
        gib=(92.62, 46.12, 46.12, 21.5, 21.5, 10.75, 10.75),
        copy_engines=_HOPPER_COPY_ENGINES,
    ),
    source="guide; lgip (gpu-operator pull request 900; another driver printed less memory), lgipp",
)

GH200_96 = GpuModel(
    name="GH200-96",
    products=("NVIDIA-GH200-480GB", "NVIDIA-GH200-120GB"),
    pci_device_ids=(0x2342,),
    compute_slices=7,
    memory_slices=8,
    sm_count=132,
    memory_mib=97871,
    profiles=_rows(
        _SEVEN_SLICES,
        gb=(96, 48, 48, 24, 24, 12, 12),
        sms=_HOPPER_SMS,
        gib=(93.0, 46.5, 46.5, 23.0, 23.0, 11.0, 11.0),
        copy_engines=_HOPPER_COPY_ENGINES,
    ),
    source="guide; lgip of a GH200; mig-parted",
)

_AS_GH200 = (Inferred("memory_mib", "equals GH200-96, which has the same names and board memory"),)

H20_96 = GpuModel(
    name="H20-96",
    products=("NVIDIA-H20",),
    pci_device_ids=(0x2329,),
    compute_slices=7,
    memory_slices=8,
    sm_count=78,
    memory_mib=97871,
    profiles=_rows(
        _SEVEN_SLICES,
        gb=(96, 48, 48, 24, 24, 12, 12),
        sms=(None,) * 7,
        gib=(93.0, 46.5, 46.5, 23.0, 23.0, 11.0, 11.0),
        copy_engines=_HOPPER_COPY_ENGINES,
        inferred=[_AS_GH200] * 7,
    ),
    source="mig-parted (profile names); NVIDIA AI Enterprise vGPU types of the H20; no lgip was found",
    inferred=(Inferred("sm_count", "third-party device listings, not a vendor page"),),
)

H200_141 = GpuModel(
    name="H200-141",
    products=("NVIDIA-H200", "NVIDIA-H200-NVL"),
    pci_device_ids=(0x2335, 0x233B),
    compute_slices=7,
    memory_slices=8,
    sm_count=132,
    memory_mib=143771,
    profiles=_rows(
        _SEVEN_SLICES,
        gb=(141, 71, 71, 35, 35, 18, 18),
        sms=_HOPPER_SMS,
        gib=(139.75, 69.5, 69.5, 32.25, 32.25, 16.0, 16.0),
        copy_engines=_HOPPER_COPY_ENGINES,
    ),
    source="guide; lgip (mig-parted issue 120)",
)

_BLACKWELL_STARTS = Inferred("starts", "equal memory fractions to Hopper; no lgipp was found")
_BLACKWELL_MEMORY = Inferred("memory_mib", "lower bound: the 2g instances that fit in its place")

B200_180 = GpuModel(
    name="B200-180",
    products=("NVIDIA-B200",),
    pci_device_ids=(0x2901,),
    compute_slices=7,
    memory_slices=8,
    sm_count=148,
    memory_mib=183359,
    profiles=_rows(
        _SEVEN_SLICES,
        gb=(180, 90, 90, 45, 45, 23, 23),
        sms=(None, None, None, 36, 30, 18, 18),
        gib=(177.0, 88.5, 88.5, 44.25, 44.25, 20.5, 20.5),
        copy_engines=(16, 8, 6, 4, 2, 2, 2),
        inferred=[
            *[(_BLACKWELL_STARTS, _BLACKWELL_MEMORY)] * 3,
            *[(_BLACKWELL_STARTS,)] * 4,
        ],
    ),
    source=(
        "guide (2g: 3 copy engines where lgip prints 4); lgip of 1g and 2g (mig-parted pull requests 166, "
        "187: 1g printed as 22.00 and as 20.50)"
    ),
    inferred=(Inferred("sm_count", "CUDA device properties, not an lgip"),),
)

MODELS = (
    A100_40,
    A100_80,
    A30,
    H100_80_SXM,
    H100_80_PCIE,
    H100_94,
    GH200_96,
    H20_96,
    H200_141,
    B200_180,
)

_BY_PRODUCT = {product.upper(): model for model in MODELS for product in model.products}
_BY_PCI_ID = {device_id: model for model in MODELS for device_id in model.pci_device_ids}


def model_of(product: str, pci_device_id: int | None = None) -> GpuModel | None:
    """The table of a board, or None when it has none (and is then used whole).

    ``product``: NVML's name or GPU feature discovery's label, in any case (``NVIDIA H100 80GB HBM3``,
    ``NVIDIA-H100-80GB-HBM3-MIG-1g.10gb``), or what it is called under MPS. ``pci_device_id``: the 16-bit device id, or NVML's 32-bit
    ``pciDeviceId`` (device id above vendor id); it decides where it is known, because vendors of servers
    rename products but not silicon.
    """
    if pci_device_id is not None:
        device_id, vendor = pci_device_id, _NVIDIA_VENDOR
        if pci_device_id > 0xFFFF:
            device_id, vendor = pci_device_id >> 16, pci_device_id & 0xFFFF
        if vendor == _NVIDIA_VENDOR and device_id in _BY_PCI_ID:
            return _BY_PCI_ID[device_id]
    return _BY_PRODUCT.get(hardware(product).upper())
