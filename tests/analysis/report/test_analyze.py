"""Runs read back, the report as a page that stands alone, and the check of the advice."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr
from sklearn.neighbors import KNeighborsClassifier

from graphaug import errors
from graphaug.analysis import CKA, Geometry, Stretch, advise
from graphaug.analysis.check import check_advice, rank_correlation
from graphaug.analysis.report import figures
from graphaug.analysis.report.analyze import _named, _stems, analyze, analyze_run, render
from graphaug.analysis.report.findings import Measurement
from graphaug.analysis.report.measure_images import advise_images, balanced
from graphaug.analysis.report.read import read_run
from graphaug.vision.config import PretrainConfig
from graphaug.vision.data.images import ImageData, ImageSet, load
from graphaug.vision.pretrain import PretrainResult, pretrain
from graphaug.vision.views.pipeline import EvalView

pytestmark = pytest.mark.few(2)

CONFIG = PretrainConfig(
    model="resnet18-cifar:4", size=8, crop=0.5, batch_size=64, epochs=2, at=("layer2",), stop_grad=True
)


def few(data):
    """A part of a data set, so that a run takes a second."""
    parts = [ImageSet(p.images[:n], p.labels[:n]) for p, n in ((data.train, 192), (data.test, 96))]
    return ImageData(data.name, *parts, data.classes, data.view_size, data.mirror)


@pytest.fixture(scope="module")
def digits():
    return few(load("digits"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, digits):
    path = tmp_path_factory.mktemp("runs") / "first"
    pretrain(CONFIG, path, data=digits)
    (path / "snapshots").mkdir(exist_ok=True)
    weights = load_file(path / "encoder.safetensors")
    for epoch, scale in ((0, 0.0), (1, 0.5)):
        noisy = {k: v + scale * torch.randn(v.shape) if v.dim() > 1 else v for k, v in weights.items()}
        save_file(noisy, path / "snapshots" / f"epoch-{epoch:04d}.safetensors")
    return path


@pytest.fixture(scope="module")
def bare(run, tmp_path_factory):
    """The same without snapshots: to look at it is three times as quick."""
    path = tmp_path_factory.mktemp("bare") / "first"
    shutil.copytree(run, path, ignore=shutil.ignore_patterns("snapshots"))
    return path


@pytest.fixture(scope="module")
def studied(run, digits):
    return analyze_run(read_run(run), data=digits, samples=64)


class Page(HTMLParser):
    """Collects what a page refers to, and the text of its cells."""

    def __init__(self, text):
        super().__init__()
        self.links, self.images, self.open, self.cells = [], [], [], []
        self.ids, self.details = [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "img":
            self.images.append(attrs)
        self.links += [v for k, v in attrs.items() if k in ("src", "href")]
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.details += tag == "details"
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "td":
            self.cells.append(data)


@pytest.mark.long  # a report of its own, with all its measurements
def test_the_report_stands_alone(run, bare, tmp_path):
    other = tmp_path / "<b>&x" / "first"
    shutil.copytree(bare, other)
    path = analyze([run, other], tmp_path / "out", samples=64)
    page = Page(path.read_text())
    assert page.open == []
    assert all(link.startswith(("data:", "#")) for link in page.links)
    contents = [link.removeprefix("#") for link in page.links if link.startswith("#")]
    assert contents == ["runs", "run-1", "run-2"]
    assert page.ids == contents  # every entry leads to its section
    assert page.details == 2  # configurations are folded
    assert len(page.images) == 7  # three shared, two of each run
    assert all(image["alt"] for image in page.images)
    assert page.cells[0] == f"{run.parent.name}/first"
    assert "<b>&x/first" in page.cells
    assert "✂ layer2.1" in page.cells  # layer2's output is that of its last block
    figures = {f.name for f in (path.parent / "figures").iterdir()}
    assert {
        "curves.svg",
        "curves.png",
        "plane.svg",
        "spectrum.png",
        "cka-_b_x_first.svg",
        "sites-_b_x_first.png",
    } <= figures
    assert len(figures) == 14
    assert "graphaug:" in path.read_text()  # the versions


@pytest.mark.long
def test_runs_of_one_name_and_names_of_one_file(run, tmp_path):
    runs = [tmp_path / p for p in ("one/first", "two/first", "a b", "A_b", "a_b-2")]
    for path in runs:
        shutil.copytree(run, path)
    names = list(_named([read_run(path) for path in [*runs, runs[0]]]))  # what is named twice is shown once
    assert names == ["one/first", "two/first", "a b", "A_b", "a_b-2"]
    stems = _stems(names)
    assert stems[0] == "one_first"
    assert len({stem.lower() for stem in stems}) == 5


@pytest.mark.long  # a report of its own, with all its measurements
def test_a_run_whose_probes_are_missing(bare, digits, tmp_path):
    """It was stopped between its encoder and its result."""
    path = damaged(bare, tmp_path, "result.json", None)
    cells = Page(render({"run": analyze_run(read_run(path), data=digits, samples=32)}, tmp_path)).cells
    assert cells[:4] == ["run", "layer2", "yes", "0.5"]
    assert cells[7:10] == ["–", "–", "–"]


def variant(run, tmp_path, **changes):
    """The run as if it had been made with other settings."""
    path = tmp_path / "variant"
    shutil.copytree(run, path)
    config = yaml.safe_load((path / "config.yaml").read_text())
    (path / "config.yaml").write_text(yaml.safe_dump(config | changes))
    return path


@pytest.mark.long  # a report of its own, with all its measurements
def test_a_run_augmented_everywhere(bare, tmp_path, digits):
    path = variant(bare, tmp_path, at=[], everywhere=True)
    found = analyze_run(read_run(path), data=digits, samples=32)
    assert found.augmented == ("relu", "layer1", "layer2", "layer3", "layer4", "flatten", "fc")
    assert found.cuts == ("relu", "layer1.1", "layer2.1", "layer3.1", "layer4.1", "flatten")
    assert found.dissection is not None
    assert found.dissection.effects[0].after_cut
    assert "without Deep Augmentation" not in render({"run": found}, tmp_path)


@pytest.mark.long  # a report of its own, with all its measurements
def test_a_cut_in_the_head(bare, tmp_path, digits):
    path = variant(bare, tmp_path, at=["fc.0"])
    found = analyze_run(read_run(path), data=digits, samples=32)
    assert (found.augmented, found.cuts, found.dissection) == (("fc.0",), (), None)
    assert "projection head" in found.undissected
    page = render({"run": found}, tmp_path)
    assert "Left out: it acts in the projection head" in page
    assert "What was augmented, fc.0, is not among the compared sites." in page


@pytest.mark.long
def test_a_cut_that_is_no_candidate_is_compared_and_marked(bare, studied, tmp_path, digits):
    found = analyze_run(read_run(variant(bare, tmp_path, at=["bn1"])), data=digits, samples=64)
    candidates = studied.advice
    assert found.cuts == ("bn1",)
    assert "bn1" in found.advice.similarity.rows
    assert found.advice.sites == candidates.sites  # the advice is as it would be without
    assert list(found.advice) == list(candidates)
    assert found.dissection is not None
    assert "bn1" in [e.site for e in found.dissection.effects]


@pytest.mark.long
def test_images_without_labels(bare, tmp_path, digits, monkeypatch):
    """One folder of images: there is no kNN and no tolerance, and the advice cannot be checked."""

    def unlabelled(part):
        return ImageSet(part.images, torch.zeros_like(part.labels))

    data = replace(digits, train=unlabelled(digits.train), test=unlabelled(digits.test), classes=("all",))
    found = analyze_run(read_run(bare), data=data, samples=32)
    assert all(m.score is None and m.tolerance is None for m in found.measurements)
    assert all(site.tolerance is None for site in found.sites)
    assert "Singular values" in render({"run": found}, tmp_path)
    begun = []
    monkeypatch.setattr("graphaug.analysis.check.pretrain", lambda *_, **__: begun.append(1))
    with pytest.raises(errors.DataError, match="without labels"):
        check_advice(found.advice, CONFIG, data, epochs=1)
    assert not begun


@pytest.mark.long
def test_no_class_twice_among_the_samples(bare, digits):
    test = ImageSet(digits.test.images[:10], torch.arange(10))
    found = analyze_run(read_run(bare), data=replace(digits, test=test), samples=32)
    assert all(site.tolerance is None for site in found.sites)
    assert found.measurements[-1].tolerance is None
    assert found.measurements[-1].score is not None


@pytest.mark.long
def test_trials_have_settings_of_their_own(studied, digits, monkeypatch):
    """A run with stop-gradient and a sparse backward, everywhere and with a long warm-up, can be checked."""
    config = PretrainConfig(
        **{
            **CONFIG.to_dict(),
            "at": (),
            "everywhere": True,
            "backward": "sparse",
            "epochs": 40,
            "warmup": 10.0,
            "subset_end": 0.2,
        }
    )
    seen = []

    def trial(config, data):
        seen.append(config)
        return PretrainResult(torch.nn.Identity(), [], {"linear": 0.5, "knn": 0.5})

    monkeypatch.setattr("graphaug.analysis.check.pretrain", trial)
    advice = studied.advice
    check_advice(advice, config, digits, epochs=4)
    assert len(seen) == 1 + 2 * len(advice.sites)
    assert {c.backward for c in seen} == {"auto"}
    assert {c.warmup for c in seen} == {1.0}
    assert {c.subset_end for c in seen} == {None}
    assert not any(c.everywhere for c in seen)
    assert seen[0].at == ()


@pytest.mark.long
def test_a_report_is_not_overwritten(run, tmp_path):
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(errors.RunDirectoryError, match="another report"):
        analyze([run], tmp_path)
    assert (tmp_path / "report.html").read_text() == "mine"
    (tmp_path / "file").touch()
    with pytest.raises(errors.RunDirectoryError, match="is a file"):
        analyze([run], tmp_path / "file")


@pytest.mark.long
def test_nothing_is_written_before_all_runs_are_read(run, tmp_path):
    with pytest.raises(errors.RunDirectoryError, match="no such directory"):
        analyze([run, tmp_path / "gone"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(
    not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    reason="no Chromium is installed",
)
@pytest.mark.long
def test_a_browser_shows_it(run, tmp_path):
    """No message on the console, and every picture has a size."""
    path = analyze([run], tmp_path / "out", samples=64)
    seen = "[...document.images].map(i => i.complete && i.naturalWidth > 100).join()"
    probe = f"<script>addEventListener('load', () => document.title = {seen})</script>"
    path.write_text(path.read_text().replace("</body>", probe + "</body>"))
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    command += ["--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom", path.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    title = re.search(r"<title>(.*?)</title>", shown.stdout, re.DOTALL)
    assert title is not None
    assert title[1] == "true,true,true,true,true"
    assert "CONSOLE" not in shown.stderr


# --- the numbers in it -------------------------------------------------------------------------


@settings(max_examples=40)
@given(counts=st.lists(st.integers(1, 12), min_size=1, max_size=5), count=st.integers(1, 60))
def test_a_balanced_subset_of_sorted_labels(counts, count):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    chosen = balanced(labels, count)
    assert len(set(chosen.tolist())) == len(chosen) == min(count, len(labels))
    assert torch.equal(chosen, balanced(labels, count))
    taken = labels[chosen].bincount(minlength=len(counts)).tolist()
    # a class has fewer than another only if it has no more
    assert all(n == size or n >= max(taken) - 1 for n, size in zip(taken, counts, strict=True))


@pytest.mark.long
def test_data_sorted_by_class_are_analysed_over_all_classes(bare, digits, monkeypatch):
    """As a folder gives them: the first images would be zeros and ones alone."""

    def ordered(part):
        order = part.labels.argsort(stable=True)
        return ImageSet(part.images[order], part.labels[order])

    by_class = replace(digits, train=ordered(digits.train), test=ordered(digits.test))
    seen = []
    monkeypatch.setattr(
        "graphaug.analysis.report.measure_images.knn_accuracy",
        lambda known, y, asked, labels: seen.extend([y, labels]) or 0.5,
    )
    analyze_run(read_run(bare), data=by_class, samples=30)
    assert all(len(labels.unique()) == 10 for labels in seen)
    monkeypatch.setattr("graphaug.analysis.report.measure_images.load", lambda *_, **__: by_class)
    looked = []
    monkeypatch.setattr(
        "graphaug.analysis.report.measure_images.advise",
        lambda _, images, __: looked.append(images) or images,
    )
    images, _ = advise_images(read_run(bare), samples=20)
    plain = EvalView(8, *by_class.statistics())(by_class.test.images)
    labels = [
        int(by_class.test.labels[(plain[:, :1] - image[:1]).abs().sum((1, 2, 3)).argmin()])
        for image in images
    ]
    assert sorted(labels) == sorted([*range(10)] * 2)


def test_analysis_of_a_run(studied):
    found = studied
    assert [m.time for m in found.measurements] == [0, 1, 2]
    # epoch 0 holds the final weights in this test
    assert found.measurements[0].alignment == pytest.approx(found.measurements[2].alignment)
    assert found.measurements[1].alignment != pytest.approx(found.measurements[2].alignment)
    assert found.cuts == ("layer2.1",)
    assert "fc" not in found.advice.similarity.rows
    assert float(found.spectrum.sum()) == pytest.approx(1)
    for measurement in found.measurements:
        assert [g.site for g in measurement.sites] == list(found.advice.similarity.rows)
        features = next(
            g for g in measurement.sites if g.site == "flatten"
        )  # of the first views, as in a measurement
        assert measurement.alignment == pytest.approx(features.alignment, rel=1e-4)
        assert (measurement.std, measurement.rank) == pytest.approx((features.std, features.rank), rel=1e-4)
        assert measurement.tolerance == pytest.approx(features.tolerance, rel=1e-4)
    assert found.sites == found.measurements[-1].sites
    first, second = (next(g for g in m.sites if g.site == "layer1.0") for m in found.measurements[:2])
    assert first != second  # each with the weights of its own snapshot
    assert found.dissection is not None
    assert found.dissection.effects[0].gradient == 0  # stopped below layer2
    assert found.samples == 64


def test_knn_of_a_measurement_is_scikit_learns(run, studied, digits):
    """With temperature and k aside: one neighbour, by cosine, on the encoder's features by a hook."""
    last = studied.measurements[-1]
    model = read_run(run).model()
    view = EvalView(8, *digits.statistics())
    found = []
    handle = model.avgpool.register_forward_hook(lambda _, __, out: found.append(out.flatten(1).detach()))
    chosen = balanced(digits.test.labels, 64)
    for part in (digits.train.images, digits.test.images[chosen]):
        model(view(part).expand(-1, 3, -1, -1))
    handle.remove()
    weights = lambda d: np.exp((1 - d) / 0.1)  # noqa: E731
    knn = KNeighborsClassifier(192, metric="cosine", weights=weights, algorithm="brute")
    knn.fit(found[0].numpy(), digits.train.labels)
    assert last.score == pytest.approx(knn.score(found[1].numpy(), digits.test.labels[chosen]), abs=0.02)


