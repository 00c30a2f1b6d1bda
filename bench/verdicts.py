"""Which goals held in how many sessions of how many.

    python bench/verdicts.py [bench/out/results-*.json ...]      without names: the last three of the newest tree
"""

import sys

import saved
from results import number_text, table

HEAD = ("id", "case", "first", "goal", "first held", "goal held", "ratios")


def held(sessions):
    """[(id, case, first, goal, "n of m", "n of m", ratios)] of every row that something is required of, in the order of the last session."""
    found = {}
    for session in reversed(sessions):
        for row in session.rows:
            if row.verdict:
                found.setdefault((row.section, row.id, row.case), []).insert(0, row)
    lines = []
    for (_, id, case), rows in sorted(found.items(), key=lambda item: (item[0][1] == "", item[0][1])):
        last, sign = rows[-1], "<=" if rows[-1].at_most else ">="
        required = ["" if each is None else f"{sign} {each:g}" for each in (last.first, last.goal)]
        firsts = sum(row.verdict != "below first" for row in rows)
        goals = f"{sum(row.verdict == 'goal' for row in rows)} of {len(rows)}" if last.goal is not None else ""
        lines.append((id, case, *required, f"{firsts} of {len(rows)}", goals, ", ".join(number_text(row.ratio) for row in rows)))
    return lines


def section(sessions):
    """The text about them for RESULTS.md."""
    when = "; ".join(f"{session.started[:16].replace('T', ' ')} UTC, commit {dict(session.machine)['commit']}" for session in sessions)
    lines = held(sessions)
    judged = [line for line in lines if line[0] and line[5]]
    all_of_them = [line for line in judged if line[5].split(" of ")[0] == line[5].split(" of ")[1]]
    return (
        f"The last {len(sessions)} whole session{'s' if len(sessions) > 1 else ''} of this tree: {when}. Of {len(judged)} goals {len(all_of_them)} held in every one."
        f"\n\n{table(HEAD, lines)}"
    )


def main(names):
    if names:
        sessions = sorted((saved.load(name) for name in names), key=lambda session: session.started)
    else:
        newest = sorted(saved.DIRECTORY.glob("results-*.json"))
        if not newest:
            sys.exit(f"no saved sessions in {saved.DIRECTORY}: ./test.sh bench makes one")
        sessions = saved.last_of(saved.load(newest[-1]).tree, 3)
    print(section(sessions))


if __name__ == "__main__":
    main(sys.argv[1:])
