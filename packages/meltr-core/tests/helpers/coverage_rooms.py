"""Prints the coverage of the packages by room, from the file ``.coverage`` of the working folder.

A room is a folder of a package's source, such as ``meltr/video``; the modules of a package outside any are one room.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import coverage


def room_of(file: str) -> str:
    """Return the room of a source file: ``.../src/meltr/video/text/x.py`` -> ``meltr/video``."""
    package, *inner = Path(file.rpartition("/src/")[2]).parts
    return f"{package}/{inner[0]}" if len(inner) > 1 else package


def by_room(data: coverage.Coverage) -> dict[str, tuple[int, int]]:
    """Return room -> statements, and those of them that no test ran; the whole is in the last row, ``total``."""
    statements: Counter[str] = Counter()
    missed: Counter[str] = Counter()
    for file in data.get_data().measured_files():
        _, executable, _, missing, _ = data.analysis2(file)
        for room in (room_of(file), "total"):
            statements[room] += len(executable)
            missed[room] += len(missing)
    rooms = [*sorted(room for room in statements if room != "total"), "total"]
    return {room: (statements[room], missed[room]) for room in rooms}


def main() -> None:
    """Print the table."""
    data = coverage.Coverage()
    data.load()
    rows = by_room(data)
    width = max(map(len, rows))
    print(f"{'room':{width}}  statements  missed  covered")
    for room, (statements, missed) in rows.items():
        print(f"{room:{width}}  {statements:10}  {missed:6}  {1 - missed / max(statements, 1):7.1%}")


if __name__ == "__main__":
    main()
