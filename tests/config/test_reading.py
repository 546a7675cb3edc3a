"""Every mistake that a config can hold is one message that says what was got, what was expected and how to mend it."""

from pathlib import Path

import pytest

from tutelage.config import StudyConfig, apply_overrides, load_config, read_yaml
from tutelage.config.reading import check_config
from tutelage.errors import ConfigError
from tutelage.studies.yaml_text import to_yaml

GOOD = """\
data: {source: digits, splits: {validation: 0.15, test: 0.2}}
teacher: {model: {python: "models.py:teacher"}, training: {num_train_epochs: 1}}
student: {model: {python: "models.py:student"}}
objective:
  - {term: kl, temperature: 1, weight: 0.9}
  - {term: cross_entropy, weight: 0.1}
training: {num_train_epochs: 1, learning_rate: 1e-4}
"""


def config_from(tmp_path: Path, text: str, *overrides: str) -> StudyConfig:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return load_config(path, overrides)


def mistake(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config_from(tmp_path, text, *overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("found", "replacement", "said"),
    [
        ("teacher:", "techer:", ["unknown key 'techer'", "did you mean 'teacher'?", "the key 'teacher' is missing"]),
        ("source: digits", "source: digits, labeled: 3", ["unknown key 'data.labeled'", "'labelled'"]),
        ("validation: 0.15", "validaton: 0.15", ["unknown key 'data.splits.validaton'", "'validation'"]),
        ('python: "models.py:teacher"', 'pyton: "models.py:teacher"', ["'teacher.model.pyton'", "'python'"]),
        ("source: digits,", "source: digits, zzz: 1,", ["unknown key 'data.zzz'; there are source, path"]),
        ("source: digits", "source: digit", ["unknown data source 'digit'", "did you mean 'digits'?", "parquet"]),
        ("source: digits", "source: digits, path: x", ["data.path does nothing with the source 'digits'"]),
        ("source: digits", "source: idx, label: x", ["data.label does nothing", "reads path"]),
        ("validation: 0.15", "validation: lots", ["data.splits.validation is 'lots', expected a number"]),
        ("validation: 0.15", "validation: 1", ["data.splits.validation is 1, expected less than 1"]),
        ("validation: 0.15", "validation: .nan", ["data.splits.validation", "expected"]),
        ("source: digits", "source: digits, labelled: -1", ["data.labelled is -1, expected at least 0"]),
        ("source: digits", "source: digits, labelled: 1.5", ["data.labelled is 1.5, expected a whole number"]),
        ("source: digits", "source: digits, seed: -3", ["data.seed is -3, expected at least 0"]),
        ("source: digits", "source: 3", ["data.source is 3, expected a text"]),
        ("num_train_epochs: 1,", "num_train_epochs: many,", ["training.num_train_epochs is 'many'", "a number"]),
        ("num_train_epochs: 1,", "per_device_train_batch_size: 0,", ["batch_size is 0, expected at least 1"]),
        ("num_train_epochs: 1,", "gradient_accumulation_steps: 0,", ["is 0, expected at least 1"]),
        ("num_train_epochs: 1,", "num_train_epochs: 0,", ["training.num_train_epochs is 0, expected more than 0"]),
        ("num_train_epochs: 1}", "num_train_epochs: 0}", ["teacher.training.num_train_epochs is 0"]),
        ("learning_rate: 1e-4", "learning_rate: -1", ["training.learning_rate is -1, expected more than 0"]),
        ("learning_rate: 1e-4", "learning_rate: .nan", ["training.learning_rate is nan"]),
        ("learning_rate: 1e-4", "learning_rate: '1e-4'", ["training.learning_rate is '1e-4', expected a number"]),
        ("learning_rate: 1e-4", "learning_rat: 1", ["training.learning_rat is not", "did you mean 'learning_rate'?"]),
        ("learning_rate: 1e-4", "lr: 1", ["training.lr is not an argument", "did you mean 'learning_rate'?"]),
        ("num_train_epochs: 1,", "epochs: 1,", ["did you mean 'num_train_epochs'?"]),
        ("num_train_epochs: 1,", "batch_size: 1,", ["did you mean 'per_device_train_batch_size'?"]),
        ("num_train_epochs: 1,", "bf16: 'yes',", ["training.bf16 is 'yes', expected true or false"]),
    ],
)
def test_a_wrong_key_or_value_is_named_with_what_was_expected(
    tmp_path: Path, found: str, replacement: str, said: list[str]
) -> None:
    assert found in GOOD
    message = mistake(tmp_path, GOOD.replace(found, replacement, 1))
    assert message.startswith(str(tmp_path / "config.yaml"))
    for words in said:
        assert words in message, message


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ("study: {seeds: 0}", ["study.seeds is 0, expected at least 1"]),
        ("study: {seeds: []}", ["study.seeds is [], expected"]),
        ("study: {seeds: [0, -1]}", ["study.seeds.1 is -1, expected at least 0"]),
        ("study: {seeds: three}", ["study.seeds is 'three', expected a whole number or a list"]),
        ("study: {sedes: 3}", ["unknown key 'study.sedes'", "'seeds'"]),
        ("study: {arms: kd}", ["study.arms is 'kd', expected a list"]),
        ("study: {label_smoothing: 1.0}", ["study.label_smoothing is 1.0, expected less than 1"]),
        ("gates: {acuracy_drop_vs_teacher: 0.1}", ["did you mean 'accuracy_drop_vs_teacher'?"]),
        ("gates: {ece: .inf}", ["gates.ece is inf, expected a finite number"]),
        ("gates: {ece: true}", ["gates.ece is True, expected a number"]),
        ("task: regression", ["task is 'regression', expected 'classification'"]),
        ("title: [1]", ["title is [1], expected a text"]),
        ("title: 2024-01-01", ["title is datetime.date(2024, 1, 1), expected a text"]),
        ("1: x", ["1"]),
    ],
)
def test_optional_sections_are_checked_alike(tmp_path: Path, added: str, said: list[str]) -> None:
    message = mistake(tmp_path, GOOD + added + "\n")
    for words in said:
        assert words in message, message
    assert "Input should" not in message
    assert "valid" not in message


