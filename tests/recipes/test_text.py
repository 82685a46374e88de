"""The figure on text: its settings and claims, a sweep that is run, killed and gone on with, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import text_runs

pytest.importorskip("transformers")

from graphaug.contrastive.runs.sweep import Executor
from graphaug.errors import ConfigError, DataError, EncoderError, SiteNotFound
from graphaug.recipes.claims import Claim, Member
from graphaug.recipes.figures import planned
from graphaug.recipes.plan import TEXT_SCALES
from graphaug.recipes.report import report
from graphaug.recipes.runs.job import OUTCOME
from graphaug.recipes.runs.of_text import TextRuns
from graphaug.text.encoders.load import load_encoder, save_encoder
from graphaug.text.model import build
from graphaug.text.sts.evaluate import evaluate
from graphaug.text.sts.tasks import TASKS, load_tasks

PLAIN, STOPPED = "SimCSE", "SimCSE: site 1, stopped"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The two that the figure takes: a file of 44 sentences, and pairs of all seven tasks."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "sentences.txt").write_text("\n".join(text_runs.corpus().lines))
    return [str(folder / "sentences.txt"), str(text_runs.seven_tasks(folder / "sts"))]


def small(out, data, names=(PLAIN, STOPPED), **options):
    """Some of the figure's settings, on fewer sentences."""
    found = planned("fig8", out, data=data, **{"at": [1], "seeds": 2, **options})
    settings = tuple(
        replace(s, config=replace(s.config, sentences=40, batch_size=8))
        for s in found.plan.settings
        if s.name in names
    )
    claim = Claim("It is ahead.", "here", "some", (Member(STOPPED, (PLAIN,)),))
    lines = {"gradient stopped": {"1": STOPPED}}
    plan = replace(found.plan, settings=settings, claims=(claim,), lines=lines, level=(PLAIN,))
    return replace(found, plan=plan)


def run(sweep):
    said: list[str] = []
    sweep.check()
    return sweep.run(Executor(), said.append), said


