"""The views against torchvision's functionals on tensors and the distributions of its transforms."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms import ColorJitter, RandomResizedCrop
from torchvision.transforms import functional as tvf

from graphaug.errors import BatchError, InvalidOption
from graphaug.vision.views import image_ops, single_image
from graphaug.vision.views.one_by_one import views_one_by_one
from graphaug.vision.views.pipeline import UNIFORMS, EvalView, SimCLRViews


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=16, c=3, h=24, w=32, seed=0):
    return torch.rand(n, c, h, w, generator=generator(seed))


def uniforms(n, seed=0):
    return torch.rand(n, UNIFORMS, generator=generator(seed))


def torchvision_view(image, p, i, views):
    """One sample's view by torchvision's functionals."""
    box = [int(t[i]) for t in (p.top, p.left, p.height, p.width)]
    x = tvf.resized_crop(image, *box, [views.size, views.size], antialias=True)
    if p.flip[i]:
        x = tvf.hflip(x)
    adjust = [tvf.adjust_brightness, tvf.adjust_contrast, tvf.adjust_saturation, tvf.adjust_hue]
    values = [float(t[i]) for t in (p.brightness, p.contrast, p.saturation, p.hue)]
    for op in p.order[i].tolist():
        x = adjust[op](x, values[op])
    if p.gray[i]:
        x = tvf.rgb_to_grayscale(x, x.shape[0])
    if p.sigma[i] > 0:
        x = tvf.gaussian_blur(x, [views.kernel_size] * 2, [float(p.sigma[i])] * 2)
    if p.solarize[i]:
        x = tvf.solarize(x, views.solarize_threshold)
    return x


@pytest.mark.parametrize("large", [1, 1000], ids=["one by one", "as a batch"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 24, 50], ids=["shrunk", "about-equal", "enlarged"])
def test_a_view_equals_torchvisions_functionals(monkeypatch, size, channels, large):
    monkeypatch.setattr("graphaug.vision.views.pipeline.LARGE", large)
    views = SimCLRViews(size, n_views=1, blur_p=0.5, solarize_p=0.3, jitter=(0.8, 0.8, 0.8, 0.4))
    x, u = images(48, channels), uniforms(48, seed=size)
    params = views.params(u, *x.shape[2:])
    expected = torch.stack([torchvision_view(x[i], params, i, views) for i in range(len(x))])
    # Solarize jumps at its threshold: a pixel within rounding of it may fall on either side.
    difference = (views(x, u) - expected).abs()
    jumped = difference > 1e-5
    assert jumped.float().mean() < 1e-3
    assert not jumped[~params.solarize].any()
    assert params.flip.any()
    assert params.solarize.any()


@pytest.mark.parametrize("shift", [-0.5, -0.13, 0.0, 0.2, 0.5])
def test_hue_equals_torchvision(shift):
    x = images(4)
    x[0] = 0.5  # gray has no hue
    x[1, 0] = x[1, 1]  # ties between the channels
    shifted = image_ops.shift_hue(x, torch.full((4,), shift))
    torch.testing.assert_close(shifted, tvf.adjust_hue(x, shift), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("op", "reference"), list(enumerate([tvf.adjust_brightness, tvf.adjust_contrast, tvf.adjust_saturation]))
)
@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.7])
def test_tone_equals_torchvision(op, reference, factor):
    x = images(3)
    blended = image_ops.tone(x, torch.full((3,), op), torch.full((3,), factor))
    torch.testing.assert_close(blended, reference(x, factor), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kernel", [3, 5, 23])
@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_equals_torchvision(sigma, kernel):
    x = images(3, h=70)
    blurred = image_ops.gaussian_blur(x, torch.full((3,), sigma), kernel)
    expected = tvf.gaussian_blur(x, [kernel, kernel], [sigma, sigma])
    torch.testing.assert_close(blurred, expected, rtol=0, atol=1e-5)


def test_uint8_is_the_float_image():
    x = (images() * 255).round().to(torch.uint8)
    views, u = SimCLRViews(16), uniforms(32)
    torch.testing.assert_close(views(x, u), views(x / 255, u), rtol=0, atol=1e-6)


def test_normalisation_comes_last_and_per_channel():
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
    u = uniforms(32)
    plain, normed = SimCLRViews(16)(images(), u), SimCLRViews(16, mean=mean, std=std)(images(), u)
    torch.testing.assert_close(normed, tvf.normalize(plain, mean, std), rtol=1e-5, atol=1e-5)


def test_samples_are_independent():
    """A sample's view depends on its own image and its own numbers alone."""
    views, x, u = SimCLRViews(16, n_views=1), images(8), uniforms(8)
    whole = views(x, u)
    alone = torch.cat([views(x[i : i + 1], u[i : i + 1]) for i in range(8)])
    torch.testing.assert_close(whole, alone, rtol=0, atol=1e-6)
    same = views(x[:1].expand(8, -1, -1, -1), u)
    assert len({row.numpy().tobytes() for row in same}) == 8


