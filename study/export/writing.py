"""Write a model into a folder, in one format or several, and prove that each is what the study tested."""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from kdstudy.analysis.study_files import EXPORT_KEY_FILE, StudyFiles
from kdstudy.config.settings import StudyConfig
from kdstudy.errors import StudyFailedError, UserError
from kdstudy.export import calibration, card, proof
from kdstudy.export.average import MeanOfLogits, average_weights, measure_batch_norm
from kdstudy.export.candidates import Candidate
from kdstudy.export.choices import DEFAULT
from kdstudy.export.details import CARD, DETAILS, PROBES, SETTINGS, identity, origin, settings_text
from kdstudy.export.formats import FORMATS
from kdstudy.export.formats.base import Deployable, Format
from kdstudy.export.proof import TIES
from kdstudy.store import files
from kdstudy.trainables import data, models
from kdstudy.trainables.files import WEIGHTS
from kdstudy.trainables.models import Classifier
from kdstudy.trainables.paths import remove


def export(config: StudyConfig, candidate: Candidate, target: Path, kinds: Sequence[str] = (DEFAULT,), *,
           folder: Path, resizes: bool = False, calibrate: bool = False) -> dict[str, Any]:
    """Write a model, its card, and export.json, whose content it returns.

    kinds: names of formats. folder: of the study. resizes: whether graphs resize images themselves. calibrate: whether
    to scale its logits by a temperature that is fitted here. Raises UserError if the target is something else, a
    package is missing, the images are not those of the study or the model cannot be calibrated; StudyFailedError if the
    model does not repeat the recorded predictions, cannot be written in a format, or a written file is not that model.
    In each case the target stays as it was.
    """
    if not target.name or target.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise UserError(f"{target} is the current folder, or one around it, which an export would replace; name "
                        "another, or work from elsewhere")
    if target.exists() and any(target.iterdir()) and not (target / EXPORT_KEY_FILE).exists():
        raise UserError(f"{target} is neither empty nor a kdstudy export; choose another folder")
    if others := _not_written_here(target):
        raise UserError(f"{target} also holds {others[0]!r}, which kdstudy did not write and would delete; move it "
                        "away, or choose another folder")
    formats = [one for one in FORMATS if one.name in kinds]
    for one in formats:
        one.check_installed()
    try:
        splits = data.load(config.data)
    except ValueError as error:
        raise UserError(str(error)) from None
    _check_images(config, splits, candidate.labels)
    deployable = _load(config, candidate, splits, resizes)
    logits = _logits_as_recorded(config, candidate, deployable)
    details: dict[str, Any] = {"key": candidate.key}
    if calibrate:
        scaling = calibration.scale(deployable, logits)
        logits, details["calibration"] = logits / scaling.temperature, scaling.as_dict()
    with _draft_of(target) as draft:
        draft.mkdir(parents=True)
        # A trial run is over in seconds; a process that imports torch would take as long again. And a function of the
        # user's own is known to be found in this process, and may import kdstudy.
        fresh = not (config.smoke or models.is_function(deployable.settings.model))
        details["formats"] = _write_formats(formats, deployable, logits, draft, fresh_process=fresh)
        details |= origin(config, candidate, deployable, formats, folder)
        readme = card.whole(candidate.card, config, deployable, details, target.name, StudyFiles(folder))
        (draft / CARD).write_text(readme, encoding="utf-8")
        (draft / SETTINGS).write_text(settings_text(config), encoding="utf-8")
        files.write_json(draft / EXPORT_KEY_FILE, candidate.key)
        # The card is for its owner to edit.
        details["files"] = {name: identity(draft / name) for name in (SETTINGS, EXPORT_KEY_FILE, PROBES)}
        files.write_json(draft / DETAILS, details)
        for file in draft.iterdir():
            file.chmod(0o644)  # safetensors makes files private, but an export is meant to be shared
    return details


