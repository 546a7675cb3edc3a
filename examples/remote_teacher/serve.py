"""A language model on this machine, spoken to as a server would be: an example of the API that a remote teacher needs, not a product.

    python examples/remote_teacher/serve.py examples/smollm2

It answers one request at a time, to this machine alone, in the shapes of vLLM's OpenAI-compatible server, which is what to use for a
real teacher:

    vllm serve HuggingFaceTB/SmolLM2-135M-Instruct --max-logprobs 20
"""

import argparse
import hashlib
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tutelage.models.sampling import Sampling
from tutelage.models.writing import write
from tutelage.ragged import Ragged

#: The most log-probabilities of a place, as vLLM's --max-logprobs.
MOST = 20


class Wrong(Exception):
    """A request that cannot be answered; the words go to the client."""


class Served:
    """A model and what is said of it."""

    def __init__(self, folder: str, name: str, key: str | None) -> None:
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.name, self.root, self.key = name, Path(folder).name, key
        self.fingerprint = fingerprint(self.model)
        self.turn = threading.Lock()

    def models(self) -> dict[str, Any]:
        """What ``GET /v1/models`` answers."""
        card = {"id": self.name, "object": "model", "owned_by": "example", "root": self.root, "parent": None}
        return {"object": "list", "data": [{**card, "max_model_len": self.model.config.max_position_embeddings}]}

    def complete(self, asked: dict[str, Any]) -> dict[str, Any]:
        """What ``POST /v1/completions`` answers: to prompts of token numbers, with log-probabilities or with what follows."""
        if asked.get("model") != self.name:
            raise Wrong(f"there is no model {asked.get('model')!r} here, only {self.name!r}")
        prompts = self._prompts(asked.get("prompt"))
        with self.turn, torch.inference_mode():
            answers = self._scored(prompts, asked) if asked.get("prompt_logprobs") else self._written(prompts, asked)
        choices = [{"index": place, "text": "", **answer} for place, answer in enumerate(answers)]
        whole = {"id": "cmpl-example", "object": "text_completion", "model": self.name, "choices": choices}
        return {**whole, "system_fingerprint": self.fingerprint}

    def _prompts(self, given: Any) -> list[list[int]]:
        texts = [given] if isinstance(given, list) and given and isinstance(given[0], int) else given
        whole = isinstance(texts, list) and all(isinstance(text, list) and text for text in texts)
        if not whole or not all(isinstance(token, int) for text in texts for token in text):
            raise Wrong("prompt: expected token numbers, or lists of them")
        longest, most = max(map(len, texts)), self.model.config.max_position_embeddings
        if longest > most:
            raise Wrong(f"prompt: {longest} tokens, this model reads {most}")
        if not all(0 <= token < self.model.config.vocab_size for text in texts for token in text):
            raise Wrong(f"prompt: a token that is none of this model's {self.model.config.vocab_size}")
        return texts

    def _scored(self, prompts: list[list[int]], asked: dict[str, Any]) -> list[dict[str, Any]]:
        k = asked["prompt_logprobs"]
        if not isinstance(k, int) or not 1 <= k <= MOST:
            raise Wrong(f"prompt_logprobs is {k}: expected 1 to {MOST}")
        ids, mask = Ragged.of(prompts).padded(0)
        log_p = self.model(input_ids=ids, attention_mask=mask.long()).logits.float().log_softmax(-1)
        best = log_p.topk(min(k, log_p.shape[-1]), dim=-1)
        answers: list[dict[str, Any]] = []
        for row, text in enumerate(prompts):
            places: list[Any] = [None]
            for place, token in enumerate(text[1:]):
                kept = dict(zip(best.indices[row, place].tolist(), best.values[row, place].tolist(), strict=True))
                kept.setdefault(token, float(log_p[row, place, token]))
                places.append({str(each): {"logprob": value} for each, value in kept.items()})
            answers.append({"finish_reason": "length", "prompt_logprobs": places, "prompt_token_ids": text})
        return answers

    def _written(self, prompts: list[list[int]], asked: dict[str, Any]) -> list[dict[str, Any]]:
        ends = asked.get("stop_token_ids") or [self.model.config.eos_token_id]
        found = write(self.model, Ragged.of(prompts), sampling_of(asked), eos=ends)
        pairs = zip(found.completions.lists(), found.finished.tolist(), strict=True)
        return [{"finish_reason": "stop" if ended else "length", "token_ids": tokens} for tokens, ended in pairs]


def sampling_of(asked: dict[str, Any]) -> Sampling:
    """How a request wants its tokens chosen."""
    most, seed = asked.get("max_tokens") or 16, asked.get("seed") or 0
    if asked.get("temperature") == 0:
        return Sampling(most, greedy=True, seed=seed)
    few = max(asked.get("top_k") or 0, 0)
    return Sampling(most, asked.get("temperature") or 1.0, asked.get("top_p") or 1.0, few, seed=seed)


def fingerprint(model: PreTrainedModel) -> str:
    """A short hash of the weights, so that others under the same name are known for others."""
    found = hashlib.sha256()
    for name, values in model.state_dict().items():
        found.update(name.encode() + values.contiguous().view(torch.uint8).numpy().tobytes())
    return f"fp-{found.hexdigest()[:12]}"


def handler_of(served: Served) -> type[BaseHTTPRequestHandler]:
    """The HTTP side."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self._welcome():
                self._say(*((200, served.models()) if self.path == "/v1/models" else (404, error("no such path"))))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if not self._welcome():
                return
            if self.path != "/v1/completions":
                self._say(404, error("no such path"))
                return
            try:
                self._say(200, served.complete(json.loads(body)))
            except (Wrong, ValueError) as wrong:
                self._say(400, error(str(wrong)))

        def _welcome(self) -> bool:
            if served.key is None or self.headers.get("Authorization") == f"Bearer {served.key}":
                return True
            self._say(401, error("this server wants its key"))
            return False

        def _say(self, status: int, value: dict[str, Any]) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


def error(words: str) -> dict[str, Any]:
    """An error as the API words it."""
    return {"error": {"message": words}}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="a folder that transformers reads, or a hub id")
    parser.add_argument("--name", default="teacher", help="what it is called")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--key-env", help="the environment variable that holds the key which clients must send")
    given = parser.parse_args()
    key = os.environ[given.key_env] if given.key_env else None
    served = Served(given.model, given.name, key)
    server = ThreadingHTTPServer(("127.0.0.1", given.port), handler_of(served))
    print(f"{given.name} ({served.fingerprint}) answers at http://127.0.0.1:{server.server_port}/v1", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
