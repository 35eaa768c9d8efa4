"""A model as a Hugging Face folder, and the inverse."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from models.config import ModelConfig
from models.errors import SettingError, one_of
from models.hf.card import card
from models.hf.folder import (
    brief,
    inside,
    read_mapping,
    read_weights,
    refuse_existing,
    refuse_not_finite,
    write_json,
    write_weights,
    written_whole,
)
from models.hf.native import CLASSES, native_class
from models.hf.native.record import NativeClass
from models.hf.native.weights import from_folder, to_folder
from models.hf.run import (
    BYTES,
    corpus_tokens,
    read_checkpoint,
    read_manifest,
    read_point,
    read_spec,
)
from models.hf.tokenizer import tokenizer_file, write_tokenizer
from models.language_model import LanguageModel
from models.plain import MOST_LAYERS, model_from_plain, whole_number
from models.safe_yaml import parse_yaml
from models.settings import to_dict

LOGIT_TOLERANCE = 1e-3  # relative to the largest logit; a wrong weight or eps shows far above it
ARCHLADDER = "archladder"
"""The `model_type` of what no class of transformers is: models/hf/wrapper.py opens it."""
MODULE = "modeling_archladder"


def class_name(native: NativeClass | None) -> str:
    return native.name if native else "ArchladderForCausalLM"


def config_json(config: ModelConfig, context: int, eos: int | None) -> dict[str, Any]:
    """config.json of a model: `context` the tokens it was trained on at a time, `eos` an id."""
    native = native_class(config)
    common: dict[str, Any] = {
        "model_type": native.model_type if native else ARCHLADDER,
        "architectures": [class_name(native)],
        "dtype": "float32",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": context,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": eos,
        # No pad of its own: an embedding row named here would never be trained on.
        "pad_token_id": None,
    }
    if native:
        return {**common, **native.settings(config, context)}
    return {
        **common,
        "auto_map": {
            "AutoConfig": f"{MODULE}.ArchladderConfig",
            "AutoModelForCausalLM": f"{MODULE}.{class_name(None)}",
        },
        "architecture": to_dict(config),
    }


def export(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    out: Path,
    *,
    context: int,
    separator: int | None = None,
    tokenizer: str | Path | None = None,
    readme: str | None = None,
) -> tuple[str, float]:
    """Write a model as a folder for `AutoModelForCausalLM.from_pretrained(out)`.

    weights: LanguageModel.state_dict(); context: tokens the model was trained on at a time;
    separator: id of the token that ends a document, the folder's eos; tokenizer: "bytes" where a
    token is a byte, or the path of a tokenizer.json, or None for a folder without one; readme: the
    model card. Returns the class's name and the largest difference of a logit to ours, having
    opened what it wrote. Raises SettingError where `out` exists, or the tokenizer does not fit.
    """
    needs_transformers()
    native = native_class(config)
    library = config_json(config, context, separator)
    generation = {"eos_token_id": separator, "pad_token_id": separator}
    if "use_cache" in library:
        generation["use_cache"] = library["use_cache"]
    weights = {name: weight.detach().float().cpu() for name, weight in weights.items()}
    refuse_not_finite(weights, "the model to export")
    with written_whole(out) as folder:
        write_json(folder / "config.json", library)
        write_json(folder / "generation_config.json", generation)
        write_weights(folder, to_folder(native, config, weights) if native else weights)
        if readme is not None:
            (folder / "README.md").write_text(readme, encoding="utf-8")
        if native is None:
            shutil.copyfile(Path(__file__).with_name(f"{MODULE}.py"), folder / f"{MODULE}.py")
        if tokenizer is not None:
            write_tokenizer(folder, tokenizer, config.vocab_size, separator)
        difference = _difference(config, weights, folder)
    return class_name(native), difference


@dataclass(frozen=True)
class Exported:
    """What was written, and how it is opened."""

    out: Path
    step: int
    opened_as: str
    """The class of transformers."""
    difference: float
    """Largest between logits of folder and run, over the largest logit."""
    has_tokenizer: bool

    @property
    def lines(self) -> list[str]:
        """What to tell the user."""
        lines = [
            f"{self.out}: step {self.step} as {self.opened_as}, logits within "
            f"{self.difference:.1e} of the run's"
        ]
        if self.opened_as == class_name(None):
            lines.append(
                "no class of transformers is this model: open it with trust_remote_code=True, "
                "where archladder is installed"
            )
        if not self.has_tokenizer:
            lines.append("without a tokenizer: give tokenizer=PATH of the corpus's tokenizer.json")
        return lines


def export_run(
    run: Path, out: Path, *, checkpoint: str = "last", tokenizer: str | None = None
) -> Exported:
    """Export a checkpoint of a run directory.

    checkpoint: `last`, or a step. Raises SettingError where the run has no such checkpoint.
    """
    spec = read_spec(run)
    config = model_from_plain(spec["model"], f"the model in {run / 'spec.yaml'}")
    step, weights = read_checkpoint(run, checkpoint)
    name, separator, sha256 = corpus_tokens(spec)
    chosen: str | Path | None = None
    if tokenizer is not None:
        chosen = tokenizer_file(Path(tokenizer))
        digest = hashlib.sha256(chosen.read_bytes()).hexdigest()
        if sha256 not in (None, digest):
            raise SettingError(
                f"tokenizer={tokenizer} is another than the corpus was made with (sha256 "
                f"{digest[:12]}, the corpus's manifest says {sha256[:12]})."
            )
    elif name == BYTES:
        chosen = BYTES
    context = whole_number(spec["recipe"]["context"], f"recipe.context in {run / 'spec.yaml'}")
    native = native_class(config)
    readme = card(
        config,
        spec,
        read_manifest(run),
        read_point(run, step),
        step=step,
        context=context,
        opened_as=class_name(native),
        remote=native is None,
        has_tokenizer=chosen is not None,
    )
    opened_as, difference = export(
        config,
        weights,
        out,
        context=context,
        separator=separator,
        tokenizer=chosen,
        readme=readme,
    )
    return Exported(out, step, opened_as, difference, chosen is not None)


def load_pretrained(folder: Path, mixers: Collection[str] = ()) -> LanguageModel:
    """A Hugging Face folder of a class we export to, or one that `import` wrote, as ours.

    mixers: packages that the folder may name for a mixer, and whose code may then run. The weights
    are float32 on the CPU. Raises SettingError for a folder that has none as
    safetensors, and naming whatever in it our model cannot be.
    """
    native, config = _read_config(folder, mixers)
    with torch.device("meta"):
        model = LanguageModel(config)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    weights = from_folder(native, config, read_weights(folder), shapes)
    model.load_state_dict(weights, assign=True)
    return model


def import_folder(folder: Path, out: Path, mixers: Collection[str] = ()) -> LanguageModel:
    """Write a Hugging Face folder as model.yaml (a ModelConfig) and model.safetensors (ours)."""
    refuse_existing(out)
    model = load_pretrained(folder, mixers)
    with written_whole(out) as beside:
        text = yaml.safe_dump(to_dict(model.config), sort_keys=False)
        (beside / "model.yaml").write_text(text, encoding="utf-8")
        write_weights(beside, model.state_dict())
    return model


def _read_config(folder: Path, mixers: Collection[str]) -> tuple[NativeClass | None, ModelConfig]:
    """The class whose names a folder's weights have (None: ours), and its model."""
    if inside(folder, "model.yaml").exists():
        settings = read_mapping(folder, "model.yaml", parse_yaml)
        return None, model_from_plain(settings, "model.yaml", mixers)
    needs_transformers()
    content = read_mapping(folder, "config.json", json.loads)
    model_type = content.get("model_type")
    if model_type == ARCHLADDER:
        where = "config.json's architecture"
        return None, model_from_plain(content.get("architecture"), where, mixers)
    if not isinstance(model_type, str) or model_type not in CLASSES:
        raise one_of("config.json's model_type", model_type, (*CLASSES, ARCHLADDER))
    native = CLASSES[model_type]
    return native, native.model(_with_defaults(folder, model_type, content))


