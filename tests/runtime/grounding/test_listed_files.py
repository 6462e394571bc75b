"""A bundle's models read no file that bundle.json does not list."""

from __future__ import annotations

import json
import shutil

import onnx
import pytest

from sdst_runtime.errors import ContractError
from sdst_runtime.files import sha256_file
from sdst_runtime.grounding.bundle import Bundle


@pytest.fixture
def with_weights_apart(exported, tmp_path):
    """A copy of a bundle whose head has its weights in a file of another name than the project's."""
    bundle = tmp_path / "bundle"
    shutil.copytree(exported.directory, bundle)
    model = onnx.load(bundle / "head.onnx")
    name = "w" * 200 + ".bin"  # a length of two bytes
    onnx.save_model(model, bundle / "head.onnx", save_as_external_data=True, location=name, size_threshold=4096)
    return bundle, name


def list_files(bundle, *names):
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["files"] |= {name: sha256_file(bundle / name) for name in names}
    (bundle / "bundle.json").write_text(json.dumps(manifest))


def test_weights_that_are_not_listed_are_refused(with_weights_apart):
    bundle, name = with_weights_apart
    list_files(bundle, "head.onnx")
    with pytest.raises(ContractError, match=f"head.onnx: reads the file {name}, which bundle.json does not list"):
        Bundle.open(bundle)


def test_weights_that_are_listed_are_read_and_checked(with_weights_apart):
    bundle, name = with_weights_apart
    list_files(bundle, "head.onnx", name)
    with Bundle.open(bundle).session("head") as session:
        assert "scores" in session.outputs
    with (bundle / name).open("r+b") as file:
        file.write(b"\1\2\3\4")
    with pytest.raises(ContractError, match="has changed"):
        Bundle.open(bundle)
