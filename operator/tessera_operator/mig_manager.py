"""Cutting through NVIDIA's MIG manager: what to do to a node next. Pure.

Problem: what uses GPUs must be gone before the manager is asked; it does not evict it, and fails. It looks at the label only
when that changes, and people may change it too. Until it has seen a name, the state on the node is of the name before.

Approach: a label of our own keeps runtime pods away from the node from before the pod is ended until the manager is done. Its
value is what will be asked for, and then what was asked for, so that somebody else's wish is told from ours. All of it is
read off the node each time: whoever comes after a crash goes on. The state ``pending`` is set together with the name.

Sources: NVIDIA mig-parted (``cmd/nvidia-mig-manager``), GPU Operator documentation, "GPU Operator with MIG".
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from tessera_core.api.runtimenode import CutProblem
from tessera_operator.mig_layouts import Layout, is_name

CONFIG_LABEL = "nvidia.com/mig.config"
STATE_LABEL = "nvidia.com/mig.config.state"
AWAY_LABEL = "tessera.dev/recut"
"""Runtime pods of pools that are cut so do not start on a node that has it."""
ALLOWED_LABEL, ALLOWED = "tessera.dev/repartition", "true"
"""An administrator's: whose labels the operator may change."""
PENDING, SUCCESS, FAILED = "pending", "success", "failed"
_AT_WORK = (PENDING, "rebooting")
_ASKED = ".asked"
MANAGER_S = 1800.0
"""In which the manager is done: it waits up to 5 minutes for each of six of its own pods to end, and may reboot."""


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node as it is seen now."""

    labels: Mapping[str, str]
    has_pod: bool
    """Whether a runtime pod is there, ending or not: it holds the GPUs."""
    in_use: bool = False
    """Whether that pod runs, measures or passes on something."""
    is_told: bool = True
    """Whether an agent of a pod that is there has told how GPUs are cut; else it is as one told before."""
    wanted: Layout | None = None
    """None: nothing is to be cut any more, or it is cut so."""
    present: Layout | None = None
    """What agents have told; None: nobody knows."""
    known: Collection[str] = ()
    """Names of the layouts that the manager has in its file by now."""
    ordered_s: float = 0.0
    """For how long some cut has been ordered, or since the last one was."""


@dataclass(frozen=True, slots=True)
class Move:
    """What to do next, and what stands in the way."""

    labels: Mapping[str, str | None] = field(default_factory=dict)
    """To set, or, with None, to take away, in one patch."""
    end_pod: bool = False
    problem: CutProblem | None = None
    """Why the layout will not come about without something else being done."""
    message: str = ""
    """What is waited for, or what the problem is."""


def next_move(node: NodeView) -> Move:
    """What brings ``node`` nearer to its layout; nothing while it is to be waited for."""
    away = node.labels.get(AWAY_LABEL)
    if away is None:
        return _to_begin(node)
    asked = away.removesuffix(_ASKED)
    return _to_ask(node, asked) if asked == away else _to_end(node, asked)


def _to_begin(node: NodeView) -> Move:
    """Of a node where runtime pods may start."""
    config, state = node.labels.get(CONFIG_LABEL), node.labels.get(STATE_LABEL)
    if node.wanted is None:
        return _to_correct(node)
    if config in node.wanted.names and state == SUCCESS:
        if not node.is_told:
            return Move(message="the runtime pod is on its way back")
        return _failed(f"says that {config} is done, and the GPUs are cut otherwise")
    if state in _AT_WORK:
        return Move(message=f"NVIDIA's MIG manager is at work on {config}")
    if node.wanted.name not in node.known:
        return Move(message=f"{node.wanted.name} is on its way to NVIDIA's MIG manager")
    return Move({AWAY_LABEL: _name(node.wanted, config)}, message="runtime pods are kept away")


def _to_correct(node: NodeView) -> Move:
    """Of a node where nothing is to be cut: a manager that starts anew does what the label says, whoever runs there.

    What is so already it does without disturbing anybody.
    """
    config, present = node.labels.get(CONFIG_LABEL, ""), node.present
    if present is None or not node.is_told or present.name not in node.known:
        return Move()
    is_right = not is_name(config) or config in present.names
    if is_right or node.labels.get(STATE_LABEL) in _AT_WORK:
        return Move()
    return Move({CONFIG_LABEL: _name(present, config), STATE_LABEL: PENDING})


def _to_ask(node: NodeView, name: str) -> Move:
    """Of a node from which runtime pods are kept away, and whose manager was not asked yet."""
    wanted, config = node.wanted, node.labels.get(CONFIG_LABEL)
    if wanted is None:
        return Move({AWAY_LABEL: None})
    if name not in wanted.names or name == config:
        return _anew(node, wanted)
    if node.labels.get(STATE_LABEL) in _AT_WORK:
        return Move(message=f"NVIDIA's MIG manager is at work on {config}")
    if node.has_pod:
        what = "what is in use there" if node.in_use else "the end of the runtime pod"
        return Move(end_pod=not node.in_use, message=f"waits for {what}")
    return _ask(name)


def _ask(name: str) -> Move:
    labels = {CONFIG_LABEL: name, STATE_LABEL: PENDING, AWAY_LABEL: name + _ASKED}
    return Move(labels, message=f"NVIDIA's MIG manager is asked for {name}")


def _to_end(node: NodeView, name: str) -> Move:
    """Of a node whose manager was asked."""
    wanted, config = node.wanted, node.labels.get(CONFIG_LABEL)
    state = node.labels.get(STATE_LABEL, "")
    is_over = state in (SUCCESS, FAILED)
    if wanted is None:
        return _to_give_up(node, name) if is_over or node.ordered_s >= MANAGER_S else Move()
    if config != name:
        message = f"somebody set {CONFIG_LABEL} to {config} while {name} was asked for"
        return Move(problem=CutProblem.CHANGED_BY_HAND, message=message)
    if not is_over:
        # A pod that takes the GPUs now makes it fail.
        waits = f"NVIDIA's MIG manager says {state or 'nothing'} of {name}"
        return Move(end_pod=node.has_pod and not node.in_use, message=waits)
    if name not in wanted.names:
        return _anew(node, wanted)
    if state == FAILED:
        return _failed(f"failed on {name}: its log says why")
    return Move({AWAY_LABEL: None}, message="the runtime pod is on its way back")


def _to_give_up(node: NodeView, name: str) -> Move:
    """Of a node that was asked for what nobody wants any more, and whose manager is done or does not answer."""
    present, config = node.present, node.labels.get(CONFIG_LABEL)
    undone = config == name and node.labels.get(STATE_LABEL) != SUCCESS
    if undone and present is not None and name not in present.names and present.name in node.known:
        return _ask(_name(present, config))
    # Back with the pod also where nobody answers: it serves with what there is.
    return Move({AWAY_LABEL: None})


def _anew(node: NodeView, wanted: Layout) -> Move:
    if wanted.name not in node.known:
        return Move(message=f"{wanted.name} is on its way to NVIDIA's MIG manager")
    return Move({AWAY_LABEL: _name(wanted, node.labels.get(CONFIG_LABEL))})


def _name(wanted: Layout, config: str | None) -> str:
    """The one that the node does not have."""
    first, second = wanted.names
    return first if config != first else second


def _failed(message: str) -> Move:
    return Move(problem=CutProblem.MANAGER_FAILED, message=f"NVIDIA's MIG manager {message}")
