"""Settings from files that are too much: refused in words, before anything is built of them."""

import re
import resource
from pathlib import Path

import pytest
import yaml

from graphaug.contrastive.config.presets import read_settings, settle
from graphaug.contrastive.config.yaml_files import DEPTH, NODES, SIZE, read_yaml
from graphaug.contrastive.runs.directory import RunDirectory
from graphaug.errors import ConfigError, RunDirectoryError
from graphaug.vision.config import PretrainConfig


def bomb(levels=9, width=9):
    """Some three hundred bytes that stand for ``width ** levels`` values."""
    lines = ["a0: &a0 [x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels + 1)]
    return "\n".join(lines)


TOO_MUCH = {
    "deep": ("at: " + "[" * 100_000, "lie in each other"),
    "deep maps": ("{a: " * 5000, "lie in each other"),
    "deep blocks": ("\n".join(" " * i + "a:" for i in range(500)), "lie in each other"),
    "wide": ("at: [" + "1, " * 100_000 + "]", "values"),
    "aliases": (bomb(), "values"),
    "long": ("# " + "x" * SIZE, "bytes"),
    "number": ("lr: " + "9" * 5000, "cannot be read"),
    "date": ("lr: 2001-99-99", "cannot be read"),
    "binary": ("lr: !!binary /w==\nat: !!int 0x", "cannot be read"),
    "code": ("lr: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
}


@pytest.mark.parametrize("name", TOO_MUCH)
def test_what_no_settings_are_is_refused_without_being_built(name, tmp_path):
    text, message = TOO_MUCH[name]
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ConfigError, match=message):
        read_settings(file, PretrainConfig)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB
    from graphaug.analysis.report.read import read_run

    file.rename(tmp_path / "config.yaml")
    with pytest.raises(RunDirectoryError, match=message):
        read_run(tmp_path)


@pytest.mark.parametrize("count", [NODES - 3, NODES - 2])
def test_the_limit_of_values_counts_every_value_and_key(count, tmp_path):
    # with the mapping, its key and the list itself: count + 3
    Path(tmp_path / "a.yaml").write_text(f"at: [{', '.join(['1'] * count)}]")
    if count + 3 <= NODES:
        assert len(read_yaml(tmp_path / "a.yaml")["at"]) == count
    else:
        with pytest.raises(yaml.YAMLError, match="10,000 values"):
            read_yaml(tmp_path / "a.yaml")


def test_the_limit_of_depth(tmp_path):
    for depth in (DEPTH, DEPTH + 1):
        (tmp_path / "a.yaml").write_text("[" * depth + "]" * depth)
        if depth <= DEPTH:
            assert str(read_yaml(tmp_path / "a.yaml")).count("[") == depth
        else:
            with pytest.raises(yaml.YAMLError, match="line 1: more than 20"):
                read_yaml(tmp_path / "a.yaml")


def test_aliases_and_anchors_of_ordinary_settings_are_read(tmp_path):
    (tmp_path / "a.yaml").write_text("jitter: &j [0.4, 0.4, 0.4, 0.1]\nother: *j\nlr: 1.0e-4\n")
    assert read_yaml(tmp_path / "a.yaml") == yaml.safe_load((tmp_path / "a.yaml").read_text())


TWICE = {
    "at the top": ("lr: 1\nsize: 8\nlr: 2\n", "line 3: 'lr' stands in line 1 already"),
    "quoted": ("lr: 1\n'lr': 2\n", "line 2: 'lr' stands in line 1 already"),
    "within": ("at:\n  layer1: 0.5\n  layer1: 0.2\n", "line 3: 'layer1' stands in line 2 already"),
    "in a line": ("at: {layer1: 0.5, layer1: 0.2}", "line 1: 'layer1' stands in line 1 already"),
    "in a list": ("at: [{a: 1, a: 2}]", "line 1: 'a' stands in line 1 already"),
    "the same value": ("lr: 1\nlr: 1\n", "line 2: 'lr' stands in line 1 already"),
}


@pytest.mark.parametrize("name", TWICE)
def test_a_name_that_stands_twice_is_refused(name, tmp_path):
    text, message = TWICE[name]
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_settings(tmp_path / "a.yaml", PretrainConfig)


@pytest.mark.parametrize(
    "text",
    [
        "z: &z {k: 0, j: 0}\nx: {a: &a {<<: *z, k: 1}}\nb: {<<: *a, j: 2}\n",
        "z: &z {k: 0}\ny: &y {j: 0}\nx: {<<: *z, <<: *y}\n",
        "a: {k: 1}\nb: {k: 2}\n",
        "1: a\n'1': b\n",
        "? [1, 2]\n: a\n",
    ],
)
def test_a_name_in_another_mapping_is_no_second_one(text, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    try:
        wanted = yaml.safe_load(text)
    except yaml.YAMLError as error:
        with pytest.raises(yaml.YAMLError, match=str(error).splitlines()[0]):
            read_yaml(tmp_path / "a.yaml")
    else:
        assert read_yaml(tmp_path / "a.yaml") == wanted


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("learning_rate", " Did you mean 'lr'?"),
        ("Learning-Rate", " Did you mean 'lr'?"),
        ("wd", " Did you mean 'weight_decay'?"),
        ("num_epochs", " Did you mean 'epochs'?"),
        ("batch", " Did you mean 'batch_size'?"),
        ("temprature", " Did you mean 'temperature'?"),
        ("zebra", f" There are {', '.join(sorted(PretrainConfig.names()))}."),
    ],
)
def test_a_setting_is_suggested_where_one_is_near_or_has_that_name_elsewhere(name, hint, tmp_path):
    (tmp_path / "a.yaml").write_text(f"{name}: 1")
    with pytest.raises(ConfigError) as caught:
        read_settings(tmp_path / "a.yaml", PretrainConfig)
    assert str(caught.value).endswith(f"no setting is called {name!r}.{hint}")
    with pytest.raises(ConfigError) as caught:
        PretrainConfig.from_dict({name: 1})
    assert str(caught.value) == f"no setting is called {name!r}.{hint}"


