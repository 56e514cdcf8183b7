"""PyTorch's DataLoader at the work of one row of `leyden-bench run loader`.

    python loader_torch.py CELL CONTEXT [PATH]

CONTEXT is `none`, `fork`, `spawn` or `forkserver`; workers are persistent. Each line on stdin is a command, `round` or
`verify`; each is answered by one JSON object on stdout. `verify` is a pass with a checksum of every byte, which does not
depend on the order of the samples; rounds have a consumer that does nothing.
"""
import itertools
import json
import os
import resource
import signal
import sys
import time

import jpegs
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset

ROWS, WIDTH, BATCH = 60_000, 784, 64
IMAGE = 3 * 224 * 224
KEYS, KEYED_WIDTH, KEYED_LEN = 32, 1024, 300
BIG_BATCHES = 48
SHIPPED = 128 << 20
RESIDENT = 1 << 30


def numbers(rows, width):
    """The same bits as `numbers` in data.rs."""
    word = np.arange(rows * width, dtype=np.uint32) * np.uint32(2_654_435_761)
    return torch.from_numpy(((word >> np.uint32(8)).astype(np.float32) / np.float32(1 << 24)).reshape(rows, width))


class Cycled(Dataset):
    """`length` samples, which are `rows` over and over."""

    def __init__(self, rows, length):
        self.rows, self.length = rows, length

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        return self.rows[i % len(self.rows)], i % 10


class Keyed(Dataset):
    """Samples of many small tensors."""

    def __init__(self):
        self.columns = {f"column{key:02}": numbers(BATCH, KEYED_WIDTH) + key for key in range(KEYS)}

    def __len__(self):
        return KEYED_LEN

    def __getitem__(self, i):
        return {name: rows[i % BATCH] for name, rows in self.columns.items()}


class Gathered(Dataset):
    """What an expert writes in place of TensorDataset: a whole batch by one index_select."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitems__(self, batch):
        index = torch.tensor(batch)
        return self.rows[index], index % 10


class Images(Dataset):
    """JPEG files scaled to 224x224, by Pillow or by torchvision's own decoder."""

    def __init__(self, decoder):
        self.files = sorted(jpegs.folder().glob("*/*.jpg"))
        self.decoder = decoder

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        from torchvision import io
        from torchvision.transforms import functional

        if self.decoder == "pillow":
            with Image.open(self.files[i]) as image:
                return functional.to_tensor(functional.resize(image.convert("RGB"), [224, 224])), 0
        image = io.decode_jpeg(io.read_file(str(self.files[i])), mode=io.ImageReadMode.RGB)
        return functional.resize(image, [224, 224], antialias=True).float().div_(255), 0


