"""Folders are decoded once: what is mapped are PIL's pixels, and no stale, damaged or half-written entry is used."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from graphaug.errors import DataError
from graphaug.vision.data import decoding, image_cache
from graphaug.vision.data.folder import EXTENSIONS
from graphaug.vision.data.image_cache import CacheUnusable
from graphaug.vision.data.images import ImageData, ImageSet, MappedSet, load

SIZE = 8


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache for each test."""
    monkeypatch.setenv("GRAPHAUG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path):
    """Ten images of noise in each of two classes; the first pixel tells which image it is."""
    root = tmp_path / "pets"
    generator = np.random.default_rng(0)
    for label, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for i in range(10):
            pixels = generator.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
            pixels[0, 0, 0] = 100 * label + i
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@pytest.fixture
def decodings(monkeypatch):
    """The files that were decoded, in a list that grows."""
    seen, read = [], decoding.read_image
    monkeypatch.setattr(decoding, "read_image", lambda file, *how: (seen.append(file), read(file, *how))[1])
    return seen


def pixels(root):
    """PIL's pixels of every image, by the number in the first one, with its label."""
    found = {}
    for label, name in enumerate(sorted(p.name for p in root.iterdir())):
        for file in (root / name).glob("*.png"):
            image = np.asarray(Image.open(file))
            found[int(image[0, 0, 0])] = torch.from_numpy(image.copy()).permute(2, 0, 1), label
    return found


def check(data, root):
    """Every image is there once, with its pixels and label, in the order of names, two of each class for testing."""
    wanted, seen = pixels(root), []
    for part in (data.train, data.test):
        numbers = part.images[:, 0, 0, 0].tolist()
        assert numbers == sorted(numbers)
        for number, image, label in zip(numbers, part.images, part.labels.tolist(), strict=True):
            assert torch.equal(image, wanted[number][0])
            assert label == wanted[number][1]
        seen += numbers
    assert sorted(seen) == sorted(wanted)
    assert data.test.labels.bincount().tolist() == [2, 2]


def entries(cache):
    return sorted(p for p in cache.rglob("*") if p.suffix in (".npy", ".json"))


def test_a_folder_is_decoded_once_and_then_mapped(folder, decodings):
    check(load(f"folder:{folder}", size=SIZE), folder)
    assert len(decodings) == 20
    again = load(f"folder:{folder}", size=SIZE)
    assert len(decodings) == 20
    check(again, folder)
    assert isinstance(again.train, MappedSet)
    assert isinstance(again.test, MappedSet)


def test_the_cache_is_a_plain_array_that_numpy_reads(folder, cache):
    data = load(f"folder:{folder}", size=SIZE)
    (file,) = cache.rglob("*.npy")
    array = np.load(file, mmap_mode="r")
    assert (array.shape, array.dtype) == ((20, 3, SIZE, SIZE), np.uint8)
    assert np.array_equal(array, torch.cat([data.train.images, data.test.images]))


def test_sizes_and_ways_to_split_have_entries_of_their_own(folder, tmp_path, cache, decodings):
    for size in (SIZE, 4, SIZE, 4):
        assert load(f"folder:{folder}", size=size).train.images.shape[2:] == (size, size)
    assert len(decodings) == 40
    both = tmp_path / "both"
    (both / "test").mkdir(parents=True)
    folder.rename(both / "train")
    for name in ("cat", "dog"):
        (both / "test" / name).mkdir()
        Image.new("RGB", (SIZE, SIZE)).save(both / "test" / name / "0.png")
    assert len(load(f"folder:{both}", size=SIZE).train) == 20
    assert len(load(f"folder:{both / 'train'}", size=SIZE).train) == 16
    assert len(load(f"folder:{both}", size=SIZE).test) == 2


@pytest.mark.parametrize("change", ["content", "time", "more", "fewer", "renamed"])
def test_a_changed_folder_is_decoded_again_and_the_old_entry_removed(folder, cache, decodings, change):
    load(f"folder:{folder}", size=SIZE)
    before = entries(cache)
    file = folder / "cat" / "3.png"
    if change == "content":
        Image.fromarray(np.full((SIZE, SIZE, 3), 3, dtype=np.uint8)).save(file)
    elif change == "time":
        os.utime(file, ns=(0, 12345))
    elif change == "more":
        Image.fromarray(np.full((SIZE, SIZE, 3), 99, dtype=np.uint8)).save(folder / "cat" / "99.png")
    elif change == "fewer":
        file.unlink()
    else:
        file.rename(folder / "cat" / "x.png")
    decodings.clear()
    data = load(f"folder:{folder}", size=SIZE)
    assert len(decodings) == len(data.train) + len(data.test) == {"more": 21, "fewer": 19}.get(change, 20)
    if change != "renamed":
        check(data, folder)
    assert len(entries(cache)) == 2
    assert not set(entries(cache)) & set(before)


@pytest.mark.parametrize(
    "damage", ["short", "long", "flipped", "no index", "half an index", "no images", "empty"]
)
def test_a_damaged_entry_is_made_again(folder, cache, decodings, damage):
    load(f"folder:{folder}", size=SIZE)
    index, images = entries(cache)
    content = images.read_bytes()
    if damage == "flipped":
        images.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage in ("no index", "no images"):
        (index if damage == "no index" else images).unlink()
    elif damage == "half an index":
        index.write_text(index.read_text()[:50])
    else:
        images.write_bytes({"short": content[:-1], "long": content + b"x", "empty": b""}[damage])
    check(load(f"folder:{folder}", size=SIZE), folder)
    assert len(decodings) == 40
    check(load(f"folder:{folder}", size=SIZE), folder)
    assert len(decodings) == 40


def test_an_interrupted_entry_does_not_count(folder, cache, monkeypatch):
    read, seen = decoding.read_image, []

    def interrupted(file, *how):
        seen.append(file)
        if len(seen) == 7:
            raise KeyboardInterrupt
        return read(file, *how)

    monkeypatch.setattr(decoding, "read_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load(f"folder:{folder}", size=SIZE)
    assert entries(cache) == []
    (directory,) = cache.iterdir()
    (directory / ".part-of-a-killed-process").write_bytes(b"x" * 1000)  # a kill leaves no time to tidy up
    check(load(f"folder:{folder}", size=SIZE), folder)
    assert sorted(p.suffix for p in directory.iterdir()) == ["", ".json", ".npy"]


def broken(path):
    path.write_bytes(b"\x89PNG\r\n\x1a\nnot an image")


def test_unreadable_images_leave_no_gap_and_are_remembered(folder, decodings):
    broken(folder / "cat" / "4.png")
    broken(folder / "dog" / "7.png")
    for _ in range(2):
        data = load(f"folder:{folder}", size=SIZE)
        assert [line.partition(": ")[0] for line in data.skipped] == [
            str(folder / name) for name in ("cat/4.png", "dog/7.png")
        ]
        with pytest.raises(DataError, match=r"2 unreadable image\(s\): .*4\.png.*7\.png"):
            load(f"folder:{folder}", size=SIZE, strict=True)
    assert len(decodings) == 20
    for name in ("cat/4.png", "dog/7.png"):
        (folder / name).unlink()
    without = load(f"folder:{folder}", size=SIZE)
    check(without, folder)
    for ours, theirs in ((data.train, without.train), (data.test, without.test)):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.labels, theirs.labels)


@pytest.mark.parametrize("trouble", ["no directory", "no space", "full while writing"])
def test_without_a_place_for_it_the_folder_is_decoded_into_memory(folder, cache, monkeypatch, trouble):
    broken(folder / "cat" / "4.png")
    message = "decoded into memory"
    if trouble == "no directory":
        cache.write_text("a file")
        message = "cannot be written: Not a directory"
    elif trouble == "no space":
        usage = image_cache.shutil.disk_usage(folder)._replace(free=100)
        monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda path: usage)
        message = "3,840 bytes are needed, and 100 are free"
    else:
        write, rows = image_cache._write_header, []

        def full(file, *shape):
            rows.append(shape)
            if len(rows) == 2:
                raise OSError(28, "No space left on device")
            write(file, *shape)

        monkeypatch.setattr(image_cache, "_write_header", full)
        message = "No space left on device"
    with pytest.warns(CacheUnusable, match=message):
        data = load(f"folder:{folder}", size=SIZE)
    assert type(data.train) is ImageSet
    (folder / "cat" / "4.png").unlink()
    check(data, folder)
    assert not list(cache.rglob(".part-*"))


