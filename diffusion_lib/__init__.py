"""IRED's diffusion over energy models, and what trains, loads and uses one."""

import sys
from importlib import import_module

# Scripts written for this project's first version import these from here.
for _name in ("environment", "errors", "files"):
    sys.modules[f"{__name__}.{_name}"] = globals()[_name] = import_module(f"{__name__}.system.{_name}")
