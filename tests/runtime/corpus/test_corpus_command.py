"""`sdst corpus`: index and ask as commands, with a random bundle on videos of noise; killed, changed and damaged."""

from __future__ import annotations

import csv
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, fields
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from conftest import write_noise
from present_world import calibrated
from processes import alive, wait_until

from sdst.cli import main
from sdst_runtime import Grounder
from sdst_runtime.corpus.ask import AskListener, Corpus, Row
from sdst_runtime.corpus.store import FACTS, Store, claimed
from sdst_runtime.errors import ContractError, InputError
from sdst_runtime.grounding.bundle import Bundle, write_manifest
from sdst_runtime.grounding.scores import MomentLine, PresenceLine
from sdst_runtime.sessions.base import GROUNDER_MODELS

RAY_S = 300  # for a command with Ray, which takes 25 s on a busy machine
SENTENCES = ("when does the red circle move to the left?", "a blue square spins")
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux: /proc, and its end of processes")


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Twelve videos of noise, 2 to 13 s."""
    folder = tmp_path_factory.mktemp("videos")
    for i in range(12):
        write_noise(folder / f"v{i:02d}.mp4", seed=i, frames=20 + 10 * i)
    return folder


@pytest.fixture(scope="module")
def indexed(videos, exported, tmp_path_factory) -> Path:
    """The store of them that nobody disturbed. Tests that change it take a copy."""
    out = tmp_path_factory.mktemp("indexed") / "store"
    assert index(videos, exported.directory, out) == 0
    return out


def index(videos: Path, bundle: Path, out: Path, *more: str) -> int:
    return main(["corpus", "index", str(videos), "--bundle", str(bundle), "--out", str(out), *more])


def copied(store: Path, tmp_path: Path) -> Path:
    return shutil.copytree(store, tmp_path / "store")


def content(store: Path) -> dict[str, bytes]:
    """The videos' files; what an undisturbed run makes of the same videos."""
    return {path.name: path.read_bytes() for path in sorted((store / "videos").iterdir())}


def rows_of(store: Path) -> list[Row]:
    with Corpus.open(store, threads=1) as corpus:
        return corpus.ask(SENTENCES, top=12)


# ---------------------------------------------------------------- what it says


def test_rows_are_in_order_of_alignment_with_the_moments_of_the_grounder(indexed, videos, exported):
    with Corpus.open(indexed, threads=1) as corpus, Grounder.load(exported.directory, threads=1) as grounder:
        rows = corpus.ask(SENTENCES, top=5)
        sentences = corpus.sentences(SENTENCES)
        assert [(row.query, row.rank) for row in rows] == [(query, rank) for query in SENTENCES for rank in range(1, 6)]
        for number, query in enumerate(SENTENCES):
            expected = {}
            for path in sorted(videos.iterdir()):
                encoded = grounder.encode(path)
                clips = np.concatenate(encoded.projected)
                units = clips / np.linalg.norm(clips, axis=-1, keepdims=True)
                moment = grounder.ground(encoded, query).moments[0]
                expected[path.stem] = (float(np.einsum("nkf,kf->nk", units, sentences[number]).mean(1).max()), moment)
            order = sorted(expected, key=lambda vid: -expected[vid][0])
            mine = [row for row in rows if row.query == query]
            assert len({row.video for row in mine}) == 5
            for row in mine:
                aligned, moment = expected[row.video]
                assert abs(row.alignment - aligned) < 0.01  # vectors are int8
                found = (row.start_s, row.end_s, row.score)
                np.testing.assert_allclose(found, (moment.start_s, moment.end_s, moment.score), atol=0.02)  # float16
            worst = min(expected[row.video][0] for row in mine)
            assert worst > expected[order[5]][0] - 0.02
            assert [row.alignment for row in mine] == sorted((row.alignment for row in mine), reverse=True)


