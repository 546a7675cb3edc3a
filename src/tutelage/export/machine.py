"""What this machine's processor is: its name, the cores that may be used, and whether it multiplies bytes quickly."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Instructions that decide how fast a model runs, as ``/proc/cpuinfo`` spells them.
FLAGS_THAT_MATTER = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
    "sve",
)

#: Those that multiply 8-bit integers and add up in 32 bits in one step.
INT8_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})

NO_INT8_INSTRUCTIONS = (
    "This processor has no instructions for int8 products (VNNI, AMX, or the dot product of ARM), so that int8 saves bytes here "
    "but may save no time: only the measured latency says."
)

UNKNOWN_INSTRUCTIONS = "The processor's instructions are unknown on this platform: whether int8 saves time, only the measured latency says."


@dataclass(frozen=True)
class CpuFacts:
    """The processor that a measurement was made on.

    Args:
        name: as it calls itself.
        cores: that this process may use: hyper-threads count as cores, a container's quota and an affinity mask are heeded.
        flags: of `FLAGS_THAT_MATTER`, those it has; empty where it does not say.
        int8_note: one sentence where int8 may not pay, or where that is unknown; None where the instructions for it are there.
    """

    name: str
    cores: int
    flags: tuple[str, ...]
    int8_note: str | None

    def to_json(self) -> dict[str, Any]:
        """As in ``shipped.json``."""
        return {"name": self.name, "cores": self.cores, "flags": list(self.flags), "int8_note": self.int8_note}


def cpu_facts(root: Path = Path("/")) -> CpuFacts:
    """The processor as this process sees it.

    Args:
        root: where ``proc`` and ``sys`` are looked for.
    """
    told = _cpuinfo(root)
    # x86 calls them flags, ARM features
    found = set((told.get("flags") or told.get("Features") or "").split())
    note = UNKNOWN_INSTRUCTIONS if not found else None if found & INT8_FLAGS else NO_INT8_INSTRUCTIONS
    flags = tuple(flag for flag in FLAGS_THAT_MATTER if flag in found)
    return CpuFacts(cpu_name(root), usable_cores(root), flags, note)


def cpu_name(root: Path = Path("/")) -> str:
    """What the processor calls itself, else what the platform calls it.

    Args:
        root: where ``proc`` is looked for.
    """
    return _cpuinfo(root).get("model name") or platform.processor() or f"{platform.machine()} ({sys.platform})"


def usable_cores(root: Path = Path("/")) -> int:
    """Cores that this process may keep busy: its affinity mask, or its container's quota where that is less; 1 at least.

    A quota of 1.5 cores counts as 1: a second thread would be stopped for half of its time.

    Args:
        root: where ``proc`` and ``sys`` are looked for.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(float(cores), *_quotas(root))))


def _cpuinfo(root: Path) -> dict[str, str]:
    """What is told of the first processor."""
    pairs = (line.partition(":") for line in _text(root / "proc/cpuinfo").splitlines())
    told: dict[str, str] = {}
    for key, _, value in pairs:
        told.setdefault(key.strip(), value.strip())
    return told


def _quotas(root: Path) -> list[float]:
    """Cores that each control group above this process allows it, version 1 and 2; infinity where none does."""
    quotas = [float("inf")]
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, inside = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / controllers
        # in a container the path may be the host's, of which only the mount itself is seen
        group = mount / inside.strip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(mount):
                break
            quotas.append(_quota(folder))
    return quotas


def _quota(folder: Path) -> float:
    words = _text(folder / "cpu.max").split() or [
        _text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")
    ]
    try:
        quota, period = map(int, words)
    except ValueError:
        # "max", or no limit that is known here
        return float("inf")
    return quota / period if quota > 0 and period > 0 else float("inf")


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
