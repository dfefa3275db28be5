"""The Python API, for notebooks and scripts: load, plan, run and open studies."""

from __future__ import annotations

import contextlib
import html
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from rich.console import Console

from kdstudy.analysis import frames, report
from kdstudy.analysis.study_analysis import StudyAnalysis
from kdstudy.config.load import STUDY_FILE, is_own_file, load_study, load_values, values_named
from kdstudy.config.permission import Named, functions_allowed
from kdstudy.config.settings import StudyConfig
from kdstudy.errors import UserError
from kdstudy.stages.order import NAMES, STAGE_FILES, names
from kdstudy.store import check
from kdstudy.store.storage import Storage
from kdstudy.study import Study
from kdstudy.trainables import functions
from kdstudy.watch.console import make_console
from kdstudy.watch.display import Display

_named = Named()  # by calls of `load` in this process
Settings = StudyConfig | str | Path | Mapping[str, Any]
Location = str | Path | Storage | None


def load(study: Settings, *, smoke: bool = False, trust: bool = False, **changes: Any) -> StudyConfig:
    """Load and validate the settings of a study.

    study: a preset's name, a TOML file, the folder or URI of a study, a dict of sections, or settings. smoke: shrink
    the study to a few short trials. trust: accept the functions and hosts that a study folder names, even if the
    folder comes from someone else. changes: settings to override, such as `train={"epochs": 3}` or `seed=1`.

    Raises UserError with one line that names the setting and the remedy.
    """
    _named.add(changes)
    if isinstance(study, StudyConfig):
        source: object = "the settings"  # they may come from an open study
        settings = load_values(study.to_values(), changes, smoke)
    elif isinstance(study, Mapping):
        source = "the dict"
        _named.add(study)
        settings = load_values(study, changes, smoke)
    else:
        source, path = study, _local(str(study))
        if is_own_file(path):
            _named.add(values_named(path, ()))
        settings = load_values(path, changes, smoke)
    if trust:
        _named.add(settings.to_values())
    _allowed(settings, source)
    return settings


def _local(study: str) -> str:
    """A study's name, file or folder; for a URI the local copy, brought up to date."""
    if "://" not in study:
        return study
    storage = Storage.of(study)
    storage.refresh()
    return str(storage.folder)


def _allowed(settings: StudyConfig, source: object) -> set[str]:
    """The functions that may be called for a study. Raises UserError where its settings name others, or hosts to
    contact, that neither the caller has named nor `load` was told to trust."""
    return functions_allowed(settings, _named, source, trust=False, remedy="give trust=True to kdstudy.load")


@contextlib.contextmanager
def _only_named(settings: StudyConfig) -> Iterator[None]:
    """As with the commands, no other function is called meanwhile."""
    with functions.only_allowed():
        functions.allow(_allowed(settings, "the settings"))
        yield


def plan(settings: Settings, folder: Location = None, *, measure: bool = False, gpus: int | None = None,
         tflops: float = 40.0, address: str | None = None, console: Console | None = None) -> pd.DataFrame:
    """Print what a study will do and cost, without starting it.

    folder: study folder or URI, existing or not. measure: time a few training steps on this machine. gpus: estimate
    for this many GPUs, each sustaining `tflops` TFLOP/s. address: a running Ray cluster.

    Returns one row per stage: runs, protected (runs that are never stopped early), epochs (per run), images (per
    epoch), flop_per_image, seconds_per_epoch (NaN where unknown), done. Raises UserError where the study cannot run.
    """
    from kdstudy.planning.plan import show_plan  # imports Ray and torch

    study = _study(settings, folder)
    with _only_named(study.config):
        plans = show_plan(study, console or make_console(), measure, gpus, tflops, address)
    return pd.DataFrame([
        {"stage": one.name, "runs": one.load.runs, "protected": one.load.protected, "epochs": one.load.epochs,
         "images": one.load.images, "flop_per_image": one.flop_per_image, "seconds_per_epoch": one.seconds,
         "done": one.done} for one in plans])


