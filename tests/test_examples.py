"""Every example's config is one that the schema knows."""

from pathlib import Path

import pytest

from tutelage.config import load_config

EXAMPLES = Path(__file__).parents[1] / "examples"
CONFIGS = sorted(path for path in EXAMPLES.glob("**/*.yaml") if "runs" not in path.parts)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_a_config_is_one_that_the_schema_knows(path: Path) -> None:
    """A key that was renamed since would stop a reader at the first command of an example."""
    load_config(path)


def test_there_are_configs() -> None:
    """The test above would pass on none."""
    assert len(CONFIGS) > 10
