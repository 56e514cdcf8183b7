//! Trains a classifier on handwritten digits: `cargo run --release --example digits -- --help`
use burn::nn::{Dropout, DropoutConfig, Linear, LinearConfig, conv::*, pool::*};
use burn::{optim::AdamConfig, tensor::activation::relu};
use leyden::prelude::*;

#[derive(Module, Debug)] // an ordinary Burn module; the pool makes images of any size fit
struct Classifier {
    convs: [Conv2d; 2],
    pool: AdaptiveAvgPool2d,
    dropout: Dropout,
    head: Linear,
}
impl Classifier {
    fn new(device: &Device) -> Self {
        let convs = [[1, 32], [32, 64]].map(|channels| Conv2dConfig::new(channels, [3, 3]).init(device));
        let (pool, dropout) = (AdaptiveAvgPool2dConfig::new([4, 4]).init(), DropoutConfig::new(0.5).init());
        Self { convs, pool, dropout, head: LinearConfig::new(64 * 4 * 4, 10).init(device) }
    }
    fn forward(&self, images: Tensor<3>) -> Tensor<2> {
        let x = self.convs.iter().fold(images.unsqueeze_dim(1), |x, conv| relu(conv.forward(x)));
        self.head.forward(self.dropout.forward(self.pool.forward(x).flatten(1, 3)))
    }
}

impl LeydenModule for Classifier {
    type Batch = LabeledImages;
    fn training_step(&self, batch: LabeledImages, cx: &mut StepCx) -> Result<Loss> {
        let loss = cross_entropy(self.forward(batch.images), batch.labels);
        cx.log("train/loss", &loss).prog_bar();
        Ok(loss.into())
    }
    fn validation_step(&self, batch: LabeledImages, cx: &mut StepCx) -> Result<()> {
        cx.log_classification("val", self.forward(batch.images), batch.labels)
    }
    fn test_step(&self, batch: LabeledImages, cx: &mut StepCx) -> Result<()> {
        cx.log_classification("test", self.forward(batch.images), batch.labels)
    }
    fn configure_optimizers(&self) -> Result<Optimizers> {
        Ok(Optimizers::new(AdamConfig::new().init(), 2e-3))
    }
}

struct Digits([Subset<IdxImages>; 3]); // training, validation, test
impl DataModule for Digits {
    type Batch = ImageBatch;
    fn train_loader(&mut self, _: &LoaderCx) -> Result<Loaders<ImageBatch>> {
        Ok(DataLoader::builder(self.0[0].clone()).global_batch_size(32).shuffle(true).build()?.into())
    }
    fn val_loader(&mut self, _: &LoaderCx) -> Result<Loaders<ImageBatch>> {
        Ok(DataLoader::builder(self.0[1].clone()).batch_size(256).build()?.into())
    }
    fn test_loader(&mut self, _: &LoaderCx) -> Result<Loaders<ImageBatch>> {
        Ok(DataLoader::builder(self.0[2].clone()).batch_size(256).build()?.into())
    }
}

#[derive(clap::Parser)] // the command line
struct Args {
    #[arg(long, help = "Folder with MNIST files (IDX, plain or .gz), in place of the embedded digits")]
    data: Option<std::path::PathBuf>,
    #[arg(long, help = "Most epochs", default_value_t = 40, value_parser = clap::value_parser!(u64).range(1..=1000))]
    epochs: u64,
    #[arg(long, help = "Seed of split, order, initial weights and dropout", default_value_t = 1)]
    seed: u64,
    #[arg(
        long,
        help = "Ranks that train together, each a process [default: as many as a launcher has started, or 1]"
    )]
    devices: Option<usize>,
}

#[leyden::main]
fn main() -> Result<()> {
    let args: Args = clap::Parser::parse();
    let (images, labels) = (include_bytes!("data/digits-images.gz"), include_bytes!("data/digits-labels.gz"));
    let digits = || Ok(IdxImages::from_bytes(images, labels)?.scale(16.0));
    let images = args.data.map_or_else(digits, |folder| IdxImages::mnist(folder, true))?;
    let mut data = Digits(random_split(images, [0.7, 0.1, 0.2], args.seed)?);
    let (best, stop) = (ModelCheckpoint::monitor("val/loss"), EarlyStopping::new("val/loss").patience(10));
    let trainer = Trainer::builder().name("digits").max_epochs(args.epochs).seed(args.seed);
    let mut trainer = trainer
        .devices(args.devices.map_or(Devices::Auto, Devices::Count))
        .callback(stop)
        .callback(best)
        .build()?;
    let fitted = trainer.fit_with(Classifier::new, &mut data)?;
    println!("finished: {}", fitted.finished()?);
    trainer.ckpt_path("best").test(fitted.model(), &mut data).map(|metrics| println!("{metrics}"))
}
