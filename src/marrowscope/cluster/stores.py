"""Where images and results lie: a disk that all machines share, S3-compatible stores, Google Cloud Storage.

A name with ``s3://`` or ``gs://`` in front is an object in a store, its key as it stands (nothing is percent-encoded);
every other name is a file on the disk. Credentials come from where the stores' own tools look for them, never from a
name.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from marrowscope import images
from marrowscope.cluster.packages import arrow
from marrowscope.data.sources import is_image_name, is_junk
from marrowscope.errors import DataError, ImageError, OutputError, StoreError
from marrowscope.files import atomic_path

SCHEMES = ("s3", "gs")
"""Stores that a name may begin with."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")

# What says that one object can't be read, and not that the store does not answer.
_OF_ONE_OBJECT = re.compile(r"ACCESS_DENIED|PERMISSION_DENIED|INVALID_OBJECT_STATE|HTTP status 403|Permission denied")

DENIED = "unreadable: access denied"
"""Status of an object that may not be read."""

_ATTEMPTS = 8
_GIVE_UP_AFTER = timedelta(minutes=2)


def is_remote(name: str) -> bool:
    """Whether a name is one of a store.

    Raises:
        DataError: It begins like one of a store that is not known.
    """
    match = _SCHEME.match(name)
    if match is None:
        return False
    if match[1] not in SCHEMES:
        raise DataError(
            f"{name}: can't read from {match[1]}://; allowed are {', '.join(s + '://' for s in SCHEMES)} and paths on "
            "a disk that all machines share."
        )
    return True


def errors() -> tuple[type[Exception], ...]:
    """What pyarrow's file systems raise."""
    return (OSError, arrow("lib").ArrowException)


def first_line(error: BaseException) -> str:
    """The first line of an error, cut to what fits a message."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300].rstrip(".")


def locate(name: str) -> tuple[Any, str]:
    """File system of pyarrow, and path inside it; of a remote name or a path on the disk.

    Raises:
        StoreError: The bucket can't be found or reached.
    """
    if not is_remote(name):
        return arrow("fs").LocalFileSystem(), name
    scheme, _, path = name.partition("://")
    bucket = path.partition("/")[0]
    if not bucket:
        raise StoreError(f"{name} names no bucket; write {scheme}://BUCKET/FOLDER.")
    return _filesystem(scheme, bucket), path.rstrip("/")


@functools.lru_cache(maxsize=64)
def _filesystem(scheme: str, bucket: str) -> Any:
    fs = arrow("fs")
    if scheme == "gs":
        emulator = os.environ.get("STORAGE_EMULATOR_HOST", "")
        protocol, _, host = emulator.rpartition("://")
        told = {"endpoint_override": host, "scheme": protocol or "http", "anonymous": True} if emulator else {}
        return fs.GcsFileSystem(retry_time_limit=_GIVE_UP_AFTER, **told)
    told = {"retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS)}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    try:
        # Amazon's buckets are found in their own region only.
        region = region or (None if endpoint else fs.resolve_s3_region(bucket))
        return fs.S3FileSystem(endpoint_override=endpoint, region=region, **told)
    except errors() as e:
        raise StoreError(
            f"Can't find the bucket s3://{bucket}: {first_line(e)}. Check its name and the network; for a store that "
            "is not Amazon's set AWS_ENDPOINT_URL."
        ) from None


# -------------------------------------------------------------------------------------------------------------- images


def read_bytes(name: str) -> bytes:
    """Read an object for `images.decode`, as `images.read_bytes` reads a file.

    Raises:
        ImageError: It is missing, empty, too large, or may not be read.
        StoreError: The store does not answer; that says nothing about the image, so it is no reason for a row.
    """
    fs, path = locate(name)
    try:
        data = _content(fs, path, images.MAX_BYTES)
    except FileNotFoundError:
        raise ImageError("missing: no such file") from None
    except arrow("lib").ArrowInvalid as e:  # a key that pyarrow can't name
        raise ImageError(f"unreadable: {first_line(e)[:80]}") from None
    except errors() as e:
        if isinstance(e, PermissionError) or _OF_ONE_OBJECT.search(str(e)):
            raise ImageError(DENIED) from None
        raise StoreError(f"Can't read {name}: {first_line(e)}.") from None
    if not data:
        raise ImageError("empty file")
    return data


def _content(fs: Any, path: str, most: int) -> bytes:
    """The bytes of an object, and not more than `most` of them; pyarrow's errors as they come."""
    if fs.type_name == "gcs":
        # Asked for its size, an open file of Google's store stops all threads of Python until the store has answered.
        info = fs.get_file_info(path)
        if not info.is_file:
            raise FileNotFoundError(path)
        opened, size = fs.open_input_stream(path), info.size
    else:
        opened = fs.open_input_file(path)
        size = opened.size()
    with opened as f:
        if size > most:
            raise ImageError(f"file too large: {size:,} bytes; allowed are {most:,}")
        data: bytes = f.read(size)
    return data


