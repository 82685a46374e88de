"""Data of the user's own: what his data set gives is what is trained on, and what cannot be is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from graphaug.errors import ConfigError, DataError, GraphaugError
from graphaug.vision.data.images import load

FILE = """
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from pixels import pixels

PIXELS = pixels()


class Photos(Dataset):
    classes = ["ant", "bee", "cat"]

    def __init__(self, count=30, kind="pil"):
        self.count, self.kind = count, kind

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        image = PIXELS[i]
        if self.kind == "pil":
            return Image.fromarray(image), i % 2 * 2  # nobody is a bee
        if self.kind == "array":
            return image, np.int64(i % 2 * 2)
        tensor = torch.from_numpy(image).permute(2, 0, 1)
        return (tensor if self.kind == "tensor" else tensor / 255), torch.tensor(i % 2 * 2)


def arrays(): return Photos(kind="array")
def tensors(): return Photos(kind="tensor")
def floats(): return Photos(kind="float")
def pair(): return Photos(20), Photos(10)
def bare(): return [image for image, _ in Photos()]
def gray(): return TensorDataset(torch.from_numpy(PIXELS[..., 0]), torch.arange(30) % 3)
def sizes(): return [(Image.fromarray(PIXELS[i][: 8 + i % 3]), i % 2) for i in range(30)]


class Broken(Photos):
    def __getitem__(self, i):
        if i % 10 == 3:
            raise OSError("broken \\x1b[31m file")
        return super().__getitem__(i)


class Random(Photos):
    def __getitem__(self, i):
        image, label = super().__getitem__(i)
        return torch.rand(3, 8, 8), label


class Stream(IterableDataset):
    def __iter__(self):
        return iter(Photos())


class Failing(Photos):
    def __getitem__(self, i):
        return {}["key"]


