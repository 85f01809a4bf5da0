"""Embeddings by OpenVINO, for models that `twinlens export --format openvino` has written.

Shapes: N pictures, C channels, H x W pixels, D dimensions of the embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinlens.data.pixels import Pixels
from twinlens.errors import ConfigError, MissingExtraError, ModelError, first_line
from twinlens.model.runtime import graph_inputs
from twinlens.model.stored import OPENVINO_FILES, StoredModel, damaged_model

__all__ = ["OpenvinoEncoder"]

# OpenVINO takes bfloat16 where the processor has it, and embeddings then move by 1e-2.
CONFIG = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "THROUGHPUT"}
DEVICES = ("auto", "cpu", "openvino")


class OpenvinoEncoder:
    """The network of a stored model with `model.xml`; it is compiled at the first picture.

    Every picture goes through the network alone, several at a time on several cores.

    Args:
        stored: the model.
        device: one of `DEVICES`, all of which stand for OpenVINO on the CPU.
        threads: number of threads; OpenVINO's choice by default.
    Raises:
        ConfigError: another device.
    """

    on_cpu = True

    def __init__(
        self, stored: StoredModel, device: str = "auto", threads: int | None = None
    ) -> None:
        if device not in DEVICES:
            raise ConfigError(
                f"the model {stored.path} answers by OpenVINO on the CPU: device must be one of "
                f"{', '.join(DEVICES)}, found '{device}'"
            )
        self._stored = stored
        self._config = CONFIG if threads is None else {**CONFIG, "INFERENCE_NUM_THREADS": threads}

    def embed(
        self, pixels_NCHW: Pixels, progress: Callable[[int, int], None] | None = None
    ) -> NDArray[np.float32]:
        """Embeddings, shape (N, D), of decoded uint8 pictures, shape (N, C, H, W).

        Args:
            pixels_NCHW: pictures in memory or memory-mapped.
            progress: called with (done, N) after each picture is started.
        Raises:
            MissingExtraError: the package `openvino` is missing.
            ModelError: a graph that cannot be loaded, or that belongs to other settings.
        """
        num = len(pixels_NCHW)
        emb_ND = np.zeros((num, self._stored.num_embedding), dtype=np.float32)

        def keep(request: Any, row: int) -> None:
            emb_ND[row] = request.get_output_tensor(0).data[0]

        try:
            queue = self._queue
            queue.set_callback(keep)
            for row in range(num):
                picture = np.asarray(pixels_NCHW[row : row + 1])
                queue.start_async(graph_inputs(self._stored, picture), row)
                if progress is not None:
                    progress(row + 1, num)
            queue.wait_all()
        except RuntimeError as error:  # OpenVINO's only kind.
            raise ModelError(
                f"OpenVINO cannot compute the model {self._stored.path}: {first_line(error)}"
            ) from error
        return emb_ND

    @cached_property
    def _queue(self) -> Any:
        try:
            import openvino
        except ImportError as error:
            raise MissingExtraError("openvino", "this model answers by OpenVINO") from error
        graph = self._stored.path / OPENVINO_FILES[0]
        try:
            compiled = openvino.Core().compile_model(graph, "CPU", self._config)
        except RuntimeError as error:
            raise damaged_model(
                self._stored.path, f"OpenVINO cannot load {graph.name}: {first_line(error)}"
            ) from error
        return openvino.AsyncInferQueue(compiled)
