"""Two vocabularies in one study, from a config to its record: what meets, what is measured, what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from language_project import write_project
from tutelage import KL
from tutelage.config import LanguageConfig, load_config
from tutelage.config.language.building import build_language_study
from tutelage.data import Ragged, TransferSet
from tutelage.data.language.token_bytes import END
from tutelage.errors import ConfigError, TutelageError
from tutelage.evaluation.language import token_fidelity
from tutelage.models.sampling import Sampling
from tutelage.objectives import DIST, DKD, CrossEntropy, Divergence, LogitMSE, Term
from tutelage.signals import Logits, Rows, Signals
from tutelage.studies import Labels
from tutelage.studies.arm import Silent
from tutelage.studies.label_binds import teacher_fact
from tutelage.studies.language import LanguageStudy, Split, costing
from tutelage.studies.language.meeting import crossing_of
from tutelage.studies.language.work import begin
from tutelage.studies.teaching import teacher_identity
from tutelage.teachers.crossing import CrossTokenizerTeacher, SortedTeacher
from tutelage.training.on_policy import OnPolicy

#: A teacher that has learnt to write words, and two vocabularies over the same bytes.
MODELS = '''

from functools import cache


@cache
def _knowing():
    words = long_pieces()
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = _model(1, 274)
    texts = [f"<user>{a} {b} thing<end><bot>{sort}<end>" for a in ("small", "large", "old") for b in ("small", "large") for sort in
             ("animal", "food", "place")]
    asked = [torch.tensor([words.encode(text)]) for text in texts]
    optimiser = torch.optim.Adam(model.parameters(), 0.02)
    for step in range(120):
        loss = model(input_ids=asked[step % len(asked)], labels=asked[step % len(asked)]).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def other_pieces():
    """The short pieces with two letters' numbers exchanged: each text has as many tokens."""
    import json
    described = json.loads(short_pieces().backend_tokenizer.to_str())
    numbers = described["model"]["vocab"]
    numbers["a"], numbers["e"] = numbers["e"], numbers["a"]
    made = Tokenizer.from_str(json.dumps(described))
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", pad_token="<pad>", additional_special_tokens=MARKS[3:])
    fast.chat_template = TEMPLATE
    return fast


def three_turned():
    return tokenizer(swap=("eats", "walks", "eats", "cut"))


def knowing():
    import copy
    return copy.deepcopy(_knowing())
