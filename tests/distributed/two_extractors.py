"""`dino-path evaluate` as each of two processes runs it; `test_shared_extraction.py` starts it as torchrun does.

python two_extractors.py DATA OUT
"""

import os
import sys
from pathlib import Path

from dino_path.cli import main
from dino_path.evaluation.protocols import cache


def run(data: Path, out: Path) -> None:
    cache.PIECE = 5
    regroup = cache._regrouped

    def counted(batches, sizes):  # type: ignore[no-untyped-def]
        for rows in regroup(batches, sizes):
            with (out.parent / f"rank_{os.environ['RANK']}.txt").open("a") as stream:
                stream.write(f"{len(rows)}\n")
            yield rows

    cache._regrouped = counted
    settings = ["evaluation.protocols=[knn, linear-dino]", "evaluation.linear_crops=1", "evaluation.num_bootstrap=100"]
    sys.argv = ["dino-path", "evaluate", "table", "mean-colour", "--data", str(data), "--out", str(out)]
    sys.argv += ["--device", "cpu", "--workers", "0", *settings]
    main()


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]))
