"""Two CPU processes that train together in PyTorch Lightning (DDP over Gloo), at a global batch of 64, one thread each.

    python lightning_ddp.py mlp|cnn|first STEPS

Bar, CSV logger and checkpoint are on, as in Leyden's side of the rows. Prints as its last line the microseconds of a step,
from the end of the first one until `fit` returns; with `first`, when the MLP's first step has ended, in ns of the clock that
all processes of a host share.
"""
import logging
import sys
import tempfile
import time
import warnings

warnings.filterwarnings("ignore")
import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.ERROR)
RANKS = 2
torch.set_num_threads(max(1, torch.get_num_threads() // RANKS))


def net(work):
    if work == "cnn":
        return nn.Sequential(
            nn.Unflatten(1, (1, 28)), nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(),
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Linear(128, 10),
        )
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )


class Module(L.LightningModule):
    def __init__(self, work):
        super().__init__()
        self.net = net(work)
        self.first = None

    def training_step(self, batch, _):
        x, y = batch
        loss = nn.functional.cross_entropy(self.net(x), y)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def on_train_batch_end(self, *_):
        self.first = self.first or time.monotonic_ns()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-3)


def main():
    work, steps = sys.argv[1], int(sys.argv[2])
    rows = steps * 64
    data = TensorDataset(torch.randn(rows, 28, 28), torch.randint(0, 10, (rows,)))
    loader = DataLoader(data, batch_size=64 // RANKS, shuffle=True)
    module = Module(work)
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            max_epochs=1, accelerator="cpu", devices=RANKS, strategy="ddp", enable_model_summary=False,
            logger=CSVLogger(folder), default_root_dir=folder,
        )
        trainer.fit(module, loader)
        ended = time.monotonic_ns()
    if trainer.global_rank == 0:
        print(f"\n{module.first if work == 'first' else (ended - module.first) / 1e3 / (steps - 1)}")


if __name__ == "__main__":
    main()