def _with_defaults(folder: Path, model_type: str, content: dict[str, Any]) -> dict[str, Any]:
    """config.json with the defaults that transformers fills in."""
    import transformers

    if "num_hidden_layers" in content:  # transformers makes a list of as many
        number = content["num_hidden_layers"]
        whole_number(number, "config.json's num_hidden_layers", MOST_LAYERS)
    try:
        with _quiet(transformers):
            return transformers.CONFIG_MAPPING[model_type].from_dict(content).to_dict()
    except Exception as error:  # each class and version refuses in its own way
        raise SettingError(
            f"FOLDER={folder}: config.json is no {model_type} model's ({brief(error)})."
        ) from None


def _difference(config: ModelConfig, weights: Mapping[str, Tensor], folder: Path) -> float:
    """Open a folder just written; the largest difference of its logits to ours.

    Raises RuntimeError where tensors are missing or left over, or logits differ.
    """
    import transformers

    native = native_class(config)
    name = class_name(native)
    library = transformers if native else importlib.import_module("models.hf.wrapper")
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


def needs_transformers() -> None:
    for package in ("transformers", "safetensors"):
        if importlib.util.find_spec(package) is None:
            raise SettingError(
                f"{package} is not installed; pip install -c constraints.txt -e '.[hf]' brings it."
            )
