"""What somebody else's study may not do to whoever opens it, and what one's own may not tell: study/README.md promises
it. Each hostile study is made here, and every command is tried on it."""

import contextlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from synthetic import EXAMPLES, MANY_EXAMPLES, POINTS, examples, here, is_one_line

from kdstudy.errors import UserError
from kdstudy.stages.order import STAGE_FILES
from kdstudy.store import check
from kdstudy.store.files import read_json, write_json
from kdstudy.store.record import Record, TrialState
from kdstudy.store.storage import Storage
from kdstudy.trainables import functions, paths
from kdstudy.trainables.credentials import problem_with, redact
from kdstudy.tune import cluster

pytestmark = pytest.mark.usefixtures("apart")

# STUDY is the study's folder, OUT a place to write to.
COMMANDS = {
    "run": ("run", "STUDY"), "plan": ("plan", "STUDY"), "status": ("status", "STUDY"), "report": ("report", "STUDY"),
    "export": ("export", "STUDY", "OUT/export"), "pack": ("pack", "STUDY", "OUT/pack"),
    "fetch": ("fetch", "STUDY", "OUT/fetched"), "logits": ("logits", "STUDY", "OUT/l.safetensors"),
    "export the teacher": ("export", "STUDY", "OUT/teacher", "--model", "teacher"),
    "train": ("train", "baseline", "STUDY", "--set", "train.epochs=1"),
    "submit": ("submit", "STUDY", "--to", "slurm", "--dir", "/shared/study", "--print"),
}
READING = ("status", "report", "pack", "fetch", "logits")  # they call no model's function


@pytest.fixture
def received(synthetic_study, tmp_path):
    """A study in a folder of its own, and beside it what is none of its business."""
    (tmp_path / "victim" / "deep").mkdir(parents=True)
    (tmp_path / "victim" / "deep" / "thesis.tex").write_text("years of work")
    return shutil.copytree(synthetic_study, tmp_path / "received")


def outside(folder: Path) -> dict[str, bytes | None]:
    """All that lies beside a study, and what is in it."""
    beside = folder.parent
    return {str(path.relative_to(beside)): path.read_bytes() if path.is_file() else None
            for path in sorted(beside.rglob("*")) if path.relative_to(beside).parts[0] not in (folder.name, "out")}


def give(folder: Path, command: str) -> tuple[int, str, str]:
    out = folder.parent / "out"
    out.mkdir(exist_ok=True)
    return here(*(word.replace("STUDY", str(folder)).replace("OUT", str(out)) for word in COMMANDS[command]))


def stage_of(folder: Path, name: str) -> Path:
    return folder / read_json(folder / "stages.json")["stages"][name]


def lines_of(folder: Path, stage: str) -> list[str]:
    return (stage_of(folder, stage) / "record.jsonl").read_text().splitlines()


def write_lines(folder: Path, stage: str, lines: list[str]) -> None:
    (stage_of(folder, stage) / "record.jsonl").write_text("".join(f"{line}\n" for line in lines))


# -- paths ------------------------------------------------------------------------------------------------------------


def checkpoint_at(path: str):
    """A trial that was cut off, whose checkpoint lies somewhere else."""

    def make(folder: Path) -> None:
        *lines, last = lines_of(folder, "distill")  # the last is its last report
        cut = {"event": "checkpoint", "sequence": len(lines), "time": json.loads(last)["time"], "trial": 2, "epoch": 2}
        write_lines(folder, "distill", [*lines, json.dumps(cut | {"path": path.replace("HERE", str(folder.parent))})])
        (stage_of(folder, "distill") / "done.json").unlink()

    return make


def done_names(folder: Path) -> None:
    done = stage_of(folder, "teacher") / "done.json"
    write_json(done, read_json(done) | {"files": {"../../victim/deep/thesis.tex": 1}})


def weights_elsewhere(folder: Path) -> None:
    done = stage_of(folder, "teacher") / "done.json"
    content = read_json(done)
    content["members"][0]["weights"] = "../../victim/deep/thesis.tex"
    write_json(done, content)


def stages_elsewhere(folder: Path) -> None:
    description = read_json(folder / "stages.json")
    description["stages"]["distill"] = "../victim"
    write_json(folder / "stages.json", description)


def link(name: str, target: str):
    """A link out of the study in the place of one of its files or folders."""

    def make(folder: Path) -> None:
        stages = read_json(folder / "stages.json")["stages"]
        path = folder / name.format(**stages)
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(folder.parent / target)

    return make


