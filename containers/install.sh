#!/bin/sh
# What a container of dino_path holds, on Debian 12: the Dockerfile and apptainer.def beside this run it as root, with a
# checkout of the repository as first argument.
set -eu
checkout=$1

# Python; the compiler that torch.compile calls (training.compile); and the libraries with which NCCL finds InfiniBand.
apt-get update
DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
    ca-certificates python3 python3-venv python3-dev g++ libibverbs1 ibverbs-providers librdmacm1
rm -rf /var/lib/apt/lists/*

python3 -m venv /opt/dino_path
/opt/dino_path/bin/pip install --no-cache-dir --constraint "$checkout/constraints.txt" \
    "${checkout}[onnx,survival,tensorboard,wsidicom]"
/opt/dino_path/bin/dino-path --version
