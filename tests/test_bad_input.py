"""Whatever is handed in, the command does its work or says in one line what is wrong."""

import contextlib
import json
import os
import random
import shutil
import tempfile
import tomllib
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from synthetic import COMMANDS, EXAMPLES, MANY_EXAMPLES, examples, here, is_one_line, on_study

from kdstudy.cli.main import cli
from kdstudy.config.load import PRESETS, load_study
from kdstudy.config.settings import settings_table
from kdstudy.errors import UserError

pytestmark = pytest.mark.usefixtures("apart")


def plans_or_says_why_not(*words: str) -> None:
    code, out, err = here("plan", *words)
    assert code in (0, 2), (code, words, out, err)
    if code == 0:
        assert "left to do" in out and not err, (words, err)
    else:
        assert is_one_line(err), (words, err)
    assert not os.listdir(), (words, os.listdir())


# -- what is handed in ------------------------------------------------------------------------------------------------

SETTINGS = [f"{section}.{key}" if section else key for section, keys in settings_table().items() for key, *_ in keys]
NUMBERS = st.one_of(
    st.sampled_from([
        "0", "-1", "1", "2", "7", "12", "64", "0.5", "1.5", "1e-3", "1e308", "-1e308", "1e400", "5e-324", "nan", "inf",
        "-inf", str(10**6), str(10**12), str(10**30), "9" * 400, "9" * 5000, "0x" + "f" * 5000, "0b1", "1_000", "true",
        "false", "1979-05-27", "07:32:00"]),
    st.integers(-3, 40).map(str), st.floats(-2, 2).map(str))
WORDS = st.one_of(
    st.text(max_size=12), st.text(st.characters(codec="utf-8"), max_size=300),
    st.sampled_from([
        "", " ", "''", '"', "\\", "a|b", "../../etc/passwd", "/", "/proc", "/dev/null", "/dev/zero", ".", "~",
        "~nobody/x", "\x1b[2J", "a\nb", "a\nvalue=1", "\x00", "\udcff", "\u202eabc", "🙂" * 50, "x" * 10_000, "[red]",
        "[/]", "%s", "{0}", "digits", "cifar100", "adamw", "lion", "lookahead_adam", "auto", "file:///nowhere",
        "ftp8://x/y", "://", "mock://x", "os:getcwd", "nowhere:x", ":", "math:sqrt", "builtins:dict", "..x:y",
        "torch.nn:Identity", "local-dir:.", "hf-hub:a/b", "resnet18", "resnet18.a1_in1k", "resnet18.",
        "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"]))
SCALARS = st.one_of(NUMBERS, WORDS)
LISTS = st.one_of(
    st.lists(SCALARS, max_size=5).map(lambda values: f"[{', '.join(values)}]"),
    st.lists(st.floats(0, 20).map(str), min_size=1, max_size=3).map(lambda values: f"[{', '.join(values)}]"),
    st.sampled_from(["[]", "[[]]", "[" * 3000, "[" * 50 + "]" * 50, f"[{'1,' * 20_000}]", "['a', 'b']", "[1, 'a']"]))
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
    odd = ["", "x", "x.y", "search", "data.", ".data", "search.lr.log", "search.lr.choice", "published", "float",
           "tuple.x", "data.float", "seed.x", "a" * 5000, ".".join("a" * 2000), "sea\nrch.trials", "[red].x",
           "teacher.lr.0"]
    keys = st.one_of(st.sampled_from(SETTINGS), st.sampled_from([*SETTINGS, *odd]), st.text(max_size=8))
    settled = st.tuples(keys, st.one_of(SCALARS, LISTS, TABLES)).map("=".join)
    arguments = st.tuples(st.sampled_from(["student", "teacher"]), ARGUMENTS).map(".".join)
    kinds = [*[st.deferred(lambda: st.sampled_from(valid()))] * 8, settled, arguments, WORDS]
    return st.integers(0, len(kinds) - 1).flatmap(kinds.__getitem__)


