"""Where things lie, for tests in any folder."""

from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent  # of the checkout
DATA = TESTS / "data"
SHARED = ROOT.parent / "shared"  # larger inputs beside the checkout, where there are any
