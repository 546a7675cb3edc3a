"""What an arm of a language study is called in the record: two arms that differ must not read the same."""

import pytest
from language_tiny import study

from tutelage import KL, CrossEntropy
from tutelage.models.writing import Sampling
from tutelage.studies.language import LanguageArm
from tutelage.studies.language.describing import arm_in_words
from tutelage.training.on_policy import OnPolicy

KD = LanguageArm(KL(temperature=1.0))


def test_each_arm_says_what_it_hears_and_minimises() -> None:
    """Four arms that all read 'trained on the given completions' could not be told apart on the page."""
    reverse = LanguageArm(0.5 * KL(temperature=2.0, direction="reverse") + CrossEntropy())
    made = study(extra_arms={"reverse": reverse, "written_off": LanguageArm(CrossEntropy())})
    said = {arm: made._describe(arm) for arm in ("kd", "sft", "reverse", "written_off")}
    assert said["kd"] == (
        "the student, trained on the given completions; hears the teacher's probabilities of each token, asked as it trains; "
        "minimises forward KL at T = 1"
    )
    assert (
        said["sft"] == "the same student, trained on the given completions without a teacher; minimises cross entropy"
    )
    assert said["reverse"].endswith("minimises 0.5 × reverse KL at T = 2 + cross entropy")


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (1.0, "what it writes itself while it learns; hears the teacher's"),
        (0.5, "the given completions, and in 50% of the batches on what it writes itself; hears the teacher's"),
        (0.0, "the given completions; hears the teacher's"),
    ],
)
def test_on_policy_says_whose_texts_are_read(share: float, said: str) -> None:
    """'The given completions, 100% of the batches with what it wrote itself' contradicts itself."""
    arm = LanguageArm(KL(temperature=1.0), on_policy=OnPolicy(share, Sampling(max_new_tokens=4), eos=[0]))
    assert arm_in_words(arm, "data", "same", stored=False).startswith(said)


def test_how_the_teacher_is_heard() -> None:
    """Of another vocabulary, and from a store, other numbers are heard."""
    assert "read from a store" in arm_in_words(KD, "data", "same", stored=True)
    assert "carried over to the student's vocabulary" in arm_in_words(KD, "data", "crossing", stored=False)
    written = arm_in_words(LanguageArm(CrossEntropy()), "teacher", "text", stored=False)
    assert written.startswith("completions that the teacher wrote; without the teacher's probabilities; minimises")
