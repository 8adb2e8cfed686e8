"""Self-contained HTML pages: one file, no network, no scripts; light and dark, wide and narrow screens.

A page is a title and sections; what stands in a section is made here (``paragraph``, ``table``, ``figure``) or in
``drawings.py``. Text given to these functions is escaped; ``Html`` marks what is HTML already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


class Html(str):
    """Text that is HTML already and stands in a page as it is."""

    __slots__ = ()


@dataclass(frozen=True)
class PageSection:
    """A heading and what stands below it."""

    title: str
    parts: Sequence[Html]


def html(text: str) -> Html:
    """``text`` as HTML: escaped, unless it is marked as HTML already."""
    return text if isinstance(text, Html) else Html(escape(text))


def page(title: str, sections: Sequence[PageSection], *, summary: str = "") -> str:
    """A whole document. ``summary`` is the sentence below the title."""
    body = [f"<h1>{html(title)}</h1>"]
    body += [f'<p class="summary">{html(summary)}</p>'] if summary else []
    for section in sections:
        body += [f"<section><h2>{html(section.title)}</h2>", *section.parts, "</section>"]
    lines = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html(title)}</title><style>{_STYLE}</style></head><body><main>",
        *body,
        "</main></body></html>",
    ]
    return "\n".join(lines) + "\n"


def paragraph(text: str, kind: str = "") -> Html:
    """``kind``: nothing, or ``note``, ``warning``, ``good``."""
    attribute = f' class="{escape(kind)}"' if kind else ""
    return Html(f"<p{attribute}>{html(text)}</p>")


def listing(items: Sequence[str], kind: str = "") -> Html:
    """A bullet for each item."""
    attribute = f' class="{escape(kind)}"' if kind else ""
    return Html(f"<ul{attribute}>" + "".join(f"<li>{html(item)}</li>" for item in items) + "</ul>")


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1, caption: str = "") -> Html:
    """The first ``left`` columns hold names, the others numbers. A wide table scrolls inside its own box."""
    head = "".join(_cell("th", cell, column < left) for column, cell in enumerate(headers))
    body = "".join(
        "<tr>" + "".join(_cell("td", cell, column < left) for column, cell in enumerate(row)) + "</tr>" for row in rows
    )
    name = f"<caption>{html(caption)}</caption>" if caption else ""
    inside = f"<table>{name}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return Html(f'<div class="scroll" tabindex="0">{inside}</div>')


def figure(drawing: Html, caption: str = "") -> Html:
    """A drawing with its caption. It is never wider than the page."""
    return Html(f"<figure>{drawing}<figcaption>{html(caption)}</figcaption></figure>")


def columns(parts: Sequence[Html]) -> Html:
    """Parts side by side where there is room, one below the other where there is none."""
    return Html('<div class="columns">' + "".join(f"<div>{part}</div>" for part in parts) + "</div>")


def folded(title: str, parts: Sequence[Html]) -> Html:
    """Parts that are shown when the reader opens them."""
    return Html(f"<details><summary>{html(title)}</summary>{''.join(parts)}</details>")


def strong(text: str) -> Html:
    return Html(f"<strong>{html(text)}</strong>")


def underlined(text: str) -> Html:
    return Html(f"<u>{html(text)}</u>")


def faint(text: str) -> Html:
    return Html(f'<span class="faint">{html(text)}</span>')


def _cell(tag: str, content: str, is_name: bool) -> str:
    kind = ' class="name"' if is_name else ""
    return f"<{tag}{kind}>{html(content)}</{tag}>"


SERIES = 8
"""So many colours there are for series of a drawing; the ninth series takes the first one again."""

# Eight colours that people with any colour vision can tell apart (Okabe and Ito), the dark ones lightened on dark.
_LIGHT = "--s0:#0072b2;--s1:#d55e00;--s2:#009e73;--s3:#cc79a7;--s4:#8a6d00;--s5:#3b8fc4;--s6:#5b5b5b;--s7:#9a3b1f"
_DARK = "--s0:#5ab4f0;--s1:#ff9a4d;--s2:#3ddbaa;--s3:#e9a3ca;--s4:#e6c84f;--s5:#9ad4ff;--s6:#b8b8b8;--s7:#ffb199"

_STYLE = (
    ":root{color-scheme:light dark;--ink:#1b1f24;--faint:#59636e;--paper:#ffffff;--raised:#f5f7f9;--line:#d0d7de;"
    f"--warn:#9a5b00;--good:#1a7f37;{_LIGHT}}}"
    "@media (prefers-color-scheme:dark){:root{--ink:#e8ecf0;--faint:#a3adb8;--paper:#14181d;--raised:#1d2229;"
    f"--line:#3a424c;--warn:#f0b455;--good:#56d364;{_DARK}}}}}"
    "*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);"
    "font:16px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif}"
    "main{max-width:76rem;margin:0 auto;padding:1.25rem 1rem 4rem}h1{font-size:1.6rem;line-height:1.25;margin:.5rem 0}"
    "h2{font-size:1.2rem;margin:2rem 0 .5rem;padding-top:.5rem;border-top:1px solid var(--line)}"
    "p,ul{max-width:48rem}.summary{font-size:1.05rem;color:var(--faint)}.faint{color:var(--faint)}"
    ".note,.warning,.good{border-left:4px solid var(--line);padding:.4rem .8rem;background:var(--raised)}"
    ".warning{border-color:var(--warn)}.good{border-color:var(--good)}ul.warning,ul.note{padding-left:2rem}"
    ".scroll{overflow-x:auto;max-width:100%}table{border-collapse:collapse;font-size:.9rem;"
    "font-variant-numeric:tabular-nums}caption{text-align:left;color:var(--faint);padding:.3rem 0}"
    "th,td{padding:.3rem .6rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}"
    "th{vertical-align:bottom;border-bottom-width:2px;white-space:normal}th.name,td.name{text-align:left;white-space:normal}"
    "td.name:first-child,th.name:first-child{position:sticky;left:0;background:var(--paper);max-width:16rem;"
    "overflow-wrap:break-word}"
    "figure{margin:1rem 0}figure svg{display:block;max-width:100%;height:auto}"
    "figcaption{color:var(--faint);font-size:.9rem;max-width:48rem}"
    ".columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:1rem 2rem;"
    "align-items:start}details{margin:.5rem 0}summary{cursor:pointer}code,pre{font:.9em ui-monospace,monospace}"
    "pre{overflow-x:auto;background:var(--raised);padding:.6rem}"
    "svg text{fill:var(--ink);font:13px system-ui,-apple-system,'Segoe UI',Roboto,Arial,sans-serif}"
    "svg text.faint{fill:var(--faint)}svg .axis{stroke:var(--faint);fill:none}svg .grid{stroke:var(--line);fill:none}"
    + "".join(f"svg .s{i}{{stroke:var(--s{i});fill:var(--s{i})}}" for i in range(SERIES))
    + "svg .open{fill:none}svg .area{fill-opacity:.12}svg text.label{stroke:var(--paper);stroke-width:3px;"
    "paint-order:stroke;stroke-linejoin:round}"
    "@media (max-width:30rem){body{font-size:15px}main{padding:.75rem .75rem 3rem}h1{font-size:1.35rem}"
    "th,td{padding:.25rem .4rem}td.name:first-child,th.name:first-child{max-width:8rem}}"
)
