"""What the launchers share: checks before submission, and the files that a job needs."""

from __future__ import annotations

import datetime
import importlib.metadata
import shutil
import site
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

from kdstudy import analysis, trainables
from kdstudy.config.load import STUDY_FILE
from kdstudy.config.series import Series, studies_of
from kdstudy.config.settings import StudyConfig, own_functions
from kdstudy.errors import UserError
from kdstudy.store.object_store import PACKAGES
from kdstudy.store.storage import Storage
from kdstudy.trainables import functions
from kdstudy.trainables.sources import NAMES

OURS = Path(__file__).resolve().parents[1]
PARTS = (trainables, analysis)  # packages of kdstudy whose folders may be elsewhere in a source checkout
ABSOLUTE = "the cluster reads it, not this machine: give an absolute path there, or a URI"


def check_location(location: str) -> None:
    """Check that all nodes can resolve a study's location: an absolute path or a URI. Raises UserError."""
    if not location:
        raise UserError("--dir is needed: the absolute path of a folder that all nodes share, or a URI such as "
                        "s3://BUCKET/studies/NAME")
    if not _is_absolute(location):
        raise UserError(f"--dir {location} is relative; {ABSOLUTE}")
    Storage.of(location)


def check_paths(config: StudyConfig | Series) -> None:
    """Check that all nodes can resolve the files that the settings name. Raises UserError."""
    config = studies_of(config)[0]  # the studies of a series differ in a number alone
    named = {"search.warm_start": config.search.warm_start, "student.pretrained": config.student.pretrained,
             "watch.mlflow": config.watch.mlflow,
             "data.source": None if config.data.source in NAMES else config.data.source}
    for section, teacher in config.used_teachers.items():
        named |= {f"{section}.logits": teacher.logits, f"{section}.pretrained": teacher.pretrained}
        named |= {f"{section}.trained.{number}": folder for number, folder in enumerate(teacher.trained or ())}
    for setting, path in named.items():
        if isinstance(path, str) and path and not _is_absolute(path):
            raise UserError(f"{setting} = {path!r} is relative; {ABSOLUTE}")


def _is_absolute(path: str) -> bool:
    return "://" in path or path.startswith("~") or Path(path).is_absolute()


def job_name(config: StudyConfig | Series) -> str:
    """Return a unique job name that contains the study's name and the time."""
    return f"kdstudy-{config.name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


# -- the user's own functions -----------------------------------------------------------------------------------------


def own_modules(config: StudyConfig | Series) -> list[Path]:
    """Return the files and package folders that define the functions named in the settings, together with modules that
    they import from the same folder. Installed packages are left out. Imports torch if there are any functions.

    Raises UserError if a function cannot be imported here.
    """
    found: set[Path] = set()
    for setting, function in own_functions(studies_of(config)[0]).items():
        try:
            functions.source_file(function, setting)
        except ValueError as error:
            raise UserError(str(error)) from None
        if (own := _top_level(function.split(":")[0])) is not None:
            found |= _modules_in(own.parent)
    return sorted(found)


def _modules_in(folder: Path) -> set[Path]:
    """Return the top-level files and folders of all imported modules in `folder`, except kdstudy itself."""
    tops = {_top_level(name) for name in tuple(sys.modules) if name.split(".")[0] not in ("kdstudy", "__main__")}
    return {top for top in tops if top is not None and top.parent == folder}


def _top_level(module: str) -> Path | None:
    """Return the top-level file or folder of an imported module, or None if it is built in or installed."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None or _is_installed(Path(file)):
        return None
    path = Path(file).resolve()
    depth = module.count(".") + (path.name == "__init__.py")
    return path.parents[depth - 1] if depth else path


def _is_installed(file: Path) -> bool:
    paths = sysconfig.get_paths()
    folders = {paths["purelib"], paths["platlib"], paths["stdlib"], *site.getsitepackages(), site.getusersitepackages()}
    return any(file.resolve().is_relative_to(Path(folder).resolve()) for folder in folders)


# -- files for the job ------------------------------------------------------------------------------------------------


def write_working_dir(config: StudyConfig | Series, folder: Path) -> None:
    """Fill a folder so that `python -m kdstudy run study.toml` works in it without kdstudy being installed: with a copy
    of this package, the settings and the user's own modules. Raises UserError."""
    copy_package(folder)
    for path in own_modules(config):
        if path.is_dir():
            shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(path, folder / path.name)
    (folder / STUDY_FILE).write_text(config.to_toml(), encoding="utf-8")


def copy_package(folder: Path) -> None:
    """Copy this package to a folder so that it can be imported there, without the presets' committed results."""
    names = [part.__name__.split(".")[1] for part in PARTS]
    left_out = shutil.ignore_patterns("__pycache__", "results", *names)
    shutil.copytree(OURS, folder / "kdstudy", ignore=left_out)
    for part, name in zip(PARTS, names, strict=True):
        shutil.copytree(_folder_of(part), folder / "kdstudy" / name, ignore=shutil.ignore_patterns("__pycache__"))


def _folder_of(package: ModuleType) -> Path:
    return Path(package.__file__).resolve().parent


def requirements(location: str) -> list[str]:
    """Return kdstudy's requirements, except Ray, which every node has, plus the package for the location's URI scheme.

    Raises UserError if kdstudy is not installed here, since the requirements are read from its installation.
    """
    from packaging.requirements import Requirement

    try:
        needed = importlib.metadata.requires("kdstudy") or []
    except importlib.metadata.PackageNotFoundError:
        raise UserError("--pip reads the requirements of an installed kdstudy; install it here too: pip install -e .",
                        ) from None
    extra = PACKAGES.get(location.split("://")[0], "")
    wanted = [requirement for requirement in map(Requirement, needed) if requirement.name != "ray"
              and (requirement.marker is None or requirement.marker.evaluate({"extra": extra}))]
    return [f"{requirement.name}{requirement.specifier}" for requirement in wanted]


def command(study_file: str, location: str, until: str | None, *more: str) -> list[str]:
    """Return the command line, as a list of words, that runs the study on the cluster."""
    return ["python", "-m", "kdstudy", "run", study_file, "--dir", location, *(("--until", until) if until else ()),
            *more]
