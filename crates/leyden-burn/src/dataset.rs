//! Burn's data sets and batchers in Leyden's loader.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;

use burn::data::dataloader::batcher::Batcher;
use burn::data::dataset::{Dataset as ItemsByIndex, DatasetError};
use burn::tensor::Device;
use leyden_data::{Dataset, SampleCx};
use leyden_process::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::codes::BURN_DATASET;
use crate::module::FromHost;

/// A data set of Burn's (`burn::data::dataset::Dataset`) with its `Batcher`, for Leyden's loader: order, seeds, workers
/// and resumption are the loader's, what an item is and how items become tensors stays as it was written for Burn.
///
/// Items are read by the loader, wherever its workers are. They become tensors where the step runs, because Burn's
/// tensors cannot leave their process: a `Batcher` that decodes or augments does so between steps, and belongs into
/// [`DatasetExt::map`](leyden_data::DatasetExt::map) instead. The model's batch is
/// [`Batched`].
///
/// Process workers need a data set, items and a batcher that serialise; threads need nothing.
///
/// ```
/// use leyden_burn::burn::data::dataloader::batcher::Batcher;
/// use leyden_burn::burn::data::dataset::InMemDataset;
/// use leyden_burn::burn::tensor::{Device, Tensor};
/// use leyden_burn::{Batched, BurnDataset, FromHost};
/// use leyden_data::DataLoader;
///
/// #[derive(Clone)]
/// struct Columns;
///
/// impl Batcher<[f32; 2], Tensor<2>> for Columns {
///     fn batch(&self, items: Vec<[f32; 2]>, device: &Device) -> Tensor<2> {
///         let rows = items.into_iter().map(|item| Tensor::<1>::from_floats(item, device));
///         Tensor::stack(rows.collect(), 0)
///     }
/// }
///
/// let items = InMemDataset::new(vec![[1.0_f32, 2.0], [3.0, 4.0], [5.0, 6.0]]);
/// let loader = DataLoader::builder(BurnDataset::new(items, Columns)).batch_size(2).build()?;
/// // What `fit` does for a model whose `Batch` is `Batched<Tensor<2>, [f32; 2], Columns>`.
/// let first = loader.epoch(0).next().expect("three items make two batches")?.data;
/// let tensor = Batched::<Tensor<2>, _, _>::from_host(first, &Device::default())?;
/// assert_eq!(tensor.dims(), [2, 2]);
/// # Ok::<(), leyden_data::Error>(())
/// ```
#[derive(Serialize, Deserialize)]
#[serde(bound(
    serialize = "D: Serialize, B: Serialize",
    deserialize = "D: Deserialize<'de>, B: Deserialize<'de>"
))]
pub struct BurnDataset<D, I, B, E = DatasetError> {
    items: D,
    batcher: Arc<B>,
    item: PhantomData<fn() -> (I, E)>,
}

impl<D, I, B, E> BurnDataset<D, I, B, E>
where
    D: ItemsByIndex<I, E>,
    E: std::error::Error + Send + Sync + 'static,
{
    /// The items of `items`, batched by `batcher`.
    pub fn new(items: D, batcher: B) -> Self {
        Self { items, batcher: Arc::new(batcher), item: PhantomData }
    }
}

impl<D, I, B, E> Dataset for BurnDataset<D, I, B, E>
where
    D: ItemsByIndex<I, E>,
    E: std::error::Error + Send + Sync + 'static,
    I: Send + 'static,
    B: Send + Sync + 'static,
{
    type Item = I;
    type Batch = BurnBatch<I, B>;

    fn len(&self) -> usize {
        self.items.len()
    }

    /// # Errors
    /// `T0706` if Burn's data set gives one.
    fn get(&self, index: usize, _: &mut SampleCx) -> Result<I> {
        self.items.get(index).map_err(|error| {
            Error::new(BURN_DATASET, "a data set of Burn's could not give an item").because(&error)
        })
    }

    fn collate(&self, items: Vec<I>) -> Result<BurnBatch<I, B>> {
        Ok(BurnBatch { items, batcher: Arc::clone(&self.batcher) })
    }
}

