"""The pictures of a session: one SVG per family of rows (bars of ours, of the peers, of what bounds them) and per chart of lines.

    python bench/pictures.py RESULTS.json [DIRECTORY]      draws what a session saved (bench/out/results-*.json) once more
"""

import math
import re
import statistics
import sys
from pathlib import Path

from svg import WIDTH, Picture

LEFT, SPAN, BAR, STEP = 244, 386, 15, 21  # where bars begin, the longest one, its height, from one to the next
PANELS = (  # figures beside the rate that get bars of their own, where rows of ours carry them
    ("cpu", "CPU seconds per GiB, both sides (less is better)"), ("wire", "bytes on the wire per byte changed (less is better)"),
    ("read", "bytes read per byte changed (less is better)"), ("rss", "peak memory, MiB (less is better)"), ("p99", "p99 latency of a program beside it / alone (less is better)"),
)  # fmt: skip


def slug(words):
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.095 else f"{value:.3g}"


def share(ratio):
    return f"{ratio:.0%}" if ratio >= 0.1 else f"{ratio:.1%}"


def measure_text(value, unit):
    if unit != "GB/s":
        return f"{number(value)} {unit}".rstrip()
    return f"{number(value / 1e9)} GB/s" if value >= 1e8 else f"{number(value / 1e6)} MB/s"


def cpu_of_figures(figures):
    """Both sides' CPU of what a row carries, or None."""
    sides = [figures[name] for name in ("cpu_source", "cpu_target") if name in figures]
    return figures.get("cpu", sum(sides) if len(sides) == 2 else None)


def carried(figures, panel):
    return cpu_of_figures(figures) if panel == "cpu" else figures.get(panel)


def groups_of(rows):
    """{group: rows}, in the order in which they came."""
    found = {}
    for row in rows:
        found.setdefault(row.bars[0], []).append(row)
    return found


def rate_bars(rows):
    """[(name, kind, value, (least, most), what is said of it)] of one group; ours first, then the peers, then the bounds."""
    ours, others = [], []
    for who in dict.fromkeys(row.who for row in rows):
        own = [row for row in rows if row.who == who]
        ranges = [row.range_ours for row in own if row.range_ours]
        spread = (min(each[0] for each in ranges), max(each[1] for each in ranges)) if ranges else ()
        ours.append((who, "ours", statistics.median(row.ours for row in own), spread, ""))
    for row in rows:
        if row.ceiling is None:
            continue
        said = f"qrep takes {share(row.ratio)} of it" if row.at_most else f"qrep: {number(row.ratio)}×" if row.peer else f"qrep reaches {share(row.ratio)}"
        others.append((row.bars[1], "peer" if row.peer else "bound", row.ceiling, row.range_ceiling, said))
    return [*ours, *sorted(others, key=lambda bar: (bar[1] == "bound", bar[2] if rows[0].at_most else -bar[2]))]


def panel_bars(rows, panel):
    """The same of one of PANELS: those that carry it."""
    own = [value for row in rows if (value := carried(row.figures, panel)) is not None]
    made = [("qrep", "ours", statistics.median(own), (), "")] if own else []
    for row in rows:
        if row.peer and (value := carried(row.peer_figures, panel)) is not None:
            made.append((row.peer, "peer", value, (), f"qrep: {number(made[0][2] / value)}×" if own and value else ""))
    return made


def draw_panel(picture, y, heading, groups, text):
    """One row of bars below the other, from y on; where it ends. groups: {name: bars}."""
    picture.write(24, y, heading, size=13, kind="dim", bold=True)
    y += 12
    longest = max((max([bar[2], *bar[3]]) for made in groups.values() for bar in made), default=1) or 1
    alone = all(len(made) == 1 for made in groups.values())
    for name, made in groups.items():
        if not alone:
            y += 20
            picture.write(24, y, name, size=13, bold=True)
            y += 8
        for who, kind, value, spread, said in made:
            picture.write(LEFT - 10, y + BAR - 3, (name if alone else who)[:32], anchor="end", bold=kind == "ours" and not alone)
            picture.box(LEFT, y, SPAN * value / longest, BAR, kind, rim="rim" if kind == "bound" else None)
            end = value
            if spread and spread[1] > spread[0]:
                low, high = (LEFT + SPAN * each / longest for each in spread)
                picture.line([(low, y + BAR / 2), (high, y + BAR / 2)], "text", width=1.2)
                for x in (low, high):
                    picture.line([(x, y + 4), (x, y + BAR - 4)], "text", width=1.2)
                end = max(value, spread[1])
            x = LEFT + SPAN * end / longest + 8
            picture.write(x, y + BAR - 3, text(value), bold=kind == "ours")
            if said:
                picture.write(x + 7.6 * len(text(value)) + 6, y + BAR - 3, said, size=11.5, kind="dim")
            y += STEP
    return y + 26


