"""A file of a teacher's logits, which allows distilling a student without access to the teacher.

It is a safetensors file with these tensors:

- `views.SEED`, (V, N, C) fp16: the logits for V views of the N images that the student learns from, in the order of
  `trainables.data.load(...).student_train`. View v of image i is `trainables.views.Views(..., view_seed=SEED)`, a pure
  function of (SEED, v, i), before erasing where views.erase_teacher = false. A study needs one SEED for its search and
  one for every confirmation seed.
- `train`, (N, C) fp16: may replace all of these if the study has no augmentation, so that every view is the same.
- `unlabelled.SEED`, (V, U, C) fp16: the same for the images without labels, if there are any.
- `validation`, (N_validation,) int64: the predicted classes of the validation images.
- `test`, (N_test, C) fp16: the logits of the test images.

The metadata are strings: `format` ("kdstudy logits 1"), `teacher` (a display name), `classes` (JSON list of names, in
the order of the logits), `views` (JSON of the augmentation), and `images` (JSON: per split a digest of pixels and
labels, see `kdstudy.store.fingerprints.hash_images`), which ties the file to the exact images of a study.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from kdstudy.analysis.stage_names import stage_for
from kdstudy.config.teachers import check_named
from kdstudy.errors import UserError
from kdstudy.stages import students
from kdstudy.stages.context import Context
from kdstudy.store import files
from kdstudy.trainables.settings import HOW_LOGITS_ARE_KEPT

FORMAT = "kdstudy logits 1"
PLAIN = "train"


@dataclass(frozen=True)
class LogitsFile:
    """An open logits file that fits the study."""

    path: Path
    count: int  # of views
    labels: np.ndarray  # of the validation images, (N_validation,)

    def _read(self, name: str) -> np.ndarray:
        with safe_open(self.path, framework="np") as file:
            return file.get_tensor(name)

    def views(self, view_seed: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the logits of the labelled images, (V, N, C) fp16, and of the unlabelled ones, (V, U, C) fp16 or None.
        """
        with safe_open(self.path, framework="np") as file:
            names = set(file.keys())
        if f"views.{view_seed}" not in names:
            labelled = np.repeat(self._read(PLAIN)[None].astype(np.float16), self.count, 0)
        else:
            labelled = self._read(f"views.{view_seed}")[: self.count]
        unlabelled = f"unlabelled.{view_seed}"
        return labelled, self._read(unlabelled)[: self.count] if unlabelled in names else None

    @cached_property
    def validation(self) -> np.ndarray:
        return self._read("validation")

    @cached_property
    def test(self) -> np.ndarray:
        return self._read("test")

    @property
    def accuracy(self) -> float:
        """The teacher's accuracy on the validation images, 0 to 1."""
        return float((self.validation == self.labels).mean())


def read(path: Path, context: Context) -> LogitsFile:
    """Open a file and check that it fits a study's images. Raises ValueError with the first problem."""
    if not path.is_file():
        raise ValueError("the file does not exist")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            slices = {name: file.get_slice(name) for name in list(file.keys())}
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            kinds = {name: part.get_dtype() for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"it is not a safetensors file: {error}") from None
    if metadata.get("format") != FORMAT:
        raise ValueError(f"its metadata lack format = {FORMAT!r}; write one with `kdstudy logits STUDY OUT`")
    for name, kind in kinds.items():
        if kind not in ("I64", "I32", "F16", "F32", "F64") or kind.startswith("I") != (name == "validation"):
            raise ValueError(f"its {name} are {kind}; logits must be F16, and validation predictions I64")
    try:
        for problem in _problems(context, metadata, shapes):
            raise ValueError(problem)
    except (AttributeError, RecursionError):
        raise ValueError("its metadata are not those of a logits file") from None
    return LogitsFile(path, context.config.view_count, context.splits.validation.labels)


