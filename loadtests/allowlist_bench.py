"""Measures whether a long allowlist takes more time per request than a short one.

Load tests import nothing of the service, so a child interpreter measures ``runtime.networks`` and prints JSON; this
process prints the table. Run it from the repository's root: ``python loadtests/allowlist_bench.py``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SIZES = (10, 1_000, 100_000)
SCANNED = (10, 1_000)  # sizes with a linear scan; larger ones would take minutes

CHILD = """
import json, random, statistics, sys, time
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from runtime.networks import NetworkSet

RUNS, LOOKUPS = 5, 20_000
sizes, scanned = json.loads(sys.argv[1])
random.seed(7)


def per_lookup(lookup, addresses):
    runs = []
    for _ in range(RUNS):
        start = time.perf_counter()
        for address in addresses:
            lookup(address)
        runs.append((time.perf_counter() - start) / len(addresses) * 1e9)
    return statistics.median(runs)


for size in sizes:
    # Half IPv4, half IPv6, every second block, so that nothing collapses and each hit has a miss beside it.
    half = size // 2
    networks = [IPv4Network(((10 << 24) + (i << 9), 24)) for i in range(half)]
    networks += [IPv6Network(((0x20010DB8 << 96) + (i << 65), 64)) for i in range(half)]
    hits = [n[random.randrange(256)] for n in random.choices(networks, k=LOOKUPS)]
    misses = [a + 256 if isinstance(a, IPv4Address) else a + (1 << 64) for a in hits]
    builds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        found = NetworkSet(networks)
        builds.append((time.perf_counter() - start) * 1e3)
    if len(found) != size or not all(a in found for a in hits) or any(a in found for a in misses):
        sys.exit(f"wrong answers with {size} networks")
    row = {"size": size, "build": statistics.median(builds)}
    row["hit"], row["miss"] = (per_lookup(found.__contains__, a) for a in (hits, misses))
    if size in scanned:
        few = 100_000 // size
        scan = lambda a: any(a in n for n in networks)
        row["scan_hit"], row["scan_miss"] = (per_lookup(scan, a[:few]) for a in (hits, misses))
    print(json.dumps(row), flush=True)
"""


def main() -> None:
    """Run the child process and print one line per size."""
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", CHILD, json.dumps([SIZES, SCANNED])]
    answer = subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE, text=True).stdout
    rows = [json.loads(line) for line in answer.splitlines()]
    print("| networks | build ms | hit ns | miss ns | miss vs 10 networks | scan: hit ns | scan: miss ns |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        scan = [f"{row[key]:,.0f}" if key in row else "-" for key in ("scan_hit", "scan_miss")]
        times = f"{row['build']:,.2f} | {row['hit']:,.0f} | {row['miss']:,.0f} | {row['miss'] / rows[0]['miss']:.2f}"
        print(f"| {row['size']:,} | {times} | {scan[0]} | {scan[1]} |")


if __name__ == "__main__":
    main()
