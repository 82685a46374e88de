"""``graphaug simcse``: against loops written by hand, transformers' own loss, and sentence-transformers' trainer."""

import copy
import json
import multiprocessing
import signal
from dataclasses import replace

import numpy as np
import pytest
import text_runs
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertForMaskedLM, BertModel

import graphaug
from benchmarks.oracle import Masks, imposed
from graphaug.contrastive.config.presets import settle
from graphaug.errors import (
    ConfigError,
    DataError,
    EncoderError,
    InvalidOption,
    SiteNotFound,
    TrainingCollapsed,
    TrainingDiverged,
)
from graphaug.text.config import SimCSEConfig
from graphaug.text.corpus.masking import IGNORED
from graphaug.text.corpus.mlm import MaskedHead, chosen_positions, masked_head
from graphaug.text.corpus.sentences import Corpus
from graphaug.text.encoders.load import load_encoder, load_trainable, save_encoder
from graphaug.text.model import build
from graphaug.text.objective import Reader, TextFeed, TextObjective
from graphaug.text.presets import PRESETS
from graphaug.text.simcse import SimCSE
from graphaug.text.sts.evaluate import sts_dev
from graphaug.text.sts.tasks import load_tasks
from graphaug.text.train import simcse

pytestmark = pytest.mark.few(1)

PLAIN = replace(text_runs.CONFIG, at=(), stop_grad=False, dropout=False, checkpoint_every=0)


def bert(cls=BertModel, dropout=0.0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
        limits = {"intermediate_size": 32, "max_position_embeddings": 16, "hidden_dropout_prob": dropout}
        config = BertConfig(**sizes, **limits, attention_probs_dropout_prob=dropout)
        return cls(config, **options)


def tokens(rows=6, length=8):
    ids = torch.randint(5, 50, (rows, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[::2, -3:] = 0
    return ids, mask


def without_key_bias(state):
    return {name: value for name, value in state.items() if not name.endswith("key.bias")}


def gradients(module):
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def close(first, second, **tolerance):
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], msg=lambda m, n=name: f"{n}: {m}", **tolerance)


# --- the run ----------------------------------------------------------------------------------------


def test_a_run_is_the_loop_one_would_write_by_hand():
    """Order, padding, head, loss, clipping, AdamW and its schedule, with transformers and torch alone."""
    lines = text_runs.corpus().lines
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(PLAIN, lines)
        head = torch.nn.Linear(128, 128)
        torch.nn.init.normal_(head.weight, std=0.02)
        torch.nn.init.zeros_(head.bias)
    encoder, tokenizer = model.encoder, model.tokenizer
    parameters = [*encoder.parameters(), *head.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim < 2]},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    order = torch.Generator().manual_seed(0)
    losses = []
    for epoch in range(2):
        shuffled = torch.randperm(44, generator=order).tolist()
        for step in range(5):
            chosen = [lines[i] for i in shuffled[8 * step : 8 * step + 8]]
            batch = tokenizer(
                chosen,
                truncation=True,
                max_length=16,
                padding=True,
                return_tensors="pt",
                pad_to_multiple_of=8,
            )
            vectors = []
            for _ in range(2):
                hidden = encoder(batch["input_ids"], batch["attention_mask"]).last_hidden_state
                vectors.append(F.normalize(torch.tanh(head(hidden[:, 0])), dim=1))
            loss = F.cross_entropy(vectors[0] @ vectors[1].T / 0.05, torch.arange(8))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * (1 - (5 * epoch + step) / 10)
            optimizer.step()
            losses.append(float(loss.detach()))
    found = simcse(PLAIN, corpus=text_runs.corpus())
    # A key's bias moves no attention: its gradient is rounding, which Adam divides by its own size.
    close(*map(without_key_bias, (found.encoder.state_dict(), encoder.state_dict())), rtol=1e-4, atol=1e-5)
    assert [line["step"] for line in found.metrics] == [3, 6, 9, 10]
    assert [line["loss"] for line in found.metrics] == pytest.approx(
        [np.mean(losses[i:j]) for i, j in ((0, 3), (3, 6), (6, 9), (9, 10))], rel=1e-4
    )
    assert [line["epoch"] for line in found.metrics] == [0.6, 1.2, 1.8, 2]
    assert all(0 < line["spread"] < 1 for line in found.metrics)


