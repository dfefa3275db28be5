"""Whatever is handed in, the command does its work or says in one line what is wrong; nothing of it runs as code."""

import contextlib
import csv
import html
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomli_w
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from plotly.offline import get_plotlyjs
from rich.console import Console
from running import KDSTUDY
from safetensors.numpy import load_file, save_file
from sklearn.datasets import load_digits
from torchvision.datasets import cifar

from analysis.tables import COLUMNS, plain
from study.cli import main
from study.config import PRESETS, load_study, settings_table
from study.display import Display
from study.errors import UserError
from study.home import Home
from study.record import TrialState
from study.stages import Study, hash_file, stages_of
from study.storage import write_json
from trainables import models
from trainables.baseline import BaselineTrainable
from trainables.data import load
from trainables.settings import DataSettings, ModelSettings, TrainSettings, ViewSettings
from trainables.task import Task, write_predictions

LONGEST_SECONDS = 120  # what no plan takes, however many processes share the machine
EXAMPLES, MANY_EXAMPLES = 30, 1500


@pytest.fixture(scope="module", autouse=True)
def empty_folder(tmp_path_factory):
    """Where the commands are given; what they wrote there would be found."""
    home, earlier = tmp_path_factory.mktemp("bad-input"), Path.cwd()
    (home / "work").mkdir()
    os.chdir(home / "work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDSTUDY_CACHE", str(home / "cache"))
        yield home / "work"
    os.chdir(earlier)


