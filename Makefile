.PHONY: check test lint demo bench docs

check: test lint

test:
	uv run pytest

lint:
	uv run ruff format --check .
	uv run ruff check .
	uv run mypy

demo:
	uv run dino-path demo

bench:
	uv run python benchmarks/tiling/bench.py
	uv run python benchmarks/views/bench.py
	uv run python benchmarks/training/bench.py
	uv run python benchmarks/knn/bench.py
	uv run python benchmarks/embed/bench.py