@pytest.mark.long
def test_a_run_without_augmentation_or_snapshots(tmp_path, digits):
    pretrain(
        PretrainConfig(**{**CONFIG.to_dict(), "at": (), "stop_grad": False, "epochs": 1}),
        tmp_path / "plain",
        data=digits,
    )
    found = analyze_run(read_run(tmp_path / "plain"), data=digits, samples=64)
    assert found.dissection is None
    assert found.cuts == ()
    assert found.measurements[-1].time == 1
    page = analyze([tmp_path / "plain"], tmp_path / "out", samples=64).read_text()
    assert "trained without Deep Augmentation" in page


# --- reading runs -------------------------------------------------------------------------------


def damaged(run, tmp_path, name, content):
    path = tmp_path / "run"
    shutil.copytree(run, path)
    if content is None:
        (path / name).unlink()
    else:
        (path / name).write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("config.yaml", None, "holds no config.yaml"),
        ("config.yaml", b"[1, 2]", "is no configuration of a run"),
        ("config.yaml", b"a: [", "is no configuration of a run"),
        ("config.yaml", b"epocs: 3", "Did you mean 'epochs'"),
        ("config.yaml", b"!!python/object/apply:os.system ['true']", "is no configuration of a run"),
        ("encoder.safetensors", None, "the run did not finish"),
        ("metrics.jsonl", b'{"loss": 1}\n{"lo', "is damaged"),
        ("metrics.jsonl", b'{"loss": 1}\n{"epoch": 2}', "a line has no loss"),
        ("metrics.jsonl", b"[1]", "holds a list, not an object"),
        ("result.json", b"[]", "holds a list, not an object"),
        ("result.json", b'{"few_labels": 3}', "few_labels is no table"),
    ],
)
def test_damaged_runs(run, tmp_path, name, content, match):
    with pytest.raises(errors.RunDirectoryError, match=match):
        read_run(damaged(run, tmp_path, name, content))