CANDIDATES = [
    "0", "1", "2", "3", "5", "8", "9", "12", "32", "64", "100", "299", "1000", "4096", "10000", "1000000",
    "1000000000000", "true", "false", "1e-12", "1e-3", "0.004", "0.01", "0.1", "0.3", "0.5", "0.9", "0.999999", "1.0",
    "5.5", "16.5", "1000.0", "1e6", "digits", "adamw", "lion", "sgd", "lookahead_adam", "lbfgs", "auto", "bf16", "yes",
    "no", "resnet18", "[red]x[/]", "vit_tiny_patch16_224", "resnet10t", "levit_128s", "swin_tiny_patch4_window7_224",
    "mixer_s16_224", "os:getcwd", "nowhere", "[1e-3, 1e-2]", "['0', '1', '5']", "{}", "{patch_size = 2}",
    "{layers = [1, 1, 1, 1]}", "{log = [1e-6, 1000]}", "{log = [0.01, 1e4]}", "{linear = [0, 1]}",
    "{linear = [0, 0.99]}", "{linear = [1e-9, 1e-2]}", "{choice = [1e-3, 1]}", "{choice = [4, 0.01, 9999]}",
    "{choice = [0.5, 0, 1]}", "{choice = [36, 1, 1000000]}", "{choice = ['adamw', 'lamb']}",
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

    words = [f"{name}={text}" for name in SETTINGS for text in CANDIDATES]
    # A part of them is more than any number of examples will draw, and checking all takes longer than the examples do.
    return list(filter(is_valid, random.Random(0).sample(words, len(words) // 4)))


def value_of(text: str):
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, KeyError, RecursionError):
        return text


@st.composite
def study_files(draw) -> bytes:
    """A preset with a few settings changed, dropped or added; cut, spliced or spoiled now and then."""
    values = tomllib.loads((PRESETS / f"{draw(st.sampled_from(['digits', 'digits-full']))}.toml").read_text())
    for word in draw(st.lists(st.deferred(lambda: st.sampled_from(valid())), max_size=3)):
        name, _, text = word.partition("=")
        section, _, key = name.rpartition(".")
        (values.setdefault(section, {}) if section else values)[key] = value_of(text)
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        section = draw(st.sampled_from([*values, "name", "seed", "published", "resources", "new"]))
        change = value_of(draw(st.one_of(SCALARS, LISTS, TABLES)))
        if draw(st.booleans()) or not isinstance(values.get(section), dict):
            values[section] = change
        else:
            key = draw(st.one_of(st.sampled_from([*values[section], "new"]), st.text(max_size=8)))
            values[section] = {**values[section], key: change}
    if draw(st.integers(0, 4)) == 0:
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


@pytest.mark.parametrize("words", COMMANDS)
def test_a_study_made_by_hand_is_one(synthetic_study, tmp_path, words):
    code, out, err = on_study(words, shutil.copytree(synthetic_study, tmp_path / "study"), tmp_path / "out")
    assert code == 0 and out and not err, err


# -- plan -------------------------------------------------------------------------------------------------------------


WITH_SET = st.tuples(st.sampled_from([[], [], ["--smoke"], ["--gpus", "4"]]),
                     st.lists(assignments(), min_size=1, max_size=3))


def plan_with(words: tuple[list[str], list[str]]) -> None:
    options, assigned = words
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


def plan_file(content: bytes, apart: Path) -> None:
    path = apart.parent / "mine.toml"
    path.write_bytes(content)
    plans_or_says_why_not(str(path))


@examples(EXAMPLES)
@given(study_files())
def test_any_study_file_is_planned_or_refused_in_one_line(apart, content):
    plan_file(content, apart)


@pytest.mark.slow
@examples(MANY_EXAMPLES)
@given(study_files())
def test_a_great_many_study_files_are_planned_or_refused_in_one_line(apart, content):
    plan_file(content, apart)


# -- a study that is damaged, or that somebody else has made ----------------------------------------------------------

JSON_VALUES = st.sampled_from([
    None, True, -1, 0, 1, 2**70, 0.5, -1e308, float("nan"), float("inf"), "", "x", "../../etc/passwd", "/etc", "[/]",
    "<script>alert(1)</script>", "\ud800", "\x1b[2J\n", "x" * 5000, [], [[]], {}, {"x": 1}, [1, "a", None]])


@st.composite
def damages(draw):
    """What happens to one file of a study: a function of the folder that does it, and what to call it."""
    kind = draw(st.sampled_from(["json", "json", "json", "arrays", "bytes", "gone", "folder"]))
    file, value = draw(st.integers(0, 10**6)), draw(JSON_VALUES)
    places = draw(st.lists(st.integers(0, 10**6), min_size=6, max_size=6))
    content = draw(st.one_of(st.binary(max_size=40), st.sampled_from([b"", b"\xff\xfe", b"[" * 9000, b"null", b"{}"])))
    keep = draw(st.sampled_from([0, 0.1, 0.5, 0.9, 1]))

    def damage(folder: Path) -> str:
        paths = sorted(path for path in folder.rglob("*") if path.is_file() and "results" not in path.parts)
        if kind in KINDS:
            paths = [path for path in paths if path.suffix in KINDS[kind]]
        path = paths[file % len(paths)]
        if kind in KINDS:
            with contextlib.suppress(Exception):  # it has been damaged before
                ARRAYS[path.suffix](path, places[0]) if kind == "arrays" else _damage_json(path, places, value)
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
    others = ["x", np.nan, 2**62, -1, [[1.0] * (row % 3) for row in table.index]]
    changed = [table.drop(columns=column), table[:choice % 7], *(table.assign(**{column: other}) for other in others)]
    changed[choice % len(changed)].to_parquet(path)


def _damage_array(path: Path, choice: int) -> None:
    array = np.load(path)
    changed = [array[:1], array[..., None], array.astype(str), array.astype(object), array * np.nan, np.array(3),
               array[:0]]
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
KINDS = {"json": (".json", ".jsonl"), "arrays": tuple(ARRAYS)}


def command_on_damaged(synthetic_study: Path, words: tuple[str, ...], made: list) -> None:
    with tempfile.TemporaryDirectory(dir=synthetic_study.parent) as home:
        folder = Path(shutil.copytree(synthetic_study, Path(home) / "study"))
        what = [damage(folder) for damage in made]
        code, out, err = on_study(words, folder, Path(home) / "out")
        assert (code == 0 and out and not err) or (code in (1, 2) and is_one_line(err)), (words, what, code, out, err)
        assert set(os.listdir(home)) <= {"study", "out"}, (words, what)
    assert not os.listdir(), (words, what)


DAMAGED = (st.sampled_from(COMMANDS), st.lists(damages(), min_size=1, max_size=2))


@examples(EXAMPLES)
@given(*DAMAGED)
def test_any_command_on_a_damaged_study_works_or_ends_in_one_line(synthetic_study, words, made):
    command_on_damaged(synthetic_study, words, made)


@pytest.mark.slow
@examples(MANY_EXAMPLES)
@given(*DAMAGED)
def test_a_great_many_damaged_studies_are_read_or_refused_in_one_line(synthetic_study, words, made):
    command_on_damaged(synthetic_study, words, made)


# -- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def things(apart):
    """What may be named where a study is meant: an empty folder, files, folders that are called like files."""
    home = apart.parent / "things"
    (home / "empty").mkdir(parents=True)
    (home / "folder.toml").mkdir()
    (home / "bare" / "study.toml").mkdir(parents=True)
    (home / "half").mkdir()
    (home / "half" / "study.toml").write_text("[student]\n")
    shutil.copyfile(PRESETS / "digits.toml", home / "half" / "whole.toml")
    contents = {"none.toml": b"", "bytes.toml": b"\xff\xfe\x00", "big.toml": b"#" * 2**21, "a.png": b"\x89PNG",
                "nested.toml": b"a = " + b"[" * 100_000, "named [x].toml": b"seed = 1"}
    for name, content in contents.items():
        (home / name).write_bytes(content)
    (home / "loop").symlink_to(home / "loop")
    return home


OPERANDS = st.one_of(
    st.sampled_from([
        "empty", "folder.toml", "bare", "half", "none.toml", "bytes.toml", "big.toml", "a.png", "nested.toml",
        "named [x].toml", "loop", "nowhere", "nowhere/x", "x" * 5000, "a/" * 3000, ".."]).map("../things/{}".format),
    st.sampled_from([
        "", " ", ".", "..", "/", "~", "digit", "digits-smok", "/dev/null", "/dev/zero", "/dev/stdin", "/proc/1/mem",
        "-", "--", "-x", "--set", "file://[", "file://", "file:///nowhere", "nofs://a/b", "a://", "://", "\udcff",
        "\x1b[2J", "a\nb", "[/]", "🙂"]),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20))
OPTIONS = [
    ("--dir", "../things/a.png"), ("--dir", ""), ("--dir", "x" * 5000), ("--dir", "file://["), ("--dir", "nofs://a/b"),
    ("--dir", "../things/loop"), ("--set", "seed=1"), ("--set", ""), ("--gpus", "0"), ("--gpus", "1000"),
    ("--gpus", "1e3"), ("--gpus", "9" * 400), ("--tflops", "nan"), ("--tflops", "inf"), ("--tflops", "1e-320"),
    ("--lr", "nan"), ("--lr", "-1"), ("--temperature", "1e308"), ("--alpha", "2"), ("--seed", "-1"),
    ("--seed", "9" * 30), ("--model", "both"), ("--until", "never"), ("--images", "gif"), ("--readme", "nowhere"),
    ("--readme", "../things/a.png"), ("--compare", "nowhere/x/y.html"), ("--no-teacher",), ("--smoke",), ("--unknown",)]


@st.composite
def command_lines(draw) -> list[str]:
    command = draw(st.sampled_from([*cli.commands, *cli.commands, "nonsense", ""]))
    known = [option for parameter in getattr(cli.commands.get(command), "params", ()) for option in parameter.opts]
    fitting = [option for option in OPTIONS if option[0] in known] or OPTIONS
    options = draw(st.lists(st.sampled_from(fitting), max_size=2))
    operands = draw(st.lists(OPERANDS, max_size=2))
    if command not in ("run", "train") and draw(st.booleans()):  # these would begin to work
        operands = ["digits", *operands[:1]]
    loop = [draw(st.sampled_from(["baseline", "distill"]))] if command == "train" and draw(st.booleans()) else []
    return [command, *loop, *operands, *(word for option in options for word in option)]


def command_line(words: list[str]) -> None:
    code, out, err = here(*words)
    assert (code == 0 and out and not err) or (code == 2 and is_one_line(err)), (words, code, out, err)
    assert not os.listdir(), (words, os.listdir())


@examples(EXAMPLES)
@given(command_lines())
def test_any_command_line_works_or_ends_in_one_line(things, words):
    command_line(words)


@pytest.mark.slow
@examples(MANY_EXAMPLES)
@given(command_lines())
def test_a_great_many_command_lines_work_or_end_in_one_line(things, words):
    command_line(words)


@pytest.mark.parametrize(("words", "said"), {
    ("status", "nowhere"): "there is no study nowhere; name the folder of a study, or a preset",
    ("report", "nowhere/x"): "there is no study nowhere/x",
    ("nonsense",): "No such command 'nonsense'; see `",
    ("plan",): "Missing argument 'STUDY'; see `",
    ("plan", "digits", "--gpus", "x"): "'x' is not a valid integer range; see `",
    ("plan", "digits", "--tflops", "nan"): "--tflops nan is not a number",
    ("train", "distill", "digits", "--temperature", "1e9"): "--temperature = 1e+09: must be at most 10,000",
    ("plan", "../things/bytes.toml"): "bytes.toml is not valid TOML",
    ("plan", "../things/big.toml"): "big.toml is not a study file: it is larger than 1 MiB",
    ("plan", "digits", "--set", "student.args.depth=1000000"): "student.args: depth must be a number up to 100,000",
    ("plan", "digits", "--set", "student.args.depth=100000"): "more than 10,000 weight tensors",
    ("plan", "digits", "--set", "student.args.checkpoint_path=x.pth"): "checkpoint_path is not an argument of a model",
    ("plan", "digits", "--set", "train.epochs=1000000000000"): "= 1000000000000: must be at most 1,000,000",
    ("plan", "digits", "--set", "confirm.seeds=100000"): "confirm.seeds = 100000: must be at most 1,000",
    ("plan", "digits", "--set", "data.image_size=1000000"): "data.image_size = 1000000: must be at most 4,096",
    ("plan", "digits", "--set", "about=a\nb"): "about = 'a\\nb': must be one line without control characters",
    ("plan", "digits", "--set", "published.pair=a", "--set", "published.gain=inf"): "inf: must be a finite number",
    ("plan", "digits", "--set", "published.pair=a", "--set", "published.gane=1"): "did you mean published.gain?",
    ("plan", "digits", "--set", "float=1"): "float is not a setting; ",
    ("plan", "digits", "--set", "data.source=/"): "data.source = '/' is not a folder of images",
    ("plan", "digits", "--set", "student.pretrained=nowhere"): "student.pretrained: nowhere does not exist",
}.items())
def test_a_mistake_is_said_in_words_that_help(things, words, said):
    code, _, err = here(*words)
    assert code == 2 and is_one_line(err) and said in err, err


@pytest.mark.parametrize(("begun", "words", "said"), [
    ("mine", ("status", "mine"), "did you mean studies/mine?"),
    ("digits-smoke", ("export", "studies/digits", "out"), "did you mean studies/digits-smoke?"),
    ("digits-smoke", ("report", "digits"), "`kdstudy run digits` starts it, or did you mean studies/digits-smoke?"),
    ("x-smoke", ("status", "x"), "did you mean studies/x-smoke?"),
    ("flowers", ("status", "studies/flower"), "did you mean studies/flowers?"),
    ("flowers", ("status", "studies/birds"), "there is no study studies/birds; name the folder"),
])
def test_whoever_names_a_study_roughly_is_told_where_it_is(begun, words, said, apart, synthetic_study):
    shutil.copytree(synthetic_study, f"studies/{begun}")
    try:
        code, _, err = here(*words)
        assert code == 2 and is_one_line(err) and said in err
    finally:
        shutil.rmtree("studies")
