"""How keys get from Secrets to the server: over the control socket, beside the target and never on disk."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tessera_runtime import control
from tessera_runtime.agent import keys as keys_module
from tessera_runtime.agent.keys import ServiceKeys
from tessera_runtime.agent.models import Models
from tessera_runtime.agent.serving import Serving
from tessera_runtime.agent.translate import Site
from tessera_runtime.control import ControlClient
from tessera_runtime.devices.inventory import Inventory
from tessera_runtime.models.cache import ModelCache
from tessera_runtime.models.errors import NotFound, Unreachable
from tessera_runtime.secret import make_secret
from tessera_runtime.target import Ports, ServerReport, ServiceReport

DIGITS = "vision.digits"
SHORT_S = 0.01
LOCKED = {"keysSecretRef": {"name": "keys"}}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_module, "FIRST_PAUSE_S", SHORT_S)


def node(access: object = LOCKED, generation: int = 1, name: str = DIGITS) -> dict[str, Any]:
    """A RuntimeNode that holds requests of one service: that needs no model here."""
    spec = {
        "members": [{"name": "m", "model": {"uri": "s3://m/m.onnx", "format": "ONNX"}}],
        "slo": {"objectives": [{"target": "50ms", "percent": "99"}]},
        **({"access": access} if access else {}),
    }
    return {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": "RuntimeNode",
        "metadata": {"name": "n", "uid": "u", "generation": generation},
        "spec": {
            "epoch": 1,
            "services": [{"name": name, "generation": generation, "spec": spec, "hold": 5}],
        },
    }


class Pod:
    """A real control socket with a server behind it that notes what it is told, and agents one after another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.told: list[control.Apply] = []
        self.secret: Mapping[str, str] | Exception = {"a": "k"}
        self.serves: tuple[str, ...] = ()
        """What the server runs from before it was told anything."""
        self.asked = asyncio.Event()
        """Set by every request: what an agent does is looked at then."""
        self.client = ControlClient(str(folder / "control.sock"))

    async def answer(self, request: control.Request) -> control.Answer:
        self.asked.set()
        if isinstance(request, control.Apply):
            self.told.append(request)
            return control.Applied()
        services = tuple(
            ServiceReport(name, "1", True, 50.0, 0, 0, 0, {}, (), ()) for name in self.serves
        )
        return control.Reported(ServerReport(1, True, services, (), 0, 1, 0.0, 0.0, Ports(1, 2, 3)))

    async def read(self, namespace: str, name: str) -> Mapping[str, str]:
        assert (namespace, name) == ("vision", "keys")
        if isinstance(self.secret, Exception):
            raise self.secret
        return self.secret

    def agent(self) -> Agent:
        return Agent(self)

    async def until(self, condition) -> None:
        async with asyncio.timeout(30):
            while not condition():
                self.asked.clear()
                await self.asked.wait()


class Agent:
    """The part of an agent that tells the server; a context while it runs."""

    def __init__(self, pod: Pod) -> None:
        cache = ModelCache(pod.folder / "cache", 1000)
        self.models = Models(cache, pod.read, lambda: self.serving.wake())
        self.keys = ServiceKeys(pod.read, lambda: self.serving.wake(), SHORT_S)
        self.serving = Serving(
            pod.client,
            self.models,
            self.keys,
            lambda: Site(Inventory((0,), 64, ()), False),
            pod.folder,
            lambda: None,
        )

    async def __aenter__(self) -> Serving:
        self._task = asyncio.create_task(self.serving.run())
        return self.serving

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        self.models.close()
        self.keys.close()


@pytest.fixture
async def pod(tmp_path: Path) -> AsyncIterator[Pod]:
    found = Pod(tmp_path)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "control.sock"))
    listener.listen()
    server = await control.serve_control(found.answer, listener.detach(), make_secret(tmp_path))
    yield found
    await found.client.close()
    server.close()


