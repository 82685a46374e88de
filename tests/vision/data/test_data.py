"""Data sets: digits against scikit-learn, folders written here, CIFAR's failure without a network."""

import hashlib
import pickle
import socket

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_digits

from graphaug.errors import DataError, InvalidOption
from graphaug.vision.data.images import ImageData, ImageSet, load
from graphaug.vision.data.splits import stratified_split


def write_image(path, mode="RGB", size=(20, 10), value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = {"RGB": 3, "RGBA": 4, "L": 1, "LA": 2}[mode]
    pixels = np.full((size[1], size[0], bands), value, dtype=np.uint8)
    Image.fromarray(pixels.squeeze(), mode=None).save(path)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "pets"
    for label, name in enumerate(("cat", "dog")):
        for i in range(10):
            write_image(root / name / f"{i}.png", value=100 * label + i)
    return root


def broken(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\nnot an image")


def test_digits_are_scikit_learns():
    data = load("digits")
    raw = load_digits()
    assert len(data.train) + len(data.test) == len(raw.images)
    ours = torch.cat([data.train.images, data.test.images])[:, 0].double() * 16 / 255
    labels = torch.cat([data.train.labels, data.test.labels])
    key = lambda image, label: (*np.round(image).astype(int).ravel().tolist(), int(label))  # noqa: E731
    assert sorted(map(key, ours.numpy(), labels)) == sorted(map(key, raw.images, raw.target))
    assert data.train.images.dtype == torch.uint8
    assert int(data.train.images.max()) == 255
    assert not data.mirror


def test_the_split_is_stratified_disjoint_and_always_the_same():
    labels = torch.tensor([0] * 10 + [1] * 50 + [2] * 3)
    train, test = stratified_split(labels)
    assert sorted(torch.cat([train, test]).tolist()) == list(range(63))
    assert labels[test].bincount().tolist() == [2, 10, 1]
    torch.manual_seed(5)
    again = stratified_split(labels)
    assert torch.equal(again[0], train)
    assert not torch.equal(stratified_split(labels, seed=1)[1], test)


def test_a_class_of_one_image_cannot_be_split():
    with pytest.raises(DataError, match="class 1 has one image"):
        stratified_split(torch.tensor([0, 0, 1]))


def test_a_class_of_one_image_is_named(tmp_path):
    for name, count in (("cat", 3), ("dog", 1)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.new("RGB", (9, 9), (i, 0, 0)).save(tmp_path / name / f"{i}.png")
    with pytest.raises(DataError, match="class 'dog' has one image"):
        load(f"folder:{tmp_path}", size=8)


@pytest.mark.parametrize("place", ["cat", "."], ids=["in a class", "beside the classes"])
@pytest.mark.parametrize("links", [{"a": "a"}, {"a": "b", "b": "a"}, {"a.png": "a.png"}], ids=str)
def test_links_to_themselves_are_no_folders(place, links, tmp_path):
    """torchvision's ImageFolder passes over them in a class; one called as an image is listed, and cannot be read."""
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("RGB", (9, 9), (i, 0, 0)).save(tmp_path / name / f"{i}.png")
    for name, target in links.items():
        (tmp_path / place / name).symlink_to(target)
    data = load(f"folder:{tmp_path}", size=8)
    assert data.classes == ("cat", "dog")
    unread = place == "cat" and "a.png" in links
    assert len(data.train) + len(data.test) == 6
    if place == "cat":
        assert len(torchvision.datasets.ImageFolder(tmp_path)) == 6 + unread
    assert [line.split(": ")[0].strip("'") for line in data.skipped] == [str(tmp_path / "cat/a.png")] * unread


def test_statistics_are_those_of_the_training_images():
    images = torch.randint(
        0, 256, (2500, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    part = ImageSet(images, torch.zeros(2500, dtype=torch.long))
    mean, std = ImageData("x", part, part, ("a",), 4).statistics()
    x = images.double() / 255
    assert mean == pytest.approx(x.mean((0, 2, 3)).tolist(), rel=1e-9)
    assert std == pytest.approx(x.std((0, 2, 3), correction=0).tolist(), rel=1e-9)


def test_a_folder_of_classes_is_split(folder):
    data = load(f"folder:{folder}", size=8)
    assert data.classes == ("cat", "dog")
    assert data.train.images.shape == (16, 3, 8, 8)
    assert data.test.labels.bincount().tolist() == [2, 2]
    for part in (data.train, data.test):  # the value written into an image says its class
        assert torch.equal((part.images[:, 0, 0, 0] >= 100).long(), part.labels)


def test_a_folder_with_its_own_split_keeps_it(tmp_path):
    for part, count in (("train", 3), ("test", 2)):
        for name in "ab":
            for i in range(count):
                write_image(tmp_path / part / name / f"{i}.png")
    data = load(f"folder:{tmp_path}", size=8)
    assert (len(data.train), len(data.test)) == (6, 4)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_other_names_of_a_test_set(tmp_path, name):
    for part, count in (("train", 3), (name, 2)):
        for label in "ab":
            for i in range(count):
                write_image(tmp_path / part / label / f"{i}.png")
    data = load(f"folder:{tmp_path}", size=8)
    assert (data.classes, len(data.train), len(data.test)) == (("a", "b"), 6, 4)


def test_a_training_set_alone_is_split(tmp_path):
    for label in "ab":
        for i in range(5):
            write_image(tmp_path / "train" / label / f"{i}.png")
    (tmp_path / ".cache").mkdir()
    data = load(f"folder:{tmp_path}", size=8)
    assert (data.classes, len(data.train), len(data.test)) == (("a", "b"), 8, 2)


def test_parts_are_not_taken_for_classes(tmp_path):
    for part in ("train", "heldout"):
        for label in "ab":
            write_image(tmp_path / part / label / "0.png")
    with pytest.raises(DataError, match=r"beside it heldout: call the test set one of test, val, valid"):
        load(f"folder:{tmp_path}", size=8)


def test_a_class_may_be_called_train(tmp_path):
    for label in ("car", "train"):
        for i in range(5):
            write_image(tmp_path / label / f"{i}.png")
    assert load(f"folder:{tmp_path}", size=8).classes == ("car", "train")


def test_pixels_without_a_known_range_are_skipped_with_the_reason(folder):
    for i, kind in enumerate((np.float32, np.int32)):
        Image.fromarray(np.ones((8, 8), kind)).save(folder / "cat" / f"wide{i}.tif")
    data = load(f"folder:{folder}", size=8)
    assert len(data.skipped) == 2
    assert all("32 bits" in reason for reason in data.skipped)


def test_parts_with_different_classes_are_refused(tmp_path):
    write_image(tmp_path / "train" / "a" / "0.png")
    write_image(tmp_path / "val" / "b" / "0.png")
    with pytest.raises(DataError, match=r"different classes: a, b"):
        load(f"folder:{tmp_path}")


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_every_mode_becomes_rgb(folder, mode):
    for name in ("cat", "dog"):
        for file in (folder / name).iterdir():
            write_image(file, mode, value=77)
    assert (load(f"folder:{folder}", size=8).train.images == 77).all()


def test_sixteen_bits_are_scaled_not_clipped(folder):
    for name in ("cat", "dog"):
        for file in (folder / name).iterdir():
            Image.fromarray(np.full((9, 9), 0x4D00, dtype=np.uint16)).save(file)
    assert (load(f"folder:{folder}", size=8).train.images == 0x4D).all()


def test_a_palette_with_transparency_does_not_warn(folder):
    image = Image.new("P", (9, 9))
    image.putpalette([10, 20, 30] * 256)
    for name in ("cat", "dog"):
        for file in (folder / name).iterdir():
            image.save(file, transparency=bytes(range(256)))
    assert load(f"folder:{folder}", size=8).train.images[0, :, 0, 0].tolist() == [10, 20, 30]


def test_the_centre_is_cut_out_of_a_long_image(tmp_path):
    pixels = np.zeros((10, 30, 3), dtype=np.uint8)
    pixels[:, 10:20] = 200
    for name in "ab":
        for i in range(2):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    assert (load(f"folder:{tmp_path}", size=10).train.images == 200).all()


def test_unreadable_images_are_skipped_named_and_counted(folder):
    broken(folder / "cat" / "broken.png")
    (folder / "dog" / "empty.jpg").touch()
    truncated = (folder / "dog" / "0.png").read_bytes()[:45]
    (folder / "dog" / "0.png").write_bytes(truncated)
    (folder / "dog" / "notes.txt").write_text("no image, and not looked at")
    data = load(f"folder:{folder}", size=8)
    assert len(data.train) + len(data.test) == 19
    assert len(data.skipped) == 3
    for name, line in zip(("broken.png", "0.png", "empty.jpg"), data.skipped, strict=True):
        assert name in line


def test_strict_refuses_and_names_them(folder):
    for i in range(7):
        broken(folder / "cat" / f"broken{i}.png")
    with pytest.raises(DataError, match=r"7 unreadable image\(s\): .*broken0\.png.* and 2 more") as caught:
        load(f"folder:{folder}", strict=True)
    assert "broken6" not in str(caught.value)
    assert load(f"folder:{folder}", size=8).skipped


def test_bad_folders(tmp_path, folder):
    with pytest.raises(DataError, match=r"'.*pet' does not exist. Did you mean 'pets'?"):
        load(f"folder:{tmp_path / 'pet'}")
    with pytest.raises(DataError, match="is a file, not a folder"):
        load(f"folder:{folder / 'cat' / '0.png'}")
    with pytest.raises(DataError, match="no class folders"):
        load(f"folder:{folder / 'cat'}")
    (folder / "bird").mkdir()
    with pytest.raises(
        DataError,
        match=r"bird' holds no image, .*: remove the folder, or .* end in \.jpg",
    ):
        load(f"folder:{folder}")
    broken(folder / "bird" / "0.png")
    with pytest.raises(DataError, match=r"bird' holds no readable image. All 1 could not be read: .*0\.png"):
        load(f"folder:{folder}")


def test_bad_names(folder):
    with pytest.raises(DataError, match=r"no data set is called 'cifar-10'. Did you mean 'cifar10'"):
        load("cifar-10")
    with pytest.raises(DataError, match="write 'folder:"):
        load(str(folder))
    with pytest.raises(InvalidOption, match="at least 1 pixel"):
        load("digits", size=0)


def fake_cifar(dataset, root, monkeypatch):
    """Torchvision's pickled batches, of three images each, and what is in them: ``{train: (images, labels)}``."""
    folder = root / dataset.base_folder
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    key = "labels" if dataset.meta["key"] == "label_names" else "fine_labels"
    found = {}

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    for train, attribute in ((True, "train_list"), (False, "test_list")):
        names, images, labels = [name for name, _ in getattr(dataset, attribute)], [], []
        written = []
        for name in names:
            pixels = generator.integers(0, 256, (3, 3072), dtype=np.uint8)
            classes = generator.integers(0, 3, 3).tolist()
            written.append(write(name, {"data": pixels, key: classes}))
            images.append(pixels)
            labels += classes
        monkeypatch.setattr(dataset, attribute, written)
        found[train] = np.concatenate(images), labels
    meta = write(dataset.meta["filename"], {dataset.meta["key"]: ["cat", "dog", "ship"]})
    monkeypatch.setattr(dataset, "meta", {**dataset.meta, "md5": meta[1]})
    return found


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_what_torchvisions_batches_hold(name, tmp_path, monkeypatch):
    written = fake_cifar(getattr(torchvision.datasets, name.upper()), tmp_path, monkeypatch)
    data = load(name, root=tmp_path)
    assert (data.classes, data.view_size, data.mirror) == (("cat", "dog", "ship"), 32, True)
    for part, (pixels, labels) in ((data.train, written[True]), (data.test, written[False])):
        assert part.images.dtype == torch.uint8
        assert part.images.is_contiguous()
        assert part.labels.tolist() == labels
        # A row of a batch is all of red, then green, then blue, each row by row (the data set's own page).
        assert part.images.shape == (len(pixels), 3, 32, 32)
        assert part.images[1, 2, 5, 7] == pixels[1, 2 * 1024 + 5 * 32 + 7]
        assert part.images.flatten(1).numpy().tolist() == pixels.tolist()
    assert [p.name for p in tmp_path.iterdir()] == [
        getattr(torchvision.datasets, name.upper()).base_folder
    ]  # what is there needs no lock


def test_processes_take_turns_in_downloading_cifar(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    dataset = torchvision.datasets.CIFAR10
    locked = []

    def download(self):
        if not self._check_integrity():
            with open(tmp_path / "cifar10.lock", "wb") as file, pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fake_cifar(dataset, tmp_path, monkeypatch)
            locked.append(True)

    monkeypatch.setattr(dataset, "download", download)
    assert len(load("cifar10", root=tmp_path).train) == 15
    assert locked == [True]


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_without_a_network_says_what_to_do(name, tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("network is unreachable")

    monkeypatch.setattr(socket, "create_connection", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setenv("GRAPHAUG_DATA", str(tmp_path))
    with pytest.raises(
        DataError, match=rf"{name} is not in '{tmp_path}' and could not be downloaded .*unreachable"
    ):
        load(name)