def test_the_command_prints_a_table_and_writes_the_same_rows(indexed, tmp_path, capsys):
    out = tmp_path / "rows.json"
    assert main(["corpus", "ask", str(indexed), *SENTENCES, "--top", "3", "--out", str(out), "--threads", "1"]) == 0
    shown, rows = capsys.readouterr().out, json.loads(out.read_text())
    assert len(rows) == 6
    assert set(rows[0]) == {field.name for field in fields(Row)}
    for row in rows:
        assert row["video"] in shown
        assert f"{row['alignment']:.3f}" in shown
    assert main(["corpus", "ask", str(indexed), *SENTENCES, "--top", "3", "--json", "--threads", "1"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows
    table = tmp_path / "rows.csv"
    assert main(["corpus", "ask", str(indexed), *SENTENCES, "--top", "3", "--out", str(table), "--threads", "1"]) == 0
    with table.open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["presence"] for row in rows] == [None] * 6
    assert [text.pop("presence") for text in read] == [""] * 6
    some = [{name: value for name, value in row.items() if name != "presence"} for row in rows]
    assert [{name: type(row[name])(text[name]) for name in row} for row, text in zip(some, read, strict=True)] == some


def test_rows_as_parquet(indexed, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow: pip install '.[corpus]'")
    out = tmp_path / "rows.parquet"
    assert main(["corpus", "ask", str(indexed), *SENTENCES, "--out", str(out), "--threads", "1"]) == 0
    table = parquet.read_table(out)
    assert table.column_names == [field.name for field in fields(Row)]
    assert [Row(**row) for row in table.to_pylist()] == rows_of(indexed)


def test_rows_of_a_bundle_that_says_the_presence(indexed, videos, present, tmp_path, capsys):
    """The same store: its projection is the same. As calibrated where it is; the order is that of the alignment."""
    store, line = copied(indexed, tmp_path), PresenceLine(2.0, -1.0)
    bundle = calibrated(present.directory, tmp_path / "calibrated", line, MomentLine(1.5, 0.5, 0.0))
    raw, out = tmp_path / "raw.json", tmp_path / "rows.json"
    ask = ["corpus", "ask", str(store), *SENTENCES, "--top", "3", "--threads", "1"]
    assert main([*ask, "--bundle", str(present.directory), "--out", str(raw)]) == 0
    assert main([*ask, "--bundle", str(bundle.directory), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    rows = [Row(**row) for row in json.loads(out.read_text())]
    with Grounder.load(present.directory, threads=1) as grounder:
        for row, before in zip(rows, json.loads(raw.read_text()), strict=True):
            answer = grounder.ground(videos / f"{row.video}.mp4", row.query)
            assert before["presence"] == pytest.approx(answer.presence, abs=0.02)  # the store is float16
            assert row.presence == pytest.approx(line(before["presence"]))
            assert f"{row.presence:.2f}" in shown
    plain = rows_of(indexed)
    assert [(row.query, row.video) for row in rows] == [(row.query, row.video) for row in plain if row.rank <= 3]
    assert shown.count("presence") == 2 * len(SENTENCES)  # a column of each table
    with Corpus.open(store, bundle.directory, threads=1) as corpus:
        assert corpus.ask(SENTENCES, top=3, workers=2) == rows


def test_rows_written_before_there_was_a_presence():
    old = {"query": "q", "video": "v", "rank": 1, "alignment": 0.5, "start_s": 1.0, "end_s": 2.0, "score": 0.25}
    assert Row(**old).presence is None


# ---------------------------------------------------------------- who does the work

MANY = [f"{SENTENCES[0][:-1]} after a blue square spins {i} times?" for i in range(6)]  # batches of the head: 3


class Heard(AskListener):
    def __init__(self) -> None:
        self.ranks: list[tuple[int, int]] = []
        self.moments: list[tuple[int, int]] = []

    def ranked(self, done: int, total: int) -> None:
        self.ranks.append((done, total))

    def found(self, done: int, total: int) -> None:
        self.moments.append((done, total))


def test_rows_do_not_depend_on_the_number_of_workers(indexed, monkeypatch):
    monkeypatch.setattr("sdst_runtime.corpus.ask.AT_ONCE", 4)
    with Corpus.open(indexed, threads=1) as corpus:
        heard, rows = Heard(), corpus.grounder.most_rows
        alone = corpus.ask(MANY, top=12, listener=heard)
        assert len(alone) == 72 > 2 * rows
        assert heard.ranks == [(4, 6), (6, 6)]
        assert heard.moments == [(min(done, 72), 72) for done in range(rows, 72 + rows, rows)]
        assert corpus.ask(MANY, top=12, workers=2) == alone


@LINUX
@pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install '.[corpus]'")
def test_ray_makes_the_same_store_and_the_same_rows(indexed, videos, exported, tmp_path):
    store, out = tmp_path / "store", tmp_path / "rows.json"
    with start(videos, exported.directory, store, "--engine", "ray") as process:
        said = process.communicate(timeout=RAY_S)[1]
    assert process.returncode == 0, said
    assert "12 videos indexed" in said
    assert content(store) == content(indexed)
    ask = ["corpus", "ask", str(store), *MANY, "--top", "12", "--out", str(out), "--threads", "1"]
    command = [sys.executable, "-m", "sdst", *ask, "--engine", "ray", "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RAY_S, check=False)
    assert done.returncode == 0, done.stderr
    with Corpus.open(indexed, threads=1) as corpus:
        assert json.loads(out.read_text()) == [asdict(row) for row in corpus.ask(MANY, top=12)]


# ---------------------------------------------------------------- what is made again


def test_a_second_run_makes_only_what_is_missing_or_changed(indexed, videos, exported, tmp_path, capsys):
    store, folder = tmp_path / "store", shutil.copytree(videos, tmp_path / "videos")
    assert index(folder, exported.directory, store) == 0
    assert "12 videos indexed" in capsys.readouterr().err
    assert content(store).keys() == content(indexed).keys()
    written = {path.name: path.stat().st_mtime_ns for path in (store / "videos").iterdir()}
    assert index(folder, exported.directory, store) == 0
    assert "0 videos indexed; 12 were there, 0 failed; the store has 12 videos" in capsys.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in (store / "videos").iterdir()} == written
    (store / "videos" / "v03.safetensors").unlink()
    write_noise(folder / "v05.mp4", seed=99, frames=50)
    damaged = store / "videos" / "v07.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    assert index(folder, exported.directory, store) == 0
    said = capsys.readouterr().err
    assert "damaged: " in said
    assert "v07.safetensors: its arrays are not those that were written" in said
    assert "3 videos indexed" in said
    now = {path.name: path.stat().st_mtime_ns for path in (store / "videos").iterdir()}
    assert {name for name in now if now[name] != written[name]} == {f"v{i}.safetensors" for i in ("03", "05", "07")}
    before, after = Store.open(indexed), Store.open(store)
    assert after.read("v05").source != before.read("v05").source
    for vid in ("v03", "v07"):
        np.testing.assert_array_equal(after.read(vid).vectors, before.read(vid).vectors)


def test_other_videos_join_the_store(indexed, exported, tmp_path, capsys):
    store = copied(indexed, tmp_path)
    (tmp_path / "more").mkdir()
    write_noise(tmp_path / "more" / "w.mp4", seed=50)
    assert index(tmp_path / "more", exported.directory, store) == 0
    assert "1 videos indexed" in capsys.readouterr().err
    with Corpus.open(store, threads=1) as corpus:
        assert {row.video for row in corpus.ask(SENTENCES[:1], top=20)} == {"w", *(f"v{i:02d}" for i in range(12))}
    write_noise(tmp_path / "more" / "v01.mp4", seed=51)
    assert index(tmp_path / "more", exported.directory, store) == 2
    assert "are both video 'v01' of the store: rename one or use another store" in capsys.readouterr().err


def test_a_bad_video_is_named_and_the_others_are_done(videos, exported, tmp_path, capsys):
    folder = tmp_path / "videos"
    folder.mkdir()
    shutil.copy(videos / "v00.mp4", folder)
    (folder / "text.mp4").write_text("no video")
    assert index(folder, exported.directory, tmp_path / "store") == 1
    said = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("failed: ") and "text.mp4" in line for line in said) == 1
    assert said[-1] == "error: 1 of 2 videos failed, as said above; the others are done"
    assert Store.open(tmp_path / "store").ids() == ["v00"]
    (folder / "v00.mp4").unlink()
    assert index(folder, exported.directory, tmp_path / "none") == 1
    with pytest.raises(InputError, match=r"has no ranking.json, its indexing did not end"):
        Corpus.open(tmp_path / "none")


# ---------------------------------------------------------------- what is refused


def refused(capsys, code: int) -> str:
    """The one line of an error."""
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_two_runs_at_once_are_refused(indexed, videos, exported, capsys):
    script = "import sys, time; from pathlib import Path; from sdst_runtime.corpus.store import claimed\n"
    script += "with claimed(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script, str(indexed)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert "is in use by another process" in refused(capsys, index(videos, exported.directory, indexed))
        assert len(rows_of(indexed)) == 24  # asking takes no lock
        other.kill()
    with claimed(indexed):  # the lock ended with its process
        pass


def test_a_store_of_another_bundle_is_refused(indexed, videos, exported_fp16, capsys):
    told = refused(capsys, index(videos, exported_fp16, indexed))
    assert "made with projection.onnx" in told or "made with vision.onnx" in told
    assert "index again into another folder" in told
    with pytest.raises(ContractError, match="give the bundle that made the store"):
        Corpus.open(indexed, exported_fp16)


def test_a_bundle_that_has_moved_is_asked_for(indexed, exported, tmp_path, capsys):
    store, moved = copied(indexed, tmp_path), tmp_path / "moved"
    facts = json.loads((store / FACTS).read_text())
    (store / FACTS).write_text(json.dumps(facts | {"bundle": str(moved)}))
    ask = ["corpus", "ask", str(store), *SENTENCES, "--top", "12", "--threads", "1"]
    assert f"its bundle is no longer {moved}; say where it is with --bundle" in refused(capsys, main(ask))
    shutil.copytree(exported.directory, moved)
    assert rows_of(store) == rows_of(indexed)


def test_a_bundle_without_a_sentence_model_is_refused_before_any_work(videos, exported, tmp_path, capsys):
    old = shutil.copytree(exported.directory, tmp_path / "old")
    (old / "sentence.onnx").unlink()
    spec = Bundle.open(exported.directory).manifest.spec
    write_manifest(old, spec, {name: f"{name}.onnx" for name in GROUNDER_MODELS}, "0.1.0")
    assert "export the bundle again" in refused(capsys, index(videos, old, tmp_path / "store"))
    assert not (tmp_path / "store").exists()
    with Grounder.load(old, threads=1) as grounder:
        assert grounder.ground(videos / "v00.mp4", SENTENCES[0]).moments


def test_bad_words_and_places_are_one_line(indexed, videos, exported, tmp_path, capsys):
    place, bundle = str(indexed), exported.directory
    for arguments, told in (
        ((place, SENTENCES[0], "--top", "0"), "top: expected at least 1, got 0"),
        ((place, SENTENCES[0], "--out", str(tmp_path / "x.txt")), "--out: expected a file of .parquet, .json, .csv"),
        ((place, ""), "query"),
        ((str(videos), SENTENCES[0]), "not a store, it has no store.json; make one with sdst corpus index"),
        ((place, SENTENCES[0], "--bundle", str(videos)), "not a bundle"),
    ):
        assert told in refused(capsys, main(["corpus", "ask", *arguments]))
    assert "workers: expected at least 1" in refused(capsys, index(videos, bundle, tmp_path / "s", "--workers", "0"))
    assert "no videos there" in capsys_of(capsys, index(indexed, bundle, tmp_path / "s"))


def capsys_of(capsys, code: int) -> str:
    """All of stderr: a folder says what it skips before the error."""
    assert code == 2
    return capsys.readouterr().err


# ---------------------------------------------------------------- killed


def start(videos: Path, bundle: Path, out: Path, *more: str, **options) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sdst", "corpus", "index", str(videos), "--bundle", str(bundle), "--out", str(out)]
    return subprocess.Popen([*command, "--workers", "2", *more], stderr=subprocess.PIPE, text=True, **options)


def workers_of(pid: int) -> list[int]:
    """Processes that multiprocessing spawned for work; its resource tracker is none."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(one) for one in found if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes()]


@LINUX
def test_a_worker_killed_in_the_middle_loses_and_doubles_nothing(indexed, videos, exported, tmp_path):
    store = tmp_path / "store"
    with start(videos, exported.directory, store) as run:
        wait_until(lambda: list(store.glob("videos/*.safetensors")))
        victim = workers_of(run.pid)[0]
        os.kill(victim, signal.SIGKILL)
        said = run.communicate()[1]
    assert run.returncode == 0, said
    assert "12 videos indexed" in said
    assert content(store) == content(indexed)
    assert rows_of(store) == rows_of(indexed)


@LINUX
def test_a_killed_run_leaves_no_worker_and_goes_on_where_it_ended(indexed, videos, exported, tmp_path):
    store = tmp_path / "store"
    with start(videos, exported.directory, store) as run:
        wait_until(lambda: list(store.glob("videos/*.safetensors")))
        workers = workers_of(run.pid)
        run.kill()
        run.wait()
    assert len(workers) == 2
    wait_until(lambda: not any(alive(pid) for pid in workers))
    before = {path.name: path.stat().st_mtime_ns for path in store.glob("videos/*.safetensors")}
    assert 0 < len(before) < 12, "expected a run that was killed in the middle"
    with start(videos, exported.directory, store) as run:
        said = run.communicate()[1]
    assert f"{12 - len(before)} videos indexed" in said
    assert f"{len(before)} were there" in said
    after = {path.name: path.stat().st_mtime_ns for path in store.glob("videos/*.safetensors")}
    assert {name: after[name] for name in before} == before
    assert content(store) == content(indexed)
    assert rows_of(store) == rows_of(indexed)


@LINUX
def test_a_full_disk_ends_the_run_with_one_line(videos, exported, tmp_path):
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    store = tmp_path / "store"
    with start(videos, exported.directory, store, preexec_fn=small_files) as run:
        said = run.communicate()[1].splitlines()
    assert run.returncode == 2
    assert said[-1].startswith("error: cannot write ")
    assert not list(store.glob("**/*.tmp"))
    made = Store.open(store)
    assert len(made.ids()) < 12
    assert all(made.read(vid).video.duration_s > 0 for vid in made.ids())  # those that found room are whole
