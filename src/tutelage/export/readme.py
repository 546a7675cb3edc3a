"""The README.md of an artefact: what it is, what it takes and gives, how it was checked, and an example that loads it."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from tutelage.export.specs import BATCH, LENGTH, LONE_INPUT, TensorSpec

#: Classes that are listed; where there are more, the manifest has the rest.
LISTED_CLASSES = 50

#: Tokens in the example where there is no tokenizer, if the artefact takes so many.
EXAMPLE_LENGTH = 8

#: What runs an artefact, by its format.
RUNTIMES = {"onnx": "ONNX Runtime", "executorch": "ExecuTorch", "safetensors": "PyTorch"}


def readme_text(manifest: Mapping[str, Any]) -> str:
    """Markdown about an artefact, with one block of Python that answers two texts, or a made-up example, from its folder.

    The block takes class names and temperature from ``manifest.json`` and ends with ``probabilities`` ``[B, C]`` and
    ``predicted``, a class name an example.

    Args:
        manifest: what ``manifest.json`` holds or will hold; its ``files`` and hashes are not needed.
    """
    run, precision = manifest["run"], manifest["precision"]
    runtime = RUNTIMES[manifest["format"]]
    seed = f", seed {run['seed']}" if run.get("seed") is not None else ""
    sections = [
        f"# {_plain(run['title'])}: the student for {runtime}, {precision}",
        f"A classifier of {len(manifest['classes']):,} classes, distilled and exported by tutelage {manifest['tutelage']}: the student "
        f"of arm {_code(run['arm'])}{seed}, in {precision}, to be run by {runtime}. {_files(manifest)}",
        "## Loading it",
        _loading(manifest),
        f"```python\n{example(manifest)}\n```",
        "## Inputs and outputs",
        _table(manifest),
        "## Preprocessing",
        _preprocessing(manifest["preprocessing"]),
        "## Classes",
        _classes(manifest["classes"]),
        "## Temperature",
        _temperature(manifest["temperature"]),
        "## Is it the trained student?",
        _parity(manifest.get("parity"), manifest.get("quantisation")),
        "## Where it comes from",
        _provenance(manifest),
    ]
    return "\n\n".join(sections) + "\n"


def example(manifest: Mapping[str, Any]) -> str:
    """The block of Python alone; it runs with the artefact's folder as the working directory."""
    lines = {"onnx": _onnx, "executorch": _executorch, "safetensors": _safetensors}[manifest["format"]](manifest)
    return "\n".join(lines)


def _onnx(manifest: Mapping[str, Any]) -> list[str]:
    return [
        *_imports(manifest, "import numpy as np", "import onnxruntime"),
        *_about(manifest),
        f"session = onnxruntime.InferenceSession({manifest['model']!r}, providers=['CPUExecutionProvider'])",
        *_inputs(manifest, "np"),
        'scores = session.run(["logits"], inputs)[0] / manifest["temperature"]',
        "probabilities = np.exp(scores - scores.max(axis=1, keepdims=True))",
        "probabilities /= probabilities.sum(axis=1, keepdims=True)",
        *_answer("probabilities.argmax(axis=1)"),
    ]


def _executorch(manifest: Mapping[str, Any]) -> list[str]:
    return [
        *_imports(manifest, "import torch", "from executorch.runtime import Runtime"),
        *_about(manifest),
        f'method = Runtime.get().load_program({manifest["model"]!r}).load_method("forward")',
        *_inputs(manifest, "pt"),
        "logits = method.execute(list(inputs.values()))[0]  # in the order of the manifest's inputs",
        *_torch_answer(),
    ]


def _safetensors(manifest: Mapping[str, Any]) -> list[str]:
    specs = [TensorSpec.from_json(fields) for fields in manifest["inputs"]]
    lone = [spec.name for spec in specs] == [LONE_INPUT]
    call = f"model(inputs[{LONE_INPUT!r}])" if lone else "model(**inputs)"
    if manifest.get("kind") == "transformers":
        texts = any(spec.name == "input_ids" for spec in specs)
        kind = f"AutoModelFor{'Sequence' if texts else 'Image'}Classification"
        loading = [f'model = {kind}.from_pretrained(".").eval()']
        imports = _imports(manifest, "import torch", f"from transformers import {kind}")
        answer = f"    logits = {call}.logits"
    else:
        code = manifest.get("code")
        imports = _imports(manifest, "import torch", "from safetensors.torch import load_model", _builder(code))
        arguments = '**manifest["code"]["arguments"]' if code else ""
        loading = [f"model = build({arguments}).eval()", f"load_model(model, {manifest['model']!r})"]
        answer = f'    logits = getattr(output := {call}, "logits", output)'
    return [
        *imports,
        *_about(manifest),
        *loading,
        *_inputs(manifest, "pt"),
        "with torch.inference_mode():",
        answer,
        *_torch_answer(),
    ]


