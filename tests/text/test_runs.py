"""Runs of ``simcse`` in their variants: what a run leaves, going on with one, and what has to make no difference."""

import copy
import gzip
import json
from dataclasses import replace

import pytest
import text_runs
import torch
import torch.nn.functional as F
import yaml
from transformers import DistilBertConfig, DistilBertModel

from graphaug.errors import ConfigError, DataError, EncoderError, SiteNotFound
from graphaug.text.corpus.mlm import masked_head
from graphaug.text.corpus.sentences import Corpus
from graphaug.text.encoders.encoder import TextEncoder
from graphaug.text.encoders.load import load_encoder, load_trainable, save_encoder
from graphaug.text.model import Model, build
from graphaug.text.objective import TextFeed
from graphaug.text.passes import augmented, check_passes
from graphaug.text.simcse import SimCSE
from graphaug.text.sts.tasks import load_tasks
from graphaug.text.train import simcse

pytestmark = pytest.mark.few(1)

PLAIN = replace(text_runs.CONFIG, at=(), stop_grad=False, dropout=False, checkpoint_every=0, epochs=1)
ONE = replace(text_runs.CONFIG, epochs=1)
EXACT = {"rtol": 0, "atol": 0}


def run(config, out=None, **more):
    return simcse(config, out, **{"corpus": text_runs.corpus(), **more})


def weights(found):
    return found.encoder.state_dict()


def close(first, second, **tolerance):
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], msg=lambda m, n=name: f"{n}: {m}", **tolerance)


def settings(out):
    return yaml.safe_load((out / "config.yaml").read_text())