PATHS = {
    "a checkpoint that goes up": checkpoint_at(".tune/000/../../../victim"),
    "a checkpoint whose trial is the study's parent": checkpoint_at(".tune/../../victim"),
    "a checkpoint that goes up at once": checkpoint_at("../victim"),
    "a checkpoint with an absolute path": checkpoint_at("HERE/victim"),
    "a checkpoint that is a pattern": checkpoint_at(".tune/*/*"),
    "a checkpoint that is all of .tune": checkpoint_at(".tune"),
    "a checkpoint that is a stage": checkpoint_at("results"),
    "a done-mark of a file outside": done_names,
    "weights outside": weights_elsewhere,
    "a stage outside": stages_elsewhere,
    "a stage that is a link": link("{distill}", "victim"),
    "a record that is a link": link("{distill}/record.jsonl", "victim/deep/thesis.tex"),
    "a lock that is a link": link(".lock", "victim/deep/thesis.tex"),
    "a lock that is a link to nothing": link(".lock", "victim/new"),
    "Tune's folder is a link": link(".tune", "victim"),
    "results that are a link": link("results", "victim"),
    "an export that is a link": link("export", "victim"),
    "a link within the study": lambda folder: (folder / "results").symlink_to(stage_of(folder, "distill")),
    "a lock that is a link within the study": lambda folder: (folder / ".lock").symlink_to(
        stage_of(folder, "distill") / "record.jsonl"),
    "a pipe": lambda folder: os.mkfifo(folder / "results.json"),
    "weights that are a link": link("{confirm}/runs/002/model.safetensors", "victim/deep/thesis.tex"),
}


@pytest.mark.parametrize("case", PATHS)
def test_nothing_outside_a_study_is_touched(received, case):
    PATHS[case](received)
    before = outside(received)
    for command in COMMANDS:
        code, _, err = give(received, command)
        # `submit` reads the settings alone.
        assert (code == 2 and is_one_line(err)) or command == "submit", (command, code, err)
        assert outside(received) == before, command
    assert not any(path.name == "thesis.tex" or b"years of work" in path.read_bytes()
                   for path in (received.parent / "out").rglob("*") if path.is_file())


PIECES = st.sampled_from(["..", ".", "", "a", "b", ".tune", "000", "runs", "*", "[ab]", "~", "a\\..\\b", "%2e%2e", "\0",
                          "a\nb", "…", " "])
PATH_TEXTS = st.builds(lambda parts, lead, tail: lead + "/".join(parts) + tail, st.lists(PIECES, max_size=6),
                       st.sampled_from(["", "/", "//", "./", "../"]), st.sampled_from(["", "/", "/.."]))


def check_path(root: Path, name: str) -> None:
    """Whatever a path says, what it removes lies inside."""
    study, victim = root / "x" / "study", root / "victim"
    for folder in (study / "a" / "b", study / ".tune" / "000", victim):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "file").write_text("here")
    (study / "out").unlink(missing_ok=True)
    (study / "out").symlink_to(victim)
    home = Storage(study)
    if paths.is_inside_by_name(name):
        assert os.path.normpath(study / name).startswith(f"{study}/") and os.path.normpath(name) == name
    for remove in (lambda: paths.remove(study / name, study), lambda: paths.remove(study / "out" / name, study),
                   lambda: home.forget_tune(*name.split("/"))):
        with contextlib.suppress(ValueError, OSError):
            remove()
    assert (victim / "file").read_text() == "here" and study.is_dir()


@given(PATH_TEXTS)
@examples(EXAMPLES)
def test_no_path_removes_what_lies_outside(tmp_path, name):
    check_path(tmp_path, name)


@pytest.mark.slow
@given(st.one_of(PATH_TEXTS, st.text(max_size=30)))
@examples(MANY_EXAMPLES)
def test_none_of_many_paths_removes_what_lies_outside(tmp_path, name):
    check_path(tmp_path, name)


def test_removing_a_link_leaves_what_it_stands_for(tmp_path):
    (tmp_path / "study" / "runs").mkdir(parents=True)
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "file").write_text("here")
    for path in (tmp_path / "study" / "runs" / "link", tmp_path / "study" / "link"):
        path.symlink_to(tmp_path / "victim")
    paths.remove(tmp_path / "study" / "link", tmp_path / "study")
    paths.remove(tmp_path / "study" / "runs", tmp_path / "study")
    assert not list((tmp_path / "study").iterdir()) and (tmp_path / "victim" / "file").exists()
    with pytest.raises(ValueError, match="is not removed"):
        paths.remove(tmp_path / "study", tmp_path / "study")


