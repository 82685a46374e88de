"""The loop: what a run directory holds, that a seed decides everything, that Deep Augmentation is in the step."""

import importlib.metadata
import json
import math
import os
import re
import shutil
from dataclasses import replace

import pytest
import resumed
import torch
import torchvision
import yaml
from safetensors.torch import load_file
from torch import nn

import graphaug
from graphaug.contrastive.losses import LOSSES
from graphaug.contrastive.runs.checkpoints import Checkpoints
from graphaug.contrastive.runs.directory import FILES, RunDirectory
from graphaug.errors import ConfigError, DataError, GraphaugError, RunDirectoryError, TrainingDiverged
from graphaug.vision import job
from graphaug.vision import pretrain as loop
from graphaug.vision.config import PretrainConfig, versions
from graphaug.vision.models import build_model
from graphaug.vision.objective import ImageObjective, image_views
from graphaug.vision.views.pipeline import UNIFORMS

pytestmark = pytest.mark.few(2)

TINY = PretrainConfig(model="resnet18-cifar:8", epochs=2, batch_size=16, size=8, at=("layer4",))


@pytest.fixture(scope="module")
def images():
    return resumed.images()


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "one"
    return out, loop.pretrain(TINY, out, data=images)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def timeless(metrics):
    return [{k: v for k, v in line.items() if k not in ("seconds", "views_per_second")} for line in metrics]


@pytest.mark.long
def test_a_run_directory_holds_its_five_files(run):
    out, done = run
    found = sorted(p.name for p in out.iterdir() if p.name != "tensorboard")  # there if that is installed
    assert found == sorted(FILES)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines == done.metrics
    assert [line["epoch"] for line in lines] == [1, 2]
    assert json.loads((out / "result.json").read_text()) == done.result
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["versions"] == versions()
    assert config["versions"]["torch"] == importlib.metadata.version("torch")
    assert config["resolved"]["steps_per_epoch"] == 3
    assert "layer4" in config["resolved"]["plan"]
    settings = {k: v for k, v in config.items() if k not in ("versions", "resolved")}
    assert PretrainConfig.from_dict(settings) == TINY


@pytest.mark.long
def test_the_result_is_the_probe_of_the_saved_encoder(run, images):
    out, done = run
    model = build_model(TINY.model)
    model.load_state_dict(load_file(out / "encoder.safetensors"), strict=True)
    assert loop.probe(model, images, TINY.size) == done.result
    assert done.result["linear"] == 1.0  # dark and bright
    assert done.result["few_labels"]["labels_per_class"] == 5


@pytest.mark.long
def test_an_encoder_loads_into_the_plain_torchvision_model(images, tmp_path):
    config = replace(TINY, model="resnet18", epochs=1, batch_size=24, size=32, at=())
    loop.pretrain(config, tmp_path / "run", data=images)
    plain = torchvision.models.resnet18()
    initial = plain.conv1.weight.clone()
    plain.load_state_dict(load_file(tmp_path / "run" / "encoder.safetensors"), strict=True)
    assert not torch.equal(plain.conv1.weight, initial)


@pytest.mark.long
def test_one_seed_is_one_run_bit_for_bit(run, images, tmp_path):
    _, first = run
    with torch.random.fork_rng():
        torch.manual_seed(123)  # the caller's random state does not enter
        before = torch.get_rng_state()
        second = loop.pretrain(TINY, tmp_path / "two", data=images)
        assert torch.equal(torch.get_rng_state(), before)
    assert timeless(second.metrics) == timeless(first.metrics)
    assert second.result == first.result
    assert same(second.model.state_dict(), first.model.state_dict())
    other = loop.pretrain(replace(TINY, seed=1), data=images)
    assert timeless(other.metrics) != timeless(first.metrics)


