"""What the teacher writes: kept with where it came from, filtered with a count, and gone on with where it was cut off."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from language_tiny import KINDS, knowing, tokenizer

from tutelage.data import Ragged
from tutelage.errors import CheckpointError, ConfigError, DataError
from tutelage.models.writing import Sampling, Written
from tutelage.studies.arm import Silent
from tutelage.studies.language import Filters, Generation, generating
from tutelage.studies.language.generating import Generated, expect_a_batch, generate
from tutelage.studies.language.speaking import ModuleSpeaker, choice_tokens

WORDS = [f"b{index}" for index in range(10)]
FACTS = {"teacher": "the one"}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generating, "_SHARD", 4)


class Dictating:
    """Writes what it is told for each stream; notes what it was asked."""

    def __init__(self, text: Callable[[int, int], str], fails_after: int = 10**9) -> None:
        self.text, self.asked, self._left = text, [], fails_after

    def write(self, prompts: Ragged, sampling: Sampling, streams: torch.Tensor) -> Written:
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt
        self.asked += streams.tolist()
        encode = tokenizer().encode
        texts = [self.text(int(prompt[0]), stream) for prompt, stream in zip(prompts, streams.tolist(), strict=True)]
        ended = torch.tensor([text.endswith("<eos>") for text in texts])
        return Written(Ragged.of([encode(text) for text in texts]), ended, 0.1)


def prompts() -> Ragged:
    return Ragged.of([tokenizer().encode(word) for word in WORDS])


def written(folder: Path, writer: Any, generation: Generation, facts: dict[str, Any] = FACTS) -> Generated:
    rows = [{"word": word} for word in WORDS]
    return generate(writer, tokenizer(), prompts(), rows, generation, folder, facts)


def test_what_is_cut_off_goes_on(tmp_path: Path) -> None:
    """Begun anew, hours of writing would be lost; gone on with the wrong stream, some prompts would have the same completions twice."""
    generation = Generation(Sampling(4), n=2, deduplicate=False)
    say = lambda token, stream: f"beast {WORDS[stream % 10]} <eos>"  # noqa: E731
    whole = written(tmp_path / "whole", Dictating(say), generation)
    with pytest.raises(KeyboardInterrupt):
        written(tmp_path / "cut", Dictating(say, fails_after=2), generation)
    again = Dictating(say)
    resumed = written(tmp_path / "cut", again, generation)
    assert again.asked == list(range(8, 20))
    assert resumed.completions.lists() == whole.completions.lists()
    assert resumed.sources.tolist() == [index // 2 for index in range(20)]
    idle = Dictating(say)
    assert written(tmp_path / "cut", idle, generation).completions.lists() == whole.completions.lists()
    assert idle.asked == []


def test_a_damaged_shard_alone_is_written_again(tmp_path: Path) -> None:
    """A flipped token is learnt by every student; all shards written anew cost as much as the first time."""
    say = lambda token, stream: "meal <eos>"  # noqa: E731
    before = written(tmp_path, Dictating(say), Generation(Sampling(4)))
    part = tmp_path / "part-00001.jsonl"
    part.write_text(part.read_text().replace("meal", "town", 1))
    mending = Dictating(say)
    after = written(tmp_path, mending, Generation(Sampling(4)))
    assert mending.asked == [4, 5, 6, 7]
    assert after.completions.lists() == before.completions.lists()
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        written(tmp_path, mending, Generation(Sampling(4)))


@pytest.mark.parametrize(
    ("facts", "generation"),
    [
        ({"teacher": "another"}, Generation(Sampling(4))),
        (FACTS, Generation(Sampling(4, seed=1))),
        (FACTS, Generation(Sampling(4), filters=Filters(min_tokens=2))),
    ],
)
def test_completions_of_other_settings_are_refused(facts: Any, generation: Generation, tmp_path: Path) -> None:
    """Half of the completions would be another teacher's, and the record would name one of the two."""
    say = lambda token, stream: "meal <eos>"  # noqa: E731
    written(tmp_path, Dictating(say), Generation(Sampling(4)))
    with pytest.raises(CheckpointError, match="now"):
        written(tmp_path, Dictating(say), generation, facts)


def test_another_filter_of_the_same_name_is_another_filter(tmp_path: Path) -> None:
    """A filter that was mended after a first look would go on with what it kept before, and mix both where the writing was cut off."""

    def by(lines: str) -> Generation:
        names: dict[str, Any] = {}
        exec(compile(lines, "<filter>", "exec"), names)
        return Generation(Sampling(2), filters=Filters(python=names["keep"], python_digest=lines))

    say = lambda token, stream: "beast <eos>"  # noqa: E731
    every = "def keep(text, row): return True"
    assert len(written(tmp_path, Dictating(say), by(every)).completions) == 10
    assert len(written(tmp_path, Dictating(say), by(every)).completions) == 10
    with pytest.raises(CheckpointError, match="python contents"):
        written(tmp_path, Dictating(say), by("def keep(text, row): return False"))
    one = Filters(python=lambda text, row: True)
    other = Filters(python=lambda text, row: bool(text))
    assert one.describe()["python contents"] != other.describe()["python contents"]