def test_weights_that_do_not_fit(run, tmp_path):
    path = damaged(run, tmp_path, "encoder.safetensors", b"not tensors")
    with pytest.raises(errors.RunDirectoryError, match="is no encoder of 'resnet18-cifar:4'"):
        read_run(path).model()


# --- figures --------------------------------------------------------------------------------------


def test_the_heat_map_shows_stretches_and_cut():
    names = tuple("abcd")
    matrix = CKA(names, names, torch.eye(4).double(), 9, "unbiased", "linear")
    figure = figures.heat_map(matrix, [Stretch(1, 2, 0.9, 0.1, 0.5)], ["c"])
    axes, bar = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel(), bar.get_ylabel()) == (
        "site",
        "site",
        "CKA (unbiased, linear)",
    )
    assert [t.get_text() for t in axes.get_xticklabels()] == ["a", "b", "✂ c", "d"]
    assert {(p.get_xy(), p.get_width(), p.get_height()) for p in axes.patches} == {((0.5, 0.5), 2, 2)}
    # behind the cut: between c and d, from side to side
    across, up = axes.lines
    assert list(across.get_ydata()) == list(up.get_xdata()) == [2.5, 2.5]
    assert axes.images[0].get_clim() == (0, 1)
    bare = figures.heat_map(matrix).axes[0]
    assert not [*bare.lines, *bare.patches]


