"""A server that is slow, busy, down or wrong: what is tried again, how long, and that the key stays where it is."""

from __future__ import annotations

import json
import logging
import pickle
import random
import time
from collections.abc import Generator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from remote_server import KEY, FakeServer, serving

from tutelage.errors import ConfigError, TeacherError
from tutelage.teachers import remote_client
from tutelage.teachers.remote_client import RemoteClient

BODY = {"model": "teacher", "prompt": [[1, 2, 3]], "prompt_logprobs": 2, "max_tokens": 1}


@pytest.fixture
def server() -> Generator[FakeServer]:
    with serving() as fake:
        yield fake


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that would have been waited."""
    found: list[float] = []
    monkeypatch.setattr(remote_client, "_sleep", found.append)
    return found


def client_of(server: FakeServer, **options: Any) -> RemoteClient:
    return RemoteClient(server.url, **{"timeout": 5.0, "retries": 3, **options})


TROUBLES = [("drop",), ("cut",), ("html",), *(("status", code, {}) for code in (408, 425, 429, 500, 502, 503, 504))]


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: "-".join(map(str, trouble[:2])))
def test_what_may_pass_is_tried_again(server: FakeServer, waits: list[float], trouble: tuple[Any, ...]):
    """A labelling of hours would end at the first hiccup of a server."""
    server.troubles = [trouble, trouble]
    answer = client_of(server).post("/completions", BODY)
    assert answer.value()["model"] == "teacher"
    assert len(server.asked) == 3
    assert len(waits) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 302])
def test_what_will_not_pass_is_never_tried_again(server: FakeServer, waits: list[float], status: int):
    """A wrong key that is tried again gets an account locked; a wrong request costs minutes for the same answer."""
    server.troubles = [
        ("status", status, {"Location": "http://127.0.0.1:9/v1"}, {"error": {"message": "too long by 3"}})
    ]
    answer = client_of(server).post("/completions", BODY)
    assert answer.refused
    with pytest.raises(TeacherError, match=f"refused with {status}: too long by 3; "):
        answer.value()
    assert len(server.asked) == 1
    assert waits == []


def test_waits_double_are_bounded_and_differ(server: FakeServer, waits: list[float]):
    """Without a bound the tenth wait would be minutes; without chance all clients of a server come back at the same moment."""
    server.troubles = [("drop",)] * 10
    state = random.getstate()
    client_of(server, retries=10).post("/completions", BODY)
    for attempt, wait in enumerate(waits):
        longest = min(30.0, 0.5 * 2**attempt)
        assert longest / 2 <= wait <= longest
    assert len({wait / min(30.0, 0.5 * 2**attempt) for attempt, wait in enumerate(waits)}) == 10
    assert random.getstate() == state, "a training's own chance would be another after an interruption"


def test_retry_after_is_waited_for(server: FakeServer, waits: list[float]):
    """A server that says when to come back and is asked before locks its client out for longer."""
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    past = format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True)
    said = ["7", at, past, "soon"]
    server.troubles = [("status", 429, {"Retry-After": when}) for when in said]
    client_of(server, retries=4).post("/completions", BODY)
    assert waits[0] == 7.0
    assert 90 < waits[1] <= 100
    assert waits[2] <= 2.0
    assert waits[3] <= 4.0


@pytest.mark.parametrize("said", ["3600", "inf", "Fri, 01 Jan 2100 00:00:00 GMT"])
def test_a_wait_without_end_is_not_begun(server: FakeServer, waits: list[float], said: str):
    """An hour's sleep looks like a hang; nothing is lost by saying so and ending."""
    server.troubles = [("status", 503, {"Retry-After": said})]
    with pytest.raises(TeacherError, match="at most 300 s are waited"):
        client_of(server).post("/completions", BODY)
    assert waits == []


def test_a_server_that_stays_away_ends_in_words(waits: list[float]):
    """The message says how often it was tried, why it failed and that nothing is lost."""
    with serving() as server:
        pass
    with pytest.raises(TeacherError, match=r"failed 4 times.*refused.*goes on from there"):
        client_of(server).post("/completions", BODY)
    assert len(waits) == 3


@pytest.mark.parametrize("trouble", [("hang", 0.6), ("drip", 0.05)])
def test_an_attempt_ends_in_time(server: FakeServer, waits: list[float], trouble: tuple[Any, ...]):
    """A byte every now and then keeps a socket's own time-out from ever coming."""
    server.troubles = [trouble]
    started = time.monotonic()
    with pytest.raises(TeacherError, match=r"failed with: .*timed out"):
        client_of(server, timeout=0.2, retries=0).post("/completions", BODY)
    assert time.monotonic() - started < 5.0


