"""Exact resume: killed at any moment and resumed, a run ends as an unbroken one does, bit for bit."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import resumed
import torch
import yaml

from graphaug.contrastive.runs.checkpoints import Checkpoints, DamagedCheckpoint
from graphaug.contrastive.runs.directory import RunDirectory
from graphaug.errors import CheckpointError, ConfigError, RunDirectoryError
from graphaug.vision.config import PretrainConfig
from graphaug.vision.data.fingerprint import fingerprint
from graphaug.vision.data.images import ImageData, ImageSet
from graphaug.vision.pretrain import pretrain

pytestmark = pytest.mark.few(1)

KILLS = int(os.environ.get("GRAPHAUG_KILLS", "2"))
"""How many random kills; `make resume-test` asks for twenty."""


@pytest.fixture(scope="module")
def processes():
    # A server that has imported everything forks processes that start at once; each is killed for itself.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["resumed", "sklearn.linear_model", "lightning_fabric", "matplotlib.figure"]
    )
    return context


@pytest.fixture(scope="module")
def unbroken(processes, tmp_path_factory):
    """The directory of a run that nobody disturbed, and how long it took."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    for name in ("warm", "run"):  # the first process of the server takes longer than the others
        start = time.monotonic()
        process = processes.Process(target=resumed.run, args=(str(out.with_name(name)),))
        process.start()
        process.join()
        assert process.exitcode == 0
    return out, time.monotonic() - start


def kill_at(processes, out, seconds):
    """Run in ``out`` and kill after so many seconds; whether the kill came before the end."""
    process = processes.Process(target=resumed.run, args=(str(out),))
    process.start()
    process.join(seconds)
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def finish(processes, out):
    process = processes.Process(target=resumed.run, args=(str(out),))
    process.start()
    process.join()
    assert process.exitcode == 0


def files(out: Path):
    """What a run has left, as bytes; of the metrics all but the times."""
    found = {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}
    lines = [json.loads(line) for line in found.pop("metrics.jsonl").splitlines()]
    for line in lines:
        del line["seconds"], line["views_per_second"]
    return found, lines


@pytest.mark.long
def test_killed_at_random_times_and_resumed_a_run_ends_as_an_unbroken_one(processes, unbroken, tmp_path):
    out, duration = unbroken
    generator = torch.Generator().manual_seed(int(os.environ.get("GRAPHAUG_KILL_SEED", "0")))
    killed, steps = 0, []
    while killed < KILLS:
        broken = tmp_path / f"run{killed}"
        if not kill_at(processes, broken, duration * float(torch.rand((), generator=generator))):
            continue  # it was done before: another time
        kept = Checkpoints(broken / "checkpoints").complete()
        steps.append(kept[-1].name if kept else "none")
        finish(processes, broken)
        assert files(broken) == files(out)
        killed += 1
    print(f"{killed} kills; last checkpoints: {', '.join(steps)}")


@pytest.mark.long  # three runs of two processes each
def test_two_processes_go_on_with_their_own_generators(processes, tmp_path):
    """Each has drawn its own dropout; the second one's state is not the first one's."""
    process = processes.Process(target=resumed.run_on_two, args=(str(tmp_path / "broken"), 1))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert Checkpoints(tmp_path / "broken" / "checkpoints").complete()
    for name in ("broken", "unbroken"):
        resumed.run_on_two(str(tmp_path / name))
    (found, lines), (expected, expected_lines) = (files(tmp_path / name) for name in ("broken", "unbroken"))
    assert lines == expected_lines
    assert {name for name in expected if found.get(name) != expected[name]} == set()


@pytest.mark.long
def test_a_chain_of_kills(processes, unbroken, tmp_path):
    out = tmp_path / "run"
    for epoch in (3, 6):
        process = processes.Process(target=resumed.run, args=(str(out), epoch))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert (out / "checkpoints").is_dir()
    finish(processes, out)
    assert files(out) == files(unbroken[0])
    assert not (out / "checkpoints").exists()
    assert sorted(p.name for p in (out / "snapshots").iterdir()) == [
        f"epoch-000{n}.safetensors" for n in (0, 3, 6)
    ]


class Stop(Exception):
    pass


