"""Are the data ever what one waits for? Three measures, each a ratio or a bound, in one run.

    python benchmarks/data.py [prepare] [serve] [start] [processes=2] [megabytes=36] [gigabytes=1]
        [repeats=1] [tokenizer=byte_level]

prepare: JSON lines to token files with a 32,000-token BPE tokenizer, beside nanoGPT's way (its
prepare.py: `datasets.map` with one text a call at the same number of processes, then a memmap
filled in 1,024 parts), the same tokenizer in both. Only the peer's map and write are timed, not
its conversion of the JSON lines to Arrow; ours is all of it, checksums and index included.
serve: batches of 512 x 1,025 tokens in shuffled order from a warm memmap of uint16, beside a torch
DataLoader over a map-style dataset of the same windows, with no worker or with `processes`,
whichever is faster.
Both are run `repeats` times in turn, ours and the peer's, and the ratio is that of each pair.
start: a fresh Python process that opens a corpus of 1,000,000,000 tokens (a sparse file) and takes
its first batch and its validation windows; seconds and peak memory of the whole process.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ablations.data.embedded import embedded_manifest, read_documents  # noqa: E402
from ablations.data.order import Batches  # noqa: E402
from ablations.data.prepare import Preparation, prepare  # noqa: E402
from ablations.data.tokenizer import load_tokenizer  # noqa: E402

VOCABULARY = 32_000
END = "<|endoftext|>"
CONTEXT, BATCH = 1024, 512
SERVED_BATCHES = 60


def main(arguments: list[str]) -> None:
    settings = dict(a.split("=", 1) for a in arguments if "=" in a)
    wanted = [a for a in arguments if "=" not in a] or ["prepare", "serve", "start"]
    processes, repeats = int(settings.get("processes", 2)), int(settings.get("repeats", 1))
    with tempfile.TemporaryDirectory(prefix="archladder-data-") as name:
        folder = Path(name)
        if "prepare" in wanted:
            train = TRAINERS[settings.get("tokenizer", "byte_level")]
            megabytes = float(settings.get("megabytes", 36))
            measure_prepare(folder, processes, megabytes, repeats, train(folder))
        if "serve" in wanted:
            measure_serve(folder, processes, float(settings.get("gigabytes", 1)), repeats)
        if "start" in wanted:
            measure_start(folder)


def measure_prepare(
    folder: Path, processes: int, megabytes: float, repeats: int, tokenizer: Path
) -> None:
    source, size = write_source(folder, megabytes)
    ours, theirs = [], []
    for turn in range(repeats):
        out = folder / f"ours-{turn}"
        asked = Preparation(
            str(source), load_tokenizer(str(tokenizer)), out, "bench", processes=processes
        )
        begun = time.perf_counter()
        corpus = prepare(asked, print)
        ours.append(time.perf_counter() - begun)
        tokens = len(corpus.train) + len(corpus.validation["bench"].tokens)
        seconds, theirs_tokens = nanogpt_prepare(folder, source, tokenizer, processes)
        theirs.append(seconds)
        assert tokens == theirs_tokens, (tokens, theirs_tokens)
    print(f"\nprepare: {size / 1e6:.0f} MB, {tokens:,} tokens, {processes} processes")
    for label, seconds in (("ours", min(ours)), ("nanoGPT's datasets.map", min(theirs))):
        print(
            f"  {label:24} {seconds:7.2f} s {size / 1e6 / seconds:7.2f} MB/s "
            f"{tokens / 1e6 / seconds:6.2f} M tokens/s (the fastest)"
        )
    ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
    print(f"  ratio {spread(ratios)} (goal: at least 3)")


def spread(ratios: Sequence[float]) -> str:
    """The ratios of pairs, from the least to the greatest, and their median."""
    if len(ratios) == 1:
        return f"{ratios[0]:.2f}"
    listed = " ".join(f"{ratio:.2f}" for ratio in sorted(ratios))
    return f"{statistics.median(ratios):.2f} (median of {listed})"


def nanogpt_prepare(
    folder: Path, source: Path, tokenizer_file: Path, processes: int
) -> tuple[float, int]:
    """Seconds and tokens of the peer."""
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "cache"),
        "TOKENIZERS_PARALLELISM": "false",
    }
    import datasets
    from tokenizers import Tokenizer

    datasets.disable_progress_bars()
    loaded = datasets.load_dataset("json", data_files=str(source), split="train")
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    end = tokenizer.token_to_id(END)

    def process(example: dict[str, Any]) -> dict[str, Any]:
        ids = tokenizer.encode(example["text"], add_special_tokens=False).ids
        ids.append(end)
        return {"ids": ids, "len": len(ids)}

    begun = time.perf_counter()
    tokenized = loaded.map(
        process, remove_columns=["text"], num_proc=processes, load_from_cache_file=False
    )
    total = int(np.sum(tokenized["len"], dtype=np.uint64))
    out = np.memmap(folder / "theirs.bin", dtype=np.uint16, mode="w+", shape=(total,))
    parts, index = min(1024, len(tokenized)), 0
    for part in range(parts):
        batch = tokenized.shard(num_shards=parts, index=part, contiguous=True).with_format("numpy")
        ids = np.concatenate(batch["ids"])
        out[index : index + len(ids)] = ids
        index += len(ids)
    out.flush()
    return time.perf_counter() - begun, total


def measure_serve(folder: Path, processes: int, gigabytes: float, repeats: int) -> None:
    path = folder / "tokens.bin"
    count = int(gigabytes * 1e9) // 2
    generator = np.random.default_rng(0)
    with path.open("wb") as handle:
        for start in range(0, count, 1 << 24):
            size = min(1 << 24, count - start)
            handle.write(generator.integers(0, 1 << 16, size, dtype=np.uint16).tobytes())
    tokens = np.memmap(path, dtype=np.uint16, mode="r")
    int(tokens.max())  # warm
    batches = Batches(tokens, "ab" * 32, CONTEXT, BATCH, seed=0)
    ours, theirs = [], []
    for _ in range(repeats):
        ours.append(our_rate(batches))
        theirs.append(max(loader_rate(tokens, workers) for workers in (0, processes)))
    print(f"\nserve: {count * 2 / 1e9:.1f} GB of uint16, batches of {BATCH} x {CONTEXT}")
    for label, rate in (("ours", max(ours)), ("torch DataLoader", max(theirs))):
        print(f"  {label:24} {rate / 1e6:8.1f} M tokens/s (the fastest)")
    ratios = [our / their for our, their in zip(ours, theirs, strict=True)]
    print(f"  ratio {spread(ratios)} (goal: at least 5, and 20 M tokens/s)")
    path.unlink()


def our_rate(batches: Batches) -> float:
    """Tokens a second of batches in their order."""
    batches.batch(0)
    begun = time.perf_counter()
    for step in range(1, SERVED_BATCHES + 1):
        batches.batch(step)
    return SERVED_BATCHES * BATCH * CONTEXT / (time.perf_counter() - begun)


def loader_rate(tokens: np.ndarray, workers: int) -> float:
    """Tokens a second of a torch DataLoader over the same windows, shuffled by it."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Windows(Dataset):
        def __len__(self) -> int:
            return (len(tokens) - 1) // CONTEXT

        def __getitem__(self, index: int) -> Any:
            window = tokens[index * CONTEXT : index * CONTEXT + CONTEXT + 1]
            return torch.from_numpy(window.astype(np.int64))

    loader = DataLoader(Windows(), batch_size=BATCH, shuffle=True, num_workers=workers)
    served = iter(loader)
    next(served)
    begun = time.perf_counter()
    for _ in range(SERVED_BATCHES):
        next(served)
    return SERVED_BATCHES * BATCH * CONTEXT / (time.perf_counter() - begun)


