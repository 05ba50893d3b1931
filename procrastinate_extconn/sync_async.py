"""What lets one body of code serve sync and async calls."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractContextManager
from typing import Any, TypeVar

T = TypeVar("T")


def finish(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never suspends: how a sync call runs what an async call awaits."""
    __tracebackhide__ = True
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    coroutine.close()
    raise RuntimeError("a synchronous call suspended")


async def done(value: Awaitable[T] | T) -> T:
    """*value*, awaited if it is awaitable."""
    if isinstance(value, list) or not inspect.isawaitable(value):
        return value
    return await value


def discard(awaitable: Any) -> None:
    """Close or cancel *awaitable*, so that it is not reported as never awaited."""
    if inspect.iscoroutine(awaitable):
        awaitable.close()
    elif hasattr(awaitable, "cancel"):
        awaitable.cancel()


def wraps(original: Callable[..., Any], wrapper: Callable[..., Any]) -> Callable[..., Any]:
    """*wrapper* with the name of *original*, and as ``async def`` if *original* is one.

    :param wrapper: a plain function that returns what *original* returns, or an awaitable of it.
    """
    if not inspect.iscoroutinefunction(original):
        return functools.wraps(original)(wrapper)

    @functools.wraps(original)
    async def async_wrapper(*args: Any, **kwargs: Any) -> Any:
        return await wrapper(*args, **kwargs)

    return async_wrapper


def within(block: Callable[[], AbstractContextManager[Any]], function: Any) -> Any:
    """*function*, sync or async, which then runs inside ``with block():``."""
    if not inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with block():
                return function(*args, **kwargs)

        return run

    @functools.wraps(function)
    async def run_async(*args: Any, **kwargs: Any) -> Any:
        with block():
            return await function(*args, **kwargs)

    return run_async
