"""The command line, called as its users do: exit codes, what is printed where, and no traceback."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.few(4)

TINY = ["--model", "resnet18-cifar:8", "--size", "8", "--epochs", "1", "--batch-size", "512"]


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "pets"
    for name, value in {"cat": 10, "dog": 200}.items():
        (root / name).mkdir(parents=True)
        for i in range(12):
            Image.fromarray(np.full((9, 9, 3), value + i, dtype=np.uint8)).save(root / name / f"{i}.png")
    return root


def test_version(graphaug):
    code, out, _ = graphaug("--version")
    assert code == 0
    assert re.fullmatch(r"graphaug \d+\.\d+\.\d+\S*\n", out)


def test_help_names_every_verb(graphaug):
    code, out, _ = graphaug("--help")
    assert code == 0
    verbs = ("pretrain", "presets", "probe", "transfer", "compare", "sites", "draw", "demo")
    assert all(verb in out for verb in verbs)


def test_presets_are_yaml_that_pretrain_reads(graphaug, tmp_path):
    import yaml

    code, out, _ = graphaug("presets")
    assert code == 0
    first, second, *_ = re.split(r"# graphaug \w+ --preset [\w-]+\n", out)[1:]
    path = tmp_path / "preset.yaml"
    path.write_text(first)
    from graphaug.contrastive.config.presets import settle
    from graphaug.vision.config import PretrainConfig
    from graphaug.vision.presets import PRESETS

    named = settle(PretrainConfig, {}, name="simclr-cifar10", presets=PRESETS)
    assert settle(PretrainConfig, {}, file=path) == named
    assert yaml.safe_load(second)["data"] == "cifar100"


def test_settings_come_from_preset_then_file_then_command_line(tmp_path):
    from graphaug.contrastive.config.presets import settle
    from graphaug.errors import ConfigError
    from graphaug.vision.config import PretrainConfig
    from graphaug.vision.presets import PRESETS

    path = tmp_path / "settings.yaml"
    path.write_text("lr: 1e-1\nat: layer4\nepochs: 7\n")
    config = settle(PretrainConfig, {"epochs": 3}, name="simclr-cifar10", file=path, presets=PRESETS)
    assert (config.batch_size, config.lr, config.at, config.epochs) == (1024, 0.1, ("layer4",), 3)
    path.write_text("epoch: 7\n")
    with pytest.raises(ConfigError, match=r"no setting is called 'epoch'. Did you mean 'epochs'"):
        settle(PretrainConfig, {}, file=path)
    path.write_text("epochs: many\n")
    with pytest.raises(ConfigError, match="epochs must be a whole number, not 'many'"):
        settle(PretrainConfig, {}, file=path)
    path.write_text("- 1\n")
    with pytest.raises(ConfigError, match="holds a list"):
        settle(PretrainConfig, {}, file=path)


def test_every_setting_is_an_option(graphaug):
    from dataclasses import fields

    from graphaug.vision.config import PretrainConfig

    code, out, _ = graphaug("pretrain", "--help-all")
    assert code == 0
    for item in fields(PretrainConfig):
        name = item.name.replace("_", "-")
        assert re.search(rf"^  (--{name}|--\[no-\]{name})\b", out, flags=re.M), name


@pytest.mark.long
def test_probe_and_transfer_of_two_seeds(graphaug, tmp_path):
    runs = [tmp_path / f"seed{seed}" for seed in (0, 1)]
    for seed, run in enumerate(runs):
        code, _, err = graphaug("pretrain", *TINY, "--seed", seed, "--out", run)
        assert code == 0, err
    code, out, err = graphaug("probe", *runs, "--linear", "--epochs", "2", "--json", tmp_path / "probe.json")
    assert code == 0, err
    found = json.loads((tmp_path / "probe.json").read_text())
    for name in ("linear", "knn"):
        first, second = (found[str(run)][name] for run in runs)
        assert first == json.loads((runs[0] / "result.json").read_text())[name]
        mean, std = np.mean([first, second]), np.std([first, second], ddof=1)
        assert re.search(rf"^{name} +{100 * mean:.1f} ± {100 * std:.1f} %  \(n = 2\)$", out, re.MULTILINE)
    assert all(re.search(rf"linear {share} of labels +\d", out) for share in ("1%", "5%", "10%"))
    assert "linear protocol, best over epochs" in out
    for run in runs:
        assert found[str(run)]["linear protocol, best over epochs"] >= found[str(run)]["linear protocol"]
    options = ["--data", "digits", "--epochs", "1", "--json", tmp_path / "transfer.json"]
    code, out, err = graphaug("transfer", runs[0], *options)
    assert code == 0, err
    # To the data that it was pretrained on: the linear probe is the probe's.
    linear = found[str(runs[0])]["linear"]
    assert json.loads((tmp_path / "transfer.json").read_text())[str(runs[0])]["linear"] == linear
    assert re.search(rf"^linear +{100 * linear:.1f} %$", out, re.MULTILINE)
    assert re.search(r"^fine-tuned +\d", out, re.MULTILINE)


def test_a_probe_needs_a_run_and_labels(graphaug, folder, tmp_path):
    code, _, err = graphaug("probe", tmp_path)
    assert code == 2
    assert "RunDirectoryError" in err
    assert "no config.yaml" in err
    import shutil

    shutil.rmtree(folder / "dog")
    options = ["--model", "resnet18-cifar:8", "--size", "8", "--epochs", "1", "--batch-size", "8"]
    code, out, err = graphaug("pretrain", "--data", f"folder:{folder}", *options, "--out", tmp_path / "run")
    assert code == 0, err  # images without labels can be pretrained on
    assert "nothing was probed" in out
    code, _, err = graphaug("probe", tmp_path / "run")
    assert code == 2
    assert re.search("DataError: .* holds one class, cat: a probe needs labels", err)


@pytest.mark.long
def test_resume_on_the_command_line(graphaug, tmp_path):
    code, _, err = graphaug("pretrain", *TINY, "--out", tmp_path / "run", "--resume")
    assert code == 0, err
    assert "nothing to resume" in err
    before = {p: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    code, _, err = graphaug("pretrain", "--out", tmp_path / "run", "--resume")  # the settings are the run's
    assert code == 0, err
    code, _, err = graphaug("pretrain", "--out", tmp_path / "run", "--resume", "--lr", "0.3")
    assert code == 2
    assert "lr: 0.1 → 0.3" in err
    assert {p: p.read_bytes() for p in (tmp_path / "run").iterdir()} == before
    code, _, err = graphaug("pretrain", "--out", tmp_path / "run", "--resume", "--force")
    assert code == 2
    assert "give one of them" in err


def test_resume_alone_begins_no_run_where_there_is_none(graphaug, tmp_path):
    run = run_directory(tmp_path / "first")
    for options in ([], ["--keep", "3"], ["--devices", "1"]):
        code, _, err = graphaug("pretrain", "--out", tmp_path / "frist", "--resume", *options)
        assert code == 2
        assert f"nothing to resume: '{tmp_path / 'frist'}' does not exist. Did you mean '{run}'?" in err
    assert not (tmp_path / "frist").exists()
    (tmp_path / "empty").mkdir()
    code, _, err = graphaug("graphs", "--out", tmp_path / "empty", "--resume")
    assert code == 2
    assert "empty' holds no run. --resume begins a new run where" in err
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("result.json", b'{"lin', "result.json' is damaged: .* Remove it"),
        ("metrics.jsonl", None, "metrics.jsonl' of a finished run cannot be read"),
        ("config.yaml", b"\xff\xfe", "config.yaml' is no YAML"),
    ],
)
@pytest.mark.long
def test_a_damaged_run_is_not_resumed(graphaug, tmp_path, name, content, message):
    out = tmp_path / "run"
    assert graphaug("pretrain", *TINY, "--out", out)[0] == 0
    (out / name).unlink() if content is None else (out / name).write_bytes(content)
    code, _, err = graphaug("pretrain", "--out", out, "--resume")
    assert code == 2
    assert re.search(message, err, re.DOTALL), err
    assert "Traceback" not in err


def test_pretrain_writes_a_run_and_prints_the_probe(graphaug, tmp_path):
    out_dir = tmp_path / "run"
    options = ["--at", "layer4", "--at", "-1", "--stop-grad", "--rate", "0.3", "--seed", "3"]
    code, out, err = graphaug("pretrain", *TINY, *options, "--out", out_dir)
    assert code == 0, err
    result = json.loads((out_dir / "result.json").read_text())
    fitted = "(fitted on 1438 training images, 359 test images)"
    assert f"linear probe   {result['linear']:.1%}  {fitted}" in out
    assert "epoch 1/1" in err
    import yaml

    config = yaml.safe_load((out_dir / "config.yaml").read_text())
    assert (config["at"], config["stop_grad"], config["rate"], config["seed"]) == (
        ["layer4", -1],
        True,
        0.3,
        3,
    )
    code, _, err = graphaug("pretrain", *TINY, "--out", out_dir)
    assert code == 2
    assert "RunDirectoryError" in err
    assert "holds another run" in err
    assert "--force" in err
    code, _, err = graphaug("pretrain", *TINY, "--out", out_dir, "--force")
    assert code == 0, err
    assert yaml.safe_load((out_dir / "config.yaml").read_text())["at"] == []


def test_unreadable_images_are_named_and_counted_or_refused(graphaug, folder, tmp_path):
    (folder / "cat" / "broken.png").write_bytes(b"no image")
    options = ["--model", "resnet18-cifar:8", "--size", "8", "--epochs", "1", "--batch-size", "8"]
    code, _, err = graphaug("pretrain", "--data", f"folder:{folder}", *options, "--out", tmp_path / "run")
    assert code == 0, err
    assert "skipped" in err
    assert "broken.png" in err
    assert "1 unreadable image(s) skipped." in err
    code, _, err = graphaug(
        "pretrain", "--data", f"folder:{folder}", *options, "--out", tmp_path / "two", "--strict"
    )
    assert code == 2
    assert "DataError: 1 unreadable image(s)" in err
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--at", "layer5"], r"SiteNotFound: 'layer5' .*Did you mean .*layer4"),
        (["--at", "99"], r"(SiteNotFound|SelectorError): .*99"),
        (["--at", "layer4.1.conv2"], "BypassedSite: .*layer4.1.conv2"),
        (["--at", "layer4", "--rate", "1.5"], r"rate.* 1\.5"),
        (["--rate", "nan"], "rate .*nan"),
        (["--subset", "-0.2"], r"subset .*-0\.2"),
        (
            ["--at", "layer4", "--subset", "0.0001"],
            "ConfigError: --subset 0.0001: of the 1024 rows .* --subset 0.000489",
        ),
        (["--at", "layer4", "--sampling", "exactly"], "'exact'"),
        (["--at", "layer4", "--granularity", "chanel"], "'channel'"),
        (["--at", "layer4", "--pairing", "onesided"], "'one-sided'"),
        (["--at", "layer4", "--freeze", "befor"], "'before'"),
        (["--model", "resnet81"], "ConfigError: .*Did you mean .*resnet18"),
        (["--data", "digit"], "DataError: .*Did you mean 'digits'"),
        (["--data", "folder:"], "DataError: folder: needs a path"),
        (["--data", "folder-as-stored:"], "DataError: folder-as-stored: needs a path"),
        (["--data", "idx:"], "DataError: idx: needs a path"),
        (["--jitter", "0.4"], "ConfigError: --jitter must be four strengths, not 1"),
        (["--data", "folder:/no/such/folder"], "DataError: .*does not exist"),
        (["--batch-size", "100000"], "DataError: --batch-size 100000 is larger than the 1438"),
        (["--batch-size", "1"], "ConfigError: --batch-size must be"),
        (["--batch-size", "many"], "Invalid value for '--batch-size': 'many' is not a whole number"),
        (
            ["--epochs", "2", "--watch-every", "3"],
            "ConfigError: --watch-every does nothing in a run of fewer epochs",
        ),
        (["--rate", "high"], "Invalid value for '--rate': 'high' is not a number"),
        (["--projection", "wide"], "Invalid value for '--projection': 'wide' is not a whole number or none"),
        (["--epochs", "0"], "ConfigError: --epochs must be"),
        (["--seed", "99999999999999999999"], "ConfigError: --seed must be below"),
        (["--temperature", "0"], "ConfigError: --temperature must be"),
        (
            ["--preset", "simclr-cifar"],
            "ConfigError: no preset is called 'simclr-cifar'. Did you mean 'simclr-cifar10",
        ),
        (["--config", "/no/such.yaml"], "ConfigError: '/no/such.yaml' cannot be read"),
        (["--optimizer", "lar"], "ConfigError: no optimizer is called 'lar'. Did you mean 'lars'"),
        (["--accumulate", "512"], "ConfigError: --batch-size 512 in 512 parts .* at least 2"),
        (["--sync-batchnorm", "--accelerator", "cpu"], "ConfigError: --sync-batchnorm needs GPUs"),
        (["--init", "/no/such.safetensors"], "CheckpointError: there are no weights at"),
        (["--loss", "xent"], "ConfigError: no loss is called 'xent'. Did you mean 'nt_xent'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_message_and_nothing_is_written(graphaug, tmp_path, options, message):
    code, out, err = graphaug("pretrain", *TINY, *options, "--out", tmp_path / "run")
    assert code == 2
    assert re.search(message, err, re.DOTALL), err
    assert "Traceback" not in err
    assert out == ""
    assert not (tmp_path / "run").exists()


def test_none_is_the_way_back_from_a_preset_or_a_file(graphaug, tmp_path, monkeypatch):
    import yaml

    from graphaug.contrastive.config import presets

    seen = {}

    def settle(kind, given, *rest):
        seen.update(given)
        raise SystemExit(0)

    real = presets.settle
    monkeypatch.setattr(presets, "settle", settle)
    names = ["at", "freeze", "init", "size", "rate_end", "subset_end", "warmup_from"]
    options = [word for name in names for word in ("--" + name.replace("_", "-"), "none")]
    code, _, err = graphaug("pretrain", "--out", tmp_path / "run", *options)
    assert code == 0, err
    assert seen == {name: [] if name == "at" else None for name in names}
    values = ["layer4", "before", "x.pt", 64, 0.5, 0.5, 0.01]
    path = tmp_path / "file.yaml"
    path.write_text(yaml.safe_dump(dict(zip(names, values, strict=True))))
    from graphaug.vision.config import PretrainConfig

    assert real(PretrainConfig, {}, file=path) != PretrainConfig()
    assert real(PretrainConfig, seen, file=path) == PretrainConfig()
    seen.clear()
    options = ["--size", "16", "--rate-end", "0.25", "--model", "none"]
    code, _, err = graphaug("pretrain", "--out", tmp_path / "run", *options)
    assert code == 0, err
    assert seen == {"size": 16, "rate_end": 0.25, "model": "none"}  # a model cannot be none
    code, _, err = graphaug("pretrain", "--out", tmp_path / "run", "--size", "small")
    assert code == 2
    assert "small" in err


def run_directory(path, **settings):
    """A finished run, as far as the probes look at it."""
    import torch
    import yaml
    from safetensors.torch import save_file

    from graphaug.vision.config import PretrainConfig
    from graphaug.vision.models import build_model

    config = PretrainConfig(model="resnet18-cifar:4", **{"size": 8, **settings})
    path.mkdir()
    (path / "config.yaml").write_text(yaml.safe_dump(config.to_dict()))
    with torch.random.fork_rng():
        save_file(build_model(config.model).state_dict(), path / "encoder.safetensors")
    return path


@pytest.mark.long
def test_settings_that_do_not_come_with_the_weights_are_told(graphaug, tmp_path):
    first = run_directory(tmp_path / "first", at=("layer4",), stop_grad=True)
    small = ["--model", "resnet18-cifar:4", "--size", "8", "--epochs", "1", "--batch-size", "512"]
    code, _, err = graphaug("pretrain", *small, "--init", first, "--out", tmp_path / "bare")
    assert code == 0, err
    line = err.splitlines()[0]
    takes = f"--init takes its weights alone, --config {first / 'config.yaml'} its settings too."
    assert line == f"{first} had --at layer4, --stop-grad: {takes}"
    settled = ["--config", first / "config.yaml", "--init", first, *small]
    code, _, err = graphaug("pretrain", *settled, "--out", tmp_path / "whole")
    assert code == 0, err
    assert "its settings too" not in err


def test_weights_of_another_model_name_the_model_of_their_run(graphaug, tmp_path):
    first = run_directory(tmp_path / "first")
    code, _, err = graphaug("pretrain", *TINY, "--init", first, "--out", tmp_path / "run")
    assert code == 2
    assert "first' is of another model: " in err
    assert "Its run was of --model resnet18-cifar:4: give that one." in err


def test_runs_on_other_images_have_no_mean(graphaug, folder, tmp_path, monkeypatch):
    from graphaug.vision.probes import probe

    monkeypatch.setattr(probe, "probe_run", lambda run, images, **_: {"linear": 0.5})
    first = run_directory(tmp_path / "first")
    sized = run_directory(tmp_path / "sized", size=16)
    other = run_directory(tmp_path / "other", seed=1, data=f"folder:{folder}")
    code, out, err = graphaug("probe", first, other)
    assert (code, out) == (2, "")
    assert re.search(
        r"ConfigError: .*other' has data='folder:.*', .*first' has 'digits': .* or give --data", err
    )
    code, _, err = graphaug("probe", first, other, "--data", "digits")
    assert code == 0, err
    for options in ([], ["--data", "digits"]):
        code, _, err = graphaug("probe", first, sized, *options)
        assert code == 2
        assert re.search("ConfigError: .*sized' has size=16, .*first' has 8", err)


def test_runs_that_differ_in_more_than_their_seed_have_a_row_each(graphaug, tmp_path, monkeypatch):
    from graphaug.vision.probes import probe

    monkeypatch.setattr(probe, "probe_run", lambda run, images, **_: {"linear": 0.5})
    first, second = (run_directory(tmp_path / f"seed{seed}", seed=seed) for seed in (0, 1))
    code, out, err = graphaug("probe", first, second)
    assert (code, err) == (0, "")
    assert "n = 2" in out
    third = run_directory(tmp_path / "third", seed=2, lr=0.3, at=("layer4",), keep=5)
    code, out, err = graphaug("probe", first, second, third)
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert ["at", "lr", "seeds", "linear", "(%)"] in rows
    assert ["none", "0.1", "2", "50", "±", "0"] in rows
    assert ["layer4", "0.3", "1", "50"] in rows


def test_the_images_that_a_probe_is_fitted_on_are_said(graphaug, tmp_path, monkeypatch):
    from graphaug.vision.probes import probe

    monkeypatch.setattr(probe, "probe_run", lambda run, images, **_: {"linear": 0.5})
    whole, part = run_directory(tmp_path / "whole"), run_directory(tmp_path / "part", images=200)
    told = "digits: fitted on all 1438 training images, 359 test images"
    assert graphaug("probe", whole)[1].splitlines()[:2] == [told, "linear  50.0 %"]
    fewer = "what a run with --images 200 printed itself is of probes fitted on fewer"
    assert graphaug("probe", whole, part)[1].splitlines()[:2] == [told, fewer]
    for command in ("probe", "transfer", "pretrain"):
        help = " ".join(graphaug(command, "--help")[1].split())
        assert re.search(r"fitted on (all|the) training images of the (data|run)", help), command


@pytest.mark.parametrize(("name", "value"), [("model", 5), ("size", "big"), ("data", None), ("lrr", 1)])
def test_a_run_whose_settings_are_none_is_not_probed(graphaug, tmp_path, name, value):
    import yaml

    run = run_directory(tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, name: value}))
    code, out, err = graphaug("probe", run)
    assert (code, out) == (2, "")
    assert re.search(rf"CheckpointError: .*config.yaml' is no configuration of a run: .*{name}", err)


@pytest.mark.parametrize("command", [["probe"], ["transfer", "--data", "digits"]])
def test_a_file_that_cannot_be_written_is_told_before_anything_is_computed(
    graphaug, tmp_path, monkeypatch, command
):
    from graphaug.vision.probes import probe

    for name in ("probe_run", "transfer_run"):
        monkeypatch.setattr(probe, name, lambda *_, **__: pytest.fail("computed"))
    run = run_directory(tmp_path / "run")
    code, out, err = graphaug(*command, run, "--json", tmp_path / "no" / "x.json")
    assert (code, out) == (2, "")
    assert "there is no directory" in err


def test_a_copy_of_a_run_is_no_second_seed(graphaug, tmp_path):
    first, copy = (run_directory(tmp_path / name) for name in ("first", "copy"))
    code, out, err = graphaug("probe", first, copy)
    assert (code, out) == (2, "")
    assert "the same settings and the same seed" in err


def test_unknown_options_exit_with_2(graphaug):
    code, _, err = graphaug("pretrain", "--rat", "0.5", "--out", "x")
    assert code == 2
    assert "--rat" in err


@pytest.mark.long
def test_sites_prints_the_table(graphaug):
    code, out, _ = graphaug("sites", "resnet18-cifar:8")
    assert code == 0
    for path in ("layer1", "layer4.1", "avgpool", "fc"):
        assert path in out
    code, _, err = graphaug("sites", "resnet81")
    assert code == 2
    assert "ConfigError" in err


@pytest.mark.parametrize("ending", ["svg", "png"])
@pytest.mark.long
def test_draw_writes_a_picture(graphaug, tmp_path, ending):
    path = tmp_path / f"x.{ending}"
    code, out, err = graphaug("draw", "resnet18-cifar:8", "--at", "4", "--out", path)
    assert code == 0, err
    assert out.strip() == str(path)
    assert path.stat().st_size > 1000


def test_draw_bad_input(graphaug, tmp_path):
    for options, message in [
        (["--out", tmp_path / "x.svg"], "ConfigError: nothing to draw"),
        (["--at", "layer4", "--out", tmp_path / "x.jpg"], r"InvalidOption: .*\.svg"),
        (["--at", "layr4", "--out", tmp_path / "x.svg"], "SiteNotFound: .*layer4"),
    ]:
        code, _, err = graphaug("draw", "resnet18-cifar:8", *options)
        assert code == 2
        assert re.search(message, err, re.DOTALL), err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_demo_reports_every_setting(graphaug, tmp_path, monkeypatch):
    from dataclasses import replace

    from graphaug.vision import demo

    monkeypatch.setattr(demo, "BASE", replace(demo.BASE, model="resnet18-cifar:8", batch_size=512))
    out_dir = tmp_path / "demo"
    code, out, err = graphaug("demo", "--epochs", "1", "--seeds", "1", "--workers", "1", "--out", out_dir)
    assert code == 0, err
    rows = json.loads((out_dir / "results.json").read_text())
    assert [row["name"] for row in rows] == list(demo.SETTINGS)
    for row in rows:
        assert row["name"] in out
        assert f"{100 * row['linear'][0]:.1f}" in out
        assert [len(draws) for draws in row["few"]] == [10]
    assert (out_dir / "results.txt").read_text().strip() in out
    assert (out_dir / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((out_dir / "runs").iterdir())) == 4
    code, _, err = graphaug("demo", "--out", out_dir)
    assert code == 2
    assert "not empty" in err


def test_a_demo_whose_folder_cannot_be_made_trains_nothing(graphaug, tmp_path, monkeypatch):
    from graphaug.vision import demo

    monkeypatch.setattr(demo, "_run_all", lambda *_: pytest.fail("trained"))
    (tmp_path / "file").write_text("")
    code, _, err = graphaug("demo", "--out", tmp_path / "file" / "demo")
    assert code == 2
    assert "cannot be written" in err


@pytest.mark.long
def test_the_demo_gives_the_same_numbers_in_processes_of_its_own():
    from dataclasses import replace

    from graphaug.vision.demo import BASE, UNTRAINED, Job, _run_all

    config = replace(BASE, model="resnet18-cifar:8")
    jobs = [Job(UNTRAINED, replace(config, seed=seed), None, False) for seed in (0, 1)]
    lines = []
    apart = _run_all(jobs, 2, lambda done, total, line: lines.append((done, total)))
    assert apart == _run_all(jobs, 1, lambda *_: None)
    assert lines == [(1, 2), (2, 2)]
    assert apart[0] != apart[1]


def test_the_verdict_compares_seed_by_seed():
    from graphaug.vision.demo import BASELINE, Row, verdict

    base = Row(BASELINE, (0.9, 0.9), ((0.80, 0.82), (0.60, 0.62)))
    up = Row("+ Deep Augmentation at layer4", (0.9, 0.9), ((0.85, 0.87), (0.63, 0.65)))
    mixed = Row("+ Deep Augmentation at layer2", (0.9, 0.9), ((0.70, 0.72), (0.62, 0.64)))
    text = verdict([base, up, mixed])
    assert "at layer4 by +4.0 points (ahead in 2 of 2)" in text
    assert "at layer2 by -4.0 points (ahead in 1 of 2)" in text
    assert up.few_mean == pytest.approx(0.75)
    assert up.few_spread == pytest.approx(float(np.std([0.85, 0.87, 0.63, 0.65], ddof=1)))


@pytest.mark.long
def test_the_command_of_a_process_of_its_own(tmp_path):
    """The exit code and the streams as a shell sees them."""
    command = [
        sys.executable,
        "-m",
        "graphaug.cli",
        "pretrain",
        "--data",
        "digit",
        "--out",
        str(tmp_path / "x"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("DataError: no data set is called 'digit'.")
