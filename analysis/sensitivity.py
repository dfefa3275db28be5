"""Which hyperparameter matters, told from a search that stopped most of its trials early.

Early stopping breaks the usual answers. A stopped trial's last value was reached on a smaller budget, so it says more
about how far the trial came than about its hyperparameters; and the trials that were not stopped are a selection. So
one Gaussian process is fitted to the reports of all trials, with the epoch as one more input, and read off at the full
budget only (`BudgetModel`). The protected trials of a search, which nobody may stop, anchor it there.

Everything is computed from draws of that process on a grid, so everything comes with an interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from kdstudy.analysis.budget_model import CONFIDENCE, BudgetModel, Dimension
from kdstudy.analysis.results import ARMS, StudyFiles

FEWEST_FULL = 4  # trials at the budget, below which nothing can be said
ENOUGH_PER_PARAMETER = 3  # trials at the budget, below which the intervals are too narrow
MOST_POINTS = 3400  # of the grid
NEAR_BEST = 5.0  # percentage points
EDGE = 0.05  # share of a range
TRUSTED_COVERAGE = 0.80
PREDICTIVE_RANKS = 0.5  # a rung whose rank correlation with the end is smaller does not predict it
LIMITS = {"alpha": (0, 1), "warmup": (0, 1)}  # beyond which no value means anything; 0 and no upper one for the others


def space_of(study: StudyFiles, arm: str) -> dict[str, Dimension]:
    """What is searched in an arm, `baseline` or `distill`."""
    searched = study.config.get("search", {})
    names = [name for name in study.parameter_names if isinstance(searched.get(name), dict)
             and (arm == "distill" or name not in ("temperature", "alpha"))]
    return {name: Dimension.of(name, searched[name]) for name in names}


# ---------------------------------------------------------------------------------------------------------------------
# The reports


def reports_of(study: StudyFiles, arm: str, space: dict[str, Dimension]) -> pd.DataFrame:
    """A row per report of an arm's search: trial, epoch, accuracy (0 to 1), protected, and the searched parameters."""
    curves = study.curves[(study.curves["stage"] == arm) & study.curves["validation_accuracy"].notna()
                          & (study.curves["decision"] != "failed")]
    trials = study.trials[study.trials["stage"] == arm]
    known = [name for name in space if name in trials.columns]
    merged = curves[["trial", "epoch", "validation_accuracy"]].merge(trials[["trial", "protected", *known]], on="trial")
    merged = merged.rename(columns={"validation_accuracy": "accuracy"}).assign(arm=arm)
    return merged.drop_duplicates(["trial", "epoch"], keep="last")


def with_baseline(distill: pd.DataFrame, baseline: pd.DataFrame, space: dict[str, Dimension]) -> pd.DataFrame:
    """The baseline is the distillation at alpha = 0, so its trials count too, where alpha has a linear range.

    The temperature means nothing there; the trials are spread over its range, so that the process can see that.
    """
    alpha = space.get("alpha")
    if alpha is None or alpha.kind != "linear" or baseline.empty:
        return distill
    added = baseline.assign(alpha=0.0, trial=baseline["trial"] + 1 + distill["trial"].max())
    if "temperature" in space:
        golden = (math.sqrt(5) - 1) / 2
        places = {trial: (index + 1) * golden % 1 for index, trial in enumerate(sorted(added["trial"].unique()))}
        added["temperature"] = space["temperature"].at(added["trial"].map(places).to_numpy())
    return pd.concat([distill, added], ignore_index=True)


def read_off_epoch(reports: pd.DataFrame, arm: str, budget: int) -> int | None:
    """The full budget, or, while too few of an arm's trials have come that far, the last epoch that enough have.

    None where there is no such epoch. Later ones than trials have come to are never guessed.
    """
    trials = reports[(reports["arm"] == arm) & (reports["epoch"] <= budget)].groupby("epoch")["trial"].nunique()
    enough = trials.index[trials >= FEWEST_FULL]
    return int(enough.max()) if len(enough) else None


# ---------------------------------------------------------------------------------------------------------------------
# What it says


