"""The README's Python example works as pasted."""

import re
import subprocess
import sys
from pathlib import Path

from forked import forked

ROOT = Path(__file__).parents[1]


def python_blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), flags=re.DOTALL)


def test_first_example_runs_as_pasted(tmp_path: Path) -> None:
    """A first example that fails is the last thing a newcomer reads."""
    example = python_blocks("README.md")[0]
    assert sum(bool(line.strip()) for line in example.splitlines()) <= 12, "the first example is to stay short"
    command = [sys.executable, "-W", "error::UserWarning", "-c", example]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    decision, page = done.stdout.split()[-2:]
    assert decision in {"ship", "hold", "reject"}
    assert (tmp_path / page).is_file()


def test_a_language_model_trains_as_pasted(tmp_path: Path) -> None:
    """The page on large vocabularies is all there is to copy from for a language model."""
    example = python_blocks("docs/heads.md")[0]
    script = tmp_path / "example.py"
    script.write_text(example)
    done = forked(script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out").is_dir()


def test_every_link_leads_somewhere_and_nothing_is_left_to_fill_in() -> None:
    """A picture that is not there is the first thing a newcomer would see."""
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")]:
        text = path.read_text()
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
            assert (path.parent / target).exists(), f"{path.name} links {target}"
        assert not re.search(r"^[A-Z_]{4,}$", text, flags=re.MULTILINE), f"{path.name} has a placeholder"


def test_no_document_names_a_machine() -> None:
    """Paths of the machine a text was written on mean nothing to its readers."""
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")]:
        assert not re.search(r"/(work|tmp|root|home)/", path.read_text()), path
