"""Whether a bf16 step is compiled: by the run's setting, the processor and its compiler."""

import os
import re
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

from diffusion_lib.precision import bf16_product, multiplies_bf16
from diffusion_lib.system.environment import cpu_name
from diffusion_lib.system.errors import ConfigError, first_line, say_once

LEAST_BATCH = 256  # whose steps are compiled unasked
CACHE = "TORCHINDUCTOR_CACHE_DIR"  # torch's variable: where torch.compile keeps its programs


def set_compiled(compile: str, model, device: torch.device, batch_size: int = 0):
    """Have the steps of a model that computes in bf16 run compiled, as the run's setting says.

    compile: 'auto', 'on' or 'off'.
    batch_size: of the steps of this process, whose programs are made here; 0: when they are first called.
    Raises ConfigError where 'on' is asked for and cannot be.
    """
    require_programs(compile, model)
    require_compiler(compile, device)
    if bf16_step(model) is None or compile == "off" or (compile == "auto" and not compiling_pays(device, batch_size)):
        return
    keep_programs()
    from diffusion_lib.energies.mlp_compiled import CompiledEvaluation, make_programs  # here: it takes seconds

    model.evaluation = CompiledEvaluation
    if not batch_size:
        return
    say_once("compiling the step: up to a minute or two, unless it was compiled here before")
    try:
        make_programs(model.to(device), batch_size)
    except Exception as error:  # each fault of a compiler, and of the files that it writes, has its own
        del model.evaluation
        fault = f"torch.compile fails here ({fault_of(error)}); its files are in {os.environ.get(CACHE, 'the cache')}"
        if compile == "on":
            raise ConfigError(f"compile is 'on', and {fault}; allowed: auto, off") from None
        say_once(f"the step is not compiled, and slower: {fault}")


def bf16_step(model) -> str | None:
    """Return 'compiled' or 'plain', whose bits differ, for a model that computes in bf16 and has both."""
    if getattr(model, "product", None) is not bf16_product or not hasattr(model, "evaluation"):
        return None
    return "plain" if model.evaluation is type(model).evaluation else "compiled"


def require_programs(compile: str, model):
    """Raise ConfigError where programs are asked for that the model has not."""
    if compile == "on" and not hasattr(model, "evaluation"):
        raise ConfigError(f"compile is 'on', which {type(model).__name__} has not; allowed: auto, off")


def require_compiler(compile: str, device: torch.device):
    """Raise ConfigError where programs are asked for that the device, or its compiler, cannot make."""
    if compile != "on":
        return
    if not multiplies_bf16(device.type):
        raise ConfigError("compile is 'on', and this processor has no bfloat16 products; allowed: auto, off")
    if fault := compiler_fault(device):
        raise ConfigError(f"compile is 'on', and torch.compile fails here ({fault}); allowed: auto, off")


def compiling_pays(device: torch.device, batch_size: int) -> bool:
    """Return whether 'auto' compiles a bf16 step: what it gains is in docs/speed.md, on a GPU it was never measured."""
    if device.type != "cpu" or batch_size < LEAST_BATCH:
        return False
    return multiplies_bf16("cpu") and torch.cpu._is_amx_tile_supported()


def compiles_bf16(device: torch.device) -> bool:
    """Return whether the device multiplies bfloat16 matrices, and torch.compile makes programs for it."""
    return multiplies_bf16(device.type) and compiler_fault(device) is None


@cache
def compiler_fault(device: torch.device) -> str | None:
    """Return why torch.compile cannot make a program for the device, in a line; None where it can."""
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler

        keep_programs()
        get_cpp_compiler()  # which a program from the cache would not need
        torch.compile(lambda x: x + 1, dynamic=False)(torch.zeros(8, device=device))
    except Exception as error:  # a compiler that is missing, fails, or has no headers: each has its own
        return fault_of(error)
    return None


def fault_of(error: Exception) -> str:
    """Return the first line of what went wrong, without what torch.compile puts around it."""
    return first_line(getattr(error, "inner_exception", error))


def keep_programs():
    """Have torch keep its programs in the user's cache, unless the user chose a place: its own, in /tmp, is lost.

    Those of each kind of processor have a folder: a home may be that of several.
    """
    chosen = os.environ.get(CACHE)
    if chosen and not Path(chosen).name.startswith("torchinductor_"):
        return
    with suppress(OSError, RuntimeError):  # a home that cannot be written, or none
        caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
        caches = caches if caches.is_absolute() else Path.home() / ".cache"
        own = caches / "ired-mining" / re.sub(r"\W+", "-", cpu_name())
        own.mkdir(parents=True, exist_ok=True)
        if os.access(own, os.W_OK):
            os.environ[CACHE] = str(own)
