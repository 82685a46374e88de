"""The models of the coverage table: how each is built offline, shrunken, and what it is called with."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.oracle import first_tensor

Inputs = dict[str, Any]
TIMM_POPULAR = (
    *("resnet50", "resnet18", "resnet34", "mobilenetv3_small_100", "efficientnet_b0", "convnext_tiny"),
    *(
        "vit_base_patch16_224",
        "vit_small_patch14_dinov2",
        "vit_base_patch16_clip_224",
        "swin_tiny_patch4_window7_224",
    ),
)
DECODERS = {
    "CausalLM": ("gpt2", "llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"),
    "Seq2SeqLM": ("t5", "bart"),
}
MOST_PARAMETERS = 250_000_000
MOST_OF_A_KIND = 60_000_000
"""Of the hundreds of base models, so that all of them take hours and not days."""


@dataclass(frozen=True)
class Case:
    """A model of the table; ``build()`` gives the model, its inputs, and inputs of another batch size."""

    name: str
    group: str
    make: Callable[[], tuple[nn.Module, Inputs]]

    def build(self) -> tuple[nn.Module, Inputs, Inputs]:
        model, inputs = self.make()
        other = {k: torch.cat([v, v[:1]]) if isinstance(v, Tensor) else v for k, v in inputs.items()}
        return model, inputs, other


def cases() -> list[Case]:
    """All models, in the order of the table."""
    return [*_torchvision(), *_timm(), *_transformers()]


# --- torchvision ------------------------------------------------------------------------------


def _torchvision() -> Iterator[Case]:
    import torchvision.models as tv

    for kind, module in (("", tv), ("segmentation/", tv.segmentation), ("video/", tv.video)):
        for name in tv.list_models(module=module):
            make = functools.partial(_make_torchvision, name, kind)
            yield Case(f"torchvision:{kind}{name}", "torchvision", make)


def _make_torchvision(name: str, kind: str) -> tuple[nn.Module, Inputs]:
    import torchvision.models as tv

    options: dict[str, Any] = {"weights": None}
    shapes: list[tuple[int, ...]] = [(3, size, size) for size in (64, 96, 128, 224)]
    if kind == "segmentation/":
        options["weights_backbone"] = None
    if kind == "video/":
        shapes = [(3, 8, 64, 64), (3, 16, 112, 112), (3, 16, 224, 224)]
    if name.startswith("vit"):
        options["image_size"], shapes = (56, [(3, 56, 56)]) if name.endswith("14") else (64, [(3, 64, 64)])
    if name.startswith("maxvit"):
        shapes = [(3, 224, 224)]
    if name == "inception_v3":  # the head that only training has needs all of it
        shapes = [(3, 299, 299)]
    if name.startswith("mvit"):
        shapes = [(3, 16, 224, 224)]
    if name in ("inception_v3", "googlenet"):
        options["init_weights"] = False
    return _first_that_runs(lambda: tv.get_model(name, **options), [torch.randn(2, *s) for s in shapes])


# --- timm -------------------------------------------------------------------------------------


def _timm() -> Iterator[Case]:
    import timm

    for module in timm.list_modules():
        if timm.list_models(module=module):
            yield Case(f"timm:{module}", "timm", functools.partial(_make_timm_family, module))
    for name in TIMM_POPULAR:
        yield Case(f"timm:{name} (popular)", "timm", functools.partial(_make_timm, name))


def _make_timm_family(module: str) -> tuple[nn.Module, Inputs]:
    return _make_timm(smallest(module))


def smallest(module: str) -> str:
    """The model of a timm module with the fewest parameters, among those whose names promise few."""
    import timm

    small = (
        "test",
        "tiny",
        "nano",
        "pico",
        "femto",
        "atto",
        "small",
        "xxs",
        "xs",
        "_s",
        "18",
        "b0",
        "050",
        "tiny",
    )
    names = sorted(timm.list_models(module=module), key=lambda n: (not any(s in n for s in small), len(n), n))
    sizes = {}
    for name in names[:5]:
        with torch.device("meta"), contextlib.suppress(Exception):
            sizes[name] = sum(p.numel() for p in timm.create_model(name).parameters())
    return min(sizes, key=lambda n: sizes[n]) if sizes else names[0]


def _make_timm(name: str) -> tuple[nn.Module, Inputs]:
    import timm

    size = timm.create_model(name, pretrained=False).pretrained_cfg["input_size"]
    for options, side in (({}, 64), ({}, 96), ({"img_size": 112}, 112), ({}, 128), ({}, size[-1])):
        try:
            return _first_that_runs(
                functools.partial(timm.create_model, name, pretrained=False, **options),
                [torch.randn(2, size[0], side, side)],
            )
        except Exception as error:
            last = error
    raise last


# --- transformers -----------------------------------------------------------------------------


def _transformers() -> Iterator[Case]:
    from transformers.models.auto import modeling_auto as auto

    heads = {
        "MaskedLM": auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        "ImageClassification": auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        "AudioClassification": auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
    }
    wanted = [(kind, head) for head, mapping in heads.items() for kind in mapping]
    wanted += [(kind, head) for head, kinds in DECODERS.items() for kind in kinds]
    for kind, head in wanted:
        make = functools.partial(_make_transformer, kind, head)
        yield Case(f"transformers:{kind}:{head}", "transformers", make)


def kinds() -> list[Case]:
    """The base model of every kind of transformers, in an order drawn by their names: a part of them is a sample."""
    from transformers.models.auto import modeling_auto as auto

    names = sorted(auto.MODEL_MAPPING_NAMES, key=lambda kind: hashlib.sha256(kind.encode()).hexdigest())
    return [
        Case(f"transformers:{kind}:Model", "kinds", functools.partial(_make_transformer, kind, "Model"))
        for kind in names
    ]


def _make_transformer(kind: str, head: str) -> tuple[nn.Module, Inputs]:
    import transformers
    from transformers.models.auto import modeling_auto as auto

    mapping = {
        "MaskedLM": auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        "ImageClassification": auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        "AudioClassification": auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
        "CausalLM": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "Seq2SeqLM": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        "Model": auto.MODEL_MAPPING_NAMES,
    }[head]
    names = mapping[kind]
    classes = [getattr(transformers, n) for n in ([names] if isinstance(names, str) else names)]
    first: Exception | None = None
    for level in range(-1 if head == "Model" else 0, 4):
        config = transformers.CONFIG_MAPPING[kind]()
        shrink(config, level)
        for cls in classes:
            try:
                with torch.device("meta"):
                    count = sum(p.numel() for p in cls(config).parameters())
                if count > (MOST_OF_A_KIND if head == "Model" else MOST_PARAMETERS):
                    raise RuntimeError(f"{count / 1e6:.0f} million parameters even when shrunken")
            except Exception as error:
                if "million parameters" in str(error):
                    first = first or error
                    continue
            for inputs in example_inputs(config, head):
                try:
                    return _runs(cls(config), inputs)
                except Exception as error:
                    first = first or error
    raise first or RuntimeError("no configuration worked")


_SIZES = {
    64: ("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "emb_dim", "embedding_size"),
    4: (
        *("num_attention_heads", "n_heads", "n_head", "num_heads", "encoder_attention_heads"),
        *("decoder_attention_heads", "num_key_value_heads"),
    ),
    16: ("head_dim", "d_kv"),
    128: (
        *("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "n_inner", "hidden_dim"),
        *("ffn_dim", "dim_feedforward"),
    ),
}
_LAYERS = (
    *("num_hidden_layers", "num_layers", "n_layers", "n_layer", "encoder_layers", "decoder_layers"),
    *("num_encoder_layers", "num_decoder_layers", "num_self_attends_per_block"),
)


def shrink(config: Any, level: int) -> None:
    """Make a configuration small in place: -1 images too, 0 all else, 1 depth and vocabulary, 2 depth, 3 nothing."""
    for value in vars(config).copy().values():
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            shrink(value, level)

    def put(name: str, value: Any) -> None:
        if type(getattr(config, name, None)) is int:
            with contextlib.suppress(Exception):
                setattr(config, name, value)

    if level <= 2:
        for name in _LAYERS:
            if type(getattr(config, name, None)) is int and getattr(config, name) > 3:
                put(name, 3)
        kinds = getattr(config, "layer_types", None)
        if isinstance(kinds, list):
            with contextlib.suppress(Exception):
                missing = [kind for kind in dict.fromkeys(kinds) if kind not in kinds[:3]][:2]
                config.layer_types = [*kinds[: 3 - len(missing)], *missing]
        layers = getattr(config, "per_layer_config", None)
        if isinstance(layers, dict):
            config.per_layer_config = {k: v for k, v in layers.items() if int(k) < 3}
    if level <= 1 and type(getattr(config, "vocab_size", None)) is int and config.vocab_size > 2000:
        put("vocab_size", 2000)
        for name in (
            "pad_token_id",
            "bos_token_id",
            "eos_token_id",
            "sep_token_id",
            "cls_token_id",
            "mask_token_id",
        ):
            if isinstance(getattr(config, name, None), int) and getattr(config, name) >= 2000:
                put(name, 1)
    if level < 0:
        put("image_size", 64)
    if level <= 0:
        for value, names in _SIZES.items():
            for name in names:
                put(name, value)
    if level <= 2 and hasattr(config, "depth_coefficient"):  # EfficientNet's default is B7, for 600 pixels
        config.depth_coefficient = config.width_coefficient = 1.0
        config.image_size, config.hidden_dim = 224, 1280
    if hasattr(config, "axial_pos_shape"):
        config.axial_pos_shape = (4, 4)  # 16 tokens
        config.axial_pos_embds_dim = (16, config.hidden_size - 16)
        config.hash_seed = (
            0  # Reformer's backward works in training mode only, so its own draws are turned off
        )
        config.hidden_dropout_prob = config.local_attention_probs_dropout_prob = 0.0
    if hasattr(config, "default_language") and getattr(config, "languages", None):
        config.default_language = config.languages[0]
    if getattr(config, "vocab_size", 0) is None:  # ESM
        config.vocab_size, config.pad_token_id, config.mask_token_id = 33, 1, 32
    for name in ("layerdrop", "encoder_layerdrop", "decoder_layerdrop"):
        if hasattr(config, name):
            setattr(config, name, 0.0)  # a branch on a random number, layer by layer, is in no graph
    if hasattr(config, "use_cache"):
        with contextlib.suppress(Exception):
            config.use_cache = False
    with contextlib.suppress(Exception):
        config.return_dict = True


def example_inputs(config: Any, head: str) -> Iterator[Inputs]:
    """Inputs to try, most usual first; two rows each."""
    if head == "Model":
        for other in ("MaskedLM", "ImageClassification", "AudioClassification", "Seq2SeqLM"):
            yield from example_inputs(config, other)
        return
    generator = torch.Generator().manual_seed(0)
    if head in ("MaskedLM", "CausalLM", "Seq2SeqLM"):
        vocabulary = getattr(config, "vocab_size", None) or getattr(
            getattr(config, "text_config", config), "vocab_size", 1000
        )
        for length in (16, 64, 2048):
            ids = torch.randint(
                3,
                min(int(vocabulary), 1000) if vocabulary > 10 else vocabulary,
                (2, length),
                generator=generator,
            )
            mask = torch.ones(2, length, dtype=torch.long)
            mask[1, -2:] = 0
            extra = {"decoder_input_ids": ids[:, :8].clone()} if head == "Seq2SeqLM" else {}
            cache = {"use_cache": False} if head != "MaskedLM" else {}
            yield {"input_ids": ids, "attention_mask": mask, **extra, **cache}
            yield {"input_ids": ids, "attention_mask": mask, "use_cache": False}
            yield {"input_ids": ids, "attention_mask": mask}
            yield {"input_ids": ids}
            yield {"inputs": ids, "attention_mask": mask}
    elif head == "ImageClassification":
        nested = getattr(config, "vision_config", config)
        channels = getattr(nested, "num_channels", 3)
        size = getattr(nested, "image_size", None) or 64
        size = size if isinstance(size, int) else size[0]
        for side in dict.fromkeys((size, 64, 224, 256)):
            pixels = torch.randn(2, channels, side, side, generator=generator)
            yield {"pixel_values": pixels}
            yield {"inputs": pixels}
        # Pixels as tokens (ImageGPT), and patches with their places (SigLIP 2).
        yield {"input_ids": torch.randint(0, 500, (2, 64), generator=generator)}
        patches = torch.randn(2, 256, channels * getattr(nested, "patch_size", 16) ** 2, generator=generator)
        places = torch.tensor([[16, 16], [8, 32]])
        yield {
            "pixel_values": patches,
            "pixel_attention_mask": torch.ones(2, 256, dtype=torch.long),
            "spatial_shapes": places,
        }
    else:
        frames = getattr(config, "max_source_positions", 1500) * 2
        mels = getattr(config, "num_mel_bins", 80)
        yield {"input_values": torch.randn(2, 8000, generator=generator)}
        yield {
            "input_values": torch.randn(
                2, getattr(config, "max_length", 1024) or 1024, mels, generator=generator
            )
        }
        yield {"input_features": torch.randn(2, mels, frames, generator=generator)}
        yield {
            "input_features": torch.randn(
                2, 100, getattr(config, "feature_projection_input_dim", 160), generator=generator
            )
        }


# --- running ----------------------------------------------------------------------------------


def _first_that_runs(build: Callable[[], nn.Module], images: list[Tensor]) -> tuple[nn.Module, Inputs]:
    model = build()
    name = next(iter(inspect.signature(model.forward).parameters))
    for i, image in enumerate(images):
        try:
            return _runs(model, {name: image})
        except Exception:
            if i == len(images) - 1:
                raise
    raise AssertionError("no image to try")


def _runs(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs]:
    """The model and its inputs, if it runs on them and at another batch size."""
    model.eval()
    with torch.no_grad():
        model(**inputs)
        model(**{k: torch.cat([v, v[:1]]) if isinstance(v, Tensor) else v for k, v in inputs.items()})
    return model, inputs


def three_depths(model: nn.Module, inputs: Inputs, least: int = 3) -> list[str]:
    """The first, the middle and the last block that the forward calls: entries of the outermost lists of so many."""
    inside: list[str] = []
    for path, module in model.named_modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)):
            inside += [
                f"{path}.{n}" if path else n
                for n, child in module.named_children()
                if list(child.parameters())
            ]
    blocks = [p for p in inside if not any(p.startswith(other + ".") for other in inside)]
    deeper = [p for p in inside if p not in blocks]
    children = [n for n, child in model.named_children() if list(child.parameters())]
    for candidates in (blocks, deeper, children):
        called = _called(model, inputs, candidates)
        if len(called) >= least or (called and candidates is children):
            return list(dict.fromkeys((called[0], called[len(called) // 2], called[-1])))
    paths = [*blocks, *deeper, *children]
    every = _called(model, inputs, paths) or _called(model, inputs, paths, of_samples=False)
    return list(dict.fromkeys((every[0], every[len(every) // 2], every[-1])))


def _called(model: nn.Module, inputs: Inputs, paths: list[str], *, of_samples: bool = True) -> list[str]:
    """Those of the modules that are called and give activations, in order of their first call.

    With ``of_samples`` those with the two samples along a first dimension alone, and not what is packed or in frames.
    """
    found: dict[str, None] = {}

    def note(path: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            with contextlib.suppress(Exception):
                value = first_tensor(output)
                if (
                    value.is_floating_point()
                    and value.dim() >= 2
                    and (2 in value.shape[:2] or not of_samples)  # of XLNet along the second
                    and value.requires_grad
                ):
                    found[path] = None

        return hook

    handles = [model.get_submodule(path).register_forward_hook(note(path)) for path in paths]
    try:
        model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return list(found)