def needs(told: control.Apply) -> dict[str, bool]:
    return {each.name: each.needs_key for each in told.target.services}


async def test_a_service_is_told_together_with_its_keys(pod: Pod) -> None:
    async with pod.agent() as serving:
        serving.hear(node())
        await pod.until(lambda: pod.told)
        [told] = pod.told
        assert needs(told) == {DIGITS: True}
        assert told.keys == {DIGITS: ("k",)}
        pod.secret = {"a": "k", "b": "l"}
        await pod.until(lambda: pod.told[-1].keys == {DIGITS: ("k", "l")})
        assert serving.problems == {}


async def test_keys_are_not_kept_on_disk(pod: Pod) -> None:
    pod.secret = {"a": "hunter2"}
    async with pod.agent() as serving:
        serving.hear(node())
        await pod.until(lambda: serving.kept.target)
    files = [path for path in pod.folder.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if b"hunter2" in path.read_bytes()]


async def test_a_service_without_a_secret_is_told_closed_and_the_status_says_why(pod: Pod) -> None:
    pod.secret = NotFound("Secret vision/keys: there is none, create it")
    async with pod.agent() as serving:
        serving.hear(node())
        await pod.until(lambda: pod.told)
        assert needs(pod.told[-1]) == {DIGITS: True}
        assert pod.told[-1].keys == {DIGITS: ()}
        assert "create it" in serving.problems[DIGITS]
        pod.secret = {"a": "k"}
        await pod.until(lambda: pod.told[-1].keys == {DIGITS: ("k",)})
        await pod.until(lambda: serving.problems == {})


async def test_an_agent_that_knows_nothing_yet_takes_no_keys_away(pod: Pod) -> None:
    """It was restarted, and the API server does not answer for Secrets: the server still knows."""
    async with pod.agent() as serving:
        serving.hear(node())
        await pod.until(lambda: serving.kept.target)
    pod.told.clear()
    pod.secret = Unreachable("Secret vision/keys: the API server does not answer")
    async with pod.agent() as serving:
        serving.hear(node())
        await pod.until(lambda: pod.told and serving.problems)
        assert needs(pod.told[-1]) == {DIGITS: True}
        assert pod.told[-1].keys == {}
        assert "does not answer" in serving.problems[DIGITS]


async def test_an_agent_without_state_does_not_drop_a_service_while_it_reads_its_keys(
    pod: Pod,
) -> None:
    pod.serves = (DIGITS,)
    reading = asyncio.Event()
    keys, pod.secret = pod.secret, {}
    read = pod.read

    async def slowly(namespace: str, name: str) -> Mapping[str, str]:
        await reading.wait()
        return await read(namespace, name)

    pod.read = slowly  # type: ignore[method-assign]
    async with pod.agent() as serving:
        serving.hear(node())
        await pod.until(lambda: serving.report is not None)
        assert pod.told == []
        pod.secret = keys
        reading.set()
        await pod.until(lambda: pod.told)
        assert needs(pod.told[0]) == {DIGITS: True}


async def test_a_service_that_asks_for_keys_no_more_is_told_so(pod: Pod) -> None:
    async with pod.agent() as serving:
        serving.hear(node())
        await pod.until(lambda: pod.told)
        serving.hear(node(None, generation=2))
        await pod.until(lambda: needs(pod.told[-1]) == {DIGITS: False})
        assert pod.told[-1].keys == {}


async def test_a_version_that_cannot_be_read_leaves_its_keys_followed(pod: Pod) -> None:
    async with pod.agent() as serving:
        serving.hear(node())
        await pod.until(lambda: pod.told)
        damaged = node(generation=2)
        damaged["spec"]["services"][0]["spec"]["slo"] = {"objectives": []}
        serving.hear(damaged)
        assert DIGITS in serving.order.problems
        pod.secret = {"a": "l"}
        await pod.until(lambda: pod.told[-1].keys == {DIGITS: ("l",)})
        assert needs(pod.told[-1]) == {DIGITS: True}
