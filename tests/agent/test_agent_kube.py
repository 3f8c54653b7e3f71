"""The agent's client against an API server that misbehaves on demand, which a real one does not."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from tessera_runtime import kube as kube_module
from tessera_runtime.agent.heartbeat import Identity, beat
from tessera_runtime.following import Follower
from tessera_runtime.kube import Access, Expired, Kube, KubeError
from tessera_runtime.waits import pause_s

NODES = "/apis/tessera.dev/v1alpha1/runtimenodes"
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def node(version: int) -> dict:
    return {"metadata": {"name": "n", "resourceVersion": str(version)}}


def status(code: int, message: str = "no", **headers: str) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        body = {"kind": "Status", "code": code, "message": message}
        return web.json_response(body, status=code, headers=headers)

    return answer


def document(content: dict) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response(content)

    return answer


def events(*lines: dict | bytes, hang: bool = False) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for line in lines:
            await response.write(line if isinstance(line, bytes) else json.dumps(line).encode())
            await response.write(b"\n")
        if hang:
            await asyncio.Event().wait()
        return response

    return answer


class Script:
    """Answers one after the other, the last one again and again; what was asked is noted."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.requests: list[tuple[str, str, dict[str, str], str]] = []
        """Method, path, query and body."""
        self.tokens: list[str] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = (await request.read()).decode()
        self.requests.append((request.method, request.path, dict(request.query), body))
        self.tokens.append(request.headers.get("Authorization", ""))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return await answer(request)


@asynccontextmanager
async def scripted(tmp_path: Path, *answers: Answer) -> AsyncIterator[tuple[Kube, Script]]:
    script = Script(*answers)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", script.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    (tmp_path / "token").write_text("first\n")
    port = runner.addresses[0][1]
    try:
        async with Kube(
            Access(f"http://127.0.0.1:{port}", tmp_path / "token", None), "tessera-agent"
        ) as kube:
            yield kube, script
    finally:
        await runner.cleanup()


async def watched(kube: Kube) -> list[dict | None]:
    return [each async for each in kube.watch_node("n", "1")]


async def test_a_watch_gives_every_state_and_ends_with_the_servers(tmp_path: Path) -> None:
    lines = [
        {"type": "ADDED", "object": node(2)},
        {"type": "BOOKMARK", "object": node(3)},
        {"type": "MODIFIED", "object": node(4) | {"spec": {"x": "y" * 300_000}}},
        {"type": "DELETED", "object": node(5)},
    ]
    async with scripted(tmp_path, events(*lines)) as (kube, script):
        found = await watched(kube)
    assert [each and each["metadata"]["resourceVersion"] for each in found] == ["2", "4", None]
    [(method, path, query, _)] = script.requests
    assert (method, path) == ("GET", NODES)
    assert query["fieldSelector"] == "metadata.name=n"
    assert query["resourceVersion"] == "1"
    assert int(query["timeoutSeconds"]) > 0


@pytest.mark.parametrize(
    "answer",
    [status(410), events({"type": "ERROR", "object": {"code": 410, "message": "too old"}})],
    ids=["status", "event"],
)
async def test_a_version_that_is_too_old_is_told_apart(tmp_path: Path, answer: Answer) -> None:
    async with scripted(tmp_path, answer) as (kube, _):
        with pytest.raises(Expired):
            await watched(kube)


@pytest.mark.parametrize(
    "answer",
    [
        events(b"not json"),
        events(b"{}"),
        events(b"x" * 4096),
        events({"type": "ERROR", "object": {"code": 500}}),
        status(403),
    ],
    ids=["no json", "no event", "endless", "error", "forbidden"],
)
async def test_a_watch_that_makes_no_sense_ends_with_the_one_error(
    tmp_path: Path, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube_module, "MAX_EVENT", 1024)
    async with scripted(tmp_path, answer) as (kube, _):
        with pytest.raises(KubeError) as caught:
            await watched(kube)
    assert not isinstance(caught.value, Expired)


async def test_a_server_that_is_gone_or_silent_is_an_error_in_bounded_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube_module, "REQUEST_S", 0.2)
    async with scripted(tmp_path, events(hang=True)) as (kube, _):
        with pytest.raises(KubeError, match="does not answer") as caught:
            await kube.node("n")
        assert caught.value.status == 0
    async with Kube(Access("http://127.0.0.1:1", None, None), "tessera-agent") as kube:
        with pytest.raises(KubeError, match="does not answer"):
            await kube.node("n")


async def test_refusals_carry_the_status_and_what_the_server_asks_for(tmp_path: Path) -> None:
    answers = (status(404), status(429, "busy", **{"Retry-After": "7"}), status(500))
    async with scripted(tmp_path, *answers) as (kube, _):
        assert await kube.node("n") is None
        with pytest.raises(KubeError, match="429: busy") as caught:
            await kube.node("n")
        assert (caught.value.status, caught.value.retry_after_s) == (429, 7.0)
        with pytest.raises(KubeError) as caught:
            await kube.node("n")
        assert caught.value.retry_after_s is None


