"""A block's documents to tokens, in as many processes as are asked for."""

import contextlib
import hashlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context, parent_process

import numpy as np

from ablations.data.blocks import Block
from ablations.data.documents import parse_lines, parse_texts
from ablations.data.encoder import Encoder, build_encoder
from ablations.data.tokenizer import TokenizerFile


@dataclass(frozen=True)
class Encoded:
    """A block's documents as tokens."""

    tokens: np.ndarray
    """Ids of all, each document ended by the separator."""
    lengths: np.ndarray
    """Tokens of each, separator included, int64 [documents]."""
    text_bytes: np.ndarray
    """UTF-8 bytes of each, int64 [documents]."""
    digests: np.ndarray
    """SHA-256 of each document's UTF-8, uint64 [documents, 4], big-endian."""
    malformed: list[tuple[int, str]]
    """(record of the block from 0, why)."""
    counts: dict[str, int]

    def documents(self, mask: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """Token ids of each document of a mask (bool [documents]; all), without its separator."""
        ends = np.cumsum(self.lengths)
        starts = ends - self.lengths
        if mask is not None:
            starts, ends = starts[mask], ends[mask]
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            yield self.tokens[start : end - 1]


def encode_block(block: Block, encoder: Encoder, text: str, tokenizer: TokenizerFile) -> Encoded:
    """Parse, tokenize and hash a block's documents."""
    drop_nul = tokenizer.content is None  # the NUL byte is what ends a document
    parse = parse_lines if isinstance(block.payload, bytes) else parse_texts
    documents: list[str] = []
    malformed: list[tuple[int, str]] = []
    counts = {"blank_documents": 0, "nul_bytes": 0}
    for record, document, why in parse(block.payload, text):
        if document is None:
            malformed.append((record, why))
            continue
        if drop_nul and "\0" in document:
            counts["nul_bytes"] += document.count("\0")
            document = document.replace("\0", "")
        if not document.strip():
            counts["blank_documents"] += 1
        else:
            documents.append(document)
    ids = encoder.encode(documents) if documents else []
    encoded = [document.encode() for document in documents]
    digests = b"".join(hashlib.sha256(content).digest() for content in encoded)
    end = np.array([tokenizer.separator], dtype=ids[0].dtype if ids else np.uint8)
    with_ends = [piece for tokens in ids for piece in (tokens, end)]
    tokens = np.concatenate(with_ends) if with_ends else np.empty(0, dtype=np.uint8)
    lengths = np.array([len(piece) + 1 for piece in ids], dtype=np.int64)
    text_bytes = np.array([len(content) for content in encoded], dtype=np.int64)
    if len(ids):
        starts = np.cumsum(lengths) - lengths
        counted = np.add.reduceat(tokenizer.token_bytes[tokens], starts, dtype=np.int64)
        counted -= tokenizer.prefix_bytes
        counts["inexact_documents"] = int((counted != text_bytes).sum())
    return Encoded(
        tokens=tokens,
        lengths=lengths,
        text_bytes=text_bytes,
        digests=np.frombuffer(digests, dtype=">u8").reshape(-1, 4),
        malformed=malformed,
        counts=counts,
    )


_mine: tuple[Encoder, TokenizerFile] | None = None


def _start(tokenizer: TokenizerFile) -> None:
    global _mine
    # Ctrl-C is for the first process alone; where that is killed, no other stays behind.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # One thread a process: the processes are the parallelism.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _mine = build_encoder(tokenizer), tokenizer


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode(block: Block, text: str) -> Encoded:
    assert _mine is not None
    encoder, tokenizer = _mine
    return encode_block(block, encoder, text, tokenizer)


@contextlib.contextmanager
def pool(
    tokenizer: TokenizerFile, text: str, processes: int
) -> Iterator[Callable[[Block], Future[Encoded]]]:
    """Where blocks are encoded: in `processes` others, or here where that is 1."""
    if processes == 1:
        encoder = build_encoder(tokenizer)

        def here(block: Block) -> Future[Encoded]:
            future: Future[Encoded] = Future()
            future.set_result(encode_block(block, encoder, text, tokenizer))
            return future

        yield here
        return
    # Forked processes would share this one's threads and locks.
    executor = ProcessPoolExecutor(
        processes,
        get_context("spawn"),
        initializer=_start,
        initargs=(tokenizer,),
    )
    try:
        yield lambda block: executor.submit(_encode, block, text)
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
