"""Files that a user names: read whole, or refused in one line.

Promise: .gz, .zst and the like are unpacked by their name; a file that is missing, broken or cut short is a `ValueError` that names it,
storage that does not answer is not. Price: the file is held in memory.
"""

from __future__ import annotations

from pyarrow import fs as arrow_fs

from cluster.storage import is_unavailable, one_line, resolve

__all__ = ["read_whole"]


def read_whole(uri: str, *, wanted: str, packed: bool = True) -> bytes:
    """The bytes of a file, local or s3://; `wanted` says what to give instead of one that is not there.

    With `packed`, what its name calls compressed is unpacked.
    """
    filesystem, path = resolve(uri)
    if filesystem.get_file_info(path).type != arrow_fs.FileType.File:
        raise ValueError(f"{uri}: no such file; give {wanted}")
    try:
        with filesystem.open_input_stream(path, compression="detect" if packed else None) as stream:
            return bytes(stream.readall())
    except OSError as error:
        if is_unavailable(error):
            raise
        raise ValueError(f"{uri}: cannot be read ({one_line(error)}); make it again") from None