@pytest.mark.long
def test_a_seed_gives_one_result_and_leaves_the_callers_generator(tmp_path):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    runs = [
        simcse(replace(text_runs.CONFIG, seed=seed), corpus=text_runs.corpus()).encoder.state_dict()
        for seed in (0, 0, 1)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not all(torch.equal(runs[0][name], runs[2][name]) for name in runs[0])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An unbroken run with masked language and STS data, and its directory."""
    root = tmp_path_factory.mktemp("finished")
    data = text_runs.sts_files(root / "sts")
    config = replace(text_runs.CONFIG, mlm=True, sts=str(data))
    return config, simcse(config, root / "run", corpus=text_runs.corpus()), root


@pytest.mark.long
def test_what_a_run_leaves(finished):
    _config, found, root = finished
    files = {p.name for p in (root / "run").iterdir()} - {"tensorboard"}
    assert files == {"config.yaml", "metrics.jsonl", "result.json", "curves.png", "encoder", "best"}
    lines = [json.loads(line) for line in (root / "run/metrics.jsonl").read_text().splitlines()]
    assert lines == found.metrics
    assert {"step", "epoch", "loss", "mlm", "spread", "lr", "stsb_dev", "alignment", "uniformity"} <= lines[
        0
    ].keys()
    (dev,) = load_tasks(root / "sts", "dev", ["STS-B"])
    for folder, scores in {"encoder": found.result, "best": found.result["best_on_dev"]}.items():
        encoder = load_encoder(root / "run" / folder)
        assert encoder.pooler == "cls_before_pooler"
        assert sts_dev(encoder.encode, dev) == pytest.approx(scores["stsb_dev"], abs=1e-6)
    assert load_encoder(root / "run").encode(["a cat"]).shape == (1, 128)
    assert found.result["step"] == lines[-1]["step"] == 10
    best = max(lines, key=lambda line: line["stsb_dev"])
    assert found.result["best_on_dev"] == {
        n: best[n] for n in ("step", "stsb_dev", "alignment", "uniformity")
    }
    settings = (root / "run/config.yaml").read_text()
    assert "sentences: 44" in settings
    assert "Deep Augmentation of SimCSE" in settings
    # The head for masked language is saved with it, and a training may go on with both.
    loads = [load_trainable(root / "run", mlm=True)[2].state_dict() for _ in range(2)]
    assert all(torch.equal(value, loads[1][name]) for name, value in loads[0].items())
    assert (
        float(loads[0]["model.cls.predictions.transform.dense.bias"].abs().max()) > 0
    )  # trained: it begins at 0


@pytest.mark.long
def test_killed_and_resumed_a_run_ends_as_an_unbroken_one(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["text_runs", "lightning_fabric", "transformers"])

    def run(out, kill_after=None):
        process = context.Process(target=text_runs.run, args=(str(out), kill_after))
        process.start()
        process.join()
        return process.exitcode

    def files(out):
        found = {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}
        lines = [json.loads(line) for line in found.pop("metrics.jsonl").splitlines()]
        return found, [
            {k: v for k, v in line.items() if k not in ("seconds", "views_per_second")} for line in lines
        ]

    assert run(tmp_path / "unbroken") == 0
    for step in (3, 9):
        assert run(tmp_path / "broken", step) == -signal.SIGKILL
    assert (tmp_path / "broken/checkpoints").is_dir()
    assert run(tmp_path / "broken") == 0
    assert files(tmp_path / "broken") == files(tmp_path / "unbroken")
    with pytest.raises(ConfigError, match=r"other settings:\n    rate: 0\.3 → 0\.4"):
        simcse(
            replace(text_runs.CONFIG, rate=0.4), tmp_path / "broken", resume=True, corpus=text_runs.corpus()
        )
    other = replace(text_runs.corpus(), lines=text_runs.corpus().lines[::-1])
    with pytest.raises(ConfigError, match=r"other data:\n    text_sha256: "):
        simcse(text_runs.CONFIG, tmp_path / "broken", resume=True, corpus=other)
    again = simcse(text_runs.CONFIG, tmp_path / "broken", resume=True, corpus=text_runs.corpus())
    assert again.metrics[-1]["step"] == 10
    assert not (tmp_path / "broken/checkpoints").exists()


@pytest.mark.long
def test_two_processes_are_one_with_the_whole_batch():
    config = replace(PLAIN, epochs=1, mlm=True)
    one = simcse(config, corpus=text_runs.corpus())
    two = simcse(replace(config, devices=2), corpus=text_runs.corpus())
    assert [line["loss"] for line in two.metrics] == pytest.approx(
        [line["loss"] for line in one.metrics], rel=1e-5
    )
    close(*map(without_key_bias, (two.encoder.state_dict(), one.encoder.state_dict())), rtol=1e-3, atol=1e-4)


# --- the objectives ---------------------------------------------------------------------------------


def masked_batch(rows=6):
    ids, mask = tokens(rows)
    twice, labels = torch.cat([ids, ids]), torch.full((2 * rows, 8), IGNORED)
    chosen = torch.rand(labels.shape, generator=torch.Generator().manual_seed(2)) < 0.2
    labels[chosen] = twice[chosen]
    return ids, mask, twice.masked_fill(chosen, 4), labels


def objective(config, full, network=None, reader=None):
    encoder = full.base_model
    head = MaskedHead(full)
    return TextObjective(network or SimCSE(encoder), config, reader or Reader(encoder), head).train()


def test_masked_language_is_transformers_own_loss():
    full = bert(BertForMaskedLM)
    theirs = copy.deepcopy(full)
    ids, mask, masked, labels = masked_batch()
    expected = theirs(masked, torch.cat([mask, mask]), labels=labels).loss
    expected.backward()
    ours = objective(replace(PLAIN, mlm=True, contrastive=False), full)
    found = ours(ids, mask, masked, *chosen_positions(labels))
    found["loss"].backward()
    assert found.keys() == {"loss", "mlm"}
    torch.testing.assert_close(found["mlm"], expected)
    with ours.head.whole(ours.reader.encoder) as whole:
        close(gradients(whole), gradients(theirs), rtol=1e-4, atol=1e-7)


def test_a_process_without_masked_tokens_counts_none(monkeypatch):
    """The mean over all processes: the one that has tokens must not divide by the other one's least count."""
    import graphaug.text.objective as module

    ids, mask, masked, labels = masked_batch()
    ours = objective(replace(PLAIN, mlm=True, contrastive=False), bert(BertForMaskedLM)).eval()

    def told(masked, labels):
        with torch.no_grad():
            return float(ours(ids, mask, masked, *chosen_positions(labels))["mlm"])

    alone = told(masked, labels)
    counts = []
    monkeypatch.setattr(module, "process_count", lambda: 2)
    monkeypatch.setattr(module.dist, "all_reduce", lambda count: counts.append(float(count)))
    assert told(ids.repeat(2, 1), torch.full_like(labels, IGNORED)) == 0
    found = told(masked, labels)
    assert counts == [0.0, float((labels != IGNORED).sum())]
    assert found / 2 == pytest.approx(alone)  # the mean over the two processes


def test_the_objectives_are_added_with_their_weight():
    ids, mask, masked, labels = masked_batch()
    both = objective(replace(PLAIN, mlm=True, mlm_weight=0.3), bert(BertForMaskedLM))
    found = both(ids, mask, masked, *chosen_positions(labels))
    alone = both(ids, mask)
    assert alone.keys() == {"loss", "spread"}
    torch.testing.assert_close(found["loss"], alone["loss"] + 0.3 * found["mlm"])


@pytest.mark.parametrize("count", [0, 3, 24, 25, 96])
def test_positions_are_those_with_labels(count):
    labels = torch.full((12, 8), IGNORED)
    labels.view(-1)[torch.randperm(96, generator=torch.Generator().manual_seed(0))[:count]] = torch.arange(
        count
    )
    positions, told = chosen_positions(labels)
    assert len(positions) == len(told) == (24 if count <= 24 else 96)
    rebuilt = torch.full((96,), IGNORED)
    rebuilt[positions[told != IGNORED]] = told[told != IGNORED]
    assert torch.equal(rebuilt.view(12, 8), labels)


@pytest.mark.parametrize("acts", [True, False])
@pytest.mark.long
def test_the_augmentation_acts_in_masked_language_if_asked_for(acts, tmp_path):
    """With every unit of block 1 dropped in every row, no token can be told from another there."""
    from graphaug.text.model import Model
    from graphaug.text.passes import augmented

    model = Model(*_parts())
    config = replace(PLAIN, mlm=True, mlm_augment=acts, at=(1, 4), rate=1.0, subset=1.0)
    feed = TextFeed([[7, 8, 9]] * 8, config, (8, 16), 0, torch.device("cpu"))
    wrapped = SimCSE(model.encoder)
    ids, mask = tokens()
    with augmented(wrapped, model, config, feed) as made:
        made.train()
        hidden = made.reader(input_ids=ids, attention_mask=mask)
        z = made.network(input_ids=ids, attention_mask=mask)
    plain = model.encoder(ids, mask).last_hidden_state.detach()
    assert not z.any()  # the site behind the head, which masked language does not pass
    if acts:
        torch.testing.assert_close(hidden[0, 0], hidden[1, 0])
        assert float((plain[0, 0] - plain[1, 0]).abs().max()) > 1e-3
    else:
        torch.testing.assert_close(hidden, plain)


def _parts():
    encoder = bert(add_pooling_layer=False)
    return encoder, None, masked_head(encoder)


@pytest.mark.parametrize("cache", [1, 2, 5, 6])
@pytest.mark.parametrize("mlm", [False, True])
def test_gradient_caching_changes_no_gradient(cache, mlm):
    ids, mask, masked, labels = masked_batch()
    extra = (masked, *chosen_positions(labels)) if mlm else ()
    config = replace(PLAIN, mlm=True)
    torch.manual_seed(0)
    whole = objective(config, bert(BertForMaskedLM).double())
    parts = copy.deepcopy(whole)
    parts.cache = cache
    found = []
    for module in (whole.double(), parts.double()):
        loss = module(ids, mask, *extra)["loss"]
        loss.backward()
        found.append((float(loss.detach()), gradients(module)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    close(found[0][1], found[1][1], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("stop_grad", [False, True])
@pytest.mark.long
def test_a_cached_part_draws_the_same_in_both_its_forwards(stop_grad):
    """Dropout and Deep Augmentation on: the gradient is that of the parts' own draws, kept in memory."""
    ids, mask = tokens(6)
    wrapped = SimCSE(bert(dropout=0.2, add_pooling_layer=False))
    example = {"input_ids": ids, "attention_mask": mask}
    aug = graphaug.rewrite(
        wrapped, at=2, rate=0.4, subset=0.5, stop_grad=stop_grad, example_inputs=example
    ).train()
    cached = TextObjective(aug, replace(PLAIN, cache=2))
    torch.manual_seed(5)
    loss = cached(ids, mask)["loss"]
    loss.backward()
    found = gradients(aug)
    aug.zero_grad(set_to_none=True)
    torch.manual_seed(5)
    pairs = [
        aug(torch.cat([i, i]), torch.cat([m, m])).chunk(2)
        for i, m in zip(ids.split(2), mask.split(2), strict=True)
    ]
    z1, z2 = (F.normalize(torch.cat(z), dim=1) for z in zip(*pairs, strict=True))
    expected = F.cross_entropy(z1 @ z2.T / 0.05, torch.arange(6))
    expected.backward()
    torch.testing.assert_close(loss, expected)
    close(found, gradients(aug), rtol=1e-5, atol=1e-7)


def test_gradient_caching_keeps_less():
    ids, mask = tokens(6)

    def kept(cache):
        total = 0

        def pack(t):
            nonlocal total
            total += t.numel()
            return t

        module = TextObjective(SimCSE(bert(add_pooling_layer=False)), replace(PLAIN, cache=cache)).train()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            module(ids, mask)["loss"]
        return total

    assert kept(1) < kept(None) / 4


def test_without_dropout_the_two_passes_are_equal():
    ids, mask = tokens()
    for config, same in ((PLAIN, True), (replace(PLAIN, dropout=True), False)):
        model = build(config, text_runs.corpus().lines)
        first, second = SimCSE(model.encoder).train()(torch.cat([ids, ids]), torch.cat([mask, mask])).chunk(2)
        assert torch.allclose(first, second, atol=1e-5) == same


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stop_grad", [False, True])
@pytest.mark.long
def test_sentence_transformers_trainer_has_the_same_gradients(stop_grad, tmp_path):
    """Its model, loss and trainer around a rewritten encoder, with the same masks; a step of SGD tells the gradient."""
    st = pytest.importorskip("sentence_transformers")
    datasets = pytest.importorskip("datasets")
    from sentence_transformers.losses import MultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer import modules

    lines = text_runs.corpus(4).lines
    model = build(PLAIN, text_runs.corpus().lines)
    save_encoder(tmp_path / "encoder", model.encoder, model.tokenizer)
    transformer = modules.Transformer(str(tmp_path / "encoder"))
    dense = modules.Dense(128, 128, activation_function=torch.nn.Tanh())
    sentences = st.SentenceTransformer(
        modules=[transformer, modules.Pooling(128, "cls"), dense], device="cpu"
    )
    for module in transformer.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    inputs = {k: v for k, v in transformer.preprocess(list(lines)).items() if isinstance(v, torch.Tensor)}
    ids, mask = inputs["input_ids"], inputs["attention_mask"]

    wrapped = SimCSE(model.encoder)
    wrapped.head.dense.load_state_dict(dense.linear.state_dict())
    options = {"at": 1, "rate": 0.3, "subset": 0.5, "stop_grad": stop_grad}
    ours = graphaug.rewrite(
        wrapped, example_inputs={"input_ids": ids, "attention_mask": mask}, **options
    ).train()
    both = Masks(0.3, 0.5)
    both.draw(torch.zeros(8, ids.shape[1], 128))
    assert int(both.rows[:4].sum()) == 2  # as the trainer's two forwards stop two rows each
    loss = TextObjective(ours, PLAIN)
    with imposed(*ours.augmentations.values(), both):
        loss(ids, mask)["loss"].backward()
    expected = gradients(model.encoder)

    original = transformer.model
    aug = transformer.model = graphaug.rewrite(
        original, example_inputs={**inputs, "return_dict": True}, **{**options, "subset": 0.5}
    )
    (augmentation,) = aug.augmentations.values()
    # The trainer sends anchors and positives through the encoder one after the other.
    halves = iter([slice(0, 4), slice(4, 8)])
    current = slice(0, 0)

    def draw_rows(count, device):
        nonlocal current
        current = next(halves)
        return both.rows[current]

    def draw_noise(h):
        noise = both.noise[current]
        return noise if len(h) == 4 else noise[both.rows[current]]

    augmentation.__dict__.update(draw_rows=draw_rows, draw_noise=draw_noise)
    before = {name: p.detach().clone() for name, p in original.named_parameters()}
    arguments = st.SentenceTransformerTrainingArguments(
        str(tmp_path / "run"), max_steps=1, per_device_train_batch_size=4, report_to=[], use_cpu=True,
        disable_tqdm=True, save_strategy="no", learning_rate=1.0, logging_strategy="no", optim="sgd",
        max_grad_norm=0.0, lr_scheduler_type="constant", dataloader_drop_last=True,
    )  # fmt: skip
    pairs = datasets.Dataset.from_dict({"anchor": list(lines), "positive": list(lines)})

    trainer = st.SentenceTransformerTrainer(
        sentences, arguments, pairs, loss=MultipleNegativesRankingLoss(sentences, scale=20.0)
    )
    # One batch holds all four sentences; in which order does not matter to the loss, but does to the masks.
    trainer.get_train_dataloader = lambda: torch.utils.data.DataLoader(
        pairs, batch_size=4, shuffle=False, collate_fn=trainer.data_collator
    )
    trainer.train()
    stepped = {name: before[name] - p.detach() for name, p in original.named_parameters()}
    for name, gradient in expected.items():
        torch.testing.assert_close(
            stepped[name], gradient, rtol=1e-3, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert any(bool(g.abs().max() > 0) for g in expected.values())


# --- settings, presets, bad input -------------------------------------------------------------------


def test_presets_are_the_published_settings():
    best = {name: settle(SimCSEConfig, {}, name, presets=PRESETS) for name in PRESETS}
    plain = best["simcse-bert-base"]
    assert (plain.batch_size, plain.lr, plain.max_length, plain.epochs, plain.temperature) == (
        64,
        3e-5,
        32,
        1,
        0.05,
    )
    assert (plain.at, plain.mlm, plain.schedule, plain.warmup, plain.weight_decay) == (
        (),
        False,
        "linear",
        0,
        0,
    )
    assert (best["simcse-bert-base-mlm"].mlm_weight, best["simcse-bert-base-mlm"].mlm_rate) == (0.1, 0.15)
    found = {
        name: (*c.at, c.stop_grad, c.rate, c.batch_size, c.lr, c.mlm) for name, c in best.items() if c.at
    }
    assert found == {
        "deepaug-bert-base-stop": (8, True, 0.125, 64, 3e-5, False),
        "deepaug-bert-base": (10, False, 0.25, 64, 3e-5, False),
        "deepaug-bert-base-mlm-stop": (6, True, 0.5, 128, 3e-5, True),
        "deepaug-bert-base-mlm": (10, False, 0.5, 128, 5e-5, True),
    }
    with pytest.raises(
        ConfigError, match=r"no preset is called 'simcse-bert'\. Did you mean 'simcse-bert-base'"
    ):
        settle(SimCSEConfig, {}, "simcse-bert", presets=PRESETS)


BAD = [
    ({"from_config": None}, ConfigError, r"no encoder: name one with encoder= \(--encoder\), or from_config="),
    ({"from_config": "bert-smal"}, ConfigError, "no size is called 'bert-smal'. Did you mean 'bert-small'"),
    ({"encoder": "x"}, ConfigError, "give one of them"),
    ({"from_config": None, "encoder": "no/such/dir"}, EncoderError, "'no/such/dir' does not exist"),
    ({"batch_size": 45}, DataError, "batch_size=45 is larger than the 44 sentences"),
    ({"batch_size": 7, "devices": 2}, ConfigError, "Give a multiple of 2"),
    ({"batch_size": 2, "devices": 2}, ConfigError, "at least 2. Give a multiple of 2, at least 4"),
    ({"at": (4,)}, SiteNotFound, "4 is out of range: SimCSE has the stages 0 to 3"),
    ({"at": ("encodr",)}, SiteNotFound, "Did you mean"),
    ({"at": (3,), "stop_grad": True, "subset": 1.0}, ConfigError, "at 3 with subset=1 .* nothing would be trained"),
    ({"max_length": 600}, InvalidOption, "max_length must be from 3 to 512"),
    ({"sts": "no/such"}, DataError, "STS data 'no/such' does not exist"),
    ({"optimizer": "adam"}, ConfigError, "no optimizer is called 'adam'. Did you mean 'adamw'"),
    ({"schedule": "supcontrast"}, ConfigError, "no schedule is called 'supcontrast'"),
    ({"contrastive": False}, ConfigError, "add --mlm"),
    ({"cache": 2, "compile": True}, ConfigError, "leave out --cache or --compile"),
    ({"cache": 0}, ConfigError, "cache must be a whole number of at least 1"),
    ({"cache": 1, "subset": 0.25}, ConfigError, "0.25 of the rows of a part is no whole number"),
    ({"rate": 1.5}, ConfigError, r"rate must be in \[0, 1\]"),
    ({"lr": 1e6, "clip": None, "at": (), "collapse": 0.0}, TrainingDiverged, "try a learning rate below"),
    ({"collapse": 0.99}, TrainingCollapsed, "the embeddings have collapsed"),
    ({"vocab_size": 12}, InvalidOption, "vocab_size 12 is too small"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "kind", "message"), BAD, ids=lambda v: str(v)[:40] if isinstance(v, dict) else ""
)
def test_bad_input_is_refused_before_anything_is_written(change, kind, message, tmp_path):
    with pytest.raises(kind, match=message):
        simcse(replace(text_runs.CONFIG, **change), tmp_path / "run", corpus=text_runs.corpus())
    if kind not in (TrainingDiverged, TrainingCollapsed):
        assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_without_mask_token_is_refused_with_mlm(tmp_path):
    model = build(PLAIN, text_runs.corpus().lines)
    model.tokenizer.mask_token = None
    save_encoder(tmp_path / "encoder", model.encoder, model.tokenizer)
    config = replace(PLAIN, from_config=None, encoder=str(tmp_path / "encoder"), mlm=True)
    with pytest.raises(EncoderError, match="no mask token"):
        simcse(config, tmp_path / "run", corpus=text_runs.corpus())
    assert not (tmp_path / "run").exists()
    found = simcse(replace(config, mlm=False, epochs=1), tmp_path / "run", corpus=text_runs.corpus())
    assert found.result["step"] == 5


def test_an_encoder_with_a_tokenizer_of_more_words_is_refused(tmp_path):
    model = build(PLAIN, text_runs.corpus().lines)
    more = build(replace(PLAIN, vocab_size=90), text_runs.corpus().lines).tokenizer
    save_encoder(tmp_path / "encoder", model.encoder, more)
    config = replace(PLAIN, from_config=None, encoder=str(tmp_path / "encoder"))
    with pytest.raises(EncoderError, match="does not match"):
        simcse(config, corpus=text_runs.corpus())


def test_a_pooling_layer_is_frozen_and_kept(tmp_path):
    model = build(PLAIN, text_runs.corpus().lines)
    with torch.random.fork_rng():
        whole = BertModel(model.encoder.config)
    save_encoder(tmp_path / "encoder", whole, model.tokenizer)
    config = replace(PLAIN, from_config=None, encoder=str(tmp_path / "encoder"), weight_decay=0.1)
    found = simcse(config, tmp_path / "run", corpus=text_runs.corpus())
    assert torch.equal(found.encoder.pooler.dense.weight, whole.pooler.dense.weight)
    assert not torch.equal(
        found.encoder.encoder.layer[0].output.dense.weight, whole.encoder.layer[0].output.dense.weight
    )
    assert load_encoder(tmp_path / "run", "cls").encode(["a cat"]).shape == (1, 128)
    # One that was never saved is not made up.
    plain = replace(config, encoder=str(tmp_path / "plain"))
    save_encoder(tmp_path / "plain", model.encoder, model.tokenizer)
    simcse(plain, tmp_path / "second", corpus=text_runs.corpus())
    with pytest.raises(EncoderError, match="no weights for its pooling layer"):
        load_encoder(tmp_path / "second", "cls")


def test_the_run_that_is_trained_on_is_not_replaced(finished):
    config, _, root = finished
    again = replace(config, from_config=None, encoder=str(root / "run"))
    for out in (root / "run", root):
        with pytest.raises(ConfigError, match="lies in the output directory"):
            simcse(again, out, force=True, corpus=text_runs.corpus())
    assert load_encoder(root / "run")


def test_weights_in_half_precision_are_trained_in_single(tmp_path):
    model = build(PLAIN, text_runs.corpus().lines)
    save_encoder(tmp_path / "half", model.encoder.to(torch.bfloat16), model.tokenizer)
    for mlm in (False, True):
        encoder, _, _ = load_trainable(tmp_path / "half", mlm=mlm)
        assert {p.dtype for p in encoder.parameters()} == {torch.float32}


def test_missing_weights_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    model = build(PLAIN, text_runs.corpus().lines)
    save_encoder(tmp_path / "encoder", model.encoder, model.tokenizer)
    file = tmp_path / "encoder/model.safetensors"
    state = load_file(file)
    del state["encoder.layer.1.output.dense.weight"]
    save_file(state, file, metadata={"format": "pt"})
    for mlm in (False, True):
        with pytest.raises(EncoderError, match="1 are missing or of another shape"):
            load_trainable(tmp_path / "encoder", mlm=mlm)


def test_text_of_empty_lines_alone():
    with pytest.raises(DataError):
        simcse(PLAIN, corpus=Corpus((), 3))


@pytest.mark.long
def test_a_compiled_run_compiles_once_for_each_length():
    torch._dynamo.reset()
    compiled = replace(PLAIN, compile=True, max_length=24)
    counted = torch._dynamo.utils.counters
    counted.clear()
    fast = simcse(compiled, corpus=text_runs.corpus())
    assert counted["stats"]["unique_graphs"] <= 3  # 8, 16 and 24 tokens
    slow = simcse(replace(compiled, compile=False), corpus=text_runs.corpus())
    close(fast.encoder.state_dict(), slow.encoder.state_dict(), rtol=1e-2, atol=1e-3)
