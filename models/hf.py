"""To Hugging Face and back: a run as a folder that `from_pretrained` opens, and the inverse.

    python -m models.hf export RUN_DIR OUT [checkpoint=last] [tokenizer=PATH]
    python -m models.hf import FOLDER OUT

docs/export.md says which class each mix becomes, and why. Needs transformers, which the other
commands do without: pip install -c constraints.txt -e '.[hf]'.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from models import hf_classes, hf_run
from models.config import ModelConfig
from models.errors import SettingError, one_of
from models.language_model import LanguageModel
from models.terminal import readable

LOGIT_TOLERANCE = 1e-3  # relative to the largest logit; a wrong weight or eps shows far above it
REMOTE = "models.hf_remote"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def export(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    out: Path,
    *,
    context: int,
    separator: int | None = None,
    tokenizer: str | Path | None = None,
) -> tuple[str, float]:
    """Write a model as a folder for `AutoModelForCausalLM.from_pretrained(out)`.

    weights: LanguageModel.state_dict(); context: tokens the model was trained on at a time;
    separator: id of the token that ends a document, the folder's eos; tokenizer: "bytes" where a
    token is a byte, or the path of a tokenizer.json, or None for a folder without one. Returns
    the class's name and the largest difference of a logit to ours, having opened what it wrote.
    Raises SettingError where `out` exists, or the tokenizer does not fit the model.
    """
    _needs_transformers()
    kind = hf_classes.model_type(config)
    library = hf_classes.library_config(config, context, separator)
    generation = {"eos_token_id": separator, "pad_token_id": separator}
    if "use_cache" in library:
        generation["use_cache"] = library["use_cache"]
    weights = {name: weight.detach().float().cpu() for name, weight in weights.items()}
    with _written_whole(out) as folder:
        _write_json(folder / "config.json", library)
        _write_json(folder / "generation_config.json", generation)
        _write_weights(folder, hf_classes.to_library(config, weights))
        if kind == hf_classes.ARCHLADDER:
            source = Path(__file__).with_name("hf_remote.py")
            shutil.copyfile(source, folder / "modeling_archladder.py")
        if tokenizer is not None:
            _write_tokenizer(folder, tokenizer, config.vocab_size, separator)
        difference = _difference(config, weights, folder)
    return hf_classes.CLASSES[kind], difference


def export_run(
    run: Path, out: Path, *, checkpoint: str = "last", tokenizer: str | None = None
) -> list[str]:
    """Export a checkpoint of a run directory; returns what to tell the user, a line each.

    checkpoint: `last`, or a step. Raises SettingError where the run has no such checkpoint.
    """
    spec = hf_run.read_spec(run)
    config = hf_classes.from_plain(spec["model"], f"the model in {run / 'spec.yaml'}")
    step, weights = hf_run.read_weights(run, checkpoint)
    name, separator, sha256 = hf_run.corpus_tokens(spec)
    chosen: str | Path | None = None
    if tokenizer is not None:
        chosen = _tokenizer_file(Path(tokenizer))
        found = hashlib.sha256(chosen.read_bytes()).hexdigest()
        if sha256 not in (None, found):
            raise SettingError(
                f"tokenizer={tokenizer} is another than the corpus was made with (sha256 "
                f"{found[:12]}, the corpus's manifest says {sha256[:12]})."
            )
    elif name == hf_run.BYTES:
        chosen = hf_run.BYTES
    says, difference = export(
        config,
        weights,
        out,
        context=spec["recipe"]["context"],
        separator=separator,
        tokenizer=chosen,
    )
    lines = [f"{out}: step {step} as {says}, logits within {difference:.1e} of the run's"]
    if says == hf_classes.CLASSES[hf_classes.ARCHLADDER]:
        lines.append("no class of transformers is this model: open it with trust_remote_code=True")
    if chosen is None:
        lines.append("without a tokenizer: give tokenizer=PATH of the corpus's tokenizer.json")
    return lines


def load_pretrained(folder: Path) -> LanguageModel:
    """A Hugging Face folder of a class of `hf_classes`, or one that `import` wrote, as ours.

    The weights are float32 on the CPU. Raises SettingError for a folder that has none as
    safetensors, and naming whatever in it our model cannot be.
    """
    if (folder / "model.yaml").exists():
        text = (folder / "model.yaml").read_text(encoding="utf-8")
        config = hf_classes.from_plain(yaml.safe_load(text), "model.yaml")
        kind = hf_classes.ARCHLADDER
    else:
        library = _read_library_config(folder)
        kind, config = library["model_type"], hf_classes.from_library_config(library)
    with torch.device("meta"):
        model = LanguageModel(config)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    weights = hf_classes.from_library(kind, config, _read_weights(folder), shapes)
    model.load_state_dict(weights, assign=True)
    return model


def import_folder(folder: Path, out: Path) -> LanguageModel:
    """Write a Hugging Face folder as model.yaml (a ModelConfig) and model.safetensors (ours)."""
    _refuse_existing(out)
    model = load_pretrained(folder)
    with _written_whole(out) as beside:
        text = yaml.safe_dump(hf_classes.plain(model.config), sort_keys=False)
        (beside / "model.yaml").write_text(text, encoding="utf-8")
        _write_weights(beside, model.state_dict())
    return model


def byte_tokenizer(vocab_size: int, separator: int | None) -> dict[str, Any]:
    """The content of a tokenizer.json whose ids are bytes.

    separator: the id that ends a document. Below 256 it is that byte itself, as NUL is in the
    embedded corpus; above, a token `<|endoftext|>` that no text makes.
    """
    # BPE with no merges over the byte-level alphabet (Radford et al. 2019): a printable
    # character stands for each byte, the others moved up past 255.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in printable]
    vocabulary = {chr(byte): byte for byte in printable}
    vocabulary |= {chr(256 + i): byte for i, byte in enumerate(moved)}
    special = []
    if separator is not None:
        token = chr(separator) if separator < 128 else "<|endoftext|>"
        vocabulary = {t: i for t, i in vocabulary.items() if i != separator} | {token: separator}
        flags = ("single_word", "lstrip", "rstrip", "normalized")
        special = [
            {"id": separator, "content": token, **dict.fromkeys(flags, False), "special": True}
        ]
    if max(vocabulary.values()) >= vocab_size:
        raise SettingError(
            f"a tokenizer of bytes needs {max(vocabulary.values()) + 1} ids, but the model has "
            f"vocab_size={vocab_size}."
        )
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {**level, "use_regex": True},
        "post_processor": None,
        "decoder": {**level, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }


def _write_tokenizer(
    folder: Path, tokenizer: str | Path, vocab_size: int, separator: int | None
) -> None:
    from tokenizers import Tokenizer

    file, settings = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if tokenizer == hf_run.BYTES:
        _write_json(file, byte_tokenizer(vocab_size, separator))
    else:
        shutil.copyfile(tokenizer, file)
    ids = Tokenizer.from_file(str(file))
    largest = max(ids.get_vocab().values())
    if largest >= vocab_size:
        raise SettingError(
            f"tokenizer={tokenizer} has ids up to {largest}, but the model's vocab_size is "
            f"{vocab_size}; give the tokenizer that the corpus was made with."
        )
    beside = Path(tokenizer).with_name("tokenizer_config.json")
    if tokenizer != hf_run.BYTES and beside.exists():
        shutil.copyfile(beside, settings)
        return
    end = None if separator is None else ids.id_to_token(separator)
    content = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "eos_token": end,
        "pad_token": end,
    }
    _write_json(settings, {key: value for key, value in content.items() if value is not None})


def _difference(config: ModelConfig, weights: Mapping[str, Tensor], folder: Path) -> float:
    """Open a folder just written; the largest difference of its logits to ours.

    Raises RuntimeError where tensors are missing or left over, or logits differ.
    """
    import transformers

    name = hf_classes.CLASSES[hf_classes.model_type(config)]
    library = transformers if hasattr(transformers, name) else importlib.import_module(REMOTE)
    with torch.device("meta"):
        ours = LanguageModel(config)
    ours.load_state_dict(dict(weights), assign=True)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, config.vocab_size, (2, 96), generator=generator)
    with _quiet(transformers), torch.no_grad():
        theirs, info = getattr(library, name).from_pretrained(folder, output_loading_info=True)
        if any(info.values()):
            raise RuntimeError(f"{name} did not take the weights as written: {info}")
        expected = ours(tokens)
        actual = theirs.eval()(tokens, use_cache=False).logits
    difference = (actual - expected).abs().max().item()
    if not difference <= LOGIT_TOLERANCE * max(1.0, expected.abs().max().item()):
        raise RuntimeError(f"{name} differs from the run by {difference:.1e} in a logit")
    return difference


def _tokenizer_file(path: Path) -> Path:
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise SettingError(f"tokenizer={path} is no tokenizer.json, nor a folder with one.")
    return file


def _read_library_config(folder: Path) -> dict[str, Any]:
    """config.json with the defaults that transformers fills in."""
    _needs_transformers()
    import transformers

    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise SettingError(f"FOLDER={folder} holds no config.json that can be read.") from None
    if raw.get("model_type") not in set(hf_classes.CLASSES) - {hf_classes.ARCHLADDER}:
        return raw
    with _quiet(transformers):
        return transformers.AutoConfig.from_pretrained(folder, local_files_only=True).to_dict()


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors, of one file or of several with an index."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if (folder / INDEX).exists():
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        files = sorted(set(index["weight_map"].values()))
    elif (folder / WEIGHTS).exists():
        files = [WEIGHTS]
    else:
        raise SettingError(
            f"FOLDER={folder} holds no {WEIGHTS}, nor {INDEX}; weights in other files, such as "
            "pytorch_model.bin, are not read, because opening them can run code."
        )
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise SettingError(f"FOLDER={folder} lacks {missing[0]}, which its {INDEX} names.")
    tensors: dict[str, Tensor] = {}
    for name in files:
        try:
            tensors |= load_file(folder / name)
        except SafetensorError as error:
            raise SettingError(f"FOLDER={folder}: {name} cannot be read ({error}).") from None
    return tensors


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise SettingError(f"OUT={out} exists already; give a folder that does not.")


@contextlib.contextmanager
def _written_whole(out: Path) -> Iterator[Path]:
    """A folder to write into, renamed to `out` at the end, or removed."""
    _refuse_existing(out)
    beside = out.with_name(f".{out.name}.{uuid.uuid4().hex}.tmp")
    try:
        beside.mkdir(parents=True)
        yield beside
        beside.rename(out)
    except OSError as error:
        raise SettingError(f"OUT={out} cannot be written ({error}).") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No progress bars and no advice on faster kernels; errors still show."""
    logging = transformers.utils.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def _needs_transformers() -> None:
    for package in ("transformers", "safetensors"):
        if importlib.util.find_spec(package) is None:
            raise SettingError(
                f"{package} is not installed; pip install -c constraints.txt -e '.[hf]' brings it."
            )


