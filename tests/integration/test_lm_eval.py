"""lm-evaluation-harness on an exported model gives what our own model says of the same text."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models import hf
from models.config import Blueprint
from models.hf.run import EMBEDDED_SEPARATOR
from models.language_model import LanguageModel
from models.mix import Geometry, Mix, build_config

ROOT = Path(__file__).parents[2]
TASKS = ROOT / "tests" / "data" / "lm_eval"
EVALUATE = """
import json, sys, lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
folder, tasks, out = sys.argv[1:]
results = lm_eval.simple_evaluate(
    model=HFLM(pretrained=folder, device="cpu", dtype="float32", batch_size=4),
    tasks=["ladder_documents", "ladder_questions"], bootstrap_iters=0,
    task_manager=TaskManager(include_path=tasks, include_defaults=False),
)
json.dump({name: {k: v for k, v in values.items() if isinstance(v, float)}
           for name, values in results["results"].items()}, open(out, "w"))
"""


def nats(model, before, text):
    """-log p of the bytes of `text` after those of `before`, which the separator precedes."""
    ids = torch.tensor([[EMBEDDED_SEPARATOR, *before.encode(), *text.encode()]])
    with torch.no_grad():
        log_p = model.double()(ids[:, :-1]).log_softmax(-1)
    chosen = log_p.gather(-1, ids[:, 1:, None])[0, -len(text.encode()) :, 0]
    return -chosen.sum().item()


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("lm_eval"), reason="lm_eval is not installed")
def test_the_harness_measures_our_bits_per_byte_and_choices(tmp_path):
    pattern = ("gdn", "gdn", "gdn", "attn")
    size = Blueprint("x", 64, 4, 4, 96, init="fan_in")
    model = LanguageModel(build_config(Mix("x", pattern), size, Geometry(), 256))
    model.initialize(0)
    hf.export(
        model.config, model.state_dict(), tmp_path / "model", context=512,
        separator=EMBEDDED_SEPARATOR, tokenizer="bytes",
    )  # fmt: skip
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    run = subprocess.run(
        [sys.executable, "-c", EVALUATE, tmp_path / "model", TASKS, tmp_path / "out.json"],
        cwd=ROOT, env={**os.environ, **offline}, capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    measured = json.loads((tmp_path / "out.json").read_text())
    texts = [d["text"] for d in json.loads((TASKS / "documents.json").read_text())]
    bits = sum(nats(model, "", text) for text in texts) / math.log(2)
    bits_per_byte = bits / sum(len(text.encode()) for text in texts)
    assert bits_per_byte > 5  # untrained: about the eight bits of a uniform guess
    assert measured["ladder_documents"]["bits_per_byte,none"] == pytest.approx(
        bits_per_byte, rel=1e-5
    )
    right = []
    for question in json.loads((TASKS / "questions.json").read_text()):
        scores = [nats(model, question["question"], f" {c}") for c in question["choices"]]
        right.append(scores.index(min(scores)) == question["answer"])
    assert 0 < sum(right) < len(right)
    assert measured["ladder_questions"]["acc,none"] == pytest.approx(sum(right) / len(right))
