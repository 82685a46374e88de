"""Rules for the layers of networks: convolutions, normalisations, attention, pooling, recurrent cells."""

from __future__ import annotations

from torch import Tensor

from graphaug.proof.independence.call import Call, Outcome, Rule, named
from graphaug.proof.independence.places import Meets, Size, State, common


def convolved(call: Call) -> Outcome:
    """A convolution of images that come one by one along dimension 0, with weights that all share."""
    name = "input" if call["input"] is not None else "self"
    rows = call.only(name)
    if rows.dim != 0:
        raise Meets("convolves over the rows")
    return rows


def batch_normalised(call: Call) -> Outcome:
    """Statistics of every channel, dimension 1, over all others; running ones in eval mode."""
    x = call["input"] if call["input"] is not None else call["self"]
    rows = call.rows(x)
    training = call["training"]
    if call.name == "_batch_norm_with_update":
        training = True
    elif call.name in ("_batch_norm_no_update", "_native_batch_norm_legit_no_training"):
        training = False
    others = [t for t in call.tensors if t is not x]
    if rows is not None and rows.dim == 1:  # an instance norm: the channels of all samples behind each other
        for t in others:
            held = call.rows(t)
            if (held is None and t.shape[0] != 1) or (
                held is not None and common([held.at(1), rows]) is None
            ):
                raise Meets("normalises samples with weights that lie differently", "unknown")
        return [rows if out is call.out else rows.at(0) for out in call.outputs]
    if rows is None or any(call.rows(t) is not None for t in others):
        raise Meets("has no rule for rows in this argument", "unknown")
    if training is not False:
        call.statistics = "batch statistics are over the rows"
    return [rows if out is call.out else None for out in call.outputs]


def layer_normalised(call: Call) -> Outcome:
    """Statistics over the last dimensions."""
    rows = call.only("input")
    if rows.dim >= call["input"].dim() - len(call["normalized_shape"]):
        raise Meets("layer_norm runs over the rows")
    return rows


def group_normalised(call: Call) -> Outcome:
    """Statistics over groups of channels, for every entry of dimension 0."""
    rows = call.only("input")
    if rows.dim != 0 or call.size(call["N"]) != call.sizes(call["input"])[0]:
        raise Meets("group_norm runs over the rows")
    return rows


def attended(call: Call) -> Outcome:
    """Attention ``(N, heads, L, E)``: over positions, for every entry of the first two dimensions by itself."""
    q, k, v = call["query"], call["key"], call["value"]
    bias = call["attn_bias"] if call["attn_bias"] is not None else call["attn_mask"]
    places = [call.rows(t) for t in (q, k, v)]
    rows = places[0]
    if rows is None or any(p is None for p in places) or q.dim() != 4:
        raise Meets("attends from rows to what all rows share, or back", "unknown")
    place = common([p for p in places if p is not None])
    heads = {tuple(call.sizes(t)[:2]) for t in (q, k, v)}
    if place is None or place.dim > 1 or (place.dim == 1 and len(heads) > 1):
        raise Meets("attends over the rows")
    if isinstance(bias, Tensor):
        held = call.rows(bias)
        at = place.dim - 4 + bias.dim()
        if held is None and at >= 0 and call.sizes(bias)[at] != Size(1, False):
            raise Meets("attends under a mask with an entry for each row", "place")
        if held is not None and common([place, held.at(held.dim + 4 - bias.dim())]) is None:
            raise Meets("attends under a mask whose rows lie differently")
    return [place if out.dim() >= 3 else None for out in call.outputs]


def over_last(count: int) -> Rule:
    """Pooling, resizing and padding: the last ``count`` dimensions of an input and nothing else."""

    def rule(call: Call) -> Outcome:
        name = "input" if call["input"] is not None else "self"
        x = call[name]
        states = [call.rows(t) for t in call.tensors]
        place = common([s for s in states if s is not None])
        if place is None or call.rows(x) is None:
            raise Meets(f"{call.name} combines values whose rows lie differently")
        if any(s is None and t.dim() > 1 for t, s in zip(call.tensors, states, strict=True)):
            raise Meets("has no rule for rows in this argument", "unknown")
        if place.dim >= x.dim() - count:
            raise Meets(f"{call.name} runs over the rows")
        return place

    return rule


def padded(call: Call) -> Outcome:
    """``constant_pad_nd``: pairs of widths from the last dimension on."""
    rows = call.only()
    pairs, behind = list(call["pad"]), call["self"].dim() - 1 - rows.dim
    if any(n != 0 for n in pairs[2 * behind : 2 * behind + 2]):
        raise Meets("pads the batch", "place")
    return rows


def sampled(call: Call) -> Outcome:
    """``grid_sampler``: every image by its own grid, both along dimension 0."""
    a, b = call.rows(call["input"]), call.rows(call["grid"])
    if a is None or b is None or common([a, b]) is None or a.dim != 0:
        raise Meets("samples rows by grids that lie differently")
    return a


def per_image(call: Call) -> Outcome:
    """``im2col``, ``col2im``, ``pixel_shuffle`` and their like, of images that come one by one along dimension 0."""
    rows = call.only()
    rank = {"im2col": 4, "col2im": 3}.get(call.name, 4)
    if rows.dim != 0 or call["self"].dim() != rank:
        raise Meets(f"{call.name} runs over the rows")
    return rows


def shuffled(call: Call) -> Outcome:
    """``pixel_shuffle``: between the last three dimensions."""
    rows = call.only()
    if rows.dim >= call["self"].dim() - 3:
        raise Meets(f"{call.name} runs over the rows")
    return rows


