//! Trains a classifier on handwritten digits: `cargo run --release --example digits -- --help`
use burn::nn::{Linear, LinearConfig, conv::*, loss::CrossEntropyLossConfig, pool::*};
use burn::{optim::AdamConfig, tensor::activation::relu};
use clap::{Parser, value_parser};
use leyden::prelude::*;

#[derive(Module, Debug)] // an ordinary Burn module
struct Classifier {
    conv: Conv2d,
    pool: AdaptiveAvgPool2d, // to 4×4, so that images of any size fit
    head: Linear,
}

impl Classifier {
    fn new(device: &Device) -> Self {
        let pool = AdaptiveAvgPool2dConfig::new([4, 4]).init();
        let head = LinearConfig::new(32 * 4 * 4, 10).init(device);
        Self { conv: Conv2dConfig::new([1, 32], [3, 3]).init(device), pool, head }
    }

    fn forward(&self, images: Tensor<3>) -> Tensor<2> {
        let x = relu(self.conv.forward(images.unsqueeze_dim(1)));
        self.head.forward(self.pool.forward(x).flatten(1, 3))
    }
}

impl LeydenModule for Classifier {
    type Batch = LabeledImages;
    fn training_step(&self, batch: LabeledImages, cx: &mut StepCx) -> Result<Loss> {
        let logits = self.forward(batch.images);
        let loss = CrossEntropyLossConfig::new().init(&logits.device()).forward(logits, batch.labels);
        cx.log("train/loss", &loss).prog_bar();
        Ok(loss.into())
    }
    fn validation_step(&self, batch: LabeledImages, cx: &mut StepCx) -> Result<()> {
        cx.log_classification("val", &self.forward(batch.images), &batch.labels)
    }
    fn test_step(&self, batch: LabeledImages, cx: &mut StepCx) -> Result<()> {
        cx.log_classification("test", &self.forward(batch.images), &batch.labels)
    }
    fn configure_optimizers(&self) -> Result<Optimizers> {
        Ok(Optimizers::new(AdamConfig::new().init(), 5e-3))
    }
}

struct Digits(Vec<Subset<IdxImages>>); // training, validation, test
impl DataModule for Digits {
    type Batch = ImageBatch;
    fn train_loader(&mut self, cx: &LoaderCx) -> Result<Loaders<ImageBatch>> {
        Ok(DataLoader::builder(self.0[0].clone()).batch_size(32).shuffle(true).seed(cx.seed).build()?.into())
    }
    fn val_loader(&mut self, _: &LoaderCx) -> Result<Loaders<ImageBatch>> {
        Ok(DataLoader::builder(self.0[1].clone()).batch_size(256).build()?.into())
    }
    fn test_loader(&mut self, _: &LoaderCx) -> Result<Loaders<ImageBatch>> {
        Ok(DataLoader::builder(self.0[2].clone()).batch_size(256).build()?.into())
    }
}

#[derive(Parser)] // the command line
struct Args {
    #[arg(long, help = "Folder with MNIST files (IDX, plain or .gz), in place of the embedded digits")]
    data: Option<std::path::PathBuf>,
    #[arg(long, help = "Most epochs to train", default_value_t = 40, value_parser = value_parser!(u64).range(1..=1000))]
    epochs: u64,
    #[arg(long, help = "Seed of split, order and initial weights", default_value_t = 42)]
    seed: u64,
}

#[leyden::main]
fn main() -> Result<()> {
    let args = Args::parse();
    let images = match &args.data {
        Some(folder) => IdxImages::mnist(folder, true)?,
        None => IdxImages::from_bytes(IMAGES, LABELS)?.scale(16.0),
    };
    let tenth = images.len() / 10;
    let splits = random_split(images.clone(), &[images.len() - 3 * tenth, tenth, 2 * tenth], args.seed)?;
    let best = ModelCheckpoint::monitor("val/accuracy").mode(Mode::Max);
    let trainer = Trainer::builder().name("digits").max_epochs(args.epochs).seed(args.seed);
    let mut trainer = trainer.callback(best).callback(EarlyStopping::new("val/accuracy").mode(Mode::Max)).build()?;
    let fitted = trainer.fit_with(Classifier::new, &mut Digits(splits.clone()))?;
    println!("{}\n{}", fitted.outcome, trainer.ckpt_path("best").test(fitted.model(), &mut Digits(splits))?);
    Ok(())
}
const IMAGES: &[u8] = include_bytes!("data/digits-images-idx3-ubyte.gz");
const LABELS: &[u8] = include_bytes!("data/digits-labels-idx1-ubyte.gz");
