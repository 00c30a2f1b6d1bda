"""One comparison: ours against its ceiling and any number of peers, in turn, as rows of the table. The fixture is in conftest.py, and what it is for."""

import statistics

from measure import ROUNDS, Against, Row, add_row, median_figures, timed, wait_quiet


class Comparison:
    """compare(id, case, ours, ceiling, *, first, goal, ...) -> Row, also kept for the table. As often as a bench likes.

    ours, ceiling: callables that return a figure. setup: called before every round of ours, not measured. also: {name: callable or Against}, run
    before the ceiling in every round; their rows follow. family, peer, group: see Row.
    """

    def __init__(self, benchmark):
        self._benchmark = benchmark

    def __call__(self, id, case, ours, ceiling, *, first=None, goal=None, at_most=False, unit="GB/s", rounds=ROUNDS, setup=None, note="", also=None, **named):
        others = {name: other if isinstance(other, Against) else Against(other) for name, other in (also or {}).items()}
        judge = named.get("peer") or case.partition(" / ")[2] or "ceiling"
        tops, figures, busy = {each: [] for each in (None, *others)}, [], []

        def before():
            for name, other in others.items():
                tops[name].append(timed(name, other.call))
            busy.append(wait_quiet())
            tops[None].append(timed(judge, ceiling))  # what ours is judged by comes right before it
            if setup is not None:
                timed("setup", setup)

        if self._benchmark is not None:
            self._benchmark.pedantic(lambda: figures.append(timed("ours", ours)), setup=before, rounds=rounds, iterations=1)
        else:
            for _ in range(rounds):
                before()
                figures.append(timed("ours", ours))

        def row(id, case, against, first, goal, note, **named):
            ratios = [figure / top for figure, top in zip(figures, against, strict=True)]
            return Row(
                id, case, *(float(statistics.median(each)) for each in (figures, against, ratios)), (min(ratios), max(ratios)), first, goal, at_most, unit,
                note, busy=statistics.median(busy), figures=median_figures(figures), peer_figures=median_figures(against),
                range_ours=(float(min(figures)), float(max(figures))), range_ceiling=(float(min(against)), float(max(against))), **named,
            )  # fmt: skip

        benchmark, self._benchmark = self._benchmark, None  # the plug-in times one thing per test
        made = add_row(row(id, case, tops[None], first, goal, note, **named), benchmark)
        group, named = made.bars[0], {name: value for name, value in named.items() if name not in ("peer", "group")}
        for name, other in others.items():
            peer = "" if other.bound else name
            add_row(row(other.id, f"{group} / {name}", tops[name], other.first, other.goal, other.note, peer=peer, group=group, **named))
        return made