def find_objects(source: str) -> Iterator[str]:
    """Names of the images that a remote source stands for: an object, a folder, or a pattern.

    A folder is searched as `infer.find_images` does, in the same order: first its files sorted by name, then its
    folders; hidden ones are left out. The matches of a pattern come in that order too. Held are only the
    names in one folder and of the folders yet to visit; of Google's store those of all its images.

    Raises:
        DataError: Nothing is there, or no image.
        StoreError: The store can't be reached, or does not let us list it.
    """
    from marrowscope.infer.inputs import matches

    fs, path = locate(source)
    scheme = source.partition("://")[0]
    bucket, *parts = path.split("/")
    try:
        kind = arrow("fs").FileType
        found = fs.get_file_info(path).type
        if found == kind.File and not source.endswith("/"):
            yield source
            return
        magic = next((i for i, part in enumerate(parts) if re.search(r"[*?\[]", part)), None)
        if found == kind.NotFound and magic is None:
            raise DataError(f"Nothing is at {source}. Give a folder, an object or a pattern that is there.")
        taken = 0
        pattern = parts[magic:] if found == kind.NotFound and magic is not None else []
        root = "/".join([bucket, *parts[: len(parts) - len(pattern)]])
        # Google's folders are only parts of names, which pyarrow tells of only where it lists all of them at once.
        for name in _walk(fs, root) if scheme == "s3" else _walk_at_once(fs, root):
            inside = name[len(root) + 1 :].split("/")
            # A pattern may stand for images, or for folders of them.
            if not pattern or any(matches(inside[:n], pattern) for n in range(1, len(inside) + 1)):
                taken += 1
                yield f"{scheme}://{name}"
    except errors() as e:
        raise StoreError(
            f"Can't list {source}: {first_line(e)}. Check the bucket's name, the network, and the credentials in the "
            "environment."
        ) from None
    if not taken:
        raise DataError(f"{source} holds no image ({' '.join(sorted(images.SUFFIXES))}). Give another folder.")


def _walk(fs: Any, folder: str) -> Iterator[str]:
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        files: list[str] = []
        folders: list[str] = []
        for entry in fs.get_file_info(arrow("fs").FileSelector(here)):
            if is_junk(entry.base_name):
                continue
            if not entry.is_file:
                folders.append(entry.base_name)
            elif is_image_name(entry.base_name):
                files.append(entry.base_name)
        waiting.extend(f"{here}/{name}" for name in sorted(folders, reverse=True))
        yield from (f"{here}/{name}" for name in sorted(files))


def _walk_at_once(fs: Any, folder: str) -> Iterator[str]:
    found = (
        entry.path for entry in fs.get_file_info(arrow("fs").FileSelector(folder, recursive=True)) if entry.is_file
    )
    inside = (name[len(folder) + 1 :].split("/") for name in found if is_image_name(name))
    taken = [parts for parts in inside if not any(map(is_junk, parts))]
    # In each folder its files first, then its folders.
    taken.sort(key=lambda parts: [*((1, part) for part in parts[:-1]), (0, parts[-1])])
    return ("/".join([folder, *parts]) for parts in taken)


# ------------------------------------------------------------------------------------------------------------- results


class Folder:
    """A folder of results, on a disk or in a store.

    Attributes:
        name: As the user gave it.
    """

    def __init__(self, name: str) -> None:
        self.name = name.rstrip("/") or name
        self._remote = is_remote(name)
        self._fs, self._path = locate(self.name)

    def absolute(self) -> str:
        """Its name for processes that work in another folder."""
        return self.name if self._remote else str(Path(self._path).absolute())

    def names(self) -> set[str]:
        """Names of the files in it, hidden ones too; none where there is no such folder.

        Raises:
            OutputError: It can't be listed, or is a file.
        """
        fs = arrow("fs")
        try:
            if self._fs.get_file_info(self._path).type == fs.FileType.File:
                raise OutputError(f"Can't write into {self.name}: it is a file. With a cluster, give a folder.")
            found = self._fs.get_file_info(fs.FileSelector(self._path, allow_not_found=True))
        except errors() as e:
            raise OutputError(f"Can't list {self.name}: {first_line(e)}. {_CHECK}") from None
        return {entry.base_name for entry in found if entry.is_file}

    def put(self, file: Path, name: str) -> None:
        """Copy a local file into it, whole or not at all, in the place of one of the same name.

        Raises:
            OutputError: It can't be written.
        """
        if not self._remote:
            with atomic_path(Path(self._path) / name) as temporary:
                shutil.copyfile(file, temporary)
            return
        try:
            # An object appears when the stream is closed, and only if all of it has arrived.
            with file.open("rb") as source, self._fs.open_output_stream(f"{self._path}/{name}") as out:
                while chunk := source.read(64 << 20):
                    out.write(chunk)
        except errors() as e:
            raise OutputError(f"Can't write {self.name}/{name}: {first_line(e)}. {_CHECK}") from None

    def text(self, name: str) -> str:
        """A small file's text.

        Raises:
            OutputError: It can't be read.
        """
        try:
            data = _content(self._fs, f"{self._path}/{name}", images.MAX_BYTES)
        except ImageError as e:
            raise OutputError(f"Can't read {self.name}/{name}: {e}.") from None
        except errors() as e:
            raise OutputError(f"Can't read {self.name}/{name}: {first_line(e)}. {_CHECK}") from None
        return data.decode("utf-8", "replace")

    def parquet(self, name: str) -> Any:
        """A Parquet file in it, opened; errors of pyarrow as they come."""
        return arrow("parquet").ParquetFile(f"{self._path}/{name}", filesystem=self._fs)

    def clear_leftovers(self) -> None:
        """Remove what machines that were stopped in the middle of writing have left."""
        if not self._remote:
            for leftover in Path(self._path).glob(".part-*.part"):
                leftover.unlink(missing_ok=True)


_CHECK = "Check the name, the network, the free space, and the credentials in the environment."
