"""Two vocabularies over one text: bytes of tokens, where they meet, what each of the teacher's begins with."""

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from vocabularies import TEXTS, byte_level, ended, of_merges, pieces_with_space

from tutelage.data import Completions
from tutelage.data.language.crossing import Crossing
from tutelage.data.language.same_text import same_text
from tutelage.data.language.token_bytes import END, NO_TEXT, token_bytes
from tutelage.errors import ConfigError, DataError
from tutelage.ragged import Ragged

SMALL, LARGE, SPACED = byte_level(300), byte_level(420), pieces_with_space()


@pytest.mark.parametrize("tokenizer", [SMALL, LARGE, SPACED], ids=["small", "large", "spaced"])
@pytest.mark.parametrize("text", TEXTS)
def test_the_bytes_of_a_texts_tokens_are_the_text(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    """One letter's byte mistaken, in an accent or an emoji, and every row after it would meet another text's row."""
    found = token_bytes(tokenizer, [tokenizer.eos_token_id])
    joined = b"".join(found[number] or b"" for number in ended(tokenizer, text))
    put = b" " if tokenizer is SPACED and not text.startswith(" ") else b""
    assert joined == put + text.encode() + END


def test_markers_are_no_text() -> None:
    """A chat's marker taken for its letters would be joined with the text around it."""
    found = token_bytes(SMALL, [0])
    assert found[0] == END
    assert found[1] == NO_TEXT + b"<mark>"


def test_tokenizers_that_do_not_keep_the_text_are_refused() -> None:
    """Lower-cased tokens would be aligned with text that is nowhere, up to the first capital, and wrong from there."""
    lower = Tokenizer.from_str(SMALL.backend_tokenizer.to_str())
    lower.normalizer = normalizers.Lowercase()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=lower, eos_token="<eos>")
    with pytest.raises(ConfigError, match=r"'the quick fox.*alignment: text"):
        Crossing(SMALL, wrapped)
    words = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ConfigError, match="does not say what text"):
        Crossing(PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>"), SMALL)
    with pytest.raises(ConfigError, match="no fast tokenizer"):
        Crossing(SMALL, type("Slow", (), {"eos_token_id": 0, "__len__": lambda _: 9})())


def test_an_end_is_needed() -> None:
    """Without one the teacher's wish to stop would be left out, and the student never learn to."""
    endless = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(SMALL.backend_tokenizer.to_str()))
    with pytest.raises(ConfigError, match="student's ends"):
        Crossing(endless, SMALL)
    assert int(Crossing(endless, SMALL, student_ends=[1]).first[0]) == 1
    with pytest.raises(ConfigError, match="teacher's ends"):
        Crossing(SMALL, SMALL, teacher_ends=[300])


@pytest.mark.parametrize("pair", [(SMALL, LARGE), (LARGE, SMALL), (SPACED, LARGE), (LARGE, SPACED)])
@pytest.mark.parametrize("text", TEXTS)
def test_each_row_begins_where_a_walk_through_the_bytes_says(
    pair: tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast], text: str
) -> None:
    """A step too few or too many gives a row another token's distribution, and nothing else would show it."""
    student, teacher = pair
    crossing = Crossing(student, teacher)
    mine, theirs = ended(student, text), ended(teacher, text)
    steps = crossing.steps(torch.tensor(mine), torch.tensor(theirs))
    # in bytes of the text itself: a space that a tokenizer puts before it begins at −1
    ends = [_ends(student, mine, text), _ends(teacher, theirs, text)]
    start = ends[0][0]
    for row, end in enumerate(ends[0][1:]):
        own = [step for step in steps if step.row == row]
        begun = [place for place, at in enumerate(ends[1][:-1]) if at <= start]
        first = begun[-1] if begun else 0
        last = next(place for place, at in enumerate(ends[1][1:]) if at >= end)
        # behind the label only what could still have become another first token
        last = max(last, own[-1].said) if begun and ends[1][first] == start else last
        assert [step.said for step in own] == list(range(first, last + 1))
        assert [step.token for step in own] == theirs[first : last + 1]
        assert [step.label for step in own] == [None] * (len(own) - 1) + [mine[row]]
        assert [step.choices is None for step in own] == [
            place == first and ends[1][place] == start for place in range(first, last + 1)
        ]
        start = end


def _ends(tokenizer: PreTrainedTokenizerFast, tokens: list[int], text: str) -> list[int]:
    texts = token_bytes(tokenizer, [tokenizer.eos_token_id])
    found = [-1 if tokenizer is SPACED and not text.startswith(" ") else 0]
    for number in tokens:
        found.append(found[-1] + len(texts[number] or b""))
    return found


