"""The demo's world: rendered videos, sentences about them, and a tiny backbone that reads both."""

from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
BACKBONE = ASSETS / "tiny_backbone.safetensors"
