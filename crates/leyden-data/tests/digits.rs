//! The digits that ship with the examples are the ones they are said to be. The figures were computed from
//! scikit-learn's CSV, without the script that made the files.

use leyden_data::{DataLoader, IdxArray, IdxImages, ImageBatch};

const IMAGES: &[u8] = include_bytes!("../../../examples/data/digits-images.gz");
const LABELS: &[u8] = include_bytes!("../../../examples/data/digits-labels.gz");

/// FNV-1a, 64 bits.
fn fnv(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[test]
fn the_files_hold_the_published_pixels_and_labels() {
    let images = IdxArray::from_bytes("images", IMAGES).unwrap();
    assert_eq!(images.shape, [1797, 8, 8]);
    assert_eq!(images.data.iter().map(|&pixel| u64::from(pixel)).sum::<u64>(), 561_718);
    assert_eq!(images.data.iter().max(), Some(&16));
    assert_eq!(fnv(&images.data), 0x493f_a2f6_7df5_50a1);

    let labels = IdxArray::from_bytes("labels", LABELS).unwrap();
    assert_eq!(labels.shape, [1797]);
    assert_eq!(fnv(&labels.data), 0x5c66_ed87_5b0a_9785);
}

#[test]
fn a_shuffled_epoch_has_each_digit_as_often_as_published() {
    let digits = IdxImages::from_bytes(IMAGES, LABELS).unwrap().scale(16.0);
    assert_eq!((digits.len(), digits.height(), digits.width(), digits.classes()), (1797, 8, 8, 10));

    let loader = DataLoader::builder(digits).batch_size(64).shuffle(true).seed(1).build().unwrap();
    let batches: Vec<ImageBatch> = loader.epoch(0).map(|batch| batch.unwrap().data).collect();
    assert_eq!(
        (batches.len(), batches[0].images.shape(), batches[28].images.shape()),
        (29, &[64, 8, 8][..], &[5, 8, 8][..])
    );

    let mut counts = [0; 10];
    batches.iter().flat_map(|batch| &batch.labels).for_each(|&label| counts[label as usize] += 1);
    assert_eq!(counts, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]);
    // Sixteenths are exact in f32, and so is their sum in f64.
    let ink: f64 = batches.iter().flat_map(|batch| &batch.images).map(|&pixel| f64::from(pixel)).sum();
    assert_eq!(ink, 561_718.0 / 16.0);
}
