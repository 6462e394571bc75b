"""RtxSession: an engine of TensorRT for RTX, which compiles its kernels for this GPU when it runs.

All but the vendor's own is TensorRTSession's: streams, memory, workers, profiles, arrays on the GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .device import Device
from .rtx import make_runtime_config, require_valid
from .rtx_cache import RuntimeCache, runtime_cache_path
from .session import TensorRTSession


class RtxSession(TensorRTSession):
    """Runs an engine that was built with `sdst build --target rtx`.

    The first start on a machine compiles kernels; they are kept in $SDST_CACHE/rtx after `warm_up` and `close`, so
    that later starts do not. CUDA graphs are TensorRT's own: it captures one once the kernels of some shapes are
    compiled.
    """

    target = "rtx"

    def __init__(
        self, path: Path, *, workers: int = 1, cuda_graphs: bool = True, device: Device | None = None
    ) -> None:  # fmt: skip
        """Raises what TensorRTSession does; ContractError also when TensorRT for RTX says that the plan is not valid
        here.
        """
        self._own_graphs = cuda_graphs
        self._kernels: RuntimeCache | None = None
        super().__init__(path, workers=workers, cuda_graphs=False, device=device)

    def warm_up(self) -> None:
        """As TensorRTSession; the kernels compiled until then are kept for the next start."""
        super().warm_up()
        with self._pool.all(), self._device.current():
            self._keep_kernels()

    def _require_valid(self, trt: Any, runtime: Any, logger: Any, plan: bytes) -> None:
        require_valid(trt, runtime, logger, self.path, plan, self._sidecar)

    def _runtime_config(self, trt: Any, engine: Any) -> Callable[[], Any]:
        """One a context, all with one cache, as NVIDIA's own applications make them."""
        runtime_config = engine.create_runtime_config()
        path = runtime_cache_path(self._sidecar.plan_sha256, self._here)
        self._kernels = kernels = RuntimeCache(path, runtime_config.create_runtime_cache())
        return lambda: make_runtime_config(trt, engine, kernels.runtime_cache, self._own_graphs)

    def _before_release(self) -> None:
        self._keep_kernels()

    def _release(self) -> None:
        super()._release()
        self._kernels = None  # after the contexts that use it

    def _keep_kernels(self) -> None:
        if self._kernels is not None:
            self._kernels.keep()