@pytest.mark.long
def test_two_processes_at_once_make_one_entry(folder, cache):
    script = f"""
from pathlib import Path
from graphaug.vision.data import decoding
from graphaug.vision.data.images import load
seen, read = [], decoding.read_image
decoding.read_image = lambda file, *how: (seen.append(file), read(file, *how))[1]
data = load("folder:{folder}", size={SIZE})
print(len(seen), len(data.train), int(data.train.images.sum()))
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    running = [
        subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    found = [process.communicate()[0].split() for process in running]
    data = load(f"folder:{folder}", size=SIZE)
    assert sorted(int(decoded) for decoded, *_ in found) == [0, 20]
    assert [rest for _, *rest in found] == 2 * [["16", str(int(data.train.images.sum()))]]
    assert len(entries(cache)) == 2


def test_mapped_images_are_sent_to_another_process_by_the_name_of_their_file(tmp_path):
    root = tmp_path / "large"
    for name in "ab":
        (root / name).mkdir(parents=True)
        for i in range(5):
            Image.fromarray(np.full((64, 64, 3), i, dtype=np.uint8)).save(root / name / f"{i}.png")
    data = load(f"folder:{root}", size=64)
    sent = pickle.dumps(data)
    assert len(sent) < 5_000 < data.train.images.nbytes
    there = pickle.loads(sent)
    for ours, theirs in ((data.train, there.train), (data.test, there.test)):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.labels, theirs.labels)
    for file in image_cache.cache_root().rglob("*.npy"):
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"damaged|cannot be read"):
        pickle.loads(sent)


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_every_format_at_224_is_pils(tmp_path, extension):
    generator = np.random.default_rng(0)
    rough = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    for name in "ab":
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(2):
            image = Image.fromarray(np.roll(rough, i, 1)).resize((400, 300), Image.Resampling.BICUBIC)
            image = image.convert("L") if extension == ".pgm" else image
            image.save(tmp_path / "photos" / name / f"{i}{extension}")
    data = load(f"folder:{tmp_path / 'photos'}", size=224)
    assert data.train.images.shape == (2, 3, 224, 224)
    # the split takes one image of each class
    ours = sorted(torch.cat([data.train.images, data.test.images]).float(), key=lambda x: x.sum().item())
    theirs = []
    for file in (tmp_path / "photos").rglob("*" + extension):
        image = (
            Image.open(file)
            .convert("RGB")
            .crop((50, 0, 350, 300))
            .resize((224, 224), Image.Resampling.BILINEAR)
        )
        theirs.append(torch.from_numpy(np.array(image)).permute(2, 0, 1).float())
    for a, b in zip(ours, sorted(theirs, key=lambda x: x.sum().item()), strict=True):
        assert (a - b).abs().max() <= 2
        assert (a - b).abs().mean() < 0.2


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("GRAPHAUG_DATA", str(tmp_path / "data"))
    assert image_cache.cache_root() == tmp_path / "cache"
    monkeypatch.delenv("GRAPHAUG_CACHE")
    assert image_cache.cache_root() == tmp_path / "data" / "folders"
    monkeypatch.delenv("GRAPHAUG_DATA")
    assert image_cache.cache_root() == Path.home() / ".cache" / "graphaug" / "folders"


def test_what_is_known_of_the_images_is_plain_text(folder, cache):
    broken(folder / "cat" / "4.png")
    load(f"folder:{folder}", size=SIZE)
    (index,) = cache.rglob("*.json")
    found = json.loads(index.read_text())
    assert found["labels"] == 7 * [0] + 8 * [1] + 2 * [0] + 2 * [1]
    assert found["train"] == 15
    assert len(found["skipped"]) == 1


def test_statistics_of_large_images_are_taken_in_small_chunks():
    images = torch.randint(0, 256, (130, 3, 224, 224), dtype=torch.uint8)  # 111 a chunk
    part = ImageSet(images, torch.zeros(130, dtype=torch.long))
    mean, std = ImageData("x", part, part, ("a",), 224).statistics()
    for channel in range(3):
        counts = np.bincount(images[:, channel].numpy().ravel(), minlength=256) / images[:, channel].numel()
        values = np.arange(256) / 255
        assert mean[channel] == pytest.approx(counts @ values, rel=1e-9)
        assert std[channel] == pytest.approx(np.sqrt(counts @ values**2 - (counts @ values) ** 2), rel=1e-9)
