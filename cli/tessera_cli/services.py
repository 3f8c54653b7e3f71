"""ModelService files for serving on this machine: decoded, admitted, with relative paths resolved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tessera_cli.files import STDIN, FileInvalid, expand, read_documents
from tessera_core.api import ModelService, SpecInvalid, decode
from tessera_core.api.admission import admission
from tessera_core.api.errors import FieldError
from tessera_core.api.modelservice import ModelServiceSpec


def read_services(paths: Sequence[str], *, allow_code: bool) -> tuple[ModelService, ...]:
    """All ModelServices of ``paths``. Raises FileInvalid, which names file, document and field."""
    services: dict[str, ModelService] = {}
    for path in expand(paths):
        for document in read_documents(path):
            where = f"{document.file} (document {document.position})"
            try:
                service = decode(document.content)  # refuses what is no mapping
            except SpecInvalid as error:
                raise FileInvalid(f"{where}: {error}") from error
            if not isinstance(service, ModelService):
                found = type(service).__name__
                raise FileInvalid(f"{where}: found a {found}, allowed: ModelService")
            refused = (
                *admission(service.spec, local=True, allow_code=allow_code),
                *_not_acted_on(service.spec),
            )
            if refused:
                raise FileInvalid(f"{where}: {SpecInvalid(refused)}")
            if service.served_name in services:
                raise FileInvalid(f"{where}: {service.served_name} is defined twice")
            directory = Path.cwd() if path == STDIN else Path(path).parent
            services[service.served_name] = _absolute(service, directory)
    if not services:
        raise FileInvalid(f"{', '.join(paths)}: no ModelService found")
    return tuple(services.values())


def _not_acted_on(spec: ModelServiceSpec) -> Iterator[FieldError]:
    """What this version of the server would silently leave undone: refused, so that nobody relies on it."""
    for index, member in enumerate(spec.members):
        if member.model.secret_ref is not None:
            path = f"spec.members[{index}].model.secretRef"
            yield FieldError(
                path, "set", "absent: on this machine credentials come from the environment"
            )


def _absolute(service: ModelService, directory: Path) -> ModelService:
    """``file://./cnn.pt2`` is relative to the document that says it."""
    members = []
    for member in service.spec.members:
        uri = member.model.uri
        if uri.startswith(("file://./", "file://../")):
            path = (directory / uri.removeprefix("file://")).resolve()
            member = replace(member, model=replace(member.model, uri=f"file://{path}"))
        members.append(member)
    return replace(service, spec=replace(service.spec, members=tuple(members)))
