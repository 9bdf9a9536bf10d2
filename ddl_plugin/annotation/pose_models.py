"""Head-pose models in ONNX: FSA-Net style (Yang et al., CVPR 2019) and InsightFace's 1k3d68.

What a model is follows from the shapes of its input and output. All of them answer with the signs of
`ddl_plugin.annotation.pose`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import onnx
import onnxruntime as ort

from ddl_plugin.data.attributes import source
from ddl_plugin.errors import UserError

_FSA_SIDE = 64
_LANDMARK_SIDE, _LANDMARK_OUTPUT = 192, 3309  # 1k3d68: 1,035 + 68 points in 3-D
_KNOWN = (
    f"FSA-Net style (input n x 3 x {_FSA_SIDE} x {_FSA_SIDE}, output n x 3: yaw, pitch, roll) or InsightFace's "
    f"1k3d68.onnx (input n x 3 x {_LANDMARK_SIDE} x {_LANDMARK_SIDE}, output n x {_LANDMARK_OUTPUT})"
)
#: Images of one run of a model: small ones on a CPU, whose caches hold a few; see docs/DATA.md.
_BATCH = {"CPUExecutionProvider": 8, "CUDAExecutionProvider": 256}
#: Degrees by which images may differ when they are run together and one by one.
_SAME = 1e-3


class PoseModel(Protocol):
    source: dict[str, str]  # the file's name, hash and kind

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """uint8 (H, W, 3) BGR images -> yaw, pitch, roll in degrees, float32 (n, 3)."""


def open_models(paths: Sequence[str | os.PathLike]) -> list[PoseModel]:
    """The models in these files; each runs in one thread, so that several can run at a time.

    Raises:
        UserError: for a file that is missing, no pose model, or given twice.
    """
    models = [_open(Path(path)) for path in paths]
    for i, model in enumerate(models):
        if any(model.source["sha256"] == other.source["sha256"] for other in models[:i]):
            raise UserError(f"--model: expected each model once, got {paths[i]} again")
    return models


def _open(path: Path) -> PoseModel:
    if not path.is_file():
        raise UserError(f"--model: {path}: no such ONNX file")
    try:
        graph = onnx.load(str(path))
        shapes = [_shape(value) for value in (*_inputs(graph), *graph.graph.output)]
    except Exception as error:  # protobuf's exceptions share no base class of their own
        raise UserError(f"--model: {path}: expected an ONNX model: {error}") from error
    if len(shapes) == 2:
        if shapes[0][1:] == (3, _FSA_SIDE, _FSA_SIDE) and shapes[1][1:] == (3,):
            return FsaNet(path, graph)
        if shapes[0][1:] == (3, _LANDMARK_SIDE, _LANDMARK_SIDE) and shapes[1][1:] == (_LANDMARK_OUTPUT,):
            return InsightFaceLandmarks(path)
    got = ", ".join("x".join(map(str, shape)) for shape in shapes)
    raise UserError(f"--model: {path}: expected a head-pose model, {_KNOWN}, got inputs and outputs {got}")


class FsaNet:
    """Takes the face 64x64, BGR, (x - 127.5) / 128; gives yaw, pitch, roll in degrees.

    An aligned 112x112 face is given as it is, without a border; docs/DATA.md has what a border does.
    """

    def __init__(self, path: Path, graph: onnx.ModelProto):
        self.source = {**source(path), "kind": "fsanet"}
        self._path = path
        self._input = _inputs(graph)[0].name
        declared = _shape(_inputs(graph)[0])[0]
        session = _session(path, graph)
        self._fixed = isinstance(declared, int)  # runs batches of this size alone
        self._batch = declared if self._fixed else _BATCH[session.get_providers()[0]]
        self._session = session
        if self._fixed:
            self._free_batch(graph)

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        pixels = np.empty((len(images), 3, _FSA_SIDE, _FSA_SIDE), np.float32)
        for row, image in enumerate(images):
            small = cv2.resize(image, (_FSA_SIDE, _FSA_SIDE)).astype(np.float32)
            pixels[row] = ((small - 127.5) / 128).transpose(2, 0, 1)
        return self._run(pixels)

    def _run(self, pixels: np.ndarray) -> np.ndarray:
        angles = np.empty((len(pixels), 3), np.float32)
        for start in range(0, len(pixels), self._batch):
            part = pixels[start : start + self._batch]
            count = len(part)
            if self._fixed and count < self._batch:
                part = part[np.arange(self._batch) % count]
            angles[start : start + count] = self._session.run(None, {self._input: part})[0][:count]
        return angles

    def _free_batch(self, graph: onnx.ModelProto) -> None:
        """Take the fixed batch size out of the graph in memory, if the answers stay the same."""
        del graph.graph.value_info[:]
        for value in (*graph.graph.input, *graph.graph.output):
            if value.type.tensor_type.shape.dim:
                value.type.tensor_type.shape.dim[0].dim_param = "n"
        pixels = np.random.default_rng(0).uniform(-1, 1, (3, 3, _FSA_SIDE, _FSA_SIDE)).astype(np.float32)
        expected = self._run(pixels)
        try:
            session = _session(self._path, graph)
            angles = session.run(None, {self._input: pixels})[0]
        except (
            Exception
        ):  # a graph with the batch size in its constants; ONNX Runtime's exceptions share no base
            return
        if angles.shape == expected.shape and np.abs(angles - expected).max() < _SAME:
            self._session, self._fixed = session, False
            self._batch = _BATCH[session.get_providers()[0]]


class InsightFaceLandmarks:
    """InsightFace's 1k3d68.onnx, run by insightface, whose pose is that of the 68 points against a mean face.

    insightface wants a face box; the whole picture is given, which is about what its detectors find around an
    aligned 112x112 face. Its yaw grows to the right of the picture and is turned round here; pitch and roll have
    the same signs already.
    """

    def __init__(self, path: Path):
        try:
            from insightface.app.common import Face
            from insightface.model_zoo import get_model
        except ImportError as error:
            raise UserError(
                f"--model: {path}: 1k3d68 models are run by insightface, which is not installed ({error}): "
                "pip install 'ddl_plugin[insightface]'"
            ) from error
        # Of its least squares, at every face.
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"insightface\..*")
        options, providers = _options()
        self.source = {**source(path), "kind": "insightface 1k3d68"}
        self._face = Face
        self._model = get_model(str(path), providers=providers, sess_options=options)

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        return np.array([self._pose(image) for image in images], np.float32).reshape(-1, 3)

    def _pose(self, image: np.ndarray) -> tuple[float, float, float]:
        height, width = image.shape[:2]
        face = self._face(bbox=np.array([0, 0, width, height], np.float32))
        try:
            self._model.get(image, face)
        except np.linalg.LinAlgError:  # points that are NaN
            return (np.nan, np.nan, np.nan)
        pitch, yaw, roll = face["pose"]
        return -yaw, pitch, roll


def _inputs(graph: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Without the weights, which old exporters list among the inputs."""
    weights = {weight.name for weight in graph.graph.initializer}
    return [value for value in graph.graph.input if value.name not in weights]


def _shape(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    return tuple(
        dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or "?")
        for dim in value.type.tensor_type.shape.dim
    )


def _options() -> tuple[ort.SessionOptions, list[Any]]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1  # images side by side, not parts of one image
    available = ort.get_available_providers()
    wanted = [("CUDAExecutionProvider", {"use_tf32": "0"}), ("CPUExecutionProvider", {})]
    return options, [entry for entry in wanted if entry[0] in available]


def _session(path: Path, graph: onnx.ModelProto) -> ort.InferenceSession:
    options, providers = _options()
    try:
        return ort.InferenceSession(graph.SerializeToString(), options, providers=providers)
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        raise UserError(
            f"--model: {path}: expected an ONNX model that ONNX Runtime can run: {error}"
        ) from error