@pytest.fixture(scope="module")
def done(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep") / "fig8"
    return out, *run(small(out, data))


def test_every_block_stands_there_with_each_objective_at_the_published_rates(tmp_path, data):
    plan = planned("fig8", tmp_path / "out", data=data).plan
    settings = {s.name: s.config for s in plan.settings}
    assert len(settings) == 2 * (1 + 2 * 2)  # alone, and at two blocks with and without the stop
    assert {name: c.rate for name, c in settings.items() if c.at == (2,)} == {
        "SimCSE: site 2": 0.25,
        "SimCSE: site 2, stopped": 0.125,
        "SimCSE + MLM: site 2": 0.5,
        "SimCSE + MLM: site 2, stopped": 0.5,
    }
    plain = settings[PLAIN].to_dict()
    assert [plain["text"], plain["sts"]] == data
    for name, config in settings.items():
        moved = {key for key, value in config.to_dict().items() if value != plain[key]}
        assert moved <= {"at", "stop_grad", "rate", "mlm"}, name
        assert config.mlm == name.startswith("SimCSE + MLM")
        assert config.stop_grad == name.endswith("stopped")
    assert list(plan.measures) == ["sts.average", *(f"sts.{task}" for task in TASKS)]


def test_the_claims_are_of_each_objective_against_itself(tmp_path, data):
    plan = planned("fig8", tmp_path / "out", data=data).plan
    assert [claim.kind for claim in plan.claims] == ["some", "every"] * 2
    for claim in plan.claims:
        for member in claim.members:
            plain, _ = member.setting.split(": ")
            kept = member.setting.removesuffix(", stopped")
            assert member.behind == ((plain,) if claim.kind == "some" else (kept,))
    counts = [len(claim.members) for claim in plan.claims]
    assert counts == [4, 2, 4, 2]
    assert {name: plan.baseline[name] for name in (STOPPED, "SimCSE + MLM: site 1")} == {
        STOPPED: PLAIN,
        "SimCSE + MLM: site 1": "SimCSE + MLM",
    }


def test_crops_and_deep_views_stand_beside_simcse_and_run(tmp_path, data):
    plan = planned("crops", tmp_path / "out", data=data, at=[1, 2]).plan
    configs = {s.name: s.config for s in plan.settings}
    plain = configs[PLAIN]
    assert configs["crops of 90%"] == replace(plain, crop=0.9)
    assert configs["site 2, deep views"] == replace(plain, at=(2,), deep_views=True, rate=0.25, subset=1.0)
    assert configs["site 1, stopped"].rate == 0.125
    assert len(configs) == 1 + 2 + 4 + 2
    assert all(name in configs for c in plan.claims for m in c.members for name in (m.setting, *m.behind))
    few = tuple(
        replace(s, config=replace(s.config, sentences=40, batch_size=8))
        for s in plan.settings
        if s.name in ("crops of 50%", "site 1, deep views")
    )
    sweep = planned("crops", tmp_path / "out", data=data, at=[1], seeds=1)
    outcomes, _ = run(replace(sweep, plan=replace(plan, settings=few)))
    assert all(o[0].failed is o[0].diverged is None for o in outcomes.values())


def test_a_model_is_a_size_or_an_encoder_and_has_its_own_blocks(tmp_path, data):
    sized = planned("fig8", tmp_path / "out", data=data, model="bert-mini").plan
    assert (sized.marks, sized.settings[0].config.from_config) == (("1", "2", "3", "4"), "bert-mini")
    made = build(text_runs.CONFIG, text_runs.corpus().lines)
    save_encoder(tmp_path / "own", made.encoder, made.tokenizer)
    own = planned("fig8", tmp_path / "out", data=data, model=str(tmp_path / "own"), epochs=3).plan
    config = own.settings[0].config
    assert (own.marks, config.encoder, config.from_config) == (("1", "2"), str(tmp_path / "own"), None)
    assert config.epochs == 3


@pytest.mark.long
def test_the_embeddings_and_the_head_can_be_asked_for(tmp_path, data):
    asked = planned("fig8", tmp_path / "out", data=data, at=["3", "0"]).plan
    assert asked.marks == ("0", "3")
    TextRuns().check([s.config for s in asked.settings])


def test_the_full_size_is_the_published_one():
    assert TEXT_SCALES["full"]["encoder"] == "bert-base-uncased"
    assert planned("fig8", None, scale="full", data=["a", "b"], at=[8]).plan.settings[2].config.rate == 0.125


@pytest.mark.long
def test_a_sweep_ends_in_the_scores_of_its_encoders(done, data, tmp_path):
    out, outcomes, said = done
    assert set(outcomes) == {PLAIN, STOPPED}
    assert said[-1].startswith("[4/4] ")
    assert ": STS average " in said[-1]
    for number, by_seed in enumerate(outcomes.values()):
        for seed, outcome in by_seed.items():
            assert outcome.failed is outcome.diverged is None
            (folder,) = out.glob(f"runs/{number:02}-*-seed{seed}")
            scores = evaluate(load_encoder(folder).encode, load_tasks(data[1]))
            assert outcome.figures["sts.average"] == pytest.approx(scores.average, abs=1e-6)
            for task in TASKS:
                assert outcome.figures[f"sts.{task}"] == pytest.approx(scores.spearman[task], abs=1e-6)
    facts = json.loads((out / "sweep.json").read_text())["data"][", ".join(data)]
    assert facts["sentences"] == 40
    assert facts["sts_pairs"] == sum(map(len, load_tasks(data[1])))
    text = report("fig8", small(out, data).plan, outcomes, tmp_path)
    assert text.splitlines()[0].split()[:2] == ["setting", "runs"]
    assert "STS average" in text
    assert "Spearman correlations ×100, mean over seeds" in text
    assert "read the STS tasks once" in text
    assert "It is ahead." in text
    found = json.loads((tmp_path / "results.json").read_text())
    assert {r["sts.average"] for r in found["runs"]} == {
        o.figures["sts.average"] for by_seed in outcomes.values() for o in by_seed.values()
    }
    assert (tmp_path / "figure.png").stat().st_size > 0


@pytest.mark.long
def test_finished_runs_are_not_repeated(done, data, tmp_path):
    out = tmp_path / "fig8"
    shutil.copytree(done[0], out)
    # as a kill leaves it: one run is trained and not scored, one is not begun, and one
    (out / "runs/00-simcse-seed0" / OUTCOME).unlink()
    shutil.rmtree(out / "runs/01-simcse-site-1-stopped-seed1")
    # in the middle of its training, of which nothing is kept
    (out / "runs/00-simcse-seed1" / OUTCOME).unlink()
    (out / "runs/00-simcse-seed1/result.json").unlink()
    before = {p: p.stat().st_mtime_ns for p in out.glob("runs/*/result.json")}
    outcomes, said = run(small(out, data))
    assert said[0] == "1 of 4 runs are done already"
    assert len(said) == 4
    assert {p: p.stat().st_mtime_ns for p in before} == before
    for name, by_seed in outcomes.items():  # number for number
        assert {s: o.figures for s, o in by_seed.items()} == {s: o.figures for s, o in done[1][name].items()}


@pytest.mark.long
def test_other_pairs_are_other_data(done, data, tmp_path):
    out, moved = tmp_path / "fig8", tmp_path / "sts"
    shutil.copytree(data[1], moved)
    (out / "runs").mkdir(parents=True)
    told = (done[0] / "sweep.json").read_text().replace(json.dumps(data[1])[1:-1], str(moved))
    (out / "sweep.json").write_text(told)
    small(out, [data[0], str(moved)]).check()
    gold = moved / "STS/STS13-en-test/STS.gs.OnWN.txt"
    gold.write_text(gold.read_text().replace("4", "3.5"))
    with pytest.raises(ConfigError, match=r"sts_sha256 of .*sentences.txt, .*sts: "):
        small(out, [data[0], str(moved)]).check()


def test_an_encoder_that_tells_no_sentences_apart_has_collapsed(data, tmp_path, monkeypatch):
    def flat(encode, tasks):
        raise EncoderError("every pair has the same similarity")

    monkeypatch.setattr("graphaug.recipes.runs.of_text.evaluate", flat)
    outcomes, said = run(small(tmp_path / "fig8", data, names=(PLAIN,), seeds=1))
    assert outcomes[PLAIN][0].diverged == "TrainingCollapsed: every pair has the same similarity"
    assert "DIVERGED" in said[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"images": 10}, "images=10: a figure on text"),
        ({"validation": 0.1}, r"validation=0\.1: of text nothing is held out"),
        ({"scale": "smal"}, "Did you mean 'small'"),
        ({"data": []}, r"takes 2 data set\(s\) \(a file of sentences and SentEval's directory"),
        ({"data": ["text.txt"]}, r"not 1: text\.txt"),
        ({"data": ["text.txt", "text.txt"]}, r"not 1: text\.txt\.$"),
    ],
)
def test_options_that_mean_nothing_on_text_are_refused(tmp_path, options, said):
    with pytest.raises(ConfigError, match=said):
        planned("fig8", tmp_path / "out", **{"data": ["a", "b"], **options})
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_what_cannot_be_run_is_refused_before_anything_is_written(data, tmp_path, graphaug):
    out, (text, sts) = tmp_path / "out", data
    (tmp_path / "dev").mkdir()
    text_runs.sts_files(tmp_path / "dev")
    for wrong, error, words in (
        ([f"{text}s", sts], DataError, r"sentences\.txts' does not exist\. Did you mean 'sentences\.txt'"),
        ([text, f"{sts}s"], DataError, "STS data .* does not exist"),
        ([text, str(tmp_path / "dev")], DataError, "holds no STS data: no 'STS/STS12-en-test"),
    ):
        with pytest.raises(error, match=words):
            small(out, wrong, names=(PLAIN,)).check()
    with pytest.raises(SiteNotFound, match="9 is out of range: SimCSE has the stages 0 to 3"):
        planned("fig8", out, data=data, at=[9]).check()
    for options, said in (
        (["--images", "10"], "--images 10: a figure on text"),
        (["--model", tmp_path / "none/such/encoder"], "does not exist"),
        (["--at", "1"], "the text has 44 sentences, not 768"),
    ):
        code, _, err = graphaug("paper", "fig8", "--out", out, "--data", text, "--data", sts, *options)
        assert (code, said in " ".join(err.split())) == (2, True), err
    assert not out.exists()


def test_the_page_has_the_sizes_there_are():
    page = (Path(__file__).resolve().parents[2] / "docs/paper.md").read_text(encoding="utf-8")
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    for name, settings in TEXT_SCALES.items():
        (row,) = [row for row in rows if row[0] == name]
        assert settings.get("from_config", settings.get("encoder")) in row[1]
        assert row[2].replace(",", "") == str(settings.get("sentences", "all"))
        assert row[3:5] == [str(settings["max_length"]), str(settings["batch_size"])]
        assert float(row[5]) == settings["lr"]
        assert settings["epochs"] == 1
