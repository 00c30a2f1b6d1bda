"""A small writer of SVG pictures that can be read on a light and on a dark page: a card with its own background, colours by class."""

from html import escape

WIDTH = 880
# name: (on a light page, on a dark page)
COLOURS = {
    "card": ("#ffffff", "#14181f"), "edge": ("#d5dae1", "#323a46"), "text": ("#1b2430", "#e6eaf0"), "dim": ("#5c6877", "#9aa7b6"), "grid": ("#e6e9ee", "#2a313c"),
    "ours": ("#1668dc", "#4c9bff"), "peer": ("#a9b3c1", "#66717f"), "bound": ("#e4d3a6", "#6d5c2c"), "rim": ("#b18a2c", "#cfa94e"),
    "line0": ("#1668dc", "#4c9bff"), "line1": ("#c2410c", "#fb8b4b"), "line2": ("#15803d", "#4ade80"), "line3": ("#9333ea", "#c58bff"),
    "line4": ("#b0851a", "#e8c35a"), "line5": ("#0e7490", "#4dd0e6"), "line6": ("#be185d", "#f472b6"), "line7": ("#52606f", "#a9b6c4"),
}  # fmt: skip


def style():
    def rules(page):
        parts = []
        for name, pair in COLOURS.items():
            parts.append(f".{name}{{fill:{pair[page]}}}.s-{name}{{stroke:{pair[page]};fill:none}}")
        return "".join(parts)

    return (
        f"<style>text{{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif}}{rules(0)}"
        f"@media (prefers-color-scheme:dark){{{rules(1)}}}</style>"
    )


class Picture:
    """Shapes in the order in which they are added; written with `text()`. Lengths are pixels; the picture is WIDTH wide and as high as it is said to be at the end."""

    def __init__(self, title, below=""):
        self.title, self.parts = title, []
        self.write(24, 36, title, size=18, bold=True)
        if below:
            self.write(24, 56, below, size=12.5, kind="dim")

    def write(self, x, y, text, *, size=12.5, kind="text", anchor="start", bold=False):
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"{weight}>{escape(text)}</text>')

    def box(self, x, y, width, height, kind, *, rim=None, radius=2):
        self.parts.append(f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{max(width, 1):.1f}" height="{height:.1f}" rx="{radius}"/>')
        if rim:
            self.parts.append(f'<rect class="s-{rim}" x="{x:.1f}" y="{y:.1f}" width="{max(width, 1):.1f}" height="{height:.1f}" rx="{radius}" stroke-dasharray="4 3"/>')

    def line(self, points, kind, *, width=1.0, dashed=False):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(f'<polyline class="s-{kind}" points="{path}" stroke-width="{width}"{dash} stroke-linejoin="round"/>')

    def dot(self, x, y, kind, radius=3.2):
        self.parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>')

    def text(self, height, foot=""):
        if foot:
            self.write(24, height - 14, foot, size=11, kind="dim")
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" height="{height:.0f}" role="img" aria-label="{escape(self.title)}">'
            f'{style()}<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1:.0f}" rx="8"/>'
            f'<rect class="s-edge" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1:.0f}" rx="8"/>\n' + "\n".join(self.parts) + "\n</svg>\n"
        )
