"""Paths of the user: local paths and URLs of buckets."""

from __future__ import annotations

import pathlib

import pytest
from etils import epath

import salmonn_jax
from data_pipelines import corpora
from salmonn_jax import files, paths
from salmonn_jax.errors import UserError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("runs/one", pathlib.Path("runs/one")),
        ("/runs/with space", pathlib.Path("/runs/with space")),
        ("a:b/c", pathlib.Path("a:b/c")),
        ("file:///runs/one", pathlib.Path("/runs/one")),
        ("file:/runs/one", pathlib.Path("/runs/one")),
        ("file:///runs/with%20space", pathlib.Path("/runs/with space")),
        ("gs://lab/runs/one", epath.Path("gs://lab/runs/one")),
        ("gs://lab/runs/one/", epath.Path("gs://lab/runs/one")),
        ("GS://lab/runs/One", epath.Path("gs://lab/runs/One")),
    ],
)
def test_parsed_paths(bucket, text, expected):
    path = paths.as_path(text)
    assert path == expected and type(path) is type(expected)
    assert paths.as_path(path) == path
    assert paths.is_url(path) == text.lower().startswith("gs")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a path is empty; write . for the current directory"),
        ("gss://lab/x", "gss://lab/x: unknown scheme 'gss'; did you mean 'gs'?"),
        ("memory://lab/x", "memory://lab/x: unknown scheme 'memory'; it must be one of: file, gs, s3"),
        (
            "https://lab/x",
            "https://lab/x: directories and outputs cannot be on the web; use a local path, gs:// or s3://",
        ),
        ("gs:/lab/x", "gs:/lab/x: a URL has two slashes; write gs://lab/x"),
        (pathlib.Path("gs://lab/x"), "gs:/lab/x: a URL has two slashes; write gs://lab/x"),
        ("gs:///lab/x", "gs:///lab/x: a URL has two slashes; write gs://lab/x"),
        ("gs://", "gs://: names no bucket; write gs://BUCKET/DIRECTORY"),
        ("file://host/x", "file://host/x: names a host; a local file is file:///host/x, with three slashes"),
        ("s3://lab/x", "s3://lab/x: s3:// needs the package s3fs: pip install 'salmonn-jax[s3]'"),
    ],
)
def test_refused_paths(bucket, monkeypatch, text, message):
    monkeypatch.setattr(paths.fsspec, "get_filesystem_class", _without_s3fs(paths.fsspec.get_filesystem_class))
    with pytest.raises(UserError) as caught:
        paths.as_path(text)
    assert str(caught.value) == message


def _without_s3fs(get_filesystem_class):
    """Returns `fsspec.get_filesystem_class` of a machine that has no s3fs."""

    def get(protocol):
        if protocol == "s3":
            raise ImportError("Install s3fs to access S3")
        return get_filesystem_class(protocol)

    return get


def test_missing_gcsfs_names_the_extra(monkeypatch):
    def get(protocol):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(paths.fsspec, "get_filesystem_class", get)
    with pytest.raises(UserError, match=r"gs://lab/x: gs:// needs the package gcsfs: pip install 'salmonn-jax\[gcs\]'"):
        paths.as_path("gs://lab/x")
    with pytest.raises(UserError, match=r"https://lab/x: .*pip install 'fsspec\[http\]'"):
        paths.read_bytes("https://lab/x")


