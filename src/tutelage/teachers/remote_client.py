"""JSON over HTTP to a server that may be slow, busy, down or wrong: what is tried again, for how long, and what never is.

The standard library alone: one request is a batch of whole texts, so that a connection of its own costs nothing beside it.
"""

from __future__ import annotations

import email.utils
import html
import http.client
import json
import logging
import os
import random
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tutelage.errors import ConfigError, TeacherError

logger = logging.getLogger(__name__)

#: Answers that the same request may get another one to, a moment later: too early, too many, and all that is the server's own.
_AGAIN = {408, 425, 429}
#: Seconds: of the first wait, which doubles each time; the longest wait of ours; the longest that a server may ask for.
_FIRST_WAIT, _LONGEST_WAIT, _LONGEST_ASKED = 0.5, 30.0, 300.0
#: Bytes of the greatest answer that is read, and characters of one that an error shows.
_MOST_BYTES, _SHOWN = 1 << 30, 300
#: Of its own, so that a wait never moves the draws of a training.
_JITTER = random.Random()
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_REMEDIES = {
    401: "the key is missing or not accepted: set the environment variable that key_env names to a valid one",
    403: "the key has no access to this model: ask for it, or use another key (key_env)",
    404: "there is no such model or address: compare teacher.model with what GET /v1/models lists, and the URL with the server's",
    413: "the request is too large for the server: label with a smaller batch (labels.batch_size) or shorten the texts (max_length)",
}


@dataclass(frozen=True)
class Answer:
    """What a server said for good: after retries where there was reason for them.

    Args:
        status: 200, or a 4xx that no retry would change.
        body: the JSON value of a 200; else what the server wrote, shortened and without the key.
        asked: what was asked of which host, for people.
    """

    status: int
    body: Any
    asked: str

    @property
    def refused(self) -> bool:
        """Whether the server would not answer."""
        return self.status != http.client.OK

    def value(self) -> Any:
        """The JSON value.

        Raises:
            TeacherError: the server refused; the message has its words and what to do.
        """
        if self.refused:
            moved = "no redirection is followed, which would take the key along: give the address that it leads to"
            other = moved if self.status < http.client.BAD_REQUEST else "change what it complains of"
            remedy = _REMEDIES.get(self.status, other)
            raise TeacherError(
                f"{self.asked} was refused with {self.status}: {self.body or 'no reason given'}; {remedy}"
            )
        return self.body