def test_the_key_is_sent_and_nowhere_else(
    server: FakeServer, waits: list[float], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Keys are read out of logs, pickles and error reports."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TEACHER_KEY", KEY)
    server.key = KEY
    client = client_of(server, key_env="TEACHER_KEY")
    assert client.get("/models").value()["data"]
    server.key = "another"
    words = str(client.get("/models").body)
    assert "bad key Bearer (the key)" in words
    server.troubles = [("status", 500, {}, {"error": {"message": f"no thread for {KEY}"}})] * 4
    with pytest.raises(TeacherError, match=r"no thread for .the key.") as caught:
        client.post("/completions", BODY)
    told = [repr(client), repr(vars(client)), words, str(caught.value), repr(caught.value), caplog.text]
    assert all(KEY not in text for text in told)
    assert caught.value.__context__ is None or KEY not in repr(caught.value.__context__)
    assert KEY.encode() not in pickle.dumps(
        {name: value for name, value in vars(client).items() if name not in ("_opener", "_counting")}
    )


ECHOES = {
    "no JSON": (200, b"<html>you sent %s</html>"),
    "cut off JSON": (200, b'{"error": "you sent %s'),
    "across the cut": (401, b'{"error": {"message": "' + b"x" * 285 + b' %s"}}'),
    "across the cut, no JSON": (401, b"<p>" + b"x" * 290 + b" %s</p>"),
    "tried again": (503, b'{"error": {"message": "' + b"x" * 285 + b' %s"}}'),
    "JSON of another shape": (401, b'[{"sent": "%s"}]'),
}


@pytest.mark.parametrize("key", [KEY, "sk-one/two+three\\four&'five=="])
@pytest.mark.parametrize(("status", "body"), ECHOES.values(), ids=ECHOES)
def test_no_part_of_an_echoed_key_is_told(
    server: FakeServer,
    waits: list[float],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    status: int,
    body: bytes,
    key: str,
):
    """A proxy's error page that shows the request's headers would bring the key into the log, whole or its beginning."""
    monkeypatch.setenv("TEACHER_KEY", key)
    written = json.dumps(key)[1:-1] if body[:1] in b"{[" else key
    server.troubles = [("raw", status, body % written.encode())] * 4
    with pytest.raises(TeacherError, match="the k") as caught:
        client_of(server, key_env="TEACHER_KEY").post("/completions", BODY).value()
    told = caplog.text + str(caught.value) + repr(caught.value)
    assert len(caplog.records) == (0 if status == 401 else 3)
    assert key[:6] not in told


@pytest.mark.parametrize("key", ["sk-LINE1\nsk-LINE2", "sk-LINE1 sk-LINE2", "sk-…LINE", "sk-\x7fLINE"])
def test_what_is_no_key_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch, key: str):
    """The standard library's own error for such a header has the whole key in it."""
    monkeypatch.setenv("TEACHER_KEY", key)
    with pytest.raises(ConfigError, match=r"'TEACHER_KEY'.*holds no key") as caught:
        RemoteClient("http://localhost:8000", key_env="TEACHER_KEY")
    assert "sk-" not in str(caught.value)
    assert "LINE" not in str(caught.value)


def test_a_key_that_is_not_set_is_missed_at_once(monkeypatch: pytest.MonkeyPatch):
    """Without this, a run loads its data and its student before the server says 401."""
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    with pytest.raises(ConfigError, match="'TEACHER_KEY', which is not set"):
        RemoteClient("http://localhost:8000", key_env="TEACHER_KEY")


def test_a_key_over_plain_http_is_warned_of(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """To this machine it stays on the machine; to another one everybody between can read it."""
    monkeypatch.setenv("TEACHER_KEY", KEY)
    RemoteClient("http://127.0.0.1:8000", key_env="TEACHER_KEY")
    RemoteClient("https://example.org", key_env="TEACHER_KEY")
    assert caplog.text == ""
    RemoteClient("http://example.org", key_env="TEACHER_KEY")
    assert "plain http" in caplog.text
    assert KEY not in caplog.text


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "ftp://host/v1",
        "",
        "http://",
        f"http://me:{KEY}@host/v1",
        f"https://host/v1?key={KEY}",
        f"me:{KEY}@host/v1",
        f"host/v1?key={KEY}",
        f"http://me:{KEY}@[host/v1",
    ],
)
def test_urls_that_cannot_be_kept_are_refused(url: str):
    """A password in a URL is written into each config, log and page; the message must not write it too."""
    with pytest.raises(ConfigError) as caught:
        RemoteClient(url)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("given", ["http://host:1", "http://host:1/", "http://host:1/v1", "http://host:1/v1/"])
def test_v1_is_there_once(given: str):
    """Both are written in manuals; /v1/v1 would be a 404 that nobody understands."""
    assert RemoteClient(given).root == "http://host:1/v1"


@pytest.mark.parametrize(
    "wrong", [{"timeout": 0.0}, {"timeout": float("inf")}, {"timeout": float("nan")}, {"retries": -1}]
)
def test_numbers_that_mean_nothing_are_refused(wrong: dict[str, Any]):
    """A time-out of 0 is "never block" to a socket, and no request would ever succeed."""
    with pytest.raises(ConfigError):
        RemoteClient("http://localhost:8000", **wrong)


def test_a_proxy_does_not_stand_before_this_machine(
    server: FakeServer, waits: list[float], monkeypatch: pytest.MonkeyPatch
):
    """Where a proxy is set for the whole shell, a server on loopback would be asked of the proxy, which has another one."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert client_of(server, retries=0).get("/models").value()["data"]
