PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCH_READY := $(VENV)/.bench-ready
# Folder of published measurements; each benchmark's --help says where its set is found.
DATA ?= ../shared/data

.PHONY: run test ui lint bench bench-accuracy bench-scheduler bench-simulator clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

run: $(READY)
	$(BIN)/apportion run examples/quickstart.yaml

test: $(READY)
	$(BIN)/python -m pytest

ui: $(READY)
	$(BIN)/apportion ui

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python -m benchmarks.main_job

$(BENCH_READY): $(READY)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	touch $(BENCH_READY)

bench-accuracy: $(BENCH_READY)
	$(BIN)/python -m benchmarks.zoo
	$(BIN)/python -m benchmarks.accuracy_gpu_steps --data $(DATA)/latency/neusight
	$(BIN)/python -m benchmarks.accuracy_gemm
	$(BIN)/python -m benchmarks.accuracy_timm --data $(DATA)/latency/timm
	$(BIN)/python -m benchmarks.accuracy_machine

bench-scheduler: $(BENCH_READY)
	@echo "Placement in seven parts, about 40 minutes on two cores with nothing beside it."
	@echo "1 of 7: published instances, throughput (2 minutes)"
	$(BIN)/python -m benchmarks.scheduler_throughput --data $(DATA)/placement/dnn-partitioning
	@echo "2 of 7: look-alikes of them, made in build/lookalikes (2 minutes)"
	$(BIN)/python -m benchmarks.lookalike_instances --data $(DATA)/placement/dnn-partitioning --out build/lookalikes
	$(BIN)/python -m benchmarks.scheduler_throughput --data build/lookalikes
	@echo "3 of 7: latency of random graphs, published instances and captured models (13 minutes)"
	$(BIN)/python -m benchmarks.scheduler_latency --data $(DATA)/placement
	@echo "4 of 7: ten models on five hardware mixes (4 minutes)"
	$(BIN)/python -m benchmarks.scheduler_mixes
	@echo "5 of 7: replicated stages (4 minutes)"
	$(BIN)/python -m benchmarks.scheduler_replicas
	@echo "6 of 7: graphs of up to 100,000 operators (8 minutes)"
	$(BIN)/python -m benchmarks.scheduler_scale
	@echo "7 of 7: training steps as pipelines (6 minutes)"
	$(BIN)/python -m benchmarks.training_micro_batches

bench-simulator: $(BENCH_READY)
	$(BIN)/python -m benchmarks.simulator_replay
	$(BIN)/python -m benchmarks.simulator_queueing
	$(BIN)/python -m benchmarks.simulator_generation --trace $(DATA)/traces/AzureLLMInferenceTrace_conv.csv
	$(BIN)/python -m benchmarks.serving_vllm --data $(DATA)/serving/llmservingsim

clean:
	rm -rf $(VENV) build *.egg-info
