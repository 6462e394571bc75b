"""Released checkpoints in: the layouts they come in, every fault of one, and the verb that converts them.

The tiny checkpoint has the names of the released one and the weights of the official tiny models in tests/data, so
what is loaded can be held against the official numbers. The 1B checkpoint is written without memory, on torch's `meta`
device, with the names and shapes of tests/data/internvideo2_1b_stage2_*.json.
"""

from __future__ import annotations

import argparse
import json
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from places import DATA
from safetensors.torch import save_file
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, normalizers, pre_tokenizers, processors
from torch import Tensor

from sdst.cli import main
from sdst_runtime.contracts import FeatureSpec
from sdst_runtime.errors import ContractError, InputError
from sdst_runtime.files import sha256_file
from sdst_train.backbone.release import STAGE2_1B, VARIANTS, Variant, load_internvideo2, needed_tensors
from sdst_train.backbone.text import TextConfig, TextEncoder
from sdst_train.backbone.tokenizer import read_bert_tokenizer
from sdst_train.backbone.towers import load_backbone, save_backbone
from sdst_train.backbone.vision import VisionConfig, VisionEncoder

TINY = Variant(
    "tiny-stage2",
    VisionConfig(
        image_size=28,
        patch_size=14,
        frames=4,  # the official tiny model has 2: the file decides
        width=32,
        depth=3,
        heads=4,
        mlp_width=139,
        pool_heads=4,
        output_width=16,
        aligned_width=8,
    ),
    TextConfig(vocab_size=50, width=32, depth=3, heads=4, mlp_width=64, max_positions=20),
    fusion_layers=2,
    text_model="tiny-bert",
    max_tokens=20,
)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "ball", "##s", "\u2028"]
WORDS += [f"w{index}" for index in range(40)]
POOL = "vision_encoder.clip_projector."


@pytest.fixture(scope="module")
def official() -> dict[str, dict[str, np.ndarray]]:
    return {
        "vision": dict(np.load(DATA / "internvideo2_tiny_reference.npz")),
        "text": dict(np.load(DATA / "internvideo2_tiny_text_reference.npz")),
    }


@pytest.fixture(scope="module")
def released(official) -> dict[str, Tensor]:
    """A state dict as it is released: what features need and what they do not."""
    state = {}
    for name, array in official["vision"].items():
        if name.startswith("w/"):
            name = name[2:] if name.startswith("w/vision_proj.") else f"vision_encoder.{name[2:]}"
            state[name] = torch.from_numpy(array)
    state |= {f"text_encoder.{k[2:]}": torch.from_numpy(v) for k, v in official["text"].items() if k.startswith("w/")}
    for name in (
        "vision_encoder.clip_pos_embed",
        "vision_encoder.clip_img_pos_embed",
        "vision_encoder.clip_decoder.0.head.weight",
        "vision_encoder.final_clip_decoder.norm.bias",
        "text_encoder.bert.encoder.layer.3.crossattention.self.key.weight",
        "text_encoder.bert.encoder.layer.4.attention.self.query.bias",
        "text_encoder.cls.predictions.decoder.weight",
        "text_proj.weight",
        "itm_head.bias",
        "temp",
    ):
        state[name] = torch.full((3,), 7.0)
    state["text_encoder.bert.embeddings.position_ids"] = torch.arange(20)[None]
    return state


@pytest.fixture
def checkpoint(tmp_path: Path, released: dict[str, Tensor]) -> Path:
    return written(tmp_path / "released.pt", released)


def written(path: Path, state: dict) -> Path:
    torch.save({"module": state}, path)
    return path


def close(got: Tensor, want: np.ndarray) -> None:
    torch.testing.assert_close(got.detach(), torch.from_numpy(want), rtol=0, atol=1e-5)