def test_absolute_and_joined_paths(bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = paths.as_path("gs://lab/run")
    assert str(paths.absolute(run)) == "gs://lab/run"
    assert paths.absolute(pathlib.Path("run")) == tmp_path / "run"
    assert str(paths.join(run, "base")) == "gs://lab/run/base"
    assert paths.join(run, "/models/base") == pathlib.Path("/models/base")
    assert str(paths.join(pathlib.Path("run"), "gs://lab/model/base")) == "gs://lab/model/base"


def test_a_bucket_that_cannot_be_used_is_one_line(bucket):
    with pytest.raises(UserError, match=r"gs://none/run cannot be reached \(The specified bucket does not exist"):
        paths.check_writable(paths.as_path("gs://none/run"))
    paths.check_writable(paths.as_path("gs://lab/run"))
    assert bucket.files() == {}


def test_missing_credentials_are_one_line(bucket, monkeypatch):
    def refuse(self, path, **options):
        raise RuntimeError("Anonymous caller\ndoes not have access, 401")

    monkeypatch.setattr(type(bucket), "exists", refuse)
    with pytest.raises(UserError) as caught:
        paths.check_readable(paths.as_path("gs://lab/run"))
    assert str(caught.value).startswith("gs://lab/run cannot be reached (Anonymous caller does not have access, 401)")


def test_missing_credentials_in_python_are_one_line(bucket, monkeypatch):
    def refuse(self, path, **options):
        raise RuntimeError("Anonymous caller")

    monkeypatch.setattr(type(bucket), "exists", refuse)
    for open_it in (salmonn_jax.load, lambda url: corpora.open_corpus("files", url)):
        with pytest.raises(UserError, match="gs://lab/run cannot be reached"):
            open_it("gs://lab/run")


def test_listings_are_not_kept(bucket):
    """Files that other processes write must be seen."""
    assert bucket.dircache.use_listings_cache is False


def test_errors_of_clients_are_recognised():
    client_error = type("HttpError", (Exception,), {"__module__": "gcsfs.retry"})
    assert paths.is_client_error(client_error("401"))
    assert paths.is_client_error(type("Derived", (client_error,), {})("401"))
    assert not paths.is_client_error(ValueError("401"))


@pytest.mark.parametrize("location", ["gs://lab/out", "{tmp_path}/out"])
def test_atomic_output_appears_when_it_is_complete(bucket, tmp_path, location):
    output = paths.as_path(location.format(tmp_path=tmp_path))
    with pytest.raises(ValueError, match="stop"), files.atomic_output(output) as unfinished:
        unfinished.mkdir()
        (unfinished / "a").write_text("1")
        raise ValueError("stop")
    assert not output.exists()
    with files.atomic_output(output) as unfinished:
        (unfinished / "sub").mkdir(parents=True)
        (unfinished / "config.json").write_text("{}")
        (unfinished / "sub" / "a").write_text("1")
        assert not output.exists()
    assert (output / "sub" / "a").read_text() == "1" and (output / "config.json").read_text() == "{}"
    with pytest.raises(UserError, match="already exists"), files.atomic_output(output):
        pass


def test_config_json_is_uploaded_last_and_a_failed_upload_is_deleted(bucket, monkeypatch):
    uploaded = []
    put_file = type(bucket).put_file

    def fail_at_config(self, local, remote, **options):
        uploaded.append(remote.rpartition("/")[2])
        if remote.endswith("config.json"):
            raise OSError("network")
        return put_file(self, local, remote, **options)

    monkeypatch.setattr(type(bucket), "put_file", fail_at_config)
    with pytest.raises(OSError, match="network"), files.atomic_output(paths.as_path("gs://lab/out")) as unfinished:
        unfinished.mkdir()
        for name in ("config.json", "tokenizer.model", "a"):
            (unfinished / name).write_text("1")
    assert uploaded == ["a", "tokenizer.model", "config.json"]
    assert bucket.files() == {}


def test_atomic_write_to_a_bucket(bucket):
    path = paths.as_path("gs://lab/new/page.html")
    with files.atomic_write(path) as unfinished:
        unfinished.write_text("one")
    with pytest.raises(ValueError, match="stop"), files.atomic_write(path) as unfinished:
        unfinished.write_text("two")
        raise ValueError("stop")
    assert bucket.files() == {"gs://lab/new/page.html": b"one"}


@pytest.mark.parametrize("location", ["gs://lab/log", "{tmp_path}/log"])
def test_growing_file(bucket, tmp_path, location):
    path = paths.as_path(location.format(tmp_path=tmp_path))
    file = files.open_growing(path)
    assert path.read_bytes() == b""
    file.write(b"one\n")
    file.write(b"two\n")
    file.flush()
    assert path.read_bytes() == b"one\ntwo\n"
    file.write(b"three\n")
    file.close()
    assert path.read_bytes() == b"one\ntwo\nthree\n"
    file = files.open_growing(path, 4)
    file.write(b"four\n")
    file.close()
    assert path.read_bytes() == b"one\nfour\n"


def test_a_growing_file_in_a_bucket_is_uploaded_when_due(bucket, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(files.time, "monotonic", lambda: now[0])
    path = paths.as_path("gs://lab/log")
    file = files.open_growing(path)
    file.write(b"one\n")
    assert path.read_bytes() == b""
    now[0] = files.UPLOAD_SECONDS + 1
    file.write(b"two\n")
    assert path.read_bytes() == b"one\ntwo\n"