def run(settings: Settings, folder: Location = None, *, until: str = NAMES[-1], address: str | None = None,
        console: Console | None = None) -> OpenStudy:
    """Run or resume a study. Finished work is never repeated.

    folder: study folder or URI; default `studies/NAME`. until: the stage after which to stop. address: a running Ray
    cluster; by default RAY_ADDRESS, else this machine. If this process has already started Ray, that instance is used
    and left running.

    Raises UserError, StudyFailedError, InterruptedStudyError.
    """
    from kdstudy import driver  # imports Ray and torch

    study = _study(settings, folder)
    with _only_named(study.config):
        driver.run(study, Display(console or make_console(), names(study.config)), until=until, address=address)
    return OpenStudy(study.storage)


def open(folder: str | Path) -> OpenStudy:
    """Open a started study by folder or URI, running or not. Raises UserError where there is none."""
    storage = Storage.of(folder)
    storage.refresh()
    if not (storage.folder / STUDY_FILE).is_file():
        raise UserError(f"{storage} is not a study folder: it has no {STUDY_FILE}")
    check.check(storage.folder, STAGE_FILES)
    return OpenStudy(storage)


def _study(settings: Settings, folder: Location) -> Study:
    config = settings if isinstance(settings, StudyConfig) else load(settings)
    begun = isinstance(settings, str | Path) and ("://" in str(settings) or Path(settings).is_dir())
    storage = Storage.of(folder if folder is not None else settings if begun else Path("studies") / config.name)
    storage.refresh()
    check.check(storage.folder, STAGE_FILES)
    return Study(config, storage)


@dataclass(frozen=True)
class OpenStudy:
    """A started study, for reading. Values are cached on first access; call `kdstudy.open` again to see updates."""

    storage: Storage

    @property
    def folder(self) -> Path:
        """The study folder or, for a URI, the local copy of it."""
        return self.storage.folder

    @cached_property
    def settings(self) -> StudyConfig:
        return load_study(str(self.folder))

    @cached_property
    def _analysis(self) -> StudyAnalysis:
        return StudyAnalysis.of(self.folder)

    @cached_property
    def trials(self) -> pd.DataFrame:
        """One row per trial of every stage; see `kdstudy.analysis.frames.trials`."""
        return frames.trials(self._analysis)

    @cached_property
    def curves(self) -> pd.DataFrame:
        """One row per report of every trial; see `kdstudy.analysis.frames.curves`."""
        return frames.curves(self._analysis)

    @cached_property
    def results(self) -> pd.DataFrame:
        """The results table, one row per configuration; see `kdstudy.analysis.frames.results`."""
        return frames.results(self._analysis)

    @property
    def verdict(self) -> str | None:
        """One sentence on whether distillation helps, or None before the confirmation is done."""
        return self._analysis.outcome["verdict"] if self._analysis.study.confirmation is not None else None

    @property
    def figures(self) -> list[str]:
        """The names of the report's figures for which there are results."""
        return list(report.figures(self._analysis))

    def figure(self, name: str) -> go.Figure:
        """Return a figure of the report. Raises KeyError where the name is unknown or has no results yet."""
        if name not in report.FIGURES:
            raise KeyError(f"there is no figure {name!r}; the figures are {', '.join(report.FIGURES)}")
        try:
            return report.figure(self._analysis, name)
        except ValueError as error:
            raise KeyError(str(error)) from None

    def __repr__(self) -> str:
        return f"<study {self.settings.name} at {self.storage}: {self.verdict or 'no verdict yet'}>"

    def _repr_html_(self) -> str:
        """The verdict and the results table, for notebooks."""
        verdict = html.escape(self.verdict or f"{self.settings.name}: no verdict yet")
        return f"<p><strong>{verdict}</strong></p>{self.results.to_html(index=False, na_rep='')}"
