"""Choosing on held-out images: by the other seeds, on no test image, and what the report says of it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import resumed
import torch
from idx_files import write_idx
from scipy.stats import ttest_1samp

from graphaug.contrastive.runs.sweep import Executor
from graphaug.errors import ConfigError, DataError
from graphaug.recipes.choice import Choice, choose
from graphaug.recipes.figures import planned
from graphaug.recipes.methods.images import PLAIN
from graphaug.recipes.report import report
from graphaug.recipes.runs.job import Outcome
from graphaug.vision import pretrain as loop
from graphaug.vision.config import PretrainConfig
from graphaug.vision.data.images import ImageSet
from graphaug.vision.data.validation import held_out
from graphaug.vision.probes.watch import Watch

CHOICE = Choice("chosen", ("a", "b", "c"), "plain")


def by_seed(**rows):
    return {name: dict(enumerate(row)) for name, row in rows.items()}


def test_a_seed_has_no_say_in_its_own_choice():
    validation = by_seed(plain=[0.5] * 3, a=[0.9, 0.1, 0.1], b=[0.2, 0.3, 0.8], c=[0.3, 0.25, 0.25])
    test = by_seed(plain=[0.4, 0.4, 0.5], a=[0.1, 0.2, 0.3], b=[0.6, 0.7, 0.5], c=[0.0, 0.1, 0.2])
    found = choose(CHOICE, validation, test)
    # without seed 0: b .55; without seed 1: b .5 and a .5, a comes first; without seed 2: a .5
    assert found.settings == {0: "b", 1: "a", 2: "a"}
    assert found.accuracy == {0: 0.6, 1: 0.2, 2: 0.3}
    assert found.difference == pytest.approx({0: 0.2, 1: -0.2, 2: -0.2})
    assert found.ahead == pytest.approx(ttest_1samp([0.2, -0.2, -0.2], 0, alternative="greater").pvalue)


def test_the_test_images_have_no_say():
    rng = np.random.default_rng(0)
    validation = by_seed(**{n: rng.random(4).tolist() for n in ("plain", "a", "b", "c")})
    settings = [
        choose(CHOICE, validation, by_seed(**{n: rng.random(4).tolist() for n in validation})).settings
        for _ in range(5)
    ]
    assert all(found == settings[0] for found in settings)


def test_of_nothing_but_luck_a_choice_is_seldom_ahead():
    """The luck of a seed is in its validation and its test accuracy alike, and must not be chosen."""
    rng = np.random.default_rng(1)
    ahead = []
    for _ in range(300):
        luck = {name: rng.normal(size=5) for name in ("plain", "a", "b", "c")}
        rows = by_seed(**{name: values.tolist() for name, values in luck.items()})
        found = choose(CHOICE, rows, rows)
        ahead.append(np.mean(list(found.difference.values())))
    # the best of three by its own seeds would be ahead by about 0.4
    assert abs(np.mean(ahead)) < 3 * np.std(ahead) / np.sqrt(len(ahead))
    assert abs(np.mean(ahead)) < 0.15


def test_what_diverged_is_not_chosen_and_one_seed_chooses_nothing():
    validation = by_seed(plain=[0.5, 0.5], a=[0.9, None], b=[0.6, 0.6], c=[0.7, 0.7])
    test = by_seed(plain=[0.5, 0.5], a=[0.9, None], b=[0.7, 0.7], c=[0.7, None])
    assert choose(CHOICE, validation, test).settings == {0: "b", 1: "b"}
    lost = choose(CHOICE, validation, {**test, "plain": {0: None, 1: 0.5}})
    assert (lost.difference, lost.ahead) == ({}, 1.0)
    assert choose(CHOICE, by_seed(plain=[0.5], b=[0.6]), by_seed(plain=[0.5], b=[0.6])) is None
    assert (
        choose(CHOICE, by_seed(plain=[0.5] * 2, a=[None] * 2), by_seed(plain=[0.5] * 2, a=[None] * 2)) is None
    )


def test_a_share_of_every_class_is_held_out_and_belongs_to_nobody_else():
    data = resumed.images()
    numbered = data.train.images.clone()
    numbered[:, 0, 0, 0] = torch.arange(len(numbered), dtype=torch.uint8)
    data = replace(data, train=ImageSet(numbered, data.train.labels))
    found = held_out(data, 0.25)
    assert found.test is data.test
    assert found.validation.labels.bincount().tolist() == [6, 6]
    assert found.train.labels.bincount().tolist() == [18, 18]
    parts = [set(part.images[:, 0, 0, 0].tolist()) for part in (found.train, found.validation)]
    assert parts[0] | parts[1] == set(range(48))
    assert not parts[0] & parts[1]
    assert torch.equal(held_out(data, 0.25).validation.images, found.validation.images)
    assert held_out(data, 0.0) is data
    with pytest.raises(DataError, match="has 12 validation images already"):
        held_out(found, 0.25)
    with pytest.raises(DataError, match="no accuracy on held-out ones to choose by"):
        held_out(replace(data, classes=("all",)), 0.25)


def test_a_run_is_trained_on_none_of_them_and_has_their_accuracy(monkeypatch, tmp_path):
    looked = []
    features = Watch._features
    monkeypatch.setattr(
        Watch, "_features", lambda self, images: looked.append(len(images)) or features(self, images)
    )
    config = PretrainConfig(
        model="resnet18-cifar:4", epochs=1, batch_size=12, size=8, validation=0.25, watch_every=1, checkpoint_every=0
    )  # fmt: skip
    done = loop.pretrain(config, tmp_path / "run", data=resumed.images())
    assert done.result["train_images"] == 36
    assert done.result["test_images"] == 24
    assert done.result["validation"]["images"] == 12
    assert {done.result["validation"][name] * 12 % 1 for name in ("linear", "knn")} == {0.0}
    assert looked == [36, 12]  # while it trained, the test images were not read
    assert "validation_images: 12" in (tmp_path / "run/config.yaml").read_text()
    with pytest.raises(ConfigError, match=r"validation=1\.0 holds out all images"):
        replace(config, validation=1.0)
    with pytest.raises(ConfigError, match=r"validation must be in \[0, 1\]"):
        replace(config, validation=-0.1)


@pytest.mark.parametrize("name", ["fig4", "pca", "supervised", "fig5"])
def test_every_figure_has_something_to_choose_among_its_settings(name, tmp_path):
    data = ["a", "b"] if name == "fig5" else ["a"]
    sweep = planned(name, tmp_path, model="resnet18-cifar:2", at=[3, 4], data=data, validation=0.1)
    names = {s.name for s in sweep.plan.settings}
    assert all(s.config.validation == 0.1 for s in sweep.plan.settings)
    for choice in sweep.plan.choices:
        assert choice.among
        assert {*choice.among, choice.baseline} <= names
        assert all(sweep.plan.baseline[name] == choice.baseline for name in choice.among)
    assert len(sweep.plan.choices) == 2
    if name == "supervised":
        methods = {s.name: s.config.method for s in sweep.plan.settings}
        assert {methods[n] for n in sweep.plan.choices[1].among} == {"supervised"}
        assert methods[PLAIN] == "simclr"


def outcomes(plan, seeds, validation):
    """Made up: the k-th setting is better by k hundredths, on both."""
    return {
        s.name: {
            seed: Outcome(
                {
                    "linear": 0.5 + 0.01 * k + 0.001 * seed,
                    "few_labels.mean": 0.4,
                    "knn": 0.4,
                    **({"validation.linear": 0.5 + 0.01 * k} if validation else {}),
                }
            )
            for seed in range(seeds)
        }
        for k, s in enumerate(plan.settings)
    }


def test_the_report_tells_the_choice_and_how_it_was_made(tmp_path):
    plan = planned("pca", tmp_path, model="resnet18-cifar:2", at=[3, 4], data=["a"], validation=0.1).plan
    text = report("pca", plan, outcomes(plan, 3, True), tmp_path)
    assert (
        "chosen by the linear probe on images held out of the training set, for each seed by the other"
        in text
    )
    names = [s.name for s in plan.settings]
    best = {"dropout": names[4], "PCA": names[8]}
    for word, name in best.items():
        line = f"{word}, its site chosen: {50.1 + names.index(name):.1f} ± 0.2; to SimCLR: +{names.index(name)}.0"
        assert line in text, text
    told = json.loads((tmp_path / "results.json").read_text())["choices"]
    assert [c["chosen"] for c in told] == [{str(s): name for s in range(3)} for name in best.values()]
    assert "chosen by the linear probe" not in report("pca", plan, outcomes(plan, 3, False), None)
    assert "chosen by the linear probe" not in report("pca", plan, outcomes(plan, 1, True), None)


@pytest.mark.long
def test_a_sweep_chooses(tmp_path):
    write_idx(tmp_path / "idx", train=160, test=40)
    sweep = planned(
        "fig4", tmp_path / "fig4", data=[f"idx:{tmp_path / 'idx'}"], model="resnet18-cifar:2", at=[4], epochs=1,
        images=128, seeds=2, validation=0.2,
    )  # fmt: skip
    plan = replace(
        sweep.plan, settings=tuple(replace(s, config=replace(s.config, size=8)) for s in sweep.plan.settings)
    )
    sweep = replace(sweep, plan=plan)
    sweep.check()
    text = report("fig3-4", plan, sweep.run(Executor(), lambda line: None), tmp_path / "fig4")
    assert "Deep Augmentation, its site chosen: " in text
    assert "dropout everywhere, its rate chosen: " in text
