"""The models of a command line: opened, named, measured one at a time, their files kept from being overwritten."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ddl_plugin.cli import require_outputs, uninterrupted
from ddl_plugin.errors import UserError
from ddl_plugin.export.graph import model_files

MODEL = (
    "an .onnx file, a checkpoint PREFIX,EPOCH, a folder of a run such as runs/demo/ddl or a state dict of "
    "arcface_torch (.pth, .pt); give --model again"
)


def add_models(parser: Any) -> None:
    """The options that every kind of evaluation has: the models, and where the results go."""
    parser.add_argument("--model", action="append", required=True, help=f"{MODEL} to compare")
    parser.add_argument("--json", metavar="FILE", help="write the results there too")


def measured(models: Sequence[str], measure: Callable) -> dict[str, Any]:
    """measure(embed, progress) of each model, by its name in the tables; each is opened once, one at a time."""
    results = {}
    for name, model in zip(model_names(models), models, strict=True):
        results[name] = measure(open_model(model), progress_bar(name))
    return results


def require_model_outputs(
    outputs: Mapping[str, str | None], models: Sequence[str], inputs: Sequence[str | Path]
) -> None:
    """`cli.require_outputs` with the files of `models` among the inputs."""
    if any(outputs.values()):
        require_outputs(outputs, [*inputs, *(path for model in models for path in model_files(model))])


def open_model(model: str) -> Callable:
    """embed(images) of an .onnx file, a checkpoint or a state dict of arcface_torch.

    A checkpoint is opened by MXNet, or where that is not installed by PyTorch; an .onnx file needs neither.
    """
    if model.endswith(".onnx"):
        with uninterrupted():
            from ddl_plugin.evaluation.onnx_model import OnnxEmbedder

        return OnnxEmbedder(model)
    with uninterrupted():
        from ddl_plugin.training.backends import backend_of

    backend = backend_of(model)
    return backend.embedder(backend.load_backbone(model), backend.parse_devices("cpu")[0])


def progress_bar(name: str) -> Callable:
    """A tqdm bar for each set of batches, on a terminal only."""
    from tqdm import tqdm

    return lambda batches: tqdm(batches, desc=name, unit="batch", leave=False, disable=None)


def model_names(models: Sequence[str]) -> list[str]:
    """How tables call the models: the file names, or as much of the paths as tells them apart."""
    if len(set(models)) < len(models):
        raise UserError(f"--model: expected different models, got one twice: {', '.join(models)}")
    parts = [Path(model).parts for model in models]
    for count in range(1, max(map(len, parts))):
        names = ["/".join(p[-count:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return list(models)
