"""CSVs as programs write them: read alike in every encoding and line end, or refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from ablations.records import SettingError
from analysis.__main__ import main
from analysis.study.load import load_csv

TEXT = "mix,N,D,loss\ntransformer,1e6,2e7,3.5\ngdné,1e6,2e7,3.25\n"


def written(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "points.csv"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        TEXT.encode("utf-8-sig"),
        TEXT.encode("utf-16"),
        b"\xfe\xff" + TEXT.encode("utf-16-be"),
        TEXT.encode("utf-32"),
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.replace("\n", "\r").encode(),
        TEXT.replace("\n", "\r\n").replace(",", "\t").encode("utf-16"),
        TEXT.rstrip().encode(),
        b"mix,N,D,loss\n\n" + "\n\n".join(TEXT.splitlines()[1:]).encode() + b"\n\n   \n",
    ],
)
def test_encodings_and_line_ends_make_no_difference(tmp_path: Path, data: bytes) -> None:
    points = load_csv(written(tmp_path, data)).set_index("mix")
    assert points.loc["transformer", ["N", "D", "loss"]].tolist() == [1e6, 2e7, 3.5]
    assert points.loc["gdné", ["N", "D", "loss"]].tolist() == [1e6, 2e7, 3.25]
    assert len(points) == 2


REFUSED = {
    "latin-1": (TEXT.encode("latin-1"), r"is not text in UTF-8 \(line 3\); save it"),
    "utf-16 without a mark": (TEXT.replace("é", "").encode("utf-16-le"), "holds NUL bytes"),
    "utf-16 cut": (TEXT.encode("utf-16")[:-1], "is not text in UTF-8"),
    "nul": (TEXT.replace("gdn", "g\0dn").encode(), "holds NUL bytes"),
    "png": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is not text"),
    "gzip": (gzip.compress(TEXT.encode()), "is not text"),
    "zip of a spreadsheet": (b"PK\x03\x04\x14\0\x06\0" + b"\0" * 40, "holds NUL bytes"),
    "nothing": (b"", "is not a CSV"),
    "a mark alone": (b"\xff\xfe", "is not a CSV"),
    "header only": (b"mix,N,D,loss", "holds no rows"),
    "an open quote": (TEXT.replace("gdn", '"gdn').encode(), "is not a CSV"),
    "one line of 10 MB": (b"a" * 10_000_000, "is not a CSV"),
    "a cell of 10 MB": (TEXT.encode() + b"x" * 10_000_000 + b",1,2,3\n", "is not a CSV"),
    "500,000 columns": (b"a," * 500_000, r"is not a CSV \(500,001 columns\)"),
    "a cell too many": (
        TEXT.encode() + b"a,1,2,3,4\n",
        "has 5 cells in line 4, and its first line names 4 columns",
    ),
    "a cell too few": (TEXT.encode() + b"a,1,2\n", "has 3 cells in line 4"),
    # Read as a column of names without one, these would move every column by one.
    "a cell too many in all": (b"mix,N,D,loss\na,1,2,3,4\nb,1,2,3,4\n", "has 5 cells in line 2"),
    "a quoted line end before": (
        b'mix,N,D,loss\n"a\nb",1e6,2e7,3\na,-1,2e7,3\n',
        r"row 2 \(line 4 of the file\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_csv_of_points_is_one_sentence(tmp_path: Path, name: str) -> None:
    data, sentence = REFUSED[name]
    with pytest.raises(SettingError, match=sentence) as caught:
        load_csv(written(tmp_path, data))
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("words", [("fit",), ("savings",), ("report", "points=")])
def test_every_command_refuses_alike_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    command, *setting = words
    path = written(tmp_path, TEXT.encode("latin-1"))
    out = [f"out={tmp_path}/out"] if setting else []
    assert main([command, f"{''.join(setting)}{path}", *out]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: points=")
    assert said.err.count("\n") == 1
    assert [path] == list(tmp_path.iterdir())