def stop(line):
    raise Stop


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that stopped by itself in its sixth epoch, with its last two checkpoints."""
    out = tmp_path_factory.mktemp("stopped") / "run"

    def on_epoch(line):
        if line["epoch"] == 6:
            raise Stop

    with pytest.raises(Stop):
        pretrain(resumed.CONFIG, out, data=resumed.images(), on_epoch=on_epoch)
    return out


@pytest.fixture
def broken(stopped, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(stopped, tmp_path / "run"))


@pytest.mark.parametrize("damage", ["truncated", "flipped bit", "no checksum"])
@pytest.mark.long
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(broken, unbroken, damage):
    earlier, last = Checkpoints(broken / "checkpoints").complete()
    content = bytearray(last.read_bytes())
    if damage == "truncated":
        last.write_bytes(content[: len(content) // 2])
    elif damage == "flipped bit":
        content[len(content) // 2] ^= 1
        last.write_bytes(content)
    else:
        last.with_name(last.name + ".sha256").unlink()
    if damage == "no checksum":  # a kill between the two files: nothing is wrong
        pretrain(resumed.CONFIG, broken, data=resumed.images(), resume=True)
    else:
        named = rf"{re.escape(str(last))}' is damaged: .* Going on from {earlier.name}\."
        with pytest.warns(DamagedCheckpoint, match=named):
            pretrain(resumed.CONFIG, broken, data=resumed.images(), resume=True)
    assert files(broken) == files(unbroken[0])


@pytest.mark.long
def test_with_every_checkpoint_damaged_the_run_is_refused_and_left_alone(broken):
    for path in Checkpoints(broken / "checkpoints").complete():
        path.write_bytes(b"nothing")
    before = {p: p.read_bytes() for p in broken.rglob("*") if p.is_file()}
    with pytest.raises(CheckpointError, match="no checkpoint is left to resume from"):
        pretrain(resumed.CONFIG, broken, data=resumed.images(), resume=True)
    assert {p: p.read_bytes() for p in broken.rglob("*") if p.is_file()} == before


@pytest.mark.long
def test_other_settings_are_refused_with_the_differences(broken):
    before = {p: p.read_bytes() for p in broken.rglob("*") if p.is_file()}
    other = replace(resumed.CONFIG, lr=0.3, at=("layer2",), keep=3)
    with pytest.raises(ConfigError) as caught:
        pretrain(other, broken, data=resumed.images(), resume=True)
    assert "    at: ['layer3'] → ['layer2']\n    lr: 0.1 → 0.3\n" in str(caught.value)
    assert "keep" not in str(caught.value)  # it changes nothing that is computed
    assert {p: p.read_bytes() for p in broken.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    "options", [{"optimizer": "adamw", "lr": 3e-3}, {"optimizer": "lars", "lr": 1.0}, {"accumulate": 2}]
)
def test_an_interrupted_run_goes_on_exactly(options, tmp_path, monkeypatch):
    plain = {"at": (), "stop_grad": False, "rate_end": None, "epochs": 2, "snapshot_every": 0}
    config = replace(resumed.CONFIG, **{**plain, **options})
    images = replace(resumed.images(), classes=("all",))  # nothing is probed
    pretrain(config, tmp_path / "unbroken", data=images)
    save = Checkpoints.save

    def save_and_stop(self, step, state):
        save(self, step, state)
        if step == 4:  # in the middle of the second epoch of three steps
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_stop)
        with pytest.raises(Stop):
            pretrain(config, tmp_path / "broken", data=images)
    with torch.random.fork_rng():
        torch.manual_seed(5)  # what was drawn in between does not matter
        pretrain(config, tmp_path / "broken", data=images, resume=True)
    assert files(tmp_path / "broken") == files(tmp_path / "unbroken")


def with_pixels(part, row, value):
    images = part.images.clone()
    images[row] = value
    return ImageSet(images, part.labels)


def test_other_data_are_refused_with_the_differences(broken):
    before = {p: p.read_bytes() for p in broken.rglob("*") if p.is_file()}
    data = resumed.images()
    more = ImageSet(*(torch.cat([t, t[:2]]) for t in (data.train.images, data.train.labels)))
    swapped = ImageSet(data.train.images, 1 - data.train.labels)
    for other, names in [
        (replace(data, train=more), ["train_images", "labels_sha256", "sample_sha256"]),
        (replace(data, train=swapped), ["labels_sha256"]),
        (replace(data, classes=("dim", "bright")), ["labels_sha256"]),
        (replace(data, test=with_pixels(data.test, 3, 7)), ["sample_sha256"]),
    ]:
        with pytest.raises(ConfigError, match="has other data:") as caught:
            pretrain(resumed.CONFIG, broken, data=other, resume=True)
        found = dict(re.findall(r"^    (\w+): (.* → .*)$", str(caught.value), re.MULTILINE))
        assert list(found) == names
        assert found.get("train_images", "48 → 50") == "48 → 50"
    assert {p: p.read_bytes() for p in broken.rglob("*") if p.is_file()} == before


def test_what_a_run_did_not_write_down_of_its_data_is_not_compared(broken):
    run = RunDirectory(broken, resume=True)
    config = run.settings()
    wanted, facts = resumed.CONFIG.to_dict(), {"labels_sha256": "another", "train_images": 48}
    with pytest.raises(ConfigError, match=r"other data:\n    labels_sha256: .* → 'another'\n"):
        run.resumed(PretrainConfig, wanted, facts)
    assert run.resumed(PretrainConfig, wanted) is None
    del config["resolved"]["labels_sha256"]
    (broken / "config.yaml").write_text(yaml.safe_dump(config))
    assert run.resumed(PretrainConfig, wanted, facts) is None


def test_a_fingerprint_looks_at_a_sample_of_many_images():
    images = torch.zeros(1000, 1, 2, 2, dtype=torch.uint8)
    part = ImageSet(images, torch.zeros(1000, dtype=torch.int64))
    data = ImageData("many", part, part, ("a", "b"), 2)
    found = fingerprint(data)
    assert found == fingerprint(replace(data, name="other"))
    changed = [fingerprint(replace(data, train=with_pixels(part, row, 1))) for row in range(0, 1000, 100)]
    assert 1 <= sum(other != found for other in changed) < 10
    assert fingerprint(replace(data, train=with_pixels(part, slice(None), 1))) != found


@pytest.mark.long
def test_a_run_without_checkpoints_cannot_go_on_and_is_left_alone(tmp_path):
    config = replace(resumed.CONFIG, epochs=2, checkpoint_every=0)
    with pytest.raises(Stop):
        pretrain(config, tmp_path, data=resumed.images(), on_epoch=stop)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for again in (config, replace(config, checkpoint_every=1)):
        with pytest.raises(CheckpointError, match=r"makes no checkpoints \(checkpoint_every=0\) and cannot"):
            pretrain(again, tmp_path, data=resumed.images(), resume=True)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.long
def test_a_run_without_a_checkpoint_yet_says_that_it_begins_again(graphaug, tmp_path):
    out = tmp_path / "run"
    options = {
        "epochs": 1,
        "batch_size": 700,
        "at": (),
        "stop_grad": False,
        "rate_end": None,
        "watch_every": 0,
    }
    config = replace(resumed.CONFIG, **options, checkpoint_every=1)
    with pytest.raises(Stop):
        pretrain(config, out, on_epoch=stop)
    assert not Checkpoints(out / "checkpoints").complete()
    code, _, err = graphaug("pretrain", "--out", out, "--resume")
    assert code == 0, err
    assert f"the run in {out} has no checkpoint yet: it begins again." in err
    code, _, err = graphaug("pretrain", "--out", out, "--resume")
    assert code == 0, err
    assert "begins again" not in err


def test_without_resume_a_run_is_not_touched(broken):
    before = {p: p.read_bytes() for p in broken.rglob("*") if p.is_file()}
    with pytest.raises(RunDirectoryError, match="or --resume"):
        pretrain(resumed.CONFIG, broken, data=resumed.images())
    assert {p: p.read_bytes() for p in broken.rglob("*") if p.is_file()} == before


@pytest.mark.long
def test_a_finished_run_is_read_and_not_run_again(unbroken):
    out, _ = unbroken
    before = files(out)

    def never(line):
        raise AssertionError(line)

    done = pretrain(resumed.CONFIG, out, data=resumed.images(), resume=True, on_epoch=never)
    assert files(out) == before
    assert done.result == json.loads((out / "result.json").read_text())
    assert len(done.metrics) == resumed.CONFIG.epochs


def test_only_the_last_checkpoints_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3)
    for step in range(1, 6):
        checkpoints.save(step, {"step": step, "x": torch.full((3,), step)})
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == sorted(
        f"step-0000000{step}.pt{end}" for step in (3, 4, 5) for end in ("", ".sha256")
    )
    found = checkpoints.latest()
    assert (found.step, found.state["step"]) == (5, 5)
    assert torch.equal(found.state["x"], torch.full((3,), 5))


@pytest.mark.parametrize("step", [5, 8], ids=["of an abandoned future", "an older one"])
def test_a_damaged_checkpoint_does_not_count(step, tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for before in (3, 6):
        checkpoints.save(before, {"step": before})
    (tmp_path / "step-00000006.pt").write_bytes(b"damaged")
    later = Checkpoints(tmp_path, keep=2)
    with pytest.warns(DamagedCheckpoint):
        assert later.latest().step == 3
    later.save(step, {"step": step})  # the run goes on from 3, with checkpoints at other steps
    assert [p.name for p in later.complete()] == ["step-00000003.pt", f"step-0000000{step}.pt"]


def test_the_checksum_is_that_of_sha256sum(tmp_path):
    import hashlib

    path = Checkpoints(tmp_path).save(1, {"x": 1})
    digest, name = path.with_name(path.name + ".sha256").read_text().split()
    assert (name, digest) == (path.name, hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.long
def test_a_full_disk_ends_the_run_and_leaves_the_last_checkpoint_intact(processes, unbroken, tmp_path):
    process = processes.Process(target=resumed.run_on_full_disk, args=(str(tmp_path / "run"),))
    process.start()
    process.join()
    message = (tmp_path / "error.txt").read_text()
    assert re.search(
        r"step-00000009\.pt' cannot be written: .* The last checkpoint is .*step-00000008\.pt", message
    )
    found = Checkpoints(tmp_path / "run" / "checkpoints").latest()
    assert found.step == 8
    assert not list(tmp_path.rglob(".part-*"))
    finish(processes, tmp_path / "run")
    assert files(tmp_path / "run") == files(unbroken[0])
