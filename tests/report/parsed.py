"""A page read with the standard library's parser."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """What the tests ask of a page: its elements with their attributes and texts, and whether its tags balance."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[list[str]] = []
        self._open: list[int] = []
        self.feed(html)
        self.close()
        assert not self._open, f"never closed: {[self.elements[index][0] for index in self._open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.texts.append([])
        if tag not in VOID:
            self._open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.texts.append([])

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self._open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        for index in self._open:
            self.texts[index].append(data)

    def all(self, *tags: str) -> list[tuple[dict[str, str | None], str]]:
        """The attributes and the text of every element of those kinds."""
        pairs = zip(self.elements, self.texts, strict=True)
        return [(attrs, " ".join("".join(words).split())) for (tag, attrs), words in pairs if tag in tags]

    def one(self, element_id: str) -> str:
        """The text of the element of that id."""
        (found,) = [
            " ".join("".join(words).split())
            for (_, attrs), words in zip(self.elements, self.texts, strict=True)
            if attrs.get("id") == element_id
        ]
        return found

    def cells(self, caption: str) -> list[str]:
        """The rows of the table whose caption holds those words, their cells parted by ``" | "``."""
        rows: list[list[str]] = []
        mine = False
        for (tag, _), words in zip(self.elements, self.texts, strict=True):
            said = " ".join("".join(words).split())
            if tag == "table":
                mine = False
            elif tag == "caption":
                mine = caption in said
            elif mine and tag == "tr":
                rows.append([])
            elif mine and tag in ("td", "th"):
                rows[-1].append(said)
        assert rows, f"no table whose caption holds {caption!r}"
        return [" | ".join(row) for row in rows]
