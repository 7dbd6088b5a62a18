"""The sdist holds every file of the repository, the wheel those of the package.

python .ci/check_contents.py FOLDER
"""

import hashlib
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

HOST = (".github/",)
"""What only the repository's host reads."""


def check(archive: Path, found: list[str], expected: set[str]) -> None:
    """Prints a line about an archive, or ends with what is missing and too much."""
    missing, extra = expected - set(found), set(found) - expected
    if missing or extra:
        sys.exit(f"{archive.name}: missing {sorted(missing)}, unwanted {sorted(extra)}")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    size = archive.stat().st_size / 1e3
    print(f"{archive.name}: {len(found)} files, {size:.0f} kB, sha256 {digest}")


listed = subprocess.run(
    ["git", "ls-tree", "-rz", "--name-only", "HEAD"],
    check=True,
    capture_output=True,
    text=True,
).stdout
tracked = {name for name in listed.split("\0") if name and not name.startswith(HOST)}
package = {name for name in tracked if name.startswith("stablegrad_optax/")}

(sdist,) = Path(sys.argv[1]).glob("*.tar.gz")
stem = sdist.name.removesuffix(".tar.gz")
with tarfile.open(sdist) as file:
    members = file.getnames()
check(sdist, members, {f"{stem}/{name}" for name in tracked | {"PKG-INFO"}})

(wheel,) = Path(sys.argv[1]).glob("*.whl")
metadata = ("METADATA", "WHEEL", "RECORD", "licenses/LICENSE")
with zipfile.ZipFile(wheel) as file:
    members = file.namelist()
check(wheel, members, package | {f"{stem}.dist-info/{name}" for name in metadata})
