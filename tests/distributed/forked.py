"""Several ranks on this machine, as torchrun or srun would start them, forked after all imports."""

import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping

from dino_path.errors import DinoPathError

EXIT_REFUSED = 2


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def run_ranks(
    ranks: Iterable[int], size: int, body: Callable[[], None], further: Mapping[int, Mapping[str, str]] | None = None
) -> list[int]:
    """Run `body` in one process for each of `ranks`, with torchrun's variables; their exit codes, as the command's.

    One that stops (SIGSTOP) is killed when the others have ended, as launchers do.

    Args:
        further: variables of single processes, by their place in `ranks`.
    """
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    children = []
    for place, rank in enumerate(ranks):
        child = os.fork()
        if child == 0:
            os.environ.update(
                shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} | dict((further or {}).get(place, {}))
            )
            code = 0
            try:
                body()
            except DinoPathError as error:
                sys.stderr.write(f"{error}\n")
                code = EXIT_REFUSED
            except BaseException:  # noqa: BLE001
                traceback.print_exc()
                code = 1
            sys.stderr.flush()
            os._exit(code)
        children.append(child)
    statuses = [os.waitpid(child, os.WUNTRACED)[1] for child in children]
    for place, child in enumerate(children):
        if os.WIFSTOPPED(statuses[place]):
            os.kill(child, signal.SIGKILL)
            statuses[place] = os.waitpid(child, 0)[1]
    return [os.waitstatus_to_exitcode(status) for status in statuses]
