"""``graphaug simcse`` as its users call it: train and score with two commands, and one message for an error."""

import json
import re

import pytest
import text_runs
import yaml

from graphaug.text.config import SimCSEConfig

TINY = [
    "--from-config",
    "bert-tiny",
    "--vocab-size",
    "70",
    "--batch-size",
    "8",
    "--max-length",
    "16",
    "--lr",
    "1e-3",
]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "sentences.txt"
    path.write_text("\n\n".join(text_runs.corpus(40).lines) + "\n")
    return path


@pytest.mark.long
def test_train_and_score_with_two_commands(graphaug, text, tmp_path):
    data, out = text_runs.sts_files(tmp_path / "sts"), tmp_path / "run"
    options = ["--text", text, "--out", out, "--sts", data, "--report-every", "2", "--at", "1", "--mlm"]
    code, printed, err = graphaug("simcse", *TINY, *options)
    assert code == 0, err
    assert "39 empty line(s) left out." in err
    assert re.search(
        r"^simcse: step 4/5  loss [\d.]+  lr [\d.e-]+  \d+ views/s  STS-B dev -?[\d.]+$", err, re.MULTILINE
    )
    result = json.loads((out / "result.json").read_text())
    for name, scores in (("last step", result), ("best on dev", result["best_on_dev"])):
        shown = f"{100 * scores['stsb_dev']:.2f}"
        assert re.search(
            rf"^{name} +STS-B dev {shown}  alignment .* \(step {scores['step']}\)$", printed, re.MULTILINE
        )
    code, printed, err = graphaug("sts", out, "--data", data, "--split", "dev")
    assert code == 0, err
    assert f"{100 * result['stsb_dev']:.2f}" in printed.splitlines()[1]
    settings = yaml.safe_load((out / "config.yaml").read_text())
    assert (settings["at"], settings["mlm"], settings["resolved"]["sentences"]) == ([1], True, 40)
    assert settings["versions"]["transformers"]

    code, _, err = graphaug("probe", out)
    assert code == 2
    assert "It is a run on text: 'graphaug sts' scores it." in " ".join(err.split())
    code, _, err = graphaug("analyze", out, "--out", tmp_path / "report", "--samples", 16)
    assert code == 0, err
    assert "✂ encoder.encoder.layer.0" in (tmp_path / "report/report.html").read_text()
    code, _, err = graphaug("simcse", *TINY, *options)
    assert code == 2
    assert "holds another run" in err
    code, _, err = graphaug("simcse", "--out", out, "--resume", "--rate", "0.1")
    assert code == 2
    assert "rate: 0.5 → 0.1" in err
    code, _, err = graphaug("simcse", "--out", out, "--resume")  # finished: its settings are the run's
    assert code == 0, err


def test_truncated_sentences_are_counted_on_the_terminal(graphaug, text, tmp_path):
    short = ["--text", text, "--max-length", "8", "--epochs", "1"]
    code, _, err = graphaug("simcse", *TINY, *short, "--out", tmp_path / "run")
    assert code == 0, err
    count = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["resolved"]["truncated"]
    assert count > 0
    assert f"{count} sentence(s) of more than 8 tokens truncated." in err
    assert err.index("truncated.") < err.index("simcse: step")  # known before the training, not behind it


def test_every_setting_is_an_option_and_presets_are_printed(graphaug):
    code, out, _ = graphaug("simcse", "--help-all")
    assert code == 0
    for name in SimCSEConfig.names():
        spelled = name.replace("_", "-")
        assert re.search(rf"^  (--{spelled}|--\[no-\]{spelled})\b", out, flags=re.M), name
    code, out, _ = graphaug("presets")
    assert code == 0
    found = dict(re.findall(r"# graphaug (?:simcse) --preset (\S+)\n(.*?)\n\n", out + "\n", re.DOTALL))
    assert yaml.safe_load(found["deepaug-bert-base-stop"])["at"] == [8]


def test_a_preset_with_random_weights_instead_of_its_encoder(graphaug, text, tmp_path):
    code, _, err = graphaug(
        "simcse", "--preset", "simcse-bert-base", *TINY, "--text", text, "--out", tmp_path / "run"
    )
    assert code == 0, err
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["encoder"] is None


def test_a_file_in_another_encoding_is_named_with_line_and_byte(graphaug, tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes(b"one sentence\nK\xe4se\n")
    code, _, err = graphaug("simcse", *TINY, "--text", path, "--out", tmp_path / "run")
    assert code == 2
    assert "latin.txt' is not UTF-8: byte 0xe4 in line 2" in " ".join(err.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--at", "4"], "SiteNotFound: .*4 is out of range: SimCSE has the stages 0 to 3.* Did you mean 3"),
        (["--at", "3", "--mlm", "--no-contrastive"], "ConfigError: .*would never act"),
        (
            ["--preset", "simcse-bert"],
            "ConfigError: no preset is called 'simcse-bert'. Did you mean 'simcse-bert-base'",
        ),
        (
            ["--from-config", "bert-tin"],
            "ConfigError: no size is called 'bert-tin'. Did you mean 'bert-tiny'",
        ),
        (["--encoder", "x"], "ConfigError: .*give one of them"),
        (["--text", "no/such.txt"], "DataError: text file 'no/such.txt' does not exist"),
        (["--sts", "no/such"], "DataError: STS data 'no/such' does not exist"),
        (["--batch-size", "41"], "DataError: --batch-size 41 is larger than the 40 sentences"),
        (["--resume", "--force"], "ConfigError: --resume goes on with a run"),
        (["--temperature", "0"], "ConfigError: --temperature must be a positive number"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_message(graphaug, text, tmp_path, options, message):
    code, out, err = graphaug("simcse", *TINY, "--text", text, "--out", tmp_path / "run", *options)
    assert (code, out) == (2, "")
    assert re.search(message, " ".join(err.split())), err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_without_text_or_encoder_it_says_what_to_give(graphaug, tmp_path, text):
    code, _, err = graphaug("simcse", *TINY, "--out", tmp_path / "run")
    assert code == 2
    assert "--text" in err
    code, _, err = graphaug("simcse", "--text", text, "--out", tmp_path / "run")
    assert code == 2
    assert "--from-config" in err