SHAPES = st.tuples(st.integers(2, 90), st.integers(2, 90))


def drawn(shape, size, channels, dtype, seed):
    """Three images, and views with everything in them."""
    x = torch.randint(0, 256, (3, channels, *shape), dtype=torch.uint8, generator=generator(seed))
    x = x if dtype == torch.uint8 else x.to(dtype) / 255
    return x, SimCLRViews(size, blur_p=0.5, jitter=(0.8, 0.8, 0.8, 0.4), mean=0.4, std=0.5)


@given(
    SHAPES,
    st.integers(3, 70),
    st.sampled_from([1, 3]),
    st.sampled_from([torch.uint8, torch.float32, torch.float64]),
    st.integers(0, 2**16),
)
@settings(max_examples=40)
def test_one_image_at_a_time_is_the_batch_at_once(shape, size, channels, dtype, seed):
    """What a CPU does with large images is what is done with a batch elsewhere, whatever was drawn."""
    x, views = drawn(shape, size, channels, dtype, seed)
    made = []
    for large in (1, 1000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("graphaug.vision.views.pipeline.LARGE", large)
            made.append(views(x, uniforms(6, seed)))
    torch.testing.assert_close(*made, rtol=0, atol=2e-5)


@given(
    SHAPES,
    st.integers(30, 70),
    st.sampled_from([1, 3]),
    st.sampled_from([torch.uint8, torch.float32]),
    st.integers(0, 2**16),
)
@settings(max_examples=40)
def test_what_a_compiler_for_a_gpu_is_given_is_the_batch_at_once(shape, size, channels, dtype, seed):
    x, views = drawn(shape, size, channels, dtype, seed)
    params = views.params(uniforms(6, seed), *shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("graphaug.vision.views.pipeline.LARGE", 1000)
        expected = views.apply_params(x, params)
        patch.setattr("graphaug.vision.views.fused.suits", lambda *_: True)
        found = views.apply_params(x, params)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_a_large_view_is_the_same_bit_for_bit_in_any_batch_with_any_threads(monkeypatch):
    """Neither its neighbours nor the threads, which share a batch's views, decide anything of a view."""
    views, u = SimCLRViews(80, blur_p=0.5, solarize_p=0.3), uniforms(24)
    x = torch.randint(0, 256, (12, 3, 120, 90), dtype=torch.uint8, generator=generator())
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole = views(x, u)
        torch.set_num_threads(3)
        assert torch.equal(views(x, u), whole)
        with torch.inference_mode():
            assert torch.equal(views(x, u), whole)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    for i in (0, 5, 11):
        assert torch.equal(views(x[i : i + 1], u[[i, 12 + i]]), whole[[i, 12 + i]])
    monkeypatch.setattr("graphaug.vision.views.memory.FRESH_BYTES", 1)  # in huge pages, as a large batch is
    assert torch.equal(views(x, u), whole)


def test_no_large_views_of_no_images():
    assert SimCLRViews(80)(torch.zeros(0, 3, 90, 90)).shape == (0, 3, 80, 80)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0, 9.0])
def test_blur_of_one_image_equals_torchvision(sigma):
    """Also where the kernel is cut, since what is left out is below float32's rounding."""
    x = images(1, h=100, w=100)[0]
    expected = tvf.gaussian_blur(x.double(), [23, 23], [sigma, sigma]).float()
    torch.testing.assert_close(single_image.blur(x.mT.contiguous(), sigma, 23), expected, rtol=0, atol=2e-6)


def test_one_image_at_a_time_leaves_gradients_to_the_batch(monkeypatch):
    monkeypatch.setattr("graphaug.vision.views.pipeline.LARGE", 1)
    x = images(2).requires_grad_()
    SimCLRViews(8)(x).sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("threads", [1, 2])
