"""python -m models.hf export RUN_DIR OUT [checkpoint=last|STEP] [tokenizer=PATH]
python -m models.hf import FOLDER OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

from models.errors import SettingError, one_of
from models.hf.convert import export_run, import_folder
from models.terminal import readable
from models.text import visible


def main(arguments: list[str]) -> int:
    """Exit code 0, or 2 on a setting that cannot be used."""
    readable()
    try:
        for line in _run(arguments):
            print(line)
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # such as a folder that may not be read
        print(f"error: {error.strerror} ({visible(str(error.filename))})", file=sys.stderr)
        return 2
    return 0


KEYS = ("checkpoint", "tokenizer", "mixers")


def _run(arguments: list[str]) -> list[str]:
    command, *rest = arguments or [""]
    valid = {"export": ("checkpoint", "tokenizer"), "import": ("mixers",)}
    if command not in valid:
        raise one_of("python -m models.hf COMMAND", command or "nothing", valid)
    paths = [word for word in rest if word.partition("=")[0] not in KEYS]
    settings = dict(word.split("=", 1) for word in rest if word not in paths and "=" in word)
    for setting in settings:
        if setting not in valid[command]:
            raise one_of(f"{command}'s setting", setting, valid[command] or ["none"])
    if len(paths) != 2:
        names = "RUN_DIR OUT" if command == "export" else "FOLDER OUT"
        raise SettingError(f"{command} takes two folders, {names}; {len(paths)} were given.")
    source, out = map(Path, paths)
    if command == "import":
        model = import_folder(source, out, settings.get("mixers", "").split(","))
        parameters = sum(parameter.numel() for parameter in model.parameters())
        return [f"{out}: {parameters:,} parameters, layers {', '.join(model.config.layers)}"]
    return export_run(source, out, **settings)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
