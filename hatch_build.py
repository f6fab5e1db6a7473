"""Compiles `batching/kernels.cpp` when the package is built or installed in place.

Once for each kind of x86 processor; the engine picks at start. Without a compiler, or elsewhere, nothing is built and
torch does the same work more slowly.
"""

import platform
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ARCHITECTURES = ("x86-64-v3", "x86-64-v4")  # with AVX2, with AVX-512
FLAGS = ("-std=c++17", "-O3", "-fopenmp", "-fPIC", "-shared", "-Wall", "-Wextra")


class KernelsHook(BuildHookInterface[Any]):
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or platform.system() != "Linux" or platform.machine() != "x86_64":
            return
        folder = Path(self.root) / "batching"
        try:
            for architecture in ARCHITECTURES:
                target = folder / f"kernels-{architecture}.so"
                subprocess.run(
                    ["g++", *FLAGS, f"-march={architecture}", folder / "kernels.cpp", "-o", target], check=True
                )
                build_data["artifacts"].append(f"/batching/{target.name}")
        except (OSError, subprocess.CalledProcessError) as error:
            self.app.display_warning(f"the kernels were not compiled, and the engine will be slower: {error}")
            return
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-linux_x86_64"  # depends on the processor, not on Python