START = """
import sys
from pathlib import Path
from ablations.data.order import Batches
from ablations.data.source import open_corpus, summarize
from ablations.data.windows import held_out_rows
summary = summarize("tokens", sys.argv[1])
corpus = open_corpus("tokens", sys.argv[1], Path(sys.argv[1]))
batch = Batches(corpus.train, corpus.fingerprint, 2048, 256, 0).batch(1000)
rows = [held_out_rows(domain, 2048, None) for domain in corpus.validation.values()]
assert "torch" not in sys.modules and summary.train_tokens == 10**9 and batch.shape == (256, 2049)
# Not getrusage, whose peak is that of the process that started this one.
status = Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


def measure_start(folder: Path) -> None:
    corpus = folder / "sparse"
    corpus.mkdir()
    held_out = np.tile(np.append(np.ones(999, dtype=np.uint16), np.uint16(0)), 1000)
    (corpus / "validation-a.bin").write_bytes(held_out.tobytes())
    (corpus / "token_bytes.bin").write_bytes(np.ones(50_257, dtype=np.uint16).tobytes())
    with (corpus / "train.bin").open("wb") as handle:
        handle.truncate(2 * 10**9)
    unread = {"sha256": "0" * 64}
    manifest = {
        "format": 1, "name": "sparse", "dtype": "uint16", "vocab_size": 50_257, "separator": 0,
        "tokenizer": {"name": "none", "sha256": None},
        "train": {"file": "train.bin", "tokens": 10**9, **unread},
        "validation": {
            "a": {"file": "validation-a.bin", "tokens": 10**6, "bytes": 10**6, **unread}
        },
        "token_bytes": {"file": "token_bytes.bin", **unread},
    }  # fmt: skip
    (corpus / "manifest.json").write_text(json.dumps(manifest))
    begun = time.perf_counter()
    command = [sys.executable, "-c", START, str(corpus)]
    done = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - begun
    peak = int(done.stdout) / 1024
    print("\nstart: 1,000,000,000 tokens")
    print(f"  {seconds:.2f} s and {peak:.0f} MiB at most (goals: 2 s, 200 MB)")


def write_source(folder: Path, megabytes: float) -> tuple[Path, int]:
    """JSON lines of the embedded text, again and again where more is asked for; bytes of text."""
    domains = embedded_manifest()["sources"].values()
    documents = [d.decode() for source in domains for d in read_documents(source)]
    path, size, index = folder / "source.jsonl", 0, 0
    with path.open("w", encoding="utf-8") as handle:
        while size < megabytes * 1e6 and index < 100 * len(documents):
            text = documents[index % len(documents)]
            handle.write(json.dumps({"text": text}) + "\n")
            size += len(text.encode())
            index += 1
    return path, size


def sample() -> list[str]:
    domains = embedded_manifest()["sources"].values()
    return [d.decode() for source in domains for d in read_documents(source)[::5]]


def train_byte_level(folder: Path) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample(), trainer)
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def train_sentencepiece(folder: Path) -> Path:
    """As Llama 2's: SentencePiece trains on words and runs of spaces, and encodes whole texts."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, trainers
    from tokenizers import pre_tokenizers as pre

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    words = pre.Split(Regex(" +[^ \\n]*|[^ \\n]+|\\n+"), "isolated")
    tokenizer.pre_tokenizer = pre.Sequence(
        [words, pre.Metaspace(prepend_scheme="never", split=False)]
    )
    special = ["<unk>", END]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[*special, *fallback], show_progress=False
    )
    tokenizer.train_from_iterator(sample(), trainer)
    spaces = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence(spaces)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    described = json.loads(tokenizer.to_str())
    described["pre_tokenizer"] = None
    described["added_tokens"] = described["added_tokens"][: len(special)]
    described["model"]["byte_fallback"] = True
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(described))
    return path


TRAINERS = {"byte_level": train_byte_level, "sentencepiece": train_sentencepiece}


if __name__ == "__main__":
    main(sys.argv[1:])
