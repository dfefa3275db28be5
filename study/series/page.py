"""Write the page of a series from the results that its members have by now. Needs neither Ray nor torch."""

from kdstudy.analysis import series as pages
from kdstudy.series.folder import SeriesFolder


def write_page(series: SeriesFolder) -> bool:
    """Write `results/` of the series, from the members that have begun. Returns whether it has changed."""
    folders = {member.value: member.storage.folder for member in series.begun}
    return pages.build(series.storage.folder, series.series.name, series.series.setting, folders,
                       len(series.members))
