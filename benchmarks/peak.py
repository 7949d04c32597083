"""The most memory that this process has held, and the same of a module run in a process of its own.

    python -m benchmarks.peak FILE MODULE [ARGUMENT …]

runs MODULE as `python -m MODULE ARGUMENT …` would and then writes the peak in bytes to FILE.
Nothing but the standard library is imported: it would be counted.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path


def peak_bytes() -> int:
    """The peak resident memory of this process, in bytes; nothing is subtracted.

    On Linux the kernel's VmHWM: `getrusage` there also counts what the parent held when it forked, so a large
    parent's child looks large.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    if sys.platform == "win32":
        return _peak_working_set()
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def _peak_working_set() -> int:
    """Windows' PeakWorkingSetSize of this process (PROCESS_MEMORY_COUNTERS of psapi)."""
    import ctypes
    from ctypes import wintypes

    class Counters(ctypes.Structure):
        _fields_ = [
            ("cb", wintypes.DWORD),
            ("PageFaultCount", wintypes.DWORD),
            *(
                (name, ctypes.c_size_t)
                for name in (
                    "PeakWorkingSetSize",
                    "WorkingSetSize",
                    "QuotaPeakPagedPoolUsage",
                    "QuotaPagedPoolUsage",
                    "QuotaPeakNonPagedPoolUsage",
                    "QuotaNonPagedPoolUsage",
                    "PagefileUsage",
                    "PeakPagefileUsage",
                )
            ),
        ]

    counters = Counters(cb=ctypes.sizeof(Counters))
    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined,unused-ignore]
    kernel.GetCurrentProcess.restype = wintypes.HANDLE
    ask = kernel.K32GetProcessMemoryInfo
    ask.argtypes = [wintypes.HANDLE, ctypes.POINTER(Counters), wintypes.DWORD]
    if not ask(kernel.GetCurrentProcess(), ctypes.byref(counters), counters.cb):
        raise OSError("Windows does not tell this process's peak memory")
    return int(counters.PeakWorkingSetSize)


def main() -> None:
    """Command line of this module."""
    if len(sys.argv) < 3:
        raise SystemExit("python -m benchmarks.peak FILE MODULE [ARGUMENT …]")
    target, module = Path(sys.argv[1]), sys.argv[2]
    sys.argv = sys.argv[2:]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        target.write_text(str(peak_bytes()), encoding="ascii")


if __name__ == "__main__":
    main()