def _problems(context: Context, metadata: dict[str, str], shapes: dict[str, tuple[int, ...]]) -> Iterator[str]:
    splits, count, classes = context.splits, context.config.view_count, len(context.splits.class_names)
    if json.loads(metadata.get("classes", "[]")) != list(splits.class_names):
        yield "its classes, or their order, differ from those of the data"
    digests = json.loads(metadata.get("images", "{}"))
    for name in [name for name in context.image_hashes if name != "train"]:
        if digests.get(name) != context.image_hashes[name]:
            yield f"its {name.replace('_', ' ')} images are not this study's; use the same data settings"
    plain = PLAIN in shapes and not context.augments
    if not plain and json.loads(metadata.get("views", "null")) != view_settings(context):
        yield f"its views are {metadata.get('views')}, not this study's; use the same settings in [views]"
    for seed in context.view_seeds:
        name, images = f"views.{seed}", len(splits.student_train)
        if splits.unlabelled is not None:
            needed, found = (count, len(splits.unlabelled), classes), shapes.get(f"unlabelled.{seed}")
            if found is None:
                yield "it has no logits for the unlabelled images; set data.unlabelled = 0"
            elif len(found) != 3 or found[0] < count or found[1:] != needed[1:]:
                yield f"its unlabelled.{seed} are {found}, but {needed} are needed"
        if name not in shapes and plain:
            continue
        if name not in shapes:
            yield (f"it has no logits for view seed {seed}; it was written for fewer confirmation seeds, or another "
                   "study seed: make confirm.seeds smaller, or write a file with more")
        elif len(shapes[name]) != 3 or shapes[name][0] < count or shapes[name][1:] != (images, classes):
            yield f"its {name} are {shapes[name]}, but {(count, images, classes)} are needed"
    for name, shape in (("validation", (len(splits.validation),)), ("test", (len(splits.test), classes))):
        if shapes.get(name) != shape:
            yield f"its {name} are {shapes.get(name)}, but {shape} are needed"


def view_settings(context: Context) -> dict[str, Any]:
    """The augmentation as JSON values: the four oldest settings, and of the others those that are not the default."""
    views = context.config.views.written_out
    values = {name: getattr(views, name) for name in ("shift", "flip", "scale", "mixup")}
    return values | views.model_dump(mode="json", exclude={"count", *HOW_LOGITS_ARE_KEPT}, exclude_defaults=True)


def write(context: Context, out: Path, teacher: str | None = None) -> int:
    """Write the logits of a study's teacher to a file. Returns its size in bytes.

    teacher: the name of one of several; by default that of the study's answer. Raises UserError if the study has no
    such teacher, or no logits of it.
    """
    from kdstudy.analysis.study_files import StudyFiles

    _check_target(out)
    check_named(teacher, context.config.teacher_choice, context.folder)
    found = StudyFiles(context.folder)
    teacher = teacher or found.teacher
    name = stage_for("teacher_logits", teacher)
    done = found.done(name)
    if done is None:
        raise UserError(f"{context.folder} has no teacher logits yet; run `kdstudy run {context.folder} --until "
                        f"{name}` first")
    if not done["cached"]:
        raise UserError(f"{context.folder} keeps no teacher logits: {done['outcome']}; make views.cache_gib larger")
    if students.truncation(context):
        raise UserError(f"views.top_k = {context.config.views.top_k}: {context.folder} keeps not all of the teacher's "
                        "logits; run it in another folder without views.top_k")
    stage = found.stage(name)
    tensors = {"validation": files.read_array(stage / "validation.npy"), "test": found.teacher_logits(teacher)}
    for seed in done["view_seeds"]:
        for kind in ("views", "unlabelled"):
            if (path := stage / f"{kind}-{seed}.npy").exists():
                tensors[f"{kind}.{seed}"] = files.read_array(path)
    if not any(name.startswith("views.") for name in tensors):
        raise UserError(f"{context.folder} is a packed study, which has no teacher logits; write them from the "
                        "original study, or run it again with --dir")
    metadata = {"format": FORMAT, "teacher": (found.teacher_done(teacher) or {}).get("model", ""),
                "classes": json.dumps(list(context.splits.class_names)), "views": json.dumps(view_settings(context)),
                "images": json.dumps(context.image_hashes)}
    with files.written(out) as draft:
        save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, draft, metadata)
        draft.chmod(0o644)
    return out.stat().st_size


def _check_target(out: Path) -> None:
    """Raises UserError if `out` exists and is not a logits file, so that no other file is overwritten."""
    if out.suffix != ".safetensors":
        raise UserError(f"{out} must be a safetensors file; name it {out.with_suffix('.safetensors').name}")
    if out.exists():
        try:
            with safe_open(out, framework="np") as file:
                known = (file.metadata() or {}).get("format") == FORMAT
        except SafetensorError:
            known = False
        if not known:
            raise UserError(f"{out} exists and was not written by `kdstudy logits`; choose another name")
