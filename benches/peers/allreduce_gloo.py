"""PyTorch over Gloo at the work of `leyden-bench run comm`.

    torchrun --standalone --nproc-per-node 2 allreduce_gloo.py BYTES ...

Rank 0 prints one JSON object a size: the seconds of each all_reduce of f32, and of each barrier for 0 bytes.
"""
import json
import sys
import time

import torch
import torch.distributed as dist

dist.init_process_group("gloo")
torch.set_num_threads(1)
for size in map(int, sys.argv[1:]):
    data = torch.ones(size // 4)
    work = (lambda: dist.all_reduce(data)) if size else dist.barrier
    counted = 15 if size > 1 << 20 else 300
    seconds = []
    for _ in range(10):
        work()
        data.fill_(1)
    for _ in range(counted):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
        data.fill_(1)
    if dist.get_rank() == 0:
        print(json.dumps({"bytes": size, "seconds": seconds}), flush=True)
dist.destroy_process_group()
