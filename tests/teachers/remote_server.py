"""A server on loopback that speaks the completions API of a small made-up language model, and misbehaves as it is told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

#: Tokens of the made-up model.
CLASSES = 40
KEY = "sk-secret-of-the-tests"
END = 1

#: What becomes of one request: ("status", code, headers, text), ("drop",), ("cut",), ("hang", seconds), ("drip", seconds), ("html",),
#: ("raw", code, body).
Trouble = tuple[Any, ...]


def log_probs(text: list[int], seed: int = 0) -> np.ndarray[Any, Any]:
    """``[T, C]`` float64: row t is what follows the first t + 1 tokens of a text, which depends on the last two of them."""
    rows = []
    for place, token in enumerate(text):
        before = text[place - 1] if place else CLASSES
        logits = np.random.default_rng([seed, before, token]).normal(size=CLASSES) * 2
        rows.append(logits - np.log(np.exp(logits).sum()))
    return np.array(rows)


class FakeServer:
    """What it is, what it shall do wrong, and what it was asked.

    ``troubles`` are used up, one a request to ``/completions``, before anything is answered well. ``change`` may change each answer.
    """

    def __init__(self) -> None:
        self.model, self.root, self.fingerprint = "teacher", "models/teacher", "fp-1"
        self.seed = 0
        self.key: str | None = None
        self.dialects: tuple[str, ...] = ("vllm", "echo")
        self.troubles: list[Trouble] = []
        self.change: Callable[[dict[str, Any], dict[str, Any]], Any] = lambda answer, asked: answer
        self.asked: list[dict[str, Any]] = []
        self.looked = 0
        self.times: list[float] = []
        self.url = ""
        #: What it calls its tokens; it does not say for None.
        self.words: Callable[[int], str] | None = None

    def models(self) -> dict[str, Any]:
        """What ``GET /v1/models`` says."""
        return {"object": "list", "data": [{"id": self.model, "object": "model", "root": self.root, "parent": None}]}

    def answer(self, asked: dict[str, Any]) -> Any:
        """What ``POST /v1/completions`` says."""
        scores = "prompt_logprobs" in asked or asked.get("echo")
        texts = [asked["prompt"]] if isinstance(asked["prompt"][0], int) else asked["prompt"]
        choices = [
            {
                "index": n,
                "text": "",
                "finish_reason": "length",
                **(self._scored(t, asked) if scores else self._written(t, asked)),
            }
            for n, t in enumerate(texts)
        ]
        found = {"id": "cmpl-1", "object": "text_completion", "model": asked["model"], "choices": choices}
        return self.change({**found, "system_fingerprint": self.fingerprint}, asked)

    def _scored(self, text: list[int], asked: dict[str, Any]) -> dict[str, Any]:
        log_p = log_probs(text, self.seed)
        if "prompt_logprobs" in asked and "vllm" in self.dialects:
            places: list[Any] = [None]
            for place, token in enumerate(text[1:]):
                best = np.argsort(-log_p[place])
                kept = [*best[: asked["prompt_logprobs"]].tolist(), token]
                rank = {int(t): r + 1 for r, t in enumerate(best)}
                places.append(
                    {str(t): {"logprob": float(log_p[place, t]), "rank": rank[t], **self._named(t)} for t in kept}
                )
            return {"prompt_logprobs": places, "prompt_token_ids": text}
        if asked.get("echo") and "echo" in self.dialects:
            tops: list[Any] = [None]
            own = [None, *(float(log_p[place, token]) for place, token in enumerate(text[1:]))]
            for place in range(len(text)):
                best = np.argsort(-log_p[place])[: asked["logprobs"]].tolist()
                tops.append({f"token_id:{t}": float(log_p[place, t]) for t in best})
            return {
                "logprobs": {
                    "tokens": [self._echoed(t, asked) for t in [*text, 0]],
                    "token_logprobs": [*own, -1.0],
                    "top_logprobs": tops,
                }
            }
        return {}

    def _named(self, token: int) -> dict[str, str]:
        return {} if self.words is None else {"decoded_token": self.words(token)}

    def _echoed(self, token: int, asked: dict[str, Any]) -> str:
        numbers = self.words is None or asked.get("return_tokens_as_token_ids")
        return f"token_id:{token}" if numbers or self.words is None else self.words(token)

    def _written(self, text: list[int], asked: dict[str, Any]) -> dict[str, Any]:
        """The most probable token each time, or draws of the request's own seed."""
        random = np.random.default_rng(asked.get("seed", 0))
        written: list[int] = []
        while len(written) < asked["max_tokens"] and (not written or written[-1] not in asked["stop_token_ids"]):
            p = np.exp(log_probs(text + written, self.seed)[-1])
            written.append(int(p.argmax()) if asked["temperature"] == 0 else int(random.choice(CLASSES, p=p / p.sum())))
        stopped = written[-1] in asked["stop_token_ids"]
        return {"token_ids": written, "finish_reason": "stop" if stopped else "length"}


@contextmanager
def serving() -> Generator[FakeServer]:
    """A server on a free port of this machine."""
    fake = FakeServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            fake.looked += 1
            if fake.key is not None and self.headers.get("Authorization") != f"Bearer {fake.key}":
                return self._say(401, {"error": {"message": f"bad key {self.headers.get('Authorization')}"}})
            return self._say(*((200, fake.models()) if self.path == "/v1/models" else (404, {"error": "no such path"})))

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fake.asked.append(asked)
            fake.times.append(time.monotonic())
            if fake.troubles:
                self._misbehave(fake.troubles.pop(0), asked)
            else:
                self._say(200, fake.answer(asked))

        def _misbehave(self, trouble: Trouble, asked: dict[str, Any]) -> None:
            kind = trouble[0]
            if kind == "status":
                self._say(trouble[1], trouble[3] if len(trouble) > 3 else {"error": {"message": "not now"}}, trouble[2])
            elif kind == "html":
                self._send(200, b"<html>Bad gateway</html>", {})
            elif kind == "raw":
                self._send(trouble[1], trouble[2], {})
            elif kind == "hang":
                time.sleep(trouble[1])
            elif kind in ("cut", "drip"):
                body = json.dumps(fake.answer(asked)).encode()
                self._head(200, len(body), {})
                if kind == "cut":
                    self.wfile.write(body[: len(body) // 2])
                for byte in body if kind == "drip" else b"":
                    self.wfile.write(bytes([byte]))
                    time.sleep(trouble[1])
            self.close_connection = True

        def _say(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
            self._send(status, json.dumps(value).encode(), headers or {})

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self._head(status, len(body), headers)
            self.wfile.write(body)

        def _head(self, status: int, length: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", "Content-Length": str(length), **headers}.items():
                self.send_header(name, value)
            self.end_headers()

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that gave up is what these tests are about."""

    server = Quiet(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
