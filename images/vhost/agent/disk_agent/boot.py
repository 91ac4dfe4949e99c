"""Has the guest of a VM booted? A pure state machine: what is seen of its devices says how far it is, or that it hangs.

A guest reads its root disk as soon as its kernel runs: seconds after its start, also on an emulated CPU. A kernel that
hangs before that never does (about one boot of 25 on an emulated CPU), and only a reset helps. The next sign is its
network card, which userland opens. From then on the guest's watchdog device watches, because its systemd has been
feeding it since before that (images/node/watchdog.conf).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

FIRST_LIMIT, LAST_LIMIT = 30.0, 480.0  # seconds
USERLAND = 4  # times the limit: until the network card is open


@dataclass(frozen=True)
class Boot:
    """The boot of one VM. All times are seconds of a clock that only goes forward.

    since: when it began. before: the disk's reads until then; None: unknown, the next look tells. limit: seconds after
    which a guest without a read is reset; each reset doubles it for good, so a slow machine gets its time. resets: how
    many there were. from_start: the agent was there from its beginning; of another boot, a closed card says nothing.
    read: it has read its root disk. up: it has opened its network card too.
    """

    since: float
    before: int | None = 0
    limit: float = FIRST_LIMIT
    resets: int = 0
    from_start: bool = True
    read: bool = False
    up: bool = False

    def seen(self, reads: int, *, card_open: bool) -> Boot:
        """`reads`: of the root disk, since QEMU started. card_open: the guest uses its network card."""
        if self.up:
            return self
        if self.before is None or reads < self.before:
            return replace(self, before=reads)
        read = reads > self.before
        return replace(self, read=read, up=read and (card_open or not self.from_start))

    def hangs(self, now: float) -> bool:
        return not self.up and now - self.since >= self._allowed

    @property
    def _allowed(self) -> float:
        return self.limit * USERLAND if self.read else self.limit

    def restarted(self, now: float) -> Boot:
        """The guest was reset, by whomever."""
        return replace(self, since=now, before=None, from_start=True, read=False, up=False)

    def reset(self, now: float) -> Boot:
        """The agent has reset it, because it hangs."""
        return replace(self.restarted(now), limit=min(LAST_LIMIT, 2 * self.limit), resets=self.resets + 1)

    def why(self, now: float) -> str:
        """What there is to say of a guest that is not up; empty: it is."""
        if self.up:
            return ""
        missing = "opened its network card" if self.read else "read its root disk"
        earlier = f" (resets so far: {self.resets})" if self.resets else ""
        return (
            f"the guest has not {missing} {now - self.since:.0f} s after its start,"
            f" and is reset after {self._allowed:.0f} s{earlier}"
        )
