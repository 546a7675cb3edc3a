"""The student as it will run: ONNX, int8, mobile; an artefact with its hashes, and parity with the trained student."""

from tutelage.export.artefacts import Artefact, Format, check_destination, commit, read_artefact, set_aside, staging
from tutelage.export.hub_folder import ModuleRunner, to_safetensors
from tutelage.export.mobile import ExecutorchRunner, to_executorch
from tutelage.export.onnx_format import OnnxRunner, inspect_onnx, to_onnx
from tutelage.export.parity import Parity, check_parity, parity_cases
from tutelage.export.quantising import quantise_onnx
from tutelage.export.readme import readme_text
from tutelage.export.runners import open_runner, require_packages
from tutelage.export.running import Subject, cost_per_million, measure_running
from tutelage.export.specs import Runner, TensorSpec, input_specs, named

__all__ = [
    "Artefact",
    "ExecutorchRunner",
    "Format",
    "ModuleRunner",
    "OnnxRunner",
    "Parity",
    "Runner",
    "Subject",
    "TensorSpec",
    "check_destination",
    "check_parity",
    "commit",
    "cost_per_million",
    "input_specs",
    "inspect_onnx",
    "measure_running",
    "named",
    "open_runner",
    "parity_cases",
    "quantise_onnx",
    "read_artefact",
    "readme_text",
    "require_packages",
    "set_aside",
    "staging",
    "to_executorch",
    "to_onnx",
    "to_safetensors",
]