impl<D, I, B, E> fmt::Debug for BurnDataset<D, I, B, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BurnDataset").finish_non_exhaustive()
    }
}

/// What the loader yields for a [`BurnDataset`]: items, and what makes tensors of them.
#[derive(Debug, Serialize, Deserialize)]
pub struct BurnBatch<I, B> {
    /// The items, in the order of the samples.
    pub items: Vec<I>,
    batcher: Arc<B>,
}

/// The batch `O` that a `Batcher` of Burn's makes of items `I`, on the device of the step: `type Batch =
/// Batched<MnistBatch, MnistItem, MnistBatcher>;` in a [`LeydenModule`](crate::LeydenModule).
pub struct Batched<O, I, B> {
    /// What the batcher has made.
    pub batch: O,
    made: PhantomData<fn() -> (I, B)>,
}

impl<O, I, B: Batcher<I, O>> FromHost for Batched<O, I, B> {
    type Host = BurnBatch<I, B>;

    fn from_host(BurnBatch { items, batcher }: Self::Host, device: &Device) -> Result<Self> {
        Ok(Self { batch: batcher.batch(items, device), made: PhantomData })
    }
}

impl<O, I, B> Deref for Batched<O, I, B> {
    type Target = O;

    fn deref(&self) -> &O {
        &self.batch
    }
}

impl<O: fmt::Debug, I, B> fmt::Debug for Batched<O, I, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.batch.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use burn::data::dataset::InMemDataset;
    use burn::tensor::Tensor;
    use leyden_data::{DataLoader, DataLoaderBuilder, Workers};

    use super::*;

    #[derive(Clone, Serialize, Deserialize)]
    struct Columns;

    impl Batcher<f32, Tensor<1>> for Columns {
        fn batch(&self, items: Vec<f32>, device: &Device) -> Tensor<1> {
            Tensor::from_floats(&items[..], device)
        }
    }

    type Builder = DataLoaderBuilder<BurnDataset<InMemDataset<f32>, f32, Columns>>;

    fn rows(with_workers: impl FnOnce(Builder) -> Builder) -> Vec<Vec<f32>> {
        let items = InMemDataset::new((0..10).map(|item| item as f32).collect());
        let loader =
            DataLoader::builder(BurnDataset::new(items, Columns)).batch_size(4).shuffle(true).seed(3);
        let loader = with_workers(loader).build().unwrap();
        let batches = loader.epoch(1).map(|batch| {
            let batch = Batched::<Tensor<1>, _, _>::from_host(batch.unwrap().data, &Device::default());
            batch.unwrap().batch.into_data().try_to_vec().unwrap()
        });
        batches.collect()
    }

    #[test]
    fn items_of_burn_come_in_the_order_of_the_loader() {
        let inline = rows(|loader| loader);
        assert_eq!(inline.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 2]);
        let mut all = inline.concat();
        assert!(!all.is_sorted());
        all.sort_by(f32::total_cmp);
        assert!(all.iter().enumerate().all(|(place, item)| *item == place as f32));
        assert_eq!(rows(|loader| loader.workers(Workers::threads(2))), inline);
    }

    #[test]
    fn an_error_of_burn_names_the_sample() {
        struct Torn;
        impl ItemsByIndex<f32, std::io::Error> for Torn {
            fn get(&self, index: usize) -> std::io::Result<f32> {
                match index {
                    2 => Err(std::io::Error::other("torn page")),
                    _ => Ok(0.0),
                }
            }
            fn len(&self) -> usize {
                4
            }
        }
        let loader = DataLoader::builder(BurnDataset::new(Torn, Columns)).build().unwrap();
        let errors: Vec<Error> = loader.epoch(0).filter_map(std::result::Result::err).collect();
        let [error] = &errors[..] else { panic!("{errors:?}") };
        assert_eq!((error.code(), error.place("sample")), (BURN_DATASET, Some("2")));
        assert!(format!("{error:?}").contains("torn page"), "{error:?}");
    }
}
