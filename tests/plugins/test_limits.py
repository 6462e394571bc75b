"""What sdst::RDSA computes stands once in C++ and once in Python, and the two say the same."""

from __future__ import annotations

import re

from places import ROOT

from sdst_runtime.sessions.plugin_library import DEPTHS, MOST_HEADS, MOST_POINTS


def test_python_has_the_limits_of_the_header():
    header = (ROOT / "plugins" / "src" / "rdsa_limits.h").read_text()
    stated = dict(re.findall(r"constexpr int32_t (\w+)(?:\[\])? = (.+);", header))

    assert stated == {
        "MOST_HEADS": f"1 << {MOST_HEADS.bit_length() - 1}",
        "MOST_POINTS": str(MOST_POINTS),
        "DEPTHS": f"{{{', '.join(map(str, DEPTHS))}}}",
    }
    assert 1 << (MOST_HEADS.bit_length() - 1) == MOST_HEADS
    assert f'DEPTHS_TEXT = "{", ".join(map(str, DEPTHS[:-1]))} or {DEPTHS[-1]}"' in header
