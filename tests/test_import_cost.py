"""What is imported when: a program that defers nothing on a connection pays for nothing."""

from __future__ import annotations

from holding import run_python

ADDED = """
import sys
import procrastinate
before = set(sys.modules)

def added():
    names = {name.partition(".")[0] for name in set(sys.modules) - before}
    return sorted(names - sys.stdlib_module_names - {"procrastinate"})
"""


def test_installing_imports_neither_plugin_nor_driver() -> None:
    """`import` and `install()` import no plugin, no plugin manager and no driver that Procrastinate has not."""
    program = """
        import procrastinate_extconn
        procrastinate_extconn.install()
        plugins = [name for name in sys.modules if name.startswith("procrastinate_extconn.builtin")]
        print(added(), plugins)
    """
    assert run_python(program, ADDED) == "['procrastinate_extconn'] []\n"


def test_asking_all_plugins_imports_no_driver() -> None:
    """A plugin says no without importing its driver: what was never imported has no connections."""
    program = """
        import procrastinate_extconn
        try:
            procrastinate_extconn.describe(object())
            print("somebody took it")
        except procrastinate_extconn.UnsupportedConnection:
            ours = ("procrastinate_extconn", "pluggy")
            print([name for name in added() if not name.startswith(ours)])
    """
    assert run_python(program, ADDED) == "[]\n"