@pytest.mark.long
def test_deep_augmentation_changes_the_run_and_at_rate_zero_does_not(images):
    plain = loop.pretrain(replace(TINY, at=()), data=images)
    neutral = loop.pretrain(replace(TINY, rate=0.0), data=images)
    augmented = loop.pretrain(TINY, data=images)
    assert timeless(neutral.metrics) == timeless(plain.metrics)
    assert same(neutral.model.state_dict(), plain.model.state_dict())
    assert timeless(augmented.metrics) != timeless(plain.metrics)


@pytest.mark.parametrize("at", [("-1",), ("0",), ("4",), ("5",), ("6",), ("fc",), ("layer1", "layer3")])
@pytest.mark.long
def test_every_kind_of_site_trains_with_the_projection_head_in_place(at, images):
    done = loop.pretrain(replace(TINY, at=at, epochs=1), data=images)
    assert math.isfinite(done.metrics[0]["loss"])
    assert isinstance(done.model.fc, torch.nn.Linear)


def test_the_options_reach_rewrite(images, monkeypatch):
    seen, rewrite = {}, graphaug.rewrite

    def spy(model, at, **options):
        seen.update(options, at=at, head=type(model.fc))
        return rewrite(model, at, **options)

    monkeypatch.setattr(graphaug, "rewrite", spy)
    options = {"rate": 0.25, "subset": 0.5, "stop_grad": True, "sampling": "bernoulli"}
    options |= {"granularity": "channel", "pairing": "one-sided", "freeze": "before"}
    loop.pretrain(replace(TINY, epochs=1, at=("4",), **options), data=images)
    example = seen.pop("example_inputs")
    assert example.shape[1:] == (3, TINY.size, TINY.size)
    plain = {"backward": "auto", "views": 1, "rows": None}
    assert seen == {**options, **plain, "at": 4, "head": torch.nn.Sequential}


@pytest.mark.parametrize(
    ("freeze", "trained"),
    [("before", ("layer3", "layer4")), ("after", ("conv1", "bn1", "layer1", "layer2"))],
)
@pytest.mark.long
def test_frozen_layers_do_not_move(freeze, trained, images):
    with torch.random.fork_rng():
        torch.manual_seed(TINY.seed)
        initial = build_model(TINY.model)
    done = loop.pretrain(replace(TINY, epochs=1, at=("layer2",), freeze=freeze), data=images)
    for name, parameter in done.model.named_parameters():
        moved = not torch.equal(parameter, initial.get_parameter(name))
        assert moved == name.startswith(trained), name
        assert parameter.requires_grad, name  # the freeze is undone


def test_the_settings_of_the_views_reach_them(images):
    options = {"crop": 0.5, "jitter": (0.1, 0.2, 0.3, 0.05), "jitter_p": 0.6}
    options |= {"gray_p": 0.15, "blur_p": 0.25, "solarize_p": 0.35, "size": 12}
    config = replace(TINY, **options)
    views = image_views(replace(images, mirror=True), config)
    uniforms = torch.rand(4000, UNIFORMS, generator=torch.Generator().manual_seed(0))
    found = views.params(uniforms, 100, 100)
    area = found.height * found.width / 100**2
    assert float(area.min()) == pytest.approx(0.5, abs=0.02)
    assert float(area.max()) == pytest.approx(1.0, abs=0.02)
    jittered = found.brightness != 1
    for share, p in [
        (jittered, 0.6), (found.gray, 0.15), (found.sigma > 0, 0.25), (found.solarize, 0.35), (found.flip, 0.5),
    ]:  # fmt: skip
        assert float(share.float().mean()) == pytest.approx(p, abs=0.03)
    strengths = [found.brightness - 1, found.contrast - 1, found.saturation - 1, found.hue]
    for strength, expected in zip(strengths, config.jitter, strict=True):
        assert float(strength.abs().max()) == pytest.approx(expected, rel=0.02)
    assert views(images.train.images[:2]).shape == (4, 1, 12, 12)
    assert (
        not image_views(images, config).params(uniforms, 8, 8).flip.any()
    )  # mirrored they are another class
    x = (images.train.images.double() / 255).flatten()
    assert float(views.mean) == pytest.approx(float(x.mean()))
    assert float(views.std) == pytest.approx(float(x.std(correction=0)))


