"""Medians over the rounds, as a table and as JSON."""

import statistics

COLUMNS = ("system", "cpu µs", "× echo", "queries/s", "server busy", "p50 µs", "p99 µs", "lost", "records lost", "record bytes", "notes")


def summary(results):
    """Of one case: for each system the medians. A ratio is that of one round, so that both saw the same machine."""
    rows = {}
    for name, result in results.items():
        rounds = result["rounds"]

        def median(of, rounds=rounds):
            return statistics.median(of(report) for report in rounds)

        row = {
            "cpu_us": median(lambda report: report["cpu_us"]),
            "per_second": median(lambda report: report["per_second"]),
            "busy": median(lambda report: report["busy"]),
            "disturbed": median(lambda report: report["disturbed"]),
            "p50_us": median(lambda report: report["latency_us"]["p50"]),
            "p99_us": median(lambda report: report["latency_us"]["p99"]),
            "lost": sum(report["lost"] for report in rounds),
            "wrong": sum(report["wrong"] for report in rounds),
            "sealing_us": median(lambda report: report["sealing_us"]),
        }
        if "echo" in results:
            pairs = zip(rounds, results["echo"]["rounds"])
            ratios = [report["cpu_us"] / ceiling["cpu_us"] for report, ceiling in pairs]
            row |= {"ratio": statistics.median(ratios), "ratio_least": min(ratios), "ratio_most": max(ratios)}
        if "records" in result:
            row |= {"records_lost": result["answered"] - result["records"], "record_bytes": result["record_bytes"]}
        rows[name] = row
    return rows


def table(rows):
    """Lines of text, the columns aligned."""
    cells = [COLUMNS]
    for name, row in rows.items():
        notes = []
        if row["disturbed"] > 0.1:
            notes.append(f"others used the server's core {row['disturbed']:.0%} of the time")
        elif row["busy"] < 0.9:
            notes.append("the load is the bottleneck")
        if row["wrong"]:
            notes.append(f"{row['wrong']} wrong answers")
        if row["sealing_us"] > 0.005:
            notes.append(f"sealing {row['sealing_us']:.2f} µs apart")
        ratio = f"{row['ratio']:.2f} ({row['ratio_least']:.2f}–{row['ratio_most']:.2f})" if "ratio" in row else "-"
        cells.append((
            name, f"{row['cpu_us']:.2f}", ratio, f"{row['per_second']:,.0f}", f"{row['busy']:.0%}",
            f"{row['p50_us']:.0f}", f"{row['p99_us']:.0f}", str(row["lost"]), str(row.get("records_lost", "-")),
            f"{row['record_bytes']:.0f}" if "record_bytes" in row else "-", ", ".join(notes),
        ))
    widths = [max(len(row[column]) for row in cells) for column in range(len(COLUMNS))]
    for row in cells:
        aligned = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1])), row[-1]]
        yield "  ".join(aligned).rstrip()
