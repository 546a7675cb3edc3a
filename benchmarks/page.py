"""``docs/benchmarks.md``, of which each benchmark writes its own section between marks."""

from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"


def marked(name: str, text: str) -> str:
    """A section with its marks."""
    return f"<!-- {name}: begin -->\n{text.strip()}\n<!-- {name}: end -->\n"


def write_section(name: str, text: str) -> None:
    """Put a section where it stood, or at the page's end; and print it."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->\n"
    page = PAGE.read_text(encoding="utf-8")
    before, found, rest = page.partition(begin)
    new = marked(name, text)
    after = rest.partition(end)[2] if found else ""
    PAGE.write_text(f"{before}{new}{after}" if found else f"{page.rstrip()}\n\n{new}", encoding="utf-8")
    print(new)
