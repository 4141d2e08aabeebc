"""Import classes when one is asked for: a help lists only their names, and importing torch takes seconds."""

from collections import UserDict
from collections.abc import Callable, Iterable
from importlib import import_module


class Registry(UserDict):
    """Classes by name. One may be written as 'module.Class', which is imported from `package` on its first use."""

    def __init__(self, package: str, classes: dict):
        super().__init__(classes)
        self.package = package

    def __getitem__(self, name):
        if isinstance(self.data[name], str):
            self.data[name] = imported(self.package, self.data[name])
        return self.data[name]


def imported(package: str, place: str):
    module, _, name = place.rpartition(".")
    return getattr(import_module(f"{package}.{module}"), name)


def on_use(package: str, places: Iterable[str]) -> Callable:
    """Make a package's __getattr__, which imports the classes at `places` on their first use."""
    by_name = {place.rpartition(".")[2]: place for place in places}

    def get(name: str):
        if name not in by_name:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return imported(package, by_name[name])

    return get
