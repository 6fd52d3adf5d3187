"""A bucket in memory, which takes the place of Cloud Storage in tests: `gs://lab/...` through fsspec and epath."""

from __future__ import annotations

from typing import Any, ClassVar

from fsspec.implementations.memory import MemoryFileSystem


class FakeBucket(MemoryFileSystem):
    """File system of `gs://` URLs. As in a bucket, files cannot be appended to, and paths have no leading slash."""

    protocol = ("gs", "gcs")
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    buckets: ClassVar[set[str]] = {"lab"}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        path = str(path).removeprefix("gs://").removeprefix("gcs://").strip("/")
        return f"/{path}" if path else ""

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode not in ("rb", "wb"):
            raise NotImplementedError(f"a bucket does not support the mode {mode}")
        if path.split("/")[1] not in self.buckets:
            raise FileNotFoundError(f"The specified bucket does not exist: {path}")
        return super()._open(path, mode, **options)

    def files(self, prefix: str = "gs://") -> dict[str, bytes]:
        """Returns the content of all files whose URL starts with `prefix`, by URL."""
        urls = {f"gs:/{path}": file.getvalue() for path, file in self.store.items()}
        return {url: content for url, content in urls.items() if url.startswith(prefix)}
