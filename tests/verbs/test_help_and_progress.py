"""The command line's help, its own words, rates by site, and what a run says while it lasts and when it is stopped."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

import pytest
import typer.main

from graphaug.contrastive.runs import progress
from graphaug.graphs.config import GraphsConfig
from graphaug.terminal.help import GROUPS, RARE, settings_in_groups
from graphaug.terminal.spoken import in_options
from graphaug.text.config import SimCSEConfig
from graphaug.vision.config import PretrainConfig

TINY = ["--model", "resnet18-cifar:4", "--size", "8", "--batch-size", "256", "--accelerator", "cpu"]


def commands() -> dict[str, Any]:
    from graphaug.cli import app

    return dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


# --- help ---------------------------------------------------------------------------------------------


def test_every_setting_stands_in_one_group() -> None:
    names = list(settings_in_groups())
    assert len(names) == len(set(names))
    settings = {item.name for kind in (PretrainConfig, SimCSEConfig, GraphsConfig) for item in fields(kind)}
    assert set(names) - {"out", "preset", "config", "resume", "force"} == settings
    assert settings >= RARE


@pytest.mark.parametrize("name", ["", *commands()])
def test_help_fits_eighty_columns_and_has_every_default(graphaug: Any, monkeypatch: Any, name: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    asked = ["--help-all"] if name in ("pretrain", "simcse", "graphs") else ["--help"]
    code, out, _ = graphaug(*([name] if name else []), *asked)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out
    assert "\u00a0" not in out
    if not name:
        first = [c.help.partition("\n\n")[0] for c in commands().values()]
        assert all(" ".join(text.split()) in " ".join(out.split()) for text in first)
        return
    entries = re.split(r"\n  (?=--)", out)[1:]
    options = [p for p in commands()[name].params if p.param_type_name == "option"]
    assert len(entries) == len(options) + 1  # and --help
    for entry in entries:
        if not entry.startswith(("--help", "--help-all")):
            assert re.search(r"\[(default:\s\S.*|required)\]", " ".join(entry.split())), entry


def test_help_of_a_run_is_short_and_leads_to_the_rest(graphaug: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, short, _ = graphaug("pretrain", "--help")
    _, whole, _ = graphaug("pretrain", "--help-all")
    assert len(short.splitlines()) < 100
    rare = {item.name for item in fields(PretrainConfig)} & RARE
    assert f"{len(rare)} more settings: graphaug pretrain --help-all" in short
    spelled = [f"--{name.replace('_', '-')}" for name in rare]
    shown = set(re.findall(r"^  --(?:\[no-\])?([\w-]+)", short, flags=re.M))
    assert not {name.removeprefix("--") for name in spelled} & shown
    for title in GROUPS:
        assert f"{title}:" in whole


# --- rates by site ------------------------------------------------------------------------------------


@pytest.mark.long
def test_sites_have_rates_of_their_own(graphaug: Any, tmp_path: Any) -> None:
    import yaml

    sites = ["--at", "layer3=0.5", "--at", "4=0.2"]
    code, _, err = graphaug("pretrain", *TINY, *sites, "--epochs", "1", "--out", tmp_path / "run")
    assert code == 0, err
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (saved["at"], saved["rates"]) == (["layer3", 4], [0.5, 0.2])
    plan = saved["resolved"]["plan"]
    assert re.search(r"layer3 .*\n +dropout 0\.5 .*(\n.*)*layer4 .*\n +dropout 0\.2 ", plan)
    code, _, err = graphaug("draw", "resnet18-cifar:4", *sites, "--out", tmp_path / "x.svg")
    assert code == 0, err
    drawn = (tmp_path / "x.svg").read_text()
    assert "0.5" in drawn
    assert "0.2" in drawn


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--at", "layer3=0.5", "--at", "layer4"], "layer4 has none: give each or none one"),
        (["--at", "layer3=high"], "its rate, a number in"),
        (["--at", "layer3=1.5"], "its rate, a number in"),
        (["--at", "=0.5"], "its rate, a number in"),
        (["--at", "layer3=0.5", "--at", "layer3=0.2"], "--at gives 'layer3' two rates: 0.5 and 0.2"),
        (["--at", "layer3=0.5", "--rates", "0.3"], "leave --rates out"),
        (["--at", "layer3=0.5", "--rate-end", "0.1"], "changes one rate for all sites"),
        (["--at", "layer3", "--at", "layer4", "--rates", "0.3"], "1 value.* for 2 site"),
    ],
)
def test_rates_that_make_no_sense_are_refused(
    graphaug: Any, tmp_path: Any, options: Any, message: str
) -> None:
    code, _, err = graphaug("pretrain", *TINY, *options, "--out", tmp_path / "run")
    assert code == 2
    assert re.search(f"ConfigError: .*{message}", err), err
    assert not (tmp_path / "run").exists()


# --- the words of errors ------------------------------------------------------------------------------

OPTIONS = {"at", "rate", "subset", "stop_grad", "backward", "batch_size", "epochs", "pairing", "init"}


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("batch_size must be a whole number", "--batch-size must be a whole number"),
        ("epochs must be a whole number", "--epochs must be a whole number"),
        ("rate=1.5 is outside [0, 1].", "--rate 1.5 is outside [0, 1]."),
        ("Use backward='dense', or 'auto'", "Use --backward dense, or 'auto'"),
        ("with stop_grad=False nothing", "with --no-stop-grad nothing"),
        ("give init=None", "give --init none"),
        ("name one with at= (--at), or none", "name one with --at, or none"),
        ("or without them, init='none' (--init none).", "or without them, --init none."),
        ("or pass --force (force=True) to replace it", "or pass --force to replace it"),
        ("Use 'layer4.1.add', or pass allow_bypass=True.", "Use 'layer4.1.add'."),
        ("use 'relu@0' or '@1', or expect=2 for both.", "use 'relu@0' or '@1'."),
        ("a rate of 0.5 is given by hidden_size=8", "a rate of 0.5 is given by hidden_size=8"),
        ("'other' has epochs=3", "'other' has epochs=3"),
        ("'epochs=3' is quoted", "'epochs=3' is quoted"),
    ],
)
def test_python_is_said_as_options(said: str, meant: str) -> None:
    assert in_options(said, OPTIONS) == meant


def test_the_command_that_has_an_option_is_told_of_it(graphaug: Any, tmp_path: Any) -> None:
    at = ["--at", "layer4.1.conv2"]
    _, _, err = graphaug("draw", "resnet18-cifar:4", *at, "--out", tmp_path / "x.svg")
    assert "or pass --allow-bypass" in err
    _, _, err = graphaug("pretrain", *TINY, *at, "--out", tmp_path / "run")
    assert "Use 'layer4.1.add'." in err
    assert "allow" not in err
    _, _, err = graphaug("draw", "resnet18-cifar:4", "--at", "layer9", "--out", tmp_path / "x.svg")
    assert "'graphaug sites resnet18-cifar:4' lists sites to choose from" in err


@pytest.mark.long
def test_the_hint_names_the_model_wherever_its_name_comes_from(graphaug: Any, tmp_path: Any) -> None:
    missed = ["--at", "layer9", "--batch-size", "8", "--out", tmp_path / "run"]
    _, _, err = graphaug("pretrain", *missed)  # the default
    assert err.startswith("SiteNotFound: ")  # and no line in front of it
    assert "'graphaug sites resnet18-cifar' lists sites to choose from" in err
    settings = tmp_path / "settings.yaml"
    settings.write_text("model: resnet18-cifar:4\n")
    _, _, err = graphaug("pretrain", "--config", settings, *missed)
    assert "'graphaug sites resnet18-cifar:4' lists sites to choose from" in err
    (tmp_path / "my net.py").write_text("import torch\nNet = torch.nn.Sequential(torch.nn.Linear(4, 4))\n")
    _, _, err = graphaug("draw", f"{tmp_path}/my net.py:Net", "--at", "layer9", "--out", tmp_path / "x.svg")
    assert f"'graphaug sites '{tmp_path}/my net.py:Net'' lists sites to choose from" in err


def test_an_example_that_is_missing_is_asked_for_where_it_can_be_given(graphaug: Any, tmp_path: Any) -> None:
    lines = [
        "import torch",
        "class Net(torch.nn.Module):",
        "    def forward(self, x):",
        "        return x.nothing",
    ]
    (tmp_path / "net.py").write_text("\n".join(lines))
    code, _, err = graphaug("sites", f"{tmp_path}/net.py:Net")
    assert code == 2
    assert "Let the file of the model have example_inputs" in err


@pytest.mark.long
def test_an_encoder_of_text_has_its_sites_listed_and_its_hint(graphaug: Any, tmp_path: Any) -> None:
    code, out, _ = graphaug("sites", "encoder:bert-tiny")
    assert code == 0
    stages = dict(re.findall(r"^(\S+) +(\d)  ", out, flags=re.M))
    assert stages == {"encoder.encoder.layer.0": "1", "encoder.encoder.layer.1": "2", "head": "3"}
    (tmp_path / "s.txt").write_text("".join(f"a line {i}\n" for i in range(70)))
    words = ["--text", tmp_path / "s.txt", "--from-config", "bert-tiny", "--out", tmp_path / "run"]
    _, _, err = graphaug("simcse", *words, "--at", "layer9")
    assert "'graphaug sites encoder:bert-tiny' lists sites to choose from" in err
    assert "named encoder:bert-tiny" in graphaug("sites", "bert-tiny")[2]
    assert "Did you mean 'encoder:bert-tiny'?" in graphaug("sites", "encoder:bert-tinny")[2]
    assert "no model is called ''" in graphaug("sites", "")[2]
    assert "--size does nothing" in graphaug("sites", "encoder:bert-tiny", "--size", "9")[2]
    assert (
        "'nothing/here' is no model"
        in graphaug("draw", "encoder:nothing/here", "--at", "1", "--out", "x.svg")[2]
    )


# --- while a run lasts --------------------------------------------------------------------------------


def test_a_log_file_has_steps_and_the_time_left(graphaug: Any, tmp_path: Any, monkeypatch: Any) -> None:
    from graphaug.contrastive.runs import callbacks

    monkeypatch.setattr(progress, "FIRST_LINE", 0.0)
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    monkeypatch.setattr(callbacks, "TELL_EVERY", 0.0)
    code, _, err = graphaug("pretrain", *TINY, "--epochs", "2", "--out", tmp_path / "run")
    assert code == 0, err
    steps = re.findall(r"^pretraining: step (\d+)/10(?:  (\d+:\d\d) left)?$", err, flags=re.M)
    assert [int(step) for step, _ in steps] == list(range(1, 11))
    assert steps[0][1] == ""  # the first step is no measure of the others
    assert all(left for _, left in steps[1:])
    assert steps[-1][1] == "0:00"


def test_the_time_left_is_that_of_the_steps_behind_the_first(monkeypatch: Any) -> None:
    from types import SimpleNamespace

    from graphaug.contrastive.runs import callbacks

    told: list[Any] = []
    clock = iter([100.0, 102.0, 104.0])  # whatever the first step took, one of the others takes two seconds
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: next(clock))
    engine = SimpleNamespace(fabric=SimpleNamespace(is_global_zero=True), feed=SimpleNamespace(steps=5))
    run: Any = SimpleNamespace(began=None, told=0.0, last=10, engine=engine, emit=told.append)
    for step in (1, 2, 3):
        callbacks.Callbacks._tell(run, step)
    assert [event.get("seconds_left") for _, event in told] == [None, 16.0, 14.0]


def losses(bar: Any, *values: float) -> None:
    for epoch, loss in enumerate(values, start=1):
        bar({"epoch": epoch, "loss": loss, "lr": 0.1, "views_per_second": 1.0})


def test_a_run_whose_loss_never_moved_is_told(capsys: Any) -> None:
    with progress.EpochProgress(3) as bar:
        losses(bar, 6.2364, 6.2361, 6.2364)
    assert "the loss is where it was at the first epoch (6.2364, then 6.2364)" in capsys.readouterr().err
    for values in ((6.2364, 6.19, 6.1), (6.2364,)):
        with progress.EpochProgress(3) as bar:
            losses(bar, *values)
    bar = progress.EpochProgress(3)
    losses(bar, 6.2364, 6.2364)
    bar.__exit__(KeyboardInterrupt, None, None)  # nothing is said of a run that did not go through
    assert "the loss is where it was" not in capsys.readouterr().err


def test_what_has_no_effect_and_a_run_that_is_finished_are_told(graphaug: Any, tmp_path: Any) -> None:
    given = ["--images", "256", "--epochs", "2", "--warmup", "5", "--out", tmp_path / "run"]
    given += ["--at", "layer4", "--subset", "0"]
    code, _, err = graphaug("pretrain", *TINY, *given)
    assert code == 0, err
    assert "--warmup 5 is longer than the 2 epoch(s) of --epochs" in err
    assert "--subset 0: no row is augmented at layer4" in err
    code, out, err = graphaug("pretrain", "--out", tmp_path / "run", "--resume")
    assert code == 0, err
    assert f"the run in {tmp_path / 'run'} is finished" in err
    assert "linear probe" in out


def test_training_on_labels_says_where_it_is(graphaug: Any, tmp_path: Any) -> None:
    out = tmp_path / "run"
    code, _, err = graphaug("pretrain", *TINY, "--images", "256", "--epochs", "1", "--out", out)
    assert code == 0, err
    code, _, err = graphaug("probe", out, "--linear", "--epochs", "2")
    assert code == 0, err
    assert re.findall(rf"^linear protocol of {out}: epoch (\d)/2 .* test \d", err, flags=re.M) == ["1", "2"]
    code, _, err = graphaug("transfer", out, "--data", "digits", "--epochs", "1")
    assert code == 0, err
    assert re.findall(rf"^fine-tuning of {out}: epoch (\d)/1 .* test \d", err, flags=re.M) == ["1"]


def test_lines_are_few_by_default(capsys: Any) -> None:
    bar = progress.EpochProgress(3)
    for step in range(1000):
        bar.step({"step": step, "steps": 3000, "epoch": step / 1000, "seconds_left": 3723.0})
    assert capsys.readouterr().err == ""  # not before the first seconds are over
    assert progress.duration(3723.4) == "1:02:03"
    assert progress.duration(59.6) == "1:00"


def test_ctrl_c_says_what_is_kept_and_that_works(graphaug: Any, tmp_path: Any, monkeypatch: Any) -> None:
    from graphaug.contrastive.runs import callbacks

    out = tmp_path / "run"
    monkeypatch.setattr(callbacks, "TELL_EVERY", 0.0)
    real = progress.EpochProgress.step

    def interrupt(self: Any, told: Any) -> None:
        if told["step"] == 7:
            raise KeyboardInterrupt
        real(self, told)

    monkeypatch.setattr(progress.EpochProgress, "step", interrupt)
    code, _, err = graphaug("pretrain", *TINY, "--epochs", "2", "--out", out)
    assert code == 130
    again = f"graphaug pretrain --out {out} --resume"
    assert f"the checkpoint of step 5 is kept in {out}. To go on from there: {again}" in err
    assert "Traceback" not in err
    monkeypatch.setattr(progress.EpochProgress, "step", real)
    code, _, err = graphaug(*again.split()[1:], "--epochs", "3")
    assert code == 2
    assert "epochs: 2 → 3" in err
    assert "--init" in err
    code, _, err = graphaug(*again.split()[1:])
    assert code == 0, err
    assert re.findall(r"epoch (\d)/2", err) == ["2"]


def test_what_is_kept_before_there_is_a_checkpoint(tmp_path: Any) -> None:
    assert "nothing was written" in progress.kept(tmp_path, "simcse")
    (tmp_path / "config.yaml").write_text("")
    assert f"begin again: graphaug simcse --out {tmp_path} --resume" in progress.kept(tmp_path, "simcse")


def test_the_help_of_graphs_offers_what_it_takes(graphaug):
    _, out, _ = graphaug("graphs", "--help-all")
    assert "--deep-views" not in out
    assert "--compile" not in out
    assert "--views drop|edges|mask|subgraph" in out
    assert "--freeze-schedule MODULE" in graphaug("pretrain", "--help-all")[1]
    assert graphaug("graphs", "--out", "x", "--deep-views")[0] == 2
