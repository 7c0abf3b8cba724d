"""Drawings as SVG: boxes, arrows and text that are legible on light and on dark pages.

A drawing brings its own background, because a page may be dark when the reader's system is light.
"""

from dataclasses import dataclass, field
from html import escape

STYLE = """
  .bg { fill: #ffffff; } .ink { fill: #1f2933; } .soft { fill: #52606d; }
  .line { stroke: #52606d; fill: none; stroke-width: 1.5; }
  .box { stroke: #52606d; stroke-width: 1.2; fill: #eef1f4; }
  .a { fill: #bfe3da; } .b { fill: #c9dcf5; } .c { fill: #f6dfb3; } .d { fill: #eccbe2; }
  .bad { fill: #f6c6c0; } .none { fill: none; stroke-dasharray: 4 3; }
  .curve { fill: none; stroke-width: 2.5; } .ca { stroke: #0b7a63; } .cb { stroke: #2f6db5; }
  .cc { stroke: #b26a00; } .cd { stroke: #a03c86; } .tip { fill: #52606d; }
  @media (prefers-color-scheme: dark) {
    .bg { fill: #1d2229; } .ink { fill: #e6eaee; } .soft { fill: #a9b4bf; }
    .line { stroke: #a9b4bf; } .box { stroke: #a9b4bf; fill: #2c343d; }
    .a { fill: #17564a; } .b { fill: #274a73; } .c { fill: #6b4d13; } .d { fill: #63305a; }
    .bad { fill: #7c2d26; } .none { fill: none; } .tip { fill: #a9b4bf; }
    .ca { stroke: #4fd0b3; } .cb { stroke: #7fb2f0; } .cc { stroke: #f0b24d; }
    .cd { stroke: #e08fcd; }
  }
"""


@dataclass
class Drawing:
    """A picture of `width` x `height` pixels; `title` is what a screen reader says."""

    title: str
    width: int
    height: int
    parts: list[str] = field(default_factory=list)

    def box(self, x: float, y: float, w: float, h: float, text: str = "", kind: str = "") -> None:
        """A box with centred text; `kind` is a colour: a, b, c, d, bad or none."""
        self.parts.append(
            f'<rect class="box {kind}" x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="4"/>'
        )
        lines = text.split("\n") if text else []
        for index, line in enumerate(lines):
            self.text(
                x + w / 2, y + h / 2 + 5 + 17 * (index - (len(lines) - 1) / 2), line, "middle"
            )

    def text(
        self,
        x: float,
        y: float,
        text: str,
        anchor: str = "start",
        kind: str = "ink",
        size: int = 13,
    ) -> None:
        """One line of text at its baseline."""
        self.parts.append(
            f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}"'
            f' font-size="{size}">{escape(text)}</text>'
        )

    def arrow(self, x1: float, y1: float, x2: float, y2: float) -> None:
        """A straight arrow."""
        self.path(f"M{x1:g} {y1:g} L{x2:g} {y2:g}")

    def path(self, d: str, *, tip: bool = True, kind: str = "line") -> None:
        """Any path; by default with an arrow's tip at its end."""
        marker = ' marker-end="url(#tip)"' if tip else ""
        self.parts.append(f'<path class="{kind}" d="{d}"{marker}/>')

    def to_svg(self) -> str:
        """The file."""
        body = "\n".join(self.parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.height}"'
            f' viewBox="0 0 {self.width} {self.height}" role="img"'
            ' font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">\n'
            f"<title>{escape(self.title)}</title>\n<style>{STYLE}</style>\n"
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7"'
            ' markerHeight="7" orient="auto-start-reverse"><path class="tip" d="M0 0 L8 4 L0 8 z"/>'
            "</marker></defs>\n"
            f'<rect class="bg" width="{self.width}" height="{self.height}" rx="8"/>\n'
            f"{body}\n</svg>\n"
        )
