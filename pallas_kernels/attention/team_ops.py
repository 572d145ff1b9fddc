"""``warp_ops`` for several programs that run as one block of threads, each by its own team of warps.

The assembler gives a thread as many registers as keep one block on a multiprocessor. What it can do with fewer, it does
when a block has more threads: so several programs in a block are a bound on registers, and nothing else. Teams do not
wait for each other.
"""

from typing import Any

from kakeya_jax.pallas_kernels.attention import warp_ops


class TeamOps:
    """The functions of ``warp_ops``; those that speak of a program mean the team's.

    Args:
        teams: of a block.
        warps: of a team.
        shared_nbytes: of a team's shared memory; the block's has ``teams`` times as much.
    """

    def __init__(self, teams: int, warps: int, shared_nbytes: int) -> None:
        self._teams = teams
        thread, self._threads = warp_ops.thread_index(), 32 * warps
        self._team = warp_ops.uniform(warp_ops.divide(thread, self._threads))
        self._thread = warp_ops.modulo(thread, self._threads)
        self._program = warp_ops.add(warp_ops.times(warp_ops.program_index(), teams), self._team)
        self._shared_nbytes = shared_nbytes

    def __getattr__(self, name: str) -> Any:
        return getattr(warp_ops, name)

    def thread_index(self) -> Any:
        """This thread's number in its program."""
        return self._thread

    def program_index(self) -> Any:
        """The program's number."""
        return self._program

    def shared_address(self, ref: Any) -> Any:
        """Where the program's part of an array of shared memory begins."""
        return warp_ops.add(warp_ops.shared_address(ref), warp_ops.times(self._team, self._shared_nbytes))

    def teams(self) -> int:
        """Programs of the block of threads."""
        return self._teams

    def team(self) -> Any:
        """Which of them this one is."""
        return self._team

    def of_team(self, where: Any, team: Any) -> Any:
        """The shared address that is to another team what ``where`` is to this one."""
        further = warp_ops.times(warp_ops.subtract(team, self._team), self._shared_nbytes)
        return warp_ops.shared_offset(where, further)

    def block_barrier(self) -> None:
        """Waits for all threads of all teams."""
        warp_ops.barrier(warp_ops.integer(self._teams + 1), self._teams * self._threads)

    def barrier(self) -> None:
        """Waits for all threads of the program."""
        warp_ops.barrier(warp_ops.add(self._team, warp_ops.integer(1)), self._threads)

    def arrive(self, counter: Any, slot: Any) -> Any:
        """See ``warp_ops.arrive``."""
        return warp_ops.arrive(counter, slot, self)
