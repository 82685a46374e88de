"""``simcse --deep-views``: each sentence once up to the site, against both copies through everything."""

import math
from dataclasses import replace

import pytest
import text_runs
import torch
import torch.nn.functional as F
import yaml
from transformers import BertConfig, BertModel

import graphaug as ga
from graphaug.contrastive.config.presets import settle
from graphaug.errors import ConfigError
from graphaug.text.config import SimCSEConfig
from graphaug.text.objective import TextObjective
from graphaug.text.presets import PRESETS
from graphaug.text.simcse import SimCSE
from graphaug.text.train import simcse

DEEP = replace(text_runs.CONFIG, deep_views=True, stop_grad=False, subset=1.0)


def wrapped():
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    limits = {"intermediate_size": 32, "max_position_embeddings": 16, "hidden_dropout_prob": 0.0}
    config = BertConfig(**sizes, **limits, attention_probs_dropout_prob=0.0)
    return SimCSE(BertModel(config, add_pooling_layer=False)).double()


@pytest.mark.few(1)
@pytest.mark.parametrize("cache", [None, 2])
@pytest.mark.parametrize(("at", "options"), [(2, {}), (3, {"subset": 0.5, "stop_grad": True}), (4, {})])
@pytest.mark.long
def test_the_loss_is_that_of_both_copies_and_the_prefix_reads_each_sentence_once(at, options, cache):
    """Values and gradients; in parts of two sentences the draws are those of the parts."""
    ids = torch.randint(5, 50, (6, 8), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[::2, -3:] = 0
    config = replace(DEEP, at=(at,), cache=cache, **options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = wrapped()
        arguments = {
            **config.deep_augmentation(),
            "example_inputs": {"input_ids": ids, "attention_mask": mask},
        }
        objective = TextObjective(ga.rewrite(model, at, **arguments), config).train()
        seen = []
        handle = model.encoder.embeddings.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
        )
        torch.manual_seed(1)
        loss = objective(ids, mask)["loss"]
        handle.remove()
        assert seen == ([6] if cache is None else [2, 2, 2])
        loss.backward()
        found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()

        plain = ga.rewrite(model, at, **{**arguments, "views": 1, "backward": "dense"}).train()
        torch.manual_seed(1)
        parts = zip(ids.split(cache or 6), mask.split(cache or 6), strict=True)
        pairs = [plain(torch.cat([i, i]), torch.cat([m, m])).chunk(2) for i, m in parts]
        z1, z2 = (F.normalize(torch.cat(z).float(), dim=1) for z in zip(*pairs, strict=True))
        expected = F.cross_entropy(z1 @ z2.T / config.temperature, torch.arange(6))
        expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-7)  # the embeddings are in float32
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.few(1)
@pytest.mark.parametrize("mlm", [False, True])
@pytest.mark.long
def test_a_run_holds_the_setting_and_its_plans(mlm, tmp_path):
    done = simcse(replace(DEEP, mlm=mlm), tmp_path / "run", corpus=text_runs.corpus())
    assert math.isfinite(done.metrics[-1]["loss"])
    settings = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert settings["deep_views"] is True
    assert "views     2" in settings["resolved"]["plan"]
    assert "share the dropout before the cut" in settings["resolved"]["plan"]
    if mlm:  # another forward, whose two passes are masked apart
        assert "views " not in settings["resolved"]["plan_of_masked_language"]
        assert "encoder.encoder.layer.0" in settings["resolved"]["plan_of_masked_language"]


class Stop(Exception):
    pass


@pytest.mark.long
def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path):
    def stop(line):
        if line["step"] == 6:
            raise Stop

    with pytest.raises(Stop):
        simcse(DEEP, tmp_path / "run", corpus=text_runs.corpus(), on_line=stop)
    broken = simcse(DEEP, tmp_path / "run", corpus=text_runs.corpus(), resume=True)
    whole = simcse(DEEP, corpus=text_runs.corpus())
    assert [line["loss"] for line in broken.metrics] == [line["loss"] for line in whole.metrics]
    for mine, other in zip(
        broken.encoder.state_dict().values(), whole.encoder.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"at": ()}, "there is no site: name one"),
        ({"at": (1, 2)}, "there are 2 sites: name one"),
        ({"at": (), "everywhere": True}, "everywhere means every stage: name one"),
        ({"rate": 0.0}, "rate=0.0: nothing would be drawn at the site"),
        ({"backward": "sparse", "stop_grad": True}, "Give pairing='together'"),
        ({"contrastive": False, "mlm": True}, "without the contrastive objective, whose views they are"),
    ],
)
def test_what_deep_views_do_not_go_with_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(DEEP, **change)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_make_no_deep_views_unless_told(name):
    assert not settle(SimCSEConfig, {}, name, presets=PRESETS).deep_views
