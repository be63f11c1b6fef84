"""How much CPU and memory do processes use? Read from /proc, so it works only on Linux."""

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def stat_of(pid: int) -> list[str]:
    """Return the fields of a process's `stat` from the third on; an empty list if it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def parent_of(pid: int) -> int:
    """Return the id of a process's parent."""
    return int(stat_of(pid)[1])


def process_tree(pids: Iterable[int]) -> set[int]:
    """Return the ids of processes and of all their descendants."""
    children = defaultdict(set)
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (stat := stat_of(int(folder.name))):
            children[int(stat[1])].add(int(folder.name))
    found, new = set(), set(pids)
    while new:
        found |= new
        new = {child for pid in new for child in children[pid]} - found
    return found


def cpu_s(pids: Iterable[int]) -> float:
    """Return the CPU time that processes and their ended children have used, in seconds."""
    stats = [stat_of(pid) for pid in pids]
    return sum(sum(map(int, stat[11:15])) for stat in stats if stat) / TICKS_PER_S


def memory_mb(pid: int) -> float:
    """Return the resident memory of a process, in MB of 10⁶ bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError(f"process {pid} has no memory: has it ended?")