@dataclass(frozen=True)
class Grid:
    """The searched space, read off at the budget. Accuracies in percent, on the axes in the order of the space."""

    axes: dict[str, list[Any]]
    weights: dict[str, np.ndarray]
    mean: np.ndarray  # (k1, ..., kd)
    draws: np.ndarray  # (k1, ..., kd, DRAWS)

    @classmethod
    def of(cls, model: BudgetModel, default: dict[str, Any]) -> Grid:
        axes = _axes(model.space, default)
        points = dict(zip(axes, _product(list(axes.values())), strict=True))
        mean, draws = model.draws(points)
        shape = tuple(map(len, axes.values()))
        weights = {name: dimension.weights(axes[name]) for name, dimension in model.space.items()}
        return cls(axes, weights, mean.reshape(shape), draws.reshape(*shape, -1))

    def along(self, names: Sequence[str], values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The weighted mean of `values` (k1, ..., kd, ...) over all axes but those of `names`."""
        others = tuple(index for index, name in enumerate(self.axes) if name not in names)
        weights = weights.reshape(*weights.shape, *[1] * (values.ndim - weights.ndim))
        total = weights.sum(others, keepdims=True)
        return (values * weights).sum(others, keepdims=True) / np.where(total > 0, total, 1)

    @cached_property
    def volume(self) -> np.ndarray:
        """The share of the space that each point stands for, (k1, ..., kd)."""
        volume = np.ones(())
        for weights in self.weights.values():
            volume = volume[..., None] * weights
        return volume

    def argmax(self, **fixed: int) -> tuple[int, ...]:
        """Indices of the best posterior mean, where some axes are held at an index."""
        index = tuple(fixed.get(name, slice(None)) for name in self.axes)
        found = iter(np.unravel_index(self.mean[index].argmax(), self.mean[index].shape))
        return tuple(fixed[name] if name in fixed else int(next(found)) for name in self.axes)

    def point(self, index: tuple[int, ...]) -> dict[str, Any]:
        return {name: axis[place] for (name, axis), place in zip(self.axes.items(), index, strict=True)}


def _axes(space: dict[str, Dimension], default: dict[str, Any]) -> dict[str, list[Any]]:
    """As many values per parameter as fit MOST_POINTS, evenly spread, with the default among them."""
    counts = {name: len(dimension.values) if dimension.kind == "choice" else 41 for name, dimension in space.items()}
    while math.prod(counts.values()) > MOST_POINTS:
        ranges = {name: count for name, count in counts.items() if space[name].kind != "choice" and count > 3}
        if not ranges:
            break
        counts[max(ranges, key=ranges.__getitem__)] -= 1
    return {name: dimension.axis(counts[name], default.get(name)) for name, dimension in space.items()}


def _product(axes: list[list[Any]]) -> list[list[Any]]:
    """Per axis, its value at every point of the grid, in the order of a flattened array."""
    places = np.indices(tuple(map(len, axes))).reshape(len(axes), -1)
    return [[axis[place] for place in row] for axis, row in zip(axes, places, strict=True)]


def main_effects(grid: Grid, near: float | None = None) -> pd.DataFrame:
    """The shares of the variance over the space that each parameter, and each pair beyond its two, explains.

    Columns parameter, other (None for a main effect), share, low, high; CONFIDENCE over the draws. Functional analysis
    of variance (Sobol 1993; Hutter, Hoos and Leyton-Brown 2014), uniform over the ranges on their own scales. With
    `near`, over the part of the space within so many points of the best.
    """
    weights = grid.volume if near is None else grid.volume * (grid.mean >= grid.mean.max() - near)
    weights = weights / weights.sum()

    def explained(names: Sequence[str]) -> np.ndarray:
        """The variance of the mean given these parameters, for each draw."""
        return _variance(grid.along(names, grid.draws, weights), grid, weights, names)

    total = np.maximum(_variance(grid.draws, grid, weights, list(grid.axes)), 1e-12)
    alone = {name: explained([name]) for name in grid.axes}
    rows = [(name, None, alone[name] / total) for name in grid.axes]
    names = list(grid.axes)
    if len(names) > 2:  # of two, the pair is simply what is left
        pairs = [(one, two) for index, one in enumerate(names) for two in names[index + 1:]]
        rows += [(one, two, np.maximum(explained([one, two]) - alone[one] - alone[two], 0) / total)
                 for one, two in pairs]
    elif len(names) == 2:
        rows.append((*names, np.maximum(total - alone[names[0]] - alone[names[1]], 0) / total))
    return pd.DataFrame([{"parameter": one, "other": two, "share": shares.mean(), **_bounds(shares)}
                         for one, two, shares in rows])


def _variance(values: np.ndarray, grid: Grid, weights: np.ndarray, names: Sequence[str]) -> np.ndarray:
    others = tuple(index for index, name in enumerate(grid.axes) if name not in names)
    marginal = weights.sum(others, keepdims=True)[..., None]
    axes = tuple(range(values.ndim - 1))
    mean = (values * marginal).sum(axes, keepdims=True)
    return ((values - mean) ** 2 * marginal).sum(axes)


def _bounds(draws: np.ndarray, axis: int = 0) -> dict[str, Any]:
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=axis)
    return {"low": low, "high": high}


def prices(model: BudgetModel, grid: Grid, default: dict[str, Any]) -> pd.DataFrame:
    """What it costs to leave one parameter at its default while the others are tuned, in points of accuracy.

    Columns parameter, default, price, low, high; CONFIDENCE over the draws. Both points are the best that the process
    knows of, with and without the restriction; their difference is then drawn, so that an interval can reach below 0.
    """
    names = [name for name in grid.axes if default.get(name) in grid.axes[name]
             or (name in default and model.space[name].kind != "choice")]
    best = [_refined(model, grid.point(grid.argmax()), ())]
    for name in names:
        places = grid.axes[name]
        unit = model.space[name].unit(places)
        nearest = int(abs(unit - model.space[name].unit([default[name]])).sum(1).argmin())
        start = grid.point(grid.argmax(**{name: nearest})) | {name: default[name]}
        best.append(_refined(model, start, (name,)))
    _, draws = model.draws({name: [point[name] for point in best] for name in grid.axes}, count=4000)
    rows = [{"parameter": name, "default": default[name], "price": lost.mean(), **_bounds(lost)}
            for name, lost in zip(names, draws[0] - draws[1:], strict=True)]
    return pd.DataFrame(rows, columns=["parameter", "default", "price", "low", "high"])


def _refined(model: BudgetModel, start: dict[str, Any], fixed: tuple[str, ...]) -> dict[str, Any]:
    """The point of the best posterior mean near `start`; choices and the parameters of `fixed` stay as they are."""
    from scipy.optimize import minimize

    free = [name for name, dimension in model.space.items() if dimension.kind != "choice" and name not in fixed]
    if not free:
        return start

    def point(places: np.ndarray) -> dict[str, Any]:
        return start | {name: model.space[name].at([place])[0] for name, place in zip(free, places, strict=True)}

    def loss(places: np.ndarray) -> float:
        return -float(model.mean({name: [value] for name, value in point(places).items()})[0])

    places = np.array([model.space[name].unit([start[name]])[0, 0] for name in free])
    found = minimize(loss, np.clip(places, 0, 1), method="L-BFGS-B", bounds=[(0, 1)] * len(free),
                     options={"maxiter": 20})
    return point(found.x) if found.fun < loss(places) else start


def curves(grid: Grid) -> pd.DataFrame:
    """Per parameter and value of its axis: the mean over the others, and the best that they allow; in percent.

    Columns parameter, value, place, dependence, dependence_low, dependence_high, best, best_low, best_high; CONFIDENCE.
    The best is read off where the posterior mean is highest.
    """
    rows = []
    for axis, name in enumerate(grid.axes):
        dependence = grid.along([name], grid.draws, grid.volume).reshape(len(grid.axes[name]), -1)
        for place, value in enumerate(grid.axes[name]):
            index = grid.argmax(**{name: place})
            average, best = dependence[place], grid.draws[index]
            rows.append({"parameter": name, "value": value, "place": place, "axis": axis,
                         "dependence": average.mean(), **_named("dependence", _bounds(average)),
                         "best": grid.mean[index], **_named("best", _bounds(best))})
    return pd.DataFrame(rows)


def _named(name: str, bounds: dict[str, Any]) -> dict[str, Any]:
    return {f"{name}_{end}": value for end, value in bounds.items()}


def best_map(grid: Grid, first: str, second: str) -> pd.DataFrame:
    """Per pair of values the best posterior mean over all other parameters, percent: columns first, second, best."""
    others = tuple(index for index, name in enumerate(grid.axes) if name not in (first, second))
    best = grid.mean.max(others)
    if list(grid.axes).index(first) > list(grid.axes).index(second):
        best = best.T
    return pd.DataFrame([{first: one, second: two, "best": best[i, j]}
                         for i, one in enumerate(grid.axes[first]) for j, two in enumerate(grid.axes[second])])


def rung_correlations(study: StudyFiles) -> pd.DataFrame:
    """How well the ranking at a rung agrees with a later one: columns arm, rung, later, trials, correlation.

    Spearman's rank correlation over the protected trials, which no rung selects; over all that came so far where a
    search has fewer than FEWEST_FULL of them (`protected` False), which the selection itself pulls towards 0.
    """
    rows = []
    epochs = [*study.description.get("rungs", []), study.description.get("epochs")]
    for arm in ("baseline", "distill"):
        reports = reports_of(study, arm, {}).pivot(index="trial", columns="epoch", values="accuracy")
        trials = study.trials[study.trials["stage"] == arm].set_index("trial")
        protected = reports.index.isin(trials.index[trials["protected"].astype(bool)])
        for index, rung in enumerate(epochs[:-1]):
            for later in epochs[index + 1:]:
                rows += _rank_correlation(arm, reports, protected, rung, later)
    return pd.DataFrame(rows, columns=["arm", "rung", "later", "trials", "protected", "correlation"])


def _rank_correlation(arm: str, reports: pd.DataFrame, protected: np.ndarray, rung: int,
                      later: int) -> list[dict[str, Any]]:
    if rung not in reports or later not in reports:
        return []
    both = reports[[rung, later]].notna().all(axis=1)
    chosen = both & protected if (both & protected).sum() >= FEWEST_FULL else both
    ranks = reports.loc[chosen, [rung, later]].rank()
    if len(ranks) < FEWEST_FULL or (ranks.std() == 0).any():
        return []
    return [{"arm": arm, "rung": int(rung), "later": int(later), "trials": len(ranks),
             "protected": bool(protected[chosen.to_numpy()].all()),
             "correlation": float(ranks.corr().iloc[0, 1])}]


# ---------------------------------------------------------------------------------------------------------------------
# A study's


def model_of(study: StudyFiles, arm: str = "distill") -> BudgetModel | str:
    """The process fitted to a search, for `distill` with the baseline as alpha = 0; or a sentence that says why not."""
    space = space_of(study, arm)
    reports = reports_of(study, arm, space)
    if reports.empty:
        return f"No {ARMS[arm]} trial has reported yet."
    if not space:
        return f"The {ARMS[arm]} searched no parameter, so there is nothing to tell apart."
    if arm == "distill":
        reports = with_baseline(reports, reports_of(study, "baseline", space), space)
    budget = read_off_epoch(reports, arm, study.description.get("epochs") or reports["epoch"].max())
    if budget is None:
        few = reports.loc[reports["arm"] == arm, "trial"].nunique()
        return (f"Only {few} {ARMS[arm]} {'trial has' if few == 1 else 'trials have'} reported; at least "
                f"{FEWEST_FULL} that came equally far are needed to tell parameters apart.")
    model = BudgetModel(reports, space, budget, study.description.get("data", {}).get("validation") or 1000)
    if model.is_constant:
        return f"All trials have the same accuracy at epoch {budget}: there is nothing for parameters to explain."
    return model


def _final_model(study: StudyFiles, arm: str) -> BudgetModel | None:
    """The process of a search, where it can be read off at the full budget."""
    model = model_of(study, arm)
    full = study.description.get("epochs")
    return model if isinstance(model, BudgetModel) and model.budget == (full or model.budget) else None


def choices(study: StudyFiles, arm: str) -> tuple[list[int], dict[str, Any] | None]:
    """The full-budget trials of an arm ranked and, for `distill`, the best values of what both arms search.

    The ranking holds trial numbers, the best first by posterior mean: what fresh seeds would give. By their own
    accuracies where too few have come so far; ties: validation loss, then number. The values are the best by posterior
    mean with temperature and alpha at their defaults; None where too few trials have come to the full budget.
    """
    model = _final_model(study, arm)
    return _ranked(study, arm, model), _best_shared(study, model) if arm == "distill" else None


def _ranked(study: StudyFiles, arm: str, model: BudgetModel | None) -> list[int]:
    ended = study.trials[(study.trials["stage"] == arm) & (study.trials["ended"] == "complete")]
    last = study.curves[study.curves["stage"] == arm].drop_duplicates("trial", keep="last").set_index("trial")
    ended = ended.assign(loss=ended["trial"].map(last["validation_loss"]),
                         value=ended["last_validation_accuracy"].astype(float))
    if model is not None:
        ended["value"] = model.mean({name: ended[name].tolist() for name in model.space}).round(9)
    return ended.sort_values(["value", "loss", "trial"], ascending=[False, True, True])["trial"].astype(int).tolist()


def _best_shared(study: StudyFiles, model: BudgetModel | None) -> dict[str, Any] | None:
    if model is None:
        return None
    default = _default(study)
    fixed = tuple(name for name in ("temperature", "alpha") if name in model.space)
    axes = _axes(model.space, default) | {name: [default[name]] for name in fixed}
    values = dict(zip(axes, _product(list(axes.values())), strict=True))
    best = int(model.mean(values).argmax())
    found = _refined(model, {name: column[best] for name, column in values.items()}, fixed)
    return {name: value for name, value in found.items() if name not in fixed}


def _default(study: StudyFiles) -> dict[str, Any]:
    """The parameters of the default point: trial 0 of the search."""
    trials = study.trials[(study.trials["stage"] == "distill") & (study.trials["trial"] == 0)]
    if trials.empty:
        trials = study.trials[(study.trials["stage"] == "baseline") & (study.trials["trial"] == 0)]
    row = trials.iloc[0] if len(trials) else {}
    return {name: row[name] for name in study.parameter_names if name in row and pd.notna(row[name])}


def analyse(study: StudyFiles) -> dict[str, Any]:
    """Everything the report says about sensitivity, ready for JSON; accuracies in percent, prices in points.

    `arm` and `searched` always; then either `missing`, a sentence, or budget (the epoch that all is read off at),
    epochs (the full budget), counts, coverage, prices, effects, effects_near, near_share, curves, map, map_of, best.
    """
    arm = "distill" if (study.trials["stage"] == "distill").any() else "baseline"
    model, default = model_of(study, arm), _default(study)
    facts: dict[str, Any] = {"arm": arm, "searched": {
        name: {dimension.kind: list(dimension.values)} for name, dimension in space_of(study, arm).items()}}
    if isinstance(model, str):
        return facts | {"missing": model}
    grid = Grid.of(model, default)
    left_out = model.leave_trial_out()
    best = grid.argmax()
    pair = _map_pair(list(grid.axes))
    return _plain(facts | {
        "budget": model.budget, "epochs": study.description.get("epochs") or model.budget,
        "counts": _counts(study, model, arm),
        "coverage": {"inside": int(left_out["inside"].sum()), "trials": len(left_out)},
        "prices": _records(prices(model, grid, default)),
        "effects": _records(main_effects(grid)), "effects_near": _records(main_effects(grid, near=NEAR_BEST)),
        "near_share": float(grid.volume[grid.mean >= grid.mean.max() - NEAR_BEST].sum()),
        "curves": _records(curves(grid)), "map": _records(best_map(grid, *pair)) if pair else None,
        "map_of": pair, "best": {"parameters": grid.point(best), "accuracy": grid.mean[best],
                                 **_bounds(grid.draws[best])},
    })


def _map_pair(names: list[str]) -> list[str] | None:
    """What the map shows: temperature and alpha where both are searched, else the first two."""
    wanted = [name for name in ("temperature", "alpha") if name in names]
    return wanted if len(wanted) == 2 else names[:2] if len(names) > 1 else None


def _counts(study: StudyFiles, model: BudgetModel, arm: str) -> dict[str, int]:
    """How many trials there are, reports that entered, trials at the budget, and, among these, the search's own
    protected ones and those of the baseline that enter at alpha = 0.
    """
    trials = study.trials[study.trials["stage"].isin(model.rows["arm"].unique())]
    full = model.rows[model.rows["epoch"] == model.budget]
    own = full["arm"] == arm
    return {"trials": model.rows["trial"].nunique(), "reports": len(model.rows), "full": len(full),
            "protected": int(full.loc[own, "protected"].astype(bool).sum()),
            "baseline": int((~own).sum()), "failed": int((trials["ended"] == "failed").sum())}


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def _plain(value: Any) -> Any:
    """Python's own numbers, of five significant digits, for JSON."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    return float(f"{value:.5g}") if isinstance(value, float) else value


def statements(study: StudyFiles, found: dict[str, Any], correlations: pd.DataFrame) -> list[tuple[str, str]]:
    """What a reader must know, as (kind, sentence); a kind is `finding`, `note` or `warning`."""
    said = [("note", found["missing"])] if "missing" in found else [
        ("finding", headline(found)), *_on_trust(study, found)]
    return [*said, *(("note", text) for text in _edges(study)), *_on_rungs(study, correlations)]


def headline(found: dict[str, Any]) -> str:
    """The price of not tuning, in a sentence."""
    rows = sorted(found["prices"], key=lambda row: -row["price"])
    if not rows:
        return "What it costs not to tune cannot be said: the default point is not among the trials."
    said = [f"leaving {_name(row)} costs {_points(row['price'])} points "
            f"({_points(row['low'])} to {_points(row['high'])})" for row in rows if row["low"] > 0]
    unsure = [f"{_name(row)} (at most {max(0.1, math.ceil(10 * row['high']) / 10):.1f})"
              for row in rows if row["low"] <= 0]
    if unsure:
        said.append(f"no cost could be shown of leaving {_listed(unsure)}")
    where = [f"in the {ARMS[found['arm']]} search"] if found["arm"] == "baseline" else []
    where += [f"at epoch {found['budget']} of {found['epochs']}"] if found["budget"] < found["epochs"] else []
    where += ["with everything else tuned again"] if len(found["searched"]) > 1 else []
    text = ", ".join([*where, "; ".join(said)])
    return f"{text[0].upper()}{text[1:]}. Points of validation accuracy, {round(100 * CONFIDENCE)} % intervals."


def _points(value: float) -> str:
    """One decimal, or as many as show that a small number is not 0."""
    return f"{value:.1f}" if abs(value) >= 0.1 else f"{value:.1g}"


def _listed(texts: list[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"


def _name(row: dict[str, Any]) -> str:
    return f"{row['parameter'].replace('_', ' ')} at {_shown(row['default'])}"


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _on_trust(study: StudyFiles, found: dict[str, Any]) -> list[tuple[str, str]]:
    said, counts, coverage = [], found["counts"], found["coverage"]
    setting = "search.protected" if found["arm"] == "distill" else "search.baseline_protected"
    if found["budget"] < found["epochs"]:
        said.append(("warning", f"Fewer than {FEWEST_FULL} {ARMS[found['arm']]} trials have come to the full "
                                f"{found['epochs']} epochs yet: everything is read off at epoch {found['budget']}, and "
                                "may look different at the end."))
    share = coverage["inside"] / coverage["trials"]
    text = (f"Each trial left out in turn, {coverage['inside']} of {coverage['trials']} lie inside the "
            f"{round(100 * CONFIDENCE)} % interval that the others predict for them ({100 * share:.0f} %)")
    if share < TRUSTED_COVERAGE:
        said.append(("warning", f"{text}. That is less than {100 * TRUSTED_COVERAGE:.0f} %: do not trust the intervals "
                                f"here; more protected trials ({setting}) would mend that."))
    else:
        said.append(("note", f"{text}."))
    said += _on_numbers(found, setting, ended=study.done(found["arm"]) is not None)
    if counts["failed"]:
        said.append(("note", f"{counts['failed']} failed {'trial counts' if counts['failed'] == 1 else 'trials count'} "
                             "only with what was reported before."))
    return said


def has_few_trials(found: dict[str, Any]) -> bool:
    """Whether a search has too few trials of its own at the budget for intervals that are wide enough."""
    counts = found.get("counts")
    return counts is not None and counts["full"] - counts["baseline"] < ENOUGH_PER_PARAMETER * len(found["searched"])


def _on_numbers(found: dict[str, Any], setting: str, ended: bool) -> list[tuple[str, str]]:
    """A warning where a search has too few trials at the budget, or too few that it did not choose itself."""
    counts, parameters = found["counts"], len(found["searched"])
    own, wanted = counts["full"] - counts["baseline"], ENOUGH_PER_PARAMETER * parameters
    least = wanted - 1 if counts["protected"] >= FEWEST_FULL else max(8, wanted - 1)
    remedy = f"{setting} = {least} or more mends that" if ended else "the search goes on, so wait for more"
    if counts["protected"] < FEWEST_FULL:
        return [("warning", f"From search data only: {counts['protected'] or 'no'} protected "
                            f"{'trial' if counts['protected'] == 1 else 'trials'} at epoch {found['budget']}. A search "
                            f"looks where it expects to win, so the rest of the space is guessed; {remedy}.")]
    if has_few_trials(found):
        searched = "1 searched parameter" if parameters == 1 else f"{parameters} searched parameters"
        return [("warning", f"Only {own} {ARMS[found['arm']]} trials came to epoch {found['budget']}, for {searched}: "
                            f"with fewer than {wanted} the intervals are narrower than they should be; {remedy}.")]
    return []


def _edges(study: StudyFiles) -> list[str]:
    """Where a winner lies at a bound of what was searched, and what to do about it."""
    said = []
    for arm, title in ARMS.items():
        chosen = study.choice(arm) or {}
        for name, dimension in space_of(study, arm).items():
            value = chosen.get("parameters", {}).get(name)
            if value is not None and dimension.kind != "choice":
                said += _edge(title, name, dimension, value)
    return said


def _edge(arm: str, name: str, dimension: Dimension, value: float) -> list[str]:
    place = float(dimension.unit([value])[0, 0])
    if EDGE < place < 1 - EDGE:
        return []
    low, high = dimension.values
    bound, word, direction = (high, "upper", "raise") if place > 0.5 else (low, "lower", "lower")
    if bound in LIMITS.get(name, (0,)):
        meaning = {0: ", the labels alone", 1: ", the teacher's answers alone"}[bound] if name == "alpha" else ""
        return [f"The {arm}'s winner has {name} {_shown(value)}, next to {bound:g}{meaning}: there is nothing beyond "
                "that bound."]
    return [f"The {arm}'s winner has {name} {_shown(value)}, at the {word} edge of [{_shown(low)}, {_shown(high)}]: "
            f"better ones may lie beyond; {direction} the {word} bound of search.{name} and run again."]


def _on_rungs(study: StudyFiles, correlations: pd.DataFrame) -> list[tuple[str, str]]:
    """A warning per arm for the last rung that does not predict the end: a grace period must reach beyond it."""
    said = []
    last = correlations[correlations["later"] == study.description.get("epochs")]
    for arm, rows in last.groupby("arm", sort=False):
        poor = rows[(rows["correlation"] < PREDICTIVE_RANKS) & (rows["trials"] > FEWEST_FULL + 1)]
        if len(poor):
            row, better = poor.iloc[-1], rows[rows["rung"] > poor.iloc[-1]["rung"]]
            remedy = (f"a longer grace period is safer (search.grace_period = {better.iloc[0]['rung']})" if len(better)
                      else "letting all trials run to the end is safer (search.early_stopping = false)")
            kind = "protected trials" if row["protected"] else "trials that were let through"
            said.append(("warning", f"In the {ARMS[arm]} search, rung {row['rung']} does not predict the end: rank "
                                    f"correlation {row['correlation']:+.2f} over {row['trials']} {kind}. Trials that "
                                    f"would have won may have been stopped; {remedy}."))
    return said