def files(out):
    """Everything in a run's directory but times."""
    found = {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}
    lines = [json.loads(line) for line in found.pop("metrics.jsonl").splitlines()]
    times = ("seconds", "views_per_second")
    return (
        {name: content for name, content in found.items() if not name.startswith("tensorboard")},
        [{k: v for k, v in line.items() if k not in times} for line in lines],
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return text_runs.sts_files(tmp_path_factory.mktemp("data") / "sts")


@pytest.fixture
def saved(tmp_path):
    """Where an encoder with BERT's dropout lies."""
    model = build(PLAIN, text_runs.corpus().lines)
    save_encoder(tmp_path / "saved", model.encoder, model.tokenizer)
    return replace(PLAIN, from_config=None, encoder=str(tmp_path / "saved"))


# --- what a run leaves ------------------------------------------------------------------------------


@pytest.mark.long
def test_config_yaml_has_both_plans_and_the_number_of_truncated_sentences(tmp_path, data):
    seen = []
    run(replace(ONE, mlm=True, max_length=8), tmp_path / "run", on_start=seen.append)
    resolved = settings(tmp_path / "run")["resolved"]
    lines = list(text_runs.corpus().lines)
    ids = build(ONE, lines).tokenizer(lines)["input_ids"]
    assert 0 < resolved["truncated"] == sum(len(row) > 8 for row in ids) < 44
    assert seen == [{"sentences": 44, "truncated": resolved["truncated"], "steps_per_epoch": 5}]
    for plan in ("plan", "plan_of_masked_language"):
        assert "backward  sparse: rows proved independent" in resolved[plan]  # chosen by auto
        assert "encoder.encoder.layer.0" in resolved[plan]
    run(replace(ONE, mlm=True, mlm_augment=False), tmp_path / "other")
    assert settings(tmp_path / "other")["resolved"]["plan_of_masked_language"] == "no Deep Augmentation"
    run(replace(ONE, mlm=True, contrastive=False), tmp_path / "alone")
    assert "plan" not in settings(tmp_path / "alone")["resolved"]


@pytest.mark.long
def test_alignment_and_uniformity_are_those_of_their_definitions(data):
    found = run(replace(ONE, sts=str(data)))
    (dev,) = load_tasks(data, "dev", ["STS-B"])
    encode = TextEncoder(found.encoder, found.tokenizer).encode
    x, y = (F.normalize(encode(side).double(), dim=1) for side in (dev.first, dev.second))
    near = torch.tensor(dev.gold) >= 4
    every = F.normalize(encode(list(dict.fromkeys((*dev.first, *dev.second)))).double(), dim=1)
    assert found.result["alignment"] == pytest.approx(float((x - y)[near].square().sum(1).mean()), rel=1e-4)
    uniformity = torch.pdist(every).square().mul(-2).exp().mean().log()
    assert found.result["uniformity"] == pytest.approx(float(uniformity), rel=1e-4)


@pytest.mark.long
def test_force_with_a_bad_option_leaves_the_old_run_whole(tmp_path):
    run(ONE, tmp_path / "run")
    before = files(tmp_path / "run")
    for change, kind in (
        ({"at": (9,)}, SiteNotFound),
        ({"max_length": 600}, Exception),
        ({"batch_size": 45}, DataError),
        ({"contrastive": False, "mlm": True, "mlm_augment": False}, ConfigError),
        ({"from_config": None, "encoder": "no/such/place"}, EncoderError),
    ):
        with pytest.raises(kind):
            run(replace(ONE, **change), tmp_path / "run", force=True)
        assert files(tmp_path / "run") == before


# --- going on ---------------------------------------------------------------------------------------


class Broken(Exception):
    """What ends a run in the middle."""


def broken_off(config, out, step):
    def stop(line):
        if line["step"] == step:
            raise Broken

    with pytest.raises(Broken):
        run(config, out, resume=True, on_line=stop)


@pytest.mark.long
def test_a_run_with_both_objectives_and_scores_goes_on_exactly(tmp_path, data):
    """With the best step known: broken off behind it, and between it and the checkpoint before."""
    config = replace(text_runs.CONFIG, mlm=True, sts=str(data), report_every=1, checkpoint_every=4)
    whole = run(config, tmp_path / "whole")
    for step in (3, 6, 9):
        broken_off(config, tmp_path / "broken", step)
    again = run(config, tmp_path / "broken", resume=True)
    assert again.result == whole.result
    close(weights(again), weights(whole), **EXACT)
    assert files(tmp_path / "broken") == files(tmp_path / "whole")
    notes = json.loads((tmp_path / "broken/best/graphaug.json").read_text())
    assert notes["step"] == whole.result["best_on_dev"]["step"]


@pytest.mark.parametrize("left", ["later", "none"])
@pytest.mark.long
def test_best_is_of_the_step_that_the_result_names(left, tmp_path, data, monkeypatch):
    """Also where going on does not find again what the broken run had found: its look is changed here."""
    from graphaug.text import job

    looks = iter([0.5, 0.1, 0.9, 0.2, 0.3, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])
    scores = lambda *_: {"stsb_dev": next(looks), "alignment": 1.0, "uniformity": -1.0}  # noqa: E731
    monkeypatch.setattr(job.TextTraining, "scores", scores)
    config = replace(text_runs.CONFIG, sts=str(data), report_every=1, checkpoint_every=2)
    broken_off(config, tmp_path / "run", 3)  # the best is of step 3, the checkpoint of step 2
    place = tmp_path / "run/best"
    if left == "none":
        for file in place.iterdir():
            file.unlink()
        place.rmdir()
    found = run(config, tmp_path / "run", resume=True)
    assert found.result["best_on_dev"] == {"step": 4, "stsb_dev": 0.3, "alignment": 1.0, "uniformity": -1.0}
    assert json.loads((place / "graphaug.json").read_text())["step"] == 4


# --- what makes no difference -----------------------------------------------------------------------


@pytest.mark.parametrize("mlm", [False, True])
def test_gradient_caching_gives_the_same_run(mlm):
    config = replace(PLAIN, mlm=mlm)
    found, cached = run(config), run(replace(config, cache=3))
    names = [
        n for n in weights(found) if not n.endswith("key.bias")
    ]  # rounding, which Adam divides by its own size
    close(*({n: weights(r)[n] for n in names} for r in (found, cached)), rtol=1e-3, atol=1e-3)
    assert [line["loss"] for line in cached.metrics] == pytest.approx(
        [line["loss"] for line in found.metrics], rel=1e-4
    )


@pytest.mark.long
def test_looking_changes_no_weight(data):
    config = replace(ONE, report_every=1)
    close(weights(run(replace(config, sts=str(data)))), weights(run(config)), **EXACT)


@pytest.mark.long
def test_compressed_text_is_text(tmp_path):
    text = "\n".join(text_runs.corpus().lines)
    (tmp_path / "text").write_text(text)
    with gzip.open(tmp_path / "text.gz", "wt", encoding="utf-8") as file:
        file.write(text)
    found = [weights(simcse(replace(ONE, text=str(tmp_path / name)))) for name in ("text", "text.gz")]
    close(*found, **EXACT)


# --- dropout ----------------------------------------------------------------------------------------


@pytest.mark.long
def test_an_encoder_without_dropout_has_none_and_keeps_what_it_says(saved, tmp_path):
    """Trained on, it has dropout again: a run that was made without it does not take it from the next."""
    config = replace(saved, report_every=1)
    losses = {
        name: [line["loss"] for line in run(c).metrics]
        for name, c in {
            "none": config,
            "again": replace(config, seed=0),
            "some": replace(config, dropout=True),
        }.items()
    }
    assert losses["none"] == losses["again"] != losses["some"]
    for before in (saved, PLAIN):
        run(before, tmp_path / "first", force=True)
        held = json.loads((tmp_path / "first/encoder/config.json").read_text())
        assert held["hidden_dropout_prob"] == held["attention_probs_dropout_prob"] == 0.1
        encoder, _, _ = load_trainable(tmp_path / "first")
        assert {m.p for m in encoder.modules() if isinstance(m, torch.nn.Dropout)} == {0.1}
    encoder, tokenizer, _ = load_trainable(saved.encoder, dropout=False)
    model = Model(encoder, tokenizer, None)
    feed = TextFeed([[2, 7, 3]] * 8, config, (8, 16), 0, torch.device("cpu"))
    with augmented(SimCSE(encoder), model, config, feed) as objective:
        ids, mask = torch.randint(5, 60, (4, 8)), torch.ones(4, 8, dtype=torch.int64)
        one, two = objective.train().network(torch.cat([ids, ids]), torch.cat([mask, mask])).chunk(2)
    torch.testing.assert_close(one, two)


def test_passes_that_would_be_the_same_are_refused(tmp_path):
    model = build(PLAIN, text_runs.corpus().lines)
    model.encoder.config.hidden_dropout_prob = model.encoder.config.attention_probs_dropout_prob = 0.0
    save_encoder(tmp_path / "none", model.encoder, model.tokenizer)
    config = replace(PLAIN, from_config=None, encoder=str(tmp_path / "none"), dropout=True)
    for change in ({}, {"at": (1,), "rate": 0.0}):
        with pytest.raises(
            ConfigError,
            match=r"no dropout .* would be the same: add Deep Augmentation .*--crop.*--no-dropout",
        ):
            run(replace(config, **change), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    encoder, _, _ = load_trainable(tmp_path / "none")
    for change in ({"dropout": False}, {"at": (1,)}, {"contrastive": False, "mlm": True}):
        check_passes(encoder, replace(config, **change))


# --- sites in masked language -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "change", [{"mlm_augment": False}, {"at": (3,)}, {"at": ("head.dense",)}, {"at": ("he*",)}]
)
def test_sites_that_would_never_act_are_refused(change, tmp_path):
    config = replace(ONE, contrastive=False, mlm=True, **change)
    with pytest.raises(ConfigError, match="would never act: masked language alone is trained"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("at", "passed"),
    [
        ((0, 2, 3), ["encoder.encoder.layer.0.input", "encoder.encoder.layer.1"]),
        (("head", "encoder.encoder.layer[1]"), ["encoder.encoder.layer.1"]),
        (("re:.*(layer.0|head)",), ["encoder.encoder.layer.0"]),
        (("*.encoder.layer.*", "head.dense"), ["encoder.encoder.layer.0", "encoder.encoder.layer.1"]),
        (("**.dense",), None),
    ],
)
@pytest.mark.long
def test_masked_language_passes_the_sites_in_the_encoder(at, passed):
    model = build(replace(PLAIN, mlm=True), text_runs.corpus().lines)
    config = replace(ONE, mlm=True, at=at, stop_grad=False)
    feed = TextFeed([[2, 7, 3]] * 8, config, (8, 16), 0, torch.device("cpu"))
    if passed is None:  # some of them do not separate the input from the output, in either forward
        from graphaug.errors import BypassedSite

        with pytest.raises(BypassedSite), augmented(SimCSE(model.encoder), model, config, feed):
            pass
        return
    with augmented(SimCSE(model.encoder), model, config, feed) as objective:
        assert [str(target) for target in objective.reader.augmentations] == passed


@pytest.mark.parametrize(("at", "meant"), [(4, 3), (40, 3), (-1, 0), (-7, 0)])
def test_a_number_out_of_range_is_named_with_the_range_and_the_nearest(at, meant, tmp_path):
    span = "SimCSE has the stages 0 to 3: 0 behind .*, 3 behind the head"
    message = rf"^{at} is out of range: {span}. Did you mean {meant}\?$"
    with pytest.raises(SiteNotFound, match=message):
        run(replace(ONE, at=(at,)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("change", [{"pairing": "one-sided"}, {"at": (), "everywhere": True}])
@pytest.mark.long
def test_one_sided_pairs_and_every_stage_with_masked_language(change, tmp_path):
    config = replace(ONE, mlm=True, stop_grad=False, **change)
    found = run(config, tmp_path / "run")
    assert found.result["step"] == 5
    plan = settings(tmp_path / "run")["resolved"]["plan_of_masked_language"]
    assert plan.count("site  ") == (3 if "everywhere" in change else 1)
    assert ("first view only" in plan) == ("pairing" in change)


# --- heads, kinds of encoders, development sets ------------------------------------------------------


def test_the_head_shares_the_embedding():
    encoder = build(PLAIN, text_runs.corpus().lines).encoder
    head = masked_head(encoder)
    embedding = encoder.embeddings.word_embeddings.weight
    with head.whole(encoder) as whole:
        assert whole.get_output_embeddings().weight is embedding
    head(torch.randn(1, 3, 128)).sum().backward()
    assert float(embedding.grad.abs().max()) > 0


@pytest.mark.long
def test_another_kind_of_encoder_is_trained_with_both_objectives(tmp_path):
    tokenizer = build(PLAIN, text_runs.corpus().lines).tokenizer
    sizes = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 32}
    save_encoder(
        tmp_path / "distilbert",
        DistilBertModel(DistilBertConfig(vocab_size=len(tokenizer), **sizes)),
        tokenizer,
    )
    config = replace(ONE, from_config=None, encoder=str(tmp_path / "distilbert"), mlm=True)
    before = copy.deepcopy(load_trainable(config.encoder)[0].state_dict())
    found = run(config, tmp_path / "run")
    assert isinstance(found.encoder, DistilBertModel)
    after = weights(found)
    assert all(not torch.equal(after[name], before[name]) for name in before if name.endswith("weight"))
    assert load_encoder(tmp_path / "run").encode(["a cat"]).shape == (1, 16)


@pytest.mark.parametrize("scores", [[0, 1, 2, 3.8], [5]])
def test_a_development_set_that_nothing_can_be_said_of_is_refused_first(scores, tmp_path, data):
    source = (data / "STS/STSBenchmark/sts-dev.csv").read_text().splitlines()
    rows = [line.split("\t") for line in source]
    (tmp_path / "sts/STS/STSBenchmark").mkdir(parents=True)
    changed = [[*row[:4], str(scores[i % len(scores)]), *row[5:]] for i, row in enumerate(rows)]
    file = tmp_path / "sts/STS/STSBenchmark/sts-dev.csv"
    file.write_text("".join("\t".join(row) + "\n" for row in changed))
    with pytest.raises(DataError, match="needs pairs of 4 or more, and a correlation different ones"):
        run(replace(ONE, sts=str(tmp_path / "sts")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_parts_of_a_cached_batch_are_those_of_torchruns_processes(monkeypatch):
    config = {"at": (1,), "batch_size": 12, "subset": 0.5, "cache": 4}
    replace(ONE, **{**config, "subset": 0.125})  # two parts of 4 and one of 4: a whole share
    monkeypatch.setattr("torch.distributed.is_torchelastic_launched", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="no whole number"):  # 6 sentences a process: parts of 4 and 2
        replace(ONE, **{**config, "subset": 0.125})


def test_text_of_one_sentence_too_few():
    with pytest.raises(DataError, match="larger than the 7 sentences"):
        simcse(ONE, corpus=Corpus(text_runs.corpus().lines[:7], 0))