@pytest.mark.parametrize("text", ["", "# nothing\n"])
def test_a_file_that_says_nothing_is_refused(text, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"a\.yaml' is empty"):
        read_settings(tmp_path / "a.yaml", PretrainConfig)


def test_what_cannot_be_read_is_not_suggested(tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    with pytest.raises(ConfigError, match=r"empty' cannot be read: Is a directory\.$"):
        read_settings(folder, PretrainConfig)
    (folder / "config.yaml").write_text("lr: 0.1")
    with pytest.raises(ConfigError, match=r"Is a directory\. Did you mean '.*empty.config\.yaml'"):
        read_settings(folder, PretrainConfig)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: -1", "lr must be a positive number, not -1.0. 'FILE' says 'lr: -1'."),
        ("momentum: fast", "momentum must be a number, not 'fast'. 'FILE' says 'momentum: fast'."),
        ("optimizer: sdg", "There are sgd, lars, adamw. 'FILE' says 'optimizer: sdg'."),
        (
            "pairing: one-sided\nsubset: 0.9",
            "at most 0.5. 'FILE' says 'pairing: one-sided' and 'subset: 0.9'.",
        ),
        ("lr: 1\nepochs: 3", "epochs must be a whole number of at least 1, not -1."),  # typed: below
    ],
)
def test_a_bad_value_of_a_file_is_told_with_the_file(text, message, tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        settle(PretrainConfig, {"epochs": -1} if "epochs" in text else {}, file=file)
    assert str(caught.value).endswith(message.replace("FILE", str(file)))


def test_what_is_wrong_in_a_file_is_shown_where_it_stands(tmp_path):
    (tmp_path / "config.yaml").write_text("epochs: 2\nlr: 1: 2\n")
    shown = (
        "is no YAML: mapping values are not allowed here\n  in line 2, column 6:\n    lr: 1: 2\n         ^"
    )
    with pytest.raises(ConfigError, match=re.escape(shown)):
        read_settings(tmp_path / "config.yaml", PretrainConfig)
    with pytest.raises(ConfigError, match=re.escape(shown)):
        RunDirectory.at(tmp_path).settings()
