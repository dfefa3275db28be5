"""Check an export again, later and elsewhere: each file's hash, what each format computes for images that are the same
everywhere, and, with the data, how accurate it is.

An export may come from a stranger, so nothing of it is called, unpickled or fetched unless the user said so. The
hashes find damage; they are no signature, so they cannot expose someone who rewrote export.json too.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from kdstudy.analysis.study_files import EXPORT_KEY_FILE
from kdstudy.errors import StudyFailedError, UserError
from kdstudy.export import proof
from kdstudy.export.details import CARD, DETAILS, PROBES, SETTINGS, identity
from kdstudy.export.formats import FORMAT
from kdstudy.export.formats.base import Format
from kdstudy.store.fingerprints import hash_images
from kdstudy.trainables import data, functions
from kdstudy.trainables.images import ImageSet
from kdstudy.trainables.paths import is_inside_by_name, not_plain
from kdstudy.trainables.settings import MOST_PIXELS, DataSettings

LARGEST_DETAILS = 2**26  # bytes
QUANTISED_TIES = 0.02  # the share of images about which eight bits may be right on one processor and not on another


@dataclass(frozen=True)
class Checked:
    """What was found of a format.

    files: their names. largest_difference: of its logits for the probes from those at its export. accuracy, recorded:
    shares of the test images, now and at its export; accuracy is None without images.
    """

    name: str
    files: tuple[str, ...]
    largest_difference: float
    recorded: float
    accuracy: float | None = None


def verify(folder: Path, details: dict[str, Any], *, kinds: Sequence[str] = (), test: ImageSet | None = None,
           function: str | None = None, trust: bool = False) -> list[Checked]:
    """Run an export whose files are as they were. details: of its export.json, see `read`.

    kinds: the formats to run; all that it has by default. test: the images that it was tested on, see `test_images`.
    function: the only function that it may call. trust: whether its author is trusted.

    Raises UserError where it would run code that the user has not allowed; StudyFailedError, which names the file,
    where one does not compute what it computed at its export.
    """
    if function is not None:
        _check_function(function)
    formats = _formats(folder, details, kinds)
    for one in formats:
        one.check_installed()
        one.check_received(folder, function, trust)
    probed = _probed(folder, details)
    return [_run(folder, one, details, probed, test, function) for one in formats]


def read(folder: Path) -> dict[str, Any]:
    """Read export.json, and compare all files with the hashes in it. Returns its content.

    Raises UserError where the folder is no export; StudyFailedError, which names the file, where one is not as it was
    exported."""
    path = folder / DETAILS
    if not path.is_file():
        remedy = ("; it was exported by an earlier version: export it again" if (folder / EXPORT_KEY_FILE).is_file()
                  else "; name the folder that `kdstudy export` wrote")
        raise UserError(f"{folder} holds no {DETAILS}{remedy}")
    if (other := not_plain(folder)) is not None:
        raise StudyFailedError(f"{other} is neither a file nor a folder; an export holds no links")
    try:
        if path.stat().st_size > LARGEST_DETAILS:
            raise ValueError
        details = json.loads(path.read_text(encoding="utf-8"))
        _check_shape(details)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise StudyFailedError(f"{path} is damaged or not what kdstudy writes") from None
    _check_files(folder, details)
    return details


def unlisted(folder: Path, details: dict[str, Any]) -> list[str]:
    """What an export holds beside its card and the files whose hashes it lists: nothing says where that came from."""
    listed = {DETAILS, CARD, *(name for one in (*details["formats"].values(), details) for name in one["files"])}
    return sorted({path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - listed)


def _check_shape(details: dict[str, Any]) -> None:
    """Raises one of several errors unless export.json has what is read of it, of the right kinds."""
    for one in (details, *details["formats"].values()):
        for name, about in one["files"].items():
            if not is_inside_by_name(name) or not isinstance(about["sha256"], str) or not about["bytes"] >= 0:
                raise ValueError(name)
    for found in details["formats"].values():
        if not (0 <= found["accuracy"] <= 1 and found["images"] > 0 and found["files"]):
            raise ValueError
    if not {SETTINGS, PROBES} <= set(details["files"]) or not details["formats"]:
        raise ValueError
    channels, size = (details["preprocessing"][name] for name in ("channels", "stored_size"))
    if not (type(channels) is type(size) is int and channels in (1, 3) and 0 < size <= MOST_PIXELS):
        raise ValueError
    if not (isinstance(details["classes"], list) and details["classes"] and isinstance(details["data"]["test"], str)
            and all(isinstance(name, str) for name in details["classes"])):
        raise ValueError


def _formats(folder: Path, details: dict[str, Any], kinds: Sequence[str]) -> list[Format]:
    if unknown := [name for name in details["formats"] if name not in FORMAT]:
        raise UserError(f"{folder} holds the format {unknown[0]!r}, which this version of kdstudy does not know")
    if missing := [name for name in kinds if name not in details["formats"]]:
        raise UserError(f"--format {missing[0]}: {folder} holds {', '.join(details['formats'])}")
    return [FORMAT[name] for name in details["formats"] if not kinds or name in kinds]


def _check_function(function: str) -> None:
    try:
        functions.check_kind(function, "--function")
    except ValueError as error:
        raise UserError(str(error)) from None


def _check_files(folder: Path, details: dict[str, Any]) -> None:
    """Raises StudyFailedError that names the first file that is missing or not as it was exported."""
    wanted = {name: about for one in (*details["formats"].values(), details) for name, about in one["files"].items()}
    for name, about in wanted.items():
        path = folder / name
        if not path.is_file():
            raise StudyFailedError(f"{path} is missing; copy it again from where the export was made")
        found = identity(path)
        if found["bytes"] != about["bytes"]:
            raise StudyFailedError(f"{path} is not the file that was exported: it has {found['bytes']} bytes, not "
                                   f"{about['bytes']}; copy it again")
        if found["sha256"] != about["sha256"]:
            raise StudyFailedError(f"{path} is not the file that was exported: its SHA-256 is "
                                   f"{found['sha256'][:12]}…, not {about['sha256'][:12]}…; copy it again")


def _probed(folder: Path, details: dict[str, Any]) -> dict[str, np.ndarray]:
    """Each format's logits (PROBES, classes) for the probes, at its export. Raises StudyFailedError."""
    shape = proof.PROBES, len(details["classes"])
    try:
        probed = load_file(folder / PROBES)
    except Exception as error:  # of many kinds
        raise StudyFailedError(f"{folder / PROBES} cannot be read: {type(error).__name__}") from None
    for name in details["formats"]:
        if name not in probed or probed[name].shape != shape or not np.isfinite(probed[name]).all():
            raise StudyFailedError(f"{folder / PROBES} does not hold the logits of {name} for {shape[0]} images of "
                                   f"{shape[1]} classes")
    return probed


