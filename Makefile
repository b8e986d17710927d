.PHONY: check test lint demo bench bench-gpu pretrain-gpu docs

check: test lint

test:
	uv run pytest

lint:
	uv run ruff format --check .
	uv run ruff check .
	uv run codespell
	uv run mypy
	uv run mypy --config-file tests/mypy.ini

demo:
	uv run dino-path demo

# The pages as a site, at an address that it prints.
docs:
	uv run mkdocs serve

bench:
	uv run python benchmarks/tiling/bench.py
	uv run python benchmarks/views/bench.py
	uv run python benchmarks/training/bench.py
	uv run python benchmarks/training/loss.py
	uv run python benchmarks/knn/bench.py
	uv run python benchmarks/embed/bench.py

# One GPU: tests that need one, then everything measured. PEER: a checkout of facebookresearch/dino, fetched by hand.
# Called again, it continues: BUDGET_S=500 for a machine that is lent for ten minutes at a time. RUN= where there is no uv.
BUDGET_S ?= inf
RUN ?= uv run
bench-gpu:
	$(RUN) python -m pytest -o addopts=-q tests/gpu  # without pytest-xdist, which a lent machine may lack
	$(RUN) python benchmarks/training/loss.py --batches 64 256 512 --piece-mb 16 64 256
	$(RUN) python benchmarks/gpu/bench.py --out bench-gpu --budget-s $(BUDGET_S) $(if $(PEER),--peer $(PEER))

# ViT-S/16 on DATA, folders of labelled tiles, without the labels; then the table at 100, 10 and 1 % of them. It continues.
RECIPE ?= vits16.yaml
pretrain-gpu:
	$(RUN) python benchmarks/pretraining/curve.py $(DATA) --out pretrain-gpu --recipes $(RECIPE) --budget-s $(BUDGET_S)
	rm -rf pretrain-gpu/vit
	$(RUN) python -m dino_path export pretrain-gpu/$(basename $(notdir $(RECIPE))) --out pretrain-gpu/vit
	for set in $(notdir $(DATA)); do \
		for share in 1 0.1 0.01; do \
			$(RUN) python -m dino_path baseline --data pretrain-gpu/$$set.csv --out pretrain-gpu/resnet50-$$set \
				--fraction $$share || exit; \
		done; \
		$(RUN) python -m dino_path evaluate table pretrain-gpu/vit untrained:pretrain-gpu/vit colour-statistics \
			--data pretrain-gpu/$$set.csv --baseline pretrain-gpu/resnet50-$$set --fractions 1,0.1,0.01 \
			--out pretrain-gpu/eval-$$set || exit; \
	done
