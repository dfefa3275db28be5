"""Data sets on the Hugging Face hub: hf://datasets/OWNER/NAME, with @REVISION or a folder after it if wanted."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from kdstudy.trainables.messages import one_line
from kdstudy.trainables.sources.store import File, Kind, Listing, UnreachableError, is_hidden

SCHEME = "hf://"
DATA_SETS = "datasets/"


class HubStore:
    """The files of a repository on the hub, through huggingface_hub's file system, which sends this machine's token."""

    is_local = False

    def __init__(self, system: Any):
        self._system = system

    def kind(self, path: str) -> Kind | None:
        with _in_one_line():
            try:
                return "file" if self._system.info(path)["type"] == "file" else "folder"
            except FileNotFoundError:
                return None

    def listing(self, path: str) -> Listing:
        with _in_one_line():
            if self.kind(path) == "file":
                return Listing([File(path.rpartition("/")[2], self._system.info(path)["size"], 0)], [])
            entries = self._system.find(path, withdirs=True, detail=True)
        named = [(name[len(path) + 1:], info) for name, info in entries.items() if name != path]
        named = [(name, info) for name, info in named if not is_hidden(name)]
        # The path names a commit, so that a file does not change.
        return Listing([File(name, info["size"], 0) for name, info in named if info["type"] == "file"],
                       [name for name, info in named if info["type"] == "directory"])

    def read(self, path: str) -> bytes:
        with _in_one_line(), self._system.open(path, "rb", block_size=0) as file:
            return file.read()

    def view(self, path: str) -> pa.Buffer:
        return pa.py_buffer(self.read(path))


def opened(source: str) -> tuple[HubStore, str]:
    """The store, and the path in it with the commit that is now the newest, so that all files are of one version.

    Raises ValueError, OSError.
    """
    path = source.removeprefix(SCHEME).strip("/")
    if not path.startswith(DATA_SETS) or path.count("/") < 2:
        raise ValueError("data sets of the hub are named hf://datasets/OWNER/NAME")
    with _in_one_line():
        from huggingface_hub import HfApi, HfFileSystem  # take long to import

        endpoint = os.environ.get("HF_ENDPOINT") or None
        # A new one, because a known one remembers earlier listings.
        system = HfFileSystem(endpoint=endpoint, skip_instance_cache=True)
        found = system.resolve_path(path)
        commit = HfApi(endpoint=endpoint).repo_info(found.repo_id, repo_type="dataset", revision=found.revision).sha
    return HubStore(system), f"{DATA_SETS}{found.repo_id}@{commit}/{found.path_in_repo}".rstrip("/")


@contextlib.contextmanager
def _in_one_line() -> Iterator[None]:
    """The clients raise many kinds of errors, most of several lines. Raises UnreachableError."""
    try:
        yield
    except Exception as error:
        raise UnreachableError(one_line(error)) from None
