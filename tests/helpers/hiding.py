"""Packages that cannot be imported, as on a machine that does not have them."""

import sys


class HidingFinder:
    """A finder that does not find what is hidden."""

    def __init__(self, finder, names):
        self.finder, self.names = finder, names

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in self.names else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)


def hide(names: set[str]) -> None:
    sys.meta_path[:] = [HidingFinder(finder, names) for finder in sys.meta_path]