@pytest.mark.parametrize("name", ["nt_xent", "info_nce", "info_nce_symmetric"])
def test_the_settings_of_the_loss_reach_it(name, images):
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 5))
    batch = images.train.images[:6]
    uniforms = torch.rand(12, UNIFORMS, generator=torch.Generator().manual_seed(0))

    def loss(**options):
        config = replace(TINY, loss=name, **options)
        return ImageObjective(network, image_views(images, config), config)(batch, uniforms)["loss"]

    z1, z2 = network(image_views(images, TINY)(batch, uniforms).expand(-1, 3, -1, -1)).chunk(2)
    for temperature in (0.5, 0.1):
        expected = LOSSES[name](z1, z2, temperature)
        torch.testing.assert_close(loss(temperature=temperature), expected)
        scaled = loss(temperature=temperature, loss_scale="supcontrast")
        torch.testing.assert_close(scaled, expected * temperature / 0.07)
    assert len({LOSSES[other](z1, z2, 0.5).item() for other in LOSSES}) == len(LOSSES)


@pytest.mark.long
@pytest.mark.parametrize("how", ["read only", "in the way"])
def test_a_directory_that_becomes_unwritable_ends_the_run(how, images, tmp_path):
    out = tmp_path / "run"
    if how == "read only" and os.geteuid() == 0:
        pytest.skip("root may write everywhere")

    def close(line):
        if line["epoch"] == 1 and how == "read only":
            out.chmod(0o500)
        elif line["epoch"] == 1:
            (out / "metrics.jsonl").unlink()
            (out / "metrics.jsonl").mkdir()

    try:
        with pytest.raises(RunDirectoryError, match=re.escape(str(out)) + ".*cannot be written"):
            loop.pretrain(replace(TINY, epochs=3), out, data=images, on_epoch=close)
    finally:
        out.chmod(0o700)
    assert Checkpoints(out / "checkpoints").latest().step == 3
    assert not (out / "result.json").exists()


def test_training_lowers_the_loss(images):
    done = loop.pretrain(replace(TINY, epochs=8, lr=0.05, at=()), data=images)
    assert done.metrics[-1]["loss"] < done.metrics[0]["loss"]


def test_the_learning_rate_warms_up_and_decays():
    config = PretrainConfig(epochs=11, warmup=1, lr=2.0)
    assert loop.learning_rate(config, 0) == pytest.approx(0.02)
    assert loop.learning_rate(config, 1) == pytest.approx(2.0)
    assert loop.learning_rate(config, 6) == pytest.approx(1.0)
    assert loop.learning_rate(config, 11) == pytest.approx(0.0)


@pytest.mark.long
def test_a_diverged_run_stops_and_keeps_its_lines(images, tmp_path):
    with pytest.raises(TrainingDiverged, match="learning rate below 1e\\+30"):
        loop.pretrain(replace(TINY, lr=1e30, warmup=0, epochs=3), tmp_path / "run", data=images)
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs must be a whole number of at least 1"),
        ({"batch_size": 1}, "batch_size must be"),
        ({"lr": math.nan}, "lr must be a positive"),
        ({"temperature": 0.0}, "temperature must be"),
        ({"weight_decay": -1.0}, "weight_decay must be"),
        ({"rate": 1.5}, r"rate must be in \[0, 1\], not 1.5"),
        ({"rate": math.nan}, "rate must be in"),
        ({"subset": -0.1}, "subset must be in"),
        ({"crop": 2.0}, "crop must be in"),
        ({"jitter": (0.4, 0.4, -0.1, 0.1)}, "jitter must be strengths of at least 0"),
        ({"jitter": (0.4, 0.4, math.nan, 0.1)}, "jitter must be strengths of at least 0"),
        ({"jitter": (0.4, 0.4, 0.4, 0.6)}, "hue at most 0.5"),
        ({"pairing": "one-sided", "subset": 0.6}, "subset=0.6 with pairing='one-sided'.* at most 0.5"),
        ({"pairing": "one-sided", "subset_end": 0.6}, "subset_end=0.6 with pairing='one-sided'"),
        ({"sampling": "exactly"}, "no sampling is called 'exactly'. Did you mean 'exact'"),
        ({"granularity": "chanel"}, "no granularity is called 'chanel'. Did you mean 'channel'"),
        ({"pairing": "onesided"}, "no pairing is called 'onesided'. Did you mean 'one-sided'"),
        ({"freeze": "befor"}, "no freeze is called 'befor'. Did you mean 'before'.* There are before, after"),
        ({"backward": "spare"}, "no backward is called 'spare'. Did you mean 'sparse'"),
        ({"loss": "nt_xnt"}, "Did you mean 'nt_xent'"),
        ({"tempreature": 0.5}, "no setting is called 'tempreature'. Did you mean 'temperature'"),
    ],
)
def test_bad_settings(values, message):
    with pytest.raises(ConfigError, match=message):
        PretrainConfig.from_dict(values)