class RemoteClient:
    """Asks one server.

    A time-out, a broken or refused connection, an answer that is cut off, 408, 425, 429 and 5xx are tried again, after 0.5 s, 1 s,
    2 s … up to 30 s, each shortened by a random part of up to a half, so that many clients do not come back at once; where the
    server says ``Retry-After``, seconds or a date, not before that, and where that is more than 300 s, not at all. Everything else
    (400, 401, 403, 404 …, a certificate that does not hold, a redirection) is final. So a call ends after at most
    ``(retries + 1) · timeout + retries · 300`` seconds.

    The key is read from the environment for each request and kept nowhere; in a server's own words it is blacked out before anything is
    cut off or written down.

    Args:
        url: of the server, ``http`` or ``https``, with or without ``/v1``.
        key_env: the name of the environment variable that holds the key; None for a server that wants none.
        timeout: seconds of one attempt, from the connection to the last byte.
        retries: attempts after the first.

    Raises:
        ConfigError: no such URL; a user, password or query in it, which would be written into configs and logs; a number that is none;
            an environment variable that is not set, or that holds no key.
    """

    def __init__(self, url: str, *, key_env: str | None = None, timeout: float = 60.0, retries: int = 5) -> None:
        self.root = _root_of(url)
        self._key_env = key_env
        if not 0.0 < timeout < float("inf"):
            raise ConfigError(f"timeout is {timeout}: expected seconds above 0, such as 60")
        if retries < 0:
            raise ConfigError(f"retries is {retries}: expected 0 or more attempts after the first")
        self._timeout, self._retries = timeout, retries
        #: How often a server was found away or failing so far: what answers afterwards may be another one.
        self.interruptions = 0
        self._counting = threading.Lock()
        host = urllib.parse.urlsplit(self.root).hostname or ""
        proxies = [urllib.request.ProxyHandler({})] if host in _LOOPBACK else []
        self._opener = urllib.request.build_opener(_NoRedirection(), *proxies)
        if self._key() is not None and self.root.startswith("http:") and host not in _LOOPBACK:
            logger.warning("the key in %s goes to %s over plain http: whoever is on the way can read it", key_env, host)

    def __repr__(self) -> str:
        return f"RemoteClient({self.root!r})"

    def get(self, path: str) -> Answer:
        """What is at a path below ``/v1``, such as ``/models``. Raises as :meth:`post`."""
        return self._ask("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any]) -> Answer:
        """The answer to a JSON body at a path below ``/v1``, such as ``/completions``.

        Raises:
            TeacherError: the server could not be reached or did not answer, after all retries, or asks for a longer wait than is waited.
        """
        return self._ask("POST", path, json.dumps(body).encode())

    def _key(self) -> str | None:
        if self._key_env is None:
            return None
        key = os.environ.get(self._key_env, "").strip()
        if not key:
            raise ConfigError(
                f"key_env names the environment variable {self._key_env!r}, which is not set: the server would refuse every request; "
                f"export {self._key_env}=…, or leave key_env out for a server without a key"
            )
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ConfigError(
                f"the environment variable {self._key_env!r}, which key_env names, holds no key: a space, a line break or a character "
                "outside of ASCII stands inside, and no request can carry that; set it to the key alone"
            )
        return key

    def _ask(self, method: str, path: str, body: bytes | None) -> Answer:
        asked = f"{method} {self.root}{path}"
        failure = ""
        for attempt in range(self._retries + 1):
            found = self._attempt(method, path, body, asked)
            if isinstance(found, Answer):
                return found
            with self._counting:
                self.interruptions += 1
            failure = found.why
            if attempt < self._retries:
                wait = _wait(attempt, found.asked_wait, asked, failure)
                logger.warning(
                    "%s: %s; trying again in %.1f s (%d of %d)", asked, failure, wait, attempt + 1, self._retries
                )
                _sleep(wait)
        times = f" {self._retries + 1} times, at last" if self._retries else ""
        raise TeacherError(
            f"{asked} failed{times} with: {failure}. What was stored before is kept, and the same command goes on from there: start the "
            "server again, or look whether the URL is its own; raise timeout or retries for a slow one"
        )

    def _attempt(self, method: str, path: str, body: bytes | None, asked: str) -> Answer | _Failure:
        key = self._key()
        headers = {"Accept": "application/json", "User-Agent": "tutelage"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.root + path, data=body, headers=headers, method=method)
        deadline = time.monotonic() + self._timeout
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                return _json_of(_read(response, deadline), asked, key)
        except urllib.error.HTTPError as error:
            with error:
                said = _said(error, deadline, key)
                if error.code in _AGAIN or error.code >= http.client.INTERNAL_SERVER_ERROR:
                    return _Failure(f"{error.code} {said}".strip(), _retry_after(error.headers.get("Retry-After")))
                return Answer(error.code, said, asked)
        except (OSError, http.client.HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise TeacherError(
                    f"{asked}: the server's certificate does not hold ({reason.verify_message}), so it may be anyone; install its "
                    "authority's certificate on this machine (SSL_CERT_FILE)"
                ) from None
            return _Failure(_without(key, str(reason) or type(reason).__name__))


@dataclass(frozen=True)
class _Failure:
    """An attempt that another may follow; ``asked_wait`` seconds where the server said how many."""

    why: str
    asked_wait: float | None = None


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    """A redirection would take the key along to another host, and make a GET of a POST: it becomes an answer that is final."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> None:  # noqa: ARG002
        return None


def _sleep(seconds: float) -> None:
    time.sleep(seconds)


def _root_of(url: str) -> str:
    try:
        parts = urllib.parse.urlsplit(url)
        host = parts.hostname if parts.scheme in ("http", "https") else None
    except ValueError:
        parts, host = None, None
    if parts is None or not host:
        # whatever stands before an @ or behind a ? may be a password or a key
        shown = "no address" if any(mark in url for mark in "@?#") else repr(url)
        raise ConfigError(f"url is {shown}: expected a server's address, such as http://localhost:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        address = f"{parts.scheme}://{host}"
        raise ConfigError(
            f"the url of {address} has a user, a password or a query in it: they would be written into configs, logs and reports; put the "
            "key into an environment variable and name that (key_env)"
        )
    root = url.rstrip("/")
    return root if root.endswith("/v1") else f"{root}/v1"


def _read(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """All of a body, or an OSError when it ends early or takes too long: a socket's own time-out begins anew with each byte."""
    parts: list[bytes] = []
    size = 0
    while part := response.read1(1 << 16):
        parts.append(part)
        size += len(part)
        if time.monotonic() > deadline:
            raise TimeoutError("timed out before the answer was complete")
        if size > _MOST_BYTES:
            raise OSError(f"the answer is longer than {_MOST_BYTES:,} bytes")
    said = response.headers.get("Content-Length")
    if said is not None and said.isdigit() and int(said) != size:
        raise OSError(f"the answer broke off after {size:,} of {int(said):,} bytes")
    return b"".join(parts)


def _json_of(body: bytes, asked: str, key: str | None) -> Answer | _Failure:
    try:
        return Answer(http.client.OK, json.loads(body), asked)
    except ValueError:
        return _Failure(f"an answer that is no JSON, or was cut off: {_shown(body, key)}")


def _said(error: urllib.error.HTTPError, deadline: float, key: str | None) -> str:
    """A refusal's own words, where it has some."""
    try:
        body = error.read(1 << 16) if time.monotonic() < deadline else b""
    except (OSError, http.client.HTTPException):
        return ""
    try:
        found: Any = json.loads(body)
    except ValueError:
        return _shown(body, key)
    found = found.get("error", found) if isinstance(found, dict) else found
    found = found.get("message", found) if isinstance(found, dict) else found
    return _without(key, found if isinstance(found, str) else json.dumps(found))[:_SHOWN]


def _shown(body: bytes, key: str | None) -> str:
    text = _without(key, body.decode(errors="replace").strip())
    return repr(text[:_SHOWN]) + ("…" if len(text) > _SHOWN else "") if text else "an empty body"


def _without(key: str | None, words: str) -> str:
    """Whole words, before they are cut: a key that the cut goes through is no longer found, and its beginning would stay."""
    if key is None:
        return words
    quoted = json.dumps(key)[1:-1]
    for form in (key, quoted, quoted.replace("/", "\\/"), html.escape(key), urllib.parse.quote(key, safe="")):
        words = words.replace(form, "(the key)")
    return words


def _retry_after(said: str | None) -> float | None:
    """Seconds, from a number of them or from a date; None where it says neither."""
    if said is None:
        return None
    try:
        return max(0.0, float(said))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time())
    except ValueError:
        return None


def _wait(attempt: int, asked_wait: float | None, asked: str, failure: str) -> float:
    own = min(_LONGEST_WAIT, _FIRST_WAIT * 2.0**attempt) * _JITTER.uniform(0.5, 1.0)
    if asked_wait is None:
        return own
    if not asked_wait <= _LONGEST_ASKED:
        raise TeacherError(
            f"{asked}: {failure}; the server asks for {asked_wait:,.0f} s of patience, and at most {_LONGEST_ASKED:,.0f} s are waited. "
            "What was labelled so far is kept: run the same command again then"
        )
    return max(own, asked_wait)
