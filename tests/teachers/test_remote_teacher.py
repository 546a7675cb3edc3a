"""A served model as a teacher: what it says of each token of a completion, and nothing else, is taken for its probability."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import pytest
import torch
from remote_server import CLASSES, END, FakeServer, log_probs, serving

from tutelage import KL
from tutelage.data import TransferSet, hex_id
from tutelage.data.completions import Completions
from tutelage.errors import ConfigError, TeacherError
from tutelage.ragged import Ragged
from tutelage.signals import Logits, Signals, SparseTargets
from tutelage.studies.label_binds import teacher_fact
from tutelage.studies.teaching import teacher_identity
from tutelage.teachers import Teacher, remote_client
from tutelage.teachers.remote import RemoteTeacher

COMPLETIONS = [[8, 9, END], [3, END], [11, 12, 13, 14, END]]
TAUGHT = [[2, 3, 4], [9, 9], [30, 31, 32, 33, 34, 35]]
DATA = TransferSet.of_completions(
    Completions(Ragged.of([[5, 6], [7], [20]]), Ragged.of(COMPLETIONS), Ragged.of(TAUGHT))
)
BATCH = DATA.batch(torch.arange(3))
K = 5


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Generator[FakeServer]:
    monkeypatch.setattr(remote_client, "_sleep", lambda seconds: None)
    with serving() as fake:
        yield fake


def teacher_of(server: FakeServer, **options: Any) -> RemoteTeacher:
    given: dict[str, Any] = {"classes": CLASSES, "k": K, "timeout": 5.0, **options}
    return RemoteTeacher(server.url, given.pop("model", "teacher"), **given)


def targets_of(teacher: RemoteTeacher) -> SparseTargets:
    said = teacher.signals(BATCH).logits
    assert isinstance(said, SparseTargets)
    return said


def expected_log_probs() -> np.ndarray[Any, Any]:
    """``[N, C]``: of each completion's tokens, after the teacher's prompt and the completion so far."""
    rows = []
    for prompt, completion in zip(TAUGHT, COMPLETIONS, strict=True):
        for length in range(len(completion)):
            rows.append(log_probs(prompt + completion[:length])[-1])
    return np.array(rows)


@pytest.mark.parametrize("dialect", ["vllm", "echo"])
def test_it_gives_the_most_probable_of_each_place_of_the_completion(server: FakeServer, dialect: str):
    """Off by one, or with the student's prompt, every row would be the distribution of another token, and training would go on well."""
    server.dialects = (dialect,)
    teacher = teacher_of(server)
    assert isinstance(teacher, Teacher)
    said = targets_of(teacher)
    log_p = expected_log_probs()
    best = np.argsort(-log_p)[:, :K]
    assert said.ids.tolist() == best.tolist()
    np.testing.assert_allclose(said.probs.numpy(), np.exp(np.take_along_axis(log_p, best, 1)), rtol=1e-6)
    assert (said.form, said.temperature, said.classes) == ("top_k", 1.0, CLASSES)


class Words:
    """A vocabulary of as many words as the server has tokens."""

    def __len__(self) -> int:
        return CLASSES

    def decode(self, tokens: list[int]) -> str:
        return "".join(f" word{token}" for token in tokens)

    def convert_ids_to_tokens(self, token: int) -> str:
        return f"Ġword{token}"


@pytest.mark.parametrize("dialect", ["vllm", "echo"])
@pytest.mark.parametrize("said", [" word{}", "word{}", "Ġword{}", "\ufffd{}"])
def test_a_server_that_calls_its_tokens_alike_is_taken(server: FakeServer, dialect: str, said: str):
    """Texts and names of tokens differ in spaces alone: refused for these, no server of another make could teach."""
    server.dialects, server.words = (dialect,), said.format
    assert targets_of(teacher_of(server, tokenizer=Words())).ids.shape[1] == K


@pytest.mark.parametrize("dialect", ["vllm", "echo"])
def test_another_vocabulary_of_as_many_tokens_is_refused(server: FakeServer, dialect: str):
    """Every number would be there and mean another word: the student would be taught nonsense with a falling loss."""
    server.dialects, server.words = (dialect,), lambda token: f" word{(token + 1) % CLASSES}"
    with pytest.raises(
        TeacherError, match=r"another vocabulary: of \d+ tokens .*called otherwise .*' word0' / ' word1'"
    ):
        targets_of(teacher_of(server, tokenizer=Words()))