def kdstudy(*words: str) -> tuple[int, str, str]:
    """The command in this process: its exit code and what it printed. A traceback is an error of the test."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    earlier = sys.argv, signal.signal(signal.SIGALRM, _too_long)
    sys.argv = ["kdstudy", *words]
    signal.alarm(LONGEST_SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as ended:
        code = ended.code or 0
    finally:
        signal.alarm(0)
        sys.argv, handler = earlier
        signal.signal(signal.SIGALRM, handler)
    return code, out.getvalue(), err.getvalue()


def _too_long(number, frame):
    raise AssertionError(f"the command took more than {LONGEST_SECONDS} seconds")


def is_one_line(text: str) -> bool:
    return text.startswith("kdstudy: ") and text.endswith("\n") and len(text.splitlines()) == 1 and len(text) > 20


def plans_or_says_why_not(*words: str) -> None:
    code, out, err = kdstudy("plan", *words)
    assert code in (0, 2), (code, words, out, err)
    if code == 0:
        assert "left to do" in out and not err, (words, err)
    else:
        assert is_one_line(err), (words, err)
    assert not os.listdir(), (words, os.listdir())


# -- what is handed in ------------------------------------------------------------------------------------------------

SETTINGS = [f"{section}.{key}" if section else key for section, keys in settings_table().items() for key, *_ in keys]
NUMBERS = st.one_of(
    st.sampled_from(["0", "-1", "1", "2", "7", "12", "64", "0.5", "1.5", "1e-3", "1e308", "-1e308", "1e400", "5e-324", "nan", "inf",
                     "-inf", str(10**6), str(10**12), str(10**30), "9" * 400, "9" * 5000, "0x" + "f" * 5000, "0b1",
                     "1_000", "true", "false", "1979-05-27", "07:32:00"]),
    st.integers(-3, 40).map(str), st.floats(-2, 2).map(str))
WORDS = st.one_of(
    st.text(max_size=12), st.text(st.characters(codec="utf-8"), max_size=300),
    st.sampled_from(["", " ", "''", '"', "\\", "a|b", "../../etc/passwd", "/", "/proc", "/dev/null", "/dev/zero", ".", "~",
                     "~nobody/x", "\x1b[2J", "a\nb", "a\nvalue=1", "\x00", "\udcff", "‮abc", "🙂" * 50, "x" * 10_000,
                     "[red]", "[/]", "%s", "{0}", "digits", "cifar100", "adamw", "lion", "lookahead_adam", "auto",
                     "file:///nowhere", "ftp8://x/y", "://", "mock://x", "os:getcwd", "nowhere:x", ":", "math:sqrt",
                     "builtins:dict", "..x:y", "torch.nn:Identity", "local-dir:.", "hf-hub:a/b", "resnet18",
                     "resnet18.a1_in1k", "resnet18.", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"]))
SCALARS = st.one_of(NUMBERS, WORDS)
LISTS = st.one_of(
    st.lists(SCALARS, max_size=5).map(lambda values: f"[{', '.join(values)}]"),
    st.lists(st.floats(0, 20).map(str), min_size=1, max_size=3).map(lambda values: f"[{', '.join(values)}]"),
    st.sampled_from(["[]", "[[]]", "[" * 3000, "[" * 50 + "]" * 50, f"[{'1,' * 20_000}]", "['a', 'b']", "[1, 'a', 2.5]"]))
TABLES = st.one_of(
    st.tuples(st.sampled_from(["log", "linear", "choice", "x", "depth"]), st.one_of(LISTS, SCALARS)).map(
        lambda pair: f"{{{pair[0]} = {pair[1]}}}"),
    st.sampled_from(["{", "{}", "{log = [1, 2], linear = [1, 2]}", "{choice = ['adamw', 'lamb']}",
                     "{choice = [16, 32]}", "{log = [1e-300, 1e300]}", "{a = {b = {c = {}}}}"]))
ARGUMENTS = st.sampled_from([
    "args.depth=1000000", "args.depth=100000", "args.depth=-1", "args.depth=1", "args.layers=[100000, 1, 1, 1]",
    "args.layers=[]", "args.embed_dim=100000", "args.embed_dim=0", "args.num_heads=7", "args.patch_size=0",
    "args.patch_size=[4, 4]", "args.checkpoint_path=x.pth", "args.pretrained_cfg={file='x.pth'}", "args.device=meta",
    "args.dtype=float16", "args.features_only=true", "args.in_chans=3", "args.num_classes=2", "args.x=nan",
    "args.img_size=100000", "args.drop_rate=inf", "args.global_pool=nonsense", "args.act_layer=gelu",
    "args.norm_layer=evil", "args.a.b.c.d.e.f.g.h.i.j.k.l=1", "args.depth=1979-05-27", "args=3", "args=[]", "args={}"])


def assignments() -> st.SearchStrategy[str]:
    """Words after --set, most of them of a setting that exists."""
    keys = st.one_of(
        st.sampled_from(SETTINGS), st.sampled_from(SETTINGS), st.sampled_from(SETTINGS),
        st.sampled_from(["", "x", "x.y", "search", "data.", ".data", "search.lr.log", "search.lr.choice", "published",
                         "float", "tuple.x", "data.float", "seed.x", "a" * 5000, ".".join("a" * 2000), "sea\nrch.trials",
                         "[red].x", "teacher.lr.0"]),
        st.text(max_size=8))
    settled = st.tuples(keys, st.one_of(SCALARS, LISTS, TABLES)).map("=".join)
    arguments = st.tuples(st.sampled_from(["student", "teacher"]), ARGUMENTS).map(".".join)
    kinds = [*[st.deferred(lambda: st.sampled_from(valid()))] * 8, settled, arguments, WORDS]
    return st.integers(0, len(kinds) - 1).flatmap(kinds.__getitem__)


CANDIDATES = [
    *["0", "1", "2", "3", "5", "8", "9", "12", "32", "64", "100", "299", "1000", "4096", "10000", "1000000", "1000000000000", "true", "false", "1e-12", "1e-3", "0.004", "0.01", "0.1", "0.3", "0.5", "0.9", "0.999999", "1.0", "5.5", "16.5", "1000.0", "1e6", "digits", "adamw", "lion", "sgd", "lookahead_adam", "lbfgs", "auto", "bf16", "yes", "no", "resnet18", "[red]x[/]", "vit_tiny_patch16_224", "resnet10t", "levit_128s", "swin_tiny_patch4_window7_224", "mixer_s16_224", "os:getcwd", "nowhere"],
    "[1e-3, 1e-2]", "['0', '1', '5']", "{}", "{patch_size = 2}", "{layers = [1, 1, 1, 1]}", "{log = [1e-6, 1000]}",
    "{log = [0.01, 1e4]}", "{linear = [0, 1]}", "{linear = [0, 0.99]}", "{linear = [1e-9, 1e-2]}", "{choice = [1e-3, 1]}",
    "{choice = [4, 0.01, 9999]}", "{choice = [0.5, 0, 1]}", "{choice = [36, 1, 1000000]}", "{choice = ['adamw', 'lamb']}",
    "{choice = ['adamw', 'nonsense']}", "{choice = [0.05, 0]}", "{choice = [0.1, 0]}",
]


@cache
def valid() -> list[str]:
    """Words after --set that are each valid by themselves, if not together."""

    def is_valid(word: str) -> bool:
        try:
            load_study("digits", (word,))
        except UserError:
            return False
        return True

    return [word for name in SETTINGS for text in CANDIDATES if is_valid(word := f"{name}={text}")]


def value_of(text: str):
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, KeyError, RecursionError):
        return text


@st.composite
def study_files(draw) -> bytes:
    """A preset with a few settings changed, dropped or added; cut, spliced or spoiled now and then."""
    values = tomllib.loads((PRESETS / f"{draw(st.sampled_from(['digits', 'digits-full']))}.toml").read_text())
    for _ in range(draw(st.integers(0, 3))):
        section = draw(st.sampled_from([*values, "name", "seed", "published", "resources", "new"]))
        change = value_of(draw(st.one_of(SCALARS, LISTS, TABLES)))
        if draw(st.booleans()) or not isinstance(values.get(section), dict):
            values[section] = change
        else:
            key = draw(st.one_of(st.sampled_from([*values[section], "new"]), st.text(max_size=8)))
            values[section] = {**values[section], key: change}
    if draw(st.booleans()):
        values.pop(draw(st.sampled_from([*values])))
    try:
        content = tomli_w.dumps(values).encode(errors="surrogateescape")
    except (ValueError, RecursionError):
        content = b"seed = 0x" + b"f" * 5000
    if draw(st.integers(0, 3)) == 0:
        place = draw(st.integers(0, len(content)))
        spoilt = draw(st.one_of(st.binary(max_size=9), st.sampled_from([b"\xff", b"[" * 9000, b"a." * 9000, b"\x00"])))
        content = content[:place] + spoilt + content[place + draw(st.integers(0, 40)):]
    return content


# -- a study, made by hand --------------------------------------------------------------------------------------------

SHORT = ("search.trials=3", "search.baseline_trials=3", "search.protected=1", "search.baseline_protected=1",
         "train.epochs=4", "teacher.epochs=2", "confirm.seeds=2")


def write_finished(folder: Path, *settings: str) -> Path:
    """A study with every stage done in no time: models that were never trained, and records that were made up."""
    config = load_study("digits", (*SHORT, *settings), smoke=True)
    study = Study(config, Home(folder), Display(Console(file=io.StringIO()), stages_of(config)))
    folder.mkdir(parents=True)
    (folder / "study.toml").write_text(config.to_toml())
    made = [_write_teacher(study), *(_write_search(study, arm) for arm in ("baseline", "distill")),
            _write_logits(study), *(_write_confirmation(study, name) for name in ("confirm_baseline", "confirm"))]
    splits = study.splits
    data = {name: len(getattr(splits, name)) for name in ("train", "student_train", "validation", "test")}
    write_json(folder / "stages.json", {
        "name": config.name, "epochs": config.train.epochs, "rungs": config.rungs, "machine": "a desk",
        "stages": {path.name.rsplit("-", 1)[0]: path.name for path in made},
        "data": {**data, "unlabelled": 0, "classes": list(splits.class_names), "channels": 1,
                 "image_size": 8, "duplicates": splits.duplicates, "dropped": 0}})
    return folder


def _model(study, section):
    return models.build(getattr(study.config, section).model_copy(update={"pretrained": False}), classes=10, channels=1,
                        image_size=8)


def _record(stage, runs, epochs) -> None:
    record = stage.record()
    for number, (parameters, label) in enumerate(runs):
        record.add_trial(TrialState(number, parameters, number, 1, "default" if number == 0 else "sobol", True, label))
        for epoch in range(2, epochs + 1, 2):
            metrics = {"validation_accuracy": 0.2 + 0.1 * number + 0.05 * epoch, "validation_loss": 2.0, "seconds": 1.0}
            record.report(number, epoch, "complete" if epoch == epochs else "continue", metrics)


def _write_teacher(study) -> Path:
    stage = study.stage("teacher")
    _record(stage, [({"lr": 3e-3}, "")], study.config.teacher.epochs)
    model = _model(study, "teacher")
    models.save_weights(model, stage.path / "model.safetensors")
    settings = study.config.teacher.model_settings.model_dump()
    stage.finish({
        "model": study.config.teacher.title, "kind": "CNN", "family": "ResNet", "outcome": "made up", "seconds": 1.0,
        "members": [{"model": settings, "weights": "model.safetensors", "normalised": None}], "trial": 0,
        "parameters": {"lr": 3e-3}, "model_parameters": model.parameter_count, "best_validation": 0.3, "trials": 1,
        "weights": hash_file(stage.path / "model.safetensors")})
    return stage.path


POINTS = [{"temperature": 4.0, "alpha": 0.5, "lr": 1e-3}, {"temperature": 2.0, "alpha": 0.9, "lr": 2e-3},
          {"temperature": 8.0, "alpha": 0.1, "lr": 5e-4}]


def _of_arm(arm: str, point: dict) -> dict:
    return {name: value for name, value in point.items() if arm == "distill" or name == "lr"}


def _write_search(study, arm: str) -> Path:
    stage = study.stage(arm)
    _record(stage, [(_of_arm(arm, point), "") for point in POINTS], study.config.train.epochs)
    stage.finish({"kind": "Transformer", "family": "VisionTransformer", "outcome": "made up", "seconds": 1.0, "trials": 3,
                  "complete": 3, "stopped": 0, "failed": 0, "winner": 2, "parameters": _of_arm(arm, POINTS[2]),
                  "best_validation": 0.6, "default_validation": 0.4, "ranking": [2, 1, 0], "only_shared": None})
    return stage.path


def _write_logits(study) -> Path:
    stage, splits = study.stage("teacher_logits"), study.splits
    stage.path.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for seed in study.view_seeds:
        shape = (study.config.view_count, len(splits.student_train), 10)
        np.save(stage.path / f"views-{seed}.npy", generator.normal(size=shape).astype(np.float16))
    np.save(stage.path / "validation.npy", generator.integers(0, 10, len(splits.validation)))
    write_predictions(_model(study, "teacher"), splits.test, stage.path / "test.parquet")
    stage.finish({"outcome": "made up", "seconds": 1.0, "cached": True, "view_seeds": study.view_seeds})
    return stage.path


def _write_confirmation(study, name: str) -> Path:
    stage, arm = study.stage(name), "baseline" if name == "confirm_baseline" else "distill"
    row_arm = "baseline" if arm == "baseline" else "distilled"
    rows = [{"arm": row_arm, "configuration": configuration, "parameters": _of_arm(arm, POINTS[trial]), "trial": trial,
             "runs": [index, index + 2]} for index, (configuration, trial) in enumerate([("default", 0), ("tuned", 2)])]
    _record(stage, [(rows[run % 2]["parameters"], rows[run % 2]["configuration"]) for run in range(4)],
            study.config.train.epochs)
    for run in range(4):
        model, folder = _model(study, "student"), stage.path / "runs" / f"{run:03d}"
        folder.mkdir(parents=True)
        models.save_weights(model, folder / "model.safetensors")
        write_predictions(model, study.splits.test, folder / "test.parquet")
    stage.finish({"outcome": "made up", "seconds": 1.0, "runs": 4, "seeds": [1, 2], "rows": rows,
                  "model_parameters": model.parameter_count})
    return stage.path


@pytest.fixture(scope="module")
def finished_by_hand(tmp_path_factory):
    return write_finished(tmp_path_factory.mktemp("by-hand") / "digits-smoke")


COMMANDS = [("status",), ("report",), ("plan",), ("pack", "OUT"), ("export", "OUT"),
            ("export", "OUT", "--model", "teacher"), ("logits", "OUT/l.safetensors"), ("train", "baseline"),
            ("train", "distill")]


@pytest.mark.parametrize("words", COMMANDS)
def test_a_study_made_by_hand_is_one(finished_by_hand, tmp_path, words):
    code, out, err = on_study(words, finished_by_hand, tmp_path / "out")
    assert code == 0 and out and not err, err


# -- plan -------------------------------------------------------------------------------------------------------------


def examples(count: int):
    return settings(max_examples=count, deadline=None, derandomize=count == EXAMPLES, database=None,
                    suppress_health_check=list(HealthCheck))


WITH_SET = st.tuples(st.sampled_from([[], [], ["--smoke"], ["--gpus", "4"]]),
                     st.lists(assignments(), min_size=1, max_size=3))


def plan_with(given_words) -> None:
    options, assigned = given_words
    plans_or_says_why_not("digits", *options, *(word for text in assigned for word in ("--set", text)))


@examples(EXAMPLES)
@given(WITH_SET)
def test_any_setting_is_planned_or_refused_in_one_line(words):
    plan_with(words)


@pytest.mark.slow
@examples(MANY_EXAMPLES)
@given(WITH_SET)
def test_a_great_many_settings_are_planned_or_refused_in_one_line(words):
    plan_with(words)


def plan_file(content: bytes, empty_folder: Path) -> None:
    path = empty_folder.parent / "mine.toml"
    path.write_bytes(content)
    plans_or_says_why_not(str(path))


@examples(EXAMPLES)
@given(study_files())
def test_any_study_file_is_planned_or_refused_in_one_line(empty_folder, content):
    plan_file(content, empty_folder)


@pytest.mark.slow
@examples(MANY_EXAMPLES)
@given(study_files())
def test_a_great_many_study_files_are_planned_or_refused_in_one_line(empty_folder, content):
    plan_file(content, empty_folder)


# -- a study that is damaged, or that somebody else has made ----------------------------------------------------------

JSON_VALUES = st.sampled_from([
    None, True, -1, 0, 1, 2**70, 0.5, -1e308, float("nan"), float("inf"), "", "x", "../../etc/passwd", "/etc", "[/]",
    "<script>alert(1)</script>", "\ud800", "\x1b[2J\n", "x" * 5000, [], [[]], {}, {"x": 1}, [1, "a", None]])


@st.composite
def damages(draw):
    """What happens to one file of a study: a function of the folder that does it, and what to call it."""
    file, kind = draw(st.integers(0, 10**6)), draw(st.sampled_from(["json", "json", "json", "arrays", "bytes", "gone", "folder"]))
    places, value = draw(st.lists(st.integers(0, 10**6), min_size=6, max_size=6)), draw(JSON_VALUES)
    content = draw(st.one_of(st.just(b""), st.binary(max_size=40), st.sampled_from([b"\xff\xfe", b"[" * 9000, b"null", b"{}"])))
    keep = draw(st.sampled_from([0, 0.1, 0.5, 0.9, 1]))

    def damage(folder: Path) -> str:
        paths = sorted(path for path in folder.rglob("*") if path.is_file() and "results" not in path.parts)
        if kind == "json":
            paths = [path for path in paths if path.suffix in (".json", ".jsonl")]
        path = paths[file % len(paths)]
        if kind == "arrays":
            path = [path for path in paths if path.suffix in ARRAYS][file % 17]
            ARRAYS[path.suffix](path, places[0])
        elif kind == "json":
            _damage_json(path, places, value)
        elif kind == "bytes":
            whole = path.read_bytes()
            path.write_bytes(whole[: int(keep * len(whole))] + content)
        else:
            path.unlink()
            if kind == "folder":
                path.mkdir()
        return f"{path.relative_to(folder)}: {kind} {places} {value!r} {content[:20]!r} {keep}"

    return damage


def _damage_json(path: Path, places: list[int], value) -> None:
    """Replace, or drop where the value is 'x', something in a JSON file or in a line of JSON."""
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    index, *places = places
    whole = {"": json.loads(lines[index % len(lines)])}
    parent, key = whole, ""
    for place in places:
        below = parent[key]
        if not isinstance(below, dict | list) or not below or place % 7 == 0:
            break
        parent, keys = below, list(below) if isinstance(below, dict) else range(len(below))
        key = keys[place % len(keys)]
    parent[key] = value
    if value == "x" and parent is not whole:
        del parent[key]
    lines[index % len(lines)] = json.dumps(whole[""])
    path.write_text("".join(f"{line}\n" for line in lines))


def _damage_table(path: Path, choice: int) -> None:
    table = pd.read_parquet(path)
    column = table.columns[choice % len(table.columns)]
    changed = [lambda: table.drop(columns=column), lambda: table[:choice % 7], lambda: table.assign(**{column: "x"}),
               lambda: table.assign(**{column: np.nan}), lambda: table.assign(**{column: 2**62}),
               lambda: table.assign(**{column: -1}), lambda: table.assign(**{column: [[1.0] * (row % 3) for row in table.index]})]
    changed[choice % len(changed)]().to_parquet(path)


def _damage_array(path: Path, choice: int) -> None:
    array = np.load(path)
    changed = [array[:1], array[..., None], array.astype(str), array.astype(object), array * np.nan, np.array(3), array[:0]]
    with open(path, "wb") as file:
        if choice % 8 == 7:
            np.savez(file, a=array)
        else:
            np.save(file, changed[choice % 8], allow_pickle=True)


def _damage_weights(path: Path, choice: int) -> None:
    weights = load_file(path)
    name = sorted(weights)[choice % len(weights)]
    other = [np.zeros(3, np.float32), np.full_like(weights[name], np.nan), weights[name].astype(np.int64)][choice % 3]
    save_file({**weights, name: other} if choice % 4 else {"x": other}, path)


ARRAYS = {".parquet": _damage_table, ".npy": _damage_array, ".safetensors": _damage_weights}


def on_study(words: tuple[str, ...], folder: Path, out: Path) -> tuple[int, str, str]:
    """A command on a study's folder; OUT in `words` is `out`."""
    command, *rest = (word.replace("OUT", str(out)) for word in words)
    if command == "train":
        return kdstudy(command, *rest, str(folder), "--set", "train.epochs=1")
    return kdstudy(command, str(folder), *rest)