def test_objects_are_removed_inside_a_study_only(tmp_path):
    """On an object store: a name may hold dots, slashes and what its client reads as a pattern."""
    store = fsspec.filesystem("memory")
    kept = {"/bucket/mine/thesis": b"1", "/bucket/study/.tune/000/t/c": b"2", "/bucket/study/stage-0/done.json": b"3"}
    for name, content in kept.items():
        store.pipe_file(name, content)
    home = Storage(tmp_path / "copy", "memory://bucket/study")
    for below in (("..", "..", "mine"), ("*",), ("..",), ("000", "..", "..", "stage-0"), ("",), ("0[0-9]0",)):
        with pytest.raises(ValueError):
            home.forget_tune(*below)
    for root, name in (("/", "bucket"), ("", "bucket/mine"), ("/bucket/*", "x"), ("/bucket/study/..", "mine"),
                       ("/bucket/study", "../mine")):
        with pytest.raises(ValueError):
            paths.remove_objects(store, root, [name], recursive=True)
    assert {name: store.cat_file(name) for name in kept} == kept
    home.forget_tune("000")
    assert not store.exists("/bucket/study/.tune/000") and store.exists("/bucket/mine/thesis")


def test_objects_with_names_that_lead_elsewhere_are_not_brought_here(tmp_path):
    store = fsspec.filesystem("memory")
    for name in ("study2/study.toml", "study2/a*b.json", "study2/st[a]ge/done.json", "study2/x\\..\\y.json"):
        store.pipe_file(f"/bucket/{name}", b"{}")
    store.store["/bucket/study2/../../evil.json"] = store.store["/bucket/study2/study.toml"]
    store.store["/bucket/study2/stage/../../../evil.json"] = store.store["/bucket/study2/study.toml"]
    Storage(tmp_path / "deep" / "copy", "memory://bucket/study2").refresh(everything=True)
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert "deep/copy/study.toml" in found and not any("evil" in name or "*" in name or "[" in name for name in found)


def test_a_neighbour_that_is_not_sound_is_not_taken_over(received, tmp_path):
    """Studies beside one's own lend it their stages; a stranger's may lie there too."""
    checkpoint_at(".tune/000/../../../victim")(received)
    with pytest.raises(UserError, match=r"path must be a path inside the study"):
        check.check_stage("distill", stage_of(received, "distill"), STAGE_FILES["distill"])
    check.check_stage("baseline", stage_of(received, "baseline"), STAGE_FILES["baseline"])
    link("{baseline}/record.jsonl", "victim/deep/thesis.tex")(received)
    with pytest.raises(UserError, match="is a link, which a study may not contain"):
        check.check_stage("baseline", stage_of(received, "baseline"), STAGE_FILES["baseline"])


# -- functions --------------------------------------------------------------------------------------------------------

def write_evil(folder: Path) -> Path:
    """A module that leaves a mark as soon as it is imported, and a repository that torch.hub would run."""
    mark = folder.parent / "code-has-run"
    code = f"import os\nos.makedirs({str(mark)!r}, exist_ok=True)\ndef net(**arguments):\n    raise ValueError\n"
    for path in (folder / f"evil_{folder.parent.name}.py", folder / "hubconf.py"):
        path.write_text(code)
    return mark


def names_model(name: str, arguments: str = "{}", section: str = "student"):
    def make(folder: Path) -> None:
        settings = (folder / "study.toml").read_text()
        parts = settings.split(f"[{section}]")
        old = next(line for line in parts[1].splitlines() if line.startswith("model ="))
        new = f'model = "{name.replace("evil", f"evil_{folder.parent.name}")}"'
        parts[1] = parts[1].replace(old, new, 1)
        settings = f"[{section}]".join(parts)
        before, header, after = settings.partition(f"[{section}.args]")
        if header:
            rest = after.partition("\n[")
            settings = f"{before}{rest[1].strip()}{rest[2]}" if rest[1] else before
        settings = settings.replace(new, f"{new}\nargs = {arguments.replace('HERE', str(folder))}", 1)
        (folder / "study.toml").write_text(settings)

    return make


def names_loss(name: str):
    def make(folder: Path) -> None:
        replace_setting(folder, 'loss = "hinton"', f'loss = "{name.replace("evil", f"evil_{folder.parent.name}")}"')

    return make


FUNCTIONS = {
    "torch.hub, local": names_model("torch.hub:load", '{repo_or_dir = "HERE", source = "local", model = "net"}'),
    "torch.hub, from afar": names_model("torch.hub:load", '{repo_or_dir = "a/b", model = "net", trust_repo = true}'),
    "a module in the study": names_model("evil:net"),
    "a module in the study for the teacher": names_model("evil:net", section="teacher"),
    "the standard library": names_model("os:system", "{}"),
    "timm's own": names_model("timm.models:load_checkpoint", "{}"),
    "a loss in the study": names_loss("evil:net"),
    "torch as a loss": names_loss("torch.hub:load"),
}


