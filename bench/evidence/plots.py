"""Draws the plots of the page as SVG by hand: lines over an axis, shares as stacked bars. Nothing is fetched."""

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999")
"""Okabe and Ito's, which those who confuse colours can tell apart."""

_WIDTH, _HEIGHT = 640, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 168, 36, 48

Points = Sequence[tuple[float, float]]


def draw_lines(title: str, x_title: str, lines: Mapping[str, Points], top: float = 1.0) -> str:
    """Draw lines of shares (0 to `top`) over x; a line's points are (x, share)."""
    most = max((x for points in lines.values() for x, _ in points), default=1.0) or 1.0
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return _LEFT + width * x / most, _TOP + height * (1 - y / top)

    parts = [_text(_LEFT, 20, title, bold=True), _text(_LEFT + width / 2, _HEIGHT - 10, x_title, anchor="middle")]
    for number in range(5):
        share = top * number / 4
        _, y = place(0, share)
        parts.append(f'<line x1="{_LEFT}" x2="{_LEFT + width}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(_text(_LEFT - 6, y + 4, f"{100 * share:.0f} %", anchor="end"))
        x, _ = place(most * number / 4, 0)
        parts.append(_text(x, _HEIGHT - 28, f"{most * number / 4:g}", anchor="middle"))
    for number, (name, points) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        placed = [place(x, y) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in placed]
        parts += _key(number, name, colour)
    return _frame(parts)


def draw_shares(title: str, bars: Mapping[str, Mapping[str, float]]) -> str:
    """Draw a stacked bar of shares for each name."""
    names = list(dict.fromkeys(part for bar in bars.values() for part in bar))
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    slot = width / max(1, len(bars))
    parts = [_text(_LEFT, 20, title, bold=True)]
    for place, (name, bar) in enumerate(bars.items()):
        y = float(_TOP + height)
        x = _LEFT + slot * (place + 0.15)
        for number, part in enumerate(names):
            tall = height * bar.get(part, 0.0)
            y -= tall
            colour = COLOURS[number % len(COLOURS)]
            box = f'x="{x:.1f}" y="{y:.1f}" width="{0.7 * slot:.1f}" height="{tall:.1f}"'
            parts.append(f'<rect {box} fill="{colour}"/>')
        parts.append(_text(x + 0.35 * slot, _HEIGHT - 28, name, anchor="middle"))
    for number, name in enumerate(names):
        parts += _key(number, name, COLOURS[number % len(COLOURS)])
    return _frame(parts)


def _key(number: int, name: str, colour: str) -> list[str]:
    x, y = _WIDTH - _RIGHT + 14, _TOP + 18 * number
    return [f'<rect x="{x}" y="{y}" width="10" height="10" fill="{colour}"/>', _text(x + 16, y + 9, name)]


def _text(x: float, y: float, words: str, *, anchor: str = "start", bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{weight}>{escape(words)}</text>'


def _frame(parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif"'
    back = f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>'
    return "\n".join([f'{head} font-size="11">', back, *parts, "</svg>"]) + "\n"