async def test_the_token_is_read_for_every_request(tmp_path: Path) -> None:
    async with scripted(tmp_path, document(node(1))) as (kube, script):
        await kube.node("n")
        (tmp_path / "token").write_text("second")
        await kube.node("n")
        (tmp_path / "token").unlink()
        with pytest.raises(KubeError):
            await kube.node("n")
    assert script.tokens == ["Bearer first", "Bearer second"]


async def test_everything_is_written_by_server_side_apply(tmp_path: Path) -> None:
    async with scripted(tmp_path, document({})) as (kube, script):
        await kube.write_status("n", {"pod": "p"})
        await kube.renew("system", "tessera-node-n", "p", 40, "2026-01-31T12:00:00.000000Z")
    (verb, path, query, body), (_, lease_path, _, lease) = script.requests
    assert (verb, path) == ("PATCH", f"{NODES}/n/status")
    assert query == {"fieldManager": "tessera-agent", "force": "true"}
    assert json.loads(body)["status"] == {"pod": "p"}
    assert lease_path == "/apis/coordination.k8s.io/v1/namespaces/system/leases/tessera-node-n"
    assert json.loads(lease)["spec"] == {
        "holderIdentity": "p",
        "leaseDurationSeconds": 40,
        "renewTime": "2026-01-31T12:00:00.000000Z",
    }


async def test_the_text_of_a_secret_is_read_and_bytes_are_left_out(tmp_path: Path) -> None:
    data = {"token": b"hunter2\n", "binary": b"\xff\xfe"}
    encoded = {key: base64.b64encode(value).decode() for key, value in data.items()}
    async with scripted(tmp_path, document({"data": encoded}), document({})) as (kube, _):
        assert await kube.secret("vision", "store") == {"token": "hunter2"}
        assert await kube.secret("vision", "empty") == {}


def test_in_a_pod_the_api_server_is_where_the_environment_says() -> None:
    found = Access.in_cluster(
        {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"}
    )
    assert found.url == "https://[fd00::1]:6443"
    with pytest.raises(KubeError, match="KUBERNETES_SERVICE_HOST"):
        Access.in_cluster({})


class Heard:
    """What a follower was told; ``enough`` is set with the last of ``count``."""

    def __init__(self, count: int) -> None:
        self.found: list[str | None] = []
        self.enough = asyncio.Event()
        self._count = count

    def __call__(self, document: dict | None) -> None:
        self.found.append(document and document["metadata"]["resourceVersion"])
        if len(self.found) >= self._count:
            self.enough.set()


async def follow(kube: Kube, heard: Heard, meanwhile: Callable[[Follower], None]) -> None:
    follower = Follower(kube, "n", heard)
    following = asyncio.create_task(follower.run())
    meanwhile(follower)
    async with asyncio.timeout(30):
        await heard.enough.wait()
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_after_any_failure_the_object_is_read_again_and_watched_from_there(
    tmp_path: Path,
) -> None:
    answers = (
        document(node(1)),
        events({"type": "MODIFIED", "object": node(2)}),
        document(node(3)),
        status(410),
        status(500),
        document(node(7)),
        events({"type": "MODIFIED", "object": node(8)}, hang=True),
    )
    async with scripted(tmp_path, *answers) as (kube, script):
        heard = Heard(5)
        await follow(kube, heard, lambda _: None)
    assert heard.found == ["1", "2", "3", "7", "8"]
    watches = [query["resourceVersion"] for _, _, query, _ in script.requests if "watch" in query]
    assert watches == ["1", "3", "7"]


async def test_an_object_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    answers = (status(404), events({"type": "ADDED", "object": node(5)}, hang=True))
    async with scripted(tmp_path, *answers) as (kube, script):
        heard = Heard(2)
        await follow(kube, heard, lambda _: None)
    assert heard.found == [None, "5"]
    assert script.requests[1][2]["resourceVersion"] == ""


async def test_a_watch_of_which_nothing_is_heard_can_be_begun_anew(tmp_path: Path) -> None:
    answers = (document(node(1)), events(hang=True), document(node(2)), events(hang=True))
    async with scripted(tmp_path, *answers) as (kube, _):
        heard = Heard(2)
        loop = asyncio.get_running_loop()
        await follow(kube, heard, lambda follower: loop.call_later(0.1, follower.read_again))
    assert heard.found == ["1", "2"]


async def test_a_heartbeat_says_when_the_server_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tessera_runtime.agent.heartbeat.HEARTBEAT_S", 0.0)
    async with scripted(tmp_path, document({}), status(500), document({})) as (kube, script):
        back = asyncio.Event()
        beating = asyncio.create_task(beat(kube, Identity("n", "p", "", "system"), back.set))
        async with asyncio.timeout(30):
            await back.wait()
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
    assert len(script.requests) == 3


def test_pauses_double_within_a_bound_and_keep_to_what_was_asked_for() -> None:
    for failures in range(200):
        for asked in (None, 0.0, 3.0, 1000.0):
            pause = pause_s(failures, 0.5, 30.0, asked)
            grown = min(30.0, 0.5 * 2 ** max(0, failures - 1))
            assert (
                max(grown / 2, min(asked or 0.0, 30.0)) <= pause <= max(grown, 30.0 if asked else 0)
            )
