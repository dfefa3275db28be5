"""What was computed from the latest surfaces, so that it is computed once.

When a search ends, and again for the report, a study asks for the same surface, and drawing its hyperparameters takes
most of the time of both. Only small results are kept, not the matrices of a surface.
"""

from collections.abc import Callable, Hashable
from typing import Any

MOST = 16


class Latest(dict[Hashable, Any]):
    """Results by what they were computed from; of more than MOST, the oldest are forgotten."""

    def of(self, made_of: Hashable, compute: Callable[[], Any]) -> Any:
        """The result, computed where it is not known. Not to be changed by whoever gets it."""
        if made_of not in self:
            found = compute()
            while len(self) >= MOST:
                self.pop(next(iter(self)))
            self[made_of] = found
        return self[made_of]


LATEST = Latest()
