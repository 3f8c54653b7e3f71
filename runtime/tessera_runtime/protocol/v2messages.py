"""The JSON part of inference requests and answers, as the Open Inference Protocol names its fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from tessera_runtime.dataplane import Parameter


class Input(msgspec.Struct, gc=False):
    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Parameter] = {}
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class Output(msgspec.Struct, gc=False):
    name: str
    parameters: dict[str, Parameter] = {}


class Request(msgspec.Struct, gc=False):
    inputs: list[Input]
    id: str = ""
    parameters: dict[str, Parameter] = {}
    outputs: list[Output] = []


class ReplyOutput(msgspec.Struct, omit_defaults=True, gc=False):
    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: dict[str, int] | None = None
    data: list[Any] | None = None


class Reply(msgspec.Struct, omit_defaults=True, gc=False):
    model_name: str
    model_version: str
    outputs: list[ReplyOutput]
    id: str = ""
    parameters: Mapping[str, Parameter] = {}


decode_request = msgspec.json.Decoder(Request).decode
encode = msgspec.json.Encoder().encode
