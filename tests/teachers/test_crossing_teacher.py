"""A teacher of another vocabulary: what it says of each of the student's tokens."""

import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tutelage import TransferSet
from tutelage.data import Batch, Completions, rows_of
from tutelage.data.language.crossing import Crossing
from tutelage.data.language.token_bytes import token_bytes
from tutelage.errors import ConfigError, ObjectiveError, TeacherError
from tutelage.objectives import KL, CrossEntropy, UniversalLogitDistance
from tutelage.ragged import Ragged
from tutelage.signals import SORTED, Logits, Signals, whole
from tutelage.teachers import crossing as room
from tutelage.teachers.crossing import CrossTokenizerTeacher, SortedTeacher

sys.path.append(str(Path(__file__).parents[1] / "data" / "language"))

from vocabularies import TEXTS, byte_level, ended, of_merges, pieces_with_space

SMALL, LARGE, SPACED = byte_level(300), byte_level(420), pieces_with_space()


class Drawn:
    """A teacher that gives drawn logits for the tokens it is asked about, and remembers them."""

    def __init__(self, classes: int, dtype: torch.dtype = torch.float64) -> None:
        self.classes, self.dtype = classes, dtype
        self.rows: list[Tensor] = []

    def signals(self, batch: Batch) -> Signals:
        labels = rows_of(batch)["labels"]
        assert "teacher" not in batch
        generator = torch.Generator().manual_seed(len(labels))
        logits = 3 * torch.randn(len(labels), self.classes, generator=generator, dtype=torch.float64)
        self.rows = list(labels)
        self.logits = logits.to(self.dtype)
        return Signals(Logits(self.logits))


def batch_of(student, teacher, texts=TEXTS) -> Batch:
    mine, theirs = ([ended(tokenizer, text) for text in texts] for tokenizer in (student, teacher))
    prompts = [[1 + place] for place in range(len(texts))]
    completions = Completions(Ragged.of(prompts), Ragged.of(mine), Ragged.of(prompts), Ragged.of(theirs))
    return TransferSet.of_completions(completions).batch(torch.arange(len(texts)))


def said_of(teacher, batch: Batch) -> Tensor:
    scores = teacher.signals(batch).logits
    assert scores is not None
    return whole(scores, "").at(1.0)


def reference(student, teacher, text: str, logits: Tensor) -> Tensor:
    """Every row of one text by its definition: all that the teacher could have written instead, cut by the student's tokenizer."""
    texts, said = token_bytes(student, [student.eos_token_id]), token_bytes(teacher, [teacher.eos_token_id])
    mine, theirs = ended(student, text), ended(teacher, text)
    whole_text = b"".join(texts[number] or b"" for number in mine)
    ends, said_ends = ([sum(len(each[n] or b"") for n in tokens[:i]) for i in range(len(tokens) + 1)]
                       for each, tokens in ((texts, mine), (said, theirs)))  # fmt: skip
    probs = torch.softmax(logits, dim=-1)
    rows = torch.zeros(len(mine), len(student), dtype=torch.float64)
    for row in range(len(mine)):
        start, end = ends[row], ends[row + 1]
        met = max(at for at in ends if at <= start and at in said_ends)
        first = max(place for place, at in enumerate(said_ends) if at <= start)
        so_far = tuple(mine[ends.index(met) : row])
        mass = 1.0
        for place in range(first, len(theirs)):
            before = whole_text[met : said_ends[place]] if place == first else whole_text[start : said_ends[place]]
            for number, written in enumerate(said):
                if number == theirs[place] or written is None:
                    continue
                line = before + written
                if place == first:
                    need = whole_text[met:start]
                    pieces = cut(student, texts, line)
                    if not line.startswith(need) or len(line) == len(need) or tuple(pieces[: len(so_far)]) != so_far:
                        continue
                    piece = pieces[len(so_far) : len(so_far) + 1]
                else:
                    longer = any(each and len(each) > len(before) and line.startswith(each) for each in texts)
                    piece = cut(student, texts, line if longer else before)[:1]
                if piece:
                    rows[row, piece[0]] += mass * probs[place, number]
            mass *= float(probs[place, theirs[place]])
            if said_ends[place + 1] >= end:
                rows[row] += beyond(
                    student, (texts, said), (whole_text[start:], mine[row]), theirs, place, probs, mass, met == start
                )
                break
    return rows / rows.sum(1, keepdim=True)


