"""Which files of a folder are read, and which way up: links, hidden folders, orientation, odd names."""

import os

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import default_loader

from graphaug.errors import DataError
from graphaug.vision.data.decoding import read_image
from graphaug.vision.data.images import load


def write(file, value=0, size=(20, 20)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, len(file.parent.name), 0)).save(file)


@pytest.fixture
def pets(tmp_path):
    for name in ("cat", "dog"):
        for i in range(5):
            write(tmp_path / "pets" / name / f"{i}.png", i)
    return tmp_path / "pets"


def counts(data):
    labels = torch.cat([data.train.labels, data.test.labels])
    return dict(zip(data.classes, labels.bincount().tolist(), strict=True))


# --- links ---------------------------------------------------------------------------------------


def test_linked_folders_and_files_are_read_as_torchvision_reads_them(pets, tmp_path):
    for i in range(20):
        write(tmp_path / "more" / "deep" / f"{i}.png", i)
        write(tmp_path / "bird" / f"{i}.png", i)
    (pets / "cat" / "more").symlink_to(tmp_path / "more")
    (pets / "bird").symlink_to(tmp_path / "bird")
    (pets / "dog" / "one.png").symlink_to(tmp_path / "more" / "deep" / "1.png")
    oracle = ImageFolder(pets)
    wanted = dict(zip(oracle.classes, torch.tensor(oracle.targets).bincount().tolist(), strict=True))
    assert wanted == {"bird": 20, "cat": 25, "dog": 6}
    assert counts(load(f"folder:{pets}", size=8)) == wanted


def test_an_image_behind_a_link_that_changes_is_decoded_again(pets, tmp_path):
    for i in range(3):
        write(tmp_path / "more" / f"{i}.png", 100)
    (pets / "cat" / "more").symlink_to(tmp_path / "more")
    before = load(f"folder:{pets}", size=8)
    write(tmp_path / "more" / "9.png", 200)
    assert counts(load(f"folder:{pets}", size=8))["cat"] == counts(before)["cat"] + 1


def test_a_link_to_a_folder_that_it_lies_in_ends(pets):
    (pets / "cat" / "again").symlink_to(pets / "cat")
    (pets / "dog" / "all").symlink_to(pets)
    # dog/all leads to cat, whose images torchvision would take for dogs too, and to dog, where it began
    assert counts(load(f"folder:{pets}", size=8)) == {"cat": 5, "dog": 10}


def test_a_link_to_nothing_is_an_image_that_cannot_be_read(pets, tmp_path):
    (pets / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    data = load(f"folder:{pets}", size=8)
    assert counts(data) == {"cat": 5, "dog": 5}
    (skipped,) = data.skipped
    assert "gone.png" in skipped
    assert "No such file" in skipped
    with pytest.raises(DataError, match=r"1 unreadable image.*gone\.png"):
        load(f"folder:{pets}", size=8, strict=True)


# --- hidden folders ------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [".ipynb_checkpoints", "cat/.ipynb_checkpoints", "cat/deep/.thumbnails/x"])
def test_hidden_folders_are_neither_classes_nor_images(pets, place):
    write(pets / place / "0-checkpoint.png")
    assert counts(load(f"folder:{pets}", size=8)) == {"cat": 5, "dog": 5}


def test_hidden_folders_alone_are_no_data(tmp_path):
    write(tmp_path / "data" / ".git" / "0.png")
    with pytest.raises(DataError, match=r"no class folders.*Hidden folders do not count"):
        load(f"folder:{tmp_path / 'data'}", size=8)


def test_a_hidden_folder_that_is_asked_for_is_read(pets):
    pets.rename(pets.parent / ".pets")
    assert counts(load(f"folder:{pets.parent / '.pets'}", size=8)) == {"cat": 5, "dog": 5}


# --- orientation ---------------------------------------------------------------------------------


def photo(file, orientation, mode="RGB"):
    """Twelve areas of different greys, wider than high, with an orientation."""
    grid = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    image = Image.fromarray(np.kron(grid, np.ones((10, 10), np.uint8))).convert(mode)
    exif = Image.Exif()
    exif[274] = orientation
    image.save(file, exif=exif, **({"quality": 100} if file.suffix == ".jpg" else {}))


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_stand_as_viewers_show_them(tmp_path, ending, orientation):
    file = tmp_path / f"photo.{ending}"
    photo(file, orientation)
    with Image.open(file) as opened:
        shown = ImageOps.exif_transpose(opened).convert("RGB")
    wanted = ImageOps.fit(shown, (30, 30), Image.Resampling.BILINEAR)
    assert np.array_equal(read_image(file, 30), np.asarray(wanted).transpose(2, 0, 1))


def test_sixteen_bits_with_an_orientation(tmp_path):
    grid = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.kron(grid, np.ones((10, 10), np.uint16))).save(tmp_path / "a.png", exif=exif)
    upright = np.rot90(grid, -1) >> 8
    found = read_image(tmp_path / "a.png", 30)[0]
    assert np.array_equal(found[:, 5::10], np.kron(upright, np.ones((10, 1)))[5:35])


@pytest.mark.parametrize("orientation", [0, 9, 300])
def test_an_orientation_that_is_none_is_not_looked_at(tmp_path, orientation):
    image = Image.new("RGB", (40, 40), (200, 0, 0))
    image.paste((0, 0, 200), (0, 0, 40, 20))
    exif = Image.Exif()
    exif[274] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png", 40), np.asarray(image).transpose(2, 0, 1))


DAMAGED = [
    b"Exif\0\0no header",
    b"Exif\0\0MM\0*\0\0\xff\xff",
    b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01",
]


@pytest.mark.filterwarnings("ignore:(Possibly c|C)orrupt EXIF")  # PIL tells the user
@pytest.mark.parametrize("exif", DAMAGED)
def test_damaged_metadata_do_not_make_an_image_unreadable(tmp_path, exif):
    image = Image.new("RGB", (40, 40), (200, 0, 0))
    image.save(tmp_path / "a.jpg", exif=exif, quality=100)
    assert read_image(tmp_path / "a.jpg", 40).shape == (3, 40, 40)


def test_as_stored_is_what_torchvision_reads_and_another_entry_of_the_cache(tmp_path):
    root = tmp_path / "photos"
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for i in range(2):
            photo(root / name / f"{i}.jpg", 6)
    upright, stored = (load(f"{kind}:{root}", size=30) for kind in ("folder", "folder-as-stored"))
    wanted = ImageOps.fit(default_loader(str(root / "a" / "0.jpg")), (30, 30), Image.Resampling.BILINEAR)
    assert torch.equal(stored.train.images[0], torch.from_numpy(np.asarray(wanted).transpose(2, 0, 1).copy()))
    assert not torch.equal(stored.train.images, upright.train.images)
    assert stored.name == f"folder-as-stored:{root}"  # what config.yaml keeps, and probe and analyze read


# --- names ---------------------------------------------------------------------------------------


def test_a_name_cannot_write_to_the_terminal(pets):
    (pets / "cat" / "\x1b]0;title\x07\n.png").write_bytes(b"no image")
    (pets / "cat" / os.fsdecode(b"\xff.png")).write_bytes(b"no image")
    skipped = load(f"folder:{pets}", size=8).skipped
    assert len(skipped) == 2
    assert all(text.isprintable() for text in skipped)
    assert r"\x1b]0;title\x07\n.png" in "".join(skipped)