@pytest.mark.parametrize("dialect", ["vllm", "echo"])
def test_where_the_server_names_no_tokens_that_is_said_once(
    server: FakeServer, dialect: str, caplog: pytest.LogCaptureFixture
):
    """A check that could not be made is taken for one that was passed."""
    server.dialects = (dialect,)
    teacher = teacher_of(server, tokenizer=Words())
    targets_of(teacher)
    targets_of(teacher)
    assert caplog.text.count("nothing shows whether 'teacher' has the student's tokenizer") == 1


def test_with_all_tokens_kept_the_loss_is_that_of_the_model_itself(server: FakeServer):
    """The sparse road is exact where nothing is left out: a wrong mass of the rest would show as another KL."""
    said = targets_of(teacher_of(server, k=CLASSES))
    log_p = expected_log_probs()
    student = np.random.default_rng(5).normal(size=log_p.shape)
    log_q = student - np.log(np.exp(student).sum(-1, keepdims=True))
    expected = float((np.exp(log_p) * (log_p - log_q)).sum())
    rows: Any = {"labels": torch.zeros(len(log_p), dtype=torch.int64), "ids": torch.arange(len(log_p))}
    found, count = KL()(Signals(Logits(torch.tensor(student, dtype=torch.float32))), Signals(said), rows)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    assert float(count) == len(log_p)


def test_the_texts_are_sent_as_numbers_and_in_bounded_requests(server: FakeServer, monkeypatch: pytest.MonkeyPatch):
    """A text that the server cuts into tokens again may become other tokens; one request for a whole set would never be answered."""
    from tutelage.teachers import remote

    monkeypatch.setattr(remote, "_TEXTS", 2)
    teacher = teacher_of(server)
    said = targets_of(teacher)
    asked = [body["prompt"] for body in server.asked[1:]]
    assert asked == [[TAUGHT[0] + COMPLETIONS[0], TAUGHT[1] + COMPLETIONS[1]], [TAUGHT[2] + COMPLETIONS[2]]]
    assert len(said.ids) == sum(map(len, COMPLETIONS))


def test_choices_in_another_order_are_put_right(server: FakeServer):
    """Servers answer as they finish: by position, an example would be taught another one's tokens."""
    straight = targets_of(teacher_of(server))
    server.change = lambda answer, asked: {**answer, "choices": answer["choices"][::-1]}
    assert torch.equal(targets_of(teacher_of(server)).ids, straight.ids)


Damage = Callable[[dict[str, Any]], Any]


def entry(place: int, rank: int, value: Any) -> Damage:
    """Another log-probability at a place of the last text, for the token of that rank."""

    def damage(choice: dict[str, Any]) -> None:
        entries = choice["prompt_logprobs"][place]
        token = next(token for token, said in entries.items() if said["rank"] == rank)
        entries[token]["logprob"] = value

    return damage


def dropped(choice: dict[str, Any]) -> None:
    entries, token = choice["prompt_logprobs"][8], "13"
    for other in [other for other in entries if other != token][:2]:
        del entries[other]


def best_left_out(choice: dict[str, Any]) -> None:
    entries = choice["prompt_logprobs"][8]
    del entries[next(token for token, said in entries.items() if said["rank"] == 1)]


def shifted(choice: dict[str, Any]) -> None:
    choice["prompt_logprobs"] = [None, None, *choice["prompt_logprobs"][1:-1]]


def cut_off(choice: dict[str, Any]) -> None:
    choice["prompt_logprobs"], choice["prompt_token_ids"] = (
        choice["prompt_logprobs"][1:],
        choice["prompt_token_ids"][1:],
    )


def other_token(choice: dict[str, Any]) -> None:
    choice["prompt_token_ids"] = [*choice["prompt_token_ids"][:-1], 17]


def foreign(choice: dict[str, Any]) -> None:
    entries = choice["prompt_logprobs"][8]
    token = next(token for token, said in entries.items() if said["rank"] == 1 and token != "13")
    entries[str(CLASSES)] = entries.pop(token)


def none_there(choice: dict[str, Any]) -> None:
    choice["prompt_logprobs"][8] = None


def by_text(choice: dict[str, Any]) -> None:
    entries = choice["prompt_logprobs"][8]
    entries[" cat"] = entries.pop(next(token for token in entries if token != "13"))


