"""What a named Python file imports from beside it decides the weights as much as the file itself."""

from pathlib import Path

import pytest

from tutelage.config.models import facts_of


@pytest.mark.parametrize("edited", ["models.py", "layers.py", "deep.py", "pieces/one.py"])
def test_an_edit_of_any_file_that_a_model_is_made_of_changes_the_facts(tmp_path: Path, edited: str) -> None:
    """An activation that is edited in a helper changes no initial weight: a resumed study would mix students of two codes."""
    files = {
        "models.py": "import torch\nfrom layers import act\n\ndef student():\n    from pieces.one import block\n",
        "layers.py": "import deep\nimport models\n",
        "deep.py": "act = 1\n",
        "pieces/__init__.py": "",
        "pieces/one.py": "block = 1\n",
        "other.py": "idle = 1\n",
    }
    (tmp_path / "sub" / "pieces").mkdir(parents=True)
    for name, text in files.items():
        (tmp_path / "sub" / name).write_text(text)
    sections = {"data": {}, "model": {"python": "sub/models.py:student"}}
    before = facts_of(sections, tmp_path)
    assert {key for key in before if key.startswith("contents of")} == {
        f"contents of sub/{name}" for name in files if name != "other.py"
    }
    (tmp_path / "sub" / edited).write_text(files[edited] + "# edited\n")
    after = facts_of(sections, tmp_path)
    assert [key for key in before if before[key] != after[key]] == [f"contents of sub/{edited}"]
