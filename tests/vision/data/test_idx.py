"""IDX files against bytes written here by the format's own description, and a share of the training images."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from idx_files import idx, write_idx

from graphaug.errors import ConfigError, DataError
from graphaug.vision.config import PretrainConfig
from graphaug.vision.data.images import fewer, load
from graphaug.vision.pretrain import pretrain

SHARED = Path(__file__).resolve().parents[4] / "shared/data/fashion-mnist.tar"


@pytest.mark.parametrize("zipped", [False, True])
def test_files_hold_what_was_written(tmp_path: Path, zipped: bool) -> None:
    written = write_idx(tmp_path, zipped)
    data = load(f"idx:{tmp_path}")
    assert data.train.images.shape == (40, 1, 8, 8)
    assert data.train.images[:, 0].tolist() == written["train"].tolist()
    assert data.test.images[:, 0].tolist() == written["t10k"].tolist()
    assert data.test.labels.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert (data.classes, data.view_size, data.mirror) == (("0", "1", "2", "3"), 8, False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x1f\x8bnot gzip at all", "cannot be read"),
        (gzip.compress(b"abc" * 99)[:12], "cannot be read"),
        (b"PNG", "no IDX file"),
        (idx(np.zeros(3), kind=13), "no IDX file"),
        (idx(np.zeros((40, 8, 8)))[:-1], "damaged"),
        (idx(np.zeros((40, 8, 8)))[:6], "damaged"),
        (idx(np.zeros((39, 8, 8))), "are no data set"),
        (idx(np.zeros((40, 8))), "are no data set"),
    ],
    ids=[
        "no gzip",
        "cut gzip",
        "another file",
        "float64",
        "a byte less",
        "cut head",
        "an image less",
        "no images",
    ],
)
def test_damaged_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    write_idx(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load(f"idx:{tmp_path}")
    assert str(tmp_path) in str(caught.value)


def test_a_missing_file_is_named_with_where_it_can_be_had(tmp_path: Path) -> None:
    write_idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"no t10k-labels-idx1-ubyte.*zalandoresearch"):
        load(f"idx:{tmp_path}")


def test_fewer_images_are_a_share_of_every_class_and_of_more_images(tmp_path: Path) -> None:
    write_idx(tmp_path)
    data = load(f"idx:{tmp_path}")
    small, large = fewer(data, 8), fewer(data, 21)
    assert small.train.labels.bincount().tolist() == [2, 2, 2, 2]
    assert sorted(large.train.labels.bincount().tolist()) == [5, 5, 5, 6]
    kept = {tuple(image) for image in large.train.images.flatten(1).tolist()}
    assert {tuple(image) for image in small.train.images.flatten(1).tolist()} < kept
    for image, label in zip(small.train.images, small.train.labels, strict=True):
        row = next(i for i, other in enumerate(data.train.images) if torch.equal(image, other))
        assert data.train.labels[row] == label
    assert small.test is data.test
    assert fewer(data, None) is data
    torch.manual_seed(7)
    assert torch.equal(fewer(data, 8).train.images, small.train.images)
    with pytest.raises(DataError, match="has 40 training images, not 41"):
        fewer(data, 41)


def test_a_run_trains_and_is_probed_on_as_many_images_as_it_was_told(tmp_path: Path) -> None:
    write_idx(tmp_path / "data", train=80)
    config = PretrainConfig(
        data=f"idx:{tmp_path / 'data'}", images=64, model="resnet18-cifar:4", batch_size=32, epochs=1
    )
    assert pretrain(config).result["train_images"] == 64
    with pytest.raises(ConfigError, match="images must be a whole number of at least 2"):
        PretrainConfig(images=1)


@pytest.mark.long
def test_fashion_mnist_is_read(tmp_path: Path) -> None:
    if not SHARED.exists():
        pytest.skip("Fashion-MNIST is not there: ../shared/data/fashion-mnist.tar")
    import tarfile

    with tarfile.open(SHARED) as archive:
        archive.extractall(tmp_path, filter="data")
    data = load(f"idx:{tmp_path}")
    assert (len(data.train), len(data.test), data.view_size, len(data.classes)) == (60000, 10000, 28, 10)
    assert data.train.labels.bincount().tolist() == [6000] * 10
    # the moments that are published with the set, in units of [0, 1]
    (mean,), (std,) = data.statistics()
    assert (round(mean, 4), round(std, 4)) == (0.2860, 0.3530)