DAMAGES: dict[str, tuple[Damage, str]] = {
    "NaN": (entry(8, 1, math.nan), r"token 8 \(13\): a log-probability is nan"),
    "null": (entry(8, 2, None), r"missing \(null\)"),
    "−∞": (entry(8, 2, -math.inf), "-inf"),
    "a text": (entry(8, 2, "-1.5"), "'-1.5'"),
    "vLLM's clamped −∞": (entry(8, 2, -9999.0), r"-9999, which stands for one that was masked or clamped"),
    "another server's": (entry(8, 2, -100.0), r"-100, which stands for"),
    "above 0": (entry(8, 2, 0.7), "is 0.7: expected a finite number of at most 0"),
    "a sum above 1": (entry(8, 2, -0.05), "sum to 1.*more than 1"),
    "a probable one left out": (best_left_out, "more left over"),
    "too few": (dropped, rf"gave \d log-probabilities of {K}"),
    "one place missing": (none_there, f"gave 0 log-probabilities of {K}"),
    "moved by one": (shifted, "does not have the token 3[0-9] at its own place"),
    "another number of tokens": (cut_off, "at its own place|answered about 10 tokens, 11 were asked about"),
    "other tokens": (other_token, "token 10 is 1 and the server read 17"),
    "a token that the student lacks": (foreign, "none of the student's 40"),
    "tokens by their texts": (by_text, "names the token ' cat' by its text"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_no_probability_is_refused_and_the_example_named(server: FakeServer, name: str):
    """Each would be stored, or learnt, as the teacher's answer; a NaN ends a training, all the others bend it silently."""
    damage, words = DAMAGES[name]

    def change(answer: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
        if len(answer["choices"]) == 3:
            answer = copy.deepcopy(answer)
            damage(answer["choices"][2])
        return answer

    server.change = change
    with pytest.raises(TeacherError, match=words) as caught:
        teacher_of(server).signals(BATCH)
    assert hex_id(int(BATCH["ids"][2])) in str(caught.value) or "first row 7" in str(caught.value)


def test_a_token_that_the_teacher_thinks_impossible_is_no_fault(server: FakeServer):
    """Beside the most probable a server always gives the text's own token: masked there, it is one of the rest, and no error."""
    straight = targets_of(teacher_of(server))

    def change(answer: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
        if len(answer["choices"]) == 3:
            assert answer["choices"][2]["prompt_logprobs"][8]["13"]["rank"] > K
            answer["choices"][2]["prompt_logprobs"][8]["13"]["logprob"] = -9999.0
        return answer

    server.change = change
    assert torch.equal(targets_of(teacher_of(server)).probs, straight.probs)


def test_echoed_tokens_that_are_not_those_asked_about_are_refused(server: FakeServer):
    """A server that puts a beginning-of-text token in front of the prompt moves all by one, and the dialect has no other sign of it."""
    server.dialects = ("echo",)

    def change(answer: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
        for choice in answer["choices"] if len(answer["choices"]) == 3 else []:
            said = choice["logprobs"]
            said["tokens"] = ["token_id:0", *said["tokens"][:-1]]
            said["top_logprobs"] = [None, *said["top_logprobs"][:-1]]
        return answer

    server.change = change
    with pytest.raises(TeacherError, match="token 0 is 2 and the server read 0"):
        teacher_of(server).signals(BATCH)


@pytest.mark.parametrize("numbers", [[0, 0, 1], [0, 1], [1, 2, 3], [0, 1, None]])
def test_choices_that_are_not_one_a_text_are_refused(server: FakeServer, numbers: list[Any]):
    """Two answers to one text mean none to another, whose rows would be filled with whatever came next."""

    def change(answer: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
        if len(answer["choices"]) == 3:
            answer["choices"] = [{**c, "index": n} for c, n in zip(answer["choices"], numbers, strict=False)]
        return answer

    server.change = change
    with pytest.raises(TeacherError, match=r"choices .* for 3 texts"):
        teacher_of(server).signals(BATCH)


def test_a_server_without_log_probabilities_of_given_tokens_is_refused_at_once(server: FakeServer):
    """Servers that ignore what they do not know answer well and say nothing: that must not be found out in the middle."""
    server.dialects = ()
    with pytest.raises(TeacherError, match=r"no log-probabilities of given tokens .*vllm: .*echo: "):
        teacher_of(server).signals(BATCH)


def test_a_server_that_refuses_one_dialect_is_asked_in_the_other(server: FakeServer):
    """A strict server answers 400 to vLLM's own parameters, and serves the older form well."""
    server.troubles = [("status", 400, {}, {"error": {"message": "unknown field prompt_logprobs"}})]
    server.dialects = ("echo",)
    assert len(targets_of(teacher_of(server)).ids) == 10


def test_another_model_that_answers_is_refused(server: FakeServer):
    """A gateway that falls back to another model says so in ``model`` and nowhere else."""
    teacher = teacher_of(server)
    teacher.signals(BATCH)
    server.change = lambda answer, asked: {**answer, "model": "smaller"}
    with pytest.raises(TeacherError, match="'teacher' was asked and 'smaller' answered"):
        teacher.signals(BATCH)


def test_another_build_in_the_middle_is_refused(server: FakeServer):
    """Half of the labels would be of one quantisation or version, half of another."""
    teacher = teacher_of(server)
    teacher.signals(BATCH)
    server.fingerprint = "fp-2"
    with pytest.raises(TeacherError, match="fingerprint was 'fp-1' and is 'fp-2'"):
        teacher.signals(BATCH)


def test_a_model_that_is_not_served_is_named_with_those_that_are(server: FakeServer):
    """The first model that is there would otherwise do, for servers that ignore the name."""
    with pytest.raises(TeacherError, match=r"no model 'other' .there are: 'teacher'"):
        _ = teacher_of(server, model="other").identity


def test_the_recorded_identity_is_held_against_the_server(server: FakeServer):
    """A labelling that goes on next week goes on with whatever is served then."""
    recorded = teacher_of(server).identity
    assert teacher_of(server, identity=recorded).identity == recorded
    server.root = "models/teacher-v2"
    with pytest.raises(TeacherError, match="root was 'models/teacher' and is 'models/teacher-v2'"):
        teacher_of(server, identity=recorded).signals(BATCH)


@pytest.mark.parametrize("what", ["root", "seed"])
def test_after_an_interruption_the_model_is_looked_at_again(server: FakeServer, what: str):
    """A server that was started again with other weights under the same name gives no sign of it but its answers."""
    teacher = teacher_of(server)
    before = targets_of(teacher)
    server.troubles = [("drop",)]
    assert torch.equal(targets_of(teacher).ids, before.ids), "the same model may go on"
    server.troubles = [("drop",)]
    setattr(server, what, {"root": "models/new", "seed": 1}[what])
    with pytest.raises(TeacherError, match=r"root was|gives other probabilities"):
        teacher.signals(BATCH)


def test_other_inputs_than_prompts_and_completions_are_refused():
    """A classifier's batch has no tokens to ask about; the message says what to use."""
    teacher = RemoteTeacher("http://localhost:9", "teacher", classes=5)
    with pytest.raises(TeacherError, match="no prompts and completions"):
        teacher.signals(TransferSet(torch.randn(2, 3)).batch(torch.arange(2)))


@pytest.mark.parametrize("wrong", [{"k": 0}, {"classes": 1}, {"dialect": "other"}])
def test_numbers_that_mean_nothing_are_refused(wrong: dict[str, Any]):
    """k = 0 would ask a server for nothing and learn from nothing."""
    with pytest.raises(ConfigError):
        RemoteTeacher("http://localhost:9", "teacher", **{"classes": 5, **wrong})


def test_the_same_model_at_another_address_is_the_same_teacher(server: FakeServer):
    """A port that changes with each start would make each labelling another one's; an address in a record tells of a network."""
    with serving() as second:
        facts = [teacher_fact(teacher_of(one)) for one in (server, second)]
        identities = [teacher_identity(teacher_of(one)) for one in (server, second)]
        assert facts[0] == facts[1] == "RemoteTeacher, model teacher, root models/teacher, fingerprint fp-1"
        assert identities[0] == identities[1]
        second.fingerprint = "fp-2"
        assert teacher_fact(teacher_of(second)) != facts[0]
        assert teacher_identity(teacher_of(second)) != identities[0]
        assert teacher_identity(teacher_of(server, k=K + 1)) != identities[0]
    assert "127.0.0.1" not in facts[0] + identities[0]