@pytest.mark.parametrize("section", ["data", "teacher", "student", "objective", "training"])
def test_a_missing_section_is_named_with_an_example(tmp_path: Path, section: str) -> None:
    whole = read_yaml(_written(tmp_path, GOOD))
    del whole[section]
    with pytest.raises(ConfigError, match=f"the key '{section}' is missing; write for example  {section}:"):
        check_config(whole, "config.yaml")


@pytest.mark.parametrize("section", ["data", "teacher", "student", "objective", "training"])
def test_an_empty_section_is_called_empty(tmp_path: Path, section: str) -> None:
    whole = read_yaml(_written(tmp_path, GOOD)) | {section: None}
    with pytest.raises(ConfigError, match=f"{section} is empty, expected a (mapping|list)"):
        check_config(whole, "config.yaml")


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    message = mistake(tmp_path, GOOD.replace("source: digits", "sauce: digits").replace("term:", "term:") + "zzz: 1\n")
    assert "data.sauce" in message
    assert "'zzz'" in message
    assert "'data.source' is missing" in message


def test_numbers_and_words_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    """YAML 1.1 reads `1e-4` as a text and `no` as false: a learning rate would be refused, and `save_strategy: no` too."""
    config = config_from(tmp_path, GOOD.replace("num_train_epochs: 1,", "save_strategy: no,") + "title: no\n")
    assert config.training["learning_rate"] == 1e-4
    assert isinstance(config.training["learning_rate"], float)
    assert config.training["save_strategy"] == "no"
    assert config.title == "no"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds nothing, expected a mapping of sections"),
        (b"# only a comment\n", "holds nothing"),
        (b"- a\n- b\n", "holds a list, expected a mapping"),
        (b"just words", "holds a str"),
        (b"a: 1\na: 2\n", "line 2"),
        (b"data: {source: digits, source: idx}", "keep one"),
        (b"a: [1, 2", "is not valid YAML: line"),
        (b"a:\n\t- b", "is not valid YAML: line 2"),
        (b"a: !!python/object:os.system x", "is not valid YAML"),
        (b"a: *nobody", "is not valid YAML"),
        (b"a: \x00", "is not valid YAML"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "is no text"),
        (b"a: " + b"[" * 5000, "is nested too deeply"),
        (b"a: 2024-99-99", "is not valid YAML"),
    ],
)
def test_a_file_that_is_no_config_is_refused_in_one_message(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_config_names_its_neighbours(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`tutelage init` writes a starter config"):
        read_yaml(tmp_path / "confg.yaml")
    _written(tmp_path, GOOD)
    with pytest.raises(ConfigError, match=r"there is no config .*; in that folder: config\.yaml"):
        read_yaml(tmp_path / "confg.yaml")
    with pytest.raises(ConfigError, match=r"is a folder, expected a config file; in that folder: config\.yaml"):
        read_yaml(tmp_path)
    with pytest.raises(ConfigError, match="there is no config"):
        read_yaml(tmp_path / "config.yaml" / "deeper.yaml")


def test_overrides_set_dotted_keys_with_yaml_values(tmp_path: Path) -> None:
    config = config_from(
        tmp_path,
        GOOD,
        "training.learning_rate=1e-3",
        "objective.0.temperature=4",
        "study.seeds=[3, 5]",
        "title=no",
        "gates.gain_over_scratch=null",
        "title=a = b",
    )
    assert config.training["learning_rate"] == 1e-3
    assert config.objective[0]["temperature"] == 4
    assert config.study.seeds == [3, 5]
    assert config.gates.gain_over_scratch is None
    assert config.title == "a = b"


def test_an_override_may_fill_a_section_that_is_empty() -> None:
    assert apply_overrides({"study": None}, ["study.seeds=2"]) == {"study": {"seeds": 2}}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.learning_rate", "expected key=value"),
        ("=3", "expected key=value"),
        ("a..b=3", "expected key=value"),
        ("objective.5.weight=1", "'5' is not a position in a list of 2, counted from 0"),
        ("objective.-1.weight=1", "'-1' is not a position"),
        ("objective.².weight=1", "'²' is not a position"),
        ("data.source.deep=1", "data.source is 'digits', which has no keys"),
        ("data.source.deep.er=1", "data.source is 'digits', which has no keys"),
        ("title=[1, 2", "the value is not valid YAML"),
        ("study.seeds=0", "study.seeds is 0, expected at least 1"),
        ("study.seed=3", "did you mean 'seeds'?"),
        ("training.learning_rate=fast", "expected a number"),
        ("training.learning_rate=", "training.learning_rate is None, expected a number"),
    ],
)
def test_a_bad_override_is_named(tmp_path: Path, override: str, said: str) -> None:
    assert said in mistake(tmp_path, GOOD, override)


def test_a_resolved_config_reads_back_as_the_same(tmp_path: Path) -> None:
    """A gate set to null would come back as its default, and a page made again would ask what nobody asked."""
    config = config_from(
        tmp_path, GOOD + "gates: {accuracy_drop_vs_teacher: null, ece: 0.1}\nstudy: {arms: [kd, {hot: [{term: kl}]}]}\n"
    )
    written = to_yaml(config.resolved())
    assert "accuracy_drop_vs_teacher: null" in written
    assert config_from(tmp_path, written) == config


def _written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path
