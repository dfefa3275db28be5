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
from kdstudy.analysis import series as series_page
from kdstudy.analysis.study_analysis import StudyAnalysis
from kdstudy.config.load import STUDY_FILE, is_own_file, load_study, load_values, values_named
from kdstudy.config.permission import Named, functions_allowed
from kdstudy.config.series import Series, studies_of
from kdstudy.config.settings import StudyConfig
from kdstudy.errors import UserError
from kdstudy.series.folder import SeriesFolder, check_single
from kdstudy.stages.order import NAMES, STAGE_FILES, names
from kdstudy.store import check
from kdstudy.store.storage import Storage
from kdstudy.study import Study
from kdstudy.trainables import functions
from kdstudy.watch.console import make_console
from kdstudy.watch.display import Display

_named = Named()  # by calls of `load` in this process
Settings = StudyConfig | Series | str | Path | Mapping[str, Any]
Location = str | Path | Storage | None


def load(study: Settings, *, smoke: bool = False, trust: bool = False, **changes: Any) -> StudyConfig | Series:
    """Load and validate the settings of a study, or of a series of studies where train.epochs, data.student_images or
    teacher.epochs is a list.

    study: a preset's name, a TOML file, the folder or URI of a study, a dict of sections, or settings. smoke: shrink
    the study to a few short trials. trust: accept the functions and hosts that a study folder names, even if the
    folder comes from someone else. changes: settings to override, such as `train={"epochs": 3}` or `seed=1`.

    Raises UserError with one line that names the setting and the remedy.
    """
    _named.add(changes)
    if isinstance(study, StudyConfig | Series):
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
    _allowed(studies_of(settings)[0], source)
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

    Returns one row per stage, of a series for each `member`: runs, protected (runs that are never stopped early),
    epochs (per run), images (per epoch), flop_per_image, seconds_per_epoch (NaN where unknown), done. Raises UserError
    where the study cannot run.
    """
    from kdstudy.planning.plan import show_plan  # imports Ray and torch
    from kdstudy.series.plan import show_plan as show_series_plan  # likewise

    given = (measure, gpus, tflops, address)
    if isinstance(loaded := _loaded(settings), Series):
        series = _series(loaded, settings, folder)
        with _only_named(studies_of(loaded)[0]):
            members = show_series_plan(series, console or make_console(), *given)
        return pd.DataFrame([{"member": member.member.name, **_planned(one), "done": one.done or one.name in
                              member.shared} for member in members for one in member.plans])
    study = _study(loaded, settings, folder)
    with _only_named(study.config):
        plans = show_plan(study, console or make_console(), *given)
    return pd.DataFrame([_planned(one) for one in plans])


def _planned(one: Any) -> dict[str, Any]:
    """The row of a `kdstudy.planning.estimate.StagePlan`."""
    return {"stage": one.name, "runs": one.load.runs, "protected": one.load.protected, "epochs": one.load.epochs,
            "images": one.load.images, "flop_per_image": one.flop_per_image, "seconds_per_epoch": one.seconds,
            "done": one.done}


def run(settings: Settings, folder: Location = None, *, until: str = NAMES[-1], address: str | None = None,
        console: Console | None = None) -> OpenStudy | OpenSeries:
    """Run or resume a study, or the studies of a series one after the other. Finished work is never repeated.

    folder: study folder or URI; default `studies/NAME`. until: the stage after which to stop. address: a running Ray
    cluster; by default RAY_ADDRESS, else this machine. If this process has already started Ray, that instance is used
    and left running.

    Raises UserError, StudyFailedError, InterruptedStudyError.
    """
    from kdstudy import driver  # imports Ray and torch
    from kdstudy.series import run as running  # likewise

    if isinstance(loaded := _loaded(settings), Series):
        series = _series(loaded, settings, folder)
        with _only_named(studies_of(loaded)[0]):
            running.run(series, console or make_console(), until=until, address=address)
        return OpenSeries(series)
    study = _study(loaded, settings, folder)
    with _only_named(study.config):
        driver.run(study, Display(console or make_console(), names(study.config)), until=until, address=address)
    return OpenStudy(study.storage)


def open(folder: str | Path) -> OpenStudy | OpenSeries:
    """Open a started study, or a series of studies, by folder or URI, running or not. Raises UserError where there is
    none."""
    storage = Storage.of(folder)
    storage.refresh()
    if not (storage.folder / STUDY_FILE).is_file():
        raise UserError(f"{storage} is not a study folder: it has no {STUDY_FILE}")
    if (series := SeriesFolder.of(storage)) is not None:
        series.refresh()
        return OpenSeries(series)
    check.check(storage.folder, STAGE_FILES)
    return OpenStudy(storage)


def _loaded(settings: Settings) -> StudyConfig | Series:
    return settings if isinstance(settings, StudyConfig | Series) else load(settings)


def _storage(loaded: StudyConfig | Series, settings: Settings, folder: Location) -> Storage:
    begun = isinstance(settings, str | Path) and ("://" in str(settings) or Path(settings).is_dir())
    storage = Storage.of(folder if folder is not None else settings if begun else Path("studies") / loaded.name)
    storage.refresh()
    return storage


def _study(loaded: StudyConfig, settings: Settings, folder: Location) -> Study:
    storage = _storage(loaded, settings, folder)
    check_single(storage)
    check.check(storage.folder, STAGE_FILES)
    return Study(loaded, storage)


def _series(loaded: Series, settings: Settings, folder: Location) -> SeriesFolder:
    series = SeriesFolder(loaded, _storage(loaded, settings, folder))
    series.refresh()
    return series


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

    @cached_property
    def controls(self) -> pd.DataFrame:
        """One row per control, empty where there is none; see `kdstudy.analysis.frames.controls`."""
        return frames.controls(self._analysis)

    @cached_property
    def audit(self) -> pd.DataFrame:
        """One row per protocol of the audit, empty where there is none; see `kdstudy.analysis.frames.audit`."""
        return frames.audit(self._analysis)

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
            raise KeyError(f"there is no figure {name!r}; this study has {', '.join(self.figures) or 'none yet'}")
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


@dataclass(frozen=True)
class OpenSeries:
    """A series of studies, for reading. Values are cached on first access; call `kdstudy.open` again to see updates."""

    series: SeriesFolder

    @property
    def folder(self) -> Path:
        return self.series.storage.folder

    @property
    def settings(self) -> Series:
        return self.series.series

    @cached_property
    def members(self) -> dict[float, OpenStudy]:
        """The studies that have begun, by the value of the setting that the series varies."""
        return {member.value: OpenStudy(member.storage) for member in self.series.begun}

    @cached_property
    def _content(self) -> dict[str, Any]:
        return series_page.results(self.settings.name, self.settings.setting,
                                   {value: study.folder for value, study in self.members.items()},
                                   len(self.series.members))

    @cached_property
    def results(self) -> pd.DataFrame:
        """One row per study that has begun; see `kdstudy.analysis.frames.series`."""
        return frames.series(self._content)

    @property
    def verdict(self) -> str:
        """One sentence on whether the gain changes along the series."""
        return self._content["sentence"]

    @property
    def figures(self) -> list[str]:
        """The names of the figures for which there are results."""
        return list(series_page.figures(self._content))

    def figure(self, name: str) -> go.Figure:
        """Return a figure of the page: `gain` or `accuracy`. Raises KeyError where the name is unknown or has no
        results yet."""
        known = series_page.figures(self._content)
        if name not in known:
            raise KeyError(f"there is no figure {name!r}; the figures are {', '.join(known) or 'none yet'}")
        return known[name]

    def __repr__(self) -> str:
        return f"<series {self.settings.name} at {self.series.storage}: {self.verdict}>"

    def _repr_html_(self) -> str:
        """The sentence and the table, for notebooks."""
        return f"<p><strong>{html.escape(self.verdict)}</strong></p>{self.results.to_html(index=False, na_rep='')}"
