"""`kdstudy pack`: a small copy of a study that leaves out what can be recomputed."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kdstudy.analysis import deployment, report
from kdstudy.analysis.records import read_events
from kdstudy.analysis.stage_names import kind_of
from kdstudy.analysis.study_files import StudyFiles
from kdstudy.config.load import STUDY_FILE
from kdstudy.errors import UserError
from kdstudy.store import files
from kdstudy.trainables.paths import remove

STAGE_FILES = ("record.jsonl", "done.json")
MACHINES = ("host", "pid", "where")  # event keys that identify a machine
PackStage = Callable[[Path, Path, dict[str, Any], bool], None]


def pack(folder: Path, out: Path, stages: Mapping[str, PackStage], teacher: bool = True) -> int:
    """Copy a finished study to `out`, which must be new or empty. Returns its size in bytes.

    stages: per kind of stage, a function that copies the files to keep besides its record and done-mark. It is called
    with the stage's folder, the target folder, the done-mark and `teacher`: whether to keep the teacher's weights.

    Raises UserError where the study is not finished or `out` is not empty, ValueError where a file cannot be read.
    """
    study = StudyFiles(folder)
    if study.confirmation is None:
        raise UserError(f"{folder} is not finished; run `kdstudy run {folder}` first")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; choose another folder")
    draft = out.absolute().with_name(f".{out.name}.{os.getpid()}")
    try:
        _pack_into(study, draft, stages, teacher)
        os.replace(draft, out)
    finally:
        remove(draft, draft.parent, if_possible=True)  # a partial copy would block the next attempt
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


def _pack_into(study: StudyFiles, out: Path, stages: Mapping[str, PackStage], teacher: bool) -> None:
    files.write_text(out / STUDY_FILE, (study.folder / STUDY_FILE).read_text(encoding="utf-8"))
    files.write_json(out / "stages.json", study.description)
    for name, folder in study.description["stages"].items():
        source, target = study.folder / folder, out / folder
        target.mkdir(parents=True)
        _copy_record(source, target)
        if (kind := kind_of(name)) in stages and (outcome := study.done(name)):  # a control may be unfinished
            stages[kind](source, target, outcome, teacher)
        if (done := files.read_json(target / "done.json")) is not None:
            files.write_done(target, done)  # lists only the files that were kept
    if (measured := deployment.deployment(study)) is not None:
        files.write_json(out / deployment.FILE, measured)
    report.build(out)


def _copy_record(source: Path, target: Path) -> None:
    for file in STAGE_FILES:
        if (source / file).exists():
            shutil.copyfile(source / file, target / file)
    if (record := target / "record.jsonl").exists():
        lines = [json.dumps({key: value for key, value in event.items() if key not in MACHINES})
                 for event in read_events(record)]
        files.write_text(record, "\n".join(lines) + "\n")
