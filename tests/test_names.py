"""Names that come with data and settings: shown as they are, wherever they are shown, and part of no file's name."""

import csv
import html
import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from plotly.offline import get_plotlyjs
from sklearn.datasets import load_digits
from synthetic import here, is_one_line, write_finished

from kdstudy.analysis.tables import COLUMNS, plain
from kdstudy.store.files import write_json
from kdstudy.trainables import models

pytestmark = pytest.mark.usefixtures("apart")

NAMES = ("<script>alert(1)</script>", "a|b", "../../etc/passwd", "two\nlines", "quotes \" ' `", "\u202eright to left",
         "🙂" * 3, "long" * 500, "[red]red[/] [/]", "</script><!-- =1+1 &amp;")
SENTENCE = "<img src=x onerror=alert(1)> a|b [red]x[/] [/] </script> 'quoted' `code` 🙂"


DIGITS = tuple(map(str, range(10)))


def write_named(home: Path, classes: tuple[str, ...], sentence: str) -> Path:
    """A study whose classes and sentences are these, and whose images lie beside it."""
    home.mkdir(parents=True)
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    np.savez(home / "images [bold].npz", images=images, labels=digits.target, class_names=np.array(classes))
    folder = write_finished(home / "study", f"data.source={home}/images [bold].npz", f"about={sentence}",
                            f"published.pair={sentence}", "published.gain=1.0")
    done = next(folder.glob("teacher-*/done.json"))
    write_json(done, json.loads(done.read_text()) | {"model": sentence})  # as the name of a given teacher's file is
    return folder


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """A study with such names for its classes, sentences, files and folders."""
    return write_named(tmp_path_factory.mktemp("names") / "[red]a|b[/x] <b> 'q\" 🙂", NAMES, SENTENCE)


class Elements(HTMLParser):
    """The elements of a page, without what they say."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple] = []
        self.feed(page.replace(get_plotlyjs(), ""))

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, *sorted(name for name, _ in attributes)))


def page_of(folder: Path) -> str:
    return (folder / "results" / "report.html").read_text()


def test_no_name_adds_an_element_to_a_page(named, tmp_path):
    plainly = write_named(tmp_path / "plain", DIGITS, "a sentence")
    found = []
    for folder in (plainly, named):
        other, compared = shutil.copytree(folder, tmp_path / folder.parent.name / "other"), tmp_path / "all.html"
        code, out, err = here("report", str(folder), str(other), "--compare", str(compared))
        assert code == 0 and not err, err
        found.append([Elements(page).found for page in (page_of(folder), compared.read_text())])
    assert found[0] == found[1]
    assert html.escape(SENTENCE) in page_of(named) and plain(SENTENCE) in out
    data = re.search(r'id="figures">(.*?)</script>', page_of(named), re.DOTALL)[1]
    assert "<" not in data and len(json.loads(data)["figures"]) > 3


def test_tables_keep_their_shape_and_their_names(named):
    assert here("report", str(named))[0] == 0
    rows = [line for line in (named / "results" / "results.md").read_text().splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {len(COLUMNS) + 1} and len(rows) == 7
    assert "<" not in (named / "results" / "results.md").read_text()
    with open(named / "results" / "classes.csv", newline="") as file:
        assert tuple(row["name"] for row in csv.DictReader(file)) == NAMES


@pytest.mark.parametrize("model", ["student", "teacher"])
def test_an_export_carries_names_as_they_are_and_its_card_shows_them(named, tmp_path, model):
    code, out, err = here("export", str(named), str(tmp_path / "o[/x] out"), "--model", model)
    assert code == 0 and not err and "o[/x] out" in out, err
    config = json.loads((tmp_path / "o[/x] out" / "config.json").read_text())
    assert tuple(config["label_names"]) == NAMES
    card = (tmp_path / "o[/x] out" / "README.md").read_text()
    assert "<" not in card and "local-dir:x] out" in card
    rows = [line for line in card.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} <= {3}
    assert "&lt;img src=x onerror=alert(1)> a\\|b" in card
    assert models.read_trained(tmp_path / "o[/x] out").class_names == NAMES


@pytest.mark.parametrize("model", ["student", "teacher"])
def test_the_card_of_a_study_that_says_nothing_of_itself_has_no_gap(named, tmp_path, model):
    folder = shutil.copytree(named, tmp_path / "silent")
    text = (folder / "study.toml").read_text()
    (folder / "study.toml").write_text(re.sub("^about = .*$", 'about = ""', text, count=1, flags=re.MULTILINE))
    code, _, err = here("export", str(folder), str(tmp_path / "out"), "--model", model)
    card = (tmp_path / "out" / "README.md").read_text()
    assert code == 0 and "\n\n\n" not in card and len(card.splitlines()) > 10, err


def test_figures_that_are_older_than_the_page_are_said_to_be(named, tmp_path):
    folder = shutil.copytree(named, tmp_path / "s")
    assert "older than the page" not in here("report", str(folder))[1]
    (folder / "results" / "images").mkdir()
    assert "older than the page" not in here("report", str(folder))[1]  # the page is what it was
    (folder / "results" / "report.html").unlink()
    assert f"{folder}/results/images are older than the page; --images draws" in here("report", str(folder))[1]


def test_names_appear_on_the_terminal_as_they_are_and_in_no_file_name(named, tmp_path):
    for words in (("status", named), ("plan", named), ("report", named), ("pack", named, tmp_path / "p[/x] packed"),
                  ("logits", named, tmp_path / "[red].safetensors"),
                  ("train", "baseline", named, "--set", "train.epochs=1", "--out", tmp_path / "t[/x] trained")):
        code, out, err = here(*map(str, words))
        assert code == 0 and not err, (words, err)
        assert str(named) in out or str(words[-1]) in out, (words, out)
        if words[0] == "plan":
            assert SENTENCE in out and f"{named.parent}/images [bold].npz" in out
    written = {path.name for place in (named, tmp_path) for path in place.rglob("*")}
    assert {name for name in written if not re.fullmatch(r"[A-Za-z0-9._-]+", name)} == {
        "p[", "x] packed", "[red].safetensors", "t[", "x] trained"}
    assert sorted(os.listdir(named.parent)) == ["images [bold].npz", "study"] and not os.listdir()


def test_a_class_that_is_not_there_is_said_in_one_line_whatever_the_others_are_called(named):
    code, _, err = here("plan", str(named), "--set", "data.classes=['no', 'such']")
    assert code == 2 and is_one_line(err) and "'no' is not a class" in err
