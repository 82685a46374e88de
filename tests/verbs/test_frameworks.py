"""What trips people in the frameworks that they come from: each trap, and what is said or done about it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphaug as ga
from graphaug.errors import BypassedSite, CaptureError, SiteNotFound

pytestmark = pytest.mark.few(2)

transformers = pytest.importorskip("transformers")
SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(autouse=True)
def _foreign_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", module=r"graphaug\.")
        yield


def wav2vec2(**options: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    config = transformers.Wav2Vec2Config(vocab_size=20, **sizes, **positions, **SMALL, **options)
    return transformers.Wav2Vec2Model(config)


@pytest.mark.long
def test_wav2vec2_by_default_names_its_layer_drop_and_the_fix_works() -> None:
    model, sound = wav2vec2(), {"input_values": torch.randn(2, 400)}
    assert model.config.layerdrop == 0.1  # the trap is there
    with pytest.raises(CaptureError, match=r"LayerDrop.*model\.config\.layerdrop = 0\.0"):
        ga.rewrite(model, "encoder.layers.1", example_inputs=sound)
    model.config.layerdrop = 0.0
    # the features in front of the encoder are an output too, which is said
    with pytest.raises(BypassedSite, match="the output also receives 'feature_projection'"):
        ga.rewrite(model, "encoder.layers.1", example_inputs=sound)
    aug = ga.rewrite(model, "encoder.layers.1", example_inputs=sound, allow_bypass=True)
    assert torch.equal(aug.eval()(**sound)[0], model.eval()(**sound)[0])


def vit_mae() -> tuple[Any, dict[str, Tensor]]:
    torch.manual_seed(0)
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    config = transformers.ViTMAEConfig(
        image_size=32, patch_size=8, decoder_intermediate_size=32, **decoder, **SMALL
    )
    return transformers.ViTMAEForPreTraining(config), {"pixel_values": torch.randn(4, 3, 32, 32)}


@pytest.mark.long
def test_vit_mae_says_where_its_encoder_can_be_cut_and_there_it_can() -> None:
    model, batch = vit_mae()
    with pytest.raises(BypassedSite, match=r"model\.vit = graphaug\.rewrite\(model\.vit, 'layers\.1'"):
        ga.rewrite(model, "vit.layers.1", example_inputs=batch)
    before = copy.deepcopy(model)
    noise = torch.rand(4, 16)
    inner = {**batch, "noise": noise}
    model.vit = ga.rewrite(model.vit, "layers.1", rate=1.0, subset=1.0, example_inputs=inner)
    assert model.state_dict().keys() == before.state_dict().keys()
    assert torch.equal(model.eval()(**batch, noise=noise).loss, before.eval()(**batch, noise=noise).loss)
    model.train()
    loss = model(**batch, noise=noise).loss
    assert not torch.equal(loss, before.train()(**batch, noise=noise).loss)
    loss.backward()
    assert not model.vit.layers[0].attention.q_proj.weight.grad.any()  # all was dropped at the cut
    assert model.decoder.decoder_embed.weight.grad is not None


def test_a_hint_about_the_encoder_is_given_only_where_it_is_one() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.encoder(x) + x

    with pytest.raises(BypassedSite, match="Use 'add'") as caught:
        ga.rewrite(Skip(), "encoder.0")
    assert "graphaug.rewrite(" not in str(caught.value)


# --- lightly ------------------------------------------------------------------------------------------


def simclr_of_lightly(backbone: nn.Module) -> nn.Module:
    heads = pytest.importorskip("lightly.models.modules")

    class SimCLR(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.projection_head = backbone, heads.SimCLRProjectionHead(512, 32, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.projection_head(self.backbone(x).flatten(start_dim=1))

    return SimCLR()


def resnet() -> nn.Module:
    import torchvision

    torch.manual_seed(0)
    return torchvision.models.resnet18()


@pytest.mark.parametrize(
    ("number", "path"), [(-1, "input"), (0, "2"), (1, "4"), (2, "5"), (3, "6"), (4, "7"), (5, "8")]
)
@pytest.mark.long
def test_lightlys_backbone_has_the_papers_numbers(number: int, path: str) -> None:
    """The children of a ResNet in one Sequential, as lightly's examples cut it; the network itself is the oracle."""
    whole = resnet()
    children = dict(whole.named_children())
    model = simclr_of_lightly(nn.Sequential(*list(whole.children())[:-1]))
    plan = ga.rewrite(model, number, dry_run=True)
    found = str(plan.sites[0].request.target)
    assert found == (path if number < 0 else f"backbone.{path}")
    if 0 <= number < 5:
        expected = str(ga.rewrite(whole, number, dry_run=True).sites[0].request.target)
        assert model.backbone[int(path)] is children[expected]


def test_other_lists_get_no_numbers_by_likeness() -> None:
    layers = [
        nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1)), nn.Sequential(nn.Conv2d(3, 3, 1))) for _ in range(4)
    ]
    with pytest.raises(SiteNotFound, match="no known numbers"):
        ga.rewrite(nn.Sequential(nn.Conv2d(3, 3, 1), *layers), 4)
    parts = list(resnet().children())
    with pytest.raises(SiteNotFound, match="no known numbers"):
        ga.rewrite(nn.Sequential(*parts[:6]), 1)  # two layers are no ResNet


# --- sentence-transformers ----------------------------------------------------------------------------


@pytest.mark.long
def test_auto_model_of_sentence_transformers_is_noticed(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers

    from graphaug.callbacks.during import DuringTraining
    from graphaug.errors import NotRewritten

    words = {"[PAD]": 0, "[UNK]": 1, **{f"w{i}": i for i in range(2, 20)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]"
    ).save_pretrained(tmp_path)
    transformers.BertModel(transformers.BertConfig(vocab_size=20, **SMALL)).save_pretrained(tmp_path)
    first = Transformer(str(tmp_path))
    model = SentenceTransformer(modules=[first, Pooling(16)], device="cpu")
    batch = first.preprocess(["w3 w4", "w5 w6 w7"])  # as it is: a valid example
    aug = ga.rewrite(first.model, 2, stop_grad=True, example_inputs=batch)
    first.auto_model = aug
    assert first.model is aug.original  # the trap: nothing would be augmented
    with pytest.raises(NotRewritten, match=r"Transformer\.auto_model is a property .* Assign to \.model"):
        DuringTraining(rate=0.5).check(model)
    del first.auto_model
    first.model = aug
    DuringTraining(rate=0.5).check(model)
    assert model.encode(["w3 w4", "w5"]).shape == (2, 16)
    # the whole of it, encode() included
    first.model = aug.original
    whole = ga.rewrite(
        model, "0.model.encoder.layer.1", stop_grad=True, example_inputs={"input": dict(batch)}
    )
    assert (whole.encode(["w3 w4", "w5"]) == model.encode(["w3 w4", "w5"])).all()


@pytest.mark.long
def test_a_deepcopied_teacher_is_one_line() -> None:
    student = ga.rewrite(resnet(), "layer4", rate=1.0, subset=1.0)
    teacher = ga.strip(copy.deepcopy(student)).requires_grad_(False)
    assert type(teacher) is type(student.original)
    assert not {id(p) for p in teacher.parameters()} & {id(p) for p in student.parameters()}
    x = torch.randn(4, 3, 32, 32)
    assert torch.equal(teacher.train()(x), resnet().train()(x))