def channels_shuffled(call: Call) -> Outcome:
    """``channel_shuffle``: within dimension 1."""
    rows = call.only()
    if rows.dim == 1:
        raise Meets("channel_shuffle runs over the rows")
    return rows


def recurrent_cell(call: Call) -> Outcome:
    """A step of an LSTM or GRU: gates and states ``(N, …)``, weights that all share."""
    states = [(t, call.rows(t)) for t in call.tensors]
    place = common([s for _, s in states if s is not None])
    if place is None or place.dim != 0 or any(s is None and t.dim() > 1 for t, s in states):
        raise Meets(f"{call.name} combines values whose rows lie differently")
    return place


def recurrent(call: Call) -> Outcome:
    """``_cudnn_rnn``: sequences ``(T, N, F)`` or ``(N, T, F)``, states ``(layers, N, H)``, weights that all share."""
    rows, first = call.rows(call["input"]), bool(call["batch_first"])
    states = [call.rows(call[name]) for name in ("hx", "cx") if call[name] is not None]
    if list(call["batch_sizes"]) or rows is None or rows.dim != (0 if first else 1):
        raise Meets("runs over the rows, or over a packed sequence of them", "unknown")
    if any(s is None or common([rows.at(1), s]) is None for s in states):
        raise Meets("starts from states that lie differently from their rows", "unknown")
    if any(call.rows(t) is not None for t in call["weight"]):
        raise Meets("has no rule for rows in this argument", "unknown")
    place: list[State] = [rows, rows.at(1), rows.at(1)]
    return [place[i] if i < 3 and out.numel() else None for i, out in enumerate(call.outputs)]


def by_steps(call: Call) -> Outcome:
    """``conv_tbc``: a convolution of sequences ``(T, N, C)``."""
    rows = call.only()
    if rows.dim != 1:
        raise Meets("convolves over the rows")
    return rows


def grids(call: Call) -> Outcome:
    """``affine_grid_generator``: a grid for every transformation along dimension 0."""
    rows = call.only("theta")
    if rows.dim != 0:
        raise Meets("mixes the transformations of rows")
    return rows


def drawn_choices(call: Call) -> Outcome:
    """``multinomial``: draws from the distribution along the last dimension."""
    rows = call.only()
    if rows.dim == call["self"].dim() - 1 or call["generator"] is not None:
        raise Meets("draws among the rows")
    return rows


def classified(call: Call) -> Outcome:
    """The likelihood of every row's class, unreduced."""
    if call["reduction"] != 0:
        raise Meets(f"{call.name} averages or sums over the rows")
    x, y = call.rows(call["self"]), call.rows(call["target"])
    if (
        x is None
        or y is None
        or common([x, y]) is None
        or x.dim != 0
        or call.rows(call["weight"]) is not None
    ):
        raise Meets(f"{call.name} combines values whose rows lie differently")
    found: list[State] = [x, None]
    return found


_POOLS = "max_pool{n}d_with_indices avg_pool{n}d adaptive_max_pool{n}d _adaptive_avg_pool{n}d adaptive_avg_pool{n}d "
_POOLS += "fractional_max_pool{n}d max_pool{n}d max_unpool{n}d reflection_pad{n}d replication_pad{n}d"
_RESIZES = {
    1: "upsample_linear1d upsample_nearest1d _upsample_nearest_exact1d",
    2: "upsample_bilinear2d upsample_nearest2d upsample_bicubic2d _upsample_nearest_exact2d _upsample_bilinear2d_aa "
    "_upsample_bicubic2d_aa",
    3: "upsample_trilinear3d upsample_nearest3d _upsample_nearest_exact3d",
}

LAYERS: dict[str, Rule] = {
    **named("convolution _convolution convolution_overrideable mkldnn_convolution cudnn_convolution", convolved),
    **named("cudnn_convolution_transpose miopen_convolution miopen_convolution_transpose _conv_depthwise2d", convolved),
    **named("slow_conv3d_forward slow_conv_transpose2d slow_conv_transpose3d", convolved),
    "conv_tbc": by_steps,
    "affine_grid_generator": grids,
    "_cudnn_rnn": recurrent,
    **named("slow_conv_dilated2d slow_conv_dilated3d conv_depthwise3d _slow_conv2d_forward", convolved),
    **named("native_batch_norm cudnn_batch_norm miopen_batch_norm _native_batch_norm_legit", batch_normalised),
    **named("_native_batch_norm_legit_no_training _batch_norm_with_update _batch_norm_no_update", batch_normalised),
    **named("native_layer_norm _fused_rms_norm rms_norm", layer_normalised),
    "native_group_norm": group_normalised,
    **named("_scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu", attended),
    **named("_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention", attended),
    **named("_scaled_dot_product_fused_attention_overrideable _scaled_dot_product_attention_math_for_mps", attended),
    **{k: over_last(n) for n in (1, 2, 3) for k in f"{_POOLS} {_RESIZES[n]}".format(n=n).split()},
    "constant_pad_nd": padded,
    **named("grid_sampler_2d grid_sampler_3d cudnn_grid_sampler _grid_sampler_2d_cpu_fallback", sampled),
    **named("im2col col2im", per_image),
    **named("pixel_shuffle pixel_unshuffle", shuffled),
    "channel_shuffle": channels_shuffled,
    **named("_thnn_fused_lstm_cell _thnn_fused_gru_cell", recurrent_cell),
    "multinomial": drawn_choices,
    **named("nll_loss_forward nll_loss2d_forward", classified),
}  # fmt: skip
"""Operation -> rule, for the layers of networks."""
