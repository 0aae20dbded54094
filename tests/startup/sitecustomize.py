"""Python runs this when a process that the tests start begins; conftest.py puts it on the path.

A third of the time of such a process goes to looking for garbage in what it imports, and to taking
that apart at its end.
"""

import atexit
import gc

gc.set_threshold(50_000, 20, 100)
atexit.register(gc.freeze)