def _write_weights(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save_file

    path = folder / WEIGHTS
    path.touch()
    mode = path.stat().st_mode  # the user's umask, which safetensors does not heed
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, path, metadata={"format": "pt"})
    path.chmod(mode)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Exit code 0, or 2 on a setting that cannot be used."""
    readable()
    try:
        for line in _run(arguments):
            print(line)
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _run(arguments: list[str]) -> list[str]:
    command, *rest = arguments or [""]
    valid = {"export": ("checkpoint", "tokenizer"), "import": ()}
    if command not in valid:
        raise one_of("python -m models.hf COMMAND", command or "nothing", valid)
    paths = [word for word in rest if word.partition("=")[0] not in ("checkpoint", "tokenizer")]
    settings = dict(word.split("=", 1) for word in rest if word not in paths and "=" in word)
    for setting in settings:
        if setting not in valid[command]:
            raise one_of(f"{command}'s setting", setting, valid[command] or ["none"])
    if len(paths) != 2:
        names = "RUN_DIR OUT" if command == "export" else "FOLDER OUT"
        raise SettingError(f"{command} takes two folders, {names}; {len(paths)} were given.")
    source, out = map(Path, paths)
    if command == "import":
        model = import_folder(source, out)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        return [f"{out}: {parameters:,} parameters, layers {', '.join(model.config.layers)}"]
    return export_run(source, out, **settings)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
