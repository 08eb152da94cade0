"""Medians over the rounds, as a table and as JSON."""

import statistics


def summary(results):
    """Of one case: for each row the medians. A ratio is that of one round, so that both saw the same machine."""
    rows = {}
    for label, result in results.items():
        if "failed" in result:
            rows[label] = result
            continue
        rounds = result["rounds"]

        def median(of, rounds=rounds):
            return statistics.median(of(report) for report in rounds)

        row = {key: median(lambda report, key=key: report[key]) for key in ("cpu_us", "per_second", "busy", "disturbed", "sealing_us")}
        row |= {f"{place}_us": median(lambda report, place=place: report["latency_us"][place]) for place in ("p50", "p90", "p99", "p99.9")}
        row |= {key: sum(report[key] for report in rounds) for key in ("lost", "wrong")}
        row |= {key: result[key] for key in ("memory", "start_seconds", "warm_faults")}
        if ceiling := results.get("echo", {}).get("rounds"):
            ratios = [report["cpu_us"] / echo["cpu_us"] for report, echo in zip(rounds, ceiling)]
            row |= {"ratio": statistics.median(ratios), "ratio_least": min(ratios), "ratio_most": max(ratios)}
        if "records" in result:
            row |= {"records_lost": result["answered"] - result["records"], "record_bytes": result["record_bytes"]}
        rows[label] = row
    return rows


def notes(case, row):
    """What a reader must know of this row before using it."""
    if row["disturbed"] > 0.1:
        yield f"others used the server's core {row['disturbed']:.0%} of the time"
    elif row["busy"] < 0.9 and not case.quarter and "--rate" not in case.options:
        yield "waits for the load"
    if row["wrong"]:
        yield f"{row['wrong']} wrong answers"
    if row["warm_faults"]:
        yield f"{row['warm_faults']} answers lost or wrong while it was warmed up"
    if row["sealing_us"] > 0.005:
        yield f"sealing {row['sealing_us']:.2f} µs apart"


# Heading: of one row, what stands below it.
COLUMNS = {
    "cpu µs": lambda row: f"{row['cpu_us']:.2f}",
    "× echo": lambda row: f"{row['ratio']:.2f}" if "ratio" in row else "-",
    "(least–most)": lambda row: f"{row['ratio_least']:.2f}–{row['ratio_most']:.2f}" if "ratio" in row else "-",
    "answers/s": lambda row: f"{row['per_second']:,.0f}",
    "busy": lambda row: f"{row['busy']:.0%}",
    "p50 µs": lambda row: f"{row['p50_us']:.0f}",
    "p99 µs": lambda row: f"{row['p99_us']:.0f}",
    "lost": lambda row: str(row["lost"]),
    "records lost": lambda row: str(row.get("records_lost", "-")),
    "bytes": lambda row: f"{row['record_bytes']:.0f}" if "record_bytes" in row else "-",
    "MiB": lambda row: f"{row['memory'] / (1 << 20):.0f}",
    "start s": lambda row: f"{row['start_seconds']:.1f}",
}


def table(case, rows):
    """Lines of text, the columns aligned."""
    cells = [["", *COLUMNS, ""]]
    for label, row in rows.items():
        if "failed" in row:
            cells.append([label, *("-" for _ in COLUMNS), row["failed"]])
        else:
            cells.append([label, *(of(row) for of in COLUMNS.values()), ", ".join(notes(case, row))])
    widths = [max(map(len, column)) for column in zip(*cells)]
    for row in cells:
        aligned = [row[0].ljust(widths[0]), *map(str.rjust, row[1:-1], widths[1:-1]), row[-1]]
        yield "  ".join(aligned).rstrip()
