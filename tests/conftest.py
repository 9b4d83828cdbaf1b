import os

# What one worker compiled, the other, the next module and the next run load.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(os.path.dirname(__file__), "../.pytest_cache/jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Eight virtual devices for the sharding tests; before JAX is imported.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
# Eight devices on two busy cores: a collective may wait long for its last thread, which is no deadlock.
os.environ["XLA_FLAGS"] += " --xla_cpu_collective_call_terminate_timeout_seconds=300"
# Two workers with two LAPACK threads each on two cores wait for each other: up to 20 times slower.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import pytest

jax.config.update("jax_cpu_enable_async_dispatch", False)
# Compiling takes most of the time of small tests.
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Each compiled program takes memory maps, of which a process may hold 65530: past that, it is aborted."""
    yield
    jax.clear_caches()


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """Both precisions; float64 with x64 enabled for the test."""
    with jax.enable_x64(request.param == "float64"):
        yield request.param


@pytest.fixture
def optimized():
    """Programs that run long are compiled as users compile them."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield
