"""Analysis of runs on text: against what the training itself wrote down, and against transformers' hidden states."""

import json
import shutil
from dataclasses import replace

import pytest
import text_runs
import torch
import torch.nn.functional as F
import yaml
from transformers import AutoModel, AutoTokenizer

from graphaug import errors
from graphaug.analysis.report.analyze import analyze, analyze_run, render
from graphaug.analysis.report.read import TextRun, read_run
from graphaug.text.sts.tasks import load_tasks
from graphaug.text.train import simcse

pytestmark = pytest.mark.few(1)


@pytest.fixture(scope="module")
def sts(tmp_path_factory):
    return text_runs.sts_files(tmp_path_factory.mktemp("data") / "sts")


@pytest.fixture(scope="module")
def run(tmp_path_factory, sts):
    """Ten steps, told at 3, 6, 9 and 10, its encoder kept at 0, 4, 8 and 10."""
    path = tmp_path_factory.mktemp("runs") / "text"
    config = replace(text_runs.CONFIG, sts=str(sts), snapshot_every=4)
    simcse(config, path, corpus=text_runs.corpus())
    return path


@pytest.fixture(scope="module")
def studied(run):
    return analyze_run(read_run(run), samples=32)


def told(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.long
def test_measurements_are_what_the_training_saw(run, studied):
    """The end is measured again, at a site of the captured graph; the others are read, or snapshots."""
    best = json.loads((run / "result.json").read_text())["best_on_dev"]["step"]
    assert [m.time for m in studied.measurements] == sorted({0, 4, 8, 3, 6, 9, 10})
    for line in told(run):
        (measurement,) = [m for m in studied.measurements if m.time == line["step"]]
        measured = (measurement.alignment, measurement.uniformity, measurement.score)
        expected = (line["alignment"], line["uniformity"], line["stsb_dev"])
        assert measured == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert bool(measurement.sites) == (line["step"] in (best, 10))
    assert all(m.sites and m.rank and m.spread for m in studied.measurements if m.time in (0, 4, 8, 10))
    assert studied.scores["STS-B dev"] == told(run)[-1]["stsb_dev"]


@pytest.mark.long
def test_snapshots_are_the_encoder_on_its_way(run):
    """That of step 0 is the untrained one, and they differ from one to the next."""
    found = read_run(run).snapshots
    assert list(found) == [0, 4, 8]
    weights = [AutoModel.from_pretrained(path).get_input_embeddings().weight for path in found.values()]
    ended = AutoModel.from_pretrained(run / "encoder").get_input_embeddings().weight
    assert all(not torch.equal(a, b) for a, b in zip(weights, [*weights[1:], ended], strict=True))


@pytest.mark.long
def test_geometry_of_a_block_is_that_of_its_hidden_states(run, sts, studied):
    """Means over tokens, alignment of pairs of 4 and more, uniformity over all sentences, in transformers and torch."""
    model, tokenizer = (cls.from_pretrained(run / "encoder") for cls in (AutoModel, AutoTokenizer))
    (dev,) = load_tasks(sts, "dev", ["STS-B"])
    sentences = sorted({*dev.first, *dev.second})
    batch = tokenizer(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model.eval()(**batch, output_hidden_states=True).hidden_states
    mask = batch["attention_mask"][..., None]
    names = [g.site for g in studied.sites]
    assert names == ["encoder.embeddings", "encoder.encoder.layer.0", "encoder.encoder.layer.1", "head"]
    vectors = [(h * mask).sum(1) / mask.sum(1) for h in states] + [states[-1][:, 0]]
    for site, z in zip(studied.sites, vectors, strict=True):
        unit = F.normalize(z, dim=1)
        potential = torch.pdist(unit).square().mul(-2).exp().mean()
        assert site.uniformity == pytest.approx(float(potential.log()), rel=1e-4, abs=1e-6)
        near = [
            (unit[sentences.index(a)] - unit[sentences.index(b)]).square().sum()
            for a, b, gold in zip(dev.first, dev.second, dev.gold, strict=True)
            if gold >= 4
        ]
        assert site.alignment == pytest.approx(float(torch.stack(near).mean()), rel=1e-3, abs=1e-6)
        assert (site.samples, site.dimensions) == (len(sentences), z.shape[1])


@pytest.mark.long
def test_the_cut_has_its_place_and_its_dissection(studied):
    """The run stops gradients at 1, behind the first block."""
    assert studied.augmented == studied.cuts == ("encoder.encoder.layer.0",)
    found = studied.dissection
    assert found.rows == found.batch // 2 == 16
    assert [e.after_cut for e in found.effects] == [False, True, True, True]
    assert found.effects[0].gradient == 0
    assert found.effects[0].cosine == pytest.approx(1)
    assert float(studied.spectrum.sum()) == pytest.approx(1)


BLOCKS = ("encoder.encoder.layer.0", "encoder.encoder.layer.1")


@pytest.mark.parametrize(
    ("changes", "augmented"),
    [
        ({"at": ["head"]}, ("head",)),
        ({"at": [3]}, ("head",)),
        ({"at": []}, ()),
        ({"at": [], "everywhere": True}, (f"{BLOCKS[0]}.input", *BLOCKS, "head")),
    ],
)
@pytest.mark.long
def test_other_cuts(run, tmp_path, changes, augmented):
    path = tmp_path / "other"
    shutil.copytree(run, path, ignore=shutil.ignore_patterns("snapshots", "best"))
    settings = yaml.safe_load((path / "config.yaml").read_text())
    (path / "config.yaml").write_text(yaml.safe_dump(settings | changes))
    found = analyze_run(read_run(path), samples=16)
    assert found.augmented == found.cuts == augmented
    assert (found.dissection is not None) == bool(augmented)


@pytest.mark.long
def test_a_report_in_the_words_of_text(run, studied, graphaug, tmp_path):
    code, printed, said = graphaug("analyze", run, "--out", tmp_path / "report", "--samples", "16")
    assert code == 0, said
    page = (tmp_path / "report/report.html").read_text()
    assert printed.strip() == str(tmp_path / "report/report.html")
    assert "on 16 sentences each" in page
    assert "<th>step</th>" in page
    assert f"<td>{100 * told(run)[-1]['stsb_dev']:.2f}</td>" in page
    assert "epoch" not in page.split("<h3>Configuration")[0]
    assert "✂ encoder.encoder.layer.0" in page
    assert "test images" not in render({"run": studied}, tmp_path)


@pytest.mark.long
def test_a_run_that_was_not_measured(run, sts, graphaug, tmp_path):
    """Without STS data in training there is nothing on the way, but the end can be measured."""
    path = tmp_path / "blind"
    simcse(replace(text_runs.CONFIG, epochs=1), path, corpus=text_runs.corpus())
    code, _, said = graphaug("analyze", path, "--out", tmp_path / "report")
    assert code == 2
    assert "was trained without STS data" in said
    assert "--sts" in said
    assert not (tmp_path / "report").exists()
    found = analyze_run(read_run(path), sts=sts, samples=16)
    assert [m.time for m in found.measurements] == [5]
    assert found.scores == {"STS-B dev": None, "best step on dev": None}
    assert f"<td>{found.words.shown(found.measurements[-1].score)}</td>" in render({"run": found}, tmp_path)


@pytest.mark.long
def test_advice_on_a_run_on_text(run, sts, graphaug, tmp_path):
    code, printed, said = graphaug("advise", run, "--samples", "16")
    assert code == 0, said
    assert "CKA (unbiased, linear), 16 samples" in printed
    code, _, said = graphaug("advise", run, "--check")
    assert code == 2
    assert "--check pretrains on images" in said
    gone = tmp_path / "gone"
    code, _, said = graphaug("analyze", run, "--sts", gone, "--out", tmp_path / "report")
    assert code == 2
    assert "does not exist" in said
    # a run without STS data is looked at on its own text
    path = tmp_path / "own"
    shutil.copytree(run, path)
    text = tmp_path / "sentences.txt"
    text.write_text("\n".join(text_runs.corpus().lines))
    settings = yaml.safe_load((path / "config.yaml").read_text())
    for own, code in ((str(text), 0), (None, 2)):
        (path / "config.yaml").write_text(yaml.safe_dump(settings | {"sts": None, "text": own}))
        assert graphaug("advise", path, "--samples", "16")[0] == code


@pytest.mark.long
def test_runs_on_text_and_on_images_are_not_one_report(run, monkeypatch, tmp_path):
    class Other(TextRun):
        pass

    found = read_run(run)
    monkeypatch.setattr(
        "graphaug.analysis.report.analyze.read_run",
        lambda path: found if path == "text" else Other(**{**vars(found), "path": tmp_path}),
    )
    with pytest.raises(errors.RunDirectoryError, match="apart"):
        analyze(["text", "images"], tmp_path / "report")


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("encoder", None, "holds no encoder/config.json: the run did not finish.*graphaug simcse --resume"),
        ("metrics.jsonl", '{"loss": 1}', "a line has no step"),
        ("result.json", '{"best_on_dev": 3}', "best_on_dev is no table"),
        ("config.yaml", "from_config: bert-tiny\nat_: 3", "Did you mean 'at'"),
    ],
)
def test_damaged_runs(run, tmp_path, name, content, match):
    path = tmp_path / "run"
    shutil.copytree(run, path)
    if content is None:
        shutil.rmtree(path / name)
    else:
        (path / name).write_text(content)
    with pytest.raises(errors.RunDirectoryError, match=match):
        read_run(path)
