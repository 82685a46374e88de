"""What does not go with a method, or is missing for it: refused before anything is written."""

import math
import re
from dataclasses import replace

import pytest
import resumed

from graphaug.errors import ConfigError, DataError
from graphaug.terminal.spoken import in_options
from graphaug.vision import pretrain as loop
from graphaug.vision.config import PretrainConfig
from graphaug.vision.methods import heads
from graphaug.vision.methods.table import METHODS

TINY = {"model": "resnet18-cifar:4", "epochs": 1, "batch_size": 16, "size": 8, "checkpoint_every": 0}


@pytest.fixture(scope="module")
def unlabelled():
    return replace(resumed.images(), classes=("all",))


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("simcrl", {}, "no method is called 'simcrl'. Did you mean 'simclr'"),
        ("byol", {"temperature": 0.1}, "temperature=0.1 with method='byol', .* is of simclr, moco, supcon"),
        ("simclr", {"queue": 100}, "queue=100 with method='simclr', .* queue is of moco"),
        ("moco", {"loss": "info_nce"}, "loss is of simclr"),
        ("moco", {"gather": False}, "gather is of simclr, barlow, vicreg, supcon"),
        ("barlow", {"vicreg_weights": (1, 1, 1)}, "vicreg_weights is of vicreg"),
        ("supervised", {"projection": 64}, "projection=64 with method='supervised'"),
        ("supervised", {"hidden": 64, "projection": 64}, "which does not have them"),
        ("supervised", {"collapse": 0.0}, "no embeddings that could collapse"),
        ("simclr", {"augment_teacher": True}, "augment_teacher is of byol, moco"),
        ("byol", {"teacher_momentum": 1.5}, r"teacher_momentum must be in \[0, 1\], not 1.5"),
        ("byol", {"teacher_momentum": math.nan}, "teacher_momentum must be in"),
        ("byol", {"teacher_schedule": "cosin"}, "no teacher_schedule is called 'cosin'. Did you mean 'cosine'"),
        ("byol", {"projection": 0}, "projection must be a whole number of at least 1"),
        ("byol", {"hidden": -3}, "hidden must be a whole number of at least 1"),
        ("moco", {"queue": 8}, "queue=8 with batch_size=16: the keys of one step have no place in it"),
        ("barlow", {"redundancy": -1.0}, "redundancy must be a number of at least 0"),
        ("vicreg", {"vicreg_weights": (1.0, 2.0)}, "three numbers of at least 0"),
        ("vicreg", {"vicreg_weights": (1.0, -2.0, 1.0)}, "three numbers of at least 0"),
        ("byol", {"at": ("layer3",), "deep_views": True}, "deep_views=True with method='byol': its targets come"),
        ("moco", {"at": ("layer3",), "deep_views": True}, "deep_views=True with method='moco': its targets come"),
        ("supervised", {"at": ("layer3",), "deep_views": True}, "it is trained on one view"),
        ("moco", {"pairing": "one-sided"}, "one view of an image enters the trained network"),
        ("supervised", {"pairing": "one-sided"}, "Give pairing='any'"),
        ("moco", {"pairing": "together"}, "Give pairing='any'"),
        ("supcon", {"transform": "mix", "at": ("layer3",)}, "a mixed row is of two classes"),
        ("supervised", {"transform": "mix", "at": ("layer2", "layer3")}, "a row that is mixed twice has no loss"),
        ("supervised", {"transform": "mix", "everywhere": True}, "a row that is mixed twice has no loss"),
        ("supervised", {"transform": "mix", "at": ("layer2",), "rate": 0.3}, "only dropout has it"),
        ("byol", {"cuda_graphs": True, "compile": True, "accelerator": "cuda"}, "cuda_graphs with method='byol'"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_a_method_is_refused(method, options, message):
    with pytest.raises(ConfigError, match=message):
        PretrainConfig(**{**TINY, "method": method, **options})


def test_refusals_speak_of_options_on_the_command_line():
    with pytest.raises(ConfigError) as caught:
        PretrainConfig(method="moco", pairing="one-sided")
    spoken = in_options(str(caught.value), PretrainConfig.names())
    assert "--pairing one-sided with --method moco" in spoken


def test_images_without_labels_are_refused_where_labels_are_needed(unlabelled, tmp_path):
    for method in ("supcon", "supervised"):
        with pytest.raises(DataError, match=f"method='{method}' is trained on labels, and the images"):
            loop.pretrain(PretrainConfig(**TINY, method=method), tmp_path / "run", data=unlabelled)
    assert not (tmp_path / "run").exists()


def test_an_augmented_teacher_without_a_site_is_refused(unlabelled):
    with pytest.raises(ConfigError, match="augment_teacher without a site"):
        loop.pretrain(PretrainConfig(**TINY, method="byol", augment_teacher=True), data=unlabelled)


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.lightly])
def test_without_lightly_the_way_to_install_it_is_named(method, unlabelled, monkeypatch, tmp_path):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name.partition('.')[0]!r}")

    monkeypatch.setattr(heads, "import_module", missing)
    with pytest.raises(ConfigError, match=re.escape("pip install 'graphaug[methods]'")) as caught:
        loop.pretrain(PretrainConfig(**TINY, method=method), tmp_path / "run", data=unlabelled)
    assert f"method='{method}'" in str(caught.value)
    assert not (tmp_path / "run").exists()
    if method == "simsiam":  # others do without it
        loop.pretrain(PretrainConfig(**TINY), data=unlabelled)


def test_the_command_line_refuses_what_a_method_does_not_have_even_at_its_default(graphaug, tmp_path):
    code, _, err = graphaug("pretrain", "--out", tmp_path / "run", "--method", "byol", "--temperature", "0.5")
    assert code != 0
    assert "--temperature 0.5 with --method byol, which does not have it" in err
    code, _, err = graphaug("pretrain", "--out", tmp_path / "run", "--method", "byol", "--augment-teacher")
    assert code != 0
    assert "--augment-teacher does nothing without a site" in err
    assert not (tmp_path / "run").exists()


def test_what_a_preset_sets_for_its_method_is_said_to_be_its_and_can_be_taken_back(
    graphaug, tmp_path, monkeypatch
):
    typed = ["pretrain", "--out", tmp_path / "run", "--preset", "simclr-cifar10", "--method", "byol"]
    code, _, err = graphaug(*typed)
    assert code == 2
    assert (
        "The preset 'simclr-cifar10' sets --loss-scale supcontrast: --loss-scale none takes it back." in err
    )
    code, _, err = graphaug(*typed, "--loss-scale", "supcontrast")
    assert code == 2
    assert "The preset" not in err  # it was typed
    seen = []

    def load(data, **options):
        raise DataError(seen.append(data) or "all settings were taken")

    monkeypatch.setattr("graphaug.vision.data.images.load", load)
    code, _, err = graphaug(
        *typed, *(word for name in ("--loss", "--loss-scale", "--temperature") for word in (name, "none"))
    )
    assert code == 2
    assert "all settings were taken" in err
    assert seen == ["cifar10"]


def test_a_value_taken_back_is_the_default():
    from graphaug.contrastive.config.presets import settle
    from graphaug.vision.presets import PRESETS

    given = {"loss_scale": None, "temperature": None}
    found = settle(PretrainConfig, given, "simclr-cifar10", presets=PRESETS)
    named = settle(PretrainConfig, {}, "simclr-cifar10", presets=PRESETS)
    assert found == replace(named, loss_scale="mean", temperature=0.5)
    assert given == {"loss_scale": None, "temperature": None}
