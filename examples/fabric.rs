//! A raw Burn loop, and the five lines that make it train on several ranks (`// 1` to `// 5`):
//! `cargo run --release --example fabric -- 2`
use burn::nn::{Linear, LinearConfig};
use burn::optim::AdamConfig;
use burn::tensor::activation::relu;
use leyden::prelude::*;

#[derive(Module, Debug)]
struct Net {
    layers: [Linear; 2],
}

impl Net {
    fn new(device: &Device) -> Self {
        Self { layers: [[64, 64], [64, 10]].map(|[from, to]| LinearConfig::new(from, to).init(device)) }
    }

    fn forward(&self, images: Tensor<3>) -> Tensor<2> {
        self.layers[1].forward(relu(self.layers[0].forward(images.flatten(1, 2))))
    }
}

#[leyden::main]
fn main() -> Result<()> {
    let devices = std::env::args().nth(1).map_or(Ok(1), |count| count.parse())?;
    let mut rank = Fabric::builder().devices(devices).seed(1).build()?.launch()?; // 1

    let (images, labels) = (include_bytes!("data/digits-images.gz"), include_bytes!("data/digits-labels.gz"));
    let digits = IdxImages::from_bytes(images, labels)?.scale(16.0);
    let loader = DataLoader::builder(digits).global_batch_size(32).shuffle(true).build()?;
    let loader = rank.setup_loader(loader)?; // 2
    let device = Device::default().autodiff();
    device.seed(1);
    let (mut net, mut adam) = rank.setup(Net::new(&device), AdamConfig::new().init())?; // 3

    for epoch in 0..5 {
        let mut last = 0.0;
        for batch in loader.epoch(epoch) {
            let batch = LabeledImages::from_host(batch?.data, &device)?;
            let loss = cross_entropy(net.forward(batch.images), batch.labels);
            last = loss.clone().into_scalar::<f32>();
            let gradients = rank.backward(&net, loss)?; // 4
            let gradients = rank.reduce(&net, gradients)?; // 5
            net = adam.step(2e-3, net, gradients);
        }
        rank.print(&format!("epoch {epoch}: loss {last:.4}"));
    }
    rank.save("runs/fabric.safetensors", || adam.state(&net))
}
