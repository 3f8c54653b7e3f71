"""What NVIDIA's Xid errors mean for the GPU that reports them.

Source: NVIDIA's Xid catalogue, "Resolution Bucket (Immediate Action)" and "Xid 154 linkage", for Ampere and newer GPUs
(docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html, as of driver R575). Where the catalogue names a workflow
instead of an action, the action is what its text asks for.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Cure(StrEnum):
    """What a GPU needs after an Xid before it can be used."""

    NOTHING = "nothing"
    """The application is to blame or is to be restarted, or the event only tells: the GPU goes on."""
    RESET = "a reset of the GPU"
    REBOOT = "a restart of the machine"
    TIME = "time"
    """The catalogue says nothing that a machine can do, or does not know it: used again when nothing follows."""


APPLICATION = frozenset({13, 31, 43, 45, 68, 109})
"""Errors of applications by NVIDIA's device plugin (k8s-device-plugin at 1b826acc, 2026-08-19, internal/rm/health.go; the DRA
driver has the same). Of these the catalogue has a GPU reset for 109 (context switch timeout), which a kernel that does not
end causes too: it counts where the driver asks for that reset.
"""

_CONTAINED = {94}
"""One application has lost memory, which is taken out of use: others go on."""
_RESTART_APP = {
    *(
        8,
        11,
        25,
        32,
        39,
        40,
        41,
        60,
        69,
        70,
        71,
        72,
        75,
        76,
        77,
        80,
        82,
        83,
        84,
        85,
        86,
        88,
        89,
        139,
    ),
    *range(96, 106),
    *range(126, 136),
}
_IGNORE = {
    *(14, 37, 38, 44, 63, 66, 67, 92, 93, 106, 107, 108, 121, 137, 141, 152, 153, 157, 160, 161),
    *(154, 171, 172),  # tell more of an Xid that comes with them
    *(162, 163, 164, 165),  # power smoothing, which needs no reset
}
_RESET = {
    *(46, 62, 64, 95, 110, 119, 120, 136, 140, 143, 155, 156, 158),
    *(48, 74),  # workflows; "a GPU reset or node reboot is needed to clear this error"
}
_REBOOT = {
    79,  # fallen off the bus
    151,  # key rotation: the virtual machine
    54,  # auxiliary power is not connected
}

CURES: Mapping[int, Cure] = {
    **dict.fromkeys(APPLICATION | _CONTAINED | _RESTART_APP | _IGNORE, Cure.NOTHING),
    **dict.fromkeys(_RESET, Cure.RESET),
    **dict.fromkeys(_REBOOT, Cure.REBOOT),
}

LINKED = frozenset(
    {48, 62, 64, 74, 79, 94, 95, 109, 110, 120, 136, 140, 155, 156, 158}
) | frozenset(range(144, 151))
"""After which the driver says itself what the GPU needs (Xid 154 and NVML's recovery action; R565 and newer, 109 since R570).
It knows more than the number: whether an error was contained, or which link is down.
"""

RECOVERY_ACTION_CHANGED = 154


def cure_of(code: int) -> Cure:
    """What the GPU needs after Xid ``code``."""
    return CURES.get(code, Cure.TIME)
