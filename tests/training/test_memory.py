"""The allocator setting."""

import sys

from boltzflow.training.memory import keep_freed_memory


def test_setting_is_taken_on_glibc_and_harmless_elsewhere(monkeypatch):
    assert keep_freed_memory.__wrapped__() is (sys.platform.startswith("linux"))
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory.__wrapped__() is False
