"""PyTorch at the work of the row `comm/launch-2`: from the start of a command until two ranks have met.

    torchrun --standalone --nproc-per-node 2 launch_torchrun.py

Rank 0 prints when it has passed the first barrier, in ns of the clock that all processes of a host share.
"""
import time

import torch.distributed as dist

dist.init_process_group("gloo")
dist.barrier()
if dist.get_rank() == 0:
    print(time.monotonic_ns(), flush=True)
dist.destroy_process_group()
