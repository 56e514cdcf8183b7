//! A trainer of one's own, on `Fabric`'s public items alone: epochs, accumulation, validation over all ranks, early stopping,
//! a checkpoint of the best, and going on from it. `cargo run --release --example own_trainer -- 2`
use burn::nn::{Linear, LinearConfig};
use burn::optim::{AdamConfig, ModuleOptimizer};
use burn::tensor::activation::relu;
use leyden::comm::ReduceOp;
use leyden::{FabricOptimizer, prelude::*};

/// What the trainer asks of a model.
trait Trainable: Module {
    type Batch: FromHost;

    fn loss(&self, batch: Self::Batch) -> Tensor<1>;

    /// How many of a batch are right, and of how many.
    fn right(&self, batch: Self::Batch) -> Result<[i64; 2]>;
}

struct SmallTrainer {
    epochs: u64,
    accumulate: usize,
    patience: usize,
    learning_rate: f64,
    file: &'static str,
}

type Host<M> = <<M as Trainable>::Batch as FromHost>::Host;

impl SmallTrainer {
    fn fit<M: Trainable>(
        &self,
        rank: &mut Rank,
        model: M,
        optimizer: impl Into<ModuleOptimizer>,
        train: impl leyden::Loader<Host<M>>,
        val: impl leyden::Loader<Host<M>>,
    ) -> Result<M> {
        let train = rank.setup_loader(train)?;
        let val = rank.setup_eval_loader(val)?;
        let (mut model, mut optimizer) = rank.setup(model, optimizer)?;
        let (mut best, mut worse) = (0.0, 0);
        for epoch in 0..self.epochs {
            model = self.train_epoch(rank, model, &mut optimizer, &train, epoch)?;
            let accuracy = Self::validate(rank, &model, &val)?;
            rank.print(&format!("epoch {epoch}: {:.1} % right", 100.0 * accuracy));
            rank.log(epoch, &[("val/accuracy", accuracy)])?;
            if accuracy > best {
                (best, worse) = (accuracy, 0);
                rank.save(self.file, || optimizer.state(&model))?;
            } else {
                worse += 1;
            }
            // All ranks have the same accuracy; what one alone decides (time, a signal) is agreed on like this.
            if rank.agree_any(worse > self.patience, "early stopping")? {
                break;
            }
        }
        let state = rank.load(self.file)?;
        Ok(optimizer.load(model, state)?.0)
    }

    fn train_epoch<M: Trainable>(
        &self,
        rank: &mut Rank,
        mut model: M,
        optimizer: &mut FabricOptimizer,
        train: &impl leyden::Loader<Host<M>>,
        epoch: u64,
    ) -> Result<M> {
        let device = Device::default().autodiff();
        let mut pending = None;
        for (index, batch) in train.epoch(epoch, 0).enumerate() {
            let loss = model.loss(M::Batch::from_host(batch?.data, &device)?);
            let gradients = rank.backward(&model, loss)?;
            let gradients = match pending.take() {
                Some(sum) => gradients.add(&model, sum),
                None => gradients,
            };
            if (index + 1) % self.accumulate != 0 && index + 1 < train.len() {
                pending = Some(gradients); // nothing crosses to other ranks yet
                continue;
            }
            let gradients = rank.reduce(&model, gradients)?;
            let gradients = rank.clip(&model, gradients, GradientClip::Norm(1.0))?;
            model = optimizer.step(self.learning_rate, model, gradients);
        }
        Ok(model)
    }

    /// The part of all ranks' samples that are right.
    fn validate<M: Trainable>(rank: &mut Rank, model: &M, val: &impl leyden::Loader<Host<M>>) -> Result<f64> {
        let (model, mut counts) = (model.valid(), [0_i64; 2]);
        for batch in val.epoch(0, 0) {
            let [right, all] = model.right(M::Batch::from_host(batch?.data, &Device::default())?)?;
            counts = [counts[0] + right, counts[1] + all];
        }
        rank.all_reduce(&mut counts, ReduceOp::Sum)?;
        Ok(counts[0] as f64 / counts[1] as f64)
    }
}

#[derive(Module, Debug)]
struct Net {
    layers: [Linear; 2],
}

impl Net {
    fn forward(&self, images: Tensor<3>) -> Tensor<2> {
        self.layers[1].forward(relu(self.layers[0].forward(images.flatten(1, 2))))
    }
}

impl Trainable for Net {
    type Batch = LabeledImages;

    fn loss(&self, batch: LabeledImages) -> Tensor<1> {
        cross_entropy(self.forward(batch.images), batch.labels)
    }

    fn right(&self, batch: LabeledImages) -> Result<[i64; 2]> {
        let found = predicted_classes(&self.forward(batch.images))?;
        let labels = class_ids(&batch.labels)?;
        let right = found.iter().zip(&labels).filter(|(found, label)| found == label).count();
        Ok([right as i64, labels.len() as i64])
    }
}

#[leyden::main]
fn main() -> Result<()> {
    let devices = std::env::args().nth(1).map_or(Ok(1), |count| count.parse())?;
    let mut rank = Fabric::builder().devices(devices).seed(1).build()?.launch()?;
    let (images, labels) = (include_bytes!("data/digits-images.gz"), include_bytes!("data/digits-labels.gz"));
    let digits = IdxImages::from_bytes(images, labels)?.scale(16.0);
    let [train, val] = random_split(digits, [0.8, 0.2], 1)?;
    let train = DataLoader::builder(train).global_batch_size(32).shuffle(true).build()?;
    let val = DataLoader::builder(val).batch_size(64).build()?;
    let trainer = SmallTrainer {
        epochs: 8,
        accumulate: 2,
        patience: 2,
        learning_rate: 3e-3,
        file: "runs/own.safetensors",
    };
    let device = Device::default();
    device.seed(1);
    let layers = [[64, 64], [64, 10]].map(|[from, to]| LinearConfig::new(from, to).init(&device));
    trainer.fit(&mut rank, Net { layers }, AdamConfig::new().init(), train, val)?;
    Ok(())
}
