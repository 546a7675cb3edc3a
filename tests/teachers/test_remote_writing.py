"""A served model writes completions and scores choices, as a local one does."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import pytest
import torch
from remote_server import CLASSES, END, FakeServer, log_probs, serving

from tutelage.errors import ConfigError, DataError, TeacherError
from tutelage.models.sampling import Sampling
from tutelage.ragged import Ragged
from tutelage.teachers import remote_client
from tutelage.teachers.remote import RemoteTeacher
from tutelage.teachers.remote_writing import score_remotely, write_remotely

PROMPTS = Ragged.of([[5, 6], [7], [20, 21, 22], [7]])
GREEDY = Sampling(max_new_tokens=6, greedy=True)
DRAWN = Sampling(max_new_tokens=6, seed=3)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Generator[FakeServer]:
    monkeypatch.setattr(remote_client, "_sleep", lambda seconds: None)
    with serving() as fake:
        yield fake


def teacher_of(server: FakeServer) -> RemoteTeacher:
    return RemoteTeacher(server.url, "teacher", classes=CLASSES, k=5, timeout=5.0, retries=2)


def by_hand(prompt: list[int], eos: list[int]) -> list[int]:
    written: list[int] = []
    while len(written) < 6 and (not written or written[-1] not in eos):
        written.append(int(log_probs(prompt + written)[-1].argmax()))
    return written


def test_greedy_completions_are_those_of_the_model(server: FakeServer):
    """Completions that come back in the order in which the server finished would follow other prompts."""
    eos = sorted({by_hand(prompt, [])[2] for prompt in PROMPTS.lists()[:2]} | {END})
    found = write_remotely(teacher_of(server), PROMPTS, GREEDY, eos=eos, batch_size=3)
    expected = [by_hand(prompt, eos) for prompt in PROMPTS.lists()]
    assert found.completions.lists() == expected
    assert found.finished.tolist() == [tokens[-1] in eos for tokens in expected]
    assert {True, False} == set(found.finished.tolist()), "both kinds are looked at"
    assert found.tokens == sum(map(len, expected))


def test_each_prompt_has_chance_of_its_own(server: FakeServer):
    """One seed for all would write the same completion for the n drafts of a prompt; a seed by position would change with the batch."""
    teacher = teacher_of(server)
    found = write_remotely(teacher, PROMPTS, DRAWN, eos=[END]).completions.lists()
    assert found[1] != found[3], "the same prompt twice"
    assert write_remotely(teacher, PROMPTS, DRAWN, eos=[END], batch_size=1).completions.lists() == found
    one = write_remotely(teacher, PROMPTS.take(torch.tensor([3])), DRAWN, eos=[END], streams=torch.tensor([3]))
    assert one.completions.lists() == found[3:]
    other = write_remotely(teacher, PROMPTS, Sampling(max_new_tokens=6, seed=4), eos=[END]).completions.lists()
    assert other != found


def test_everything_that_decides_a_draw_is_said(server: FakeServer):
    """What is left out is taken from the model's own generation_config: a penalty or a cut-off that no record has."""
    write_remotely(teacher_of(server), PROMPTS.take(torch.tensor([0])), DRAWN, eos=[END, 3])
    asked = server.asked[-1]
    said = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "stop_token_ids": [END, 3], "max_tokens": 6}
    assert {name: asked[name] for name in said} == said
    assert {asked[f"{kind}_penalty"] for kind in ("presence", "frequency")} == {0.0}
    assert asked["repetition_penalty"] == 1.0


Damage = Callable[[dict[str, Any]], dict[str, Any]]
DAMAGES: dict[str, tuple[Damage, str]] = {
    "no numbers": (lambda choice: {**choice, "token_ids": None}, "no token_ids"),
    "nothing": (lambda choice: {**choice, "token_ids": []}, "wrote 0 tokens"),
    "too many": (lambda choice: {**choice, "token_ids": [4] * 7, "finish_reason": "length"}, "wrote 7 tokens"),
    "an end that is none": (lambda choice: {**choice, "token_ids": [4, 5], "finish_reason": "stop"}, "the last 5"),
    "no end that is one": (lambda choice: {**choice, "token_ids": [4, END], "finish_reason": "length"}, "by 'length'"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_no_completion_is_refused(server: FakeServer, name: str):
    """A stop sign that is stripped teaches a student never to stop; text that is cut into tokens anew teaches it other ones."""
    damage, words = DAMAGES[name]

    def change(answer: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
        if "stop_token_ids" in asked:
            answer["choices"] = [damage(choice) for choice in answer["choices"]]
        return answer

    server.change = change
    with pytest.raises(TeacherError, match=words):
        write_remotely(teacher_of(server), PROMPTS, GREEDY, eos=[END])


def test_an_error_ends_the_writing(server: FakeServer):
    """With hundreds of prompts queued behind it, each would be tried in vain for as long as its retries last."""
    teacher = teacher_of(server)
    _ = teacher.identity
    server.asked.clear()
    server.troubles = [("status", 400, {}, {"error": {"message": "too long"}})] * 40
    with pytest.raises(TeacherError, match="too long"):
        write_remotely(teacher, Ragged.of([[5, 6]] * 40), GREEDY, eos=[END], batch_size=2)
    assert len(server.asked) < 40


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"streams": torch.arange(2)}])
def test_numbers_that_mean_nothing_are_refused(server: FakeServer, wrong: dict[str, Any]):
    """Two streams for four prompts would give two of them no chance of their own."""
    with pytest.raises(ConfigError):
        write_remotely(teacher_of(server), PROMPTS, GREEDY, eos=[END], **wrong)


@pytest.mark.parametrize("dialect", ["vllm", "echo"])
def test_choices_have_the_models_log_probabilities(server: FakeServer, dialect: str):
    """A label that is never among the k most probable has a score all the same; off by one, the wrong label would win."""
    server.dialects = (dialect,)
    choices = [[8], [9, END], [30, 31, 32]]
    expected = [
        [sum(float(log_probs(prompt + choice[:n])[-1][choice[n]]) for n in range(len(choice))) for choice in choices]
        for prompt in PROMPTS.lists()
    ]
    found = score_remotely(teacher_of(server), PROMPTS, choices)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_a_choice_without_tokens_is_refused(server: FakeServer):
    """It would always be certain."""
    with pytest.raises(DataError, match="without a token"):
        score_remotely(teacher_of(server), PROMPTS, [[3], []])