def test_whole_numbers_in_at_are_the_papers():
    assert PretrainConfig(at=("-1", "4", "layer4", "encoder.layer[4]", 3)).at == (
        -1,
        4,
        "layer4",
        "encoder.layer[4]",
        3,
    )


@pytest.mark.long
def test_nothing_is_written_before_everything_is_checked(images, tmp_path):
    out = tmp_path / "run"
    for config, error in [
        (replace(TINY, at=("layer5",)), GraphaugError),
        (replace(TINY, model="resnet81"), ConfigError),
        (replace(TINY, batch_size=49), DataError),
        (replace(TINY, at=("fc",), freeze="before"), ConfigError),
        (replace(TINY, at=(), stop_grad=True), ConfigError),
    ]:
        with pytest.raises(error):
            loop.pretrain(config, out, data=images)
    assert not out.exists()


@pytest.mark.long
def test_what_refuses_late_does_so_before_a_former_run_is_replaced(run, images, tmp_path, monkeypatch):
    out = shutil.copytree(run[0], tmp_path / "run")
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}

    def refuse(*_):
        raise ConfigError("there is no such engine")

    monkeypatch.setattr(job, "build_engine", refuse)
    with pytest.raises(ConfigError, match="no such engine"):
        loop.pretrain(TINY, out, data=images, force=True)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    "options",
    [{"stop_grad": True}, {"freeze": "before"}, {"rate_end": 0.0}, {"subset_end": 0.2, "stop_grad": True}],
)
def test_what_does_nothing_without_a_site_is_refused(options, images, tmp_path):
    names = ", ".join(name for name in ("stop_grad", "freeze", "rate_end", "subset_end") if name in options)
    config = replace(TINY, at=(), **options)  # the settings alone may be so: a site can still come
    with pytest.raises(ConfigError, match=f"^{names} without a site: .*--at"):
        loop.pretrain(config, tmp_path / "run", data=images)
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_another_run_is_refused_and_left_alone(run, images, tmp_path):
    out, _ = run
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    with pytest.raises(
        RunDirectoryError, match=re.escape(f"'{out}' holds another run. Choose another directory")
    ):
        loop.pretrain(TINY, out, data=images)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(RunDirectoryError, match="holds other files"):
        RunDirectory(tmp_path)
    with pytest.raises(RunDirectoryError, match="is a file"):
        RunDirectory(tmp_path / "mine.txt")


OURS = "resolved: {}\nversions: {}\n"
"""What tells a run's configuration from another program's."""


@pytest.mark.parametrize("config", [None, "model: theirs\n", "- no\n- mapping\n", ": no yaml : ["])
@pytest.mark.parametrize("name", ["checkpoints", "best", "encoder"])
def test_force_removes_nothing_that_no_run_has_written(config, name, images, tmp_path):
    (tmp_path / name).mkdir()
    (tmp_path / name / "important.pt").write_text("theirs")
    if config is not None:
        (tmp_path / "config.yaml").write_text(config)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(RunDirectoryError, match=rf"holds .*{name}, and no run of graphaug's"):
        loop.pretrain(TINY, tmp_path, data=images, force=True)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.long
