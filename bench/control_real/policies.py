"""The policies that are compared, each with what its own profiler knows."""

from __future__ import annotations

from bench.control.jobs import Source, jobs, measured_before
from bench.control_real.driving import Pilot
from bench.control_real.places import Place
from bench.control_real.served import Measured

from tessera_core.control.clipper import Clipper
from tessera_core.control.dnnscaler import DnnScalerBatching, DnnScalerInstances, Knob
from tessera_core.control.joint import Joint
from tessera_core.control.setpoint import Goal, Setpoint
from tessera_core.control.static import Static

PERCENT = 99.0

TESSERA, DNNSCALER, CLIPPER = "tessera", "dnnscaler", "clipper"
BATCHING, INSTANCES = "tessera, batching only", "tessera, multi-tenancy only"
STATIC = "best static"
COMPARED = (TESSERA, DNNSCALER, CLIPPER)
ABLATED = (BATCHING, INSTANCES)


def pilot(name: str, place: Place, slo_ms: float, measured: Measured) -> Pilot:
    """One of COMPARED or ABLATED, where it begins: the searching ones where they come to rest on full batches."""
    most = place.most
    if name == BATCHING:
        most = Setpoint(most.cap, 1)
    elif name == INSTANCES:
        most = Setpoint(1, most.instances)
    goal = Goal(slo_ms, most)
    if name not in (DNNSCALER, CLIPPER):
        return Pilot(Joint(measured.profile, PERCENT), goal)
    found = Pilot(Clipper() if name == CLIPPER else _dnnscaler(measured), goal)
    found.search(measured.profile)
    return found


def static(setpoint: Setpoint, place: Place, slo_ms: float) -> Pilot:
    return Pilot(Static(setpoint), Goal(slo_ms, place.most))


def _dnnscaler(measured: Measured) -> DnnScalerBatching | DnnScalerInstances:
    """Whichever its probe prefers. What instances take is completed from the models that its authors measured."""
    if measured.probe.knob is Knob.BATCHING:
        return DnnScalerBatching()
    unmeasured = next(job for job in jobs() if job.source is Source.FIT)
    return DnnScalerInstances(measured_before(unmeasured), measured.first_ms, measured.probe_ms)
