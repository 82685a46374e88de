"""Batches from the device and batches gathered ahead are the same batches."""

from dataclasses import replace

import pytest
import resumed
import torch

from graphaug.errors import ConfigError
from graphaug.vision.config import PretrainConfig
from graphaug.vision.data import rows
from graphaug.vision.data.images import load
from graphaug.vision.pretrain import pretrain
from graphaug.vision.probes.supervised import fine_tune
from graphaug.vision.weights import load_weights

pytestmark = pytest.mark.few(1)

TINY = PretrainConfig(model="resnet18-cifar:4", epochs=3, batch_size=16, size=8, at=("layer3",), collapse=0.0)
CPU = torch.device("cpu")


def timeless(metrics):
    return [{k: v for k, v in line.items() if k not in ("seconds", "views_per_second")} for line in metrics]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("count", [1, 3, 8, 11])
def test_streamed_rows_are_the_rows(count):
    images = torch.randint(0, 256, (50, 3, 5, 7), dtype=torch.uint8)
    streamed = rows.Streamed(images, CPU)
    wanted = [torch.randint(0, 50, (count,)) for _ in range(6)]
    other = torch.randint(0, 50, (count,))
    for step, ahead in enumerate([wanted[1], wanted[2], other, wanted[4], None, wanted[0]]):
        batch = streamed(wanted[step], ahead)  # announced, announced, announced wrongly, not announced
        assert batch.tolist() == [images[i].tolist() for i in wanted[step].tolist()]


def test_what_is_gathered_ahead_is_not_written_over():
    images = torch.arange(40, dtype=torch.uint8)[:, None]
    streamed = rows.Streamed(images, CPU)
    first = streamed(torch.arange(10), torch.arange(10, 20))
    second = streamed(torch.arange(10, 20), torch.arange(20, 30))
    assert first[:, 0].tolist() == list(range(10))
    assert second[:, 0].tolist() == list(range(10, 20))


def test_images_are_kept_where_they_fit(monkeypatch):
    images = torch.zeros(100, 3, 10, 10, dtype=torch.uint8)
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(rows, "Resident", lambda images, device: f"resident on {device}")
    for free, kept in ((60_000, True), (59_999, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 10**9))
        assert isinstance(rows.image_rows(images, gpu), str) == kept
    assert rows.image_rows(images, CPU) == "resident on cpu"
    assert rows.image_rows(images, gpu, "always") == "resident on cuda:0"
    assert isinstance(rows.image_rows(images, CPU, "never"), rows.Streamed)


def test_images_that_do_not_fit_and_have_to_are_an_error(monkeypatch):
    def full(images, device):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(rows, "Resident", full)
    with pytest.raises(ConfigError, match="do not fit on cuda:0: resident='auto' streams them"):
        rows.image_rows(torch.zeros(1, 3, 2, 2), torch.device("cuda", 0), "always")
    with pytest.raises(ConfigError, match=r"no resident is called 'alway'. Did you mean 'always'"):
        PretrainConfig(resident="alway")


def test_on_the_cpu_nothing_is_copied():
    images = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)
    assert rows.image_rows(images, CPU).images.data_ptr() == images.data_ptr()


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.long
def test_a_streamed_run_is_the_resident_one_bit_for_bit(accumulate):
    config, data = replace(TINY, accumulate=accumulate, watch_every=2), resumed.images()
    kept = pretrain(replace(config, resident="always"), data=data)
    streamed = pretrain(replace(config, resident="never"), data=data)
    assert timeless(streamed.metrics) == timeless(kept.metrics)
    assert streamed.result == kept.result
    assert same(streamed.model.state_dict(), kept.model.state_dict())


class Stop(Exception):
    pass


@pytest.mark.long
def test_a_streamed_run_is_resumed_exactly_and_may_become_resident(tmp_path):
    data = resumed.images()
    config = replace(TINY, resident="never", checkpoint_every=0.3)
    unbroken = pretrain(config, data=data)

    def stop(line):
        if line["epoch"] == 2:
            raise Stop

    for resident in ("never", "always"):
        out = tmp_path / resident
        with pytest.raises(Stop):
            pretrain(config, out, data=data, on_epoch=stop)
        done = pretrain(replace(config, resident=resident), out, data=data, resume=True)
        assert timeless(done.metrics) == timeless(unbroken.metrics)
        assert same(done.model.state_dict(), unbroken.model.state_dict())


@pytest.fixture
def mapped(tmp_path):
    """Twelve dark and twelve bright images in a folder of their own."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    for name, low in (("bright", 150), ("dark", 0)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(24):
            pixels = generator.integers(low, low + 100, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i:02}.png")
    return load(f"folder:{tmp_path / 'data'}", size=8)


@pytest.mark.long
def test_a_mapped_set_trains_is_watched_and_probed_as_one_in_memory(mapped, tmp_path):
    from graphaug.vision.data.images import ImageSet
    from graphaug.vision.models import build_model

    parts = {
        name: ImageSet(part.images.clone(), part.labels)
        for name, part in (("train", mapped.train), ("test", mapped.test))
    }
    in_memory = replace(mapped, **parts)
    config = replace(TINY, watch_every=1)
    runs = [
        pretrain(replace(config, resident=resident), tmp_path / f"run{i}", data=data)
        for i, (data, resident) in enumerate([(in_memory, "auto"), (mapped, "auto"), (mapped, "never")])
    ]
    for run in runs[1:]:
        assert timeless(run.metrics) == timeless(runs[0].metrics)
        assert run.result == runs[0].result
        assert same(run.model.state_dict(), runs[0].model.state_dict())
    tuned = []
    for data in (in_memory, mapped):
        model = build_model(TINY.model)
        load_weights(model, tmp_path / "run0")
        tuned.append((fine_tune(model, data, size=8, epochs=2, batch_size=16), model.state_dict()))
    assert tuned[0][0] == tuned[1][0]
    assert same(tuned[0][1], tuned[1][1])
