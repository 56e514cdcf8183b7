//! Several ranks train a Burn model: the same bits on each, and with virtual ranks on any number of them.

use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{BatchNorm, BatchNormConfig, Dropout, DropoutConfig, Linear, LinearConfig};
use burn::optim::AdamConfig;
use burn::tensor::activation::relu;
use leyden::comm::launch;
use leyden::named_tensors;
use leyden::prelude::*;

#[derive(Module, Debug)]
struct Net {
    conv: Conv2d,
    norm: BatchNorm,
    dropout: Dropout,
    head: Linear,
}

impl Net {
    fn new(device: &Device) -> Self {
        Self {
            conv: Conv2dConfig::new([1, 4], [3, 3]).init(device),
            norm: BatchNormConfig::new(4).init(device),
            dropout: DropoutConfig::new(0.3).init(),
            head: LinearConfig::new(4 * 6 * 6, 10).init(device),
        }
    }

    fn forward(&self, images: Tensor<3>) -> Tensor<2> {
        let x = relu(self.norm.forward(self.conv.forward(images.unsqueeze_dim(1))));
        self.head.forward(self.dropout.forward(x.flatten(1, 3)))
    }
}

impl LeydenModule for Net {
    type Batch = LabeledImages;

    fn training_step(&self, batch: LabeledImages, cx: &mut StepCx) -> Result<Loss> {
        let loss = cross_entropy(self.forward(batch.images), batch.labels);
        cx.log("train/loss", &loss).on_epoch(true);
        Ok(loss.into())
    }

    fn validation_step(&self, batch: LabeledImages, cx: &mut StepCx) -> Result<()> {
        cx.log_classification("val", self.forward(batch.images), batch.labels)
    }

    fn configure_optimizers(&self) -> Result<Optimizers> {
        Ok(Optimizers::new(AdamConfig::new().init(), 2e-3))
    }
}

struct Digits {
    images: [Subset<IdxImages>; 2],
    workers: usize,
}

impl Digits {
    fn open(workers: usize) -> Result<Self> {
        let (images, labels) = (
            include_bytes!("../../examples/data/digits-images.gz"),
            include_bytes!("../../examples/data/digits-labels.gz"),
        );
        let digits = IdxImages::from_bytes(images, labels)?.scale(16.0);
        let [train, val, _] = random_split(digits, [0.1, 0.05, 0.85], 1)?;
        Ok(Self { images: [train, val], workers })
    }
}

impl DataModule for Digits {
    type Batch = ImageBatch;

    fn train_loader(&mut self, _: &LoaderCx) -> Result<Loaders<ImageBatch>> {
        let loader = DataLoader::builder(self.images[0].clone()).global_batch_size(32).shuffle(true);
        Ok(loader.num_workers(self.workers).build()?.into())
    }

    fn val_loader(&mut self, _: &LoaderCx) -> Result<Loaders<ImageBatch>> {
        Ok(DataLoader::builder(self.images[1].clone()).batch_size(16).build()?.into())
    }
}

/// What each rank ends with: the bytes of weights and buffers, and the values.
type Ended = (Vec<(String, Vec<u8>)>, Vec<(String, u64)>);

fn trained((ranks, virtual_ranks, accumulate, workers): (usize, Option<usize>, u32, usize)) -> Result<Ended> {
    let trainer = Trainer::builder().max_epochs(2).seed(3).devices(ranks).accumulate_grad_batches(accumulate);
    let trainer = trainer.gradient_clip(GradientClip::Norm(1.0));
    let trainer = trainer.enable_progress_bar(false).enable_model_summary(false).enable_checkpointing(false);
    let trainer = match virtual_ranks {
        Some(virtual_ranks) => trainer.virtual_ranks(virtual_ranks),
        None => trainer,
    };
    let fitted = trainer.no_logger().build()?.fit_with(Net::new, &mut Digits::open(workers)?)?;
    let tensors = named_tensors(fitted.model())?;
    let values = fitted.metrics.iter().map(|(name, value)| (name.to_owned(), value.to_bits())).collect();
    Ok((tensors.into_iter().map(|tensor| (tensor.name, tensor.bytes)).collect(), values))
}

fn on(ranks: usize, virtual_ranks: Option<usize>, accumulate: u32, workers: usize) -> Vec<Ended> {
    let argument = (ranks, virtual_ranks, accumulate, workers);
    // Also a single one in a process of its own: the device's randomness is the process's.
    let ended = launch::program(ranks, trained, &argument);
    ended.unwrap_or_else(|error| panic!("{argument:?}: {error:?}"))
}

#[test]
fn virtual_ranks_give_the_same_bits_on_one_two_and_four_ranks() {
    for accumulate in [1, 4] {
        let one = on(1, Some(4), accumulate, 0).swap_remove(0);
        assert!(one.0.iter().any(|(name, _)| name.contains("running")), "buffers are compared too");
        for (ranks, workers) in [(2, 0), (2, 2), (4, 0)] {
            for (rank, ended) in on(ranks, Some(4), accumulate, workers).iter().enumerate() {
                for ((name, found), (_, expected)) in ended.0.iter().zip(&one.0) {
                    assert!(found == expected, "`{name}` on rank {rank} of {ranks}, accumulate {accumulate}");
                }
            }
        }
    }
}

#[test]
fn two_ranks_end_with_the_same_model_and_values() {
    let both = on(2, None, 1, 2);
    assert!(both[0] == both[1]);
    let accuracy = both[0].1.iter().find(|(name, _)| name == "val/accuracy").expect("it is logged");
    assert!(f64::from_bits(accuracy.1) > 0.3);
}
