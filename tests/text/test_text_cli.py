"""``graphaug sts`` as its users call it: the table, the JSON file, one message for an error, and nothing written."""

import json
import re

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from transformers import BertModel

from graphaug.text.corpus.tokenizer import train_wordpiece
from graphaug.text.encoders.load import save_encoder
from graphaug.text.encoders.models import from_config

WORDS = ["a", "cat", "dog", "man", "ran", "sat", "on", "the", "mat", "home"]


@pytest.fixture
def sts(graphaug):
    return lambda *args: graphaug("sts", *args)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run with an encoder, and the development files, in one directory; with them the encoder's parts."""
    root = tmp_path_factory.mktemp("place")
    generator = np.random.default_rng(0)
    rows = [
        (" ".join(generator.choice(WORDS, 5)), " ".join(generator.choice(WORDS, 7)), score)
        for score in np.round(generator.uniform(1, 5, 20), 2)
    ]
    (root / "data/STS/STSBenchmark").mkdir(parents=True)
    (root / "data/SICK").mkdir()
    (root / "data/STS/STSBenchmark/sts-dev.csv").write_text(
        "".join(f"g\tf\t2012\t1\t{s}\t{a}\t{b}\n" for a, b, s in rows)
    )
    head = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n"
    (root / "data/SICK/SICK_trial.txt").write_text(
        head + "".join(f"1\t{a}\t{b}\t{s}\tX\n" for a, b, s in rows[:12])
    )
    tokenizer = train_wordpiece([" ".join(WORDS)] * 3, 100, max_length=16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertModel(from_config("bert-tiny", tokenizer).config)
    save_encoder(root / "run/encoder", model, tokenizer, pooler="mean")
    return root, rows, model.eval(), tokenizer


def expected(rows, model, tokenizer):
    """Spearman by SciPy, sentence by sentence."""
    similarity = []
    for a, b, _ in rows:
        with torch.no_grad():
            x, y = (
                model(**tokenizer(s, return_tensors="pt")).last_hidden_state[0].mean(0).double()
                for s in (a, b)
            )
        similarity.append(float(x @ y / (x.norm() * y.norm())))
    return float(spearmanr(similarity, [score for *_, score in rows]).statistic)


def test_the_table_and_the_file(sts, place, tmp_path):
    root, rows, model, tokenizer = place
    file = tmp_path / "scores.json"
    code, out, err = sts(root / "run", "--data", root / "data", "--split", "dev", "--json", file)
    assert (code, err) == (0, "")
    scores = [expected(rows, model, tokenizer), expected(rows[:12], model, tokenizer)]
    head, line = out.splitlines()
    assert head.split() == ["STS-B", "SICK-R", "Avg."]
    assert line.split() == ["run", *(f"{100 * s:.2f}" for s in (*scores, np.mean(scores)))]
    found = json.loads(file.read_text())
    assert list(found["spearman"].values()) == pytest.approx(scores, abs=1e-6)
    assert found["average"] == pytest.approx(np.mean(scores), abs=1e-6)
    assert found["pairs"] == {"STS-B": 20, "SICK-R": 12}
    assert (found["encoder"], found["pooler"], found["max_length"], found["split"]) == (
        str(root / "run"),
        "mean",
        16,
        "dev",
    )
    assert found["versions"]["torch"] == torch.__version__.split("+")[0]
    assert [p.name for p in tmp_path.iterdir()] == ["scores.json"]


def test_truncated_sentences_are_counted(sts, place):
    root, *_ = place
    code, _, err = sts(root / "run", "--data", root / "data", "--split", "dev", "--max-length", "8")
    assert code == 0
    assert re.fullmatch(r"\d+ sentence\(s\) of more than 8 tokens truncated\.\n", err)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "tests"], r"InvalidOption: no split is called 'tests'\. Did you mean 'test'"),
        (["--split", "test"], r"DataError: .* holds no STS data: no 'STS/STS12.*download_dataset\.sh"),
        (["--data", "no/such"], "DataError: STS data 'no/such' does not exist"),
        (["--pooler", "meen"], r"InvalidOption: no pooler is called 'meen'\. Did you mean 'mean'"),
        (["--batch-size", "0"], "InvalidOption: --batch-size must be at least 1"),
        (["--max-length", "17"], "InvalidOption: --max-length must be from 3 to 16"),
        (["--max-length", "0"], "InvalidOption: --max-length must be from 3 to 16"),
        (["--json", "no/such/file.json"], "RunDirectoryError: .*there is no directory 'no/such'"),
        (["--json", "."], "RunDirectoryError: '.' is a directory"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_message(sts, place, tmp_path, monkeypatch, options, message):
    root, *_ = place
    monkeypatch.chdir(tmp_path)
    given = ["--data", root / "data", "--split", "dev", "--json", "scores.json"]
    code, out, err = sts(root / "run", *given, *options)  # the last of an option given twice counts
    assert (code, out) == (2, "")
    assert re.search(message, err), err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_archive_is_told_in_a_line(sts, place, tmp_path):
    (tmp_path / "notes.txt").write_text("no archive")
    code, _, err = sts(place[0] / "run", "--data", tmp_path / "notes.txt")
    assert code == 2
    assert err.endswith("notes.txt' cannot be read: file could not be opened successfully.\n")


def test_what_is_no_encoder_is_one_message(sts, place):
    root, *_ = place
    for name, message in [
        (root / "runs", r"EncoderError: .*runs' does not exist\. Did you mean .*run'"),
        (root / "data", "EncoderError: .*data' holds no encoder"),
        (root, "EncoderError: .*holds no encoder"),
    ]:
        code, out, err = sts(name, "--data", root / "data", "--split", "dev")
        assert (code, out) == (2, "")
        assert re.search(message, err), err
