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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from models import hf_classes, hf_run
from models.config import ModelConfig
from models.errors import SettingError, one_of
from models.language_model import LanguageModel
from models.safe_yaml import parse_yaml
from models.terminal import readable
from models.text import visible

LOGIT_TOLERANCE = 1e-3  # relative to the largest logit; a wrong weight or eps shows far above it
REMOTE = "models.hf_remote"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# float32 holds each of their values.
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


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
    _refuse_not_finite(weights, "the model to export")
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
        context=hf_classes.whole_number(
            spec["recipe"]["context"], f"recipe.context in {run / 'spec.yaml'}"
        ),
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
    if _inside(folder, "model.yaml").exists():
        settings = _read_mapping(folder, "model.yaml", parse_yaml)
        config = hf_classes.from_plain(settings, "model.yaml")
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
    try:
        ids = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers has no class of its own for it
        raise SettingError(f"tokenizer={tokenizer} cannot be read ({_brief(error)}).") from None
    largest = max(ids.get_vocab().values(), default=0)
    if largest >= vocab_size:
        raise SettingError(
            f"tokenizer={tokenizer} has ids up to {largest}, but the model's vocab_size is "
            f"{vocab_size}; give the tokenizer that the corpus was made with."
        )
    beside = Path(tokenizer).with_name("tokenizer_config.json")
    if tokenizer != hf_run.BYTES and beside.exists():
        _read_mapping(beside.parent, beside.name, json.loads, "tokenizer")
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

    raw = _read_mapping(folder, "config.json", json.loads)
    kind = raw.get("model_type")
    # By equality: what is no string need not be hashable.
    if kind not in [name for name in hf_classes.CLASSES if name != hf_classes.ARCHLADDER]:
        return {"model_type": None, **raw}
    if "num_hidden_layers" in raw:  # transformers makes a list of as many
        number = raw["num_hidden_layers"]
        hf_classes.whole_number(number, "config.json's num_hidden_layers", hf_classes.MOST_LAYERS)
    try:
        with _quiet(transformers):
            return transformers.CONFIG_MAPPING[kind].from_dict(raw).to_dict()
    except Exception as error:  # each class and version refuses in its own way
        raise SettingError(
            f"FOLDER={folder}: config.json is no {kind} model's ({_brief(error)})."
        ) from None


def _read_mapping(
    folder: Path, name: str, parse: Callable[[str], Any], setting: str = "FOLDER"
) -> dict[str, Any]:
    """A JSON or YAML file of a folder, which holds names with values."""
    path = _inside(folder, name, setting)
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError):
        raise SettingError(f"{setting}={folder} holds no {name} that can be read.") from None
    if not isinstance(content, dict):
        raise SettingError(f"{setting}={folder}: {name} holds no names with values.")
    return content


def _inside(folder: Path, name: Any, setting: str = "FOLDER") -> Path:
    """The path of a file of that name in a folder, which need not be there.

    Raises SettingError for a name or a link that leads out of the folder. A snapshot of Hugging
    Face's cache may link to the blobs beside it.
    """
    outside = SettingError(f"{setting}={folder}: {name!s:.200} leads out of the folder.")
    if not isinstance(name, str) or name != Path(name).name or name == ".." or "\0" in name:
        raise outside
    try:
        root, path = folder.resolve(), (folder / name).resolve()
    except (OSError, RuntimeError):  # a link to itself
        raise outside from None
    cached = root.parent.name == "snapshots" and path.parent == root.parent.parent / "blobs"
    if not (path.is_relative_to(root) or cached):
        raise outside
    return path


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors, of one file or of several with an index."""
    from safetensors.torch import load_file

    single, several = _inside(folder, WEIGHTS).is_file(), _inside(folder, INDEX).exists()
    if single and several:
        raise SettingError(f"FOLDER={folder} holds both {WEIGHTS} and {INDEX}; remove one.")
    places: dict[str, Any] = {}
    if several:
        index = _read_mapping(folder, INDEX, json.loads)
        places = index.get("weight_map")  # type: ignore[assignment]
        if not isinstance(places, dict) or not all(isinstance(f, str) for f in places.values()):
            raise SettingError(f"FOLDER={folder}: {INDEX} has no weight_map of tensors to files.")
    elif not single:
        raise SettingError(
            f"FOLDER={folder} holds no {WEIGHTS}, nor {INDEX}; weights in other files, such as "
            "pytorch_model.bin, are not read, because opening them can run code."
        )
    files = {name: _inside(folder, name) for name in sorted({*places.values()} or {WEIGHTS})}
    if missing := [name for name, file in files.items() if not file.is_file()]:
        raise SettingError(f"FOLDER={folder} lacks {missing[0]}, which its {INDEX} names.")
    tensors: dict[str, Tensor] = {}
    for name, file in files.items():
        try:
            found = load_file(file)
        except Exception as error:  # also a dtype that torch has not
            raise SettingError(
                f"FOLDER={folder}: {name} cannot be read ({_brief(error)})."
            ) from None
        elsewhere = [t for t in found if several and places.get(t) != name]
        if elsewhere:
            raise SettingError(
                f"FOLDER={folder}: {name} holds {elsewhere[0]}, which {INDEX} does not say."
            )
        tensors |= found
    if lost := places.keys() - tensors.keys():
        raise SettingError(
            f"FOLDER={folder}: {min(lost)} is not in {places[min(lost)]}, where {INDEX} has it."
        )
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            valid = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            kind = str(tensor.dtype).removeprefix("torch.")
            raise SettingError(f"FOLDER={folder}: {name} is of dtype {kind}; valid: {valid}.")
    _refuse_not_finite(tensors, f"FOLDER={folder}")
    return tensors


def _refuse_not_finite(weights: Mapping[str, Tensor], where: str) -> None:
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise SettingError(f"{where} has values in {name} that are not finite numbers.")


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise SettingError(f"OUT={out} exists already; give a folder that does not.")


@contextlib.contextmanager
def _written_whole(out: Path) -> Iterator[Path]:
    """A folder to write into, renamed to `out` at the end, or removed."""
    from safetensors import SafetensorError

    _refuse_existing(out)
    beside = out.with_name(f".{out.name}.{uuid.uuid4().hex}.tmp")
    try:
        beside.mkdir(parents=True)
        yield beside
        beside.rename(out)
    except (OSError, SafetensorError) as error:  # the latter for a full disk
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
    except OSError as error:  # such as a folder that may not be read
        print(f"error: {error.strerror} ({visible(str(error.filename))})", file=sys.stderr)
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
