"""Python in a process of its own: for what cannot be undone, and for what must not die."""

from __future__ import annotations

import os
import subprocess
import sys


def python(script, *arguments, timeout=120, **environment):
    """Run a script with this interpreter's path, check that it ends well, and return its output."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=timeout, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
