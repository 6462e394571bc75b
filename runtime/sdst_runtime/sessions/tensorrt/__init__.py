"""Runs engines that `sdst build` made, with TensorRT 10.3 to 11.x or TensorRT for RTX.

Needs the packages tensorrt or tensorrt_rtx, and pycuda, when used.
"""

from .rtx_session import RtxSession
from .session import TensorRTSession

__all__ = ["RtxSession", "TensorRTSession"]
