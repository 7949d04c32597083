"""The page in a real browser: headless Chromium, where there is one.

R2D_EDGE_BROWSER names the browser, R2D_EDGE_ARTIFACTS a folder for the pictures and the PDF.
"""

from __future__ import annotations

import html as markup
import http.server
import importlib.util
import json
import os
import re
import shutil
import struct
import subprocess
import threading
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from r2d_edge.report.page import html
from r2d_edge.report.wording import SECTIONS, VERDICTS
from tests.r2d_edge.report.made_reports import LEVELS, made_report

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = os.environ.get("R2D_EDGE_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium or Chrome is on the path, and R2D_EDGE_BROWSER names none"
)
READERS = [name for name in ("pdftotext", "pypdf") if shutil.which(name) or importlib.util.find_spec(name)]
LIGHT_GROUND, DARK_GROUND = (0xF3, 0xF5, 0xF7), (0x10, 0x15, 0x1B)
DARK = "--blink-settings=preferredColorScheme=0"
TIMEOUT = 120
LONG = [f"a rather long label name of the kind that service number {number} may have" for number in range(12)]
# Written into a copy of the page: what is wider than its place, told to the page around it.
MEASURE = """
<script>
addEventListener("load", () => {
  const root = document.documentElement, wide = (one) => one.scrollWidth > one.clientWidth + 1;
  const boxes = [...document.querySelectorAll(".scroll")].filter(wide);
  const over = [...document.body.querySelectorAll("*")].filter((one) =>
    !one.closest(".scroll") && !one.closest(".unseen") && one.getBoundingClientRect().right > root.clientWidth + 1);
  parent.postMessage({
    width: innerWidth, scroll: root.scrollWidth, height: root.scrollHeight,
    boxes: boxes.map((one) => one.firstElementChild.className),
    over: over.map((one) => one.tagName + "." + (one.getAttribute("class") || "")),
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
  }, "*");
});
</script>
"""
AROUND = """<!doctype html><meta charset="utf-8"><body style="margin:0"><script>
addEventListener("message", (event) => document.title = JSON.stringify(event.data));
</script><iframe src="{name}" style="border:0;width:{width}px;height:{height}px"></iframe>"""

Browse = Callable[..., str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures and the PDF are left."""
    named = os.environ.get("R2D_EDGE_ARTIFACTS")
    path = Path(named) if named else tmp_path_factory.mktemp("artifacts")
    path.mkdir(parents=True, exist_ok=True)
    return path.resolve()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return made_report(tmp_path_factory.mktemp("report"), rows=300, show_texts=True)


@pytest.fixture(scope="module")
def page(folder: Path, report: dict[str, Any]) -> Path:
    path = folder / "report.html"
    path.write_text(html(report), encoding="utf-8", newline="\n")
    return path


@pytest.fixture(scope="module")
def browse(tmp_path_factory: pytest.TempPathFactory) -> Browse:
    profile = tmp_path_factory.mktemp("profile")
    flags = ["--headless", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=1", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        flags.append("--no-sandbox")  # Chromium has none for root

    def run(path: Path, *more: str) -> str:
        command = [str(BROWSER), *flags, *more, path.as_uri()]
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT)
        assert done.returncode == 0, done.stderr.decode("utf-8", "replace")[-2000:]
        return done.stdout.decode("utf-8", "replace")

    return run


def png(path: Path) -> tuple[int, int, tuple[int, ...], int]:
    """Width, height, the first pixel and the bytes of the picture's data."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height, depth, kind = struct.unpack(">IIBB", data[16:26])
    assert depth == 8
    assert kind in (2, 6)  # colour, with or without transparency
    packed, place = b"", 8
    while place < len(data):
        (size,) = struct.unpack(">I", data[place : place + 4])
        if data[place + 4 : place + 8] == b"IDAT":
            packed += data[place + 8 : place + 8 + size]
        place += size + 12
    # The first pixel of the first line is the same under every filter: it has no neighbours.
    return width, height, tuple(zlib.decompress(packed)[1:4]), len(packed)


def measured(browse: Browse, path: Path, width: int, *more: str) -> dict[str, Any]:
    """What the page says of itself at a width; a window of Chromium's is never as narrow as a telephone."""
    text = path.read_text(encoding="utf-8")
    loose = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text).replace(
        "</body>", f"{MEASURE}</body>"
    )
    assert loose.count("<script>") == 1
    copy = path.with_name(f"measured-{path.name}")
    copy.write_text(loose, encoding="utf-8", newline="\n")
    around = path.with_name(f"around-{path.name}")
    around.write_text(AROUND.format(name=copy.name, width=width, height=1000), encoding="utf-8", newline="\n")
    dumped = browse(around, f"--window-size={width + 200},1200", "--virtual-time-budget=5000", "--dump-dom", *more)
    copy.unlink()
    around.unlink()
    found: dict[str, Any] = json.loads(markup.unescape(re.findall(r"<title>(.*?)</title>", dumped, re.DOTALL)[0]))
    return found


def test_light_and_dark_are_what_the_reader_asks_for(browse: Browse, page: Path, folder: Path) -> None:
    height = measured(browse, page, 1280)["height"]
    for name, ground, more in (("light", LIGHT_GROUND, []), ("dark", DARK_GROUND, [DARK])):
        picture = folder / f"{name}.png"
        browse(page, f"--window-size=1280,{height}", f"--screenshot={picture}", *more)
        width, tall, first, size = png(picture)
        assert (width, tall) == (1280, height)
        assert first == ground
        assert size > 150_000  # a blank one has a twentieth of that


