"""Strip notebooks of outputs and give their cells stable ids: `python notebooks/clean.py [--check]`.

A cell's id is a hash of its source, so that an edit of one cell changes one id, and two people who
write the same notebook write the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def cleaned(text: str) -> str:
    """A notebook's JSON without outputs, execution counts and private metadata."""
    notebook = json.loads(text)
    cells, seen = [], {}
    for cell in notebook["cells"]:
        source = cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])
        name = hashlib.sha256(f"{cell['cell_type']}\n{source}".encode()).hexdigest()[:10]
        seen[name] = seen.get(name, 0) + 1
        kept = {
            "cell_type": cell["cell_type"],
            "id": name if seen[name] == 1 else f"{name}-{seen[name]}",
            "metadata": {},
            "source": source.splitlines(keepends=True),
        }
        if cell["cell_type"] == "code":
            kept |= {"execution_count": None, "outputs": []}
        cells.append(kept)
    whole = {"cells": cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> int:
    """Clean every notebook beside this file; with --check, say which are not and change none."""
    unclean = []
    for path in sorted(FOLDER.glob("*.ipynb")):
        text = path.read_text(encoding="utf-8")
        if cleaned(text) != text:
            unclean.append(path.name)
            if "--check" not in arguments:
                path.write_text(cleaned(text), encoding="utf-8")
    print("\n".join(f"cleaned: {name}" for name in unclean) or "all notebooks are clean")
    return 1 if unclean and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
