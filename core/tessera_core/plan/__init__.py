"""Planning: cluster facts and demands in, placements or typed refusals out.

``plan(state)`` decides, ``explain(plan)`` says why, ``diff(plan, state)`` what changes,
``to_runtime_nodes(plan, epoch)`` is what agents carry out.
"""

from tessera_core.plan.decision import (
    Assignment,
    DevicePlan,
    Plan,
    Refusal,
    ServicePlan,
    Shortfall,
    Why,
)
from tessera_core.plan.demand import Demand, demands_of
from tessera_core.plan.explain import Explanation, explain
from tessera_core.plan.nodes import Diff, Located, diff, slice_name, to_runtime_nodes
from tessera_core.plan.plan_out import plan_to_dict
from tessera_core.plan.planner import plan
from tessera_core.plan.state import (
    Budget,
    ClusterState,
    DeviceState,
    Goal,
    Measured,
    NodeState,
    Policy,
    PoolRules,
    Running,
    Slice,
)
from tessera_core.plan.state_in import parse_slice, state_from_dict
from tessera_core.plan.state_out import state_to_dict

__all__ = [
    "Assignment",
    "Budget",
    "ClusterState",
    "Demand",
    "DevicePlan",
    "DeviceState",
    "Diff",
    "Explanation",
    "Goal",
    "Located",
    "Measured",
    "NodeState",
    "Plan",
    "Policy",
    "PoolRules",
    "Refusal",
    "Running",
    "ServicePlan",
    "Shortfall",
    "Slice",
    "Why",
    "demands_of",
    "diff",
    "explain",
    "parse_slice",
    "plan",
    "plan_to_dict",
    "slice_name",
    "state_from_dict",
    "state_to_dict",
    "to_runtime_nodes",
]
