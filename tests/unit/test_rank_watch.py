"""The watch over the other processes of a run."""

import threading

from dino_path.rank_watch import Progress, RankWatch


class LateStore:
    """Answers when it is told to, as the store of a busy machine answers seconds late."""

    def __init__(self) -> None:
        self.is_asked, self.may_answer = threading.Event(), threading.Event()

    def check(self, names: list[str]) -> bool:
        self.is_asked.set()
        self.may_answer.wait()
        return False

    def set(self, name: str, value: str) -> None: ...

    def get(self, name: str) -> bytes:
        return b"1 0 here"


def test_a_process_ends_after_the_last_answer_of_the_store() -> None:
    """A thread that comes back from the store while Python ends aborts the process: exit code -6 for a good run."""
    store = LateStore()
    watch = RankWatch(lambda: store, "rank 0", Progress(), 1, 2, 60.0)  # type: ignore[arg-type, return-value]
    watch.start()
    assert store.is_asked.wait(10)
    answer = threading.Timer(2.5, store.may_answer.set)  # the join of 2 s that was there before is not enough
    answer.start()
    watch.end()
    assert store.may_answer.is_set()
    assert not watch.is_alive()
    answer.join()
