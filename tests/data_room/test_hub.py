"""Datasets by name: rows of a local repository, and of a hub that a small server plays."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from ablations.data import hub
from ablations.data import prepare as preparing
from ablations.data.__main__ import main
from ablations.data.documents import list_files, read_blocks
from tests.data_room.conftest import write_lines

pytest.importorskip("datasets")
ROOT = Path(__file__).resolve().parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TEXTS = [f"shard {i // 900} row {i} " + "words " * (i % 9) for i in range(2700)]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of three training files and one of another split."""
    folder = tmp_path_factory.mktemp("hub") / "repository"
    (folder / "data").mkdir(parents=True)
    for shard in range(3):
        part = TEXTS[900 * shard : 900 * (shard + 1)]
        write_lines(folder / "data" / f"train-{shard:05}-of-00003.jsonl", part)
    write_lines(folder / "data" / "validation-00000-of-00001.jsonl", ["held out"] * 5)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.bin"))}


def prepare(out: Path, source: object, *more: str) -> int:
    given = (f"source={source}", "tokenizer=bytes", "name=x", f"out={out}", "processes=1")
    return main(["prepare", *given, "deduplicate=true", *more])


@pytest.fixture(scope="module")
def expected(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What plain JSON lines of the same texts become."""
    folder = tmp_path_factory.mktemp("expected")
    assert prepare(folder / "c", write_lines(folder / "a.jsonl", TEXTS)) == 0
    return files(folder / "c")


def test_a_dataset_repository_gives_the_corpus_of_its_rows(
    repository: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    assert prepare(tmp_path / "c", f"hf:{repository}") == 0
    assert files(tmp_path / "c") == expected
    (held_out,) = list_files("source", f"hf:{repository}::validation")
    (block,) = read_blocks(held_out, 0, 0, 0, "text")
    assert block.payload == [b"held out"] * 5


def test_rows_from_any_block_on_are_the_rest(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ablations.data.blocks.BLOCK_BYTES", 5000)
    monkeypatch.setattr(hub, "BLOCK_ROWS", 400)
    opened = list_files("source", f"hf:{repository}")[0]
    blocks = list(read_blocks(opened, 0, 0, 0, "text"))
    assert len(blocks) > 12
    assert [row for block in blocks for row in block.payload] == [t.encode() for t in TEXTS]
    for i, block in enumerate(blocks):
        position = json.loads(json.dumps(block.position))
        again = list_files("source", f"hf:{repository}")[0]
        rest = list(read_blocks(again, 0, position, block.first - 1 + block.records, "text"))
        wanted = [row for later in blocks[i + 1 :] for row in later.payload]
        assert [row for later in rest for row in later.payload] == wanted
        assert not rest or rest[0].first == blocks[i + 1].first


def test_a_stream_that_was_cut_goes_on_to_the_same_bytes(
    repository: Path, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ablations.data.blocks.BLOCK_BYTES", 5000)
    monkeypatch.setattr(preparing, "COMMIT_SECONDS", 0.0)
    real, calls = hub.HubSplit._next, 0

    def cut(self: Any, tables: Any) -> Any:
        nonlocal calls
        calls += 1
        return real(self, iter(lambda: 1 / 0, None) if calls == 3 else tables)

    monkeypatch.setattr(hub.HubSplit, "_next", cut)
    assert prepare(tmp_path / "c", f"hf:{repository}") == 2
    assert not (tmp_path / "c").exists()
    assert prepare(tmp_path / "c", f"hf:{repository}") == 0
    assert files(tmp_path / "c") == expected
    assert calls == 3 + 3, "the first table of three is not read again"


def test_of_parquet_the_one_column_is_read_and_goes_on_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(hub, "BLOCK_ROWS", 100)
    table = pa.table({"id": range(len(TEXTS)), "text": TEXTS, "more": [b"x" * 50] * len(TEXTS)})
    pq.write_table(table, tmp_path / "train.parquet", row_group_size=10**6)
    opened = list_files("source", f"hf:{tmp_path}")[0]
    blocks = list(read_blocks(opened, 0, 0, 0, "text"))
    (made,) = {
        tuple(t.column_names)
        for _, t in opened.builder.as_streaming_dataset("train")._ex_iterable.iter_arrow()
    }
    assert made == ("text",)
    assert {block.records for block in blocks} == {100}
    assert [row for block in blocks for row in block.payload] == [t.encode() for t in TEXTS]
    position = json.loads(json.dumps(blocks[12].position))
    again = list_files("source", f"hf:{tmp_path}")[0]
    rest = read_blocks(again, 0, position, 1300, "text")
    assert [row for block in rest for row in block.payload] == [t.encode() for t in TEXTS[1300:]]


WRONG = {
    "hf:SEVERAL": "Please pick one among the available configs: ['a', 'b']",
    "hf:": "source=hf: is no dataset; valid: hf:OWNER/NAME[@REVISION][:CONFIG[:SPLIT]]",
    "hf:a/b:c:d:e": "is no dataset; valid:",
    "hf:./nowhere": "is not a folder; valid:",
    "hf:REPOSITORY::test": "Bad split: test. Available splits: ['train', 'validation']",
    "hf:REPOSITORY:french": "BuilderConfig 'french' not found. Available: ['default']",
}


@pytest.mark.parametrize(("source", "why"), WRONG.items())
def test_a_name_that_cannot_be_opened_is_one_sentence(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, why: str
) -> None:
    several = repository.parent / "several"
    several.mkdir(exist_ok=True)
    for config in "ab":
        write_lines(several / f"{config}.jsonl", ["a text"] * 3)
    parts = "".join(f"- config_name: {c}\n  data_files: {c}.jsonl\n" for c in "ab")
    (several / "README.md").write_text(f"---\nconfigs:\n{parts}---\n")
    for name, folder in (("REPOSITORY", repository), ("SEVERAL", several)):
        source = source.replace(name, str(folder))
    assert prepare(tmp_path / "c", source) == 2
    error = capsys.readouterr().err
    assert why in error
    assert error.startswith("error: source=hf:")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_missing_column_or_library_is_one_sentence(
    repository: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert prepare(tmp_path / "c", f"hf:{repository}", "text=body") == 2
    assert "has no column body; valid: text=NAME with one of text, id" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert prepare(tmp_path / "d", f"hf:{repository}") == 2
    assert "needs the package datasets, which is not installed" in capsys.readouterr().err


def test_rows_that_changed_since_are_not_gone_on_with(
    repository: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preparing._Work, "_manifest", lambda _self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare(tmp_path / "c", f"hf:{repository}")
    (repository / "more.txt").write_text("")
    assert prepare(tmp_path / "c", f"hf:{repository}") == 2
    assert "was begun with another files; give what was given" in capsys.readouterr().err
    (repository / "more.txt").unlink()


DATA = {"type": "directory", "path": "data", "oid": "0"}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as reading one public dataset takes."""

    repository: Path
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        path = unquote(address.path)
        if path in ("/api/datasets/owner/words", f"/api/datasets/owner/words/revision/{COMMIT}"):
            names = [{"rfilename": file["path"]} for file in self._files()]
            self._answer({"id": "owner/words", "sha": COMMIT, "siblings": names, "tags": []})
        elif tree := re.fullmatch(rf"/api/datasets/owner/words/tree/{COMMIT}/?(.*)", path):
            deep = parse_qs(address.query).get("recursive", ["false"])[0].lower() == "true"
            inside = [f for f in self._files() if f["path"].startswith(tree[1])]
            self._answer(inside if deep or tree[1] else [DATA])
        elif file := re.fullmatch(rf"/datasets/owner/words/resolve/{COMMIT}/(.+)", path):
            self._file(self.repository / file[1])
        elif "/owner/gated" in path and "/api/" in path and "/tree/" not in path:
            self._answer({"id": "owner/gated", "sha": COMMIT, "siblings": [], "tags": []})
        elif "/owner/gated" in path:
            self._answer({"error": "none"}, 403, {"X-Error-Code": "GatedRepo"})
        elif "/revision/" in path:
            self._answer({"error": "none"}, 404, {"X-Error-Code": "RevisionNotFound"})
        else:
            self._answer({"error": "none"}, 401, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        wanted = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
        self._answer([f for f in [*self._files(), DATA] if f["path"] in wanted])

    def _files(self) -> list[dict[str, Any]]:
        found = sorted((self.repository / "data").iterdir())
        return [
            {"type": "file", "path": f"data/{p.name}", "size": p.stat().st_size, "oid": p.name}
            for p in found
        ]

    def _file(self, path: Path) -> None:
        if not path.is_file():
            self._answer({"error": "none"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        content, status, more = path.read_bytes(), 200, {}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(asked[1]), int(asked[2] or len(content) - 1)
            more["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            content, status = content[start : end + 1], 206
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{path.name}"', "Accept-Ranges": "bytes"}
        self._answer(content, status, headers | more)

    def _answer(
        self, content: Any, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address(repository: Path) -> Iterator[str]:
    handler = type("OneHub", (Hub,), {"repository": repository})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.slow
def test_a_dataset_of_the_hub_by_name(
    address: str, repository: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "*"}
    # One process for all, as the library is slow to import; a new one, as it reads these once.
    program = (
        "import sys; from ablations.data.__main__ import main\n"
        "given = ['prepare', 'tokenizer=bytes', 'name=x', 'deduplicate=true', 'processes=1']\n"
        "print([main([*given, *pair.split()]) for pair in sys.argv[1:]])\n"
    )

    def run(*names: str, **more: str) -> tuple[str, list[str]]:
        first = len([*tmp_path.iterdir()])
        pairs = [
            f"source=hf:owner/{n} out={tmp_path / f'o{first + i}'}" for i, n in enumerate(names)
        ]
        done = subprocess.run(
            [sys.executable, "-c", program, *pairs],
            cwd=ROOT, env=environment | more, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        return done.stdout.splitlines()[-1], done.stderr.splitlines()

    wrong = {
        "none": "is not on the hub, or private; valid:",
        "words@nowhere": "has no such revision; valid: a branch",
        "gated": "is gated; valid: ask for access",
    }
    codes, said = run("words", *wrong)
    assert codes == "[0, 2, 2, 2]", said
    for line, (source, why) in zip(said, wrong.items(), strict=True):
        assert line.startswith(f"error: source=hf:owner/{source} {why}")
    (online,) = tmp_path.glob("o*")
    assert files(online) == expected
    prepared = json.loads((online / "manifest.json").read_text())["prepared"]
    assert prepared["hub"] == [f"hf:owner/words@{COMMIT}::train"]

    # Without the hub: what is whole in the cache, by the same name, and else a sentence.
    cached = tmp_path / "home" / "hub" / "datasets--owner--words"
    shutil.copytree(repository, cached / "snapshots" / COMMIT)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)
    codes, said = run("none", "words", HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:1")
    assert codes == "[2, 0]", said
    assert len(said) == 1
    assert "is not whole in this machine's cache, and HF_HUB_OFFLINE is set; valid:" in said[0]
    (offline,) = set(tmp_path.glob("o*")) - {online}
    assert files(offline) == expected
    assert json.loads((offline / "manifest.json").read_text())["prepared"]["hub"] == prepared["hub"]