def bars(family, rows, foot):
    """The picture of a family. Raises ValueError if its rows have several units."""
    if len(units := {row.unit for row in rows}) > 1:
        raise ValueError(f"{family}: rows of one picture have one unit, not {sorted(units)}")
    groups, unit = groups_of(rows), rows[0].unit
    less = any(row.at_most for row in rows)
    picture = Picture(family[0].upper() + family[1:], "medians of the rounds, with the least and the most; peers and bounds ran in the same rounds")
    kinds = {bar[1] for group in groups.values() for bar in rate_bars(group)}
    x = WIDTH - 24
    for kind, words in (("bound", "bound"), ("peer", "peer"), ("ours", "qrep")):
        if kind in kinds and len(kinds) > 1:
            picture.write(x, 36, words, anchor="end")
            x -= 7.8 * len(words) + 18
            picture.box(x, 26, 12, 12, kind, rim="rim" if kind == "bound" else None)
            x -= 16
    heading = f"{unit or 'ratio'} ({'less' if less else 'more'} is better)"
    y = draw_panel(picture, 84, heading, {name: rate_bars(group) for name, group in groups.items()}, lambda value: measure_text(value, unit))
    for panel, words in PANELS:
        found = {name: made for name, group in groups.items() if (made := panel_bars(group, panel))}
        if any(bar[1] == "ours" for made in found.values() for bar in made) and sum(map(len, found.values())) > 1:
            y = draw_panel(picture, y, words, found, number)
    return picture.text(y + 16, foot)


def tick_text(value, unit):
    if unit == "bytes":
        power = min(4, max(0, int(math.log2(value)) // 10))
        return f"{value / 1024**power:g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
    if unit == "s":
        return next(f"{value / scale:g} {word}" for scale, word in ((1, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")) if value >= scale * 0.999 or scale == 1e-9)
    return f"{value:g} {unit}".rstrip() if unit != "%" else f"{value:g} %"


def ticks(low, high, unit):
    """Round values of a logarithmic axis, at least two, at most about nine."""
    base = 4 if unit == "bytes" else 10
    first, last = math.floor(math.log(low, base) + 1e-9), math.ceil(math.log(high, base) - 1e-9)
    last = max(last, first + 1)
    step = max(1, math.ceil((last - first) / 9))
    return [float(base) ** power for power in range(first, last + step, step)]


def spread_out(wanted, gap):
    """Heights near the wanted ones, none nearer than `gap` to the next; in the same order."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    placed, last = list(wanted), -math.inf
    for index in order:
        placed[index] = last = max(wanted[index], last + gap)
    return placed


def positive(chart):
    return [(x, y) for line in chart.lines.values() for x, y in line if x > 0 and y > 0]


def lines(chart, foot):
    """The picture of a chart of lines; both axes are logarithmic. It has points above zero."""
    points = positive(chart)
    xs = ticks(min(x for x, _ in points), max(x for x, _ in points), chart.x_unit)
    ys = ticks(min([y for _, y in points] + list(chart.bounds.values())), max([y for _, y in points] + list(chart.bounds.values())), chart.y_unit)
    left, right, top, bottom = 92, WIDTH - 220, 88, 400

    def at(x, y):
        across, up = math.log(x / xs[0]) / math.log(xs[-1] / xs[0]), math.log(y / ys[0]) / math.log(ys[-1] / ys[0])
        return left + (right - left) * across, bottom - (bottom - top) * up

    picture = Picture(chart.title, f"{chart.y}, against {chart.x}; both axes are logarithmic")
    for value in ys:
        picture.line([at(xs[0], value), at(xs[-1], value)], "grid")
        picture.write(left - 8, at(xs[0], value)[1] + 4, tick_text(value, chart.y_unit), size=11.5, kind="dim", anchor="end")
    for value in xs:
        picture.line([at(value, ys[0]), at(value, ys[-1])], "grid")
        picture.write(at(value, ys[0])[0], bottom + 18, tick_text(value, chart.x_unit), size=11.5, kind="dim", anchor="middle")
    picture.write((left + right) / 2, bottom + 40, chart.x, anchor="middle")
    ends = []
    for name, value in chart.bounds.items():
        picture.line([at(xs[0], value), at(xs[-1], value)], "rim", width=1.5, dashed=True)
        ends.append((name, "dim", at(xs[-1], value)))
    for number_, (name, line) in enumerate(chart.lines.items()):
        kind, drawn = f"line{number_ % 8}", [at(x, y) for x, y in sorted(line) if x > 0 and y > 0]
        if not drawn:
            continue
        picture.line(drawn, kind, width=2.2)
        for x, y in drawn:
            picture.dot(x, y, kind)
        ends.append((name, kind, drawn[-1]))
    for (name, kind, (_, y)), placed in zip(ends, spread_out([end[2][1] for end in ends], 16), strict=True):
        picture.line([(right + 4, y), (right + 16, placed)], "grid" if kind == "dim" else kind)
        picture.write(right + 20, placed + 4, name[:30], kind=kind, bold=kind != "dim")
    return picture.text(bottom + 78, foot)


def draw(directory, rows, charts, foot):
    """Write a picture for each family, and take away those of families that are no more; [(family, file name)]."""
    directory.mkdir(parents=True, exist_ok=True)
    families = {}
    for row in rows:
        if row.family:
            families.setdefault(row.family, []).append(row)
    drawn = [(family, bars(family, found, foot)) for family, found in families.items()] + [(chart.family, lines(chart, foot)) for chart in charts if positive(chart)]
    names = [(family, f"{slug(family)}.svg") for family, _ in drawn]
    if len({name for _, name in names}) < len(names):
        raise ValueError(f"two pictures of one name: {names}")
    for old in directory.glob("*.svg"):
        if old.name not in {name for _, name in names}:
            old.unlink()
    for (_, text), (_, name) in zip(drawn, names, strict=True):
        (directory / name).write_text(text)
    return names


if __name__ == "__main__":
    import saved

    session = saved.load(Path(sys.argv[1]))
    for _, made in draw(Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).with_name("pictures"), session.rows, session.charts, session.foot):
        print(made)
