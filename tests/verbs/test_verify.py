"""`verify` passes what is right, and catches each way in which an augmentation can be broken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from networks import ConvNet, Mlp, TextNet, TwoOutputs, features, fingerprint, images, tokens
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.resnet import BasicBlock

import graphaug as ga
from graphaug import DeepAugment
from graphaug.errors import CaptureError, InvalidOption, NotRewritten, SparseBackwardLost, VerificationError

pytestmark = pytest.mark.few(2)

GOOD: dict[str, tuple[Callable[[], nn.Module], Any, dict[str, Any]]] = {
    "stage": (ConvNet, images(), {"at": "layer1", "stop_grad": True}),
    "channels": (ConvNet, images(8), {"at": "layer1", "granularity": "channel", "rate": 0.3}),
    "positions": (ConvNet, images(8), {"at": "stem", "granularity": "position", "stop_grad": True}),
    "input": (ConvNet, images(), {"at": "input", "rate": 0.2}),
    "operation": (ConvNet, images(), {"at": "layer1.1.add", "stop_grad": True}),
    "second call": (ConvNet, images(), {"at": "layer1.1.relu@1", "stop_grad": True}),
    "input side": (ConvNet, images(), {"at": "layer2.input", "stop_grad": True}),
    "one-sided": (ConvNet, images(), {"at": "layer1", "pairing": "one-sided", "subset": 0.5}),
    "together": (ConvNet, images(), {"at": "layer1", "pairing": "together", "stop_grad": True}),
    "bernoulli": (ConvNet, images(), {"at": "layer1", "sampling": "bernoulli", "stop_grad": True}),
    "two sites": (ConvNet, images(), {"at": {"layer1": 0.2, "layer2": 0.6}, "stop_grad": True}),
    "bypassed": (ConvNet, images(), {"at": "layer1.0.conv2", "allow_bypass": True, "stop_grad": True}),
    "freeze before": (ConvNet, images(), {"at": "layer1", "freeze": "before"}),
    "freeze after": (ConvNet, images(), {"at": "layer1", "freeze": "after"}),
    "nothing": (ConvNet, images(), {"at": "layer1", "subset": 0.0}),
    "everything": (ConvNet, images(), {"at": "layer1", "subset": 1.0, "rate": 1.0}),
    "rate 0": (ConvNet, images(), {"at": "layer1", "rate": 0.0, "stop_grad": True}),
    "rate beside which 1 is 1": (ConvNet, images(), {"at": "layer1", "rate": 1e-300}),
    "text": (TextNet, tokens(), {"at": "blocks.1", "stop_grad": True}),
    "calls": (Mlp, features(8), {"at": "act@1", "stop_grad": True}),
    "mapping": (TwoOutputs, features(8), {"at": "encoder", "stop_grad": True}),
    "resnet": (
        lambda: torchvision.models.ResNet(BasicBlock, [1, 1, 1, 1]),
        images(4, 32),
        {"at": "layer3", "stop_grad": True},
    ),
    "vit": (
        lambda: torchvision.models.VisionTransformer(16, 8, 2, 2, 8, 16, dropout=0.1),
        images(4, 16),
        {"at": "encoder.layers.encoder_layer_0", "stop_grad": True},
    ),
    "convnext": (
        lambda: ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 2)], 0.2),
        images(4, 32),
        {"at": "features.1", "stop_grad": True},
    ),
}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.long
def test_a_good_rewrite_passes_and_is_left_as_it_was(name: str) -> None:
    torch.manual_seed(0)
    build, x, options = GOOD[name]
    model = build()
    aug = ga.rewrite(model, **options)
    aug.train()
    before, keys = fingerprint(model), list(vars(aug))
    bytes_ = before.pop("bytes")
    for tensor in before["tensors"].values():
        assert tensor
    report = ga.verify(aug, x)
    after = fingerprint(model)
    assert after.pop("bytes") == bytes_
    # a buffer that was put back has another version, all else is equal
    buffers = {n for n, _ in model.named_buffers()}
    for entry in (before, after):
        entry["tensors"] = {n: (t[0], *t[2:]) if n in buffers else t for n, t in entry["tensors"].items()}
    assert after == before
    assert list(vars(aug)) == keys
    assert all(p.grad is None for p in model.parameters())
    assert all(not m._forward_pre_hooks for m in aug.modules())
    assert len(report.claims) >= 3
    assert str(report).splitlines()[0] == "ok  eval mode: output bit-equal to the original"
    assert all(line.startswith("ok  ") for line in str(report).splitlines())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.long
def test_gradients_modes_and_random_numbers_are_left_alone(training: bool) -> None:
    model = ConvNet()
    aug = ga.rewrite(model, "layer1", stop_grad=True)
    x = images()
    aug(x).sum().backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters()}
    aug.train(training)
    model.stem[1].eval()  # a flag of the user's own
    flags = {n: m.training for n, m in aug.named_modules()}
    state, content = torch.get_rng_state(), x.clone()
    ga.verify(aug, x)
    assert {n: m.training for n, m in aug.named_modules()} == flags
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, content)
    assert x.grad is None
    for n, p in model.named_parameters():
        assert torch.equal(p.grad, grads[n])


def test_a_failed_verification_leaves_everything_as_it_was_too() -> None:
    model = ConvNet()
    aug = ga.rewrite(model, "layer1", stop_grad=True)
    node = aug.deep_augment
    node.__class__ = NoDetach
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    state = torch.get_rng_state()
    with pytest.raises(VerificationError):
        ga.verify(aug, images())
    assert all(torch.equal(b, buffers[n]) for n, b in model.named_buffers())
    assert torch.equal(torch.get_rng_state(), state)
    assert aug.training
    assert not {"draw_rows", "draw_noise"} & set(vars(node))
    assert not node._forward_pre_hooks


@pytest.mark.parametrize(
    "form", [lambda x: x, lambda x: (x,), lambda x: {"x": x}], ids=["x", "tuple", "dict"]
)
@pytest.mark.long
def test_a_batch_may_be_a_tensor_a_tuple_or_a_mapping(form: Callable[[Tensor], Any]) -> None:
    ga.verify(ga.rewrite(ConvNet(), "layer1"), form(images()))


def test_it_follows_a_changed_rate_and_subset() -> None:
    aug = ga.rewrite(ConvNet(), "layer1", rate=0.5, stop_grad=True)
    aug.set_rate(0.2)
    aug.set_subset(1.0)
    assert "6 of 6 rows augmented, dropout at rate 0.2" in str(ga.verify(aug, images()))


def test_double_precision_is_verified_to_double_precision() -> None:
    ga.verify(
        ga.rewrite(ConvNet().double(), "layer1", stop_grad=True), images(dtype=torch.float64), tolerance=1e-12
    )


# --- broken augmentations -----------------------------------------------------------------------


def where(rows: Tensor, out: Tensor, h: Tensor) -> Tensor:
    return torch.where(rows.view(-1, *[1] * (h.dim() - 1)), out, h)


class NoDetach(DeepAugment):
    """The bug of the released code: the stop-gradient stops nothing."""

    def _augment(self, h: Tensor) -> Tensor:
        out = h * self.draw_noise(h)
        out.detach()
        return where(self.draw_rows(len(h), h.device), out, h)


class HalfDetach(DeepAugment):
    """Detached, and half a gradient let through."""

    def _augment(self, h: Tensor) -> Tensor:
        out = h * self.draw_noise(h)
        return where(self.draw_rows(len(h), h.device), out.detach() + 0.5 * (h - h.detach()), h)


class AllDetached(DeepAugment):
    """Stops the gradient of the other rows too."""

    def _augment(self, h: Tensor) -> Tensor:
        return super()._augment(h).detach()


class DetachedToo(DeepAugment):
    """Stops the gradient without being asked to."""

    def _augment(self, h: Tensor) -> Tensor:
        return where(self.draw_rows(len(h), h.device), (h * self.draw_noise(h)).detach(), h)


class NoRows(DeepAugment):
    def draw_rows(self, rows: int, device: torch.device) -> Tensor:
        return torch.zeros(rows, dtype=torch.bool, device=device)


class OneRowMore(DeepAugment):
    def draw_rows(self, rows: int, device: torch.device) -> Tensor:
        drawn = super().draw_rows(rows, device)
        return drawn | (torch.arange(rows) == torch.nonzero(~drawn)[0, 0])


class OneRowLess(DeepAugment):
    def draw_rows(self, rows: int, device: torch.device) -> Tensor:
        drawn = super().draw_rows(rows, device)
        return drawn & (torch.arange(rows) != torch.nonzero(drawn)[0, 0])


class SecondView(DeepAugment):
    """Takes its rows from the wrong half."""

    def draw_rows(self, rows: int, device: torch.device) -> Tensor:
        return super().draw_rows(rows, device).flip(0)


class OneViewOnly(DeepAugment):
    """Takes as many rows, the first of all."""

    def draw_rows(self, rows: int, device: torch.device) -> Tensor:
        return super().draw_rows(rows, device).sort(descending=True).values


class Unscaled(DeepAugment):
    """Dropout without the 1/(1-rate)."""

    def draw_noise(self, h: Tensor) -> Tensor:
        return (super().draw_noise(h) != 0).to(h.dtype)


class WrongRate(DeepAugment):
    """The scale of its rate, but more is dropped."""

    def draw_noise(self, h: Tensor) -> Tensor:
        return super().draw_noise(h) * (torch.rand_like(h) > 0.3)


class OtherRate(DeepAugment):
    """A consistent dropout at another rate."""

    def draw_noise(self, h: Tensor) -> Tensor:
        return (torch.rand_like(h) >= 0.25).to(h.dtype) / 0.75


class Additive(DeepAugment):
    def _augment(self, h: Tensor) -> Tensor:
        return super()._augment(h) + 1e-3


class LeaksIntoEval(DeepAugment):
    def forward(self, h: Any) -> Any:
        return self._augment(h)


class BiasInEval(DeepAugment):
    def forward(self, h: Any) -> Any:
        return super().forward(h) if self.training else h * (1 + 1e-6)


class ScalesOthers(DeepAugment):
    """Rescales the rows that it leaves alone."""

    def _augment(self, h: Tensor) -> Tensor:
        rows = self.draw_rows(len(h), h.device)
        out = where(rows, h * self.draw_noise(h), 1.01 * h)
        return out.detach() * 1 + 0 * h if self.stop_grad else out


class WholeMean(DeepAugment):
    """Right on a batch of ones; on others it lets rows see each other."""

    def _augment(self, h: Tensor) -> Tensor:
        return super()._augment(h) + (h - h.mean(0)) * 0.01


BROKEN: dict[str, tuple[type[DeepAugment], dict[str, Any], str]] = {
    "a detach that is a no-op": (NoDetach, {"stop_grad": True}, "stop_grad is on, but gradient"),
    "a stop that leaks": (HalfDetach, {"stop_grad": True}, "stop_grad is on, but gradient"),
    "a stop of all rows": (
        AllDetached,
        {"stop_grad": True},
        "rows are augmented|does not require grad|gradient",
    ),
    "a stop nobody asked for": (DetachedToo, {}, "gradient of the augmented rows"),
    "no rows": (NoRows, {}, "0 of 6 rows are augmented, planned were 3"),
    "no rows, stopped": (NoRows, {"stop_grad": True}, "0 of 6 rows are augmented, planned were 3"),
    "a row too many": (OneRowMore, {}, "4 of 6 rows are augmented, planned were 3"),
    "a row too few": (OneRowLess, {"stop_grad": True}, "2 of 6 rows are augmented, planned were 3"),
    "the second view": (
        SecondView,
        {"pairing": "one-sided", "subset": 0.5},
        "rows of the second view are augmented",
    ),
    "a view without the other": (
        OneViewOnly,
        {"pairing": "together", "subset": 0.34},
        "in one view and not in another",
    ),
    "no rescaling": (Unscaled, {"rate": 0.4}, "became 1; dropout at rate 0.4 gives 0 or 1.667"),
    "no rescaling, stopped": (Unscaled, {"rate": 0.4, "stop_grad": True}, "dropout at rate 0.4 gives 0 or"),
    "more is dropped": (WrongRate, {"rate": 0.5}, "of the units are dropped, the rate is 50.0%"),
    "another rate": (OtherRate, {"rate": 0.5}, "dropout at rate 0.5 gives 0 or 2"),
    "an offset": (Additive, {}, "rows are augmented, planned|became"),
    "a leak into eval": (LeaksIntoEval, {}, "leaks into eval"),
    "a small leak into eval": (BiasInEval, {}, "leaks into eval"),
    "other rows rescaled": (ScalesOthers, {}, "rows are augmented, planned were 3"),
    "rows that see each other": (WholeMean, {}, "differs"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.long
def test_a_broken_augmentation_is_caught(name: str) -> None:
    torch.manual_seed(0)
    broken, options, message = BROKEN[name]
    aug = ga.rewrite(ConvNet(), "layer1", **options)
    ga.verify(aug, images())
    aug.deep_augment.__class__ = broken
    with pytest.raises(VerificationError, match=message):
        ga.verify(aug, images())


@pytest.mark.parametrize("at", ["layer1.1.add", "layer1.1.relu@1", "layer2.input", "input"])
@pytest.mark.long
def test_a_broken_stop_is_caught_wherever_it_is(at: str) -> None:
    aug = ga.rewrite(ConvNet(), at, stop_grad=True)
    aug.deep_augment.__class__ = NoDetach
    with pytest.raises(VerificationError, match="stop_grad is on, but gradient"):
        ga.verify(aug, images())


@pytest.mark.parametrize("which", ["layer1", "layer2"])
def test_one_broken_site_of_two_is_caught_and_named(which: str) -> None:
    aug = ga.rewrite(ConvNet(), ["layer1", "layer2"], stop_grad=True)
    {str(t): node for t, node in aug.augmentations.items()}[which].__class__ = NoDetach
    with pytest.raises(VerificationError, match=f"'{which}': stop_grad is on"):
        ga.verify(aug, images())


def test_a_rate_changed_behind_the_back_is_caught() -> None:
    aug = ga.rewrite(ConvNet(), "layer1", rate=0.5)
    aug.deep_augment.rate.fill_(0.25)
    with pytest.raises(VerificationError, match=r"dropout at rate 0\.5"):
        ga.verify(aug, images())


def test_a_frozen_parameter_made_trainable_is_caught() -> None:
    model = ConvNet()
    aug = ga.rewrite(model, "layer1", freeze="before")
    model.stem[0].weight.requires_grad_(True)
    with pytest.raises(VerificationError, match=r"frozen parameters are trainable: stem\.0\.weight"):
        ga.verify(aug, images())


def test_an_edited_graph_is_caught() -> None:
    aug = ga.rewrite(ConvNet(), "layer1")
    node = next(n for n in aug.graph.nodes if n.target == "deep_augment")
    node.replace_all_uses_with(node.args[0])
    aug.graph.erase_node(node)
    aug.recompile()
    with pytest.raises(VerificationError, match="never called"):
        ga.verify(aug, images())


def test_a_graph_that_is_not_the_model_is_caught() -> None:
    aug = ga.rewrite(ConvNet(), "layer1.0.conv2", allow_bypass=True)
    node = next(n for n in aug.graph.nodes if n.target == "layer1.0.bn1")
    node.replace_all_uses_with(node.args[0])
    aug.graph.erase_node(node)
    aug.recompile()
    with pytest.raises(VerificationError, match="the graph is not the model"):
        ga.verify(aug, images())


@pytest.mark.long
def test_a_leak_below_a_second_site_is_caught() -> None:
    """The augmentation is right, and the graph gives a later layer the value from before it."""
    aug = ga.rewrite(ConvNet(), "layer1", stop_grad=True)
    cut = next(n for n in aug.graph.nodes if n.target == "deep_augment")
    for user in list(cut.users):
        user.replace_input_with(cut, cut.args[0])
    aug.recompile()
    with pytest.raises(VerificationError, match="differs"):
        ga.verify(aug, images())


@pytest.mark.parametrize(
    "thing", [ConvNet(), nn.Sequential(ga.rewrite(ConvNet(), "layer1"))], ids=["plain", "around"]
)
def test_only_a_rewritten_model_can_be_verified(thing: nn.Module) -> None:
    with pytest.raises(NotRewritten, match=f"not a {type(thing).__name__}"):
        ga.verify(thing, images())


@pytest.mark.few(1)
@pytest.mark.parametrize("padded", [False, True])
def test_opened_code_may_read_the_mode_of_a_module_that_stays_closed(padded: bool) -> None:
    # torch's encoder asks its first layer, whose dropout is off while both are compared
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
            self.emb, self.enc, self.fc = (
                nn.Embedding(20, 8),
                nn.TransformerEncoder(layer, 2),
                nn.Linear(8, 3),
            )

        def forward(self, ids: Tensor) -> Tensor:
            mask = ids == 0 if padded else None
            out: Tensor = self.fc(self.enc(self.emb(ids), src_key_padding_mask=mask).mean(1))
            return out

    ids = torch.randint(1, 20, (6, 5))
    ids[::2, 3:] = 0 if padded else 1
    aug = ga.rewrite(Encoder(), at="enc.layers.0", stop_grad=True, example_inputs=ids)
    assert aug.plan.backward == ("dense" if padded else "sparse")
    flags = [m.training for m in aug.modules()]
    assert len(ga.verify(aug, ids).claims) >= 4
    assert flags == [m.training for m in aug.modules()]


class TakesADict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, batch: dict[str, Tensor], scale: float = 1.0) -> Tensor:
        return scale * self.b(self.a(batch["x"]))


class TakesTwo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.a(x) + y.sum(1, keepdim=True)


@pytest.mark.parametrize("verb", [ga.rewrite, ga.tap])
@pytest.mark.parametrize(
    ("kind", "right", "wrong", "message"),
    [
        (TakesADict, ({"x": features()},), {"x": features()}, "the batch has 'x', which TakesADict.* in a tuple"),
        (TakesADict, ({"x": features()},), features(), "TakesADict.forward failed on the batch: "),
        (TakesTwo, (features(), features()), features(), "the batch lacks 'y', which TakesTwo.forward requires"),
        (TakesTwo, (features(), features()), "a text", "the batch is a str: give a tensor, a tuple"),
    ],
    ids=["dict", "no dict", "missing", "no input"],
)  # fmt: skip
def test_a_batch_that_does_not_fit_is_answered_as_by_rewrite(
    verb: Any, kind: Any, right: Any, wrong: Any, message: str
) -> None:
    aug = verb(kind(), "a", example_inputs=right)
    with pytest.raises(CaptureError, match=message):
        ga.verify(aug, wrong)
    ga.verify(aug, right)


@pytest.mark.long
def test_a_value_at_a_site_keeps_its_order_in_memory_in_which_dropout_behind_it_draws() -> None:
    # torch's attention gives a transposed view
    layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True, dropout=0.5)
    model, x = nn.Sequential(nn.Linear(8, 8), layer, nn.Linear(8, 2)), torch.randn(4, 3, 8)
    aug = ga.rewrite(model, at="1.self_attn", allow_bypass=True, stop_grad=True, example_inputs=x)
    assert len(ga.verify(aug, x).claims) >= 3


class AsksForMode(nn.Module):
    """Leaves rows apart in training mode, and mixes them in eval mode."""

    def forward(self, h: Tensor) -> Tensor:
        return h if self.training else h - h.mean(0)


def told_apart() -> tuple[nn.Sequential, ga.AugmentedModule]:
    model = nn.Sequential(
        nn.Sequential(nn.Linear(4, 8), AsksForMode(), nn.Dropout(0.2)), nn.Linear(8, 8), nn.Linear(8, 2)
    )
    aug = ga.rewrite(model, "1", rate=0.5, stop_grad=True, example_inputs=features(8)).train()
    assert aug.plan.backward == "sparse"
    return model, aug


def test_a_module_that_mixes_rows_in_eval_mode_alone_is_compared_in_training_mode() -> None:
    claims = ga.verify(told_apart()[1], features(8)).claims
    assert any(c.startswith("training mode (sparse; ") and "do not ask for their mode" in c for c in claims)


def test_a_changed_prefix_is_verified_as_the_dense_step_that_it_is() -> None:
    model, aug = told_apart()
    was, model[0][0] = model[0][0], nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
    with pytest.warns(SparseBackwardLost):
        claims = ga.verify(aug, features(8)).claims
    assert any(c.startswith("training mode: output and") for c in claims)
    assert aug.plan.backward == "dense"
    model[0][0] = was
    assert any(c.startswith("training mode (sparse; ") for c in ga.verify(aug, features(8)).claims)
    assert aug.plan.backward == "sparse"


def test_a_plan_is_after_verify_as_after_a_step() -> None:
    model, aug = told_apart()
    model[0][1].eval()
    with pytest.warns(SparseBackwardLost):
        aug(features(8))
    for _ in range(2):
        assert aug.plan.backward == "dense"
        ga.verify(aug, features(8))
        assert not model[0][1].training


@pytest.mark.parametrize("tolerance", [float("nan"), float("inf"), -1e-5, True, "a", None])
def test_a_tolerance_is_a_number(tolerance: Any) -> None:
    """No gap is larger than NaN: every claim would hold."""
    aug = ga.rewrite(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), "0", stop_grad=True)
    with pytest.raises(InvalidOption, match="tolerance="):
        ga.verify(aug, torch.randn(4, 4), tolerance=tolerance)
