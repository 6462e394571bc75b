"""Runs engines that `sdst build` made, with TensorRT 10.3 to 11.x. Needs the packages tensorrt and pycuda when used."""

from .session import TensorRTSession

__all__ = ["TensorRTSession"]