def test_nothing_is_cut_on_a_wide_screen(browse: Browse, page: Path) -> None:
    found = measured(browse, page, 1280)
    assert (found["width"], found["scroll"]) == (1280, 1280)
    assert found["over"] == []
    assert found["boxes"] == []


@pytest.mark.parametrize("labels", [LEVELS, LONG], ids=["levels", "long"])
@pytest.mark.parametrize("width", [320, 360, 768])
def test_no_page_scrolls_sideways(browse: Browse, tmp_path: Path, labels: list[str], width: int) -> None:
    report = made_report(tmp_path / "data", labels=labels, rows=200, noise=0.6, show_texts=True, note="word" * 80)
    report["compared"]["command"] = "r2d-edge report " + "x" * 300
    path = tmp_path / "report.html"
    path.write_text(html(report), encoding="utf-8", newline="\n")
    found = measured(browse, path, width)
    assert (found["width"], found["scroll"]) == (width, width)
    assert found["over"] == []
    assert set(found["boxes"]) <= ({"matrix"} if width < 700 else {"matrix", "plain dense"})  # in their own boxes


def test_a_telephone_shows_it_whole(browse: Browse, page: Path, folder: Path) -> None:
    height = measured(browse, page, 360)["height"]
    around = page.with_name("around.html")
    around.write_text(AROUND.format(name=page.name, width=360, height=height), encoding="utf-8", newline="\n")
    picture = folder / "narrow.png"
    browse(around, f"--window-size=500,{height}", f"--screenshot={picture}")
    around.unlink()
    width, tall, first, size = png(picture)
    assert (width, tall) == (500, height)
    assert first == LIGHT_GROUND
    assert size > 150_000


@pytest.fixture(scope="module")
def pdf(browse: Browse, page: Path, folder: Path) -> Path:
    path = folder / "report.pdf"
    browse(page, "--no-pdf-header-footer", f"--print-to-pdf={path}", DARK)  # what is printed is light even so
    return path


def test_it_prints_over_several_pages(pdf: Path) -> None:
    data = pdf.read_bytes()
    assert data.startswith(b"%PDF-")
    assert 6 <= len(re.findall(rb"/Type\s*/Page\b", data)) <= 20


@pytest.mark.skipif(not READERS, reason="neither pdftotext nor pypdf is installed: the PDF's text cannot be read")
def test_print_holds_every_heading_every_row_and_every_text(pdf: Path, page: Path, report: dict[str, Any]) -> None:
    printed = bare("".join(pages(pdf)))
    source = page.read_text(encoding="utf-8").partition("</style>")[2]
    for heading in (VERDICTS[report["verdict"]["passed"]], *SECTIONS.values()):
        assert bare(heading) in printed, heading
    kinds = "td|th|caption|figcaption|h3|h4|p|dt|dd|summary|blockquote"
    parts = re.findall(rf"<({kinds})\b[^>]*>(.*?)</\1>", source, re.DOTALL)
    seen = [re.sub(r'<svg.*?</svg>|<span class="unseen">.*?</span>', "", part, flags=re.DOTALL) for _, part in parts]
    texts = [bare(markup.unescape(piece)) for part in seen for piece in re.split(r"<[^>]+>", part)]
    assert sum(map(bool, texts)) > 500
    assert [text for text in texts if text not in printed] == []
    assert printed.count("Decisionsupport,notamedicaldevice.") == 2


def bare(text: str) -> str:
    """A text without blanks, and without the ligatures that a font may draw."""
    return "".join(unicodedata.normalize("NFKC", text).split())


def pages(pdf: Path) -> list[str]:
    """The text of each page."""
    if shutil.which("pdftotext"):
        done = subprocess.run(["pdftotext", "-raw", "-enc", "UTF-8", str(pdf), "-"], capture_output=True, check=True)
        return done.stdout.decode("utf-8").split("\f")
    import pypdf

    return [one.extract_text() for one in pypdf.PdfReader(pdf).pages]


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """A place on this machine that could be fetched from, and what was."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as one:
        threading.Thread(target=one.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{one.server_port}", asked
        one.shutdown()


def test_nothing_is_fetched_even_if_markup_got_through(
    browse: Browse, tmp_path: Path, server: tuple[str, list[str]]
) -> None:
    address, asked = server
    lure = (
        f'<img src="{address}/image"><link rel="stylesheet" href="{address}/style"><iframe src="{address}/frame">'
        f'</iframe><script src="{address}/script"></script><script>fetch("{address}/fetch")</script>'
    )
    report = made_report(tmp_path / "data", labels=(lure, "b", "c"), note=lure, show_texts=True)
    path = tmp_path / "report.html"
    path.write_text(html(report), encoding="utf-8", newline="\n")
    more = ("--virtual-time-budget=3000", "--dump-dom")
    browse(path, *more)
    assert asked == []
    broken = html(report).replace("</body>", f"{lure}</body>")  # as if the escaping had failed
    path.write_text(broken, encoding="utf-8", newline="\n")
    browse(path, *more)
    assert asked == []
    loose = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", broken)
    path.write_text(loose, encoding="utf-8", newline="\n")
    browse(path, *more)  # this test can fail: without the policy all of it is fetched
    assert {"/image", "/style", "/frame", "/script", "/fetch"} <= set(asked)
