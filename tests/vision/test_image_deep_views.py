"""``pretrain --deep-views``: one pass up to the site, against a loop that runs both copies through everything."""

import json
import math
from dataclasses import replace

import pytest
import resumed
import torch
import torch.nn.functional as F
import yaml
from torch import nn

import graphaug as ga
from graphaug.contrastive.config.presets import settle
from graphaug.contrastive.losses import LOSSES
from graphaug.errors import ConfigError, InvalidOption
from graphaug.terminal.spoken import in_options
from graphaug.vision import pretrain as loop
from graphaug.vision.config import PretrainConfig
from graphaug.vision.objective import ImageFeed, ImageObjective, image_views
from graphaug.vision.presets import PRESETS

DEEP = PretrainConfig(
    model="resnet18-cifar:8", epochs=2, batch_size=16, size=8, at=("layer3",), subset=1.0, deep_views=True
)


@pytest.fixture(scope="module")
def images():
    return resumed.images()


class Network(nn.Module):
    """Nothing in it is drawn, and no row sees another."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.gelu(self.first(x.double()))
        return self.last(F.gelu(self.second(x)).mean((2, 3)))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    "options", [{}, {"subset": 0.5, "stop_grad": True}, {"pairing": "one-sided", "subset": 0.5}]
)
@pytest.mark.long
def test_the_loss_is_that_of_both_copies_and_the_prefix_sees_each_image_once(loss, options, images):
    """Values and gradients; the copies' loop has the same draws, hooks, and no part of deep views in it."""
    config = replace(DEEP, loss=loss, at=("second",), **options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Network().double()
        seen = []
        example = torch.randn(4, 3, 8, 8)
        arguments = {**config.deep_augmentation(), "example_inputs": example}
        objective = ImageObjective(
            ga.rewrite(network, "second", **arguments), image_views(images, config), config
        )
        feed = ImageFeed(images, config, torch.device("cpu"))
        feed.start_epoch()
        (batch, uniforms) = next(feed.batches(0))
        assert len(uniforms) == len(batch) == 16
        handle = network.first.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
        torch.manual_seed(1)
        measures = objective.train()(batch, uniforms)
        handle.remove()
        assert seen == [16]
        measures["loss"].backward()
        found = [p.grad.clone() for p in network.parameters()]
        network.zero_grad()

        x = objective.views(batch, uniforms).expand(-1, 3, -1, -1)
        plain = ga.rewrite(network, "second", **{**arguments, "views": 1, "backward": "dense"})
        torch.manual_seed(1)
        z1, z2 = plain.train()(torch.cat([x, x])).float().chunk(2)
        expected = LOSSES[loss](z1, z2, config.temperature)
        expected.backward()
    torch.testing.assert_close(
        measures["loss"], expected, rtol=1e-6, atol=1e-7
    )  # the embeddings are in float32
    for gradient, parameter in zip(found, network.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.long
def test_a_run_holds_the_setting_and_its_plan(images, tmp_path):
    done = loop.pretrain(replace(DEEP, stop_grad=True, subset=0.5), tmp_path / "run", data=images)
    assert math.isfinite(done.metrics[-1]["loss"])
    settings = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert settings["deep_views"] is True
    assert "views     2: the rows are repeated at the site" in settings["resolved"]["plan"]
    assert (
        "batch statistics before the cut are those of the rows that come in" in settings["resolved"]["plan"]
    )
    assert "runs once for 2 views" in settings["resolved"]["plan"]
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == [line["loss"] for line in done.metrics]
    with pytest.raises(ConfigError, match="deep_views: True → False"):
        loop.pretrain(
            replace(DEEP, stop_grad=True, subset=0.5, deep_views=False),
            tmp_path / "run",
            data=images,
            resume=True,
        )


class Stop(Exception):
    pass


@pytest.mark.long
def test_a_run_that_was_stopped_goes_on_bit_for_bit(images, tmp_path):
    config = replace(DEEP, stop_grad=True, subset=0.5, rate_end=0.2, epochs=3, checkpoint_every=0.3)

    def stop(line):
        if line["epoch"] == 2:
            raise Stop

    with pytest.raises(Stop):
        loop.pretrain(config, tmp_path / "run", data=images, on_epoch=stop)
    broken = loop.pretrain(config, tmp_path / "run", data=images, resume=True)
    whole = loop.pretrain(config, data=images)
    for mine, other in zip(
        broken.model.state_dict().values(), whole.model.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, other)
    assert [line["loss"] for line in broken.metrics] == [line["loss"] for line in whole.metrics]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"at": ()}, r"at one site, and there is no site: name one with at= \(--at\)"),
        ({"at": ("layer1", "layer2")}, "there are 2 sites: name one"),
        ({"at": (), "everywhere": True}, "everywhere means every stage: name one"),
        ({"rate": 0.0}, "rate=0.0: nothing would be drawn at the site"),
        ({"rates": (0.0,)}, "rate=0.0: nothing would be drawn at the site"),
        ({"subset": 0.0}, "subset=0.0: nothing would be drawn"),
        ({"backward": "sparse", "stop_grad": True}, "Give pairing='together'"),
    ],
)
def test_what_deep_views_do_not_go_with_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(DEEP, **change)


def test_a_rate_that_grows_from_nothing_may_begin_there():
    assert replace(DEEP, rate=0.0, rate_end=0.5).deep_views
    changing = {"subset": 0.5, "subset_end": 0.2, "compile": True, "stop_grad": True}
    assert replace(DEEP, **changing).deep_views  # a dense step is compiled once, whatever the subset
    with pytest.raises(ConfigError, match="compiled anew for every subset"):
        replace(DEEP, deep_views=False, **changing)


def test_a_selector_of_several_sites_is_refused_in_the_words_of_the_command_line(images, tmp_path):
    with pytest.raises(InvalidOption, match="there are 2 sites") as caught:
        loop.pretrain(replace(DEEP, at=("re:layer[12]",)), tmp_path / "run", data=images)
    said = in_options(str(caught.value), PretrainConfig.names())
    assert said.startswith("--deep-views is not possible at 'layer1'")
    with pytest.raises(ConfigError) as caught:
        replace(DEEP, at=())
    said = in_options(str(caught.value), PretrainConfig.names())
    assert said == "--deep-views makes the two views at one site, and there is no site: name one with --at."
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_make_no_deep_views_unless_told(name):
    assert not settle(PretrainConfig, {}, name, presets=PRESETS).deep_views
    assert settle(PretrainConfig, {"deep_views": True, "at": ("4",)}, name, presets=PRESETS).deep_views
