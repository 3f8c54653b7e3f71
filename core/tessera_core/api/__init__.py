"""The API kinds of group tessera.dev/v1alpha1 as frozen dataclasses, decoded from and encoded to plain dicts.

``decode(document)`` reads any kind, ``X.from_dict(document)`` one of them, ``x.to_dict()`` writes it; what is
wrong with a document comes as one SpecInvalid. Objects built in Python are not checked: a document is the
trust boundary.
"""

from tessera_core.api.admission import admission
from tessera_core.api.errors import FieldError, SpecInvalid
from tessera_core.api.kinds import Kind, decode
from tessera_core.api.members import Batch, Member, Model, ModelFormat
from tessera_core.api.meta import (
    API_VERSION,
    ClusterMeta,
    Condition,
    ConditionStatus,
    NameRef,
    ObjectMeta,
)
from tessera_core.api.modelprofile import ModelProfile, ModelProfileSpec, ModelProfileStatus
from tessera_core.api.modelservice import (
    Combine,
    Ensemble,
    Isolation,
    ModelService,
    ModelServiceSpec,
    ModelServiceStatus,
    Objective,
    OnTimeout,
    ScalingMode,
    Slo,
    Traffic,
)
from tessera_core.api.placementplan import Action, PlacementPlan, PlacementPlanSpec, Step, Target
from tessera_core.api.quantities import Quantity
from tessera_core.api.runtimenode import (
    Device,
    Instance,
    InstanceState,
    RuntimeNode,
    RuntimeNodeSpec,
    RuntimeNodeStatus,
    TaintStatus,
)
from tessera_core.api.runtimepool import (
    RuntimePool,
    RuntimePoolSpec,
    TaintEffect,
    Toleration,
    TolerationOperator,
)
from tessera_core.api.tensors import VARIABLE, Datatype, InputTensor, Padding, Tensor

__all__ = [
    "API_VERSION",
    "VARIABLE",
    "Action",
    "Batch",
    "ClusterMeta",
    "Combine",
    "Condition",
    "ConditionStatus",
    "Datatype",
    "Device",
    "Ensemble",
    "FieldError",
    "InputTensor",
    "Instance",
    "InstanceState",
    "Isolation",
    "Kind",
    "Member",
    "Model",
    "ModelFormat",
    "ModelProfile",
    "ModelProfileSpec",
    "ModelProfileStatus",
    "ModelService",
    "ModelServiceSpec",
    "ModelServiceStatus",
    "NameRef",
    "ObjectMeta",
    "Objective",
    "OnTimeout",
    "Padding",
    "PlacementPlan",
    "PlacementPlanSpec",
    "Quantity",
    "RuntimeNode",
    "RuntimeNodeSpec",
    "RuntimeNodeStatus",
    "RuntimePool",
    "RuntimePoolSpec",
    "ScalingMode",
    "Slo",
    "SpecInvalid",
    "Step",
    "TaintEffect",
    "TaintStatus",
    "Target",
    "Tensor",
    "Toleration",
    "TolerationOperator",
    "Traffic",
    "admission",
    "decode",
]
