"""Run configurations: YAML in, typed sections out, and errors that name the key."""

import pytest
import yaml
from pydantic import ValidationError

from boltzflow.errors import FormatError, UnknownNameError
from boltzflow.io.config import RunConfig, differences, load_config, parse_config


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("system: dw4\ngenerator:\n  hidden: [16, 16]\ntraining:\n  steps: 7\n")
    return path


def test_what_is_not_said_has_its_default(file):
    config = load_config(file)
    assert (config.system, config.generator.hidden, config.training.steps) == ("dw4", (16, 16), 7)
    assert config.generator.n_bins == RunConfig(system="dw4").generator.n_bins


def test_dump_and_parse_are_inverse(file):
    config = load_config(file)
    assert parse_config(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))) == config


def test_a_run_cannot_be_changed(file):
    with pytest.raises(ValidationError, match="frozen"):
        load_config(file).training.steps = 8


def test_overrides_are_yaml(file):
    words = ["training.steps=9", "training.learning_rate=1.0e-4", "generator.hidden=[8]", "objective.data=null"]
    config = load_config(file, overrides=[*words, "sampling.dtype=float64", "system=lj13"])
    assert (config.training.steps, config.training.learning_rate, config.generator.hidden) == (9, 1e-4, (8,))
    assert (config.objective.data, config.sampling.dtype, config.system) == (None, "float64", "lj13")


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("training.stepz=3", UnknownNameError, r"training\.stepz.*did you mean 'steps'"),
        ("trainin.steps=3", UnknownNameError, r"'trainin'.*did you mean 'training'"),
        ("training.steps=many", FormatError, r"training\.steps.*integer.*'many'"),
        ("training.steps=0", FormatError, r"training\.steps.*greater than or equal to 1"),
        ("training.steps=2.5", FormatError, r"training\.steps.*2\.5"),
        ("training.learning_rate=-1", FormatError, r"training\.learning_rate"),
        ("training.dtype=float16", FormatError, r"training\.dtype.*float32.*float64"),
        ("generator.family=magic", FormatError, r"generator\.family"),
        ("generator.hidden=wide", FormatError, r"generator\.hidden"),
        ("training=5", FormatError, "training"),
        ("training.steps.more=5", FormatError, "'steps' is a value"),
        ("training.clip_gradient=0", FormatError, r"training\.clip_gradient.*greater than 0"),
        ("training.batch_size=0", FormatError, r"training\.batch_size.*greater than or equal to 1"),
        ("generator.hidden=[8, 0]", FormatError, r"generator\.hidden\.1.*greater than 0"),
        ("training.steps=[1", FormatError, "not valid YAML"),
        ("training.steps", FormatError, r"section\.key=value"),
        ("=5", FormatError, r"section\.key=value"),
    ],
)
def test_wrong_overrides_name_the_key(file, override, error, message):
    with pytest.raises(error, match=message):
        load_config(file, overrides=[override])


def test_all_errors_are_listed_with_the_file(file):
    file.write_text("system: dw4\ntraining: {stepz: 3, batch_size: none}\n")
    with pytest.raises(UnknownNameError) as caught:
        load_config(file)
    assert str(file) in str(caught.value)
    assert "stepz" in str(caught.value)
    assert "batch_size" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {steps: 3}", "'system' is missing"),
        ("- a\n- b", "expected sections"),
        ("", "expected sections"),
        ("system: [", "not valid YAML"),
    ],
)
def test_wrong_files(file, text, message):
    file.write_text(text)
    with pytest.raises(FormatError, match=message):
        load_config(file)


def test_binary_and_missing_files(file, tmp_path):
    file.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(FormatError, match="not valid YAML"):
        load_config(file)
    with pytest.raises(FileNotFoundError, match=r"none\.yaml: no such file"):
        load_config(tmp_path / "none.yaml")


@pytest.fixture
def recipe(tmp_path):
    """The file of a run inside the folder of a system, and another working directory."""
    path = tmp_path / "mine" / "recipes" / "run.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("system: ..\nobjective: {data: ../data/frames.h5}\nanalysis: {reference: reference.h5}\n")
    return path


def test_relative_paths_mean_the_folder_of_the_file_first(recipe, tmp_path, monkeypatch):
    (tmp_path / "work" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work" / "deep")
    for folder in (recipe.parent.parent, tmp_path / "work"):  # the same relative path, in both
        (folder / "data").mkdir()
        (folder / "data" / "frames.h5").touch()
    config = load_config(recipe)
    assert config.system == str(tmp_path / "mine")
    assert config.objective.data == str(tmp_path / "mine" / "data" / "frames.h5")
    assert config.analysis.reference == "reference.h5"  # in neither folder: as it stands
    (recipe.parent / "reference.h5").touch()
    assert load_config(recipe).analysis.reference == str(recipe.parent / "reference.h5")


def test_working_directory_comes_second_and_a_leading_dot_stays_with_the_file(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(recipe).objective.data == str(tmp_path / "mine" / "data" / "frames.h5")  # missing everywhere
    recipe.write_text("system: ..\nobjective: {data: frames.h5}\n")
    (tmp_path / "frames.h5").touch()
    assert load_config(recipe).objective.data == "frames.h5"
    overridden = load_config(recipe, overrides=["objective.data=../data/frames.h5"])
    assert overridden.objective.data == "../data/frames.h5"  # typed on the command line


@pytest.mark.parametrize("system", ["dw4", "dw4@350", "mine"])
def test_a_bare_word_is_the_name_of_a_system(recipe, system):
    (recipe.parent / system).mkdir()
    recipe.write_text(f"system: {system}\n")
    assert load_config(recipe).system == system


def test_a_path_to_a_system_may_have_a_temperature(recipe, tmp_path):
    recipe.write_text("system: ..@350\n")
    assert load_config(recipe).system == f"{tmp_path / 'mine'}@350"
    recipe.write_text(f"system: {tmp_path / 'mine'}\n")
    assert load_config(recipe).system == str(tmp_path / "mine")


def test_simulation_section_is_checked(recipe):
    recipe.write_text("system: dw4\nsimulation: {method: pt, keep: all, chains: 8}\n")
    found = load_config(recipe).simulation
    assert (found.method, found.keep, found.chains, found.stride) == ("pt", "all", 8, None)
    for text, message in (
        ("keep: some", "keep"),
        ("chains: 0", "chains"),
        ("moves_every: 0", "moves_every"),
        ("max_temperature: 0.5", "max_temperature"),
    ):
        recipe.write_text(f"system: dw4\nsimulation: {{{text}}}\n")
        with pytest.raises(FormatError, match=message):
            load_config(recipe)
    recipe.write_text("system: dw4\nsimulation: {moves: ../data/frames.h5, moves_every: 2}\n")
    (recipe.parent.parent / "data").mkdir(exist_ok=True)
    (recipe.parent.parent / "data" / "frames.h5").touch()
    found = load_config(recipe).simulation
    assert (found.moves, found.moves_every) == (str(recipe.parent.parent / "data" / "frames.h5"), 2)
    recipe.write_text("system: dw4\nsimulation: {burnin: 5}\n")
    with pytest.raises(UnknownNameError, match="burn_in"):
        load_config(recipe)


def test_differences_name_the_key_and_both_values():
    mine, theirs = (parse_config({"system": "a", "training": {"steps": n}}).model_dump() for n in (3, 5))
    assert differences(mine, theirs) == ["training.steps: 5 there, 3 here"]
    assert differences({"a": {"b": 1}}, {"a": {"b": 1}, "c": 2}) == ["c: 2 there, None here"]
