"""The catalogue of planted faults, written by hand and drawn: a text file for each area, with an entry for each fault.

    == the answer is cut one token early
    @ modeling/chat.py
    - tokens[:limit]
    + tokens[: limit - 1]

`-` is a snippet that occurs exactly once in the file, `+` what stands there with the fault; both may have several lines.
A fault that changes nothing that anybody can see has a line `= why`, and is not planted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from paths import TESTS

CATALOGUE = TESTS / "mutation/catalogue"
PACKAGE = Path("src/internvlx_hf")


@dataclass(frozen=True)
class Fault:
    area: str
    name: str
    file: str
    old: str
    new: str
    equivalent: str = ""

    @property
    def title(self) -> str:
        return f"{self.area}: {self.name}"

    def planted(self, source: str) -> str:
        """The file's text with the fault.

        Raises:
            ValueError: if the snippet does not occur exactly once.
        """
        if source.count(self.old) != 1:
            raise ValueError(
                f"{self.title}: its snippet occurs {source.count(self.old)} times in {self.file} instead of once:\n{self.old}\n"
                "Plant it again where its code went, or give the reason in tests/mutation/README.md."
            )
        return source.replace(self.old, self.new)


def read_catalogue(folder: Path = CATALOGUE) -> list[Fault]:
    return [fault for path in sorted(folder.rglob("*.txt")) for fault in entries(path)]


def entries(path: Path) -> Iterator[Fault]:
    for block in ("\n" + path.read_text()).split("\n== ")[1:]:
        name, *lines = block.rstrip("\n").split("\n")
        parts = {sign: "\n".join(line[2:] for line in lines if line[:1] == sign) for sign in "@-+="}
        yield Fault(path.stem, name, parts["@"], parts["-"], parts["+"], parts["="])
