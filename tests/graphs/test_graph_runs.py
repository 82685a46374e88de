"""``graphaug graphs``: a run on small molecules, resumed, repeated, refused."""

import json
from dataclasses import replace

import pytest
import torch
import yaml

from graphaug.contrastive.losses import nt_xent
from graphaug.contrastive.runs.checkpoints import Checkpoints
from graphaug.errors import ConfigError, DataError, SiteNotFound
from graphaug.graphs import train
from graphaug.graphs.config import GraphsConfig
from graphaug.graphs.data.graphs import load
from graphaug.graphs.encoder import GIN, embed, load_encoder
from graphaug.graphs.job import GraphObjective, rings
from graphaug.graphs.train import train_graphs
from graphaug.weights import perturb_weights

CPU = torch.device("cpu")


@pytest.fixture
def config(tmp_path):
    """Chains of carbon, with an oxygen at the end of every other one."""
    lines = [f"{'C' * (n // 2 + 2)}{'O' * (n % 2)} m{n}" for n in range(24)]
    (tmp_path / "m.smi").write_text("\n".join(lines))
    (tmp_path / "m.csv").write_text("\n".join(f"m{n},{'alcohol' if n % 2 else 'alkane'}" for n in range(24)))
    return GraphsConfig(
        data=str(tmp_path / "m.smi"), epochs=3, batch_size=6, width=8, layers=2, at=("layers.0",), stop_grad=True,
        warmup=0.0, checkpoint_every=0.4, seed=3, accelerator="cpu", collapse=0.0,
    )  # fmt: skip


def weights(run):
    return load_encoder(run).state_dict()


class Killed(Exception):
    pass


@pytest.mark.long
@pytest.mark.parametrize("method", ["graphcl", "simgrace"])
def test_a_run_that_is_broken_off_and_resumed_is_the_unbroken_one(config, method, tmp_path, monkeypatch):
    config = replace(config, method=method)
    whole = train_graphs(config, tmp_path / "whole")
    save = Checkpoints.save

    def save_and_die(self, step, state):
        save(self, step, state)
        if step == 4:  # in the middle of the second epoch of three steps
            raise Killed

    monkeypatch.setattr(Checkpoints, "save", save_and_die)
    with pytest.raises(Killed):
        train_graphs(config, tmp_path / "broken", resume=True)
    monkeypatch.undo()
    with torch.random.fork_rng():
        torch.manual_seed(7)  # what was drawn in between does not matter
        rest = train_graphs(config, tmp_path / "broken", resume=True)
    assert rest.result == whole.result
    assert [line["loss"] for line in rest.metrics] == [line["loss"] for line in whole.metrics]
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(torch.equal(one[name], other[name]) for name in one)
    untrained = GIN(177, 8, 2).state_dict()
    assert not torch.equal(one["layers.0.conv.nn.0.weight"], untrained["layers.0.conv.nn.0.weight"])
    # and a finished one is read
    again = train_graphs(config, tmp_path / "whole", resume=True, on_epoch=lambda _: pytest.fail("run again"))
    assert again.result == whole.result
    settings = yaml.safe_load((tmp_path / "whole/config.yaml").read_text())
    assert settings["resolved"]["graphs"] == 24
    assert settings["resolved"]["train_graphs"] == 19
    assert "samples are told by 'batch'" in settings["resolved"]["plan"]
    assert settings["versions"]["rdkit"] != "not installed"
    assert json.loads((tmp_path / "whole/result.json").read_text()) == whole.result
    assert whole.result["test_graphs"] == 5
    with pytest.raises(ConfigError, match=r"other settings:\n    layers: 2 → 3"):
        train_graphs(replace(config, layers=3), tmp_path / "whole", resume=True)


@pytest.mark.long
def test_one_seed_is_one_result_and_another_seed_is_not(config):
    one, again, other = (train_graphs(replace(config, seed=seed)) for seed in (3, 3, 4))
    losses = [[line["loss"] for line in run.metrics] for run in (one, again, other)]
    assert losses[0] == losses[1] != losses[2]