def _write_formats(formats: Sequence[Format], deployable: Deployable, logits: np.ndarray, draft: Path,
                   fresh_process: bool) -> dict[str, dict[str, Any]]:
    """Write the files of each format and prove them, and keep each one's logits for the probes. logits: (N, classes),
    of the study's model for the test images. Returns the files and the proof of each format."""
    test, model, written, probed = deployable.splits.test, deployable.settings.model, {}, {}
    probes = proof.probes(*test.images.shape[1:3])
    for one in formats:
        names = one.write(deployable, draft)
        own, probed[one.name] = proof.run(draft, one.name, [test.images, probes], fresh_process=fresh_process,
                                          function=model if models.is_function(model) else None)
        found = proof.compare(one, own, test.labels, logits, fresh_process).as_dict()
        if one.source:
            found |= {"of": one.source, "lost_points": 100 * (written[one.source]["accuracy"] - found["accuracy"])}
        written[one.name] = {"files": {name: identity(draft / name) for name in names}, **found}
    save_file(probed, draft / PROBES)
    return written


def _not_written_here(target: Path) -> list[str]:
    """What lies in an earlier export besides what kdstudy wrote there, such as a repository's .git."""
    if not target.exists():
        return []
    details = files.read_json(target / DETAILS)
    listed = [details, *details["formats"].values()] if isinstance(details, dict) and "formats" in details else []
    known = {CARD, DETAILS, EXPORT_KEY_FILE, "model.safetensors", "config.json",
             *(name for one in listed for name in one.get("files", {}))}
    return sorted({path.name for path in target.iterdir()} - known)


def _check_images(config: StudyConfig, splits: data.Splits, labels: np.ndarray) -> None:
    """See whether these are the images that the study was tested on. labels: those of then. Raises UserError."""
    if not np.array_equal(labels, splits.test.labels):
        raise UserError(f"data.source = {config.data.source!r} does not hold the images that the study was tested on: "
                        f"{len(splits.test)} test images of {len(splits.class_names)} classes, not {len(labels)} of "
                        f"{len(np.unique(labels))}; say where those images are with --set data.source=PATH")


def _load(config: StudyConfig, candidate: Candidate, splits: data.Splits, resizes: bool) -> Deployable:
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
            averaged = average_weights(candidate.weights, mean)
            model = load(mean)
        measure_batch_norm(model, splits.student_train, averaged)
    elif candidate.average == "logits":
        model = MeanOfLogits([load(weights) for weights in candidate.weights]).eval()
    else:
        model = load(*candidate.weights)
    return Deployable(model, settings, splits, resizes, bool(config.data.stretch))


def _logits_as_recorded(config: StudyConfig, candidate: Candidate, deployable: Deployable) -> np.ndarray:
    """The model's logits (N, classes) for the test images. Raises StudyFailedError if it is not right about the images
    about which the study recorded that it is."""
    test, correct = deployable.splits.test, candidate.correct
    logits = deployable.logits(test)
    again = logits.argmax(1) == test.labels
    # On the device that trained it every prediction is the same; elsewhere, rounding may change ties.
    if correct is not None and (again != correct).sum() > max(1, TIES * len(correct)):
        raise StudyFailedError("the exported model does not reproduce its recorded test predictions: "
                               f"{100 * again.mean():.2f} % right instead of {100 * correct.mean():.2f} %; are the "
                               f"images of data.source = {config.data.source!r} the same?")
    return logits


@contextlib.contextmanager
def _draft_of(target: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces the target if there is no error."""
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    earlier = target.with_name(f".{target.name}.earlier")
    remove(draft, draft.parent)
    _restore(earlier, target)  # of a process that was killed
    try:
        yield draft
        if target.exists():
            target.rename(earlier)  # not removed first, so that a kill in between loses neither
        draft.rename(target)
    finally:
        remove(draft, draft.parent, if_possible=True)
        _restore(earlier, target)


def _restore(earlier: Path, target: Path) -> None:
    """Put an earlier export back where nothing has taken its place, or remove it."""
    if earlier.exists() and not target.exists():
        earlier.rename(target)
    remove(earlier, earlier.parent, if_possible=True)