def gives_official_numbers(vision: VisionEncoder, text: TextEncoder, official) -> None:
    reference = official["vision"]
    pooled = vision(torch.from_numpy(reference["in/video"]), layers=3)
    for layer in range(3):
        close(pooled[:, layer], reference[f"out/pooled_{layer}"])
    close(vision(torch.from_numpy(reference["in/video_T4"]), 1)[:, 0], reference["out/T4_x_pool_vis"])
    close(vision(torch.from_numpy(reference["in/image"]), 1)[:, 0], reference["out/image_x_pool_vis"])
    reference = official["text"]
    ids, mask = torch.from_numpy(reference["in/input_ids"]), torch.from_numpy(reference["in/attention_mask"])
    hidden = text(ids, mask, layers=3)
    for layer in range(3):
        close(hidden[:, layer], reference[f"out/hidden_{layer + 1}"])


# ---- what a checkpoint may look like


@pytest.mark.parametrize("layout", ["module", "model", "state_dict", "bare", "safetensors"])
def test_every_layout_gives_the_official_numbers(tmp_path: Path, released, official, layout: str) -> None:
    path = tmp_path / f"released.{'safetensors' if layout == 'safetensors' else 'pth'}"
    if layout == "safetensors":
        save_file(released, path)
    else:
        # what deepspeed leaves beside the state dict does no harm
        torch.save(released if layout == "bare" else {layout: released, "epoch": 3, "dp_world_size": 8}, path)
    release = load_internvideo2(path, TINY, frames=8, clip_s=1.5, layers=3)
    gives_official_numbers(release.vision, release.text, official)
    assert release.vision.config.frames == 2
    assert release.spec == FeatureSpec(
        "tiny-stage2", "", 3, "adaptive", 8, 1.5, 28, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 16,
        "tiny-bert", 20, 32,
    )  # fmt: skip
    for encoder in (release.vision, release.text):
        assert not encoder.training
        assert not any(parameter.requires_grad or parameter.is_meta for parameter in encoder.parameters())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_names_with_the_prefix_of_a_wrapper(tmp_path: Path, released, official, prefix: str) -> None:
    named = {prefix + name: x for name, x in released.items()}
    torch.save({"epoch": 3, "state_dict": {"module": named}}, tmp_path / "wrapped.ckpt")
    release = load_internvideo2(tmp_path / "wrapped.ckpt", TINY, frames=8, clip_s=1.5, layers=3)
    gives_official_numbers(release.vision, release.text, official)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights_stay_what_they_are(tmp_path: Path, released, dtype: torch.dtype) -> None:
    half = {name: x.to(dtype) if x.is_floating_point() else x for name, x in released.items()}
    release = load_internvideo2(written(tmp_path / "half.pt", half), TINY)
    loaded = needed_tensors(release.vision, release.text)
    assert {x.dtype for x in loaded.values()} == {dtype}
    assert all(torch.equal(x, half[name]) for name, x in loaded.items())


def test_weights_are_mapped_from_the_file(checkpoint: Path) -> None:
    """A byte changed in the file after loading is seen: no copy was made of it."""
    release = load_internvideo2(checkpoint, TINY)
    bias = release.text.bert.embeddings.LayerNorm.bias
    before = bias.clone()
    data, raw = checkpoint.read_bytes(), before.numpy().tobytes()
    assert data.count(raw) == 1
    with checkpoint.open("r+b") as file:
        file.seek(data.index(raw))
        file.write(np.float32(5).tobytes())
    assert bias[0] == 5
    assert torch.equal(bias[1:], before[1:])


def test_a_table_of_more_frames_is_taken_as_it_is(tmp_path: Path, released, official) -> None:
    table = torch.from_numpy(official["vision"]["interp/pos_embed_T4"])
    path = written(tmp_path / "four.pt", released | {"vision_encoder.pos_embed": table})
    vision = load_internvideo2(path, TINY).vision
    assert vision.config.frames == 4
    close(vision(torch.from_numpy(official["vision"]["in/video_T4"]), 1)[:, 0], official["vision"]["out/T4_x_pool_vis"])


