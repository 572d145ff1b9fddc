"""XLA flags for tests, most of which compile more than they run."""

import importlib.metadata
from pathlib import Path


def xla_flags() -> str:
    """Flags with which XLA compiles for a CPU in less than half the time; none where there is an NVIDIA GPU.

    What they turn off makes programs faster, not more exact: the bounds in the tests are the same with and without.
    """
    if Path("/dev/nvidiactl").exists():
        return ""
    flags = "--xla_backend_optimization_level=0"
    # Unknown to later versions, and XLA ends a process that gives it an unknown flag.
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        flags += " --xla_cpu_use_fusion_emitters=false"
    return flags
