"""Runs read back, the report as a page that stands alone, and the check of the advice."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr
from sklearn.neighbors import KNeighborsClassifier

from graphaug import errors
from graphaug.analysis import advise
from graphaug.analysis.check import check_advice, rank_correlation
from graphaug.analysis.report import analyze
from graphaug.analysis.runs import read_run
from graphaug.analysis.study import study
from graphaug.contrastive.config import PretrainConfig
from graphaug.contrastive.data import ImageData, ImageSet, load
from graphaug.contrastive.pretrain import pretrain

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


class Page(HTMLParser):
    """Collects what a page refers to, and the text of its cells."""

    def __init__(self, text):
        super().__init__()
        self.links, self.images, self.open, self.cells = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "img":
            self.images.append(attrs)
        self.links += [v for k, v in attrs.items() if k in ("src", "href")]
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "td":
            self.cells.append(data)


def test_the_report_stands_alone(run, tmp_path):
    other = tmp_path / "<b>&first"
    shutil.copytree(run, other)
    path = analyze([run, other], tmp_path / "out", samples=64)
    page = Page(path.read_text())
    assert page.open == []
    assert all(link.startswith("data:") for link in page.links)
    assert len(page.images) == 5  # three shared, one heat map a run
    assert all(image["alt"] for image in page.images)
    assert page.cells[0] == "first"
    assert "<b>&first" in page.cells
    assert "✂ layer2.1" in page.cells  # layer2's output is that of its last block
    figures = {f.name for f in (path.parent / "figures").iterdir()}
    assert {"curves.svg", "curves.png", "plane.svg", "spectrum.png", "cka-first.svg"} <= figures
    assert len(figures) == 10
    assert "graphaug:" in path.read_text()  # the versions


def test_a_report_is_not_overwritten(run, tmp_path):
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(errors.RunDirectoryError, match="another report"):
        analyze([run], tmp_path)
    assert (tmp_path / "report.html").read_text() == "mine"
    (tmp_path / "file").touch()
    with pytest.raises(errors.RunDirectoryError, match="is a file"):
        analyze([run], tmp_path / "file")


def test_nothing_is_written_before_all_runs_are_read(run, tmp_path):
    with pytest.raises(errors.RunDirectoryError, match="no such directory"):
        analyze([run, tmp_path / "gone"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(
    not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    reason="no Chromium is installed",
)
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
    assert title[1] == "true,true,true,true"
    assert "CONSOLE" not in shown.stderr


# --- the numbers in it -------------------------------------------------------------------------


def test_study_of_a_run(run, digits):
    found = study(read_run(run), data=digits, samples=64)
    assert [m.epoch for m in found.moments] == [0, 1, 2]
    # epoch 0 holds the final weights in this test
    assert found.moments[0].alignment == pytest.approx(found.moments[2].alignment)
    assert found.moments[1].alignment != pytest.approx(found.moments[2].alignment)
    assert found.cuts == ("layer2.1",)
    assert [g.site for g in found.sites] == list(found.advice.similarity.rows)
    assert "fc" not in found.advice.similarity.rows
    assert float(found.spectrum.sum()) == pytest.approx(1)
    assert found.dissection is not None
    assert found.dissection.effects[0].gradient == 0  # stopped below layer2
    assert found.samples == 64


def test_knn_of_a_moment_is_scikit_learns(run, digits):
    """With temperature and k aside: one neighbour, by cosine, on the encoder's features by a hook."""
    from graphaug.contrastive.views import EvalView

    last = study(read_run(run), data=digits, samples=64).moments[-1]
    model = read_run(run).model()
    view = EvalView(8, *digits.statistics())
    found = []
    handle = model.avgpool.register_forward_hook(lambda _, __, out: found.append(out.flatten(1).detach()))
    for part in (digits.train.images, digits.test.images[:64]):
        model(view(part).expand(-1, 3, -1, -1))
    handle.remove()
    weights = lambda d: np.exp((1 - d) / 0.1)  # noqa: E731
    knn = KNeighborsClassifier(192, metric="cosine", weights=weights, algorithm="brute")
    knn.fit(found[0].numpy(), digits.train.labels)
    assert last.knn == pytest.approx(knn.score(found[1].numpy(), digits.test.labels[:64]), abs=0.02)


def test_a_run_without_augmentation_or_snapshots(tmp_path, digits):
    pretrain(PretrainConfig(**{**CONFIG.to_dict(), "at": (), "epochs": 1}), tmp_path / "plain", data=digits)
    found = study(read_run(tmp_path / "plain"), data=digits, samples=64)
    assert found.dissection is None
    assert found.cuts == ()
    assert found.moments[-1].epoch == 1
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
    ],
)
def test_damaged_runs(run, tmp_path, name, content, match):
    with pytest.raises(errors.RunDirectoryError, match=match):
        read_run(damaged(run, tmp_path, name, content))


def test_weights_that_do_not_fit(run, tmp_path):
    path = damaged(run, tmp_path, "encoder.safetensors", b"not tensors")
    with pytest.raises(errors.RunDirectoryError, match="is no encoder of 'resnet18-cifar:4'"):
        read_run(path).model()


# --- the check of the advice ----------------------------------------------------------------------


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
    settings = 2 * len(advice.similarity.rows)
    assert lines == [(i, settings + 1) for i in range(1, settings + 2)]
    assert len(found.trials) == settings
    assert [t.accuracy for t in found.trials] == sorted((t.accuracy for t in found.trials), reverse=True)
    assert {(t.at, t.stop_grad) for t in found.trials if t.score} == {(s.at, s.stop_grad) for s in advice}
    by_hand = pretrain(
        PretrainConfig(**{**CONFIG.to_dict(), "at": ("layer3.0",), "epochs": 1, "stop_grad": False}),
        data=digits,
    )
    (trial,) = [t for t in found.trials if (t.at, t.stop_grad) == ("layer3.0", False)]
    assert trial.accuracy == by_hand.result["knn"]
    json.dumps(found.to_dict())
    assert "Spearman" in str(found) or "no rank correlation" in str(found)
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


def test_commands(run, graphaug, tmp_path):
    code, printed, said = graphaug("advise", run, "--samples", 32, "--out", tmp_path / "advice.json")
    assert code == 0, said
    assert "CKA (unbiased, linear), 32 samples" in printed
    assert json.loads((tmp_path / "advice.json").read_text())["run"] == str(run)
    code, printed, said = graphaug("analyze", run, "--out", tmp_path / "report", "--samples", 32)
    assert code == 0, said
    assert printed.strip() == str(tmp_path / "report" / "report.html")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["advise", "gone"], "no such directory"),
        (["analyze", "gone"], "no such directory"),
        (["advise", "RUN", "--metric", "acuracy"], "no metric is called 'acuracy'"),
        (["advise", "RUN", "--out", "RUN/config.yaml"], "exists. Choose another file"),
    ],
)
def test_bad_arguments(run, graphaug, arguments, match):
    code, _, said = graphaug(*(a.replace("RUN", str(run)) for a in arguments))
    assert code == 2
    assert match in said
