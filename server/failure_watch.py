"""Notices versions that fail rows again and again, so that they can be taken out of service.

Counted are failures that are the version's own: the backbone's numbers were not finite behind its prefix, which a sound
prefix never does, whatever prompt follows. Not counted is what a request may have brought about itself: a pass or a
choice of tokens that raised, memory that ran out, a deadline, a client that left. So nobody who may use a public task
can take it from the others. (A damaged file is no matter of counting: the store's inspection quarantines its version.)

Knows versions and a clock.
"""

import time
from collections import deque
from collections.abc import Callable

from prefix_store.tasks import Served

MAX_FAILURES = 3
WITHIN = 600.0  # seconds

Version = tuple[str, str, int, str]  # tenant, task_id, version, and the file: numbers begin anew after a deletion


class FailureWatch:
    """Used on the event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed_at: dict[Version, deque[float]] = {}

    def note(self, served: Served) -> bool:
        """Count a failed row of this version. True when it is one too many; the version then starts anew."""
        version = (served.tenant, served.task_id, served.version, served.prefix.revision)
        now = self._clock()
        self._failed_at = {each: at for each, at in self._failed_at.items() if now - at[-1] <= WITHIN}
        failed_at = self._failed_at.setdefault(version, deque())
        failed_at.append(now)
        while now - failed_at[0] > WITHIN:
            failed_at.popleft()
        if len(failed_at) < MAX_FAILURES:
            return False
        del self._failed_at[version]
        return True
