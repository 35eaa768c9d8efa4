"""Our packages by their plain names, also beside somebody else's of the same name.

archladder is installed as the packages models, ablations, sweeps and analysis, names that a folder
may have taken for a module or package of its own. Python looks there first.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path
from types import ModuleType

HOME = Path(__file__).resolve().parent.parent
PACKAGES = ("models", "ablations", "analysis")


def claim() -> None:
    """Import our packages from beside this one.

    Where another module of the name would come first, ours takes the name in this process, with a
    warning. Raises ImportError where the other one has been imported already.
    """
    for name in PACKAGES:
        source = HOME / name / "__init__.py"
        if name in sys.modules:
            if not _is_at(_file_of(sys.modules[name]), source):
                raise ImportError(
                    f"archladder needs its own package {name!r}, and {_file_of(sys.modules[name])} "
                    "was imported under that name; import archladder first, or in a process of its "
                    "own."
                )
            continue
        first = importlib.util.find_spec(name)
        if first is not None and _is_at(first.origin, source):
            continue
        if first is not None and first.origin is not None:
            warnings.warn(
                f"archladder uses the name {name!r} for its own package: `import {name}` no longer "
                f"gives {first.origin} in this process.",
                stacklevel=3,
            )
        _load(name, source)


def _load(name: str, source: Path) -> None:
    spec = importlib.util.spec_from_file_location(
        name, source, submodule_search_locations=[str(source.parent)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"archladder is not whole: {source} is missing.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _file_of(module: ModuleType) -> str | None:
    return getattr(module, "__file__", None)


def _is_at(file: str | None, source: Path) -> bool:
    return file is not None and Path(file).resolve() == source
