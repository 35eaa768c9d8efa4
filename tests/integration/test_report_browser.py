"""The report in a real browser: it draws, sorts and fits a phone, with no network at all."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from analysis.__main__ import main
from analysis.report.figures import drawing
from tests.analysis.synthetic_sweeps import SweepWriter, write_ladder

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
    # Nothing may be fetched: every name resolves to nowhere.
    "--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=4000",
]  # fmt: skip
WIDTHS = {"phone": 360, "desk": 1280, "wide": 1920}
# The longest lines of a text that one reads at ease (WCAG 2.2, 1.4.8).
MOST_LETTERS = 80
# In frames of a phone's width and of two screens': what overflows, which figures have a size and
# stand side by side, how long lines are, what a click sorts.
PROBE = """
FRAMES
<pre id="seen"></pre>
<script>
const text = TEXT;
function look(frame) {
  const page = frame.contentDocument, root = page.documentElement;
  const boxes = [...page.querySelectorAll("figure svg")].map((one) => one.getBoundingClientRect());
  const table = [...page.querySelectorAll("table")]
    .find((one) => one.tHead.textContent.includes("target loss"));
  const head = [...table.tHead.rows[0].cells].find((one) => one.textContent === "target loss");
  const column = () =>
    [...table.tBodies[0].rows].map((row) => row.cells[head.cellIndex].textContent);
  const before = column();
  head.querySelector("button").click();
  const up = column(), state = head.getAttribute("aria-sort");
  head.querySelector("button").click();
  page.defaultView.dispatchEvent(new Event("beforeprint"));
  const printed = [...page.querySelectorAll("figure details")].map((one) => one.open);
  page.defaultView.dispatchEvent(new Event("afterprint"));
  const after = [...page.querySelectorAll("figure details")].map((one) => one.open);
  return {
    printed, after,
    overflow: root.scrollWidth - root.clientWidth, figures: boxes.length,
    smallest: Math.min(...boxes.map((one) => Math.min(one.width, one.height))),
    before, up, state, down: column(),
    answer: page.querySelector(".lead").getBoundingClientRect().top,
    letters: Math.max(...[...page.querySelectorAll("p, li, dd")].map((one) => {
      const high = parseFloat(getComputedStyle(one).lineHeight);
      const lines = Math.round(one.clientHeight / high);
      return lines > 2 ? one.textContent.length / lines : 0;
    })),
    lefts: [...page.querySelectorAll("figure")].map((one) => one.getBoundingClientRect().left),
    tops: [...page.querySelectorAll("figure")].map((one) => one.getBoundingClientRect().top),
    right: Math.max(...boxes.map((one) => one.right)),
    answered: page.querySelector(".lead").getBoundingClientRect().right,
    contents: page.querySelector("nav").getBoundingClientRect().right,
    begins: page.querySelector("main").getBoundingClientRect().left,
    cells: Math.min(...[...page.querySelectorAll("td:first-child")].map((one) => one.clientWidth)),
    scripts: page.scripts.length, ground: getComputedStyle(page.body).backgroundColor,
  };
}
const seen = {};
for (const name of NAMES) {
  const frame = document.getElementById(name);
  frame.onload = () => {
    seen[name] = look(frame);
    document.getElementById("seen").textContent = JSON.stringify(seen);
  };
  frame.srcdoc = text;
}
</script>
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    if BROWSER is None:
        pytest.skip("no Chromium here: install the package chromium to run this test")
    folder = tmp_path_factory.mktemp("browser")
    write_ladder(SweepWriter(folder / "runs" / "trial"))
    with pytest.MonkeyPatch.context() as patch:
        kept = tuple(p for p in drawing.PICTURES if p.name in ("savings", "loss", "bpb"))
        patch.setattr(drawing, "PICTURES", kept)
        out = folder / "out"
        assert (
            main(["report", "sweep=trial", f"runs={folder}/runs", f"out={out}", "resamples=40"])
            == 0
        )
    return (out / "report.html").read_text()


def seen(page: str, folder: Path, *flags: str) -> dict[str, dict[str, Any]]:
    """What the probe saw in each frame."""
    probe = folder / "probe.html"
    quoted = json.dumps(page).replace("</", "<\\/")
    frames = "".join(
        f'<iframe id="{name}" style="width:{width}px;height:900px;border:0"></iframe>'
        for name, width in WIDTHS.items()
    )
    text = PROBE.replace("FRAMES", frames).replace("NAMES", json.dumps([*WIDTHS]))
    probe.write_text("<!doctype html>" + text.replace("TEXT", quoted))
    command = [str(BROWSER), *FLAGS, *flags, f"--user-data-dir={folder}/profile", "--dump-dom"]
    done = subprocess.run(
        [*command, probe.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None
    return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "ground"), [("1", "rgb(255, 255, 255)"), ("0", "rgb(22, 24, 28)")]
)
def test_the_report_draws_sorts_and_fits_every_screen(
    page: str, tmp_path: Path, scheme: str, ground: str
) -> None:
    found = seen(page, tmp_path, f"--blink-settings=preferredColorScheme={scheme}")
    assert found.keys() == WIDTHS.keys()
    for view in found.values():
        assert view["overflow"] == 0
        assert view["figures"] == 3
        assert view["smallest"] > 150
        assert view["state"] == "ascending"
        numbers = [float(told) for told in view["before"]]
        assert [float(told) for told in view["up"]] == sorted(numbers)
        assert [float(told) for told in view["down"]] == sorted(numbers, reverse=True)
        assert numbers != sorted(numbers)
        assert view["answer"] < 200
        assert view["letters"] <= MOST_LETTERS
        assert view["ground"] == ground
        # What a figure rests on stands on paper, where nothing can be opened.
        assert view["printed"] == [True, True, True]
        assert view["after"] == [False, False, False]
    # The figures of the results are one under the other, and side by side where there is room.
    for name, beside in (("phone", False), ("desk", False), ("wide", True)):
        _, one, other = zip(found[name]["lefts"], found[name]["tops"], strict=True)
        assert (one[1] == other[1] and one[0] < other[0]) == beside
        assert (one[0] == other[0]) != beside
    for name in ("desk", "wide"):
        view = found[name]
        # Contents at the side, the figure beside the answer, and the screen's width used.
        assert view["contents"] <= view["begins"]
        assert view["lefts"][0] >= view["answered"]
        assert view["right"] > 0.9 * WIDTHS[name]
    assert found["phone"]["lefts"][0] < found["phone"]["answered"]
    # Names in the first column wrap, and not after each letter.
    assert found["phone"]["cells"] > 75
