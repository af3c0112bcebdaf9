"""For processes that a test starts by exec: with this folder on PYTHONPATH and `POWERCUT_RECORD=FOLDER:LOG` in the
environment, every Python process notes what it does to the files of FOLDER in LOG, all of them in one order.
"""

from __future__ import annotations

import os

if "POWERCUT_RECORD" in os.environ:
    from powercut.traced import record_here

    record_here(*os.environ["POWERCUT_RECORD"].split(":"))
