"""The paper's figures as commands: a sweep that is run, killed, gone on with and added to, and what is refused."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from idx_files import write_idx

from graphaug.contrastive.runs.sweep import Executor
from graphaug.errors import ConfigError, DataError, RunDirectoryError, SiteNotFound
from graphaug.recipes.figures import FIGURES, listing, planned
from graphaug.recipes.methods.images import PLAIN
from graphaug.recipes.plan import SCALES
from graphaug.recipes.report import report
from graphaug.recipes.runs import job as jobs
from graphaug.recipes.runs.job import OUTCOME, Outcome


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("idx")
    write_idx(folder, train=160, test=40)
    return f"idx:{folder}"


def small(out, data, **options):
    given = {"model": "resnet18-cifar:2", "at": [4], "epochs": 1, "images": 128, "seeds": 1, **options}
    found = planned("fig4", out, data=[data], **given)
    settings = tuple(replace(s, config=replace(s.config, size=8)) for s in found.plan.settings)
    return replace(found, plan=replace(found.plan, settings=settings))


def run(sweep):
    said = []
    sweep.check()
    return sweep.run(Executor(), said.append), said


@pytest.fixture(scope="module")
def done(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep") / "fig4"
    return out, *run(small(out, data))


@pytest.mark.long
def test_every_setting_is_run_from_one_start(done):
    out, outcomes, said = done
    assert set(outcomes) == {
        PLAIN,
        "site 4",
        "site 4, stopped",
        "everywhere, 0.125",
        "everywhere, 0.25",
        "everywhere, 0.5",
    }
    for by_seed in outcomes.values():
        assert 0 <= by_seed[0].figures["linear"] <= 1
    assert said[-1].startswith("[6/6] ")
    assert said[-1].endswith("0:00 left")
    text = (out / "sweep.json").read_text()
    configs = json.loads(text)["settings"]
    plain = configs[PLAIN]
    for name, config in configs.items():
        moved = {key for key in config if config[key] != plain[key]}
        assert moved <= {"at", "stop_grad", "everywhere", "rate", "subset"}, name
    assert configs["site 4, stopped"]["stop_grad"]
    assert configs["everywhere, 0.25"] == {**plain, "everywhere": True, "rate": 0.25, "subset": 1.0}


@pytest.mark.long
def test_finished_runs_are_not_repeated_and_seeds_can_be_added(done, data, tmp_path):
    import shutil

    out = tmp_path / "fig4"
    shutil.copytree(done[0], out)
    # as a kill leaves it: one run has come to its end without being written down, one not been begun
    (out / "runs/01-site-4-seed0" / OUTCOME).unlink()
    shutil.rmtree(out / "runs/02-site-4-stopped-seed0")
    before = {p: p.stat().st_mtime_ns for p in out.glob("runs/*/result.json")}
    outcomes, said = run(small(out, data))
    assert said[0] == "4 of 6 runs are done already"
    assert len(said) == 3
    assert {p: p.stat().st_mtime_ns for p in before} == before
    for name, by_seed in outcomes.items():  # the run that was made again is the same, number for number
        assert by_seed[0].figures == done[1][name][0].figures
    more = small(out, data, seeds=2)
    more.check()
    assert len([j for j in more.jobs if jobs.read(j) is None]) == 6
    with pytest.raises(ConfigError, match=r"seeds: 1 → 0|needs a seed"):
        replace(more, seeds=0).check()


def test_a_dry_run_shows_runs_and_claims_and_writes_nothing(graphaug, data, tmp_path, monkeypatch):
    monkeypatch.setitem(SCALES, "tiny", {**SCALES["tiny"], "images": None, "batch_size": 16, "size": 8})
    monkeypatch.setattr("graphaug.recipes.sweep.Sweep.run", lambda *_: pytest.fail("run"))
    monkeypatch.delenv("COLUMNS", raising=False)  # nothing is cut
    options = ["--data", data, "--at", "4", "--seeds", "2", "--dry-run"]
    code, told, err = graphaug("paper", "fig4", "--out", tmp_path / "fig4", *options)
    assert code == 0, err
    sweep = planned("fig4", tmp_path / "fig4", data=[data], at=["4"], seeds=2)
    for setting in sweep.plan.settings:
        assert re.search(rf"^{re.escape(setting.name)} +0 of 2\b", told, re.MULTILINE), setting.name
    assert "stop_grad: False → True" in told
    assert f"{len(sweep.jobs)} of {len(sweep.jobs)} runs to make; nothing was run" in told
    for claim in sweep.plan.claims:
        assert claim.text in told
    assert not (tmp_path / "fig4").exists()
    code, _, err = graphaug("paper", "fig4", "--out", tmp_path / "fig4", *options, "--images", "9999")
    assert (code, "ask for 160 or fewer (--images)" in err) == (2, True)


@pytest.mark.long
def test_the_report_has_all_numbers(done, tmp_path):
    _, outcomes, _ = done
    plan = small(tmp_path / "x", "idx:somewhere").plan
    text = report("fig3-4", plan, outcomes, tmp_path)
    found = json.loads((tmp_path / "results.json").read_text())
    assert {(r["setting"], r["seed"], r["linear"]) for r in found["runs"]} == {
        (name, seed, o.figures["linear"]) for name, by_seed in outcomes.items() for seed, o in by_seed.items()
    }
    assert found["machine"].endswith(" cores")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found["written"])
    assert text.count("CANNOT BE TOLD") == len(plan.claims) == 3  # of one seed nothing can be told
    assert "SimCLR" in text
    assert (tmp_path / "figure.png").stat().st_size > 0
    assert (tmp_path / "results.txt").read_text().strip() == text


@pytest.mark.long
def test_a_diverged_run_is_kept_counted_and_shown(data, tmp_path, monkeypatch):
    sweep = small(tmp_path / "fig4", data)
    wild = tuple(
        replace(s, config=replace(s.config, lr=1e30, warmup=0.0, epochs=2)) if s.name == "site 4" else s
        for s in sweep.plan.settings[:3]
    )
    sweep = replace(sweep, plan=replace(sweep.plan, settings=wild))
    outcomes, said = run(sweep)
    assert outcomes["site 4"][0].diverged
    assert any("DIVERGED" in line for line in said)
    assert (tmp_path / "fig4/runs/01-site-4-seed0/config.yaml").exists()
    text = report("fig3-4", sweep.plan, {**{s: {} for s in ("everywhere, 0.125",)}, **outcomes}, None)
    assert "0, 1 diverged" in text
    again, said = run(sweep)
    assert said == ["3 of 3 runs are done already"]
    assert again["site 4"][0] == outcomes["site 4"][0]


@pytest.mark.long
def test_a_failed_run_ends_no_other_and_is_tried_again(data, tmp_path, monkeypatch):
    sweep = small(tmp_path / "fig4", data)
    sweep = replace(sweep, plan=replace(sweep.plan, settings=sweep.plan.settings[:2]))
    real = jobs._make

    def full_disk(job):
        if job.setting == PLAIN:
            raise RunDirectoryError("no space left")
        return Outcome({"linear": 0.5})

    monkeypatch.setattr(jobs, "_make", full_disk)
    outcomes, _ = run(sweep)
    assert outcomes[PLAIN][0].failed == "RunDirectoryError: no space left"
    assert outcomes["site 4"][0].figures == {"linear": 0.5}
    monkeypatch.setattr(jobs, "_make", real)
    assert run(sweep)[0][PLAIN][0].failed is None


@pytest.mark.long
def test_what_does_not_belong_to_a_directory_is_refused(done, data, tmp_path):
    out = done[0]
    with pytest.raises(ConfigError, match=r"epochs: 1 → 2"):
        small(out, data, epochs=2).check()
    with pytest.raises(ConfigError, match=r"site 3: new"):
        small(out, data, at=[3, 4]).check()
    other = tmp_path / "idx"
    write_idx(other, train=160, test=40, seed=1)
    with pytest.raises(ConfigError, match="data: "):
        small(out, f"idx:{other}").check()
    changed = tmp_path / "changed"
    changed.mkdir()
    told = json.loads((out / "sweep.json").read_text())
    told["data"][data]["train_images"] += 1
    (changed / "sweep.json").write_text(json.dumps(told))
    with pytest.raises(ConfigError, match=r"train_images of idx:.*: 129 → 128"):
        small(changed, data).check()
    (changed / "sweep.json").write_text("{}")
    for damage in ({"seeds": "3"}, {"data": None}, {"data": {data: 3}}, {"settings": []}):
        (changed / "sweep.json").write_text(json.dumps({**told, **damage}))
        with pytest.raises(RunDirectoryError, match="does not describe a sweep"):
            small(changed, data).check()
    (changed / "sweep.json").write_text("{}")
    with pytest.raises(RunDirectoryError, match="does not describe a sweep"):
        small(changed, data).check()
    with pytest.raises(RunDirectoryError, match="holds the runs of fig3-4, not of fig5"):
        replace(small(out, data), figure="fig5").check()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").touch()
    with pytest.raises(RunDirectoryError, match="holds other files, and no sweep"):
        small(tmp_path / "full", data).check()
    for below in ("thesis.tex", "thesis.tex/sweeps/mine"):
        with pytest.raises(RunDirectoryError, match=r"thesis\.tex' is a file"):
            small(tmp_path / "full" / below, data).check()


def test_only_the_input_is_no_site_of_a_figure(data, tmp_path):
    with pytest.raises(ConfigError, match=r"fig3-4 is about sites behind the input, and --at names -1 alone"):
        small(tmp_path / "out", data, at=[-1])


NET = """
from torch import nn
net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""


