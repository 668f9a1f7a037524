"""What a piece of HTML consists of."""

import html.parser


class Tags(html.parser.HTMLParser):
    """The tags of some HTML, its text, and its attributes."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags, self.text, self.names = set[str](), "", set[str]()
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.names |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data
