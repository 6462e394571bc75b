"""`sdst bench`: what is timed, what is said where nothing is, and the page. No test looks at a time."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import faults, opened
from engine_files import SPEC, plan_bytes
from mocked_rtx import rtx_sidecar

from sdst.bench import _failures
from sdst.bench_variants import _gpu_bytes, candidates, open_candidate, parse_kinds
from sdst.cli import main
from sdst_runtime.bench.measure import (
    Benchmark,
    Footprint,
    Shape,
    Throughput,
    Timing,
    _calls_in,
    as_json,
    head_inputs,
    interleave,
    make_inputs,
    measure,
    shapes_of,
    throughput,
    time_stage,
)
from sdst_runtime.bench.page import render_page, write_page
from sdst_runtime.errors import DependencyError, InputError
from sdst_runtime.files import sha256_file
from sdst_runtime.grounding.bundle import MODELS, Bundle, write_manifest
from sdst_runtime.machine import clocks, gpus, load, load_warning, memory_bytes, peak_memory_bytes
from sdst_runtime.sessions.tensorrt.sidecar import write_sidecar

SHAPE = Shape(2, 9, 3, 5)


@pytest.fixture(scope="module")
def bundle(exported) -> Bundle:
    return Bundle.open(exported.directory)


def test_every_round_runs_each_variant_once_and_no_sample_is_lost():
    order = []
    samples = interleave(
        {name: lambda name=name: order.append(name) for name in "abc"}, seconds=0, warm_up_s=0, least=7
    )
    assert "".join(order) == "abc" * 10  # three rounds to warm up
    assert {name: len(seconds) for name, seconds in samples.items()} == {"a": 7, "b": 7, "c": 7}


def test_percentiles_are_of_all_samples():
    timing = Timing("v", "head", SHAPE, tuple(np.arange(101) / 1000))
    assert [timing.percentile_ms(p) for p in (50, 90, 99)] == pytest.approx([50, 90, 99])
    assert Timing("v", "head", SHAPE, reason="why").percentile_ms(50) is None


def test_inputs_are_those_of_the_bundles_models(bundle):
    inputs = make_inputs(bundle.manifest.spec, SHAPE, vocabulary=50)
    sessions = {model: bundle.session(model, threads=1) for model in ("vision", "text", "projection", "head")}
    outputs = {model: sessions[model].run(inputs[model]) for model in ("vision", "text", "projection")}
    given = head_inputs(sessions, inputs, SHAPE.queries)
    outputs["head"] = sessions["head"].run(given)
    assert outputs["vision"]["features"].shape == (16, 2, 12)
    assert outputs["text"]["features"].shape == (6, 2, 5, 16)
    assert outputs["projection"]["projected"].shape == (2, 9, 2, 32)
    assert outputs["head"]["saliency"].shape == (6, 9)
    assert inputs["text"]["token_ids"].min() >= 0
    assert inputs["text"]["token_ids"].max() < 50
    for row in range(6):  # three sentences about the first video, three about the second
        np.testing.assert_array_equal(given["projected"][row], outputs["projection"]["projected"][row // 3])


def test_shapes_are_every_combination():
    assert shapes_of((1, 2), (75,), (1, 10), 20) == (
        Shape(1, 75, 1, 20), Shape(1, 75, 10, 20), Shape(2, 75, 1, 20), Shape(2, 75, 10, 20),
    )  # fmt: skip


def test_streams_count_the_calls_of_all_threads(bundle):
    sessions = {model: bundle.session(model, threads=1) for model in ("projection", "head")}
    inputs = head_inputs(sessions, make_inputs(bundle.manifest.spec, SHAPE, 50), SHAPE.queries)
    seen, lock = [], threading.Lock()

    class Counted:
        def run(self, given):
            with lock:
                seen.append(threading.get_ident())
            return sessions["head"].run(given)

    count, seconds = _calls_in(Counted(), inputs, 3, 0.05)
    assert count == len(seen)
    assert len(set(seen)) == 3
    assert seconds >= 0.05


def test_a_failure_in_a_stream_is_raised(bundle):
    head = bundle.session("head", threads=1)
    with pytest.raises(InputError, match="expected inputs"):
        _calls_in(head, {}, 2, 0.05)


class Limited:
    """A real session with the limit of an engine: no more than `most` rows; keeps what was done with it."""

    def __init__(self, session, most: int):
        self.session, self.most, self.done, self.lock = session, most, [], threading.Lock()

    def warm_up(self):
        self.done.append("warm up")

    def run(self, inputs):
        with self.lock:
            self.done.append(threading.get_ident())
        rows = len(next(iter(inputs.values())))
        if rows > self.most:
            raise InputError(f"{rows} rows lie outside every profile")
        return self.session.run(inputs)


def limited(bundle, most: int) -> dict[str, Limited]:
    return {model: Limited(bundle.session(model, threads=1), most) for model in ("projection", "head")}


def test_a_shape_that_one_variant_does_not_take_is_a_reason(bundle):
    variants = {"wide": limited(bundle, 6), "narrow": limited(bundle, 2), "least": limited(bundle, 1)}
    inputs, given = make_inputs(bundle.manifest.spec, SHAPE, 50), (SHAPE, SHAPE.queries, 0, 0)
    projections = time_stage("projection", variants, {}, inputs, *given)
    heads = time_stage("head", variants, {}, inputs, *given)
    rates = throughput(variants, inputs, SHAPE, 2, 0.01)
    assert [(len(timing.seconds), timing.reason) for timing in projections] == [
        (5, ""), (5, ""), (0, "2 rows lie outside every profile"),
    ]  # fmt: skip
    why = ["", "6 rows lie outside every profile", "2 rows lie outside every profile"]  # the last's projection
    assert [(len(timing.seconds), timing.reason) for timing in heads] == list(zip((5, 0, 0), why, strict=True))
    assert [rate.reason for rate in rates] == why
    assert rates[0].queries_per_s
    assert [rate.queries_per_s for rate in rates[1:]] == [None, None]
    variants = dict.fromkeys(("wide", "narrow", "least"), "TensorRT")
    said = _failures(dataclasses.replace(small_benchmark(), variants=variants, timings=tuple(heads), throughputs=()))
    assert said == [
        f"{name}: not measured: head: {reason}" for name, reason in zip(("narrow", "least"), why[1:], strict=True)
    ]


def test_a_variant_that_fails_midway_has_no_samples():
    calls = iter(range(100))

    def fails():
        if next(calls) == 5:
            raise InputError("no more")

    samples, errors = measure({"sound": lambda: None, "failing": fails}, seconds=0, warm_up_s=0, least=7)
    assert {name: len(seconds) for name, seconds in samples.items()} == {"sound": 7}
    assert {name: str(error) for name, error in errors.items()} == {"failing": "no more"}
    with pytest.raises(InputError, match="no more"):
        interleave({"failing": fails_at_once}, seconds=0, warm_up_s=0)


def fails_at_once():
    raise InputError("no more")


def test_sentences_a_second_do_not_count_what_is_done_once(bundle):
    variant = limited(bundle, 6)
    head = variant["head"]
    throughput({"one": variant}, make_inputs(bundle.manifest.spec, SHAPE, 50), SHAPE, 3, 0)
    assert head.done[0] == "warm up"
    assert len(head.done) == 1 + 3 * 3 + 4 * 3  # three calls a thread, then four slices of one call a thread
    assert sorted(head.done[1:10].count(thread) for thread in set(head.done[1:10])) == [3, 3, 3]


def small_benchmark() -> Benchmark:
    return Benchmark(
        machine=(("processor", "a <fast> one"),),
        clocks=(("before", "CPU 2000 MHz"), ("after", "not measured")),
        sha256={"b/head.onnx": "ab12"},
        variants={"fast": "ONNX Runtime", "absent": "not measured: needs a GPU"},
        timings=(
            Timing("PyAV", "decode", None, reason="give --video FILE"),
            Timing("fast", "text", SHAPE, (0.001, 0.002, 0.003)),
            Timing("fast", "projection", SHAPE, (0.004,)),
            Timing("fast", "head", SHAPE, (0.010, 0.020, 0.030)),
            Timing("absent", "head", SHAPE, reason="needs a GPU"),
        ),
        throughputs=(Throughput("fast", 2, SHAPE, 123.4), Throughput("absent", 2, SHAPE, reason="needs a GPU")),
        footprints=(
            Footprint("fast", {"head.onnx": 15_000_000, "text.onnx": 3_000_000}, 42_000_000, None, "no GPU"),
            Footprint("absent", {}, None, None, "needs a GPU"),
        ),
    )  # fmt: skip


def test_json_holds_every_sample_and_every_reason():
    found = json.loads(json.dumps(as_json(small_benchmark())))
    decode, text, _, head, absent = found["timings"]
    assert decode["not measured"] == "give --video FILE"
    assert (decode["p50_ms"], decode["seconds"]) == (None, [])
    assert text["seconds"] == [0.001, 0.002, 0.003]
    assert head["p50_ms"] == pytest.approx(20)
    assert head["p99_ms"] == pytest.approx(29.8)
    assert {key: head[key] for key in ("batch", "clips", "queries", "tokens")} == {
        "batch": 2, "clips": 9, "queries": 3, "tokens": 5,
    }  # fmt: skip
    assert "not measured" not in head
    assert absent["not measured"] == "needs a GPU"
    assert [row["queries_per_s"] for row in found["throughput"]] == [123.4, None]
    assert found["footprints"][0]["files"] == {"head.onnx": 15_000_000, "text.onnx": 3_000_000}


def test_page_shows_numbers_sums_and_reasons():
    page = render_page(small_benchmark())
    assert "a &lt;fast&gt; one" in page
    assert "<fast>" not in page
    assert "2 videos, 9 clips, 3 sentences, 5 tokens: from features to moments" in page
    sums = re.search(
        r"fast</td>\s*<td class=\"n\">(\S+)</td>\s*<td class=\"n\">(\S+)</td>\s*<td class=\"n\">(\S+)</td>", page
    )
    assert sums
    assert sums.groups() == ("26.0", "22.0", "24.0")  # projection 4, text 2, head 20
    bars = re.findall(r'<rect class="fill" width="([\d.]+)%"', page)
    assert "67.11" in bars  # p50 of the head 20 of its p99 29.8
    assert page.count("needs a GPU") >= 4
    assert "give --video FILE" in page
    assert "123" in page
    assert "head.onnx 15.0, text.onnx 3.00; no GPU" in page
    assert "http" not in page.replace("http-equiv", "")


LOADED = "9.0 processes wanted 2 cores when this began: times mean little"


@pytest.mark.parametrize(
    ("average", "cores", "said"),
    [
        (9.04, 2, LOADED),
        (1.26, 1, "1.3 processes wanted 1 core when this began: times mean little"),
        (2.0, 2, ""),
        (0.5, 2, ""),
        (9.0, 64, ""),
    ],
)
def test_a_load_above_the_cores_is_a_warning(monkeypatch, average, cores, said):
    monkeypatch.setattr("os.getloadavg", lambda: (average, 0.0, 0.0))
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    assert load_warning() == said


def test_no_load_is_no_warning(monkeypatch):
    monkeypatch.delattr("os.getloadavg")  # Windows
    assert load_warning() == ""
    assert load() == ""


def test_the_load_stands_on_the_page_and_in_the_json():
    loaded = replace(small_benchmark(), warnings=(LOADED,))
    assert f'<p class="warning">{LOADED}</p>' in render_page(loaded)
    assert 'class="warning"' not in render_page(small_benchmark())
    assert (as_json(loaded)["warnings"], as_json(small_benchmark())["warnings"]) == ([LOADED], [])


def test_the_page_is_readable_on_a_phone(browser, tmp_path):
    long = replace(
        small_benchmark(),
        machine=(("processor", "a <fast> one of many words and a_name_without_a_single_space_in_it_to_break_at"),),
        variants={":smile: [bold]fast[/bold] <b>": "ONNX Runtime, " + "/a/path" * 20},
        warnings=(LOADED,),
    )
    write_page(tmp_path / "bench.html", long)
    assert ":smile: [bold]fast[/bold] &lt;b&gt;" in (tmp_path / "bench.html").read_text()
    for width in (390, 800, 1280):
        with opened(browser, tmp_path / "bench.html", width) as tab:
            assert faults(tab) == []


def test_names_of_variants():
    assert parse_kinds("torch, trt,torch") == ("torch", "trt")
    assert parse_kinds("") == ()
    with pytest.raises(InputError, match="expected some of torch,compile,onnxrt,trt,trt-no-plugin, got 'tensorrt'"):
        parse_kinds("torch,tensorrt")


def test_two_bundles_of_one_name_are_told_apart(exported, tmp_path):
    other = Bundle.open(shutil.copytree(exported.directory, tmp_path / exported.directory.name))
    found = candidates([Bundle.open(exported.directory), other], ["compile", "trt"], None, 1, 1)
    assert [one.name for one in found] == [
        f"onnxrt bundle in {exported.directory}", f"onnxrt bundle in {other.directory}", "torch.compile", "trt",
    ]  # fmt: skip
    assert [bool(one.reason) for one in found] == [False, False, True, True]
    assert "--checkpoint" in found[2].reason
    assert "sdst build" in found[3].reason
    (absent,) = candidates([], ["trt-no-plugin"], None, 1, 1)
    assert "cannot make these yet" in absent.reason


def test_engines_for_rtx_are_told_from_those_of_tensorrt(tmp_path):
    bundles = []
    for target in ("tensorrt", "rtx"):
        (folder := tmp_path / target).mkdir()
        for model in MODELS:
            (folder / f"{model}.plan").write_bytes(plan_bytes())
            write_sidecar(folder / f"{model}.plan", rtx_sidecar(target=target))
        (folder / "tokenizer.json").write_text("{}")
        sidecars = [f"{model}.plan.json" for model in MODELS]
        bundles.append(write_manifest(folder, SPEC, {model: f"{model}.plan" for model in MODELS}, "0.1.0", sidecars))
    found = candidates(bundles, ["trt"], None, 1, 1)
    assert [one.name for one in found] == ["trt tensorrt", "trt tensorrt, CUDA graph", "rtx rtx", "rtx rtx, CUDA graph"]
    assert [one.what.split(",")[0] for one in found] == ["TensorRT"] * 2 + ["TensorRT for RTX"] * 2
    with pytest.raises(DependencyError, match=r"TensorRT for RTX|pycuda"):
        open_candidate(found[2])


def test_bench_on_the_command_line(capsys, exported, video, tmp_path):
    code = main([
        "bench", str(exported.directory), "--against", "torch,trt,trt-no-plugin", "--checkpoint",
        str(exported.checkpoint_path), "--video", str(video), "--clips", "6", "9", "--queries", "2", "--tokens", "5",
        "--streams", "2", "--seconds", "0.01", "--warm-up", "0", "--threads", "1", "--out", str(tmp_path / "out"),
    ])  # fmt: skip
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert out.strip().endswith("bench.html")
    found = json.loads((tmp_path / "out" / "bench.json").read_text())
    variants = ["onnxrt bundle", "torch eager", "torch kernel", "torch kernel, CUDA graph", "trt", "trt-no-plugin"]
    assert list(found["variants"]) == variants
    rows = {(row["variant"], row["stage"], row.get("clips")): row for row in found["timings"]}
    wanted = {(v, stage, T) for v in variants for stage in ("text", "projection", "head") for T in (6, 9)}
    wanted |= {(v, stage, None) for v in variants for stage in ("vision", "copy")} | {("PyAV", "decode", None)}
    assert set(rows) == wanted
    measured = {key for key, row in rows.items() if row["seconds"]}
    assert {key for key in measured if key[0] == "onnxrt bundle"} == {
        key for key in wanted if key[0] == "onnxrt bundle" and key[1] != "copy"
    }
    assert {key[1] for key in measured if key[0] == "torch eager"} == {"projection", "head"}
    assert ("PyAV", "decode", None) in measured
    assert not [key for key in measured if key[0].startswith("trt")]
    assert all(row["seconds"] or row["not measured"] for row in rows.values())
    by_name = {row["variant"]: row for row in found["footprints"]}
    assert by_name["onnxrt bundle"]["files"]["head.onnx"] == (exported.directory / "head.onnx").stat().st_size
    assert by_name["onnxrt bundle"]["memory_bytes"] > 1e6
    assert by_name["trt"]["memory_bytes"] is None
    assert found["sha256"][str(exported.checkpoint_path)] == sha256_file(exported.checkpoint_path)
    assert found["sha256"][str(exported.directory / "head.onnx")] == sha256_file(exported.directory / "head.onnx")
    assert "torch eager" in (tmp_path / "out" / "bench.html").read_text()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--against", "tensorrt"], "--against: expected some of"),
        (["--batch", "0"], "--batch: expected numbers of at least 1, got 0"),
        (["--tokens", "99"], "--tokens: expected at most 24, which the bundle takes, got 99"),
        (["--seconds", "0"], "--seconds, --warm-up: expected above 0 and at least 0, got 0 and 1"),
    ],
)
def test_bad_options(capsys, exported, options, says):
    assert main(["bench", str(exported.directory), *options]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert says in err


def test_what_the_machine_tells(monkeypatch, tmp_path):
    """A stand-in for nvidia-smi, as one with two GPUs answers; the second shares its memory with the host."""
    tool = tmp_path / "nvidia-smi"
    tools = (
        "#!/bin/sh\necho 'NVIDIA H200, 580.65.06, 9.0, 143771, 12, 1980, 3201, 31'\n"
        "echo 'Orin, 540.4.0, 8.7, [N/A], [N/A], 306, [N/A], 48'\n"
    )
    tool.write_text(tools)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    first, second = gpus()
    assert (first.name, first.driver, first.capability) == ("NVIDIA H200", "580.65.06", "9.0")
    assert (first.memory_mib, first.used_mib, first.sm_mhz) == (143771, 12, "1980")
    assert (second.memory_mib, second.used_mib) == (None, None)
    assert _gpu_bytes() == 12 * 2**20
    tool.write_text("#!/bin/sh\necho 'Orin, 540.4.0, 8.7, [N/A], [N/A], 306, [N/A], 48'\n")
    assert _gpu_bytes() is None
    tool.write_text(tools)
    assert clocks().startswith("NVIDIA H200: SM 1980 MHz, memory 3201 MHz, 31 °C; Orin: SM 306 MHz")
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert gpus() == []


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's /proc")
def test_memory_counts_what_was_held():
    before = memory_bytes()
    held = np.ones(40_000_000, np.uint8)
    grown, peak = memory_bytes(), peak_memory_bytes()
    assert before is not None
    assert grown is not None
    assert peak is not None
    assert grown - before > 0.9 * held.nbytes
    assert peak >= grown