def needs(path): return Photos()
def number(): return 3
def empty(): return []
def normalised(): return [(torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(i)), 0) for i in range(4)]
def last(): return [(torch.zeros(8, 8, 3, dtype=torch.uint8), 0)] * 4
def words(): return [("text", 0)] * 4
def some(): return [(PIXELS[0], 0), PIXELS[1], (PIXELS[2], 0)]
def halves(): return [(PIXELS[i], i / 2) for i in range(4)]
def longs(): return [PIXELS[i].astype(int) for i in range(4)]
def negative(): return [(PIXELS[i], i - 1) for i in range(4)]
def odd(): return [(p, 0) for p in PIXELS[:6]], [(p, i % 2) for i, p in enumerate(PIXELS[:6])]
def half(): return [(p, 0) for p in PIXELS[:6]], list(PIXELS[:6])
"""

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 10, 12, 3), dtype=np.uint8)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "my.py").write_text(FILE)
    np.save(tmp_path / "pixels.npy", PIXELS)
    (tmp_path / "pixels.py").write_text(
        f"import numpy as np\n\n\ndef pixels():\n    return np.load({str(tmp_path / 'pixels.npy')!r})\n"
    )
    return tmp_path / "my.py"


def everything(data: Any) -> list[tuple[bytes, str]]:
    """All images with the names of their classes, in an order of their own."""
    images = torch.cat([data.train.images, data.test.images])
    labels = torch.cat([data.train.labels, data.test.labels])
    return sorted((i.numpy().tobytes(), data.classes[int(c)]) for i, c in zip(images, labels, strict=True))


@pytest.mark.parametrize("name", ["Photos", "arrays", "tensors", "floats"])
def test_every_kind_of_image_is_the_same_image(name: str, file: Path) -> None:
    data = load(f"{file}:{name}")
    classes = ["ant", "cat"]  # of no image is a bee
    expected = [(PIXELS[i].transpose(2, 0, 1).tobytes(), classes[i % 2]) for i in range(30)]
    assert everything(data) == sorted(expected)
    assert data.classes == ("ant", "cat")
    assert (len(data.train), len(data.test), data.view_size) == (24, 6, 10)
    assert data.train.images.dtype == torch.uint8
    assert load(f"{file}:{name}", size=7).view_size == 7
    assert everything(load(f"{file}:{name}", size=7)) == everything(data)  # a size is of the views


def test_a_pair_is_a_training_and_a_test_set(file: Path) -> None:
    data = load(f"{file}:pair")
    assert torch.equal(data.train.images, torch.from_numpy(PIXELS[:20].transpose(0, 3, 1, 2).copy()))
    assert torch.equal(data.test.images, torch.from_numpy(PIXELS[:10].transpose(0, 3, 1, 2).copy()))
    assert data.test.labels.tolist() == [0, 1] * 5


def test_images_alone_and_gray_ones(file: Path) -> None:
    bare = load(f"{file}:bare")
    assert bare.classes == ("all",)
    assert len(bare.train) + len(bare.test) == 30
    gray = load(f"{file}:gray")
    assert gray.classes == ("0", "1", "2")
    assert {i for i, _ in everything(gray)} == {
        np.repeat(p[None, :, :, 0], 3, axis=0).tobytes() for p in PIXELS
    }


def test_different_sizes_are_brought_to_the_one_that_is_given(file: Path) -> None:
    data = load(f"{file}:sizes", size=6)
    expected = [
        np.asarray(ImageOps.fit(Image.fromarray(PIXELS[i][: 8 + i % 3]), (6, 6), Image.Resampling.BILINEAR))
        for i in range(30)
    ]
    assert {i for i, _ in everything(data)} == {e.transpose(2, 0, 1).tobytes() for e in expected}
    with pytest.raises(DataError, match=r"different sizes, 8 × 12 and 9 × 12 pixels: give size= \(--size\)"):
        load(f"{file}:sizes")


def test_unreadable_images_are_named_and_skipped(file: Path) -> None:
    data = load(f"{file}:Broken")
    assert len(data.train) + len(data.test) == 27
    assert [line.rpartition(":")[0] + line[-5:] for line in data.skipped] == [
        f"{file}:Broken[{i}] file" for i in (3, 13, 23)
    ]
    assert "\x1b" not in "".join(data.skipped)
    with pytest.raises(DataError, match=r"3 unreadable image\(s\), the first: .*Broken\[3\]"):
        load(f"{file}:Broken", strict=True)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("Fotos", DataError, "has no 'Fotos'. Did you mean 'Photos'"),
        ("Random", DataError, r"Random\[0\] is another image each time it is asked for"),
        ("Stream", DataError, "'Stream' of .* is no data set: it has no length"),
        ("number", DataError, "'number' of .* is no data set: it is an int"),
        ("Failing", DataError, r"Failing\[0\] fails: KeyError: 'key'"),
        ("needs", DataError, r"needs\(\) of .* fails: TypeError"),
        ("empty", DataError, "is empty"),
        ("normalised", DataError, r"normalised\[0\] has values from -.* Leave normalisation out"),
        ("last", DataError, r"has the shape \(8, 8, 3\): \(C, H, W\) with 1 or 3 channels"),
        ("words", DataError, r"words\[0\] is a str: an image is expected"),
        ("some", DataError, r"some\[0\] has a label, .*some\[1\] has none"),
        ("halves", DataError, r"the label of .*halves\[0\] is 0\.0"),
        ("longs", DataError, r"longs\[0\] is of int64: uint8"),
        ("negative", DataError, "a label is -1"),
        ("odd", DataError, "class 1 is in one of the training and the test set only"),
        ("half", DataError, "have labels and the test images none"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(
    name: str, error: type[GraphaugError], message: str, file: Path
) -> None:
    with pytest.raises(error, match=message):
        load(f"{file}:{name}")


def test_files_that_are_not_there_or_fail(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file"):
        load(f"{tmp_path / 'no.py'}:photos")
    (tmp_path / "bad.py").write_text("import no_such_module\n")
    with pytest.raises(ConfigError, match="cannot be run: ModuleNotFoundError"):
        load(f"{tmp_path / 'bad.py'}:photos")


def test_pretrain_probe_and_resume(graphaug: Any, file: Path, tmp_path: Path) -> None:
    spec = f"{file}:Photos"
    options = ["--model", "resnet18-cifar:4", "--size", "8", "--epochs", "1", "--batch-size", "12"]
    code, _, err = graphaug(
        "pretrain", "--data", spec, *options, "--accelerator", "cpu", "--out", tmp_path / "run"
    )
    assert code == 0, err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["train_images"], result["test_images"], result["classes"]) == (24, 6, 2)
    code, out, err = graphaug("probe", tmp_path / "run")
    assert code == 0, err
    assert "fitted on all 24 training images, 6 test images" in out
    code, _, err = graphaug("pretrain", "--data", f"{file}:Fotos", *options, "--out", tmp_path / "other")
    assert code == 2
    assert err.startswith("DataError: ")
    assert "Traceback" not in err