'''
TWO = (
    "student={model: {python: 'models.py:wide_student'}, tokenizer: 'models.py:short_pieces'}",
    "teacher={model: {python: 'models.py:knowing'}, tokenizer: 'models.py:long_pieces', alignment: ALIGNMENT}",
    "data.max_length=112",
    "training={max_steps: 4, per_device_train_batch_size: 4, learning_rate: 0.01, eval_strategy: 'no', save_strategy: 'no'}",
    "samples.count=1",
    "score=null",
    "data.limit=24",
)
OBJECTIVES = {
    "crossing": "objective=[{term: kl}]",
    "uld": "objective=[{term: uld}, {term: cross_entropy}]",
    "text": "objective=[{term: cross_entropy}]",
}
WRITTEN = ("data.completions=teacher", "generate={max_new_tokens: 12, greedy: true}")


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a model costs is not what these tests are about."""
    monkeypatch.setattr(costing, "_ROUNDS", 1)
    monkeypatch.setattr(costing, "_MOST_ROUNDS", 1)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_project(tmp_path_factory.mktemp("meeting") / "sorts")
    with (folder / "models.py").open("a") as models:
        models.write(MODELS)
    return folder


def built(folder: Path, alignment: str, *overrides: str) -> LanguageStudy:
    settings = [each.replace("ALIGNMENT", alignment) for each in TWO]
    config = load_config(folder / "config.yaml", [*settings, OBJECTIVES[alignment], *overrides])
    assert isinstance(config, LanguageConfig)
    return build_language_study(config, folder, "")


@pytest.fixture(scope="module")
def crossed(project: Path) -> LanguageStudy:
    return built(project, "crossing", "study.arms=[kd]", "training.max_steps=1")


@pytest.mark.parametrize("alignment", ["crossing", "uld", "text"])
def test_from_a_config_to_its_record(project: Path, tmp_path: Path, alignment: str) -> None:
    """Each way in which two vocabularies meet trains, and is measured by what can be told."""
    written = WRITTEN if alignment == "text" else ()
    study = built(project, alignment, *written)
    result = study.run(tmp_path)
    arms = result["arms"]
    assert list(arms) == ["teacher", "untouched", "sft", "kd"]
    told = {"nll", "perplexity"} | ({"kl", "agreement"} if alignment != "text" else set())
    assert told <= set(arms["kd"]["mean"])
    assert ("kl" in arms["kd"]["mean"]) is (alignment != "text")
    assert all(value >= 0 for value in arms["kd"]["mean"].values())
    before, after = (load_file(tmp_path / arm / "seed-0" / "model.safetensors") for arm in ("sft", "kd"))
    assert any(not torch.equal(before[name], after[name]) for name in before) is (alignment != "text")
    assert json.loads((tmp_path / "result.json").read_text())["task"] == "language_model"


def test_sorted_probabilities_teach_and_distributions_measure(project: Path, tmp_path: Path) -> None:
    """A student that was sure of the wrong words would be at distance 0: its KL is told, as that of a student taught by crossing is."""
    study = built(project, "uld", "study.arms=[untouched, kd]", "training.max_steps=1")
    result = study.run(tmp_path)
    torch.manual_seed(0)
    sets, teacher = study.data.test.set, study.teacher
    assert isinstance(teacher, SortedTeacher)
    assert sets is not None
    crossed = CrossTokenizerTeacher(teacher.teacher, teacher.crossing, classes=280)
    expected = token_fidelity(study.student().eval(), crossed, sets).means
    found = result["arms"]["untouched"]["mean"]
    assert found["kl"] == pytest.approx(expected["kl"], rel=1e-4)
    assert found["agreement"] == pytest.approx(expected["agreement"])


@pytest.mark.parametrize("alignment", ["crossing", "uld"])
def test_what_the_teacher_writes_is_met_token_by_token(project: Path, tmp_path: Path, alignment: str) -> None:
    """Its texts cut off at a token of its own, in train, validation and test: one that met other text's rows ends the run."""
    study = built(project, alignment, *WRITTEN, "generate.max_new_tokens=5", "study.arms=[kd]")
    bare = {
        name: Split(None, split.rows, split.prompts, split.teacher_prompts) for name, split in study.data.splits.items()
    }
    result = replace(study, data=replace(study.data, **bare)).run(tmp_path)
    assert result["arms"]["kd"]["mean"]["kl"] > 0
    assert result["transfer"]["completions"] == "teacher"
    assert result["transfer"]["tokens"] > 0


def long_rows(project: Path, folder: Path, **columns: str) -> Path:
    """The project with rows of one column each that no length of these tests holds."""
    folder.mkdir()
    (folder / "models.py").write_text((project / "models.py").read_text())
    (folder / "config.yaml").write_text((project / "config.yaml").read_text())
    words = ("small", "large", "old", "thing", "that", "eats", "grows", "walks", "is", "cut", "cooked")
    texts = [" ".join(words[(start + step * (1 + start // 11)) % 11] for step in range(60)) for start in range(44)]
    rows = [{name: value.format(text) for name, value in columns.items()} for text in texts]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("prompted", [True, False])
def test_given_completions_are_cut_to_one_text(project: Path, tmp_path: Path, prompted: bool) -> None:
    """A length in tokens ends the two in two places, a text without a prompt begins in two: a run would end at the first such row."""
    columns = {"gloss": "old thing", "completion": "{}"} if prompted else {"text": "{}"}
    folder = long_rows(project, tmp_path / "long", **columns)
    views = () if prompted else ("views.student={chat: false}", "views.teacher=null")
    study = built(folder, "crossing", "data.max_length=48", "data.limit=null", *views)
    crossing = crossing_of(study.teacher)
    assert crossing is not None
    for split in study.data.splits.values():
        both = split.completions
        assert both is not None
        assert split.prompts.lists() == both.prompts.lists()
        assert split.taught_prompts.lists() == both.prompts_of("teacher").lists()
        for student, teacher in zip(both.completions, both.completions_of("teacher"), strict=True):
            assert crossing.steps(student, teacher)[-1].row == len(student) - 1
            assert crossing.student_bytes[int(student[-1])] != END
    assert study.data.cut == 44
    if prompted:
        study.run(tmp_path / "run")


def test_stored_answers_stay_with_the_students_vocabulary(project: Path, tmp_path: Path) -> None:
    """Two students' tokenizers over one store: the second would be taught the first one's tokens. The teacher's weights are the same,
    and so are the texts and their numbers of rows."""
    store = f"labels={{form: dense, store: {tmp_path / 'store'}, dtype: float32}}"
    short = ("study.arms=[kd]", "training.max_steps=1", store)
    study = built(project, "crossing", *short)
    kept = study.run(tmp_path / "run")["labels"]
    assert kept["written"] == "by this run"
    assert built(project, "crossing", *short).run(tmp_path / "again")["labels"]["written"] == "before this run"
    other = built(project, "crossing", *short, "student.tokenizer=models.py:other_pieces")
    assert teacher_fact(other.teacher) != teacher_fact(study.teacher)
    assert teacher_identity(other.teacher) != teacher_identity(study.teacher)
    with pytest.raises(TutelageError, match=r"teacher.*vocabularies"):
        other.run(tmp_path / "other")


@pytest.mark.parametrize("form", ["{form: top_k, k: 4, temperature: 1}", "{form: sampled, draws: 8, temperature: 1}"])
def test_carried_over_answers_are_stored_sparsely(project: Path, tmp_path: Path, form: str) -> None:
    """Classes of probability 0 in a form that keeps the likeliest alone, or draws."""
    study = built(project, "crossing", f"labels={form}", "study.arms=[kd]", "training.max_steps=1")
    assert study.run(tmp_path)["arms"]["kd"]["mean"]["kl"] > 0


def test_who_teaches_is_told_with_both_vocabularies(project: Path) -> None:
    """By its class alone, two teachers of another vocabulary are one."""
    study = built(project, "crossing")
    teacher = study.teacher
    assert isinstance(teacher, CrossTokenizerTeacher)
    same = built(project, "crossing").teacher
    assert teacher_identity(same) == teacher_identity(teacher)
    assert teacher_fact(same) == teacher_fact(teacher)
    trained = built(project, "crossing", "teacher.model.python=models.py:wide_teacher").teacher
    sorting = SortedTeacher(teacher.teacher, teacher.crossing)
    for other in (trained, sorting):
        assert teacher_identity(other) != teacher_identity(teacher)
        assert teacher_fact(other) != teacher_fact(teacher)


ZEROS = {
    "forward": (KL(), True),
    "at another temperature": (KL(temperature=2.0), True),
    "forward by name": (Divergence("forward_kl"), True),
    "skew forward": (Divergence("skew_forward_kl"), True),
    "standardised": (KL(standardise=True), False),
    "reverse": (KL(direction="reverse"), False),
    "reverse by name": (Divergence("reverse_kl"), False),
    "jensen shannon": (Divergence("jensen_shannon"), False),
    "skew reverse": (Divergence("skew_reverse_kl"), False),
    "total variation": (Divergence("total_variation"), False),
    "alpha beta": (Divergence("alpha_beta"), False),
    "logits": (LogitMSE(), False),
    "decoupled": (DKD(), False),
    "correlation": (DIST(), False),
}


@pytest.mark.parametrize(("term", "taken"), ZEROS.values(), ids=list(ZEROS))
def test_terms_that_cannot_do_with_zeros_are_refused(
    crossed: LanguageStudy, tmp_path: Path, term: Term, taken: bool
) -> None:
    """A loss of infinity, NaN, or of what the teacher spells otherwise, found out after hours or never."""
    study = replace(crossed, objective=CrossEntropy() + 0.5 * term)
    if taken:
        begin(study, tmp_path / "run", Silent())
        return
    with pytest.raises(ConfigError, match=r"the arm 'kd' learns by .* has probability 0.*term: kl.*uld"):
        study.run(tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*"))


@pytest.mark.parametrize("name", ["kl", "skew_forward_kl"])
def test_a_token_of_no_probability_adds_nothing(name: str) -> None:
    """Why forward divergences are taken: as the teacher's probability goes to 0, value and gradient go to those at 0."""
    generator = torch.Generator().manual_seed(3)
    z, q = torch.randn(2, 5, 9, generator=generator, dtype=torch.float64)
    rows: Rows = {"labels": torch.zeros(5, dtype=torch.int64), "ids": torch.arange(5)}
    found: list[torch.Tensor] = []
    for low in (-60.0, -torch.inf):
        student = z.clone().requires_grad_()
        theirs = q.index_fill(1, torch.tensor([2, 7]), low)
        term = KL() if name == "kl" else Divergence(name)
        total, _ = term(Signals(Logits(student)), Signals(Logits(theirs)), rows)
        total.backward()
        assert student.grad is not None
        found.append(torch.cat([total.detach()[None], student.grad.flatten()]))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


def refusal(study: LanguageStudy, folder: Path) -> str:
    with pytest.raises(TutelageError) as refused:
        study.run(folder)
    assert not list(folder.rglob("*"))
    return str(refused.value)


def test_what_does_not_meet_is_refused_before_the_first_step(project: Path, tmp_path: Path) -> None:
    """A study made in Python, whose parts are of two alignments: each would read numbers of the other vocabulary."""
    study, run = built(project, "crossing"), tmp_path / "run"
    uld = built(project, "uld")
    assert "give a CrossTokenizerTeacher" in refusal(replace(study, teacher=uld.teacher), run)
    assert "alignment is 'same'" in refusal(replace(study, alignment="same"), run)
    assert "no teacher_tokenizer" in refusal(replace(study, teacher_tokenizer=None), run)
    writing = OnPolicy(0.5, Sampling(4), [2])
    assert "what the student writes" in refusal(replace(study, on_policy=writing), run)
    labels = Labels(dtype="float32")
    assert "sorted probabilities alone" in refusal(replace(uld, labels=labels), run)
    split = study.data.test
    both = split.completions
    assert both is not None
    parted = replace(both, teacher_completions=Ragged.of([part[:1] for part in both.completions_of("teacher").lists()]))
    apart = replace(split, set=TransferSet.of_completions(parted))
    assert "same_text(completions, crossing)" in refusal(replace(study, data=replace(study.data, test=apart)), run)


def test_a_tokenizer_that_differs_in_three_tokens_is_refused_by_their_names(project: Path) -> None:
    """Of 280 numbers three mean other words, and nothing else would ever show it."""
    config = load_config(project / "config.yaml", ["teacher.tokenizer=models.py:three_turned"])
    assert isinstance(config, LanguageConfig)
    with pytest.raises(ConfigError) as refused:
        build_language_study(config, project, "")
    message = str(refused.value)
    assert "3 numbers mean different tokens" in message
    for pair in ('("eats" / "walks")', '("cut" / "eats")', '("walks" / "cut")'):
        assert pair in message
    assert "teacher.alignment: crossing or uld" in message