def beyond(student, vocabularies, text, theirs, place, probs, mass, met) -> Tensor:
    """What is left on the teacher's path behind a label: the label's, but for longer tokens that the teacher does not have."""
    (texts, said), (rest, label) = vocabularies, text
    row = torch.zeros(len(student), dtype=torch.float64)
    done = b"".join(said[number] or b"" for number in theirs[: place + 1])
    before = rest[: len(rest) - len(b"".join(said[number] or b"" for number in theirs[place + 1 :]))]
    longer = [
        each for each in texts if each and len(each) > len(before) and each.startswith(before) and each not in said
    ]
    followed = [n for n, each in enumerate(said) if each and any((before + each).startswith(k) for k in longer)]
    if not met or place + 1 == len(theirs) or not followed:
        row[label] = mass
        return row
    assert done.endswith(before)
    for number in range(len(said)):
        if number != theirs[place + 1] and said[number] is not None:
            piece = cut(student, texts, before + (said[number] or b""))[0] if number in followed else label
            row[piece] += mass * probs[place + 1, number]
    mass *= float(probs[place + 1, theirs[place + 1]])
    return row + beyond(student, vocabularies, text, theirs, place + 1, probs, mass, met)


def cut(tokenizer, texts, line: bytes) -> list[int]:
    """The tokenizer's own tokens of a line; of half a letter, the longest first."""
    if line in (b"\xffend", b"\xff<mark>"):
        return [texts.index(line)] if line in texts else []
    try:
        return tokenizer.encode(line.decode(), add_special_tokens=False)
    except UnicodeDecodeError:
        found: list[int] = []
        while line:
            length = max(size for size in range(1, len(line) + 1) if line[:size] in texts)
            found, line = [*found, texts.index(line[:length])], line[length:]
        return found


@pytest.mark.parametrize("pair", [(SMALL, LARGE), (LARGE, SMALL)], ids=["to small", "to large"])
@pytest.mark.parametrize("text", TEXTS[:3])
def test_every_row_is_what_the_teacher_could_have_written_cut_anew(pair, text: str) -> None:
    """A wrong range, a mass given twice, or a label left out, and the student learns a distribution that nobody gave."""
    student, teacher = pair
    drawn = Drawn(len(teacher))
    found = said_of(CrossTokenizerTeacher(drawn, Crossing(student, teacher)), batch_of(student, teacher, [text]))
    torch.testing.assert_close(found.exp(), reference(student, teacher, text, drawn.logits), rtol=1e-9, atol=1e-12)


def test_the_same_vocabulary_gives_the_teachers_own_distributions() -> None:
    """Where there is nothing to carry over, nothing may change."""
    drawn = Drawn(len(LARGE))
    batch = batch_of(LARGE, LARGE)
    found = said_of(CrossTokenizerTeacher(drawn, Crossing(LARGE, LARGE)), batch)
    torch.testing.assert_close(found, drawn.logits.log_softmax(-1))


