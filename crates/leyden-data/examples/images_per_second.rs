//! How many images a second one core decodes, cuts, scales and lays into a batch:
//! `cargo run --release -p leyden-data --example images_per_second -- FOLDER [SECONDS]`, a folder as `ImageFolder` takes.

use std::time::{Duration, Instant};

use leyden_data::{Dataset, ImageFolder, ImageTransform, Result, SampleCx};

const BATCH: usize = 32;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or_else(|| leyden_data::Error::msg("name a folder of images"))?;
    let seconds = arguments.next().map_or(Ok(5.0), |seconds| seconds.parse())?;
    let whole = ImageTransform::new().resize_to(224, 224);
    let random = ImageTransform::new()
        .random_resized_crop(224)
        .horizontal_flip(0.5)
        .normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
    for (name, transform) in [("resize_to", whole), ("random_resized_crop", random)] {
        let images = ImageFolder::open(&folder)?.transform(transform)?;
        let (start, limit) = (Instant::now(), Duration::from_secs_f64(seconds));
        let (mut count, mut sum, mut decoding) = (0_usize, 0.0_f64, Duration::ZERO);
        while start.elapsed() < limit {
            let decode = Instant::now();
            let items: Result<Vec<_>> = (count..count + BATCH)
                .map(|position| {
                    let index = position % images.len();
                    images.get(index, &mut SampleCx::new(0, (position / images.len()) as u64, index))
                })
                .collect();
            decoding += decode.elapsed();
            let (pixels, _) = images.collate(items?)?;
            sum += f64::from(pixels[count % pixels.len()]);
            count += BATCH;
        }
        let elapsed = start.elapsed().as_secs_f64();
        println!(
            "{name}: {:.0} images/s; get {:.3} ms, collate {:.3} ms an image (sum {sum:.3})",
            count as f64 / elapsed,
            decoding.as_secs_f64() * 1000.0 / count as f64,
            (elapsed - decoding.as_secs_f64()) * 1000.0 / count as f64,
        );
    }
    Ok(())
}