def test_a_batch_in_parts_is_the_batch_at_once(monkeypatch, threads):
    """What a CPU cuts into parts of a few images is as if it had not been; 7 images in parts of 2 or 4 leave a rest."""
    views, x, u = SimCLRViews(16, blur_p=0.5, solarize_p=0.5), images(7), uniforms(14)
    whole = views(x, u)
    sizes = []
    make = SimCLRViews._apply_params

    def spy(self, part, params):
        sizes.append(len(part))
        return make(self, part, params)

    monkeypatch.setattr(SimCLRViews, "_apply_params", spy)
    monkeypatch.setattr("graphaug.vision.views.pipeline.PART_BYTES", 2 * 4 * 3 * 24 * 32)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    torch.testing.assert_close(views(x, u), whole, rtol=0, atol=1e-6)
    assert sizes == {1: [2] * 7, 2: [4, 4, 4, 2]}[threads]


def test_views_are_stacked_first_views_first():
    views, x = SimCLRViews(16), images(4)
    u = uniforms(8)
    one = SimCLRViews(16, n_views=1)
    torch.testing.assert_close(views(x, u), torch.cat([one(x, u[:4]), one(x, u[4:])]))


def test_the_default_generator_decides():
    views, x = SimCLRViews(16), images(4)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first = views(x)
        second = views(x)
        torch.manual_seed(3)
        again = views(x)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


N = 20_000


