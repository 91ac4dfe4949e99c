"""What only makes the program start faster. Each function says what it saves."""

import asyncio
import gc

import pulumi


def quick() -> None:
    """Call this before anything imports a provider's SDK."""
    gc.disable()  # the SDKs' many classes all stay: looking through them again and again costs 0.3 s
    pulumi.log.debug = _unsaid


def _unsaid(*_: object, **__: object) -> None:
    """For the SDK's debug messages: four for each resource, and each is a call that waits. 0.2 s."""


def finish() -> None:
    """Call this when everything is registered."""
    pulumi.run(_begun)
    gc.freeze()  # what is there is not visited at the exit


async def _begun() -> None:
    """Let the registrations begin before the SDK looks for them: else it waits for each of their outputs in turn."""
    await asyncio.sleep(0)
