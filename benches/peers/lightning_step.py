"""What a training step costs in PyTorch Lightning and in a raw PyTorch loop.

    python lightning_step.py noop|mlp STEPS

Bar, CSV logger and checkpoint are on, as in Leyden's side of the row. Prints one JSON object:
{"work": ..., "rounds": [[lightning_us, raw_us], ...]}, microseconds a step.
"""
import json
import logging
import sys
import tempfile
import time
import warnings

warnings.filterwarnings("ignore")
import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
torch.set_num_threads(2)


class Module(L.LightningModule):
    def __init__(self, work):
        super().__init__()
        self.work = work
        if work == "noop":
            self.parameter = torch.nn.Parameter(torch.zeros(1))
        else:
            sizes = [784, 512, 512, 10]
            layers = []
            for before, after in zip(sizes, sizes[1:]):
                layers += [torch.nn.Linear(before, after), torch.nn.ReLU()]
            self.net = torch.nn.Sequential(*layers[:-1])

    def loss(self, batch):
        x, y = batch
        if self.work == "noop":
            return self.parameter.sum()
        return torch.nn.functional.cross_entropy(self.net(x), y)

    def training_step(self, batch, _):
        loss = self.loss(batch)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self):
        kind = torch.optim.SGD if self.work == "noop" else torch.optim.Adam
        return kind(self.parameters(), 1e-3)


def lightning_us(work, loader, steps):
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            max_epochs=1, accelerator="cpu", enable_model_summary=False, logger=CSVLogger(folder), default_root_dir=folder
        )
        begun = time.perf_counter()
        trainer.fit(Module(work), loader)
        return (time.perf_counter() - begun) / steps * 1e6


def raw_us(work, loader, steps):
    module = Module(work)
    optimizer = module.configure_optimizers()
    begun = time.perf_counter()
    for batch in loader:
        optimizer.zero_grad()
        loss = module.loss(batch)
        loss.backward()
        optimizer.step()
        loss.item()
    return (time.perf_counter() - begun) / steps * 1e6


def main():
    work, steps = sys.argv[1], int(sys.argv[2])
    width, batch = (1, 1) if work == "noop" else (784, 64)
    data = TensorDataset(torch.randn(steps * batch, width), torch.randint(0, 10, (steps * batch,)))
    loader = DataLoader(data, batch_size=batch, shuffle=True)
    lightning_us(work, loader, steps), raw_us(work, loader, steps)
    rounds = [[lightning_us(work, loader, steps), raw_us(work, loader, steps)] for _ in range(3)]
    print("\n" + json.dumps({"work": work, "rounds": rounds}))


if __name__ == "__main__":
    main()