def test_what_is_dropped_is_counted_and_kept_beside(tmp_path: Path) -> None:
    """Dropped without a word, a filter that drops nearly everything would look like little data."""
    texts = ["beast <eos>", "beast", "<eos>", "meal town beast meal <eos>", "town <eos>", *["meal <eos>"] * 5]
    filters = Filters(min_tokens=2, max_tokens=4, python=lambda text, row: "town" not in text and row["word"] != "b9")
    generation = Generation(Sampling(8), n=2, filters=filters)
    found = written(tmp_path, Dictating(lambda token, stream: texts[stream // 2]), generation)
    assert found.manifest["counts"] == {
        "prompts": 10,
        "written": 20,
        "kept": 5,
        "dropped": {"there already": 5, "unfinished": 2, "too short": 2, "too long": 2, "refused": 4},
    }
    assert found.sources.tolist() == [0, 5, 6, 7, 8]
    lines = [json.loads(line) for part in sorted(tmp_path.glob("*.jsonl")) for line in part.read_text().splitlines()]
    assert len(lines) == 20
    assert lines[2]["dropped"] == "unfinished"
    assert found.summary["counts"]["kept"] == 5
    assert "lambda" in found.summary["facts"]["filters"]["python"]


def test_nothing_kept_is_an_error(tmp_path: Path) -> None:
    """An empty transfer set would fail later, as if there were no data."""
    with pytest.raises(DataError, match=r"none of the 10 completions .*10 unfinished"):
        written(tmp_path, Dictating(lambda token, stream: "meal"), Generation(Sampling(4)))


def test_filters_that_drop_nearly_all_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A student of two completions ends with a fine loss and rc 0; only its page would say what it learnt from."""

    class Hearing(Silent):
        def finished(self, what: str, outcome: str) -> None:
            heard.append(outcome)

    heard: list[str] = []

    def of(kept: int, folder: Path, dropping: str = "meal") -> Generated:
        say = Dictating(lambda token, stream: f"beast {stream} <eos>" if stream < kept else dropping)
        how = Generation(Sampling(4), n=2, deduplicate=dropping != "meal")
        return generate(say, tokenizer(), prompts(), [{}] * 10, how, folder, FACTS, Hearing())

    few = of(1, tmp_path / "few")
    assert heard == ["1 of 20 kept (19 unfinished)"]
    assert "less than a tenth" in caplog.text
    with pytest.raises(DataError, match=r"1 of 20 kept \(19 unfinished\), fewer than one batch of 8"):
        expect_a_batch(few, 8)
    caplog.clear()
    expect_a_batch(of(9, tmp_path / "more"), 8)
    assert not caplog.text
    expect_a_batch(of(0, tmp_path / "alike", "meal <eos>"), 11)
    expect_a_batch(few, 21)


def test_one_line_a_completion_whatever_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line separator that JSON does not escape would cut a completion's line in two."""
    monkeypatch.setattr(generating, "texts_of", lambda *_: ["one\u2028two\x85three"] * 4)
    few = Ragged.of([tokenizer().encode(word) for word in WORDS[:4]])
    writer = Dictating(lambda token, stream: "meal <eos>")
    found = generate(writer, tokenizer(), few, [{}] * 4, Generation(Sampling(4)), tmp_path, FACTS)
    assert found.manifest["counts"]["kept"] == 4


def test_a_model_writes_alike_however_it_is_cut_into_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chance by place in a batch would make a resumed run's completions other ones."""
    speaker = ModuleSpeaker(knowing(), tokenizer(), [1], batch_size=3)
    generation = Generation(Sampling(3, temperature=2.0), n=2, deduplicate=False, filters=Filters(finished=False))
    parts = written(tmp_path / "parts", speaker, generation)
    monkeypatch.setattr(generating, "_SHARD", 1000)
    assert written(tmp_path / "one", speaker, generation).completions.lists() == parts.completions.lists()
    assert len({tuple(line) for line in parts.completions.lists()}) > 4


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Generation(Sampling(4, greedy=True), n=2), "one and the same"),
        (lambda: Generation(Sampling(4), n=0), "nothing would be written"),
        (lambda: Filters(min_tokens=5, max_tokens=4), "none could be"),
    ],
)
def test_settings_that_could_not_be_meant(make: Callable[[], Any], said: str) -> None:
    """Equal completions n times over would be paid for n times and learnt once."""
    with pytest.raises(ConfigError, match=said):
        make()


def test_choices_whose_tokens_begin_another_one() -> None:
    """The shorter of two such is at least as likely always: the longer could never be chosen."""
    assert choice_tokens(tokenizer(), KINDS) == [[4], [5], [6]]
    with pytest.raises(ConfigError, match=r"'beast' begin those of 'beast meal'"):
        choice_tokens(tokenizer(), ["beast meal", "beast"])
    with pytest.raises(ConfigError, match="no token"):
        choice_tokens(tokenizer(), ["", "beast"])