@pytest.mark.parametrize("pair", [(SMALL, LARGE), (LARGE, SMALL), (LARGE, SPACED), (SPACED, SMALL)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_distributions_in_which_the_label_has_a_part(pair, dtype: torch.dtype) -> None:
    """A row that sums to less would teach the student to be unsure; a label of probability 0 has no place in a divergence."""
    student, teacher = pair
    batch = batch_of(student, teacher)
    found = said_of(CrossTokenizerTeacher(Drawn(len(teacher) + 8, dtype), Crossing(student, teacher), 512), batch)
    labels = rows_of(batch)["labels"]
    assert found.shape == (len(labels), 512)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(len(labels)))
    assert bool((found.gather(1, labels[:, None]) > -torch.inf).all())
    assert bool((found[:, len(student) :] == -torch.inf).all())


def test_how_many_rows_at_a_time_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that goes on in the next block would lose its mass."""
    batch, crossing = batch_of(LARGE, SMALL), Crossing(LARGE, SMALL)
    whole_batch = said_of(CrossTokenizerTeacher(Drawn(len(SMALL)), crossing), batch)
    monkeypatch.setattr(room, "_ROWS", 3)
    torch.testing.assert_close(said_of(CrossTokenizerTeacher(Drawn(len(SMALL)), crossing), batch), whole_batch)


class Source:
    """A teacher that writes one of some texts, as its tokenizer cuts them: next tokens are counted, not guessed."""

    def __init__(self, texts: dict[str, float], tokenizer) -> None:
        self.classes = len(tokenizer)
        self.texts = [(tuple(ended(tokenizer, text)), share) for text, share in texts.items()]

    def after(self, before: tuple[int, ...]) -> Tensor:
        found: Counter[int] = Counter()
        for tokens, share in self.texts:
            if tokens[: len(before)] == before and len(tokens) > len(before):
                found[tokens[len(before)]] += share  # pyright: ignore[reportArgumentType]
        row = torch.zeros(self.classes, dtype=torch.float64)
        for token, share in found.items():
            row[token] = share
        return row / row.sum()

    def signals(self, batch: Batch) -> Signals:
        given = batch.get("completions")
        assert given is not None
        rows = [self.after(tuple(own[:n])) for own in given.completions.lists() for n in range(len(own))]
        return Signals(Logits(torch.stack(rows).log()))


LANGUAGE = {"ab": 0.5, "ac": 0.25, "b": 0.25}


def test_a_label_longer_than_the_teachers_tokens_has_the_product_along_the_path() -> None:
    """By hand: of ab, ac and b the teacher writes letters, the student ab at once. P(ab) = ¾ · ⅔."""
    student, teacher = of_merges([("a", "b")]), of_merges([])
    found = said_of(
        CrossTokenizerTeacher(Source(LANGUAGE, teacher), Crossing(student, teacher)),
        batch_of(student, teacher, list(LANGUAGE)),
    ).exp()
    truth = torch.tensor([0.25, 0.25, 0.0, 0.5], dtype=torch.float64)  # a, b, c, ab
    torch.testing.assert_close(found[0, 1:5], truth)
    torch.testing.assert_close(found[2, 1:5], truth)  # "ac": what follows a is known there too
    # in front of "b" the teacher was not asked what follows a: all of it is taken for the student's a
    torch.testing.assert_close(found[5, 1:5], torch.tensor([0.75, 0.25, 0.0, 0.0], dtype=torch.float64))


def test_inside_a_teachers_token_rows_are_right_on_average() -> None:
    """By hand: the student writes letters, the teacher ab at once. One row knows more than it could, all together no more."""
    student, teacher = of_merges([]), of_merges([("a", "b")])
    source = Source(LANGUAGE, teacher)
    found = said_of(
        CrossTokenizerTeacher(source, Crossing(student, teacher)), batch_of(student, teacher, list(LANGUAGE))
    ).exp()
    # row 0 of "ab", "ac" and "b": exact
    for row in (0, 3, 6):
        torch.testing.assert_close(found[row, 1:4], torch.tensor([0.75, 0.25, 0.0], dtype=torch.float64))
    torch.testing.assert_close(found[1, 1:4], torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(found[4, 1:4], torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
    after_a = (LANGUAGE["ab"] * found[1] + LANGUAGE["ac"] * found[4]) / (LANGUAGE["ab"] + LANGUAGE["ac"])
    torch.testing.assert_close(after_a, Source(LANGUAGE, student).after((1,)))


def test_markers_that_the_student_does_not_have_are_left_out() -> None:
    """Their mass would go to the student's letters of the same name, or leave a row short."""
    student, teacher = of_merges([]), SMALL
    drawn = Drawn(len(teacher))
    found = said_of(CrossTokenizerTeacher(drawn, Crossing(student, teacher)), batch_of(student, teacher, ["a"])).exp()
    probs = drawn.logits.softmax(-1)
    assert float(found[0, 0]) == pytest.approx(float(probs[0, 0] / (1 - probs[0, 1])))


def test_refused() -> None:
    """Each would be a distribution over other tokens than the student's."""
    crossing = Crossing(SMALL, LARGE)
    with pytest.raises(ConfigError, match="tokenizer 300 tokens"):
        CrossTokenizerTeacher(Drawn(420), crossing, 299)
    teacher = CrossTokenizerTeacher(Drawn(420), crossing)
    mine = Completions(Ragged.of([[1]]), Ragged.of([ended(SMALL, "the wall")]))
    with pytest.raises(TeacherError, match="no completions in the teacher's vocabulary"):
        teacher.signals(TransferSet.of_completions(mine).batch(torch.arange(1)))
    other = Completions(mine.prompts, mine.completions, mine.prompts, Ragged.of([ended(LARGE, "the wind")]))
    with pytest.raises(TeacherError, match=r"id [0-9a-f]{16}.*not the same text"):
        teacher.signals(TransferSet.of_completions(other).batch(torch.arange(1)))
    with pytest.raises(TeacherError, match="of 360 classes for"):
        CrossTokenizerTeacher(Drawn(360), crossing).signals(batch_of(SMALL, LARGE))


def test_sorted_rows_stand_where_tokens_of_both_begin() -> None:
    """A row further on would be how sure the teacher is of another word."""
    drawn, crossing, batch = Drawn(len(LARGE) + 5), Crossing(SMALL, LARGE), batch_of(SMALL, LARGE, TEXTS[:2])
    said = SortedTeacher(drawn, crossing).with_features([SORTED]).signals(batch)
    assert said.logits is None
    expected = torch.zeros(len(rows_of(batch)["labels"]), len(LARGE), dtype=torch.float64)
    first = [0, 0]
    for text in TEXTS[:2]:
        lengths = [[len(t) for t in (tok.decode([n]) for n in tok.encode(text))] for tok in (SMALL, LARGE)]
        starts = [[sum(each[:i]) for i in range(len(each) + 1)] for each in lengths]
        for row, at in enumerate(starts[0]):
            if at in starts[1]:
                probs = drawn.logits[first[1] + starts[1].index(at), : len(LARGE)].softmax(-1)
                expected[first[0] + row] = probs.sort(descending=True).values
        first = [first[0] + len(starts[0]), first[1] + len(starts[1])]
    torch.testing.assert_close(said.features[SORTED], expected)
    with pytest.raises(TeacherError, match=r"'layers\.1'"):
        SortedTeacher(drawn, crossing).with_features([SORTED, "layers.1"])


def test_an_objective_takes_the_right_use_and_refuses_the_wrong_one() -> None:
    """Sorted probabilities met by a divergence would teach token 0 to be the likeliest everywhere."""
    batch, crossing = batch_of(SMALL, LARGE), Crossing(SMALL, LARGE)
    rows = rows_of(batch)
    student = Signals(Logits(torch.zeros(len(rows["labels"]), len(SMALL))))
    sorted_said = SortedTeacher(Drawn(len(LARGE)), crossing).signals(batch)
    carried = CrossTokenizerTeacher(Drawn(len(LARGE)), crossing).signals(batch)
    blend = UniversalLogitDistance() + CrossEntropy()
    blend.check(student, sorted_said, rows)
    (KL() + CrossEntropy()).check(student, carried, rows)
    with pytest.raises(ObjectiveError, match=r"needs teacher\.logits"):
        (KL() + CrossEntropy()).check(student, sorted_said, rows)
    with pytest.raises(ObjectiveError, match="sorted probabilities"):
        blend.check(student, carried, rows)
