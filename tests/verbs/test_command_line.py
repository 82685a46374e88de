"""The command: `python -m`, what was probably meant, options that would do nothing, a table that fits the terminal."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import graphaug as ga
from graphaug.terminal.table import LEAST, Column, render

pytestmark = pytest.mark.few(4)

HERE = Path(__file__).parent


@pytest.mark.long
def test_python_m_graphaug_is_the_command(graphaug):
    done = subprocess.run(
        [sys.executable, "-m", "graphaug", "--version"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, graphaug("--version")[1], "")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("pretran", "pretrain"), ("advice", "advise"), ("analyse", "analyze"), ("site", "sites")],
)
def test_a_mistyped_command_is_answered_with_the_one_that_was_meant(graphaug, typed, meant):
    code, out, err = graphaug(typed, "--out", "x")
    assert (code, out) == (2, "")
    assert f"No such command '{typed}'" in err
    assert f"'{meant}'" in err


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["pretrain", "--epoch", "3"], ["--epochs"]),
        (["pretrain", "--batch=3"], ["--batch-size"]),
        (["pretrain", "--foo"], []),
        (["probe", "run", "--Linear"], ["--linear"]),
    ],
)
def test_a_mistyped_option_is_answered_with_those_that_are_near(graphaug, typed, meant):
    code, out, err = graphaug(*typed, "--out", "x")
    assert (code, out) == (2, "")
    line = next(line for line in err.splitlines() if "No such option" in line)
    wrong, *suggested = re.findall(r"--[\w-]+", line)
    assert typed[-1].startswith(wrong) or wrong in typed
    assert suggested == meant


IDLE = [
    (["--rate", "0.3"], "--rate does nothing without a site: name one with --at, or leave it out."),
    (["--rate", "0.5"], "--rate does nothing without a site"),  # the default, but typed
    (["--stop-grad"], "--stop-grad does nothing without a site"),
    (
        ["--rate", "0.1", "--subset", "0.2", "--stop-grad"],
        "--rate, --subset, --stop-grad do nothing without a site",
    ),
    (["--rate", "0.3", "--at", "none"], "--rate does nothing without a site"),
    (["--sampling", "bernoulli"], "--sampling does nothing"),
    (["--granularity", "channel"], "--granularity does nothing"),
    (["--pairing", "one-sided"], "--pairing does nothing"),
    (["--freeze", "before"], "--freeze does nothing"),
    (["--backward", "dense"], "--backward does nothing"),
    (
        ["--at", "layer3=0.5", "--at", "layer4=0.2", "--rate", "0.3"],
        "--rate does nothing where each site has a rate of its own: leave it out.",
    ),
    (["--optimizer", "adamw", "--momentum", "0.5"], "--momentum does nothing with --optimizer adamw"),
]


@pytest.mark.parametrize("command", ["pretrain", "simcse"])
@pytest.mark.parametrize(
    ("options", "message"), IDLE, ids=lambda v: " ".join(v) if isinstance(v, list) else ""
)
def test_an_option_that_does_nothing_is_refused(graphaug, tmp_path, command, options, message):
    more = [] if command == "pretrain" else ["--from-config", "bert-tiny", "--text", tmp_path / "no.txt"]
    code, out, err = graphaug(command, *more, *options, "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert f"ConfigError: {message}" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rate-end", "0.3"], "--rate-end does nothing without a site"),
        (["--warmup", "0", "--warmup-from", "0.1"], "--warmup-from does nothing without a warm-up"),
        (["--checkpoint-every", "0", "--keep", "3"], "--keep does nothing with --checkpoint-every 0"),
    ],
)
def test_an_option_of_a_run_on_images_that_does_nothing(graphaug, tmp_path, options, message):
    code, _, err = graphaug("pretrain", *options, "--out", tmp_path / "run")
    assert code == 2
    assert f"ConfigError: {message}" in err


def test_settings_of_a_file_may_do_nothing_and_so_may_a_no(tmp_path):
    from graphaug.contrastive.config.presets import settle
    from graphaug.vision.config import PretrainConfig

    file = tmp_path / "run.yaml"
    file.write_text("rate: 0.3\nstop_grad: false\nmomentum: 0.5\n")
    assert settle(PretrainConfig, {}, file=file).rate == 0.3
    assert settle(PretrainConfig, {"stop_grad": False, "freeze": None}).stop_grad is False
    assert settle(PretrainConfig, {"rate": 0.3, "everywhere": True}).everywhere


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["advise", "run", "--seeds", "1"], "--seeds does nothing without --check: give --check too"),
        (
            ["advise", "run", "--epochs", "5", "--metric", "knn"],
            "--epochs, --metric do nothing without --check",
        ),
        (["probe", "run", "--epochs", "100"], "--epochs does nothing without --linear"),
        (
            ["draw", "resnet18", "--at", "layer3=0.5", "--rate", "0.5", "--out", "x.svg"],
            "--rate does nothing where each site has a rate of its own",
        ),
    ],
)
def test_options_of_a_switch_that_was_not_given(graphaug, words, message):
    code, _, err = graphaug(*words)
    assert code == 2
    assert f"ConfigError: {message}" in err


# --- the table -----------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.text("ab", max_size=30), st.text("cd", max_size=60), st.text("e", max_size=9)),
        max_size=4,
    ),
    st.integers(40, 120),
)
def test_a_table_fits_the_width_and_keeps_what_matters(rows, width):
    first, second, third = ([row[i] for row in rows] for i in range(3))
    columns = [
        Column("name", tuple(first), cut="start"),
        Column("why", tuple(second), cut="end"),
        Column("more", tuple(third), 1),
        Column("least", tuple(third), 2),
    ]
    whole = render(columns)
    assert [line.split() for line in whole[2:]] == [[c for c in (*row, row[2]) if c] for row in rows]
    lines = render(columns, width)
    left_out = lines[-1] if lines[-1].startswith("left out") else ""
    body = lines[:-1] if left_out else lines
    assert all(len(line) <= width for line in body)
    assert {"name", "why"} <= set(body[0].split())
    if "more" in left_out:
        assert "least" in left_out  # never what matters more before what matters less
    for line, row in zip(
        body[2:], rows, strict=True
    ):  # a cut cell shows that it is, and keeps its telling end
        if len(row[0]) <= LEAST:
            assert line.startswith(row[0])
        elif row[0] not in line:
            assert row[0].endswith(line.split()[0].removeprefix("…"))
            assert line.startswith("…")


class Wrapper(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.projector = backbone, nn.Linear(8, 4)

    def forward(self, x):
        return self.projector(self.backbone(x))


class Small(nn.Module):
    """No list of blocks in it."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 8)

    def forward(self, x):
        return self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))


