"""Answers on ONNX Runtime: pictures to embeddings, and pairs of embeddings to learned distances.

Shapes: N, M pictures, C channels, H x W pixels, V views, F features, D dimensions of the embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from twinlens.config import SHIFTS
from twinlens.data.pixels import Pixels
from twinlens.errors import ConfigError, ModelError, first_line, one_line
from twinlens.machine import num_threads
from twinlens.model.stored import COMPARATOR_GRAPH, GRAPH, StoredModel, damaged_model

__all__ = ["PROVIDERS", "GraphComparison", "OnnxEncoder", "graph_inputs", "pick_provider"]

Floats = NDArray[np.float32]
OnProgress = Callable[[int, int], None]

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "directml": "DmlExecutionProvider",
}
"""Names of devices, and of ONNX Runtime's providers for them."""

# Numbers are float32 on every device, as in the measured threshold. CUDA would take TF32, and
# OpenVINO bfloat16.
OPTIONS: Mapping[str, dict[str, str]] = {
    "cuda": {"use_tf32": "0"}, "openvino": {"precision": "ACCURACY"},
}  # fmt: skip

CHUNK_NUMBERS = 2**17
MAX_CHUNK = 64
"""Numbers and pictures of a forward pass on a CPU: more gain nothing there (benchmarks/NOTES.md),
and a core's cache holds less of them."""
DEVICE_CHUNK = 64
BLOCK = 2**22  # numbers of the pairs that a comparator takes at once: 16 MiB


def pick_provider(device: str) -> tuple[str, dict[str, str]]:
    """ONNX Runtime's provider for a device, and its options.

    Args:
        device: "auto" (CUDA if ONNX Runtime has it, else the CPU), or a name of `PROVIDERS`; "cuda"
            may have a number, as in "cuda:1".
    Raises:
        ConfigError: an unknown device, or one that this ONNX Runtime does not have.
    """
    here = ort.get_available_providers()
    if device == "auto":
        device = "cuda" if PROVIDERS["cuda"] in here else "cpu"
    name, _, number = device.partition(":")
    if name not in PROVIDERS or (number and not (name == "cuda" and number.isdecimal())):
        raise ConfigError(
            f"device must be auto, {', '.join(PROVIDERS)} or cuda:1 and so on, found '{device}'"
        )
    if PROVIDERS[name] not in here:
        usable = ", ".join(known for known, provider in PROVIDERS.items() if provider in here)
        raise ConfigError(
            f"device '{device}' needs another build of ONNX Runtime, this one has {usable}: "
            "see docs/install.md"
        )
    return PROVIDERS[name], {**OPTIONS.get(name, {}), **({"device_id": number} if number else {})}