def test_one_process_at_a_time_writes_a_run(run, images, tmp_path):
    directory = tmp_path / "run"
    with (
        RunDirectory.at(directory).held(),
        pytest.raises(RunDirectoryError, match="another process is training in"),
    ):
        loop.pretrain(TINY, directory, data=images)
    assert not directory.exists() or not any(directory.iterdir())
    loop.pretrain(TINY, directory, data=images)  # a lock that is left by a kill is given back
    assert {p.name for p in directory.iterdir()} == {p.name for p in run[0].iterdir()}


@pytest.mark.long
def test_resuming_with_other_settings_is_refused_before_data_are_read(run, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "load", lambda *_, **__: pytest.fail("the data were read"))
    with pytest.raises(ConfigError, match=r"(?s)other settings:.* lr: 0\.1 → 0\.7"):
        loop.pretrain(replace(TINY, lr=0.7, data="cifar10"), run[0], resume=True)


def test_it_is_processes_that_count_however_they_are_started(tmp_path):
    settings = {**TINY.to_dict(), "size": 8, "resolved": {"processes": 2}, "versions": {}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({k: v for k, v in settings.items() if v != ()}))
    directory = RunDirectory.at(tmp_path)  # torchrun started it, and its devices are 1
    assert directory.check_settings(type(TINY), {**TINY.to_dict(), "size": None, "devices": 2}) is not None
    with pytest.raises(ConfigError, match="devices: 1 → 3"):
        directory.check_settings(type(TINY), {**TINY.to_dict(), "size": None, "devices": 3})


def test_force_replaces_the_run_and_keeps_other_files(tmp_path):
    for name in (*FILES, "mine.txt"):
        (tmp_path / name).write_text("old")
    (tmp_path / "config.yaml").write_text(OURS)
    run = RunDirectory(tmp_path, force=True)
    run.start({"seed": 1})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.yaml", "mine.txt"]
    assert (tmp_path / "config.yaml").read_text() == "seed: 1\n"


def test_a_kill_while_a_run_is_replaced_leaves_what_can_be_told_to_be_one(tmp_path, monkeypatch):
    for name in FILES:
        (tmp_path / name).write_text("old")
    (tmp_path / "config.yaml").write_text(OURS)
    (tmp_path / "checkpoints").mkdir()

    def kill(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", kill)
    with pytest.raises(KeyboardInterrupt):
        RunDirectory(tmp_path, force=True).start({"seed": 1})
    assert (tmp_path / "config.yaml").read_text() == OURS
    assert not (tmp_path / "result.json").exists()
    with pytest.raises(RunDirectoryError, match="holds another run"):
        RunDirectory(tmp_path)


def test_a_file_that_fails_half_way_leaves_the_old_one(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.start({})
    run.figure(lambda path: path.write_text("good"))

    def half(path):
        path.write_text("ha")
        raise OSError(28, "No space left on device")

    with pytest.raises(RunDirectoryError, match=r"curves.png' cannot be written: No space left"):
        run.figure(half)
    assert (tmp_path / "run" / "curves.png").read_text() == "good"
    assert len(list((tmp_path / "run").iterdir())) == 2


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="cannot be written"):
        RunDirectory(tmp_path / "file" / "run").start({})


@pytest.mark.slow
@pytest.mark.long
def test_compiled_runs_agree_with_eager_ones(images, monkeypatch):
    # Tracing is what can go wrong here; inductor's own compilation would take a minute.
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: compile_(f, **options, backend="aot_eager"))
    torch._dynamo.reset()
    config = replace(TINY, epochs=1, rate=0.0)
    compiled = loop.pretrain(replace(config, compile=True), data=images)
    eager = loop.pretrain(config, data=images)
    assert compiled.metrics[0]["loss"] == pytest.approx(eager.metrics[0]["loss"], rel=1e-3)
    assert compiled.model.state_dict().keys() == eager.model.state_dict().keys()