def test_the_probe_reads_the_labels_off_embeddings(config):
    data = load(config)
    # The sum over atoms counts the oxygens: an untrained encoder tells alcohols by it.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = train.probe(GIN(177, 32, 1), data)
    assert found["linear"] == 1.0
    # against the normal equations of ridge regression, on values that are a linear map of the embeddings
    gin = GIN(177, 8, 1)
    values = embed(gin, data.graphs).double() @ torch.arange(8.0).double()
    found = train.probe(gin, replace(data, labels=values, classes=(), validation=data.train[:4]))
    assert found["r2"] > 0.99
    assert found["validation"]["r2"] > 0.99
    assert found["mae"] < 0.1 * float(values.std())


def test_the_loss_of_graphcl_is_that_of_the_two_halves(config):
    gin, inputs = GIN(3, 8, 2), rings(3).inputs(CPU)
    measures = GraphObjective(gin.eval(), config, None)(torch.arange(2), *inputs.values())
    with torch.no_grad():
        z = gin(**inputs)
    torch.testing.assert_close(measures["loss"].detach(), nt_xent(z[:2], z[2:], config.temperature))


def test_the_view_of_moved_weights_has_no_gradient_and_keeps_no_statistics(config):
    """With noise of 0 both passes are the encoder's, and the gradient is that of the first one alone."""
    gin, inputs = GIN(3, 8, 2).train(), rings(3).inputs(CPU)
    moved = perturb_weights(gin, "pool", 0.0, example_inputs=inputs)
    assert not [name for name in moved.names if name.startswith("head")]
    assert set(moved.names) == {n for n, _ in gin.named_parameters() if not n.startswith("head")}
    objective = GraphObjective(gin, config, moved)
    objective(torch.arange(4), *inputs.values())["loss"].backward()
    got = {name: p.grad.clone() for name, p in gin.named_parameters()}
    assert [int(layer.norm.num_batches_tracked) for layer in gin.layers] == [1, 1]
    gin.zero_grad()
    z = gin(**inputs)
    nt_xent(z, z.detach(), config.temperature).backward()
    for name, parameter in gin.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad)
    moved.set(eta=1.0)
    with torch.no_grad():
        assert not torch.allclose(moved(**inputs), gin(**inputs))


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"at": ("layers.7",)}, SiteNotFound, "layers.7"),
        ({"at": ()}, ConfigError, "stop_grad without a site"),
        ({"batch_size": 20}, DataError, "batch_size=20 is larger than the 19 graphs"),
        ({"data": "none.smi"}, DataError, "there is no file"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(config, options, error, said, tmp_path):
    with pytest.raises(error, match=said):
        train_graphs(replace(config, **options), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "grahpcl"}, "no method is called 'grahpcl'. Did you mean 'graphcl'"),
        ({"views": ("drop", "egdes")}, "no view is called 'egdes'. Did you mean 'edges'"),
        ({"views": ()}, "views is empty"),
        ({"ratio": 1.5}, "ratio must be in"),
        ({"eta": -1.0}, "eta must be a number of at least 0"),
        ({"test": 0.0}, "there has to be a test part"),
        ({"compile": True}, "another number of nodes"),
        ({"devices": 2}, "by one process"),
        ({"task": "none", "validation": 0.1}, "do nothing with task='none'"),
        ({"labels": "TAG"}, "only files .smi and .sdf"),
        ({"deep_views": True, "at": ("layers.0",)}, "a site cannot double"),
        ({"method": "simgrace", "pairing": "one-sided"}, "two passes"),
        ({"method": "simgrace", "pairing": "together"}, "two passes"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        GraphsConfig(**options)


def test_settings_of_the_other_method_are_refused():
    with pytest.raises(ConfigError, match="eta with method='graphcl': only simgrace has that"):
        GraphsConfig().check_given({"eta": 0.1})
    GraphsConfig(method="simgrace").check_given({"eta": 0.1})


@pytest.mark.parametrize("package", ["torch_geometric.nn", "rdkit"])
def test_a_package_that_is_missing_is_named(package, monkeypatch, config):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(ConfigError, match=r"needs .*: pip install 'graphaug\[train,graphs\]'"):
        train_graphs(config)
