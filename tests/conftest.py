"""Where the programs are, and what this machine can do."""
import os
import signal
import subprocess

import pytest

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def pytest_configure(config):
    # A shell starts what it puts in the background with SIGINT ignored, nohup with SIGHUP; and our
    # programs leave alone what they find ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    config.addinivalue_line("markers", "plain_only: the same under any build; run once")
    config.addinivalue_line("markers", "torture: long; run by `make torture`")


def pytest_collection_modifyitems(config, items):
    if os.environ.get("LODGE_TORTURE"):
        return
    skip = pytest.mark.skip(reason="long: run by `make torture`")
    for item in items:
        if "torture" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def bin_folder():
    return os.environ.get("LODGE_BIN", f"{TOP}/build/bin")


@pytest.fixture(scope="session")
def lodge(bin_folder):
    """The path of lodge, with the default image made."""
    path = f"{bin_folder}/lodge"
    subprocess.run([path, "image", "build", "default"], check=True, timeout=600,
                   stdout=subprocess.DEVNULL)
    return path