def test_the_plane_the_curves_and_the_spectrum():
    measurements = [
        Measurement(0, 0.5, -1.0, 0.1, 3.0, 8, 0.25),
        Measurement(4, 0.2, -2.0, 0.1, 4.0, 8, 0.75),
    ]
    (axes,) = figures.plane({"run": measurements}).axes
    assert axes.get_xlabel().startswith("uniformity")
    assert axes.get_ylabel().startswith("alignment")
    assert axes.lines[0].get_xydata().tolist() == [[-1.0, 0.5], [-2.0, 0.2]]
    assert {t.get_text() for t in axes.texts} >= {"epoch 0", "epoch 4"}
    loss, accuracy = figures.curves({"run": [(1, 3.0), (2, 2.0)]}, {"run": measurements}).axes
    assert (loss.get_ylabel(), accuracy.get_ylabel()) == ("training loss (nats)", "kNN accuracy (%)")
    assert loss.lines[0].get_xydata().tolist() == [[1, 3.0], [2, 2.0]]
    assert accuracy.lines[0].get_xydata().tolist() == [[0, 25.0], [4, 75.0]]
    noise = [replace(m, score=0.5 + i / 1000) for i, m in enumerate(measurements)]
    loss, accuracy = figures.curves({"run": [(1, 4.130), (4, 4.139)]}, {"run": noise}).axes
    spans = [high - low for low, high in (loss.get_ylim(), accuracy.get_ylim())]
    assert spans == pytest.approx([0.1, 10.0])  # a change of a thousandth does not fill the figure
    # of twelve images, one more is 8 points: no axis is shorter than 4·sqrt(0.5·0.5/12)
    one_more = [replace(m, score=(6 + i) / 12) for i, m in enumerate(measurements)]
    _, accuracy = figures.curves({"run": []}, {"run": one_more}, scored=12).axes
    low, high = accuracy.get_ylim()
    assert high - low == pytest.approx(57.735, abs=1e-3)
    _, accuracy = figures.curves({"run": [(1, 3.0)]}, {"run": [replace(measurements[0], score=None)]}).axes
    assert [t.get_text() for t in accuracy.texts] == ["not measured"]
    site = Geometry("a", 0.5, -1.0, 0.25, 3.0, 16, 8)
    early = replace(measurements[0], sites=(site, replace(site, site="b")))
    late = replace(measurements[1], sites=(replace(site, alignment=0.2), replace(site, site="b", rank=8.0)))
    *panels, bar = figures.sites([early, late], ["b"]).axes
    alone, _, std, rank = panels
    assert [line.get_ydata().tolist() for line in alone.lines[:2]] == [[0.5, 0.5], [0.2, 0.5]]
    assert std.lines[0].get_ydata().tolist() == [1, 1]
    assert rank.lines[1].get_ydata().tolist() == [3 / 16, 0.5]
    assert [t.get_text() for t in rank.get_xticklabels()] == ["a", "✂ b"]
    assert alone.lines[2].get_xdata() == [1, 1]  # the cut
    assert bar.get_ylabel() == "epoch"
    assert len(figures.sites([late]).axes) == 4  # one measurement needs no scale of epochs
    (axes,) = figures.spectrum({"run": torch.tensor([0.7, 0.3, 0.0])}).axes
    assert axes.get_xlabel() == "dimension, by size"
    assert axes.lines[0].get_ydata() == pytest.approx([0.7, 0.3])