@pytest.mark.parametrize("wraps", [1, 3])
def test_the_table_of_a_wrapper_shows_what_is_inside(wraps):
    model = Small()
    for _ in range(wraps):
        model = Wrapper(model) if wraps == 1 else nn.Sequential(model)
    prefix = "backbone." if wraps == 1 else "0." * wraps
    shown = {str(site) for site in ga.sites(model)}
    assert {f"{prefix}{name}" for name in ("conv", "norm", "relu", "mean", "fc")} <= shown


@pytest.mark.long
def test_a_wrapper_changes_nothing_but_the_names():
    inner = torchvision.models.resnet18(num_classes=8)
    plain = {str(site): (site.stage, site.separates) for site in ga.sites(inner) if site.kind != "input"}
    wrapped = {str(site): (site.stage, site.separates) for site in ga.sites(Wrapper(inner))}
    assert {f"backbone.{name}": found for name, found in plain.items()}.items() <= wrapped.items()


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
@pytest.mark.long
def test_sites_fits_the_terminal(graphaug, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, _ = graphaug("sites", "resnet18-cifar:4")
    assert code == 0
    lines = out.splitlines()
    table = [line for line in lines if not line.startswith("left out")]
    assert all(len(line) <= width for line in table)
    assert re.match(r"site +stage .*separates", lines[1])
    assert any(re.match(r"layer4 +4 ", line) for line in lines)
    if width >= 200:
        assert len(table) == len(lines)
        assert "FLOPs before" in out
    if width <= 60:
        assert re.search(rf"left out to fit {width} columns: .*class$", lines[-1])


def test_a_pipe_gets_the_whole_table(graphaug, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    out = graphaug("sites", "resnet18-cifar:4")[1]
    assert "FLOPs before" in out
    assert "left out" not in out
    assert max(map(len, out.splitlines())) > 80


# --- types ---------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_timm_model_is_shown_at_the_size_that_it_declares(graphaug):
    code, out, err = graphaug("sites", "timm:test_vit")  # made for 160 pixels
    assert (code, err) == (0, "")
    assert "2×3×160×160" in out


def test_an_image_of_a_size_that_does_not_fit_is_answered_with_the_option(graphaug):
    code, out, err = graphaug("sites", "timm:vit_tiny_patch16_224", "--size", "64")
    assert (code, out) == (2, "")
    assert "example image (--size sets it)" in err
    assert "example_inputs" not in err


@pytest.mark.long
def test_the_typed_program_runs(capsys):
    torch.manual_seed(0)
    runpy.run_path(str(HERE / "typed_program.py"), run_name="__main__")
    out = capsys.readouterr().out
    assert "ok  training mode" in out
    assert "matches nothing in Net" in out


@pytest.mark.long
def test_the_typed_program_passes_pyright():
    pytest.importorskip("pyright")
    program = HERE / "typed_program.py"
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    words = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, str(program)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout
