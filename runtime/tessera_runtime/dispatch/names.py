"""Which served name a request means. Pure."""

from __future__ import annotations

from collections.abc import Collection


def meant(name: str, host: str, served: Collection[str], *, plain_names: bool) -> str:
    """The served name ``<namespace>.<name>`` for a client that said ``name`` to ``host``; ``name`` where it is none.

    ``plain_names``: whether ``digits`` may be said for ``vision.digits`` wherever it is unambiguous.
    """
    if name in served:
        return name
    # Host as Kubernetes writes it: <service>.<namespace>[.svc…]; it only completes a plain name.
    labels = host.partition(":")[0].split(".")
    if len(labels) > 1 and labels[0] == name and f"{labels[1]}.{name}" in served:
        return f"{labels[1]}.{name}"
    if plain_names and "." not in name:
        found = [each for each in served if each.partition(".")[2] == name]
        if len(found) == 1:
            return found[0]
    return name