def command_on_damaged(finished_by_hand: Path, words: tuple[str, ...], made: list) -> None:
    with tempfile.TemporaryDirectory(dir=finished_by_hand.parent) as home:
        folder = Path(shutil.copytree(finished_by_hand, Path(home) / "study"))
        what = [damage(folder) for damage in made]
        code, out, err = on_study(words, folder, Path(home) / "out")
        assert (code == 0 and out and not err) or (code in (1, 2) and is_one_line(err)), (words, what, code, out, err)
        assert set(os.listdir(home)) <= {"study", "out"}, (words, what)
    assert not os.listdir(), (words, what)


DAMAGED = (st.sampled_from(COMMANDS), st.lists(damages(), min_size=1, max_size=2))


@examples(EXAMPLES)
@given(*DAMAGED)
def test_any_command_on_a_damaged_study_works_or_ends_in_one_line(finished_by_hand, words, made):
    command_on_damaged(finished_by_hand, words, made)


@pytest.mark.slow
@examples(MANY_EXAMPLES)
@given(*DAMAGED)
def test_a_great_many_damaged_studies_are_read_or_refused_in_one_line(finished_by_hand, words, made):
    command_on_damaged(finished_by_hand, words, made)


# -- names ------------------------------------------------------------------------------------------------------------

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
        code, out, err = kdstudy("report", str(folder), str(other), "--compare", str(compared))
        assert code == 0 and not err, err
        found.append([Elements(page).found for page in (page_of(folder), compared.read_text())])
    assert found[0] == found[1]
    assert html.escape(SENTENCE) in page_of(named) and plain(SENTENCE) in out
    data = re.search(r'id="figures">(.*?)</script>', page_of(named), re.DOTALL)[1]
    assert "<" not in data and len(json.loads(data)["figures"]) > 3


