"""A study made small: what was found, without what can be computed again."""

import json
import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq

from kdstudy.analysis import report
from kdstudy.analysis.study_files import CONFIRM_STAGES, StudyFiles, read_events
from kdstudy.config.load import STUDY_FILE
from kdstudy.errors import UserError
from kdstudy.store import files
from kdstudy.trainables.messages import one_line
from kdstudy.trainables.paths import remove

STAGE_FILES = ("record.jsonl", "done.json")
ANSWERS = ("image", "label", "prediction", "confidence")


def pack(folder: Path, out: Path, teacher: bool = True) -> int:
    """Copy a finished study to `out`, which must be new or empty. Returns its size in bytes.

    teacher: with the teacher's weights.

    Raises UserError where the study is not finished or `out` is taken.
    """
    study = StudyFiles(folder)
    if study.confirmation is None:
        raise UserError(f"{folder} is not finished; run `kdstudy run {folder}` first")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; choose another folder")
    draft = out.absolute().with_name(f".{out.name}.{os.getpid()}")
    try:
        _pack_into(study, folder, draft, teacher)
        os.replace(draft, out)
    finally:
        remove(draft, draft.parent, if_possible=True)  # half a copy would be in the way of the next
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


def _pack_into(study: StudyFiles, folder: Path, out: Path, teacher: bool) -> None:
    kept = study.description["stages"]
    files.write_text(out / STUDY_FILE, (folder / STUDY_FILE).read_text(encoding="utf-8"))
    files.write_json(out / "stages.json", study.description)
    for name, stage in kept.items():
        _pack_stage(study, name, folder / stage, out / stage, teacher)
    report.build(out)


def _pack_stage(study: StudyFiles, name: str, source: Path, target: Path, teacher: bool) -> None:
    target.mkdir(parents=True)
    for file in STAGE_FILES:
        if (source / file).exists():
            shutil.copyfile(source / file, target / file)
    if (target / "record.jsonl").exists():
        _strip_record(target / "record.jsonl")
    if name == "teacher":
        for file in source.glob("*.safetensors") if teacher else ():
            shutil.copyfile(file, target / file.name)
    elif name == "teacher_logits":
        shutil.copyfile(source / "validation.npy", target / "validation.npy")
        _copy_answers(source / "test.parquet", target / "test.parquet", logits=True)
    elif name in CONFIRM_STAGES:
        _pack_runs(study, name, source / "runs", target / "runs")
    if (done := files.read_json(target / "done.json")) is not None:
        files.write_done(target, done)


def _pack_runs(study: StudyFiles, name: str, source: Path, target: Path) -> None:
    """All answers; logits and weights of the best student alone."""
    rows = study.done(name)["rows"]
    chosen = {row["runs"][0] for row in rows if (row["arm"], row["configuration"]) == ("distilled", "tuned")}
    for run in sorted(source.iterdir()):
        best = int(run.name) in chosen
        (target / run.name).mkdir(parents=True)
        _copy_answers(run / "test.parquet", target / run.name / "test.parquet", logits=best)
        if best:
            shutil.copyfile(run / "model.safetensors", target / run.name / "model.safetensors")


def _copy_answers(source: Path, target: Path, *, logits: bool) -> None:
    columns = [*ANSWERS, *(["logits"] if logits else [])]
    try:
        table = pq.read_table(source, columns=columns)
    except Exception as error:  # of many kinds
        raise ValueError(f"{source} cannot be read: {one_line(error)}") from None
    pq.write_table(table, target, compression="zstd", compression_level=19)


def _strip_record(path: Path) -> None:
    """Leave out which machines and processes wrote it."""
    lines = [json.dumps({key: value for key, value in event.items() if key not in ("host", "pid", "where")})
             for event in read_events(path)]
    files.write_text(path, "\n".join(lines) + "\n")
