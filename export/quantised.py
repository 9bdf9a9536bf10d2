"""A model in 8-bit integers by ONNX Runtime's static quantisation."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from tqdm import tqdm

from ddl_plugin.errors import UserError
from ddl_plugin.export.half import preamble_nodes
from ddl_plugin.export.images import as_input

CALIBRATION_IMAGES = 64
#: Of the values seen by each tensor, how many its 8 bits must reach; the rest is cut off. Chosen on MobileFaceNet:
#: mean cosine to float32 on faces 0.979, where 99.9 gives 0.974, 99.99 0.968 and the whole range 0.886.
PERCENTILE = 99.97


def require_quantisation() -> None:
    """UserError where ONNX Runtime's quantisation cannot be imported: it needs a package that it does not bring."""
    try:
        with _quiet():
            import onnxruntime.quantization  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--int8: ONNX Runtime's quantisation cannot be imported ({error}): pip install ml_dtypes"
        ) from error


def to_int8(source: str | Path, output: str | Path, images: np.ndarray) -> None:
    """Write `output`: weights 8-bit a channel, activations 8-bit unsigned, ranges from `images` uint8 (n, S, S, 3).

    BatchNorm is folded into the convolutions first; the nodes that shift and scale the pixels stay in float32 and
    come first, as InsightFace's model zoo looks for them there.
    """
    require_quantisation()
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import save_tensors_data
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as text, _quiet():
        folder = Path(text)
        folded, ranges = folder / "folded.onnx", folder / "ranges.json"
        original = onnx.load(str(source))
        quant_pre_process(str(source), str(folded), skip_symbolic_shape=True)
        save_tensors_data(_ranges(folded, folder, images), ranges, smooth_quant=False)
        quantize_static(
            str(folded), str(folder / "int8.onnx"), None,
            quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.Percentile, calibration_cache_path=ranges,
            nodes_to_exclude=sorted(preamble_nodes(original)),
        )  # fmt: skip
        quantised = onnx.load(str(folder / "int8.onnx"))
    _preamble_first(quantised, preamble_nodes(original))
    quantised.producer_name, quantised.producer_version = original.producer_name, original.producer_version
    del quantised.metadata_props[:]
    quantised.metadata_props.extend(original.metadata_props)
    onnx.checker.check_model(quantised, full_check=True)
    onnx.save(quantised, str(output))


def _ranges(model: Path, folder: Path, images: np.ndarray):
    """Each tensor's range, image by image: the calibrator would hold the outputs of all images at once."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    class One(CalibrationDataReader):
        def __init__(self, name: str, batch: np.ndarray):
            self._left = [{name: batch}]

        def get_next(self) -> dict[str, np.ndarray] | None:
            return self._left.pop() if self._left else None

    calibrator = create_calibrator(
        model, None, str(folder / "augmented.onnx"), CalibrationMethod.Percentile,
        extra_options={"percentile": PERCENTILE, "symmetric": False},
    )  # fmt: skip
    name = calibrator.infer_session.get_inputs()[0].name
    for i in tqdm(range(len(images)), "calibrate", leave=False, disable=None):
        calibrator.collect_data(One(name, as_input(images[i : i + 1])))
    return calibrator.compute_data()


def _preamble_first(model: onnx.ModelProto, names: set[str]) -> None:
    """Move the nodes of these names, which need nothing but the input, to the front."""
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(sorted(nodes, key=lambda node: node.name not in names))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the quantisation prints and logs on its way."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