def test_tables_keep_their_shape_and_their_names(named):
    assert kdstudy("report", str(named))[0] == 0
    rows = [line for line in (named / "results" / "results.md").read_text().splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {len(COLUMNS) + 1} and len(rows) == 7
    assert "<" not in (named / "results" / "results.md").read_text()
    with open(named / "results" / "classes.csv", newline="") as file:
        assert tuple(row["name"] for row in csv.DictReader(file)) == NAMES


@pytest.mark.parametrize("model", ["student", "teacher"])
def test_an_export_carries_names_as_they_are_and_its_card_shows_them(named, tmp_path, model):
    code, out, err = kdstudy("export", str(named), str(tmp_path / "o[/x] out"), "--model", model)
    assert code == 0 and not err and "o[/x] out" in out, err
    config = json.loads((tmp_path / "o[/x] out" / "config.json").read_text())
    assert tuple(config["label_names"]) == NAMES
    card = (tmp_path / "o[/x] out" / "README.md").read_text()
    assert "<" not in card and "local-dir:x] out" in card
    rows = [line for line in card.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} <= {3}
    assert "&lt;img src=x onerror=alert(1)> a\\|b" in card
    assert models.read_trained(tmp_path / "o[/x] out").class_names == NAMES


def test_names_appear_on_the_terminal_as_they_are_and_in_no_file_name(named, tmp_path):
    for words in (("status", named), ("plan", named), ("report", named), ("pack", named, tmp_path / "p[/x] packed"),
                  ("logits", named, tmp_path / "[red].safetensors"),
                  ("train", "baseline", named, "--set", "train.epochs=1", "--out", tmp_path / "t[/x] trained")):
        code, out, err = kdstudy(*map(str, words))
        assert code == 0 and not err, (words, err)
        assert str(named) in out or str(words[-1]) in out, (words, out)
        if words[0] == "plan":
            assert SENTENCE in out and f"{named.parent}/images [bold].npz" in out
    written = {path.name for place in (named, tmp_path) for path in place.rglob("*")}
    assert {name for name in written if not re.fullmatch(r"[A-Za-z0-9._-]+", name)} == {
        "p[", "x] packed", "[red].safetensors", "t[", "x] trained"}
    assert sorted(os.listdir(named.parent)) == ["images [bold].npz", "study"] and not os.listdir()


def test_a_class_that_is_not_there_is_said_in_one_line_whatever_the_others_are_called(named):
    code, _, err = kdstudy("plan", str(named), "--set", "data.classes=['no', 'such']")
    assert code == 2 and is_one_line(err) and "'no' is not a class" in err


# -- pickles ----------------------------------------------------------------------------------------------------------


class Evil:
    """What makes a folder when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path):
    """A folder that is there as soon as anything has unpickled what the test hands in."""
    return tmp_path / "unpickled"


def objects(mark: Path) -> np.ndarray:
    return np.array([Evil(mark)] * 30, dtype=object)


def test_the_pickle_of_these_tests_does_what_it_should(mark):
    pickle.loads(pickle.dumps(Evil(mark)))
    assert mark.is_dir()


def evil_npz(folder: Path, mark: Path) -> list[str]:
    np.savez(folder / "a.npz", images=np.zeros((30, 8, 8), np.uint8), labels=np.arange(30) % 3, class_names=objects(mark))
    return ["plan", "digits", "--set", f"data.source={folder}/a.npz"]


def pickle_as_npz(folder: Path, mark: Path) -> list[str]:
    (folder / "a.npz").write_bytes(pickle.dumps(Evil(mark)))
    return ["plan", "digits", "--set", f"data.source={folder}/a.npz"]


def evil_parquet(folder: Path, mark: Path) -> list[str]:
    """Arrow's extension type that older versions of pyarrow unpickle as soon as they see it."""
    metadata = {b"ARROW:extension:name": b"arrow.py_extension_type",
                b"ARROW:extension:metadata": pickle.dumps(Evil(mark))}
    schema = pa.schema([pa.field("label", pa.int64(), metadata=metadata)])
    pq.write_table(pa.table({"label": [0, 1]}, schema=schema), folder / "train.parquet")
    return ["plan", "digits", "--set", f"data.source={folder}"]


def evil_weights(name: str, protocol: int):
    def make(folder: Path, mark: Path) -> list[str]:
        if protocol:
            torch.save({"weight": Evil(mark)}, folder / name, pickle_protocol=protocol)
        else:
            (folder / name).write_bytes(pickle.dumps({"weight": Evil(mark)}))
        return ["train", "baseline", "digits", "--set", f"student.pretrained={folder}/{name}"]

    return make


def evil_teacher(weights: str, **config):
    def make(folder: Path, mark: Path) -> list[str]:
        torch.save({"weight": Evil(mark)}, folder / weights)
        np.save(folder / "evil.npy", objects(mark))
        config_of = {"architecture": "resnet18", "num_classes": 10,
                     "pretrained_cfg": {"input_size": [1, 8, 8], "mean": [0.5], "std": [0.5]}} | config
        (folder / "config.json").write_text(json.dumps(config_of).replace("HERE", str(folder)))
        return ["train", "distill", "digits", "--set", "teacher.model=", "--set", f"teacher.trained={folder}"]

    return make


def evil_logits(folder: Path, mark: Path) -> list[str]:
    (folder / "l.safetensors").write_bytes(pickle.dumps(Evil(mark)))
    return ["plan", "digits", "--set", "teacher.model=", "--set", f"teacher.logits={folder}/l.safetensors"]


def evil_cifar(folder: Path, mark: Path) -> list[str]:
    """CIFAR's own files are pickles; torchvision checks their digests before it loads them."""
    place = folder / "cache" / "torchvision" / "cifar-10-batches-py"
    place.mkdir(parents=True)
    for name in ("data_batch_1", "data_batch_2", "test_batch", "batches.meta"):
        (place / name).write_bytes(pickle.dumps(Evil(mark)))
    return ["plan", "digits", "--set", "data.source=cifar10"]


HANDED_IN = {
    "an array of objects": evil_npz, "a pickle called .npz": pickle_as_npz, "an extension type": evil_parquet,
    "weights, .pth": evil_weights("w.pth", 2), "weights, older .pth": evil_weights("w.pth", 0),
    "weights, .bin": evil_weights("w.bin", 2), "weights called .safetensors": evil_weights("w.safetensors", 2),
    "weights called .npz": evil_weights("w.npz", 0),
    "a teacher's .bin": evil_teacher("pytorch_model.bin"),
    "a teacher's weights called .safetensors": evil_teacher("model.safetensors"),
    "a teacher's other checkpoint": evil_teacher("model.safetensors", model_args={"checkpoint_path": "HERE/evil.npy"}),
    "a teacher's other weights": evil_teacher("pytorch_model.bin", model_args={"pretrained_cfg": {"file": "HERE/evil.npy"},
                                                                               "pretrained": True}),
    "logits": evil_logits, "a data set of torchvision": evil_cifar,
}


@pytest.mark.parametrize("case", HANDED_IN)
def test_nothing_that_is_handed_in_is_unpickled(case, tmp_path, mark, monkeypatch):
    monkeypatch.setenv("KDSTUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cifar, "download_and_extract_archive", _no_network)
    words = HANDED_IN[case](tmp_path, mark)
    code, _, err = kdstudy(*words, "--dir", str(tmp_path / "study"))
    assert code == 2 and is_one_line(err), (code, err)
    assert not mark.exists()


def _no_network(*_, **__):
    raise OSError("no route to host")


def spoil(path: Path, mark: Path, how: str) -> None:
    """Put a pickle in a file's place, in the dress that its readers expect, and no smaller than what was there."""
    content = io.BytesIO()
    if how == "array":
        np.save(content, objects(mark), allow_pickle=True)
    elif how == "torch":
        torch.save({"weight": Evil(mark)}, content)
    else:
        pickle.dump(Evil(mark), content)
    size = path.stat().st_size if path.exists() else 0
    path.write_bytes(content.getvalue().ljust(size, b"\0"))


READERS = {  # of each kind of file in a study
    ".npy": [("logits", "OUT/l.safetensors"), ("train", "distill")],
    ".safetensors": [("export", "OUT"), ("export", "OUT", "--model", "teacher"), ("train", "distill")],
    ".parquet": [("report",), ("pack", "OUT"), ("logits", "OUT/l.safetensors")],
}


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("how", ["array", "torch", "pickle"])
def test_nothing_in_a_study_is_unpickled(finished_by_hand, tmp_path, mark, kind, how):
    folder = shutil.copytree(finished_by_hand, tmp_path / "study")
    for path in folder.rglob(f"*{kind}"):
        spoil(path, mark, how)
    spoil_tunes_own(folder, mark, how)
    for words in READERS[kind]:
        code, out, err = on_study(words, folder, tmp_path / "out")
        assert (code == 0 and not err) or (code in (1, 2) and is_one_line(err)), (words, code, err)
        assert not mark.exists(), words


def spoil_tunes_own(folder: Path, mark: Path, how: str) -> None:
    """The pickles that Ray Tune leaves in a study's .tune, and a file of Optuna's."""
    checkpoint = folder / ".tune" / "000" / "distill-0002" / "checkpoint_000000"
    checkpoint.mkdir(parents=True)
    for path in (folder / "optuna.db", checkpoint.parents[1] / "tuner.pkl", checkpoint.parents[1] / "trainable.pkl",
                 checkpoint.parents[1] / "searcher-state.pkl", checkpoint.parent / "params.pkl",
                 checkpoint / ".tune_metadata", checkpoint / "dict_checkpoint.pkl",
                 checkpoint / "model.safetensors", checkpoint / "optimizer.safetensors"):
        spoil(path, mark, how)
    (checkpoint / "training.json").write_text(json.dumps({"epoch": 2, "seconds": 1.0, "optimizer": {}}))


@pytest.mark.slow
def test_a_study_that_goes_on_unpickles_nothing_of_what_it_was_handed(finished_by_hand, tmp_path, mark):
    """A real run, in Ray's workers: a trial that was cut off begins anew instead of loading a pickle."""
    folder = shutil.copytree(finished_by_hand, tmp_path / "study")
    spoil_tunes_own(folder, mark, "pickle")
    stage = next(path for path in folder.glob("distill-*") if path.is_dir())
    (stage / "done.json").unlink()
    *events, last = (stage / "record.jsonl").read_text().splitlines()
    cut = json.loads(last) | {"event": "checkpoint", "path": ".tune/000/distill-0002/checkpoint_000000", "epoch": 2}
    (stage / "record.jsonl").write_text("".join(f"{line}\n" for line in (*events, json.dumps(cut))))
    done = subprocess.run([*KDSTUDY, "run", folder, "--until", "distill"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not mark.exists() and "3 complete" in (stage / "done.json").read_text()


def test_cached_images_are_decoded_again_where_the_cache_holds_a_pickle(tmp_path, mark, monkeypatch):
    monkeypatch.setenv("KDSTUDY_CACHE", str(tmp_path / "cache"))
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            for number in range(12):
                pixels = np.random.default_rng([number, len(split), len(name)]).integers(0, 256, (8, 8)).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "pets" / split / name / f"{number}.png")
    settings = DataSettings(source=str(tmp_path / "pets"))
    first = load(settings)
    cached = list((tmp_path / "cache").rglob("*.npy"))
    assert len(cached) == 4
    for path in cached:
        spoil(path, mark, "array")
    assert (load(settings).train.images == first.train.images).all() and not mark.exists()


def test_a_checkpoint_that_is_a_pickle_is_not_loaded_and_the_trial_begins_anew(tmp_path, mark, images):
    settings = TrainSettings(epochs=2, batch_size=16)
    model = ModelSettings(model="vit_tiny_patch16_224", args={"patch_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 3})
    trainable = object.__new__(BaselineTrainable)  # as Tune makes it in a worker, without Ray
    trainable.task = Task(train=images, validation=images, classes=4, image_size=8, model=model, training=settings,
                          views=ViewSettings(), report_every=1)
    for path in ("model.safetensors", "optimizer.safetensors", ".tune_metadata", "dict_checkpoint.pkl"):
        spoil(tmp_path / path, mark, "pickle")
    (tmp_path / "training.json").write_text(json.dumps({"epoch": 1, "seconds": 1.0, "optimizer": {}}))
    trainable.reset_config({"parameters": {"lr": 1e-3}, "seed": 0, "view_seed": 0, "checkpoint": str(tmp_path)})
    assert trainable.failure is None and trainable.training.epoch == 0 and not mark.exists()
    assert trainable.step()["epoch"] == 1


def evil_module(folder: Path, mark: Path) -> str:
    """A module with a function for a model, which leaves a mark as soon as it is imported."""
    name = f"evil_{mark.parent.name}"
    (folder / f"{name}.py").write_text(f"import os\nos.mkdir({str(mark)!r})\ndef make(**arguments):\n    pass\n")
    return f"{name}:make"


def test_a_function_is_called_only_where_the_settings_name_it(finished_by_hand, tmp_path, mark, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    function, folder = evil_module(tmp_path, mark), shutil.copytree(finished_by_hand, tmp_path / "study")
    done = next(folder.glob("teacher-*/done.json"))
    content = json.loads(done.read_text())
    content["members"][0]["model"]["model"] = function
    write_json(done, content)
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    words = evil_teacher("model.safetensors", architecture=function)(teacher, mark)
    for words in (("train", "distill", folder), ("export", folder, tmp_path / "out", "--model", "teacher"), words):
        code, _, err = kdstudy(*map(str, words))
        assert code == 2 and is_one_line(err) and "set teacher.function" in err and not mark.exists(), err
    kdstudy("plan", "digits", "--set", f"student.model={function}")
    assert mark.exists()  # by design: what the settings themselves name is the user's own code
