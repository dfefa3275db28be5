"""Write a model into a folder, in one format or several, and prove that each is what the study tested."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdstudy.analysis.study_files import EXPORT_KEY_FILE, StudyFiles
from kdstudy.config.settings import StudyConfig
from kdstudy.errors import StudyFailedError, UserError
from kdstudy.export import calibration, card
from kdstudy.export.average import MeanOfLogits, average_weights, measure_batch_norm
from kdstudy.export.candidates import Candidate
from kdstudy.export.formats import DEFAULT, FORMAT
from kdstudy.export.formats.base import Deployable
from kdstudy.export.proof import TIES, prove
from kdstudy.store import files
from kdstudy.trainables import data, models
from kdstudy.trainables.device import default_device
from kdstudy.trainables.files import WEIGHTS
from kdstudy.trainables.models import Classifier
from kdstudy.trainables.paths import remove
from kdstudy.trainables.predictions import plain_logits

DETAILS = "export.json"


def export(config: StudyConfig, candidate: Candidate, target: Path,
           kinds: Sequence[str] = (DEFAULT,), *, folder: Path, calibrate: bool = False) -> dict[str, Any]:
    """Write a model, its card, and export.json, whose content it returns.

    kinds: names of formats. folder: of the study. calibrate: whether to scale its logits by a temperature that is
    fitted here. Raises UserError if the target is something else, a package is missing, the images are not those of the
    study or the model cannot be calibrated; StudyFailedError if the model does not repeat the recorded predictions, or
    a written file is not that model. In each case the target stays as it was.
    """
    if target.exists() and any(target.iterdir()) and not (target / EXPORT_KEY_FILE).exists():
        raise UserError(f"{target} is neither empty nor a kdstudy export; choose another folder")
    formats = [FORMAT[kind] for kind in kinds]
    for one in formats:
        one.check_installed()
    try:
        splits = data.load(config.data)
    except ValueError as error:
        raise UserError(str(error)) from None
    _check_images(config, splits, candidate.labels)
    deployable = _load(config, candidate, splits)
    logits = _logits_as_recorded(config, candidate, deployable)
    details = {"key": candidate.key, "formats": {}}
    if calibrate:
        scaling = calibration.scale(deployable, logits)
        logits, details["calibration"] = logits / scaling.temperature, scaling.as_dict()
    with _draft_of(target) as draft:
        draft.mkdir(parents=True)
        for one in formats:
            written = {name: {"bytes": (draft / name).stat().st_size, "sha256": _sha256(draft / name)}
                       for name in one.write(deployable, draft)}
            # A trial run is over in seconds; a process that imports torch would take as long again.
            proof = prove(draft, one, splits.test.images, splits.test.labels, logits, fresh_process=not config.smoke,
                          function=deployable.settings.model if models.is_function(deployable.settings.model) else None)
            details["formats"][one.name] = {"files": written, **proof.as_dict()}
        readme = card.whole(candidate.card, config, deployable, details, target.name, StudyFiles(folder))
        (draft / "README.md").write_text(readme, encoding="utf-8")
        files.write_json(draft / EXPORT_KEY_FILE, candidate.key)
        files.write_json(draft / DETAILS, details)
        for file in draft.iterdir():
            file.chmod(0o644)  # safetensors makes files private, but an export is meant to be shared
    return details


def _check_images(config: StudyConfig, splits: data.Splits, labels: np.ndarray) -> None:
    """See whether these are the images that the study was tested on. labels: those of then. Raises UserError."""
    if not np.array_equal(labels, splits.test.labels):
        raise UserError(f"data.source = {config.data.source!r} does not hold the images that the study was tested on: "
                        f"{len(splits.test)} test images of {len(splits.class_names)} classes, not {len(labels)} of "
                        f"{len(np.unique(labels))}; say where those images are with --set data.source=PATH")


def _load(config: StudyConfig, candidate: Candidate, splits: data.Splits) -> Deployable:
    settings, normalised = candidate.settings, candidate.normalised
    if not normalised:
        settings = models.with_measured(settings, splits.student_train)
    shape = {"classes": len(splits.class_names), "channels": splits.channels,
             "image_size": config.data.image_size or splits.image_size}
    models.check(settings, **shape)
    if normalised:
        models.check_normalisation(*normalised, splits.channels)

    def load(weights: Path) -> Classifier:
        model = models.build(settings, **shape, normalised=normalised)
        models.load_weights(model, weights)
        return model.eval()

    if candidate.average == "weights":
        with tempfile.TemporaryDirectory() as temporary:
            mean = Path(temporary) / WEIGHTS
            average_weights(candidate.weights, mean)
            model = load(mean)
        measure_batch_norm(model, splits.student_train)
    elif candidate.average == "logits":
        model = MeanOfLogits([load(weights) for weights in candidate.weights]).eval()
    else:
        model = load(*candidate.weights)
    return Deployable(model, settings, splits)


def _logits_as_recorded(config: StudyConfig, candidate: Candidate, deployable: Deployable) -> np.ndarray:
    """The model's logits (N, classes) for the test images. Raises StudyFailedError if it is not right about the images
    about which the study recorded that it is."""
    test, correct = deployable.splits.test, candidate.correct
    logits = plain_logits(deployable.model.to(default_device()), test).cpu().numpy()
    deployable.model.cpu()
    again = logits.argmax(1) == test.labels
    # On the device that trained it every prediction is the same; elsewhere, rounding may change ties.
    if correct is not None and (again != correct).sum() > max(1, TIES * len(correct)):
        raise StudyFailedError("the exported model does not reproduce its recorded test predictions: "
                               f"{100 * again.mean():.2f} % right instead of {100 * correct.mean():.2f} %; are the "
                               f"images of data.source = {config.data.source!r} the same?")
    return logits


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _draft_of(target: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces the target if there is no error."""
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    remove(draft, draft.parent)
    try:
        yield draft
        remove(target, target.parent)
        draft.rename(target)
    finally:
        remove(draft, draft.parent, if_possible=True)
