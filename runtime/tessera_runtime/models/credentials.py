"""What a Secret says to a model store, and that nothing else does.

A fetch in a cluster has the identity of the tenant's Secret or none: never that of the environment, of a
file in the home folder or of the node, which client libraries look for by themselves. So every scheme gets
its options in full, also where there is no Secret.

==========  =========================================================================================
scheme      keys of the Secret
==========  =========================================================================================
http(s)     ``authorization`` (the header's value), or ``username`` and ``password``
s3          ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``; optional ``AWS_SESSION_TOKEN``,
            ``AWS_ENDPOINT_URL``, ``AWS_REGION``. With an endpoint alone: anonymous
gs          ``gcloud-application-credentials.json``: a service account's key
az          ``AZURE_STORAGE_ACCOUNT``; optional ``AZURE_STORAGE_KEY`` or ``AZURE_STORAGE_SAS_TOKEN``
hf          ``HF_TOKEN``
==========  =========================================================================================
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from tessera_runtime.models.errors import CredentialsInvalid

_GS_KEY = "gcloud-application-credentials.json"
_KEYS = {
    "http": ("authorization", "username", "password"),
    "https": ("authorization", "username", "password"),
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
           "AWS_ENDPOINT_URL", "AWS_REGION"),
    "gs": (_GS_KEY,),
    "az": ("AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_KEY", "AZURE_STORAGE_SAS_TOKEN"),
    "hf": ("HF_TOKEN",),
}  # fmt: skip


def storage_options(scheme: str, secret: Mapping[str, str] | None) -> dict[str, Any]:
    """Options of fsspec for a store of ``scheme``; without a Secret those of nobody.

    Raises CredentialsInvalid for a Secret with none of the scheme's keys, or half of a pair.
    """
    given = dict(secret or {})
    allowed = _KEYS.get(scheme, ())
    if secret is not None and not any(key in given for key in allowed):
        found = ", ".join(sorted(given)) or "none"
        expected = ", ".join(allowed) or "none: this scheme takes no credentials"
        raise CredentialsInvalid(f"found the keys {found}; {scheme}:// takes {expected}")
    match scheme:
        case "http" | "https":
            return _http(given)
        case "s3":
            return _s3(given)
        case "gs":
            return {"token": _gs(given)}
        case "az":
            return _az(given)
        case "hf":
            return {"token": given.get("HF_TOKEN") or False}
        case _:
            return {}


def _http(given: Mapping[str, str]) -> dict[str, Any]:
    value = given.get("authorization")
    if value is None and given:
        user, password = _both(given, "username", "password")
        value = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    return {} if value is None else {"headers": {"Authorization": value}}


def _s3(given: Mapping[str, str]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if "AWS_ACCESS_KEY_ID" in given or "AWS_SECRET_ACCESS_KEY" in given:
        options["key"], options["secret"] = _both(
            given, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"
        )
        if "AWS_SESSION_TOKEN" in given:
            options["token"] = given["AWS_SESSION_TOKEN"]
    else:
        options["anon"] = True
    if "AWS_ENDPOINT_URL" in given:
        options["endpoint_url"] = given["AWS_ENDPOINT_URL"]
    if "AWS_REGION" in given:
        options["client_kwargs"] = {"region_name": given["AWS_REGION"]}
    return options


def _gs(given: Mapping[str, str]) -> object:
    if not given:
        return "anon"
    try:
        key = json.loads(given[_GS_KEY])
    except ValueError:
        key = None
    # Other kinds of credentials name files, commands or URLs that the library would read or run.
    if not isinstance(key, dict) or key.get("type") != "service_account":
        raise CredentialsInvalid(f'{_GS_KEY}: expected the JSON key of a "service_account"')
    return key


def _az(given: Mapping[str, str]) -> dict[str, Any]:
    options: dict[str, Any] = {"anon": True}
    if "AZURE_STORAGE_ACCOUNT" in given:
        options["account_name"] = given["AZURE_STORAGE_ACCOUNT"]
    for key, name in (
        ("AZURE_STORAGE_KEY", "account_key"),
        ("AZURE_STORAGE_SAS_TOKEN", "sas_token"),
    ):
        if key in given:
            options |= {name: given[key], "anon": False}
    return options


def _both(given: Mapping[str, str], one: str, other: str) -> tuple[str, str]:
    for key in (one, other):
        if not given.get(key):
            raise CredentialsInvalid(f"found no {key}; {one} and {other} go together")
    return given[one], given[other]
