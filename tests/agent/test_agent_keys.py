"""Reading the keys of services from Secrets: what is known when, and what is said of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

import pytest

from tessera_runtime.agent import keys as keys_module
from tessera_runtime.agent.keys import (
    MOST_CHARACTERS,
    MOST_KEYS,
    READ_S,
    SecretSource,
    ServiceKeys,
    keys_in,
)
from tessera_runtime.agent.main import parser
from tessera_runtime.models.errors import Denied, NotFound, Unreachable

KEYS = SecretSource("vision", "keys")
DIGITS = "vision.digits"
SHORT_S = 0.01


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_module, "FIRST_PAUSE_S", SHORT_S)


def test_every_value_is_a_key_in_the_order_of_their_names() -> None:
    found = keys_in({"b": "second", "a": "first"})
    assert found.keys == ("first", "second")
    assert found.ignored == ()


@pytest.mark.parametrize(
    "value", ["", "two words", "line\nbreak", "naïve", "\x7f", "x" * (MOST_CHARACTERS + 1)]
)
def test_what_no_header_can_carry_is_no_key_and_costs_no_other(value: str) -> None:
    found = keys_in({"bad": value, "good": "x" * MOST_CHARACTERS})
    assert found.keys == ("x" * MOST_CHARACTERS,)
    assert found.ignored == ("bad",)


def test_keys_are_bounded() -> None:
    found = keys_in({f"k{i:03}": f"key-{i}" for i in range(MOST_KEYS + 2)})
    assert len(found.keys) == MOST_KEYS
    assert found.ignored == (f"k{MOST_KEYS:03}", f"k{MOST_KEYS + 1:03}")


def test_what_was_found_is_shown_without_its_keys() -> None:
    assert "hunter2" not in repr(keys_in({"a": "hunter2"}))


class Secrets:
    """The API server."""

    def __init__(self) -> None:
        self.now: dict[SecretSource, Mapping[str, str] | Exception] = {}
        self.reads = 0
        self.changed, self.was_read = asyncio.Event(), asyncio.Event()
        self.keys = ServiceKeys(self.read, self.changed.set, SHORT_S)
        self.held: asyncio.Event | None = None
        """What answers wait for, if anything."""

    async def read(self, namespace: str, name: str) -> Mapping[str, str]:
        if self.held is not None:
            await self.held.wait()
        found = self.now[SecretSource(namespace, name)]
        self.reads += 1
        self.was_read.set()
        if isinstance(found, Exception):
            raise found
        return found

    async def until(self, condition) -> None:
        async with asyncio.timeout(30):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def read_again(self) -> None:
        """Until a read that began after now has ended."""
        before = self.reads
        async with asyncio.timeout(30):
            while self.reads < before + 2:
                self.was_read.clear()
                await self.was_read.wait()


@pytest.fixture
def secrets() -> Secrets:
    return Secrets()


async def test_keys_are_read_and_read_again(secrets: Secrets) -> None:
    secrets.now[KEYS] = {"a": "old"}
    secrets.keys.want({DIGITS: KEYS})
    assert secrets.keys.unread() == {DIGITS}
    assert secrets.keys.known() == {}
    await secrets.until(secrets.keys.known)
    assert secrets.keys.known() == {DIGITS: ("old",)}
    assert secrets.keys.unread() == frozenset()
    secrets.now[KEYS] = {"a": "old", "b": "new"}
    await secrets.until(lambda: secrets.keys.known() == {DIGITS: ("old", "new")})
    secrets.now[KEYS] = {"b": "new"}
    await secrets.until(lambda: secrets.keys.known() == {DIGITS: ("new",)})
    secrets.keys.close()


async def test_services_may_share_a_secret_and_it_is_read_once_for_them(secrets: Secrets) -> None:
    secrets.now[KEYS] = {"a": "k"}
    secrets.keys.want({DIGITS: KEYS, "vision.words": KEYS})
    await secrets.until(secrets.keys.known)
    assert secrets.keys.known() == {DIGITS: ("k",), "vision.words": ("k",)}
    secrets.keys.want({DIGITS: KEYS})
    assert secrets.keys.known() == {DIGITS: ("k",)}
    secrets.keys.close()


@pytest.mark.parametrize("silence", [Unreachable("no answer"), RuntimeError("hunter2")])
async def test_keys_stay_while_nothing_is_learnt_of_them(
    secrets: Secrets, silence: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    secrets.now[KEYS] = {"a": "k"}
    secrets.keys.want({DIGITS: KEYS})
    await secrets.until(secrets.keys.known)
    secrets.now[KEYS] = silence
    await secrets.read_again()
    assert secrets.keys.known() == {DIGITS: ("k",)}
    assert secrets.keys.problems() == {}
    assert "hunter2" not in caplog.text
    secrets.keys.close()


@pytest.mark.parametrize(
    ("now", "says"),
    [
        (NotFound("Secret vision/keys: there is none, create it"), "create it"),
        (Denied("Secret vision/keys: the namespace has not opted in"), "opted in"),
        ({}, "add a value"),
        ({"a": "two words"}, "add a value"),
    ],
)
async def test_without_a_secret_a_right_or_a_key_the_service_is_closed_and_says_why(
    secrets: Secrets, now: Mapping[str, str] | Exception, says: str
) -> None:
    secrets.now[KEYS] = {"a": "k"}
    secrets.keys.want({DIGITS: KEYS})
    await secrets.until(secrets.keys.known)
    secrets.now[KEYS] = now
    await secrets.until(lambda: secrets.keys.known() == {DIGITS: ()})
    problem = secrets.keys.problems()[DIGITS]
    assert says in problem
    assert "vision/keys" in problem
    assert "nobody is answered" in problem
    secrets.now[KEYS] = {"a": "other"}
    await secrets.until(lambda: secrets.keys.known() == {DIGITS: ("other",)})
    assert secrets.keys.problems() == {}
    secrets.keys.close()


async def test_what_was_never_read_is_not_known_and_says_why(secrets: Secrets) -> None:
    secrets.now[KEYS] = Unreachable("Secret vision/keys: the API server does not answer")
    secrets.keys.want({DIGITS: KEYS})
    await secrets.until(secrets.keys.problems)
    assert secrets.keys.known() == {}
    assert secrets.keys.unread() == frozenset()
    assert "does not answer" in secrets.keys.problems()[DIGITS]
    secrets.keys.close()


async def test_keys_that_are_not_wanted_are_forgotten(secrets: Secrets) -> None:
    secrets.now[KEYS] = {"a": "k"}
    secrets.keys.want({DIGITS: KEYS})
    await secrets.until(secrets.keys.known)
    secrets.keys.want({})
    secrets.held = asyncio.Event()
    secrets.keys.want({DIGITS: KEYS})
    assert secrets.keys.known() == {}
    assert secrets.keys.unread() == {DIGITS}
    secrets.keys.close()


async def test_no_key_is_logged(secrets: Secrets, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secrets.now[KEYS] = {"a": "hunter2", "bad": "hunter 3", "more": ""}
    secrets.keys.want({DIGITS: KEYS})
    await secrets.until(secrets.keys.known)
    assert "Secret vision/keys: 1 keys" in caplog.text
    assert "ignored are bad, more" in caplog.text
    assert "hunter" not in caplog.text
    secrets.keys.close()


NEEDED = ["--run-dir=run", "--models=models", "--state=state"]


def test_how_often_secrets_are_read_is_an_option() -> None:
    assert parser().parse_args(NEEDED).keys_interval == READ_S
    assert parser().parse_args([*NEEDED, "--keys-interval=2.5"]).keys_interval == 2.5


@pytest.mark.parametrize("seconds", ["0.5", "3601", "nan", "inf", "-5", "5s", ""])
def test_an_interval_that_is_none_is_refused_with_what_is_allowed(
    seconds: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args([*NEEDED, f"--keys-interval={seconds}"])
    said = capsys.readouterr().err
    assert f"--keys-interval: found {seconds!r}, allowed: 1 to 3600 seconds" in said
