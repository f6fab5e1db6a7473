"""Compiles the kernels of `batching/` when the package is built or installed in place.

Each for the kinds of x86 processor that it is written for; the engine picks at start. Without a compiler, or elsewhere,
nothing is built and torch does the same work more slowly.
"""

import platform
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# source, the library's name, its processors
LIBRARIES = (
    ("kernels.cpp", "kernels-avx2.so", ("-march=x86-64-v3",)),
    ("kernels.cpp", "kernels-avx512.so", ("-march=x86-64-v4",)),
    ("linear.cpp", "linear-avx512.so", ("-march=x86-64-v4", "-mavx512bf16", "-mavx512vnni")),
    ("linear.cpp", "linear-avx512fp16.so", ("-march=x86-64-v4", "-mavx512bf16", "-mavx512vnni", "-mavx512fp16")),
)
FLAGS = ("-std=c++17", "-O3", "-fopenmp", "-fPIC", "-shared", "-Wall", "-Wextra")


class KernelsHook(BuildHookInterface[Any]):
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or platform.system() != "Linux" or platform.machine() != "x86_64":
            return
        folder = Path(self.root) / "batching"
        for source, library, processors in LIBRARIES:
            part = folder / f"{library}.part"  # what runs meanwhile, from the same tree, loads a whole library or none
            try:
                subprocess.run(["g++", *FLAGS, *processors, folder / source, "-o", part], check=True)
                part.replace(folder / library)
            except (
                OSError,
                subprocess.CalledProcessError,
            ) as error:  # no compiler, or one too old for these processors
                self.app.display_warning(f"{library} was not compiled, and the engine will be slower: {error}")
                continue
            build_data["artifacts"].append(f"/batching/{library}")
            build_data["pure_python"] = False
            build_data["tag"] = "py3-none-linux_x86_64"  # depends on the processor, not on Python