class OnnxEncoder:
    """The network of a stored model; sessions are opened at the first picture.

    An embedding does not depend on the pictures beside it: every picture goes through the same
    arithmetic, whatever the batch. On a CPU that is so bit for bit, except that averages over a
    number of channels that is no multiple of 4 may differ by 1e-6; on other devices within 1e-5.

    Args:
        stored: the model.
        device: as in `pick_provider`.
        threads: number of threads; `num_threads` by default.
    Raises:
        ConfigError: no such device.
    """

    def __init__(
        self, stored: StoredModel, device: str = "auto", threads: int | None = None
    ) -> None:
        self._stored = stored
        self._provider, self._options = pick_provider(device)
        self._threads = num_threads() if threads is None else threads
        self._session = lru_cache(self._open)

    def embed(self, pixels_NCHW: Pixels, progress: OnProgress | None = None) -> Floats:
        """Embeddings, shape (N, D), of decoded uint8 pictures, shape (N, C, H, W).

        Args:
            pixels_NCHW: pictures in memory or memory-mapped.
            progress: called with (done, N) after each of the small batches.
        Raises:
            ModelError: a graph that cannot be loaded, or that belongs to other settings.
        """
        num = len(pixels_NCHW)
        emb_ND = np.zeros((num, self._stored.num_embedding), dtype=np.float32)
        size = self._chunk
        parts = [slice(start, min(start + size, num)) for start in range(0, num, size)]
        for part, emb in self._run_all(pixels_NCHW, parts):
            emb_ND[part] = emb
            if progress is not None:
                progress(part.stop, num)
        return emb_ND

    def _run_all(self, pixels: Pixels, parts: list[slice]) -> Iterator[tuple[slice, Floats]]:
        """Batches in parallel, each on one thread; a single batch on all threads."""
        num_workers = max(1, min(self._threads, len(parts))) if self.on_cpu else 1
        session = self._session(1 if num_workers > 1 else self._threads, len(parts) > 1)

        def run(part: slice) -> Floats:
            return self._run(session, np.asarray(pixels[part]))

        if num_workers == 1:
            yield from ((part, run(part)) for part in parts)
            return
        pool = ThreadPoolExecutor(num_workers)
        try:
            yield from zip(parts, pool.map(run, parts), strict=True)
        finally:
            pool.shutdown(cancel_futures=True)  # After Ctrl-C the rest is not computed.

    def _run(self, session: ort.InferenceSession, pixels_NCHW: NDArray[np.uint8]) -> Floats:
        emb_ND = _run(session, graph_inputs(self._stored, pixels_NCHW), self._stored, GRAPH)
        expected = (len(pixels_NCHW), self._stored.num_embedding)
        if emb_ND.shape != expected:
            raise damaged_model(
                self._stored.path, f"{GRAPH} gives numbers of shape {emb_ND.shape}, not {expected}"
            )
        return emb_ND

    @cached_property
    def _shapes(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Type and shape, without N, of the graph's only input, by its name."""
        picture, model = self._stored.description.picture, self._stored.description.model
        if model.backbone == "strokes":
            return {"features": ("tensor(float)", (len(SHIFTS) if model.shifts else 1, -1))}
        size = picture.size if self._stored.description.resize == "outside" else (-1, -1)
        return {"pixels": ("tensor(uint8)", (*size, picture.channels))}

    @property
    def on_cpu(self) -> bool:
        """Whether the CPU computes embeddings."""
        return self._provider == PROVIDERS["cpu"]

    @property
    def _chunk(self) -> int:
        picture, model = self._stored.description.picture, self._stored.description.model
        views = (len(SHIFTS) if model.shifts else 1) * (2 if model.mirrored else 1)
        numbers = views * picture.channels * picture.size[0] * picture.size[1]
        if self._stored.description.resize == "inside":
            return 1
        if not self.on_cpu:
            return DEVICE_CHUNK
        return max(1, min(MAX_CHUNK, CHUNK_NUMBERS // numbers))

    def _open(self, threads: int, keep_memory: bool) -> ort.InferenceSession:
        return _open(
            self._stored, GRAPH, self._shapes, ("embedding", 2),
            (self._provider, self._options), threads, keep_memory,
        )  # fmt: skip


class GraphComparison:
    """A `measure.pairs.Comparison` by the graph of a learned comparator."""

    def __init__(self, stored: StoredModel) -> None:
        shape = ("tensor(float)", (stored.num_embedding,))
        self._stored = stored
        self._session = _open(
            stored, COMPARATOR_GRAPH, {"a": shape, "b": shape}, ("distance", 1),
            (PROVIDERS["cpu"], {}), num_threads(), True,
        )  # fmt: skip

    def pairwise(self, a_ND: NDArray[Any], b_ND: NDArray[Any]) -> Floats:
        """`res[i]` = distance of a[i] and b[i], shape (N,).

        Raises:
            ModelError: the graph gives no distances.
        """
        pair = {"a": np.asarray(a_ND, np.float32), "b": np.asarray(b_ND, np.float32)}
        distance_N = _run(self._session, pair, self._stored, COMPARATOR_GRAPH)
        if distance_N.shape != (len(a_ND),):
            raise damaged_model(
                self._stored.path, f"{COMPARATOR_GRAPH} gives numbers of shape {distance_N.shape}"
            )
        if not (np.isfinite(distance_N) & (distance_N >= 0)).all():
            raise damaged_model(
                self._stored.path,
                f"{COMPARATOR_GRAPH} gives distances that are negative or no finite numbers",
            )
        return distance_N

    def matrix(self, a_ND: NDArray[Any], b_MD: NDArray[Any]) -> Floats:
        """`res[i, j]` = distance of a[i] and b[j], shape (N, M)."""
        num, dim = b_MD.shape
        dist_NM = np.zeros((len(a_ND), num), dtype=np.float32)
        rows = max(1, BLOCK // max(1, num * dim))
        for start in range(0, len(a_ND) if num else 0, rows):
            part = a_ND[start : start + rows]
            left, right = np.repeat(part, num, axis=0), np.tile(b_MD, (len(part), 1))
            dist_NM[start : start + rows] = self.pairwise(left, right).reshape(len(part), num)
        return dist_NM


def graph_inputs(stored: StoredModel, pixels_NCHW: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """Inputs of a model's graph, by name: pixels (N, H, W, C), or features (N, V, F) of strokes."""
    description = stored.description
    if description.model.backbone != "strokes":
        return {"pixels": np.ascontiguousarray(pixels_NCHW.transpose(0, 2, 3, 1))}
    from twinlens.model.strokes import stroke_features  # Its scipy takes as long as an answer.

    shifts = SHIFTS if description.model.shifts else SHIFTS[:1]
    features = [
        [
            stroke_features(view_CHW, description.picture, description.model.pressure)
            for view_CHW in _views(pixels_CHW, shifts)
        ]
        for pixels_CHW in pixels_NCHW
    ]
    return {"features": np.array(features, dtype=np.float32)}


def _views(
    pixels_CHW: NDArray[np.uint8], shifts: tuple[tuple[int, int], ...]
) -> Iterator[NDArray[np.uint8]]:
    """A picture shifted by each of `shifts`; the border is repeated."""
    height, width = pixels_CHW.shape[1:]
    padded = np.pad(pixels_CHW, ((0, 0), (1, 1), (1, 1)), mode="edge")
    for down, right in shifts:
        yield padded[:, 1 - down : 1 - down + height, 1 - right : 1 - right + width]


# --- sessions -----------------------------------------------------------------------------------


def _open(
    stored: StoredModel, name: str, inputs: Mapping[str, tuple[str, tuple[int, ...]]],
    output: tuple[str, int], provider: tuple[str, dict[str, str]], threads: int,
    keep_memory: bool,
) -> ort.InferenceSession:  # fmt: skip
    """Load a graph that `read_stored_model` has checked.

    Args:
        stored: the model.
        name: file of the graph.
        inputs: type and shape without N of each input, by name; -1 stands for any length.
        output: name and number of dimensions of the output, which is float32.
        provider: ONNX Runtime's provider and its options.
        threads: threads of an operation.
        keep_memory: whether to keep freed memory for the next batch: up to a fifth faster, and
            10 MB larger for one picture of 224 x 224.
    Raises:
        ModelError: ONNX Runtime cannot load it, or its inputs and outputs are others.
        ConfigError: the provider does not start.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.enable_cpu_mem_arena = keep_memory
    options.log_severity_level = 4  # Its errors are raised as well.
    # A waiting thread would take the time of those that decode.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        # It would otherwise print, and compute on another device.
        session = ort.InferenceSession(
            stored.path / name, options, providers=[provider], enable_fallback=False
        )
    except Exception as error:  # ONNX Runtime raises a dozen kinds.
        raise damaged_model(
            stored.path, f"ONNX Runtime cannot load {name}: {_reason(error)}"
        ) from error
    if session.get_providers()[0] != provider[0]:
        raise ConfigError(
            f"ONNX Runtime could not start {provider[0]}: are its libraries installed? "
            "See `twinlens doctor`, or choose the device cpu"
        )
    own = {node.name: (node.type, tuple(node.shape[1:])) for node in session.get_inputs()}
    outputs = [(node.name, node.type, len(node.shape)) for node in session.get_outputs()]
    if not _fits(own, inputs) or outputs != [(output[0], "tensor(float)", output[1])]:
        raise damaged_model(stored.path, f"the inputs and outputs of {name} are of another model")
    return session


def _fits(
    own: Mapping[str, tuple[str, tuple[Any, ...]]],
    needed: Mapping[str, tuple[str, tuple[int, ...]]],
) -> bool:
    return own.keys() == needed.keys() and all(
        own[name][0] == kind
        and len(own[name][1]) == len(shape)
        and all(n in (-1, length) for length, n in zip(own[name][1], shape, strict=True))
        for name, (kind, shape) in needed.items()
    )


def _reason(error: Exception) -> str:
    """The first line of an error of ONNX Runtime, which may quote any name in a graph."""
    return one_line(first_line(error), 300)


def _run(
    session: ort.InferenceSession, inputs: Mapping[str, NDArray[Any]], stored: StoredModel,
    name: str,
) -> Floats:  # fmt: skip
    try:
        (result,) = session.run(None, dict(inputs))
    except Exception as error:  # As above; also no memory.
        raise ModelError(
            f"ONNX Runtime cannot compute {name} of the model {stored.path}: {_reason(error)}"
        ) from error
    return np.asarray(result, dtype=np.float32)