@pytest.mark.parametrize("case", FUNCTIONS)
def test_no_code_of_a_received_study_runs(received, case, monkeypatch):
    mark = write_evil(received)
    FUNCTIONS[case](received)
    section = next((one for one in ("teacher", "loss") if one in case), "student")
    setting = "default.loss" if section == "loss" else f"{section}.model"
    monkeypatch.chdir(received)  # where its modules would be found
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(received))])
    for command in COMMANDS:
        for study in (received, Path("."), received / "study.toml"):
            if study.suffix and command not in ("run", "plan", "submit", "train"):
                continue
            words = [word.replace("STUDY", str(study)).replace("OUT", str(received.parent / f"out{study.suffix}"))
                     for word in COMMANDS[command]]
            shutil.rmtree(received.parent / f"out{study.suffix}", ignore_errors=True)
            (received.parent / f"out{study.suffix}").mkdir()
            code, _, err = here(*words)
            assert not mark.exists(), (command, study)
            if code:
                assert code == 2 and is_one_line(err) and setting in err, (command, study, err)
            if command in ("run", "plan", "train", "submit") or section in command:
                assert code == 2, (command, study)
                assert "--trust" in err or "are refused" in err, err
            elif command in READING and section != "teacher":
                assert code == 0, (command, err)


def test_trust_and_naming_it_oneself_are_what_lets_a_function_be_called(received, monkeypatch):
    mark = write_evil(received)
    FUNCTIONS["a module in the study"](received)
    name = f"evil_{received.parent.name}:net"
    monkeypatch.chdir(received)
    for words in (("--trust",), ("--set", f"student.model={name}")):
        mark.exists() and mark.rmdir()
        sys.modules.pop(name.partition(":")[0], None)
        code, _, err = here("plan", str(received), *words)
        assert mark.exists() and code == 2 and is_one_line(err), err  # it was called, and is no model
    sys.modules.pop(name.partition(":")[0], None)
    code, _, err = here("plan", ".", "--trust", "--set", "student.model=torch.hub:load")
    assert code == 2 and "functions of 'torch' are refused" in err
    assert not functions._allowed  # nothing stays allowed after a command


@pytest.mark.slow
def test_workers_find_a_function_that_one_names_oneself(tmp_path):
    """In the folder in which the command is given, as the installed command does it."""
    (tmp_path / "mynets.py").write_text(
        "from torch import nn\ndef net(num_classes, in_chans):\n"
        "    return nn.Sequential(nn.Conv2d(in_chans, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),"
        " nn.Linear(8, num_classes))\n")
    run = [sys.executable, "-P", "-m", "kdstudy", "run"]
    begun = subprocess.run([*run, "digits", "--smoke", "--set", "teacher.model=mynets:net", "--set", "teacher.args={}",
                            "--until", "teacher", "--dir", "study"], cwd=tmp_path, capture_output=True, text=True,
                           timeout=300)
    assert begun.returncode == 0 and "mynets:net" in begun.stdout, begun.stdout + begun.stderr
    again = [subprocess.run([*run, "study", "--until", "teacher", *words], cwd=tmp_path, capture_output=True, text=True,
                            timeout=300) for words in ((), ("--trust",))]
    assert again[0].returncode == 2 and is_one_line(again[0].stderr) and "--trust" in again[0].stderr
    assert again[1].returncode == 0 and "Nothing to do" in again[1].stdout, again[1].stderr


def replace_setting(folder: Path, before: str, after: str) -> None:
    settings = (folder / "study.toml").read_text()
    assert settings.count(before) == 1
    (folder / "study.toml").write_text(settings.replace(before, after))


def test_a_received_study_sends_its_curves_nowhere(received, tmp_path):
    replace_setting(received, 'mlflow = ""', f'mlflow = "{tmp_path}/elsewhere"')
    code, _, err = here("run", str(received))
    assert code == 2 and is_one_line(err) and "watch.mlflow" in err and "--trust" in err, err
    assert not (tmp_path / "elsewhere").exists()
    own = ("--set", f'watch={{mlflow = "{tmp_path}/x"}}', "--set", "data.source=/nowhere")
    assert here("run", str(received), *own)[2].startswith("kdstudy: data.source = '/nowhere'")