@pytest.mark.parametrize("prefix", ["vision_encoder.", ""])
def test_a_re_tuned_pool_replaces_that_of_the_checkpoint(tmp_path: Path, checkpoint, released, prefix: str) -> None:
    pool = {name: (x * 0.5).bfloat16() for name, x in released.items() if name.startswith(POOL)}
    beside = {"temp": torch.ones(()), "text_encoder.transformer.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    named = {prefix + name.removeprefix("vision_encoder."): x for name, x in pool.items()}
    torch.save({"module": named | beside}, tmp_path / "1B_clip.pth")
    release = load_internvideo2(checkpoint, TINY, pool_checkpoint=tmp_path / "1B_clip.pth")
    assert release.spec.backbone == "tiny-stage2+clip-pool"
    for name, x in needed_tensors(release.vision, release.text).items():
        assert torch.equal(x, pool[name].float() if name in pool else released[name]), name


# ---- the 1B checkpoint, without memory


@pytest.fixture(scope="module")
def names_1b() -> dict[str, dict]:
    rest = json.loads((DATA / "internvideo2_1b_stage2_rest.json").read_text())
    return rest | json.loads((DATA / "internvideo2_1b_stage2_keys.json").read_text())


def on_meta(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    return {name: torch.empty(shape, dtype=torch.bfloat16, device="meta") for name, shape in shapes.items()}


def test_1b_names_and_shapes_are_the_released_ones(names_1b) -> None:
    with torch.device("meta"):
        needed = needed_tensors(VisionEncoder(STAGE2_1B.vision), TextEncoder(STAGE2_1B.text))
    fusion = tuple(f"text_encoder.bert.encoder.layer.{layer}." for layer in range(19, 24))
    text = {
        name: shape
        for name, shape in names_1b["text"].items()
        if not name.startswith((*fusion, "text_encoder.cls.")) and not name.endswith("position_ids")
    }
    assert {name: list(x.shape) for name, x in needed.items()} == names_1b["shapes"] | text
    assert len(text) == 5 + 19 * 16


@pytest.mark.parametrize("frames", [4, 8])
def test_1b_checkpoint_loads(tmp_path: Path, names_1b, frames: int) -> None:
    shapes = names_1b["shapes"] | names_1b["beside"] | names_1b["text"]
    if frames == 8:
        shapes |= names_1b["with_8_frames"]
    release = load_internvideo2(written(tmp_path / "1b.pt", on_meta(shapes)))
    assert release.vision.config.frames == frames
    assert tuple(release.vision.pos_embed.shape) == (1, 1 + frames * 256, 1408)
    spec = release.spec
    assert (spec.backbone, spec.text_model) == ("internvideo2-1b-stage2", "bert-large-uncased")
    assert (spec.layers, spec.frames_per_clip, spec.clip_s, spec.max_tokens) == (4, 4, 2.0, 40)
    assert (spec.image_size, spec.video_width, spec.text_width) == (224, 768, 1024)


# ---- what is wrong with one


def test_faults_are_listed(tmp_path: Path, released) -> None:
    state = released | {
        "vision_encoder.norm.weight": torch.ones(3),
        "text_encoder.bert.encoder.layer.5.output.dense.bias": torch.ones(3),  # above the fusion layers
        "temperature": torch.ones(3),
        "vision_encoder.img_pos_embed": torch.zeros(1, 5, 31),
        "vision_encoder.cls_token": released["vision_encoder.cls_token"].double(),
        "vision_proj.bias": "a string",
    }
    del state["text_encoder.bert.embeddings.LayerNorm.weight"]
    with pytest.raises(ContractError) as caught:
        load_internvideo2(written(tmp_path / "x.pt", state), TINY)
    assert str(caught.value) == (
        f"{tmp_path}/x.pt: expected the tensors of tiny-stage2: missing text_encoder.bert.embeddings.LayerNorm.weight; "
        "unexpected vision_encoder.norm.weight; unexpected text_encoder.bert.encoder.layer.5.output.dense.bias; "
        "unexpected temperature; "
        "vision_encoder.cls_token expected float16 or bfloat16 or float32, got torch.float64; "
        "vision_encoder.img_pos_embed expected shape (1, 5, 32), got (1, 5, 31); "
        "vision_proj.bias expected a tensor, got str"
    )


def test_ten_faults_are_listed_and_all_counted(tmp_path: Path, released) -> None:
    state = {name: x for name, x in released.items() if not name.startswith("text_encoder.bert.encoder.layer.1.")}
    with pytest.raises(ContractError, match=r"\.\.\. \(16 faults in all\)") as caught:
        load_internvideo2(written(tmp_path / "x.pt", state), TINY)
    assert str(caught.value).count("missing text_encoder.bert.encoder.layer.1.") == 10


@pytest.mark.parametrize("rows", [1, 8, 10])
def test_a_table_of_no_whole_frames(tmp_path: Path, released, rows: int) -> None:
    state = released | {"vision_encoder.pos_embed": torch.zeros(1, rows, 32)}
    with pytest.raises(ContractError, match=rf"pos_embed expected shape \(1, 17, 32\), got \(1, {rows}, 32\)"):
        load_internvideo2(written(tmp_path / "x.pt", state), TINY)


def other_checkpoints() -> Iterator[tuple[str, dict, str]]:
    six = {"vision_encoder.cls_token": [1, 1, 3200], "vision_encoder.blocks.47.norm1.weight": [3200]}
    yield "6B", six, "got width 3200 and 48 blocks, as InternVideo2-6B has; use the checkpoint of this variant"
    small = {"vision_encoder.cls_token": [1, 1, 384], "vision_encoder.blocks.11.norm1.weight": [384]}
    yield "small", small, "with width 1408 and 40 blocks, got width 384 and 12 blocks; use"
    pool = {f"{POOL}norm1_q.weight": [1408], "temp": []}
    yield "pool", pool, "got the CLIP variant's pool alone; use the Stage-2 checkpoint, and this file as its pool"
    clip = {"vision_encoder.blocks.39.norm1.weight": [1408], "text_encoder.transformer.norm.weight": [4096]}
    yield "CLIP", clip, "got the CLIP variant with LLaMA; use the Stage-2 checkpoint"
    stage1 = {"blocks.39.norm1.weight": [1408], "clip_projector.norm1_q.weight": [1408]}
    yield "stage 1", stage1, "got a vision encoder alone, as Stage 1 releases it"
    yield "other", {"encoder.x": [1], "encoder.y": [2]}, r"\(it begins with encoder.x, encoder.y\)"
    yield "empty", {}, r"without vision_encoder.blocks \(it begins with nothing\)"


@pytest.mark.parametrize(("shapes", "says"), [row[1:] for row in other_checkpoints()], ids=lambda value: "")
def test_other_checkpoints_are_named(tmp_path: Path, shapes, says: str) -> None:
    with pytest.raises(ContractError, match="expected internvideo2-1b-stage2.*" + says):
        load_internvideo2(written(tmp_path / "x.pt", on_meta(shapes)))


def test_a_wrong_pool_file(tmp_path: Path, checkpoint, released) -> None:
    pool = {name: x for name, x in released.items() if name.startswith(POOL)}
    for change, says in (
        ({f"{POOL}norm1_q.bias": torch.ones(31)}, r"clip_projector.norm1_q.bias expected shape \(32,\), got \(31,\)"),
        ({"vision_encoder.cls_token": torch.ones(1)}, "unexpected cls_token"),
    ):
        with pytest.raises(ContractError, match=f"pool.pt: expected the tensors of a re-tuned pool: {says}"):
            load_internvideo2(checkpoint, TINY, pool_checkpoint=written(tmp_path / "pool.pt", pool | change))
    del pool[f"{POOL}cross_attn.q_bias"]
    with pytest.raises(ContractError, match=r"missing clip_projector\.cross_attn\.q_bias"):
        load_internvideo2(checkpoint, TINY, pool_checkpoint=written(tmp_path / "pool.pt", pool))


def test_files_that_are_no_checkpoint(tmp_path: Path, checkpoint) -> None:
    with pytest.raises(InputError, match="no such checkpoint"):
        load_internvideo2(tmp_path / "absent.pt", TINY)
    for data in (b"", b"hello", checkpoint.read_bytes()[:-100]):
        for name in ("x.pt", "x.safetensors"):
            (tmp_path / name).write_bytes(data)
            with pytest.raises(InputError, match=r"broken or other file|not a readable safetensors file") as caught:
                load_internvideo2(tmp_path / name, TINY)
            assert "\n" not in str(caught.value)
    torch.save([1, 2], tmp_path / "x.pt")
    with pytest.raises(InputError, match="expected a state dict, got list"):
        load_internvideo2(tmp_path / "x.pt", TINY)
    torch.save({"model": {}, "args": argparse.Namespace(lr=1)}, tmp_path / "x.pt")
    with pytest.raises(InputError, match="expected tensors only, got a file with other objects"):
        load_internvideo2(tmp_path / "x.pt", TINY)


@pytest.mark.parametrize("change", [{"frames": 0}, {"layers": 0}, {"clip_s": 0.0}, {"clip_s": float("nan")}])
def test_impossible_contracts(checkpoint: Path, change: dict) -> None:
    with pytest.raises(InputError, match="expected frames, layers and clip_s above 0"):
        load_internvideo2(checkpoint, TINY, **change)


# ---- the tokenizer


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return path


def tokenizer_json(path: Path, words: list[str] = WORDS, lowercase: bool = True, framed: bool = True) -> Path:
    """A tokenizer.json of the parts that bert-large-uncased's has."""
    vocab = {word: index for index, word in enumerate(words)}
    tokenizer = RustTokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if framed:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    tokenizer.save(str(path))
    return path


def test_both_files_give_the_same_tokens(tmp_path: Path, vocabulary: Path) -> None:
    from_json = read_bert_tokenizer(tokenizer_json(tmp_path / "tokenizer.json"), 50)
    assert from_json == (tmp_path / "tokenizer.json").read_text()
    for text in (from_json, read_bert_tokenizer(vocabulary, 50)):
        encoding = RustTokenizer.from_str(text).encode("A RED  balls zebra w7")
        assert encoding.tokens == ["[CLS]", "a", "red", "ball", "##s", "[UNK]", "w7", "[SEP]"]
        assert encoding.ids == [2, 5, 6, 7, 8, 1, 17, 3]


def test_wrong_tokenizers(tmp_path: Path, vocabulary: Path) -> None:
    path = tmp_path / "t.json"
    with pytest.raises(ContractError, match="expected a tokenizer of 30522 entries, got 50"):
        read_bert_tokenizer(vocabulary, 30522)
    with pytest.raises(ContractError, match="expected a tokenizer of 50 entries, got 49"):
        read_bert_tokenizer(tokenizer_json(path, WORDS[:-1]), 50)
    with pytest.raises(ContractError, match=r"expected lower case .* got '\[CLS\] \[UNK\] \[SEP\]' for 'A'"):
        read_bert_tokenizer(tokenizer_json(path, lowercase=False), 50)
    with pytest.raises(ContractError, match=r"between \[CLS\] and \[SEP\], got 'a' for 'A'"):
        read_bert_tokenizer(tokenizer_json(path, framed=False), 50)
    path.write_text("{}")
    with pytest.raises(InputError, match=r"expected a tokenizer\.json or a vocab\.txt"):
        read_bert_tokenizer(path, 50)
    (tmp_path / "words.txt").write_text("a\nb\n")
    with pytest.raises(InputError, match=r"one without \[PAD\], \[UNK\]"):
        read_bert_tokenizer(tmp_path / "words.txt", 50)
    with pytest.raises(InputError, match="cannot read"):
        read_bert_tokenizer(tmp_path / "absent.txt", 50)


# ---- the verb


@pytest.fixture
def convert(tmp_path: Path, checkpoint: Path, vocabulary: Path, monkeypatch, capsys):
    """Run `sdst convert-backbone` on the tiny checkpoint: (exit code, stdout, stderr)."""
    monkeypatch.setitem(VARIANTS, "tiny", TINY)

    def run(out: str, *more: object) -> tuple[int, str, str]:
        given = ("convert-backbone", checkpoint, "--tokenizer", vocabulary, "--out", tmp_path / out)
        code = main([str(word) for word in (*given, "--variant", "tiny", "--layers", 3, *more)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_convert_from_end_to_end(tmp_path: Path, convert, official) -> None:
    code, out, err = convert("b.safetensors", "--dtype", "float32", "--frames", 4, "--clip-s", 1)
    path = tmp_path / "b.safetensors"
    assert code == 0
    assert err.splitlines() == [
        f"reading {tmp_path}/released.pt",
        "its position table has 2 frames, interpolated to 4",
        f"writing {path} in float32",
        f"next:  sdst features video VIDEOS --backbone {path} --out FEATURES",
    ]
    summary = json.loads(out)
    backbone = load_backbone(path)
    assert (summary["path"], summary["sha256"]) == (str(path), sha256_file(path))
    assert FeatureSpec.from_json(json.dumps(summary["spec"]), "summary") == backbone.spec
    assert (backbone.spec.frames_per_clip, backbone.spec.clip_s, backbone.spec.layers) == (4, 1.0, 3)
    gives_official_numbers(backbone.vision.encoder, backbone.text.encoder, official)
    assert backbone.tokenizer().encode("a red ball", 20).tolist() == [2, 5, 6, 7, 3]


def test_converting_twice_gives_the_same_bytes(tmp_path: Path, convert, official) -> None:
    assert convert("one.safetensors")[0] == convert("two.safetensors")[0] == 0
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    stored = load_backbone(tmp_path / "one.safetensors").vision.encoder.clip_projector.cross_attn.proj.weight
    want = official["vision"]["w/clip_projector.cross_attn.proj.weight"].astype(np.float16).astype(np.float32)
    assert np.array_equal(stored.numpy(), want)
    (tmp_path / "other").touch()
    assert (tmp_path / "one.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode  # others may read it


def test_convert_with_a_pool(tmp_path: Path, convert, released) -> None:
    pool = {name: x * 2 for name, x in released.items() if name.startswith(POOL)}
    code, out, _ = convert("b.safetensors", "--pool-checkpoint", written(tmp_path / "pool.pth", pool))
    assert code == 0
    assert json.loads(out)["spec"]["backbone"] == "tiny-stage2+clip-pool"
    stored = load_backbone(tmp_path / "b.safetensors").vision.encoder.clip_projector.cross_attn.v_bias
    assert torch.equal(stored, pool[f"{POOL}cross_attn.v_bias"].half().float())


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--variant", "stage2-6b"), "--variant: expected one of stage2-1b, tiny, got 'stage2-6b'"),
        (("--variant", "stage2-1b"), "expected a tokenizer of 30522 entries, got 50"),
        (("--layers", 4), "layers: the feature contract says 4, the vision encoder has 3"),
        (("--frames", 0), "expected frames, layers and clip_s above 0"),
        (("--pool-checkpoint", "absent.pth"), "absent.pth: no such checkpoint"),
    ],
)
def test_convert_refuses(tmp_path: Path, convert, more: tuple, says: str) -> None:
    code, out, err = convert("b.safetensors", *more)
    assert (code, out) == (2, "")
    assert says in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not list(tmp_path.glob("*.safetensors*"))


def test_weights_that_overflow_are_refused(tmp_path: Path, convert, released) -> None:
    state = released | {"vision_encoder.cls_token": torch.full((1, 1, 32), 1e5)}
    written(tmp_path / "released.pt", state)
    code, _, err = convert("b.safetensors")
    assert code == 2
    assert err.endswith("cannot store as torch.float16: vision.cls_token would hold NaN or infinity\n")
    assert convert("b.safetensors", "--dtype", "float32")[0] == 0


def test_a_disk_that_is_full(tmp_path: Path, checkpoint: Path) -> None:
    release = load_internvideo2(checkpoint, TINY, layers=3)
    (tmp_path / "out").mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # bytes of a file
    try:
        with pytest.raises(InputError, match=r"cannot write .*b\.safetensors: .*File too large"):
            save_backbone(tmp_path / "out" / "b.safetensors", release.vision, release.text, release.spec, "")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "out").iterdir()) == []