def test_a_model_without_numbers_has_everywhere_where_sites_are_named(data, tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text(NET)
    found = small(tmp_path / "out", data, model=f"{tmp_path / 'net.py'}:net", at=["re:^0$", "re:^2$"])
    found.check()
    everywhere = {s.name: s.config for s in found.plan.settings if s.name.startswith("everywhere")}
    assert {c.at for c in everywhere.values()} == {("re:^0$", "re:^2$")}
    assert {c.rate for c in everywhere.values()} == {0.125, 0.25, 0.5}
    with pytest.raises(SiteNotFound, match=r"The child of that name is 're:\^2\$'"):
        small(tmp_path / "out", data, model=f"{tmp_path / 'net.py'}:net", at=[2]).check()


def test_whatever_ends_a_run_ends_no_other(data, tmp_path, monkeypatch):
    def out_of_memory(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("graphaug.recipes.runs.of_images.ImageRuns.train", out_of_memory)
    outcomes, said = run(small(tmp_path / "out", data))
    assert len(said) == len(outcomes)
    assert outcomes[PLAIN][0].failed == "RuntimeError: out of memory"


@pytest.mark.long
def test_what_cannot_be_run_is_refused_before_anything_is_written(data, tmp_path, graphaug):
    out = tmp_path / "out"
    for wrong, error, words in (
        ({"at": ["layer9"]}, SiteNotFound, "Did you mean 'layer"),
        ({"images": 161}, DataError, "has 160 training images, not 161"),
        ({"images": 20}, DataError, "batch_size=64 is larger"),
        ({"model": "resnet19"}, ConfigError, "Did you mean 'resnet18'"),
    ):
        with pytest.raises(error, match=words):
            small(out, data, **wrong).check()
    with pytest.raises(DataError, match="zalandoresearch"):
        small(out, f"idx:{tmp_path}").check()
    for words, said in (
        (["fig44", "--out", out], "no figure is called 'fig44'. Did you mean 'fig4'"),
        (["fig6", "--out", out], "cannot be run yet"),
        (["fig4"], "--out"),
        (["fig4", "--out", out, "--scale", "tinny"], "Did you mean 'tiny'"),
        (["fig5", "--out", out, "--data", "digits"], "takes 2 data set"),
        (["fig4", "--out", out, "--data", data, "--partition", "gpu"], "Slurm"),
    ):
        code, _, err = graphaug("paper", *words)
        assert (code, said in err) == (2, True), err
    assert not out.exists()


def test_the_list_names_what_the_issue_names(graphaug):
    code, out, _ = graphaug("paper")
    assert code == 0
    assert out.split() == listing(100).split()  # the lines are as wide as the terminal
    names = {n for f in FIGURES for n in (f.name, *f.also)}
    assert {f"fig{n}" for n in (3, 4, 5, 6, 7, 8, *range(9, 38))} <= names
    assert {"pca", "supervised", "graphs"} <= names
    for figure in FIGURES:
        assert (figure.make is None) == bool(figure.missing)


def test_transfer_goes_both_ways(tmp_path, data):
    other = tmp_path / "other"
    write_idx(other, train=160, test=40, seed=2)
    sweep = planned(
        "fig5", tmp_path / "out", data=[data, f"idx:{other}"], model="resnet18-cifar:2", at=[4], seeds=1
    )
    ways = {(s.config.data, s.transfer) for s in sweep.plan.settings}
    assert ways == {(data, f"idx:{other}"), (f"idx:{other}", data)}
    assert len(sweep.plan.settings) == 2 * 3
    few = [s for s in sweep.plan.settings if s.config.at == ()][:1]
    few = tuple(replace(s, config=replace(s.config, size=8, epochs=1, images=128)) for s in few)
    sweep = replace(sweep, plan=replace(sweep.plan, settings=few), transfer_epochs=1)
    outcomes, _ = run(sweep)
    figures = outcomes[few[0].name][0].figures
    assert 0 <= figures["transfer.fine-tuned"] <= 1
    assert not math.isnan(figures["transfer.linear"])
    assert Path(sweep.jobs[0].out / OUTCOME).exists()


@pytest.mark.long
def test_pca_stands_beside_dropout_in_the_same_runs(tmp_path, data):
    plan = planned("pca", tmp_path / "out", data=[data], model="resnet18-cifar:2", at=[-1, 4]).plan
    configs = {s.name: s.config for s in plan.settings}
    assert len(configs) == 1 + 3 + 3
    for name in ("site -1", "site 4", "site 4, stopped"):
        assert configs[f"{name}, PCA"] == replace(configs[name], transform="pca")
    run_plan = plan.settings[:1] + tuple(s for s in plan.settings if s.name == "site 4, stopped, PCA")
    small_ones = tuple(replace(s, config=replace(s.config, size=8, epochs=1, images=64)) for s in run_plan)
    sweep = planned("pca", tmp_path / "out", data=[data], model="resnet18-cifar:2", at=[4], seeds=1)
    outcomes, _ = run(replace(sweep, plan=replace(plan, settings=small_ones)))
    assert "pca" in (tmp_path / "out/runs/01-site-4-stopped-pca-seed0/config.yaml").read_text().lower()
    assert not outcomes["site 4, stopped, PCA"][0].failed
    with pytest.raises(ConfigError, match="rate with transform='pca': only dropout has it"):
        replace(configs["site 4, PCA"], rate=0.3)
    with pytest.raises(ConfigError, match="Did you mean 'pca'"):
        replace(configs["site 4, PCA"], transform="pcaa")


def test_the_page_has_every_command_and_the_sizes_there_are():
    page = (Path(__file__).resolve().parents[2] / "docs/paper.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")
    ]
    commands = [row[2] for row in rows if len(row) == 3]
    runnable = [f for f in FIGURES if f.make is not None]
    for figure in runnable:
        spelled = [f"`graphaug paper {name} --out DIR`" for name in (figure.name, *figure.also)]
        assert len([c for c in commands if c in spelled]) == 1, figure.name
    for name, settings in SCALES.items():
        (row,) = [row for row in rows if row[0] == f"`{name}`"]
        assert name == "full" or f"`{settings['model']}`" in row[1]
        assert row[2].replace(",", "") == str(settings.get("images", "all"))
        assert row[3:5] == [str(settings["epochs"]), str(settings["batch_size"])]