# --- the check of the advice ----------------------------------------------------------------------


@pytest.mark.long  # a report of its own, with all its measurements
def test_check_ranks_every_site(run, digits):
    model, images = read_run(run).model(), digits.test.images[:64].expand(-1, 3, -1, -1) / 16
    advice = advise(model, images, ["relu", "layer2.1", "layer3.0", "layer4.0"])
    lines = []
    found, other = check_advice(
        advice,
        CONFIG,
        digits,
        epochs=1,
        metrics=("knn", "linear"),
        on_trial=lambda done, total, line: lines.append((done, total)),
    )
    assert (found.metric, other.metric) == ("knn", "linear")
    trials = 2 * len(advice.similarity.rows)
    assert lines == [(i, trials + 1) for i in range(1, trials + 2)]
    assert len(found.trials) == trials
    assert [t.accuracy for t in found.trials] == sorted((t.accuracy for t in found.trials), reverse=True)
    assert len(advice) == 2
    assert {(t.at, t.stop_grad) for t in found.trials if t.score} == {(s.at, s.stop_grad) for s in advice}
    by_hand = pretrain(
        PretrainConfig(
            **{**CONFIG.to_dict(), "at": ("layer3.0",), "epochs": 1, "stop_grad": False, "warmup": 0.5}
        ),
        data=digits,
    )
    (trial,) = [t for t in found.trials if (t.at, t.stop_grad) == ("layer3.0", False)]
    assert trial.accuracy == by_hand.result["knn"]
    json.dumps(found.to_dict())
    same = rank_correlation([t.score for t in found.trials], [t.accuracy for t in found.trials])
    assert (found.correlation, found.low, found.high, found.p_value) == same
    if found.correlation is None:  # so few epochs may give one accuracy
        assert len({t.accuracy for t in found.trials}) == 1
    else:
        assert f"correlation of score and accuracy: {found.correlation:.2f}" in str(found)
    assert "no rank correlation" in str(replace(found, correlation=None))
    with pytest.raises(errors.InvalidOption, match="Did you mean 'linear'"):
        check_advice(advice, CONFIG, digits, epochs=1, metrics=["linaer"])
    with pytest.raises(errors.InvalidOption, match="a seed"):
        check_advice(advice, CONFIG, digits, epochs=1, seeds=[])


