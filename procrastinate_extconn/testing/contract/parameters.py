"""What a plugin's test class says, checked before anything runs, and made into pytest's parameters."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pytest

from ...exceptions import PluginWarning
from ...kinds import Kind, kinds_of
from ...plugins import plugins
from .clause import Clause, clauses_of

if TYPE_CHECKING:
    from . import PluginContract

_POOL_HOOKS = ("connect_external", "listen_external")


class Faulty(Exception):
    """The test class asks for what cannot be tested."""


def parameters(contract: type[PluginContract], clause: Clause) -> list[Any]:
    """What *clause* is tried on, as pytest wants it.

    :raises Faulty: if the class leaves something untested, or names something that does not exist.
    """
    _check_exemptions(contract)
    kinds = _kinds(contract)
    chosen: Sequence[Kind] = kinds
    nothing = ""
    if clause.on == "async":
        chosen = [kind for kind in kinds if kind.is_async]
        nothing = "no kind is async"
    elif clause.on == "autocommit":
        chosen = contract.commits_by_itself or kinds
    elif clause.on == "pools":
        chosen = _pools(contract, kinds[0].plugin)
        nothing = f"the plugin has neither {' nor '.join(_POOL_HOOKS)}"
    if not chosen:
        return [pytest.param(kinds[0], id="none", marks=pytest.mark.skip(reason=nothing))]
    return [_parameter(contract, kind) for kind in chosen]


def _parameter(contract: type[PluginContract], kind: Kind) -> Any:
    missing = kind.missing()
    marks = [pytest.mark.skip(reason=f"not installed: {', '.join(missing)}")] if missing else []
    if refused := set(missing) - set(contract.optional):
        raise Faulty(
            f"the kind {kind.id!r} requires {', '.join(sorted(refused))}, which is not installed. Install it, or "
            "name it in `optional` if the kind may be left out"
        )
    return pytest.param(kind, id=kind.id, marks=marks)


def _kinds(contract: type[PluginContract]) -> Sequence[Kind]:
    kinds = getattr(contract, "kinds", None)
    if kinds is None:
        kinds = _named_by_plugin(getattr(contract, "plugin", None))
    if isinstance(kinds, Kind) or not all(isinstance(kind, Kind) for kind in kinds):
        raise Faulty("`kinds` should be a tuple of `Kind`")
    if not kinds:
        raise Faulty("there are no kinds, so nothing would be tested: name some in `kinds`")
    return tuple(kinds)


def _named_by_plugin(plugin: str | None) -> Sequence[Kind]:
    if plugin is None:
        raise Faulty(
            "set `plugin` to the plugin's name, if it has external_kinds, or `kinds` to a tuple of `Kind`"
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PluginWarning)
        kinds = kinds_of(plugin)
    for warning in caught:
        if repr(plugin) in str(warning.message):
            raise Faulty(str(warning.message))
    if not kinds:
        raise Faulty(
            f"no installed plugin names kinds of {plugin!r} in external_kinds: install the plugin, give it that "
            "hook, or name some in `kinds`"
        )
    return kinds


def _pools(contract: type[PluginContract], plugin: str) -> Sequence[Kind]:
    hooks = [hook for hook in _POOL_HOOKS if plugin in plugins().names(hook)]
    if hooks and not contract.pools:
        raise Faulty(
            f"the plugin {plugin!r} has {' and '.join(hooks)}: name the pools that it takes in `pools`"
        )
    return contract.pools


def _check_exemptions(contract: type[PluginContract]) -> None:
    clauses = clauses_of(contract)
    for name, reason in contract.exempt.items():
        if name not in clauses:
            near = difflib.get_close_matches(name, clauses, 1)
            hint = f", did you mean {near[0]!r}?" if near else ""
            raise Faulty(f"`exempt` names {name!r}, which is no clause{hint}")
        if not reason:
            raise Faulty(f"`exempt` gives no reason for {name!r}")