@pytest.mark.parametrize("place", ["s3://bucket/x?endpoint_override=HOST&scheme=http",
                                   "gs://bucket/x?endpoint_override=HOST&scheme=http", "http://HOST/x",
                                   "hf://datasets/me/x"])
def test_a_received_study_has_no_host_of_its_own_asked_for_its_images(received, place, monkeypatch):
    """It would be shown this machine's token for the store."""
    asked = []

    class Listener(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.headers)
            self.send_error(404)

        do_HEAD = do_PUT = do_POST = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    place = place.replace("HOST", f"127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    replace_setting(received, 'source = "digits"', f'source = "{place}"')
    for command in ("run", "plan", "train", "export", "logits", "submit", "status", "report", "pack", "fetch"):
        code, _, err = give(received, command)
        assert code == 0 if command in ("status", "report", "pack", "fetch") else (
            code == 2 and is_one_line(err) and "data.source" in err and "--trust" in err), (command, err)
    server.shutdown()
    assert not asked


# -- records ----------------------------------------------------------------------------------------------------------


def edit(change):
    def make(folder: Path) -> None:
        write_lines(folder, "distill", change(lines_of(folder, "distill")))

    return make


def with_values(number: int, **values):
    def change(lines: list[str]) -> list[str]:
        event = json.loads(lines[number])
        changed = {name: {**event[name], **value} if isinstance(value, dict) else value
                   for name, value in values.items()}
        return [*lines[:number], json.dumps(event | changed), *lines[number + 1:]]

    return change


def of_another_stage(folder: Path) -> None:
    write_lines(folder, "distill", lines_of(folder, "baseline"))


def trial_again(lines: list[str]) -> list[str]:
    return [*lines, json.dumps(json.loads(lines[0]) | {"sequence": len(lines)})]


DAMAGE = {
    "a line deleted": edit(lambda lines: [*lines[:4], *lines[5:]]),
    "the last line deleted": edit(lambda lines: lines[:-1]),
    "a line doubled": edit(lambda lines: [*lines[:5], *lines[4:]]),
    "two lines swapped": edit(lambda lines: [*lines[:1], lines[2], lines[1], *lines[3:]]),
    "an epoch of 1e9": edit(with_values(1, epoch=10**9)),
    "an edited accuracy": edit(with_values(1, metrics={"validation_accuracy": 0.99})),
    "an accuracy beyond 1": edit(with_values(1, metrics={"validation_accuracy": 1.5})),
    "an edited parameter": edit(with_values(0, parameters={"lr": 0.5})),
    "cut in half": edit(lambda lines: lines[:len(lines) // 2]),
    "empty": edit(lambda lines: []),
    "a trial that begins again": edit(trial_again),
    "a sequence that begins elsewhere": edit(with_values(0, sequence=7)),
    "another stage's": of_another_stage,
    "gone": lambda folder: (stage_of(folder, "distill") / "record.jsonl").unlink(),
}


def unseal(folder: Path) -> None:
    """Make done-marks what earlier versions wrote: without a digest of the record."""
    for path in folder.glob("*/done.json"):
        write_json(path, {name: value for name, value in read_json(path).items() if name != "record"})


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_record_is_said_in_one_line_by_every_command(received, case):
    DAMAGE[case](received)
    for command in COMMANDS:
        if command == "submit":  # it reads the settings alone
            continue
        code, _, err = give(received, command)
        assert code == 2 and is_one_line(err) and "record.jsonl is damaged" in err, (command, code, err)


# What the digest alone can tell.
SILENT_WITHOUT_DIGEST = ("an edited accuracy", "an edited parameter", "empty", "gone")


@pytest.mark.parametrize("case", [case for case in DAMAGE if case not in SILENT_WITHOUT_DIGEST])
def test_most_damage_is_noticed_without_the_digest_too(received, case):
    unseal(received)
    assert here("status", str(received))[0] == 0
    DAMAGE[case](received)
    code, _, err = here("status", str(received))
    assert code == 2 and is_one_line(err) and "damaged" in err, err


def test_a_torn_last_line_of_a_stage_that_is_not_done_is_dropped(received):
    stage = stage_of(received, "distill")
    (stage / "done.json").unlink()
    content = (stage / "record.jsonl").read_bytes()
    (stage / "record.jsonl").write_bytes(content[:-30])
    assert here("status", str(received))[0] == 0
    record = Record(stage / "record.jsonl")
    assert len(record.trials) == len(POINTS) and record.trials[2].state == "running"
    record.report(2, 4, "complete", {"validation_accuracy": 0.5})
    check.check(received, STAGE_FILES)


def test_a_record_that_goes_on_after_its_stage_was_done_is_sound(received):
    """As a search that is extended, or a confirmation with more seeds."""
    record = Record(stage_of(received, "distill") / "record.jsonl")
    record.begin_session(epochs=4)
    record.retry(2)
    check.check(received, STAGE_FILES)
    assert here("status", str(received))[0] == 0


def test_a_trial_that_fails_at_an_epoch_that_it_has_reported_is_sound(received):
    """As one that runs out of memory after its first report; and once it is run again it reports that epoch no more."""
    record = Record(stage_of(received, "distill") / "record.jsonl")
    record.add_trial(TrialState(3, POINTS[1], 9, 0, "tpe"))
    record.report(3, 2, "continue", {"validation_accuracy": 0.4})
    record.report(3, 2, "failed", {}, "out of memory")
    check.check(received, STAGE_FILES)
    record.retry(3)
    record.report(3, 4, "complete", {"validation_accuracy": 0.5})
    check.check(received, STAGE_FILES)
    record.report(3, 4, "complete", {"validation_accuracy": 0.6})
    with pytest.raises(UserError, match="trial 3 reports epoch 4 again"):
        check.check(received, STAGE_FILES)


def test_a_stage_that_is_not_listed_is_checked_too(received):
    DAMAGE["a line doubled"](received)
    description = read_json(received / "stages.json")
    del description["stages"]["distill"]
    write_json(received / "stages.json", description)
    for command in ("run", "plan", "status", "train"):
        code, _, err = give(received, command)
        assert code == 2 and is_one_line(err) and "record.jsonl is damaged" in err, (command, err)


def test_a_stage_may_not_be_listed_under_a_folder_that_nobody_checks(received):
    """A folder is named after its stage and ten digits; what is called otherwise would be read but not checked."""
    DAMAGE["a line doubled"](received)
    stage = stage_of(received, "distill")
    stage.rename(received / "distill-other-0123456789")
    description = read_json(received / "stages.json")
    description["stages"]["distill"] = "distill-other-0123456789"
    write_json(received / "stages.json", description)
    for command in READING:
        code, _, err = give(received, command)
        assert code == 2 and is_one_line(err) and "stages.distill is the folder of another stage" in err, (command, err)


def test_what_honest_programs_leave_in_a_study_is_no_harm(received):
    """Weights & Biases links to its own logs, and an editor's lock is a link to nothing."""
    (received / "wandb" / "run-1" / "logs").mkdir(parents=True)
    (received / "wandb" / "run-1" / "logs" / "debug-core.log").symlink_to(received.parent / "victim")
    (received / ".#study.toml").symlink_to("me@home.1234")
    assert all(give(received, command)[0] == 0 for command in ("status", "report", "pack", "fetch", "logits"))
    assert not any(path.is_symlink() or path.name == "thesis.tex" for path in (received.parent / "out").rglob("*"))


def check_edit(folder: Path, kind: str, at: float, value: int) -> None:
    """Whatever is done to a finished stage's record, it is noticed; nothing is where nothing was done."""
    path = stage_of(folder, "distill") / "record.jsonl"
    original = path.read_bytes()
    content, place = bytearray(original), int(at * (len(original) - 1))
    if kind == "byte":
        content[place] = value
    elif kind == "insert":
        content[place:place] = bytes([value])
    elif kind == "delete":
        del content[place : place + 1 + value]
    elif kind == "cut":
        del content[place:]
    else:
        lines = original.splitlines(keepends=True)
        one, other = int(at * len(lines)) % len(lines), value % len(lines)
        if kind == "swap":
            lines[one], lines[other] = lines[other], lines[one]
        elif kind == "double":
            lines.insert(other, lines[one])
        else:
            del lines[one]
        content = bytearray(b"".join(lines))
    try:
        path.write_bytes(content)
        if content == original:
            check.check(folder, STAGE_FILES)
            return
        with pytest.raises(UserError, match=r"record.jsonl is damaged") as refused:
            check.check(folder, STAGE_FILES)
        assert len(str(refused.value).splitlines()) == 1
    finally:
        path.write_bytes(original)


EDITS = (st.sampled_from(["byte", "insert", "delete", "cut", "swap", "double", "drop"]), st.floats(0, 1),
         st.integers(0, 255))


@pytest.fixture(scope="module")
def edited(synthetic_study, tmp_path_factory):
    return shutil.copytree(synthetic_study, tmp_path_factory.mktemp("edited") / "study")


@given(*EDITS)
@examples(EXAMPLES)
def test_every_edit_of_a_finished_record_is_noticed(edited, kind, at, value):
    check_edit(edited, kind, at, value)


@pytest.mark.slow
@given(*EDITS)
@examples(MANY_EXAMPLES)
def test_each_of_many_edits_of_a_finished_record_is_noticed(edited, kind, at, value):
    check_edit(edited, kind, at, value)


# -- secrets ----------------------------------------------------------------------------------------------------------

MARKER = "M4rkerS3cretThatNobodyMaySee"
VARIABLES = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "HF_TOKEN",
             "RAY_AUTH_TOKEN")
URIS = (f"s3://KEY:{MARKER}@bucket/images", f"s3://KEY:{MARKER[:9]}/{MARKER[9:]}@bucket/images",
        f"s3://bucket/images?secret_key={MARKER}", f"s3://bucket/images?region=x&session_token={MARKER}",
        f"https://{MARKER}@host/x", f"https://host/x?X-Amz-Signature={MARKER}", f"hdfs://user:{MARKER}@host/x")
SETTINGS = ("data.source", "search.warm_start", "teacher.logits", "teacher.pretrained", "student.pretrained",
            "watch.mlflow", "teacher.trained")


def is_hidden(*texts: str) -> bool:
    return not any(MARKER in text or MARKER[9:] in text for text in texts)


@pytest.mark.parametrize("uri", URIS)
def test_a_uri_with_a_secret_is_refused_and_not_shown(uri, tmp_path):
    for setting in SETTINGS:
        code, out, err = here("plan", "digits", "--set", f"{setting}={uri}", "--dir", str(tmp_path / "study"))
        assert code == 2 and is_one_line(err) and is_hidden(out, err), err
        assert setting in err and "remove them and set" in err, err
    for words in (("run", "digits", "--dir", uri), ("run", uri), ("status", uri), ("report", uri), ("plan", uri),
                  ("export", uri, "out"), ("fetch", uri, "out"), ("pack", uri, "out"),
                  ("status", "digits", "--dir", uri), ("submit", "digits", "--dir", uri, "--to", "slurm", "--print"),
                  ("fetch", str(tmp_path), uri)):
        code, out, err = here(*words)
        assert code == 2 and is_one_line(err) and is_hidden(out, err), (words, err)
    study = tmp_path / "s.toml"
    study.write_text(f'[data]\nsource = "{uri}"\n[teacher]\nmodel = 3\n[student]\nmodel = "{uri}"\n')
    code, out, err = here("plan", str(study))
    assert code == 2 and is_one_line(err) and is_hidden(out, err), err


def test_an_older_study_with_a_secret_in_its_settings_is_refused_without_showing_it(received):
    settings = (received / "study.toml").read_text()
    assert 'source = "digits"' in settings
    (received / "study.toml").write_text(settings.replace('source = "digits"', f'source = "{URIS[0]}"'))
    for command in COMMANDS:
        code, out, err = give(received, command)
        assert code == 2 and is_one_line(err) and is_hidden(out, err) and "AWS_ACCESS_KEY_ID" in err, (command, err)


@pytest.mark.parametrize("text", [
    "s3://bucket/studies/mine", "gs://anonymous@bucket/x", "abfs://container@account.dfs.core.windows.net/x",
    "http://mlflow:5000/#/@me", "s3://bucket/x?region=eu&endpoint_override=localhost:9000&scheme=http", "hdfs://me@host/x",
    "git+ssh://git@github.com/x", "https://h/search?author=Hinton&tokenizer=bpe&signature_version=4",
    "sqlite:///mlflow.db", "/a:b@c/d", "mail me@home.org about s3://bucket", "key=value"])
def test_what_holds_no_secret_is_left_alone(text):
    assert problem_with(text) is None and redact(text) == text


def test_what_libraries_say_is_written_and_shown_without_secrets(received, monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, f"{name}-{MARKER}")
    said = (f"403 for s3://AKIA:{MARKER}@bucket/x?X-Amz-Credential={MARKER}; Authorization: Bearer {MARKER}; "
            f"WANDB_API_KEY-{MARKER} was refused")
    stage = stage_of(received, "distill")
    record = Record(stage / "record.jsonl")
    record.add_trial(TrialState(3, POINTS[1], 9, 0, "tpe"))
    record.fail(3, said)
    record.begin_session(after=said, wanted=4, epochs=4)
    assert record.trials[3].reason.startswith("403 for s3://***@bucket")
    printed = [text for command in ("status", "report", "plan", "pack", "export")
               for text in give(received, command)[1:]]
    assert any("403 for" in text for text in printed)
    files = [path for folder in (received, received.parent / "out") for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 40 and is_hidden(*printed) and not any(MARKER.encode() in path.read_bytes() for path in files)


def test_a_variable_that_is_a_secret_is_not_handed_to_a_job(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", MARKER)
    for given_ in ("WANDB_API_KEY", f"AWS_SECRET_ACCESS_KEY={MARKER}", f"no name={MARKER}"):
        code, out, err = here("submit", "digits", "--to", "kuberay", "--dir", "s3://b/studies/x", "--image", "i",
                              "--print", "--env", given_)
        assert code == 2 and is_one_line(err) and is_hidden(out, err) and "--env" in err, err


@given(st.text(max_size=40), st.sampled_from(URIS), st.text(max_size=40))
@examples(EXAMPLES)
def test_a_secret_is_taken_out_of_any_text(before, uri, after):
    assume(MARKER[9:] not in before + after)
    assert is_hidden(redact(f"{before} {uri} {after}")), (before, after)


# -- Ray --------------------------------------------------------------------------------------------------------------

LISTENING = """
import os, re, sys
from kdstudy.tune.cluster import connected
import ray
os.environ["KDSTUDY_TEST_TREE"] = sys.argv[1]
with connected(None):
    @ray.remote
    def worker():
        import numpy
        return numpy.__version__
    ray.get(worker.remote())
    inodes = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if f"KDSTUDY_TEST_TREE={sys.argv[1]}".encode() in open(f"/proc/{pid}/environ", "rb").read():
                for fd in os.listdir(f"/proc/{pid}/fd"):
                    inodes.update(re.findall(r"socket:.(\\d+)", os.readlink(f"/proc/{pid}/fd/{fd}")))
        except OSError:
            pass
    for table in ("tcp", "tcp6"):
        for line in open(f"/proc/net/{table}").readlines()[1:]:
            local, state, inode = (line.split()[column] for column in (1, 3, 9))
            if state == "0A" and inode in inodes:
                print("LISTENS", local)
"""


def test_local_ray_listens_on_the_loopback_address_and_imports_nothing_from_the_folder_one_is_in(tmp_path):
    """Also its token is nobody else's. As the installed command does it: without the current folder on the path."""
    for name in ("numpy", "timm", "yaml"):
        mark = str(tmp_path / "code-has-run")
        (tmp_path / f"{name}.py").write_text(f"open({mark!r}, 'w').close()\nraise SystemExit\n")
    script = tmp_path / "elsewhere" / "listening.py"
    script.parent.mkdir()
    script.write_text(LISTENING)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0" * 64)
    (tmp_path / ".ray" / "auth_token").chmod(0o644)
    done = subprocess.run([sys.executable, str(script), tmp_path.name], cwd=tmp_path, capture_output=True, text=True,
                          timeout=120, env=os.environ | {"HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr[-2000:]
    listens = [line.split()[1].split(":")[0] for line in done.stdout.splitlines() if line.startswith("LISTENS")]
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert len(listens) >= 5 and set(listens) <= loopback, listens
    assert not (tmp_path / "code-has-run").exists()
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("variables", [("RAY_TMPDIR",), ("RAY_TMPDIR", "TMPDIR"), ("TMPDIR",)])
def test_the_folder_that_ray_will_use_is_the_one_that_needs_room(variables, monkeypatch, tmp_path):
    from ray._common import utils

    own = getattr(utils, "get_default_system_temp_dir", None) or utils.get_user_temp_dir  # as older Ray calls it
    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    for name in variables:
        monkeypatch.setenv(name, str(tmp_path / name))
    assert cluster._ray_folder() == own() == str(tmp_path / variables[0])
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(
        free=0 if str(folder) == str(tmp_path / variables[0]) else 2**40))
    with pytest.raises(UserError, match=f"{tmp_path / variables[0]} has 0 MiB free"):
        cluster._check_ray_room()


@pytest.mark.parametrize(("words", "limit"), [
    (("plan",), 2), (("train", "baseline"), 2), pytest.param(("run",), 8, marks=pytest.mark.slow)])
def test_too_little_memory_is_said_in_one_line(received, words, limit):
    for path in received.glob("confirm-*/done.json"):
        path.unlink()
    limited = ["bash", "-c", f'ulimit -v {limit * 10**6}; exec "$@"', "-"]
    done = subprocess.run([*limited, sys.executable, "-m", "kdstudy", *words, str(received)], capture_output=True,
                          text=True, timeout=120)
    assert done.returncode == 2 and is_one_line(done.stderr) and "ulimit -v" in done.stderr, done.stderr[-2000:]
