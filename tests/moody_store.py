"""A storage on this disk that fails as the names of its files tell, in whatever process; fsspec finds it as moody://."""

import errno
import os
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

ROOM = "room"  # a file that tells the full disk that there is room again


class MoodyFileSystem(LocalFileSystem):
    """Its memory is the folder that the environment calls MOODY."""

    protocol = "moody"

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("moody://"))

    def cat_file(self, path, **options):
        if "forbidden" in path:
            raise PermissionError(errno.EACCES, "Access Denied")
        if "throttled" in path and _is_first(path):
            raise OSError("SlowDown: please reduce your request rate")
        return super().cat_file(path, **options)

    def mv(self, path1, path2, **options):
        if "full" in path2 and not Path(os.environ["MOODY"], ROOM).exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if "slow" in path2 and _is_first(path2):
            raise OSError("SlowDown: please reduce your request rate")
        return super().mv(path1, path2, **options)


def _is_first(path):
    try:
        Path(os.environ["MOODY"], path.replace("/", "_")).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def install(folder):
    """Make it known to this process, and to those that have a folder in their PYTHONPATH and MOODY."""
    about = folder / "moody_store-0.dist-info" / "entry_points.txt"
    about.parent.mkdir()
    about.write_text("[fsspec.specs]\nmoody = moody_store:MoodyFileSystem\n")
    fsspec.register_implementation("moody", MoodyFileSystem, clobber=True)
