"""Self-contained pages: one HTML file with style and pictures inside, no script, and nothing to fetch."""

import html

from .text import printable

STYLE = """
:root { color-scheme: light; --ground: #fff; --ink: #202124; --line: #8884; --faint: #5f6368; --accent: #00796b;
  --alarm: #c62828; --link: #0b57d0 }
@media (prefers-color-scheme: dark) {
  :root { color-scheme: dark; --ground: #121418; --ink: #e8eaed; --faint: #aab0b7; --accent: #4db6ac;
    --alarm: #ff8a80; --link: #8ab4f8 } }
* { box-sizing: border-box }
body { background: var(--ground); color: var(--ink) } a { color: var(--link) }
body { margin: 0 auto; max-width: 75rem; padding: 0.75rem; font: 1rem/1.45 system-ui, sans-serif }
body { overflow-wrap: anywhere }
h1 { font-size: 1.4rem; margin: 0.5rem 0 } h2 { font-size: 1.15rem; margin: 1.5rem 0 0.5rem }
p, small, figcaption { margin: 0.25rem 0 } small, .faint { color: var(--faint) }
details { border-left: 2px solid var(--line); margin: 0.25rem 0; padding-left: 0.6rem }
summary { cursor: pointer; padding: 0.45rem 0; font-weight: 600 }
summary .faint { font-weight: 400 }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: 0.6rem; margin: 0.5rem 0 }
figure { margin: 0; border: 1px solid var(--line); border-radius: 6px; overflow: hidden }
figure img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: #8882 }
figcaption { padding: 0.35rem 0.5rem; font-size: 0.8rem; line-height: 1.3 }
.bar { display: block; height: 4px; background: var(--line) }
.bar i { display: block; height: 100%; background: var(--accent) }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: 0.9rem; overflow-wrap: break-word }
th, td { padding: 0.25rem 0.6rem; text-align: right; border-bottom: 1px solid var(--line) }
th:first-child, td:first-child { text-align: left }
svg { max-width: 100%; height: auto }
""".strip()


def escape_text(text: object) -> str:
    """Return untrusted text as HTML: escaped, without control characters and lone surrogates."""
    return html.escape(printable(str(text).encode(errors="replace").decode()))


def make_page(title: str, body: str, style: str = "") -> str:
    """Return an HTML page.

    Args:
        title: Plain text.
        body: HTML; untrusted text in it must have gone through :func:`escape_text`.
        style: CSS of this page, which follows the CSS of all pages.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # The browser runs no script and fetches nothing, whatever is in the page.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>{escape_text(title)}</title>\n<style>\n{STYLE}\n{style}</style>\n</head>\n<body>\n"
        f"<main>\n<h1>{escape_text(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def make_bar(share: float) -> str:
    """Return a bar that is filled to a share in [0, 1]."""
    return f'<span class="bar"><i style="width:{100 * min(1.0, max(0.0, share)):.0f}%"></i></span>'