def test_rank_correlation():
    scores, accuracies = [0, 0, 1, 2, 0, 3], [0.1, 0.3, 0.2, 0.6, 0.4, 0.5]
    value, low, high, p = rank_correlation(scores, accuracies)
    assert value == pytest.approx(spearmanr(scores, accuracies).statistic)
    assert -1 <= low <= value <= high <= 1
    assert p == pytest.approx(spearmanr(scores, accuracies, alternative="greater").pvalue, abs=0.05)
    assert rank_correlation([0, 0, 0], [1, 2, 3]) == (None,) * 4
    value, _, _, p = rank_correlation(range(8), range(8))
    assert value == 1
    assert p < 0.01


# --- the command line ------------------------------------------------------------------------------


@pytest.mark.long
def test_commands(bare, graphaug, tmp_path):
    code, printed, said = graphaug("advise", bare, "--samples", 32, "--out", tmp_path / "advice.json")
    assert code == 0, said
    assert "CKA (unbiased, linear), 32 samples" in printed
    assert json.loads((tmp_path / "advice.json").read_text())["run"] == str(bare)
    code, printed, said = graphaug("analyze", bare, "--out", tmp_path / "report", "--samples", 32)
    assert code == 0, said
    assert printed.strip() == str(tmp_path / "report" / "report.html")