def _run(folder: Path, one: Format, details: dict[str, Any], probed: dict[str, np.ndarray], test: ImageSet | None,
         function: str | None) -> Checked:
    found, inputs = details["formats"][one.name], details["preprocessing"]
    names = tuple(found["files"])
    images = [proof.probes(inputs["channels"], inputs["stored_size"]), *([test.images] if test is not None else [])]
    try:
        logits, *tested = proof.run(folder, one.name, images, function=function)
    except StudyFailedError as error:
        raise StudyFailedError(f"{folder / names[0]}: {error}") from None
    before, allowed = probed[one.name], one.repeats * float(np.std(probed[one.name]))
    if logits.shape != before.shape or not np.abs(logits - before).max() <= allowed:
        raise StudyFailedError(f"{folder / names[0]} is not the model that was exported: its logits for {proof.PROBES} "
                               "images differ from those then by more than rounding")
    difference = float(np.abs(logits - before).max())
    if test is None:
        return Checked(one.name, names, difference, found["accuracy"])
    accuracy = float((tested[0].argmax(1) == test.labels).mean())
    ties = proof.TIES if one.largest_difference is not None else QUANTISED_TIES
    if abs(accuracy - found["accuracy"]) * len(test) > max(1, ties * len(test)):
        raise StudyFailedError(f"{folder / names[0]} is not the model that was exported: it is right about "
                               f"{100 * accuracy:.2f} % of the test images, not {100 * found['accuracy']:.2f} %")
    return Checked(one.name, names, difference, found["accuracy"], accuracy)


def test_images(settings: DataSettings, details: dict[str, Any]) -> ImageSet:
    """The test images of these settings. Raises UserError unless they are those that the export was tested on."""
    try:
        splits = data.load(settings)
    except ValueError as error:
        raise UserError(str(error)) from None
    if hash_images(splits.test) != details["data"]["test"]:
        raise UserError(f"the {len(splits.test)} test images of data.source = {settings.source!r} are not the "
                        f"{next(iter(details['formats'].values()))['images']} that the export was tested on; name the "
                        "study, or set data.source and the other settings in [data] to its own")
    return splits.test
