"""No broken plugin passes the contract kit: each planted fault is caught by the clause that it names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from broken_plugins import FAULTS, Fault, Right, RightAsync
from broken_plugins.pools import RightAsyncPool, RightPool

from procrastinate_extconn.testing.contract import PluginContract
from procrastinate_extconn.testing.contract.clause import clauses_of
from procrastinate_extconn.testing.server import VARIABLE, server_dsn

SUITE = """
import broken_plugins, pytest
import procrastinate_extconn as extconn
from broken_plugins import pools
from procrastinate_extconn.testing import PluginContract
from procrastinate_extconn.testing.contract.subjects import interruptions, pools as contract_pools

RIGHT = [broken_plugins.Right, broken_plugins.RightAsync, pools.RightPool, pools.RightAsyncPool]
ALL = {one.__name__: one for one in [*RIGHT, *broken_plugins.FAULTS]}
POOLS = [one for one in ALL.values() if issubclass(one, pools.PoolFault)]

@pytest.fixture(autouse=True)
def registered(kind):
    plugin = ALL[kind.plugin].plugin
    extconn.register(plugin, kind.plugin)
    yield
    extconn.unregister(plugin)

interruptions.PATIENCE = contract_pools.PATIENCE = 3  # what waits for ever is caught sooner

class TestFaults(PluginContract):
    kinds = [one.kind() for one in ALL.values()]
    pools = [one.pool_kind() for one in POOLS]
"""
CLAUSES = clauses_of(PluginContract)
pytestmark = [pytest.mark.programs, pytest.mark.timeout(600)]


def name_of(fault: type[Fault], clause: str) -> str:
    """The test's name, as pytest has it."""
    return f"test_{clause}[{fault.__name__}]"


def on_what_is_right() -> list[str]:
    """Every clause on what is right."""
    names = []
    for clause in CLAUSES.values():
        if clause.on == "pools":
            chosen: list[type[Fault]] = [RightPool, RightAsyncPool]
        else:
            chosen = [RightAsync] if clause.on == "async" else [Right, RightAsync]
        names += [name_of(one, clause.name) for one in chosen]
    return names


def failures(tests: list[str], folder: Path, dsn: str) -> dict[str, str]:
    """Run the kit on plugins that are right and on broken ones: the tests that failed, and what they said."""
    (folder / "test_broken.py").write_text(SUITE)
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--junitxml=report.xml"]
        + [f"test_broken.py::TestFaults::{test}" for test in tests],
        cwd=folder,
        env=os.environ
        | {
            VARIABLE: dsn,
            "PYTHONPATH": str(Path(__file__).with_name("support")),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    report = folder / "report.xml"
    assert report.exists(), ran.stdout + ran.stderr
    cases = list(ElementTree.parse(report).iter("testcase"))
    assert sorted(case.attrib["name"] for case in cases) == sorted(tests), ran.stdout
    return {case.attrib["name"]: str(text.text) for case in cases for text in case.iter("failure")}


def what_is_wrong(fault: type[Fault], text: str) -> str | None:
    """What the failure on a broken plugin does not say: which plugin, which clause and why."""
    expected = [
        f"plugin '{fault.__name__}' breaks the contract on {fault.__name__}",
        f"clause {fault.clause}: {CLAUSES[fault.clause].sentence}",
    ]
    if all(one in text for one in expected) and fault.why in text.partition("why: ")[2]:
        return None
    return f"{fault.clause} should say {fault.why!r}, and says: {text}"


def test_each_fault_is_caught_by_its_clause(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    """The clause that a broken plugin names fails and says so. A plugin that keeps the contract passes every clause."""
    right = on_what_is_right()
    broken = {name_of(fault, fault.clause): fault for fault in FAULTS}
    found = failures([*right, *broken], tmp_path, server_dsn(pytestconfig))
    assert {test: found[test] for test in right if test in found} == {}
    wrong = {
        test: what_is_wrong(fault, found.get(test, "nothing: it passes"))
        for test, fault in broken.items()
    }
    assert [said for said in wrong.values() if said] == []


def test_each_clause_has_a_fault() -> None:
    """Each clause is broken by a fault that was planted for it; `test_contract_kit` has one of an installed plugin."""
    assert set(CLAUSES) - {fault.clause for fault in FAULTS} == {"imports_no_driver"}
