"""A parser for the HTML that tests check."""

import html.parser


class Tags(html.parser.HTMLParser):
    """The tags, attribute names and text of some HTML."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags, self.text, self.names = set[str](), "", set[str]()
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.names |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data
