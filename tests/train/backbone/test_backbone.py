"""The backbone against the official code, and its file against everything that can be wrong with one.

tests/data/internvideo2_tiny_*.npz: outputs of tiny official models (OpenGVLab/InternVideo, Apache-2.0) with random
weights. Keys `w/` weights, `in/` inputs, `out/` results, `interp/` resized position tables, `pre/` pixel normalisation.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from encoding import encode_clips, encode_sentences
from places import DATA
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, normalizers, pre_tokenizers, processors

from sdst_runtime.contracts import FeatureSpec
from sdst_runtime.errors import ContractError, InputError
from sdst_runtime.files import sha256_file
from sdst_train.backbone.text import BERT_LARGE_STAGE2, TextConfig, TextEncoder
from sdst_train.backbone.towers import (
    METADATA_KEY,
    Backbone,
    TextTower,
    VisionTower,
    load_backbone,
    save_backbone,
    tiny_config,
)
from sdst_train.backbone.vision import INTERNVIDEO2_1B, VisionConfig, VisionEncoder, sincos_positions

TOLERANCE = 1e-5
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "ball", "square", "moves", "left", "grows", "slowly", "then"]
SPEC = FeatureSpec(
    backbone="tiny",
    backbone_sha256="",
    layers=4,
    pool="adaptive",
    frames_per_clip=4,
    clip_s=2.0,
    image_size=28,
    resize="bicubic",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    video_width=64,
    text_model="tiny-bert",
    max_tokens=40,
    text_width=64,
)


def close(got: torch.Tensor, want: np.ndarray, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(got, torch.from_numpy(want), rtol=0, atol=tolerance)


def words_tokenizer() -> str:
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = RustTokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer.to_str()


# ---- the official numbers


@pytest.fixture(scope="module")
def vision_reference() -> dict[str, np.ndarray]:
    return dict(np.load(DATA / "internvideo2_tiny_reference.npz"))


@pytest.fixture(scope="module")
def vision(vision_reference: dict[str, np.ndarray]) -> VisionEncoder:
    encoder = VisionEncoder(
        VisionConfig(
            image_size=28,
            patch_size=14,
            frames=2,
            width=32,
            depth=3,
            heads=4,
            mlp_width=139,
            pool_heads=4,
            output_width=16,
            aligned_width=8,
        )
    )
    weights = {k[2:]: torch.from_numpy(v) for k, v in vision_reference.items() if k.startswith("w/")}
    encoder.load_state_dict(weights, strict=True)
    return encoder.eval().requires_grad_(False)


def test_vision_layers_equal_the_official_ones(vision: VisionEncoder, vision_reference: dict[str, np.ndarray]) -> None:
    video = torch.from_numpy(vision_reference["in/video"])
    close(vision.embed(video), vision_reference["out/tokens_in"])
    hidden, pooled = vision.hidden(video, layers=3), vision(video, layers=3)
    for layer in range(3):
        close(hidden[:, layer], vision_reference[f"out/hidden_{layer}"])
        close(pooled[:, layer], vision_reference[f"out/pooled_{layer}"])
    torch.testing.assert_close(vision(video, layers=2), pooled[:, 1:])  # fewer layers are the last ones
    close(vision.aligned(pooled[:, -1]), vision_reference["out/vision_proj_l2"])


def test_other_pools(vision: VisionEncoder, vision_reference: dict[str, np.ndarray]) -> None:
    video, hidden = torch.from_numpy(vision_reference["in/video"]), vision_reference["out/hidden_2"]
    close(vision(video, 1, "cls")[:, 0], hidden[:, 0])
    close(vision(video, 1, "mean")[:, 0], hidden.mean(axis=1))
    assert (vision.feature_width("adaptive"), vision.feature_width("cls"), vision.feature_width("mean")) == (16, 32, 32)
    with pytest.raises(InputError, match="pool: expected one of"):
        vision(video, 1, "max")  # pyright: ignore[reportArgumentType]


def test_one_frame_takes_the_image_table(vision: VisionEncoder, vision_reference: dict[str, np.ndarray]) -> None:
    image = torch.from_numpy(vision_reference["in/image"])
    close(vision.hidden(image, 1)[:, 0], vision_reference["out/image_x_vis"])
    close(vision(image, 1)[:, 0], vision_reference["out/image_x_pool_vis"])


@pytest.mark.parametrize(("frames", "grid", "key"), [(4, 2, "T4"), (3, 2, "T3"), (4, 3, "T4_img42")])
def test_interpolated_positions(
    vision: VisionEncoder, vision_reference: dict[str, np.ndarray], frames: int, grid: int, key: str
) -> None:
    close(vision.positions(frames, grid, grid), vision_reference[f"interp/pos_embed_{key}"])


def test_initial_positions(vision: VisionEncoder, vision_reference: dict[str, np.ndarray]) -> None:
    close(sincos_positions(vision.config), vision_reference["sincos/pos_embed"])


def test_more_frames_than_the_table(vision: VisionEncoder, vision_reference: dict[str, np.ndarray]) -> None:
    video = torch.from_numpy(vision_reference["in/video_T4"])
    close(vision(video, 1)[:, 0], vision_reference["out/T4_x_pool_vis"])


def test_vision_in_bfloat16(vision: VisionEncoder, vision_reference: dict[str, np.ndarray]) -> None:
    half = VisionEncoder(vision.config)
    half.load_state_dict(vision.state_dict())
    pooled = half.bfloat16().eval()(torch.from_numpy(vision_reference["in/video"]).bfloat16(), 1)
    assert pooled.dtype == torch.bfloat16
    close(pooled[:, 0].detach().float(), vision_reference["out/bf16_x_pool_vis"], tolerance=0.05)


def test_pixel_normalisation(vision: VisionEncoder, vision_reference: dict[str, np.ndarray]) -> None:
    spec = dataclasses.replace(SPEC, image_size=28, layers=3, video_width=16, frames_per_clip=2)
    frames = torch.from_numpy(vision_reference["pre/frames_u8"])
    close(VisionTower(vision, spec).normalise(frames), vision_reference["pre/normalized"])


def test_text_layers_equal_the_official_ones() -> None:
    reference = dict(np.load(DATA / "internvideo2_tiny_text_reference.npz"))
    encoder = TextEncoder(TextConfig(vocab_size=50, width=32, depth=3, heads=4, mlp_width=64, max_positions=20)).eval()
    encoder.load_state_dict({k[2:]: torch.from_numpy(v) for k, v in reference.items() if k.startswith("w/")})
    ids, mask = torch.from_numpy(reference["in/input_ids"]), torch.from_numpy(reference["in/attention_mask"])
    with torch.inference_mode():
        hidden = encoder(ids, mask, layers=3)
        bool_mask = encoder(ids, mask.bool(), layers=3)
    for layer in range(3):
        close(hidden[:, layer], reference[f"out/hidden_{layer + 1}"])  # hidden_0 is the embedding
    close(hidden[:, -1], reference["out/last_hidden_state"])
    assert torch.equal(hidden, bool_mask)


def test_1b_names_and_shapes_are_those_of_the_checkpoint() -> None:
    shapes = json.loads((DATA / "internvideo2_1b_stage2_keys.json").read_text())["shapes"]
    with torch.device("meta"):
        encoder = VisionEncoder(INTERNVIDEO2_1B)
    got = {name: list(tensor.shape) for name, tensor in encoder.state_dict().items()}
    assert got == {name.removeprefix("vision_encoder."): shape for name, shape in shapes.items()}
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 1_020_022_400


def test_bert_large_runs_nineteen_layers() -> None:
    with torch.device("meta"):
        names = TextEncoder(BERT_LARGE_STAGE2).state_dict()
    assert tuple(names["bert.embeddings.word_embeddings.weight"].shape) == (30522, 1024)
    assert "bert.encoder.layer.18.output.dense.weight" in names
    assert not [name for name in names if "layer.19" in name or "pooler" in name or "crossattention" in name]


def test_configs_refuse_impossible_sizes() -> None:
    vision, text = tiny_config(20)
    with pytest.raises(InputError, match="width and heads: expected a multiple, got 64 and 5"):
        dataclasses.replace(vision, heads=5)
    with pytest.raises(InputError, match="image_size and patch_size"):
        dataclasses.replace(vision, image_size=60)
    with pytest.raises(InputError, match="every size must be positive"):
        dataclasses.replace(text, depth=0)
    with pytest.raises(InputError, match=r"layers: expected 1 to 6 .* got 7"):
        VisionEncoder(vision).hidden(torch.zeros(1, 3, 4, 28, 28), layers=7)


# ---- towers


@pytest.fixture(scope="module")
def backbone_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    vision, text = tiny_config(len(WORDS))
    path = tmp_path_factory.mktemp("backbone") / "tiny.safetensors"
    save_backbone(path, VisionEncoder(vision), TextEncoder(text), SPEC, words_tokenizer())
    return path


@pytest.fixture(scope="module")
def backbone(backbone_file: Path) -> Backbone:
    return load_backbone(backbone_file)


@pytest.fixture(scope="module")
def clips() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (7, 4, 28, 28, 3), dtype=np.uint8)


def test_clips_do_not_depend_on_their_batch(backbone: Backbone, clips: np.ndarray) -> None:
    together = encode_clips(backbone.vision, clips)
    alone = encode_clips(backbone.vision, clips, batch_size=1)
    pieces = encode_clips(backbone.vision, iter([clips[:1], clips[1:1], clips[1:6], clips[6:]]), batch_size=3)
    assert together.shape == (7, 4, 64)
    assert together.dtype == np.float32
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-6)
    np.testing.assert_allclose(together, pieces, rtol=0, atol=1e-6)
    assert np.abs(together[0] - together[1]).max() > 1e-3


def test_tower_is_the_encoder_on_normalised_pixels(backbone: Backbone, clips: np.ndarray) -> None:
    video = (clips.astype(np.float32) / 255 - np.array(SPEC.mean, np.float32)) / np.array(SPEC.std, np.float32)
    with torch.inference_mode():
        want = backbone.vision.encoder(torch.from_numpy(video.transpose(0, 4, 1, 2, 3)), layers=4)
    np.testing.assert_allclose(encode_clips(backbone.vision, clips), want.numpy(), rtol=0, atol=1e-6)


def test_sentences_do_not_depend_on_their_batch(backbone: Backbone) -> None:
    sentences = ["a red ball moves left", "a square", "a red ball moves left then grows slowly", "a square"]
    together = encode_sentences(backbone.text, backbone.tokenizer(), sentences)
    assert [features.shape for features in together] == [(4, 7, 64), (4, 4, 64), (4, 10, 64), (4, 4, 64)]
    for sentence, features in zip(sentences, together, strict=True):
        assert features.dtype == np.float32
        (alone,) = encode_sentences(backbone.text, backbone.tokenizer(), [sentence], batch_size=1)
        np.testing.assert_allclose(features, alone, rtol=0, atol=2e-6)


def test_padding_ids_are_never_read(backbone: Backbone) -> None:
    ids = torch.tensor([[2, 4, 5, 3, 0, 0], [2, 4, 6, 7, 9, 3]])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    other = ids.masked_fill(mask == 0, 11)
    assert torch.equal(backbone.text(ids, mask)[0, :, :4], backbone.text(other, mask)[0, :, :4])


def test_extraction_refuses_other_clips(backbone: Backbone, clips: np.ndarray) -> None:
    for wrong in (clips[:, :3], clips[..., :27, :], clips.astype(np.float32), clips[0]):
        with pytest.raises(InputError, match=r"clips: expected uint8 of shape \(T, 4, 28, 28, 3\), got"):
            encode_clips(backbone.vision, wrong)
    with pytest.raises(InputError, match="at least one clip"):
        encode_clips(backbone.vision, iter([]))
    with pytest.raises(InputError, match="batch_size"):
        encode_clips(backbone.vision, clips, batch_size=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pool": "max"}, "pool: expected one of"),
        ({"image_size": 224}, "image_size: the feature contract says 224, the encoder has 28"),
        ({"layers": 7}, "layers: the feature contract says 7, the vision encoder has 6"),
        ({"layers": 6}, "layers: the feature contract says 6, the text encoder has 5"),
        ({"max_tokens": 41}, "max_tokens is 41, but the text encoder has 40 positions"),
    ],
)
def test_towers_refuse_another_contract(backbone: Backbone, change: dict, message: str) -> None:
    spec = dataclasses.replace(SPEC, **change)
    with pytest.raises(ContractError, match=message):
        Backbone.assemble(backbone.vision.encoder, backbone.text.encoder, spec, "")


def test_towers_refuse_other_widths(backbone: Backbone) -> None:
    with pytest.raises(ContractError, match="video_width: the feature contract says 768, the encoder has 64"):
        VisionTower(backbone.vision.encoder, dataclasses.replace(SPEC, video_width=768))
    with pytest.raises(ContractError, match="text_width: the feature contract says 1024, the encoder has 64"):
        TextTower(backbone.text.encoder, dataclasses.replace(SPEC, text_width=1024))


# ---- the file


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_save_and_load(tmp_path: Path, backbone: Backbone, dtype: torch.dtype) -> None:
    path = tmp_path / "again.safetensors"
    spec = save_backbone(
        path, backbone.vision.encoder, backbone.text.encoder, SPEC, backbone.tokenizer_json, dtype=dtype
    )
    again = load_backbone(path)
    assert again.spec == spec == dataclasses.replace(SPEC, backbone_sha256=sha256_file(path))
    assert again.tokenizer_json == backbone.tokenizer_json
    for new, old in ((again.vision, backbone.vision), (again.text, backbone.text)):
        want = old.state_dict()
        assert new.state_dict().keys() == want.keys()
        # `backbone` came from an fp16 file, so both types hold its values exactly.
        assert all(torch.equal(tensor, want[name]) for name, tensor in new.state_dict().items())
        assert {parameter.dtype for parameter in new.parameters()} == {torch.float32}
        assert not new.training
        assert not any(parameter.requires_grad for parameter in new.parameters())
        assert not any(tensor.is_meta for tensor in (*new.parameters(), *new.buffers()))


def test_saving_twice_gives_the_same_bytes(tmp_path: Path, backbone: Backbone, backbone_file: Path) -> None:
    path = tmp_path / "again.safetensors"
    save_backbone(path, backbone.vision.encoder, backbone.text.encoder, SPEC, backbone.tokenizer_json)
    assert path.read_bytes() == backbone_file.read_bytes()


def test_tiny_backbone_is_small(tmp_path: Path) -> None:
    vision, text = tiny_config(260)
    path = tmp_path / "tiny.safetensors"
    save_backbone(path, VisionEncoder(vision), TextEncoder(text), SPEC, words_tokenizer() + " " * 20_000)
    assert path.stat().st_size < 2_000_000


def rewrite(source: Path, target: Path, *, tensors: dict | None = None, header: dict | None = None) -> Path:
    """Copy a backbone file with some tensors or header fields replaced (None drops one)."""
    with safe_open(source, framework="pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        fields = json.loads(file.metadata()[METADATA_KEY])
    stored.update(tensors or {})
    fields.update(header or {})
    save_file(
        {name: tensor for name, tensor in stored.items() if tensor is not None},
        target,
        metadata={METADATA_KEY: json.dumps({key: value for key, value in fields.items() if value is not None})},
    )
    return target


def test_wrong_tensors_are_listed(tmp_path: Path, backbone_file: Path) -> None:
    changes = {
        "vision.pos_embed": torch.zeros(1, 65, 95),
        "vision.cls_token": None,
        "vision.head.weight": torch.zeros(1),
        "text.bert.embeddings.LayerNorm.bias": torch.zeros(64, dtype=torch.int64),
    }
    path = rewrite(backbone_file, tmp_path / "b.safetensors", tensors=changes)
    with pytest.raises(ContractError) as caught:
        load_backbone(path)
    message = str(caught.value)
    assert "missing vision.cls_token; unexpected vision.head.weight" in message
    assert "vision.pos_embed expected shape (1, 65, 64), got (1, 65, 95)" in message
    assert "text.bert.embeddings.LayerNorm.bias expected float16 or float32, got torch.int64" in message
    assert "in all" not in message
    assert "\n" not in message


def test_only_ten_wrong_tensors_are_listed(tmp_path: Path, backbone_file: Path) -> None:
    vision, _ = tiny_config(len(WORDS))
    deeper = dataclasses.asdict(dataclasses.replace(vision, depth=8))
    path = rewrite(backbone_file, tmp_path / "b.safetensors", header={"vision": deeper})
    with pytest.raises(ContractError, match=r"\(26 faults in all\)") as caught:
        load_backbone(path)
    assert str(caught.value).count("missing vision.blocks.6") == 10


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"format": 2}, "expected backbone format 1, got 2"),
        ({"tokenizer": None}, "needs 'tokenizer', got None"),
        ({"vision": {"width": 96}}, "vision configuration does not parse: image_size: Field required"),
        ({"text": {**dataclasses.asdict(tiny_config(15)[1]), "heads": 5}}, "width and heads"),
        ({"features": {"pool": "adaptive"}}, "feature contract does not parse: backbone"),
        ({"features": {"pool": "max"}}, "pool: expected one of"),
        ({"features": {"backbone_sha256": "0"}}, "the file itself determines backbone_sha256"),
    ],
)
def test_wrong_headers(tmp_path: Path, backbone_file: Path, header: dict, message: str) -> None:
    path = rewrite(backbone_file, tmp_path / "b.safetensors", header=header)
    with pytest.raises(ContractError, match=message):
        load_backbone(path)


def test_files_of_another_kind(tmp_path: Path, backbone_file: Path) -> None:
    path = tmp_path / "b.safetensors"
    with pytest.raises(InputError, match="cannot read"):
        load_backbone(path)
    for broken in (b"", b"not safetensors at all", backbone_file.read_bytes()[:100_000]):
        path.write_bytes(broken)
        with pytest.raises(InputError, match="not a readable safetensors file"):
            load_backbone(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ContractError, match="without metadata 'sdst_backbone'"):
        load_backbone(path)
    save_file({"x": torch.zeros(1)}, path, metadata={METADATA_KEY: "{"})
    with pytest.raises(ContractError, match="is not JSON"):
        load_backbone(path)


def test_nothing_half_written(tmp_path: Path, backbone: Backbone) -> None:
    vision, text = backbone.vision.encoder, backbone.text.encoder
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        save_backbone(tmp_path / "file" / "b.safetensors", vision, text, SPEC, "")
    broken = VisionEncoder(vision.config)
    torch.nn.init.constant_(broken.cls_token, 1e6)
    with pytest.raises(ContractError, match=r"vision\.cls_token would hold NaN or infinity"):
        save_backbone(tmp_path / "b.safetensors", broken, text, SPEC, "")
    with pytest.raises(InputError, match="dtype"):
        save_backbone(tmp_path / "b.safetensors", vision, text, SPEC, "", dtype=torch.bfloat16)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_tokenizer_larger_than_the_text_encoder(backbone: Backbone) -> None:
    vision, text = tiny_config(5)
    small = Backbone.assemble(VisionEncoder(vision), TextEncoder(text), SPEC, backbone.tokenizer_json)
    with pytest.raises(ContractError, match=f"the tokenizer has {len(WORDS)} entries, the text encoder 5"):
        small.tokenizer()