def test_what_follows_is_known_by_letters() -> None:
    """Worked by hand: the teacher writes a, b, c, ab and the student a, b, c, bc, abc."""
    student, teacher = of_merges([("b", "c"), ("a", "bc")]), of_merges([("a", "b")])
    crossing = Crossing(student, teacher)
    assert crossing.first[:5].tolist() == [0, 1, 2, 3, 1]  # ab is cut into a, b
    after = crossing.after(b"ab")
    assert (after.tokens.tolist(), after.pieces.tolist(), after.other) == ([3], [5], 1)  # abc, else a
    inside = Crossing(teacher, student).inside(b"", (4,), b"ab")
    assert (inside.tokens.tolist(), inside.pieces.tolist(), inside.other) == ([5], [3], None)  # of abc there is c left


def test_the_same_vocabulary_is_carried_over_as_it_is() -> None:
    """Some tokens are never written by the tokenizer itself, and would otherwise be cut anew."""
    assert Crossing(LARGE, LARGE).first.tolist() == list(range(len(LARGE)))


def test_another_text_is_refused() -> None:
    """The rows behind the difference would meet those of other words."""
    crossing = Crossing(SMALL, LARGE)
    with pytest.raises(DataError, match=r"after 5 bytes the student's goes on with 'all<end>'.*'ind<end>'"):
        crossing.steps(torch.tensor(ended(SMALL, "the wall")), torch.tensor(ended(LARGE, "the wind")))
    with pytest.raises(DataError, match="end after 4 bytes"):
        crossing.steps(torch.tensor(ended(SMALL, "the wall")), torch.tensor(LARGE.encode("the ")))
    with pytest.raises(DataError, match="stands for no text in the teacher's"):
        crossing.steps(torch.tensor(ended(SMALL, "the")), torch.tensor([len(LARGE)]))


def _cut(student: list[int], teacher: list[int]) -> Completions:
    return Completions(Ragged.of([[7]]), Ragged.of([student]), Ragged.of([[8, 9]]), Ragged.of([teacher]))


def test_a_length_in_tokens_is_brought_to_the_same_text() -> None:
    """The student's last rows would otherwise have no answer, and a whole corpus of long texts be refused."""
    crossing = Crossing(SMALL, LARGE)
    mine, theirs = ended(SMALL, TEXTS[0]), ended(LARGE, TEXTS[0])
    short = same_text(_cut(mine, theirs[:3]), crossing)
    crossing.steps(short.completions[0], theirs_of(short)[0])
    end = len(LARGE.decode(theirs[:3]))
    assert len(SMALL.decode(short.completions[0])) <= end < len(SMALL.decode(mine[: len(short.completions[0]) + 1]))
    whole = same_text(_cut(mine, theirs), crossing)
    assert whole.completions[0].tolist() == mine
    assert theirs_of(whole)[0].tolist() == theirs
    assert whole.prompts[0].tolist() == [7]


def test_first_tokens_taken_for_prompts_are_brought_to_the_same_text() -> None:
    """A text without anything before it gives its first token to the prompt, which is another one in each vocabulary."""
    student, teacher = of_merges([("a", "b")]), of_merges([])
    crossing = Crossing(student, teacher)
    mine, theirs = ended(student, "abcab"), ended(teacher, "abcab")
    found = same_text(_cut(mine[1:], theirs[1:]), crossing)  # c ab . of the student's, b c a b . of the teacher's
    assert found.completions[0].tolist() == mine[1:]
    assert found.prompts_of("teacher")[0].tolist() == [8, 9, theirs[1]]
    assert theirs_of(found)[0].tolist() == theirs[2:]


def test_a_space_put_before_is_no_other_beginning() -> None:
    """Taken for one, the first word of every example would be given up to the prompt."""
    crossing = Crossing(LARGE, SPACED)
    mine, theirs = ended(LARGE, TEXTS[0]), ended(SPACED, TEXTS[0])
    assert same_text(_cut(mine, theirs), crossing).completions[0].tolist() == mine


def test_what_cannot_be_brought_together_is_refused() -> None:
    """An example of two texts, or of no common token, has nothing that could be learnt."""
    crossing = Crossing(SMALL, LARGE)
    with pytest.raises(DataError, match="not the same text"):
        same_text(_cut(ended(SMALL, "walls"), ended(LARGE, "moons")), crossing)
    with pytest.raises(DataError, match="no token left"):
        same_text(_cut(SMALL.encode("the"), LARGE.encode("t")), crossing)
    with pytest.raises(DataError, match="one vocabulary"):
        same_text(Completions(Ragged.of([[1]]), Ragged.of([[2]])), crossing)


def theirs_of(completions: Completions) -> Ragged:
    assert completions.teacher_completions is not None
    return completions.teacher_completions
