"""Names with dollars, quotes, escapes and markup: in pictures they are letters, in a terminal they do nothing."""

import io
import sys
import xml.etree.ElementTree as ET

import matplotlib
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import graphaug as ga
from graphaug.analysis import CKA
from graphaug.analysis.report import figures
from graphaug.analysis.report.findings import Measurement
from graphaug.draw import draw_graph
from graphaug.terminal.printable import print_names, printable, printable_lines

pytestmark = pytest.mark.few(3)

QUOTED = 'say "it\'s" <b>&amp;</b>'
ODD = ["c$\\foo$d", "a$b$", "$", "_hidden", "\x1b[31mred\x1b]0;title\x07", QUOTED, "--", "{x}", "\udcff"]


@given(st.text())
def test_what_is_printed_is_printable_and_tells_names_apart_from_control(text):
    shown = printable(text)
    assert shown.isprintable()
    if text.isprintable():
        assert shown == text
    else:
        wanted = "".join(
            c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
        )
        assert shown == wanted


def test_lines_and_tabs_of_a_message_stay():
    assert printable_lines("a\x1b\n\tb\x07\r") == "a\\x1b\n\tb\\x07\\r"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_without_the_letters_gets_escapes(encoding, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)
    print_names("caf\xe9 \u5199\u771f \udcff")
    stream.flush()
    written = stream.buffer.getvalue().decode(encoding)
    wanted = {
        "ascii": "caf\\xe9 \\u5199\\u771f",
        "latin-1": "caf\xe9 \\u5199\\u771f",
        "utf-8": "caf\xe9 \u5199\u771f",
    }
    assert written == wanted[encoding] + " \\udcff\n"


def texts(figure):
    return [t.get_text() for t in figure.findobj(matplotlib.text.Text)]


@pytest.fixture
def moments():
    return [Measurement(time=i, score=0.5, alignment=1.0 - i / 4, uniformity=-1.0 - i) for i in range(2)]


@pytest.mark.long
def test_names_of_runs_are_letters_in_every_figure(moments, tmp_path):
    runs = dict.fromkeys(ODD, moments)
    drawn = {
        "plane": figures.plane(runs),
        "curves": figures.curves({name: [(1, 2.0), (2, 1.0)] for name in ODD}, runs),
        "spectrum": figures.spectrum({name: torch.tensor([0.6, 0.3, 0.1]) for name in ODD}),
    }
    for stem, figure in drawn.items():
        written = figures.save(figure, tmp_path / stem)
        ET.parse(written["svg"])  # well-formed: no control character is in it
        assert {printable(name) for name in ODD} <= set(texts(figure)), stem


def test_names_of_sites_are_letters_on_the_axes(tmp_path):
    similarity = CKA(tuple(ODD), tuple(ODD), torch.eye(len(ODD)), 16, "unbiased", "linear")
    figure = figures.heat_map(similarity, cuts=[ODD[0]])
    ET.parse(figures.save(figure, tmp_path / "cka")["svg"])
    assert {printable(name) for name in ODD[1:]} <= set(texts(figure))
    assert f"✂ {ODD[0]}" in texts(figure)


@pytest.mark.parametrize("name", [name for name in ODD[:-1] if '"' not in name])
@pytest.mark.parametrize("ending", ["svg", "png"])
def test_modules_of_any_name_can_be_drawn(name, ending, tmp_path):
    model = nn.Sequential()
    model.add_module(name, nn.Linear(4, 4))
    model.add_module("last", nn.Linear(4, 2))
    path = draw_graph(ga.rewrite(model, "last.input"), tmp_path / f"model.{ending}")
    if ending == "svg":
        ET.parse(path)
    assert path.stat().st_size > 1000
