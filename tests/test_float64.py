"""Double precision, in a process of its own."""

import subprocess
import sys
from pathlib import Path


def test_float64():
    script = Path(__file__).with_name("float64_checks.py")
    result = subprocess.run(
        [sys.executable, "-W", "error", script], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "float64 checks passed" in result.stdout
