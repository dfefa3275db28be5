"""The folder of a series: its settings, in `study.toml` like those of a study, a folder for each member, and a page.

    SERIES/study.toml                the settings, with the list
    SERIES/train.epochs=75/          a member: an ordinary study
    SERIES/train.epochs=150/         another, which takes over what the first has finished and both need
    SERIES/results/series.html       the page, and the same as series.json and series.md
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kdstudy.config.load import STAGES_FILE, STUDY_FILE, is_series, load_series
from kdstudy.config.series import Member, Series, Value
from kdstudy.errors import UserError
from kdstudy.stages.order import STAGE_FILES
from kdstudy.store import check, files
from kdstudy.store.storage import Storage
from kdstudy.study import Study


@dataclass(frozen=True)
class StoredMember:
    """A member with its storage."""

    member: Member
    storage: Storage

    @property
    def value(self) -> Value:
        return self.member.value

    @property
    def name(self) -> str:
        return self.member.name

    @property
    def has_begun(self) -> bool:
        return (self.storage.folder / STAGES_FILE).is_file()

    def study(self) -> Study:
        """The study, anew: whoever holds it also holds its images."""
        return Study(self.member.config, self.storage)


class SeriesFolder:
    """A series with its storage, which need not exist yet.

    Raises UserError where the storage holds something else.
    """

    def __init__(self, series: Series, storage: Storage):
        self.series, self.storage = series, storage
        self._check_place()

    @classmethod
    def of(cls, storage: Storage) -> SeriesFolder | None:
        """The series that a storage holds; None if it holds none."""
        if not is_series(storage.folder):
            return None
        return cls(load_series(str(storage.folder)), storage)

    @cached_property
    def members(self) -> list[StoredMember]:
        return [StoredMember(member, Storage.of(f"{self.storage}/{member.name}")) for member in self.series.members]

    @property
    def begun(self) -> list[StoredMember]:
        return [member for member in self.members if member.has_begun]

    @property
    def page(self) -> Path:
        return self.storage.folder / "results" / "series.html"

    def _check_place(self) -> None:
        folder = self.storage.folder
        if (folder / STAGES_FILE).exists():
            raise UserError(f"{self.storage} holds a study, and a series of studies needs a folder of its own; name "
                            "another with --dir")
        if not (folder / STUDY_FILE).exists():
            return
        earlier = load_series(str(folder))
        if earlier is None or earlier.setting != self.series.setting:
            holds = f"a series over {earlier.setting}" if earlier else "the settings of one study"
            raise UserError(f"{self.storage} holds {holds}, not one over {self.series.setting}; name another folder "
                            "with --dir")

    def refresh(self) -> None:
        """Update local copies, and check what is there, which may come from a stranger. Raises UserError."""
        check.check_plain(self.storage.folder, (*(member.name for member in self.members), *self._retired))  # no link
        for member in self.members:
            member.storage.refresh()
            check.check(member.storage.folder, STAGE_FILES)

    @property
    def _retired(self) -> list[str]:
        """The folders of members whose values have been taken out of the list. As of any neighbour, each stage of them
        is checked before it is taken over."""
        return [path.name for path in self.storage.folder.glob(f"{self.series.setting}=*")]

    def begin(self) -> None:
        """Write the settings. Raises UserError where the images of a member that has not begun cannot be read."""
        if self.series.setting.startswith("data."):  # a mistake should not show hours later
            for member in self.members:
                if not member.has_begun:
                    _check_images(member)
        path, text = self.storage.folder / STUDY_FILE, self.series.to_toml()
        if not files.has_text(path, text):
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_text(path, text)
            self.storage.publish(path)


def _check_images(member: StoredMember) -> None:
    try:
        _ = member.study().context.splits
    except UserError as error:
        raise UserError(f"{member.name} of the series: {error}") from None


def check_single(storage: Storage) -> None:
    """Raises UserError where a storage that is meant for one study holds a series."""
    if (series := SeriesFolder.of(storage)) is not None:
        raise UserError(f"{storage} holds a series of studies over {series.series.setting}, not one study; name one of "
                        f"its members, such as {series.members[0].storage}, or another folder with --dir")
