"""The report's figures as files: all there, the right size, the same each time; and what is said where none can be."""

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from browser import EXECUTABLE

from kdstudy.analysis import images
from kdstudy.analysis.exhibits.exhibit import Exhibit
from kdstudy.analysis.figures.style import blank

needs_browser = pytest.mark.skipif(EXECUTABLE is None, reason="needs Chromium or Chrome")
HEIGHT = 300
SVG = "{http://www.w3.org/2000/svg}"


def exhibits() -> list[Exhibit]:
    """A line with a legend and a map of colours, and a figure that has nothing to show yet."""
    line = blank(HEIGHT, showlegend=True).add_scatter(x=[1, 2], y=[3, 5], name="a & <b>")
    line.add_scatter(x=[1, 2], y=[4, 4], name="other")
    colours = blank(HEIGHT).add_heatmap(z=[[1, 2], [3, 4]])
    return [Exhibit("line", "A line &amp; its name", "", "", line), Exhibit("colours", "Colours", "", "", colours),
            Exhibit("absent", "Nothing", "", "Nothing yet.", None)]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Both kinds of both figures, in one folder."""
    pytest.importorskip("kaleido")
    folder = tmp_path_factory.mktemp("results") / "images"
    for kind in images.KINDS:
        assert images.write_images(exhibits(), folder, kind) == [folder / f"line.{kind}", folder / f"colours.{kind}"]
    return folder


@needs_browser
def test_each_figure_has_a_file_and_nothing_else_is_left(written):
    assert sorted(path.name for path in written.iterdir()) == ["colours.png", "colours.svg", "line.png", "line.svg"]
    assert [path.name for path in written.parent.iterdir()] == ["images"]


@needs_browser
def test_png_has_its_size_and_shows_something_on_white(written):
    image = pytest.importorskip("PIL.Image")
    for name in ("line", "colours"):
        picture = image.open(written / f"{name}.png").convert("RGB")
        assert picture.size == (images.SCALE * images.WIDTH, images.SCALE * (HEIGHT + images.TITLE_HEIGHT))
        assert picture.getpixel((3, 3)) == picture.getpixel((3, picture.height - 3)) == (255, 255, 255)
        assert len(picture.getcolors(1 << 24)) > 20


@needs_browser
def test_svg_is_whole_titled_and_offline(written):
    for name, title in (("line", "A line & its name"), ("colours", "Colours")):
        text = (written / f"{name}.svg").read_text(encoding="utf-8")
        root = ElementTree.fromstring(text)
        assert root.tag == f"{SVG}svg" and root.get("width") == str(images.WIDTH)
        assert not re.findall(r"[a-z]+://", text.replace("http://www.w3.org/", ""))
        links = [first or second for first, second in re.findall(r'href="([^"]*)"|url\(([^)]*)\)', text)]
        assert links and all(re.match(r"['\"]?(&quot;)?(#|data:)", link) for link in links)
        assert title in ["".join(element.itertext()) for element in root.iter(f"{SVG}text")]


@needs_browser
def test_title_stands_above_the_legends_entries(written):
    root = ElementTree.parse(written / "line.svg").getroot()
    legend = next(group for group in root.iter(f"{SVG}g") if group.get("class") == "legend")
    title = next(text for text in legend.iter(f"{SVG}text") if text.get("class") == "legendtitletext")
    entries = [group for group in legend.iter(f"{SVG}g") if group.get("class") == "traces"]
    heights = [float(re.search(r",([\d.]+)\)", entry.get("transform"))[1]) for entry in entries]
    assert len(heights) == 2 and 0 < float(title.get("y")) < min(heights)


@needs_browser
def test_same_figure_gives_the_same_bytes(written, tmp_path):
    for kind in images.KINDS:
        for path in images.write_images(exhibits(), tmp_path / "images", kind):
            assert path.read_bytes() == (written / path.name).read_bytes()


def test_title_is_added_to_a_copy_and_only_where_there_is_one():
    figure = blank(HEIGHT).add_scatter(x=[1], y=[1])
    before = figure.to_json()
    titled, plain = (images._titled(Exhibit("one", heading, "", "", figure)).layout for heading in ("One", ""))
    assert figure.to_json() == before
    assert (titled.title.text, titled.height, titled.margin.t) == ("<b>One</b>", HEIGHT + images.TITLE_HEIGHT,
                                                                   images.TITLE_HEIGHT + 4)
    assert (plain.title.text, plain.height) == (None, HEIGHT)


def test_nothing_to_draw_needs_no_browser(tmp_path, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "none"))
    assert images.write_images(exhibits()[2:], tmp_path / "images", "png") == []
    assert not list(tmp_path.iterdir())


def test_unknown_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match="images cannot be written as 'gif'; the kinds are svg and png"):
        images.write_images(exhibits(), tmp_path, "gif")


def failure(folder: Path, before: str = "", **environment: str) -> str:
    """What a process of its own says when the images cannot be drawn; it must leave nothing behind."""
    code = (f"import sys; from pathlib import Path\n{before}\nfrom test_images import exhibits, images\n"
            "try: images.write_images(exhibits(), Path(sys.argv[1]) / 'images', 'svg')\n"
            "except images.ImagesUnavailable as error: assert isinstance(error, ValueError); print(error)")
    places = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))
    run = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, timeout=300,
                         env=os.environ | {"PYTHONPATH": places} | environment)
    assert run.returncode == 0, run.stderr
    assert not list(folder.iterdir())
    return run.stdout.strip()


def test_missing_browser_is_one_clear_line(tmp_path):
    pytest.importorskip("kaleido")
    assert failure(tmp_path, BROWSER_PATH="/no/browser") == \
        "images need Chromium or Chrome: install one, or name it in BROWSER_PATH (now /no/browser)"


def test_browser_that_does_not_start_is_one_clear_line(tmp_path):
    pytest.importorskip("kaleido")
    assert failure(tmp_path, BROWSER_PATH="/bin/false") == \
        ("images need a Chromium or Chrome that starts: install another one, or name it in BROWSER_PATH "
         "(now /bin/false)")


def test_missing_kaleido_is_one_clear_line(tmp_path):
    assert failure(tmp_path, before="sys.modules['kaleido'] = None") == \
        "images need kaleido 1 or newer: pip install 'kdstudy[images]'"


def test_a_figure_that_cannot_be_drawn_is_not_passed_over(tmp_path, monkeypatch):
    kaleido = pytest.importorskip("kaleido")

    def fail(orders: list, cancel_on_error: bool, kopts: dict) -> None:
        assert cancel_on_error and kopts == {"mathjax": False}
        raise RuntimeError("a figure failed")

    monkeypatch.setattr(kaleido, "write_fig_from_object_sync", fail)
    with pytest.raises(RuntimeError, match="a figure failed"):
        images.write_images([Exhibit("one", "One", "", "", blank(200))], tmp_path / "i", "svg")
    assert not list(tmp_path.iterdir())