def test_crops_follow_torchvisions_distribution():
    height, width = 40, 60
    views = SimCLRViews(16)
    p = views.params(uniforms(N), height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        boxes = [
            RandomResizedCrop.get_params(torch.empty(3, height, width), [0.2, 1.0], [3 / 4, 4 / 3])
            for _ in range(N)
        ]
    for ours, theirs in zip((p.top, p.left, p.height, p.width), zip(*boxes, strict=True), strict=True):
        assert stats.ks_2samp(ours.numpy(), theirs).pvalue > 1e-3
    assert (p.top >= 0).all()
    assert (p.left >= 0).all()
    assert (p.top + p.height <= height).all()
    assert (p.left + p.width <= width).all()


def test_a_panorama_falls_back_to_the_central_crop():
    views = SimCLRViews(16, scale=(0.9, 1.0))
    p = views.params(uniforms(64), 10, 200)
    expected = RandomResizedCrop.get_params(torch.empty(3, 10, 200), [0.9, 1.0], [3 / 4, 4 / 3])
    assert {tuple(int(t[i]) for t in (p.top, p.left, p.height, p.width)) for i in range(64)} == {expected}
    p = views.params(uniforms(64), 200, 10)
    expected = RandomResizedCrop.get_params(torch.empty(3, 200, 10), [0.9, 1.0], [3 / 4, 4 / 3])
    assert {tuple(int(t[i]) for t in (p.top, p.left, p.height, p.width)) for i in range(64)} == {expected}


def test_jitter_follows_torchvisions_distribution():
    strengths = (0.4, 1.5, 0.2, 0.1)
    jitter = ColorJitter(*strengths)
    p = SimCLRViews(16, jitter=strengths, jitter_p=1.0).params(uniforms(N), 32, 32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [
            ColorJitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
            for _ in range(N // 2)
        ]
    for ours, theirs in zip(
        (p.brightness, p.contrast, p.saturation, p.hue), list(zip(*drawn, strict=True))[1:], strict=True
    ):
        assert stats.ks_2samp(ours.numpy(), theirs).pvalue > 1e-3


def test_orders_are_uniform_and_events_have_their_probability():
    views = SimCLRViews(16, blur_p=0.3, solarize_p=0.1)
    p = views.params(uniforms(N), 32, 32)
    code = (p.order * torch.tensor([1, 4, 16, 64])).sum(1)
    counts = torch.unique(code, return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    events = {0.5: p.flip, 0.8: p.brightness != 1, 0.2: p.gray, 0.3: p.sigma > 0, 0.1: p.solarize}
    for probability, event in events.items():
        assert stats.binomtest(int(event.sum()), N, probability).pvalue > 1e-3
    blurred = p.sigma[p.sigma > 0].numpy()
    assert stats.kstest(blurred, stats.uniform(0.1, 1.9).cdf).pvalue > 1e-3


def test_two_views_share_nothing():
    p = SimCLRViews(16).params(uniforms(2000), 32, 32)
    for a, b in [
        (p.height, p.brightness),
        (p.hue, p.contrast),
        (p.top / (33 - p.height), p.left / (33 - p.width)),
    ]:
        assert abs(stats.spearmanr(a[:1000].numpy(), b[:1000].numpy()).statistic) < 0.12
        assert abs(stats.spearmanr(a[:1000].numpy(), a[1000:].numpy()).statistic) < 0.12


@pytest.mark.parametrize("antialiased_size", [10, 24, 40, 80])
@pytest.mark.parametrize("large", [1, 1000], ids=["one by one", "as a batch"])
def test_eval_view_is_torchvisions_resize(monkeypatch, antialiased_size, large):
    monkeypatch.setattr("graphaug.vision.views.pipeline.LARGE", large)
    x = images(3, 3, 24, 32)
    resized = tvf.resize(x, [antialiased_size] * 2, antialias=True)
    view = EvalView(antialiased_size, mean=0.5, std=0.25)
    torch.testing.assert_close(view(x), (resized - 0.5) / 0.25, rtol=0, atol=1e-5)


def test_no_colour_operation_touches_a_gray_image_beyond_its_tone():
    x, u = images(8, 1), uniforms(8)
    assert SimCLRViews(16, n_views=1)(x, u).shape == (8, 1, 16, 16)
    plain = SimCLRViews(16, n_views=1, jitter=(0.4, 0.4, 0.0, 0.0), gray_p=0.0)(x, u)
    assert torch.equal(SimCLRViews(16, n_views=1)(x, u), plain)


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "channels"), [("aot_eager", 3), ("inductor", 1)])
@pytest.mark.long
def test_compiles_as_one_graph_without_recompiling(backend, channels):
    torch._dynamo.reset()
    # The colour path is left to the tracing backend: inductor's C++ compilation of it takes half a minute.
    views = SimCLRViews(16, blur_p=0.5 * (channels == 3), solarize_p=0.2 * (channels == 3))
    compiled = torch.compile(views, fullgraph=True, backend=backend)
    x, u = images(6, channels), uniforms(12)
    with torch._dynamo.config.patch(error_on_recompile=True):
        torch.testing.assert_close(compiled(x, u), views(x, u), rtol=0, atol=2e-5)
        for seed in range(3):
            compiled(images(6, channels, seed=seed), uniforms(12, seed))


@pytest.mark.long
def test_large_views_are_one_operation_of_a_compiled_graph():
    """A compiler does not look into it, so that it is as fast there, and for any number of images."""
    torch._dynamo.reset()
    views = SimCLRViews(80, blur_p=0.5, mean=0.4, std=0.5)
    compiled = torch.compile(views, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for n in (4, 6):  # 3 would be taken for the number of channels
            x, u = images(n, 3, 90, 100), uniforms(2 * n)
            torch.testing.assert_close(compiled(x, u), views(x, u), rtol=0, atol=1e-6)
    drawn = views.params(uniforms(4), 24, 32).columns()
    args = (images(2), drawn, views.mean, views.std, 2, 80, 9, 0.5)
    torch.library.opcheck(views_one_by_one, args)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": 1.5}, "flip is a probability"),
        ({"gray_p": math.nan}, "gray_p is a probability"),
        ({"scale": (0.0, 1.0)}, "scale is a range"),
        ({"ratio": (2.0, 1.0)}, "ratio is a range"),
        ({"jitter": (0.4, -0.1, 0, 0)}, "jitter strengths"),
        ({"jitter": (0.4, 0.1, 0, 0.6)}, "hue at most 0.5"),
        ({"n_views": 0}, "at least 1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InvalidOption, match=message):
        SimCLRViews(16, **options)


def test_bad_images():
    views = SimCLRViews(16)
    with pytest.raises(BatchError, match=r"\(3, 8, 8\)"):
        views(torch.rand(3, 8, 8))
    with pytest.raises(BatchError, match=r"\(2, 4, 8, 8\)"):
        views(torch.rand(2, 4, 8, 8))
    with pytest.raises(BatchError, match="int64"):
        views(torch.zeros(2, 3, 8, 8, dtype=torch.int64))
    with pytest.raises(BatchError, match="bfloat16"):
        views(torch.rand(2, 3, 8, 8), uniforms(4).bfloat16())
