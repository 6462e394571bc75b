"""SDST as a module: its size, every switch, and what must never change a result."""

from __future__ import annotations

import copy
import dataclasses
import itertools

import numpy as np
import pytest
import torch

from sdst_train.config import ModelConfig
from sdst_train.model.heads import Actionness, saliency
from sdst_train.model.layers import DropPath
from sdst_train.model.rdsa import LoweredRDSA
from sdst_train.model.sdst import SDST, Masks, Outputs, parameter_count

torch.set_num_threads(1)
SMALL = ModelConfig(video_width=12, text_width=10, layers=4, width=32, heads=2, points=3, queries=5, ffn_ratio=2)
KINDS = ("rdsa", "deformable_ca", "full_ca")


def build(seed: int = 0, **changes) -> SDST:
    """A small model in evaluation mode with all weights random, those that start at zero included."""
    torch.manual_seed(seed)
    model = SDST(dataclasses.replace(SMALL, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.3
            parameter.add_(torch.randn_like(parameter) * scale)
        model.classify.bias.zero_()  # scores that are not all near zero
    return model


def inputs(clips: list[int], tokens: list[int], seed: int = 0, layers: int = 4) -> dict[str, torch.Tensor]:
    """Padded random features; the padding holds NaN."""
    generator = torch.Generator().manual_seed(seed)
    B, T, L = len(clips), max(clips), max(tokens)
    video_mask = torch.arange(T) < torch.tensor(clips)[:, None]
    text_mask = torch.arange(L) < torch.tensor(tokens)[:, None]
    video = torch.randn(B, T, layers, SMALL.video_width, generator=generator)
    text = torch.randn(B, layers, L, SMALL.text_width, generator=generator)
    video[~video_mask] = torch.nan
    text.transpose(1, 2)[~text_mask] = torch.nan
    return {"video": video, "video_mask": video_mask, "text": text, "text_mask": text_mask}


def double(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: x.double() if x.is_floating_point() else x for name, x in batch.items()}


def ground(model: SDST, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    with torch.no_grad():
        return list(model.ground(**batch))


def distance(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


# --- size and switches -----------------------------------------------------------------------------------------------


def test_defaults_have_the_stated_parameters():
    assert parameter_count(SDST(ModelConfig())) == 4_312_200


def test_parameters_do_not_grow_with_steps_but_for_the_gate():
    assert parameter_count(build(layers=4)) - parameter_count(build(layers=1)) == 3


@pytest.mark.parametrize("gate", ["sigmoid", "raw"])
@pytest.mark.parametrize("layer_order", ["forward", "reversed"])
@pytest.mark.parametrize("query_init", ["learned", "pure"])
@pytest.mark.parametrize("feature_mode", ["intermediate", "last_repeat"])
@pytest.mark.parametrize("attention", KINDS)
def test_every_switch_trains(attention, feature_mode, query_init, layer_order, gate):
    """Forward and backward with every parameter reached by a finite gradient that is not all zero."""
    for layers, points, queries, reference_init in ((1, 1, 1, "grid"), (2, 4, 3, "random"), (4, 2, 7, "grid")):
        model = build(
            attention=attention, feature_mode=feature_mode, query_init=query_init, layer_order=layer_order, gate=gate,
            layers=layers, points=points, queries=queries, reference_init=reference_init, presence=True,
        ).train()  # fmt: skip
        batch = inputs([9, 1, 4], [3, 5, 1], layers=layers)
        out = model(**batch)
        assert out.logit_KBM.shape == (layers, 3, queries)
        assert out.span_KBM2.shape == (layers, 3, queries, 2)
        assert out.actionness_BM.shape == (3, queries)
        assert out.saliency_BT.shape == (3, 9)
        assert out.video_KBTF.shape == (layers, 3, 9, SMALL.width)
        assert out.text_KBF.shape == (layers, 3, SMALL.width)
        assert out.presence_B.shape == (3,)
        total = sum((x * torch.randn_like(x)).sum() for x in vars(out).values())
        assert torch.isfinite(total)
        total.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            # a key's bias shifts all scores alike and one token or point has weight 1: no influence by construction
            indifferent = name.endswith("key.bias") or (points == 1 and "sample.logit" in name)
            alone = queries == 1 and ("self_attention.query" in name or "self_attention.key" in name)
            if not indifferent and not alone:
                assert parameter.grad.any(), name


def test_references_teach_the_step_before_unless_they_are_detached():
    """The same moments, and other gradients of the layer that moves them."""
    found = []
    for detached in (True, False):
        model = build(layers=2, detach_references=detached, input_dropout=0.0, drop_path=0.0).train()
        torch.nn.init.normal_(model.sparse.span[-1].weight, generator=torch.Generator().manual_seed(0))
        moments = model.forward(**inputs([9, 4], [3, 5], layers=2)).span_KBM2
        moments[-1].sum().backward()
        found.append((moments.detach(), model.sparse.span[-1].bias.grad))
    (detached, taught_less), (attached, taught) = found
    assert torch.equal(detached, attached)
    assert not torch.allclose(taught_less, taught, rtol=0.01)


def test_the_context_of_rdsa_is_of_a_channel_or_of_all():
    one, all_of_them = (build(rdsa_context=context) for context in ("depthwise", "full"))
    assert all_of_them.sparse.sample.context.weight.shape == (SMALL.width, SMALL.width, 3)
    assert parameter_count(all_of_them) - parameter_count(one) == 3 * SMALL.width * (SMALL.width - 1)
    out = ground(all_of_them, inputs([5, 2], [3, 1], layers=all_of_them.config.layers))
    assert all(torch.isfinite(x).all() for x in out)


def test_the_queries_of_rdsa_may_know_where_their_clips_are():
    """Equal clips tell RDSA's queries nothing else: in one video of them all moments then look alike, or do not."""
    for placed in (False, True):
        model = build(rdsa_position=placed)
        dense = torch.ones(1, 9, SMALL.width)
        reference = torch.tensor([[[0.3, 0.2], [0.6, 0.2], [0.5, 0.2], [0.4, 0.2], [0.5, 0.3]]])
        offsets = []
        model.sparse.sample.offset.register_forward_hook(lambda module, given, out, kept=offsets: kept.append(out))
        torch.nn.init.normal_(model.sparse.sample.offset.weight, generator=torch.Generator().manual_seed(0))
        masks = Masks(torch.ones(1, 9, dtype=torch.bool), torch.ones(1, 1), torch.tensor([9], dtype=torch.int32))
        position = torch.randn(1, 9, SMALL.width, generator=torch.Generator().manual_seed(1))
        model.sparse._look(torch.zeros(1, SMALL.queries, SMALL.width), reference, dense, position, masks)
        assert torch.allclose(offsets[0][0, 0], offsets[0][0, 1], atol=1e-5) is not placed


@pytest.mark.parametrize("attention", KINDS)
def test_narrowest_widths_run(attention):
    """A multiple of the heads and of 4 is enough, odd head widths included."""
    for width, heads in ((4, 1), (12, 4), (36, 3)):
        out = ground(build(attention=attention, width=width, heads=heads), inputs([5, 2], [3, 1]))
        assert out[0].shape == (2, 5, 2)
        assert all(torch.isfinite(x).all() for x in out)


def test_fresh_model_starts_as_said():
    """Gates at a half, spans at the references, a moment in a hundred believed, references on a grid."""
    torch.manual_seed(0)
    model = SDST(SMALL).eval()
    assert not model.dense.gate.any()
    out = model(**inputs([9, 4], [3, 5]))
    centre = (torch.arange(5) + 0.5) / 5
    reference = torch.stack((centre, torch.full((5,), 0.16798)), dim=-1).expand(4, 2, 5, 2)
    np.testing.assert_allclose(out.span_KBM2.detach(), reference, atol=1e-5)
    assert model.classify.bias.sigmoid().item() == pytest.approx(0.01, rel=1e-6)


def test_references_are_detached_between_steps():
    """A step's spans move the span MLP as if it stood alone: nothing comes back through the references before it."""
    model = build()
    spans = model(**inputs([9], [3])).span_KBM2
    bias = model.sparse.span[-1].bias
    for step in range(4):
        (gradient,) = torch.autograd.grad(spans[step].sum(), bias, retain_graph=True)
        slope = (spans[step] * (1 - spans[step])).sum((0, 1))  # of a sigmoid, once and not once for each step so far
        np.testing.assert_allclose(gradient, slope.detach(), rtol=1e-5)


def test_actionness_gives_no_gradient_to_spans():
    model = build()
    out = model(**inputs([9], [3]))
    assert torch.autograd.grad(out.actionness_BM.sum(), model.sparse.span[-1].bias, allow_unused=True)[0] is None


# --- what never changes a result -------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"attention": kind} for kind in KINDS] + [{"query_init": "pure"}], ids=str)
def test_padding_and_company_change_nothing(changes):
    """Each sample alone and unpadded gives what it gives in a batch beside longer ones, with NaN as padding."""
    model = build(**changes)
    clips, tokens = [5, 21, 1, 12], [7, 2, 4, 1]
    batch = inputs(clips, tokens)
    spans, scores, salient = ground(model, batch)
    for i, (n, length) in enumerate(zip(clips, tokens, strict=True)):
        alone = {
            "video": batch["video"][i : i + 1, :n],
            "video_mask": batch["video_mask"][i : i + 1, :n],
            "text": batch["text"][i : i + 1, :, :length],
            "text_mask": batch["text_mask"][i : i + 1, :length],
        }
        expected = ground(model, alone)
        assert distance(expected, [spans[i : i + 1], scores[i : i + 1], salient[i : i + 1, :n]]) < 1e-5
        assert (salient[i, n:] == -1).all()
    assert spans.std() > 0.05
    assert scores.std() > 0.005
    assert salient[1].std() > 0.01


def test_samples_do_not_see_each_other():
    """Another companion, the same answer; another order, the same answers in that order."""
    model = build()
    batch, other = inputs([9, 9, 9], [4, 4, 4]), inputs([9, 9, 9], [4, 4, 4], seed=1)
    mixed = {name: torch.cat((batch[name][:1], other[name][1:])) for name in batch}
    first, second = ground(model, batch), ground(model, mixed)
    assert distance([x[:1] for x in first], [x[:1] for x in second]) < 1e-6
    assert distance([x[1:] for x in first], [x[1:] for x in second]) > 1e-2
    turned = ground(model, {name: x[[2, 0, 1]] for name, x in batch.items()})
    assert distance([x[[2, 0, 1]] for x in first], turned) < 1e-6


@pytest.mark.parametrize("changes", [{}, {"query_init": "pure"}, {"feature_mode": "last_repeat"}, {"points": 1}])
def test_lowered_equals_factored(changes):
    model = build(**changes).double()
    batch = double(inputs([14, 3, 1], [4, 6, 2]))
    expected = ground(model, batch)
    before = copy.deepcopy(model)
    lowered = model.lower()
    assert isinstance(lowered.sparse.sample, LoweredRDSA)
    out = ground(lowered, batch)
    assert all(x.dtype == torch.float64 for x in out)
    assert distance(out, expected) < 1e-12
    assert distance(ground(before, batch), expected) == 0


def test_lowering_leaves_other_attention_alone():
    for kind in ("deformable_ca", "full_ca"):
        model = build(attention=kind)
        sample = model.sparse.sample
        assert model.lower().sparse.sample is sample


# --- features --------------------------------------------------------------------------------------------------------


def test_surplus_layers_are_the_shallow_ones():
    """A model of K = 2 on features of 4 layers reads the last two, deep layer last."""
    model, batch = build(layers=2), inputs([9, 4], [3, 5])
    last_two = dict(batch, video=batch["video"][:, :, -2:], text=batch["text"][:, -2:])
    assert distance(ground(model, batch), ground(model, last_two)) == 0
    first_two = dict(batch, video=batch["video"][:, :, :2], text=batch["text"][:, :2])
    assert distance(ground(model, batch), ground(model, first_two)) > 1e-2


def test_reversed_order_reads_deep_layers_first():
    batch = inputs([9, 4], [3, 5])
    flipped = dict(batch, video=batch["video"].flip(2), text=batch["text"].flip(1))
    forward, backward = build(), build(layer_order="reversed")
    assert distance(ground(backward, batch), ground(forward, flipped)) < 1e-6
    assert distance(ground(backward, batch), ground(forward, batch)) > 1e-2


def test_last_repeat_reads_only_the_last_layer():
    model, batch = build(feature_mode="last_repeat"), inputs([9, 4], [3, 5])
    last = dict(
        batch, video=batch["video"][:, :, -1:].expand(-1, -1, 4, -1), text=batch["text"][:, -1:].expand(-1, 4, -1, -1)
    )
    assert distance(ground(model, batch), ground(build(), last)) < 1e-6
    only = dict(batch, video=batch["video"][:, :, -1:], text=batch["text"][:, -1:])
    assert distance(ground(model, batch), ground(model, only)) < 1e-6


def test_gates_mix_dense_and_layer():
    """raw: gate 1 in every step after the first ignores the later layers of the video; gate 0 forgets the earlier."""
    batch = inputs([9], [3])
    changed = dict(batch, video=torch.cat((batch["video"][:, :, :1], batch["video"][:, :, 1:] + 1.7), dim=2))
    model = build(gate="raw")
    with torch.no_grad():
        model.dense.gate.copy_(torch.tensor([0.0, 1, 1, 1]))
        assert distance(ground(model, batch), ground(model, changed)) < 1e-6
        model.dense.gate.copy_(torch.tensor([0.0, 1, 1, 0.5]))
        assert distance(ground(model, batch), ground(model, changed)) > 1e-4
        smooth = build(gate="sigmoid")
        smooth.load_state_dict(model.state_dict())
        model.dense.gate.copy_(smooth.dense.gate.sigmoid())
        assert distance(ground(model, batch), ground(smooth, batch)) < 1e-6


def test_saliency_is_the_cosine_with_the_pooled_text():
    model, batch = build(), inputs([6], [3])
    with torch.no_grad():
        out = model(**batch)
    sentence = out.text_KBF[-1, 0].double().numpy()
    dense = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(0))
    d = dense[0].double().numpy()
    literal = d @ sentence / np.linalg.norm(d, axis=1) / np.linalg.norm(sentence)
    np.testing.assert_allclose(saliency(dense, out.text_KBF[-1])[0], literal, atol=1e-6)
    assert (out.saliency_BT.abs() <= 1 + 1e-6).all()
    # pooling: softmax over tokens of a bias-free linear map of the projected tokens
    with torch.no_grad():
        tokens = model.project_text(batch["text"][0, -1]).double().numpy()
    score = tokens @ model.text_pool.weight.weight[0].detach().double().numpy()
    weight = np.exp(score) / np.exp(score).sum()
    np.testing.assert_allclose(out.text_KBF[-1, 0], weight @ tokens, atol=1e-5)


def test_actionness_reads_the_window_widened_by_half():
    """16 bins over 1.5 widths around the centre, zero outside the video: on a ramp, their positions themselves."""
    head = Actionness(1)
    seen = {}
    head.mlp = torch.nn.Identity()
    head.mlp.forward = lambda rows: seen.setdefault("rows", rows)[..., :1]
    ramp = torch.arange(40.0)[None, :, None]
    head(ramp, torch.tensor([[[0.5, 0.2], [0.0, 0.2]]]), torch.tensor([40], dtype=torch.int32))
    bins = (np.arange(16) + 0.5) / 16 - 0.5
    np.testing.assert_allclose(seen["rows"][0, 0], (0.5 + 1.5 * 0.2 * bins) * 40 - 0.5, rtol=1e-5)
    at_start = (1.5 * 0.2 * bins) * 40 - 0.5
    assert not seen["rows"][0, 1].numpy()[at_start <= -1].any()
    np.testing.assert_allclose(seen["rows"][0, 1].numpy()[at_start > 0], at_start[at_start > 0], rtol=1e-5)


@pytest.mark.parametrize("attention", KINDS)
def test_steps_together_are_the_steps_apart(attention):
    """The text is projected, pooled and moments are classified for all steps at once; here a step at a time."""
    model, batch = build(attention=attention).train(), inputs([9, 4], [3, 5])
    torch.manual_seed(3)  # the same random residual branches
    out = model(**batch)
    torch.manual_seed(3)
    masks = Masks(batch["video_mask"], batch["text_mask"], batch["video_mask"].sum(1, dtype=torch.int32))
    projected_KBTF = model.project(batch["video"], masks.video_BT).permute(2, 0, 1, 3)
    texts_KBLF = model._project_text(batch["text"], masks.text_BL)
    position = model._clip_positions(masks.video_BT, masks.length_B)
    dense = hidden = reference = None
    for step, (video, text) in enumerate(zip(projected_KBTF, texts_KBLF, strict=True)):
        dense = model.dense(step, dense, video, position, model.dense.cross.keys_values(text, text), masks)
        if hidden is None or reference is None:
            hidden, reference = model.sparse.start(dense, masks)
        of_text = model.sparse.cross.keys_values(text, text)
        hidden, reference = model.sparse(
            hidden, reference.detach() if step else reference, dense, position, of_text, masks
        )
        close = {"rtol": 1e-6, "atol": 1e-6}
        torch.testing.assert_close(out.logit_KBM[step], model.classify(hidden).squeeze(-1), **close)
        torch.testing.assert_close(out.span_KBM2[step], reference.sigmoid(), **close)
        torch.testing.assert_close(out.text_KBF[step], model.text_pool(text, masks.text_BL), **close)
    assert dense is not None
    torch.testing.assert_close(out.saliency_BT, saliency(dense, out.text_KBF[-1]), rtol=1e-6, atol=1e-6)


def test_scores_are_class_times_actionness():
    model, batch = build(), inputs([9, 4], [3, 5])
    spans, scores, _ = ground(model, batch)
    with torch.no_grad():
        out: Outputs = model(**batch)
    centre, width = out.span_KBM2[-1].numpy().transpose(2, 0, 1)
    start_end = np.stack((centre - width / 2, centre + width / 2), axis=-1)
    np.testing.assert_allclose(spans, np.clip(start_end, 0, 1), atol=1e-6)
    assert ((start_end < 0) | (start_end > 1)).any()
    np.testing.assert_allclose(scores, out.logit_KBM[-1].sigmoid() * out.actionness_BM, atol=1e-6)


# --- half types ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "near"), [(torch.float16, 0.02), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("lowered", [False, True])
def test_half_models_stay_near(kind, near, lowered):
    """Weights and features in a half type; moments, scores and saliency come out in float32 near the full ones."""
    model, batch = build(), inputs([14, 3], [4, 6])
    expected = ground(model, batch)
    small = {name: x.to(kind) if x.is_floating_point() else x for name, x in batch.items()}
    half = copy.deepcopy(model).to(kind)
    out = ground(half.lower() if lowered else half, small)
    assert all(x.dtype == torch.float32 for x in out)
    assert distance(out, expected) < near


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_models_keep_coordinates_in_float32(kind, monkeypatch):
    seen = []
    model = build().to(kind)
    look = model.sparse._look
    monkeypatch.setattr(model.sparse, "_look", lambda *args: (seen.append(args[1].dtype), look(*args))[1])
    small = {name: x.to(kind) if x.is_floating_point() else x for name, x in inputs([9], [3]).items()}
    with torch.no_grad():
        out = model(**small)
    assert seen == [torch.float32] * 4
    assert out.span_KBM2.dtype == out.actionness_BM.dtype == out.saliency_BT.dtype == torch.float32
    assert out.video_KBTF.dtype == kind


# --- parts -----------------------------------------------------------------------------------------------------------


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    layer, x = DropPath(0.25), torch.rand(4000, 3, 2) + 0.5
    out = layer.train()(x)
    kept = out.flatten(1).any(1)
    assert not out[~kept].any()
    np.testing.assert_allclose(out[kept], x[kept] / 0.75, rtol=1e-6)
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.03)
    assert torch.equal(layer.eval()(x), x)


def test_switches_make_different_models():
    """No switch is decoration: from the same weights every two settings give different answers."""
    batch = inputs([9, 4], [3, 5])
    answers = {}
    for mode, order, gate in itertools.product(
        ("intermediate", "last_repeat"), ("forward", "reversed"), ("sigmoid", "raw")
    ):
        if (mode, order) == ("last_repeat", "reversed"):
            continue  # the same layer every time: no order
        answers[mode, order, gate] = ground(build(feature_mode=mode, layer_order=order, gate=gate), batch)
    for a, b in itertools.combinations(answers.values(), 2):
        assert distance(a, b) > 1e-3
