"""Options and fixtures of all tests: --device, --dtype, one torch thread, a seeded stream, a cache folder."""

import os

import pytest
import torch


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="Device of the tests that take one, e.g. cuda.")
    parser.addoption(
        "--dtype", default="float64", choices=["float32", "float64"], help="Dtype of the tests that take one."
    )


def pytest_configure(config):
    # several workers share the cores; more threads would only make them wait for each other
    torch.set_num_threads(1)


def pytest_collection_modifyitems(config, items):
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device")
        for item in items:
            if item.get_closest_marker("gpu"):  # keywords also hold the names of folders
                item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory):
    """One cache for all workers of a run, so that what is compiled is compiled once; never the user's."""
    root = tmp_path_factory.getbasetemp()
    # under pytest-xdist each worker has a folder of its own in a common one
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    previous = os.environ.get("BOLTZFLOW_CACHE_DIR")
    os.environ["BOLTZFLOW_CACHE_DIR"] = str(root / "boltzflow-cache")
    yield root / "boltzflow-cache"
    if previous is None:
        del os.environ["BOLTZFLOW_CACHE_DIR"]
    else:
        os.environ["BOLTZFLOW_CACHE_DIR"] = previous


@pytest.fixture
def device(request):
    return torch.device(request.config.getoption("--device"))


@pytest.fixture
def dtype(request):
    return getattr(torch, request.config.getoption("--dtype"))


@pytest.fixture
def rng(device):
    return torch.Generator(device=device).manual_seed(20250101)