def _builder(code: Mapping[str, Any] | None) -> str:
    """The import of the function that builds the module, under a name that nothing else in the example has."""
    if code is None:
        return "from your_code import build  # the function that builds the student, which you bring"
    stem, function = PurePosixPath(code["file"]).stem, code["reference"].rpartition(":")[2]
    if stem.isidentifier() and not keyword.iskeyword(stem):
        return f"from {stem} import {function} as build"
    return f"build = __import__('runpy').run_path({code['file']!r})[{function!r}]"


def _imports(manifest: Mapping[str, Any], *lines: str) -> list[str]:
    tokenizer = ["from transformers import AutoTokenizer"] if manifest["preprocessing"]["tokenizer"] else []
    found = ["import json", "from pathlib import Path", *lines, *tokenizer]
    return [*sorted(found, key=lambda line: (not line.startswith(("import", "from")), line.startswith("from"))), ""]


def _about(manifest: Mapping[str, Any]) -> list[str]:
    tokenizer = ['tokenizer = AutoTokenizer.from_pretrained(".")'] if manifest["preprocessing"]["tokenizer"] else []
    return ['manifest = json.loads(Path("manifest.json").read_text(encoding="utf-8"))', *tokenizer]


def _inputs(manifest: Mapping[str, Any], tensors: str) -> list[str]:
    """``inputs``, a mapping of arrays (``np``) or tensors (``pt``)."""
    preprocessing = manifest["preprocessing"]
    specs = [TensorSpec.from_json(fields) for fields in manifest["inputs"]]
    if not preprocessing["tokenizer"]:
        made = "np.zeros({shape}, {dtype!r})" if tensors == "np" else "torch.zeros({shape}, dtype=torch.{dtype})"
        values = [made.format(shape=_example_shape(spec, manifest), dtype=spec.dtype) for spec in specs]
        comment = ["# in place of the zeros: your examples, one a row, after the preprocessing that is described below"]
        given = [f"    {spec.name!r}: {value}," for spec, value in zip(specs, values, strict=True)]
        return [*comment, "inputs = {", *given, "}"]
    most = min(filter(None, (preprocessing.get("max_length"), manifest.get("max_length"))), default=None)
    cut = f"truncation=True, max_length={most}, " if most else ""
    texts = ["The first text.", "A second one."] if isinstance(specs[0].shape[0], str) else ["A text."]
    cast = ".astype({!r})" if tensors == "np" else ".to(torch.{})"
    given = [f"    {spec.name!r}: tokens[{spec.name!r}]{cast.format(spec.dtype)}," for spec in specs]
    return [
        f"texts = {texts}",
        f'tokens = tokenizer(texts, padding=True, {cut}return_tensors="{tensors}")',
        "inputs = {",
        *given,
        "}",
    ]


def _example_shape(spec: TensorSpec, manifest: Mapping[str, Any]) -> tuple[int, ...]:
    length = min(EXAMPLE_LENGTH, manifest.get("max_length") or EXAMPLE_LENGTH)
    return tuple(size if isinstance(size, int) else length if size == LENGTH else 1 for size in spec.shape)


def _torch_answer() -> list[str]:
    return [
        'probabilities = torch.softmax(logits / manifest["temperature"], dim=1)',
        *_answer("probabilities.argmax(dim=1)"),
    ]


def _answer(best: str) -> list[str]:
    return [f'predicted = [manifest["classes"][index] for index in {best}]', "print(predicted, probabilities)"]


def _files(manifest: Mapping[str, Any]) -> str:
    names = [manifest["model"], *(name for name in manifest.get("model_files", []) if name != manifest["model"])]
    if len(names) == 1:
        return f"The model is {_code(names[0])}."
    return f"The model is {_code(names[0])}, which is of no use without {', '.join(map(_code, names[1:]))} beside it."


def _loading(manifest: Mapping[str, Any]) -> str:
    packages = {"onnx": "onnxruntime numpy", "executorch": "executorch", "safetensors": "torch safetensors"}[
        manifest["format"]
    ]
    if manifest["preprocessing"]["tokenizer"] or manifest.get("kind") == "transformers":
        packages += " transformers"
    text = f"With this folder as the working directory, after `pip install {packages}`:"
    if manifest["format"] == "safetensors" and manifest.get("kind") != "transformers" and not manifest.get("code"):
        text = (
            "This folder holds weights and not the code that uses them. Bring the function that builds the student, the one that the "
            f"run was configured with, import it as `build`, and then, w{text[1:]}"
        )
    return text


def _table(manifest: Mapping[str, Any]) -> str:
    rows = ["| | name | type | shape |", "|---|---|---|---|"]
    for kind in ("inputs", "outputs"):
        for spec in (TensorSpec.from_json(fields) for fields in manifest[kind]):
            rows.append(
                f"| {kind[:-1]} | {_cell(spec.name)} | {_cell(spec.dtype)} | {_cell(' × '.join(map(str, spec.shape)))} |"
            )
    free = [size for size in (BATCH, LENGTH) if any(size in fields["shape"] for fields in manifest["inputs"])]
    bounds = [
        f"a {size} is {manifest[limit]:,} at most"
        for size, limit in ((BATCH, "max_batch"), (LENGTH, "max_length"))
        if manifest.get(limit)
    ]
    text = f"An axis that is named ({', '.join(free)}) is free" + (f"; {', '.join(bounds)}." if bounds else ".")
    return "\n".join(rows) + f"\n\n{text} The logits have a column for each class, in the order below."


def _preprocessing(preprocessing: Mapping[str, Any]) -> str:
    steps = preprocessing["steps"]
    if not steps:
        return "None: the model was trained on the examples as they are in its data."
    listed = "\n".join(f"{number}. {_code(step)}" for number, step in enumerate(steps, 1))
    return (
        "An example must go through these steps, in this order, before the model sees it, as it did in training; without them the "
        f"answers are worthless, and nothing would say so.\n\n{listed}"
    )


def _classes(classes: Sequence[str]) -> str:
    listed = ", ".join(_code(name) for name in classes[:LISTED_CLASSES])
    more = len(classes) - LISTED_CLASSES
    return listed + (f", and {more:,} more, which `manifest.json` lists." if more > 0 else ".")


def _temperature(temperature: float) -> str:
    if temperature == 1:
        return "1: the softmax of the logits as they are gives the probabilities; no temperature made them better on validation."
    return (
        f"{temperature:.4g}: the logits are divided by it before the softmax. It was fitted on the validation split, so that the "
        "probabilities say how often the model is right; it changes no answer."
    )


def _parity(parity: Mapping[str, Any] | None, quantisation: Mapping[str, Any] | None) -> str:
    parts: list[str] = []
    if quantisation:
        method = f"Its weights are quantised: {_plain(quantisation.get('method', 'int8'))}."
        parts.append(" ".join(filter(None, [method, _plain(quantisation.get("why") or "")])))
    if parity:
        limit = f" ({parity['tolerance']:.0e} was allowed)" if parity.get("tolerance") is not None else ""
        parts.append(
            "It was asked what the trained student was asked, at several batch sizes and lengths: the largest difference of a logit "
            f"was {parity['max_abs']:.2g}{limit}, the mean {parity['mean_abs']:.2g}, and {100 * parity['agreement']:.4g}% of the answers "
            f"were the same class. It {'passed' if parity['passed'] else '**failed**'}: {_plain(parity['why']).rstrip('.')}."
        )
    return "\n\n".join(parts) or "That was not measured."


def _provenance(manifest: Mapping[str, Any]) -> str:
    run, versions = manifest["run"], manifest.get("versions") or {}
    facts = {
        "exported": manifest.get("created"),
        "run": run["title"],
        "arm": run["arm"],
        "seed": run.get("seed"),
        "SHA-256 of the config": run.get("config_sha256"),
        "SHA-256 of the trained weights": run.get("weights_sha256"),
        "ONNX operator set": manifest.get("opset"),
        "made with": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    rows = [f"| {name} | {_cell(str(value))} |" for name, value in facts.items() if value not in (None, "")]
    return "\n".join(["| | |", "|---|---|", *rows]) + "\n\nThe hash of every file is in `manifest.json`."


def _plain(text: object) -> str:
    """Text on one line in which Markdown finds nothing to do."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", " ".join(str(text).split()))


def _code(text: object) -> str:
    """Text as it is, on one line, in a code span."""
    line = " ".join(str(text).split()) or " "
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    pad = " " if "`" in line else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def _cell(text: str) -> str:
    """A code span that keeps inside its table cell."""
    return _code(text).replace("|", "\\|")