class Paths(Dataset):
    def __init__(self, paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        return len(self.paths[i])


class Resident(Dataset):
    """Its workers are as large as a data set that has been read."""

    def __len__(self):
        return 1 << 30

    def __getitem__(self, i):
        time.sleep(0.001)
        return i


def touch(_worker):
    global resident
    resident = bytearray(os.urandom(4096)) * (RESIDENT // 4096)


WEIGHTS = {}


def checksum(array, salt=0):
    """The sum of one hash for each sample: the same as `Checksum` in checksum.rs."""
    words = np.ascontiguousarray(array).reshape(len(array), -1).view(np.uint32)
    width = words.shape[1]
    if width not in WEIGHTS:
        WEIGHTS[width] = (np.arange(width, dtype=np.uint64) * np.uint64(2) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        mixed = (words.astype(np.uint64) * WEIGHTS[width]).sum(axis=1, dtype=np.uint64) + np.uint64(salt)
        mixed ^= mixed >> np.uint64(32)
        mixed *= np.uint64(0xD6E8FEB86659FD93)
        mixed ^= mixed >> np.uint64(29)
        return int(mixed.sum(dtype=np.uint64))


def checksum_of(batch):
    if isinstance(batch, dict):
        return sum(checksum(rows.numpy(), salt) for salt, (_, rows) in enumerate(sorted(batch.items())))
    return sum(checksum(part.numpy(), salt) for salt, part in enumerate(batch))


class Passes:
    """Whole epochs, timed: microseconds a batch."""

    def __init__(self, dataset, **options):
        self.loader = DataLoader(dataset, **options)
        for _ in self.loader:
            pass

    def verify(self):
        total, samples = 0, 0
        for batch in self.loader:
            total += checksum_of(batch)
            samples += len(next(iter(batch.values())) if isinstance(batch, dict) else batch[0])
        return {"checksum": f"{total % 2**64:016x}", "samples": samples}

    def round(self):
        busy, begun, batches = own_cpu(), time.perf_counter(), 0
        for batch in self.loader:
            batches += 1
        seconds = time.perf_counter() - begun
        return {"seconds": seconds, "batches": batches, "cpu": own_cpu() - busy}


class Decoded(Passes):
    """Decoders differ in the last bits, so that only samples are counted."""

    def verify(self):
        return {"samples": sum(len(images) for images, _ in self.loader)}


class Start:
    """From building a loader to its first batch, and the memory of its workers."""

    def __init__(self, dataset, **options):
        self.dataset, self.options = dataset, options

    def verify(self):
        return {}

    def round(self):
        begun = time.perf_counter()
        batches = iter(DataLoader(self.dataset, **self.options))
        first = next(batches)
        seconds = time.perf_counter() - begun
        answer = {"seconds": seconds, "pss": sum(pss(worker.pid) for worker in batches._workers)}
        del batches, first
        return answer


class Resume:
    """A shuffled order of 10^8 samples, and the place after 90 % of it: what a sampler that is an iterator costs. (10^9
    needs ten times as much of both, and 44 GB.)"""

    SAMPLES = 100_000_000

    def verify(self):
        return {}

    def round(self):
        before, begun = memory(), time.perf_counter()
        order = iter(RandomSampler(range(self.SAMPLES)))
        first = next(order)
        to_first = time.perf_counter() - begun
        place = next(itertools.islice(order, self.SAMPLES // 10 * 9 - 1, None))
        seconds = time.perf_counter() - begun
        grown = memory() - before
        del order, first, place
        return {"seconds": seconds, "first": to_first, "bytes": grown, "samples": self.SAMPLES}


class Death:
    """A worker with a gigabyte in memory is killed while its parent waits for batches."""

    def __init__(self, context):
        self.context = context

    def verify(self):
        return {}

    def round(self):
        loader = DataLoader(
            Resident(), batch_size=1, num_workers=2, multiprocessing_context=self.context, worker_init_fn=touch
        )
        batches = iter(loader)
        for _ in range(8):
            next(batches)
        victim = batches._workers[1].pid
        begun = time.perf_counter()
        os.kill(victim, signal.SIGKILL)
        try:
            for _ in batches:
                pass
        except Exception as error:  # RuntimeError as a rule, ConnectionResetError where it was sending
            return {"seconds": time.perf_counter() - begun, "message": repr(error)}
        raise SystemExit("the death went unnoticed")


def own_cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def memory():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def pss(pid):
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))


def paths():
    """The same strings as `paths` in data.rs."""
    name = "/data/imagenet/train/n{:08}/n{:08}_{:08}.JPEG"
    each = len(name.format(0, 0, 0))
    return [name.format(i // 1300, i // 1300, i) for i in range(SHIPPED // each)]


def cell(name, context):
    workers = {"none": 0}.get(context, None)

    def options(count, **more):
        count = 0 if workers == 0 else count
        if count:
            more |= {"multiprocessing_context": context, "persistent_workers": True}
        return {"num_workers": count} | more

    if name in ("tensors-inline", "tensors-2proc"):
        data = TensorDataset(numbers(ROWS, WIDTH), torch.arange(ROWS) % 10)
        return Passes(data, batch_size=BATCH, shuffle=True, **options(2))
    if name in ("tensors-inline-getitems", "tensors-2proc-getitems"):
        return Passes(Gathered(numbers(ROWS, WIDTH)), batch_size=BATCH, shuffle=True, collate_fn=as_is, **options(2))
    if name == "dict32-1proc":
        return Passes(Keyed(), batch_size=1, **options(1))
    if name == "big-2proc":
        return Passes(Cycled(numbers(BATCH, IMAGE).view(BATCH, 3, 224, 224), BATCH * BIG_BATCHES), batch_size=BATCH, **options(2))
    if name == "jpeg":
        return Decoded(Images("pillow"), batch_size=32, **options(2))
    if name == "jpeg-torchvision":
        return Decoded(Images("torchvision"), batch_size=32, **options(2))
    if name == "start-2spawn":
        return Start(TensorDataset(numbers(ROWS, WIDTH), torch.arange(ROWS) % 10), batch_size=BATCH, **options(2))
    if name == "ship-128mib":
        return Start(Paths(paths()), batch_size=BATCH, **options(8))
    if name == "resume-1e9":
        return Resume()
    if name == "death-p99":
        return Death(context)
    raise SystemExit(f"no cell `{name}`")


def as_is(batch):
    return batch


def main():
    torch.set_num_threads(1)
    side = cell(*sys.argv[1:3])
    print(json.dumps({"torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        answer = side.verify() if line.strip() == "verify" else side.round()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