@pytest.mark.long
def test_advice_is_checked_from_the_command_line(run, digits, graphaug, monkeypatch, tmp_path):
    """All of it, but for all sites: two settings and the plain run, on a part of the digits."""
    monkeypatch.setattr("graphaug.analysis.report.measure_images.load", lambda *_, **__: digits)
    monkeypatch.setattr(
        "graphaug.analysis.report.measure_images.candidates", lambda *_: ["relu", "layer2.1", "layer4.1"]
    )
    out = tmp_path / "advice.json"
    code, printed, said = graphaug(
        *("advise", run, "--samples", 32, "--check", "--epochs", 1, "--metric", "knn", "--out", out)
    )
    assert code == 0, said
    assert "[7/7]" in said
    assert "(plain)" in printed
    check = json.loads(out.read_text())["check"]
    assert {(t["at"], t["stop_grad"]) for t in check["trials"]} == {
        (site, stop) for site in ("relu", "layer2.1", "layer4.1") for stop in (False, True)
    }
    assert len(check["plain"]) == 1
    assert all(0 <= t["accuracies"][0] <= 1 for t in check["trials"])


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["advise", "gone"], "no such directory"),
        (["analyze", "gone"], "no such directory"),
        (["advise", "RUN", "--check", "--metric", "acuracy"], "no metric is called 'acuracy'"),
        (["advise", "RUN", "--sts", "RUN"], "--sts does nothing with a run on images"),
        (["analyze", "RUN", "--sts", "RUN", "--out", "RUN/new"], "--sts does nothing with runs on images"),
        (["advise", "RUN", "--out", "RUN/config.yaml"], "exists. Choose another file"),
    ],
)
def test_bad_arguments(run, graphaug, arguments, match):
    code, _, said = graphaug(*(a.replace("RUN", str(run)) for a in arguments))
    assert code == 2
    assert match in said
