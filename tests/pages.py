"""Web pages that tests read."""

import html.parser


class Page(html.parser.HTMLParser):
    """The tags, addresses and captions of a page; its tags must be closed, and none may run code on an event."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.addresses, self.captions, self.open = [], [], [], [], []
        self.feed(text)
        assert not self.open  # every tag is closed

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name == "src"]
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        assert not any(name.startswith("on") for name, _ in attributes)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "figcaption" in self.open and data.strip():
            self.captions.append(data.strip())
