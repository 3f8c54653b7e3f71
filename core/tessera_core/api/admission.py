"""What a ModelService may ask for depends on where it runs: the rules that its schema alone cannot hold."""

from __future__ import annotations

from tessera_core.api.errors import FieldError, describe
from tessera_core.api.modelservice import ModelServiceSpec


def admission(spec: ModelServiceSpec, *, local: bool, allow_code: bool) -> tuple[FieldError, ...]:
    """The fields of a valid spec that may not stand here; empty when it is admitted.

    ``local``: the user serves from the own machine, where ``file`` URIs are the own files; in a cluster they
    would be the node's. ``allow_code``: models may be code (TorchScript, Python), as in a pool that says so.
    """
    errors = []
    for index, member in enumerate(spec.members):
        model, path = member.model, f"spec.members[{index}].model"
        if model.uri.startswith("file:") and not local:
            allowed = "s3, gs, az, hf, http, https or oci in a cluster; file only in local mode"
            errors.append(FieldError(f"{path}.uri", describe(model.uri), allowed))
        if model.format.is_code and not allow_code:
            allowed = (
                "TorchExport or ONNX, which are data, unless the pool's trust.allowCode is true"
            )
            errors.append(FieldError(f"{path}.format", model.format.value, allowed))
    if local and spec.access is not None:
        path = "spec.access.keysSecretRef.name"
        allowed = (
            "no spec.access in local mode, where there are no Secrets: remove it, "
            "and listen where only those come who may ask"
        )
        errors.append(FieldError(path, describe(spec.access.keys_secret_ref.name), allowed))
    return tuple(errors)
