"""The examples on WordNet's glosses: it is read as it lies."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
LICENCE = "  1 This software and database is being provided to you, the LICENSEE, by\n"
NOUNS = [
    ("05", "wild_dog", "any of various undomesticated canines", ""),
    ("05", "mutt", "an inferior dog", '; "he keeps a mutt"'),
    ("05", "cur", "an inferior dog", ""),
    ("13", "bread", "food made from dough of flour or meal", ""),
    ("18", "poet", "a writer of poems", ""),
    ("17", "brook", "a natural stream of water", ""),
    ("15", "park", "a large area of land preserved in its natural state", ""),
    ("28", "decade", "a period of 10 years", ""),
    ("03", "entity", "that which is perceived to have its own existence", ""),
]


@pytest.fixture
def wordnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    lines = [
        f"0000{number:04d} {file} n 01 {word} 0 001 @ 00000000 n 0000 | {gloss}{quoted}  \n"
        for number, (file, word, gloss, quoted) in enumerate(NOUNS)
    ]
    (tmp_path / "data.noun").write_text(LICENCE + "".join(lines), encoding="utf-8")
    monkeypatch.setenv("WORDNET", str(tmp_path))
    spec = importlib.util.spec_from_file_location("wordnet_of_the_examples", EXAMPLES / "wordnet.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_glosses_come_without_what_quotes_them_and_once(wordnet: ModuleType) -> None:
    """A gloss that stands twice could be learnt from and tested on; a quoted sentence holds the very word."""
    rows = wordnet.nouns()
    assert [row["word"] for row in rows] == ["wild dog", "mutt", "bread", "poet", "brook", "park", "decade", "entity"]
    assert rows[1] == {"word": "mutt", "gloss": "an inferior dog", "file": 5}


def test_kinds_are_those_of_the_files_and_no_gloss_is_on_both_sides(wordnet: ModuleType) -> None:
    """A kind read from the wrong field would make every score a measure of nothing."""
    learnt, tested = wordnet.kinds(per_kind=1, test_per_kind=1)
    assert {row["kind"] for row in tested} == {"animal", "food", "person", "object", "place", "time"}
    assert [row["kind"] for row in learnt] == ["animal"]
    assert {row["gloss"] for row in learnt}.isdisjoint(row["gloss"] for row in tested)


def test_a_missing_wordnet_is_told_with_how_to_get_it(wordnet: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bare path would tell nobody what to install."""
    monkeypatch.delenv("WORDNET")
    monkeypatch.setattr(wordnet, "FOLDERS", ())
    with pytest.raises(FileNotFoundError, match="apt install wordnet-base"):
        wordnet.nouns()
