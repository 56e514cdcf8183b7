//! Images: decoded from JPEG or PNG, cut and scaled, and laid into a batch of floats.
//!
//! The steps and their arithmetic are torchvision's on PIL images: bilinear scaling with antialiasing, sizes rounded as
//! there; `leyden-image` does them. Grey images become three equal channels, transparency is dropped, 16 bits become the upper 8, CMYK becomes RGB;
//! an orientation in EXIF is ignored, as `PIL.Image.open` does.

use leyden_image::{CHANNELS, Cut, Decoder, MAX_PIXELS, MAX_SIDE};
use leyden_process::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::array::Array;
use crate::codes::{IMAGE_SIZE, IMAGE_TRANSFORM, RAGGED};
use crate::collate::Collate;
use crate::rng::SampleRng;

/// What is done to each image: scaling, cutting, mirroring, in this order, and how pixels become numbers
/// (torchvision: `transforms.Compose`).
///
/// ```
/// use leyden_data::ImageTransform;
///
/// const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// const STD: [f32; 3] = [0.229, 0.224, 0.225];
/// let train = ImageTransform::new().random_resized_crop(224).horizontal_flip(0.5).normalize(MEAN, STD);
/// let validation = ImageTransform::new().resize(256).center_crop(224).normalize(MEAN, STD);
/// # let _ = (train, validation);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageTransform {
    size: Size,
    /// Height and width.
    center_crop: Option<[usize; 2]>,
    horizontal_flip: f64,
    mean: [f32; 3],
    std: [f32; 3],
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
enum Size {
    /// As in the file.
    Own,
    /// The shorter side is this; the other keeps the proportions.
    Shorter(usize),
    /// Height and width.
    Exactly([usize; 2]),
    RandomCrop {
        to: [usize; 2],
        /// The share of the image's area that is cut out, from and to.
        area: [f64; 2],
        /// Its width to its height, from and to.
        ratio: [f64; 2],
    },
}

impl ImageTransform {
    /// Nothing but pixels as numbers from 0 to 1: red, green, blue.
    pub const fn new() -> Self {
        Self { size: Size::Own, center_crop: None, horizontal_flip: 0.0, mean: [0.0; 3], std: [1.0; 3] }
    }

    /// Scales so that the shorter side is `shorter` (torchvision: `Resize(shorter)`).
    #[must_use]
    pub const fn resize(mut self, shorter: usize) -> Self {
        self.size = Size::Shorter(shorter);
        self
    }

    /// Scales to exactly this size, whatever the proportions were (torchvision: `Resize((height, width))`).
    #[must_use]
    pub const fn resize_to(mut self, height: usize, width: usize) -> Self {
        self.size = Size::Exactly([height, width]);
        self
    }

    /// Cuts out a random part, 8 to 100 % of the area and 3:4 to 4:3 in shape, and scales it to `size` squared
    /// (torchvision: `RandomResizedCrop(size)`). It takes the place of a `resize`.
    #[must_use]
    pub const fn random_resized_crop(self, size: usize) -> Self {
        self.random_resized_crop_within(size, [0.08, 1.0], [3.0 / 4.0, 4.0 / 3.0])
    }

    /// The same with another range of areas, as shares of the image's, and of ratios of width to height
    /// (torchvision: `RandomResizedCrop(size, scale=area, ratio=ratio)`).
    #[must_use]
    pub const fn random_resized_crop_within(mut self, size: usize, area: [f64; 2], ratio: [f64; 2]) -> Self {
        self.size = Size::RandomCrop { to: [size, size], area, ratio };
        self
    }

    /// Cuts the middle out, `size` squared (torchvision: `CenterCrop(size)`, which fills up smaller images; here they
    /// are an error).
    #[must_use]
    pub const fn center_crop(mut self, size: usize) -> Self {
        self.center_crop = Some([size, size]);
        self
    }

    /// Mirrors left and right with this probability (torchvision: `RandomHorizontalFlip(probability)`).
    #[must_use]
    pub const fn horizontal_flip(mut self, probability: f64) -> Self {
        self.horizontal_flip = probability;
        self
    }

    /// Subtracts `mean` of the numbers from 0 to 1 and divides by `std`, for red, green and blue
    /// (torchvision: `Normalize(mean, std)`).
    #[must_use]
    pub const fn normalize(mut self, mean: [f32; 3], std: [f32; 3]) -> Self {
        (self.mean, self.std) = (mean, std);
        self
    }

    /// Decodes a JPEG or PNG file, which is told by content, and transforms it. Randomness is `rng`'s: give
    /// `cx.rng()`.
    ///
    /// # Errors
    /// `L0704` if it cannot be decoded, `L0705` if it is too large, `L0707` if it is smaller than the crop, `L0706` if
    /// the transform is impossible.
    pub fn decode(&self, file: &[u8], rng: &mut SampleRng) -> Result<Image> {
        self.check()?;
        self.decode_with(&mut Decoder::default(), file, rng)
    }

    /// Refuses arguments that no image can be transformed by.
    ///
    /// # Errors
    /// `L0706`.
    pub(crate) fn check(&self) -> Result<()> {
        let wrong = |argument: &str, value: String, expected: &str| {
            Err(Error::new(IMAGE_TRANSFORM, "an argument of an image transform is impossible")
                .at(argument, value)
                .at("expected", expected))
        };
        let side = |sides: [usize; 2]| sides.iter().all(|side| (1..=MAX_SIDE).contains(side));
        const SIDE: &str = "sides of 1 to 65535 pixels";
        match self.size {
            Size::Shorter(shorter) if !side([shorter; 2]) => {
                return wrong("resize", shorter.to_string(), SIDE);
            }
            Size::Exactly(sides) if !side(sides) => return wrong("resize_to", format!("{sides:?}"), SIDE),
            Size::RandomCrop { to, .. } if !side(to) => {
                return wrong("random_resized_crop", format!("{to:?}"), SIDE);
            }
            Size::RandomCrop { area: [least, most], .. }
                if !(0.0 < least && least <= most && most <= 1.0) =>
            {
                let expected = "two shares above 0 and up to 1, the smaller first";
                return wrong("area", format!("[{least}, {most}]"), expected);
            }
            Size::RandomCrop { ratio: [least, most], .. }
                if !(0.0 < least && least <= most && most.is_finite()) =>
            {
                let expected = "two ratios above 0, the smaller first";
                return wrong("ratio", format!("[{least}, {most}]"), expected);
            }
            _ => {}
        }
        if let Some(sides) = self.center_crop.filter(|&sides| !side(sides)) {
            return wrong("center_crop", format!("{sides:?}"), SIDE);
        }
        if !(0.0..=1.0).contains(&self.horizontal_flip) {
            return wrong("horizontal_flip", self.horizontal_flip.to_string(), "a probability from 0 to 1");
        }
        let usable = |std: &f32| std.is_finite() && *std > 0.0;
        if !self.mean.iter().all(|mean| mean.is_finite()) || !self.std.iter().all(usable) {
            let value = format!("mean {:?}, std {:?}", self.mean, self.std);
            return wrong("normalize", value, "finite means, and deviations above 0");
        }
        Ok(())
    }

    /// As [`decode`](Self::decode), with what is used again from image to image.
    pub(crate) fn decode_with(
        &self,
        decoder: &mut Decoder,
        file: &[u8],
        rng: &mut SampleRng,
    ) -> Result<Image> {
        let source = decoder.decode(file)?;
        let whole = Cut::whole(source);
        let (cut, size) = match self.size {
            Size::Own => (whole, source),
            Size::Shorter(shorter) => (whole, scaled(source, shorter)?),
            Size::Exactly(size) => (whole, size),
            Size::RandomCrop { to, area, ratio } => (random_cut(source, area, ratio, rng), to),
        };
        let mut pixels = decoder.scaled(cut, size)?;
        let mut shape = size;
        if let Some(crop) = self.center_crop {
            pixels = leyden_image::center_crop(&pixels, size, crop)?;
            shape = crop;
        }
        if self.horizontal_flip > 0.0 && rng.uniform() < self.horizontal_flip {
            leyden_image::mirror(&mut pixels, shape[1]);
        }
        Ok(Image { pixels, size: shape, mean: self.mean, std: self.std })
    }
}

impl Default for ImageTransform {
    fn default() -> Self {
        Self::new()
    }
}

/// A decoded and transformed image. Several become an `Array<f32>` of shape `[n, 3, height, width]`: bytes divided by
/// 255, less the mean, divided by the deviation of their transform.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// Red, green, blue of each pixel.
    pixels: Vec<u8>,
    /// Height and width.
    size: [usize; 2],
    mean: [f32; 3],
    std: [f32; 3],
}

impl Image {
    /// Rows.
    pub fn height(&self) -> usize {
        self.size[0]
    }

    /// Columns.
    pub fn width(&self) -> usize {
        self.size[1]
    }

    /// Red, green and blue of each pixel, row by row.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }
}

impl Collate for Image {
    type Batch = Array<f32>;

    fn collate(items: Vec<Self>) -> Result<Array<f32>> {
        let [height, width] = items.first().map_or([0, 0], |image| image.size);
        if let Some((index, other)) =
            items.iter().enumerate().find(|(_, image)| image.size != [height, width])
        {
            return Err(Error::new(RAGGED, "the images of a batch differ in size")
                .at("item 0", format_args!("{height} x {width}"))
                .at(format!("item {index}"), format_args!("{} x {}", other.height(), other.width()))
                .hint("give the transform a size: `resize_to`, `random_resized_crop`, or `resize` and `center_crop`"));
        }
        let mut batch = Array::zeros(&[items.len(), CHANNELS, height, width])?;
        for (place, image) in batch.rows_mut().zip(&items) {
            leyden_image::planes(&image.pixels, image.mean, image.std, place);
        }
        Ok(batch)
    }
}

/// The size whose shorter side is `shorter`; the other is rounded down, as in torchvision.
fn scaled([height, width]: [usize; 2], shorter: usize) -> Result<[usize; 2]> {
    let long = |long: usize, short: usize| (long * shorter / short).max(1);
    let size = if height <= width { [shorter, long(width, height)] } else { [long(height, width), shorter] };
    if size[0].saturating_mul(size[1]) <= MAX_PIXELS {
        return Ok(size);
    }
    Err(Error::new(IMAGE_SIZE, "an image would be too large after `resize`")
        .at("size", format_args!("{width} x {height}"))
        .at("resized", format_args!("{} x {}", size[1], size[0]))
        .hint("the image is long and thin: use `resize_to` or remove it"))
}

/// A part of random area, shape and place; after ten that do not fit, the largest in the middle (torchvision's
/// `RandomResizedCrop.get_params`).
fn random_cut([height, width]: [usize; 2], area: [f64; 2], ratio: [f64; 2], rng: &mut SampleRng) -> Cut {
    let [least, most] = area;
    let [narrow, wide] = ratio.map(f64::ln);
    let whole = (height * width) as f64;
    for _ in 0..10 {
        let target = whole * (least + (most - least) * rng.uniform());
        let ratio = (narrow + (wide - narrow) * rng.uniform()).exp();
        let [h, w] =
            [(target / ratio).sqrt(), (target * ratio).sqrt()].map(|side| side.round_ties_even() as usize);
        if (1..=height).contains(&h) && (1..=width).contains(&w) {
            let top = rng.below((height - h + 1) as u64) as usize;
            let left = rng.below((width - w + 1) as u64) as usize;
            return Cut { top, left, size: [h, w] };
        }
    }
    let own = width as f64 / height as f64;
    let round = |side: f64| (side.round_ties_even() as usize).max(1);
    let size = if own < ratio[0] {
        [round(width as f64 / ratio[0]).min(height), width]
    } else if own > ratio[1] {
        [height, round(height as f64 * ratio[1]).min(width)]
    } else {
        [height, width]
    };
    Cut { top: (height - size[0]) / 2, left: (width - size[1]) / 2, size }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codes::IMAGE_DAMAGED;
    use crate::files::damaged as damaged_copies;

    macro_rules! file {
        ($name:literal) => {
            include_bytes!(concat!("../tests/images/", $name)).as_slice()
        };
    }

    const PNG_FILE: &[u8] = file!("rgb.png");
    const JPEG_FILE: &[u8] = file!("rgb.jpg");

    fn decode(transform: ImageTransform, file: &[u8]) -> Result<Image> {
        transform.decode(file, &mut SampleRng::new(0))
    }

    /// The largest difference of two images, and the mean one.
    fn difference(ours: &[u8], theirs: &[u8]) -> (u8, f64) {
        assert_eq!(ours.len(), theirs.len());
        let differences = || ours.iter().zip(theirs).map(|(ours, theirs)| ours.abs_diff(*theirs));
        (differences().max().unwrap(), differences().map(f64::from).sum::<f64>() / ours.len() as f64)
    }

    #[test]
    fn png_files_of_all_colours_are_what_pillow_makes_of_them() {
        let cases = [
            (file!("grey.png"), file!("grey.png.raw")),
            (file!("palette.png"), file!("palette.png.raw")),
            (file!("alpha.png"), file!("alpha.png.raw")),
        ];
        for (file, expected) in cases {
            let image = decode(ImageTransform::new(), file).unwrap();
            assert_eq!(image.pixels(), expected);
        }
    }

    #[test]
    fn jpeg_files_of_all_kinds_are_nearly_what_pillow_makes_of_them() {
        let cases = [
            (JPEG_FILE, file!("rgb.jpg.raw")),
            (file!("progressive.jpg"), file!("progressive.jpg.raw")),
            (file!("grey.jpg"), file!("grey.jpg.raw")),
            (file!("cmyk.jpg"), file!("cmyk.jpg.raw")),
        ];
        for (index, (file, expected)) in cases.into_iter().enumerate() {
            let image = decode(ImageTransform::new(), file).unwrap();
            assert_eq!((image.height(), image.width()), (47, 61));
            let (most, mean) = difference(image.pixels(), expected);
            assert!(most <= 8 && mean < 1.0, "case {index}: {most} at most, {mean} on average");
        }
    }

    #[test]
    fn scaling_is_pillows_to_a_grey_level() {
        let image = decode(ImageTransform::new().resize(24), PNG_FILE).unwrap();
        assert_eq!((image.height(), image.width()), (24, 31));
        let (most, mean) = difference(image.pixels(), file!("rgb.png.shorter24.raw"));
        assert!(most <= 1 && mean < 0.3, "{most} at most, {mean} on average");

        let mut decoder = Decoder::default();
        decoder.decode(PNG_FILE).unwrap();
        let ours = decoder.scaled(Cut { top: 5, left: 10, size: [20, 40] }, [32, 32]).unwrap();
        let (most, mean) = difference(&ours, file!("rgb.png.cut.raw"));
        assert!(most <= 1 && mean < 0.3, "{most} at most, {mean} on average");
    }

    #[test]
    fn cuts_and_mirrors_where_torchvision_does() {
        let whole = decode(ImageTransform::new(), PNG_FILE).unwrap();
        let middle = decode(ImageTransform::new().center_crop(20), PNG_FILE).unwrap();
        // round((47 - 20) / 2) and round((61 - 20) / 2) in Python, which rounds halves to even.
        let (top, left) = (14, 20);
        let start = (top * 61 + left) * 3;
        assert_eq!(middle.pixels()[..60], whole.pixels()[start..start + 60]);
        let mirrored = decode(ImageTransform::new().horizontal_flip(1.0), PNG_FILE).unwrap();
        assert_eq!(mirrored.pixels()[..3], whole.pixels()[60 * 3..61 * 3]);
        assert_eq!(decode(ImageTransform::new().resize(48), PNG_FILE).unwrap().width(), 62);
        let error = decode(ImageTransform::new().center_crop(48), PNG_FILE).unwrap_err();
        let expected = "error[L0707]: an image is smaller than the crop asked of it\n  image  47 x 61\n  \
                        crop   48 x 48\n  fix: `resize` to at least the size of the crop before";
        assert_eq!(format!("{error:?}"), expected);
    }

    #[test]
    fn random_cuts_lie_inside_and_cover_the_range() {
        let mut rng = SampleRng::new(3);
        let (area, ratio) = ([0.08, 1.0], [0.75, 4.0 / 3.0]);
        let shares: Vec<f64> = (0..2000)
            .map(|_| {
                let Cut { top, left, size: [height, width] } = random_cut([300, 400], area, ratio, &mut rng);
                assert!(top + height <= 300 && left + width <= 400);
                let shape = width as f64 / height as f64;
                assert!((0.74..1.35).contains(&shape), "{shape}");
                (height * width) as f64 / (300.0 * 400.0)
            })
            .collect();
        let (least, most) =
            shares.iter().fold((1.0_f64, 0.0_f64), |(l, m), &share| (l.min(share), m.max(share)));
        assert!((0.078..0.1).contains(&least) && most > 0.9, "{least} to {most}");
        for (source, expected) in [([10, 1000], [10, 13]), ([1000, 10], [13, 10]), ([1, 1], [1, 1])] {
            assert_eq!(random_cut(source, [1.0, 1.0], ratio, &mut rng).size, expected, "{source:?}");
        }
    }

    #[test]
    fn numbers_are_torchvisions() {
        let transform = ImageTransform::new().resize_to(2, 2).normalize([0.5, 0.25, 0.0], [0.5, 0.25, 2.0]);
        let image = decode(transform, PNG_FILE).unwrap();
        let batch = Image::collate(vec![image.clone(), image.clone()]).unwrap();
        assert_eq!(batch.shape(), [2, 3, 2, 2]);
        for (place, pixel) in image.pixels().as_chunks::<3>().0.iter().enumerate() {
            let numbers = pixel.map(|byte| f32::from(byte) / 255.0);
            let expected = [(numbers[0] - 0.5) / 0.5, (numbers[1] - 0.25) / 0.25, numbers[2] / 2.0];
            assert_eq!([0, 4, 8].map(|plane| batch[12 + plane + place]), expected);
        }
    }

    #[test]
    fn impossible_transforms_are_refused() {
        let new = ImageTransform::new;
        let cases = [
            ("resize", new().resize(0)),
            ("resize_to", new().resize_to(5, 70_000)),
            ("random_resized_crop", new().random_resized_crop(0)),
            ("area", new().random_resized_crop_within(8, [0.0, 1.0], [1.0, 1.0])),
            ("ratio", new().random_resized_crop_within(8, [0.5, 1.0], [2.0, 1.0])),
            ("center_crop", new().center_crop(0)),
            ("horizontal_flip", new().horizontal_flip(f64::NAN)),
            ("normalize", new().normalize([0.0; 3], [1.0, 0.0, 1.0])),
        ];
        for (argument, transform) in cases {
            let error = decode(transform, PNG_FILE).unwrap_err();
            assert_eq!(error.code(), IMAGE_TRANSFORM);
            assert!(error.place(argument).is_some(), "{argument}: {error:?}");
        }
    }

    #[test]
    fn a_file_cut_short_is_an_error_wherever_it_was_cut() {
        for file in [PNG_FILE, JPEG_FILE, file!("progressive.jpg"), file!("grey.jpg")] {
            for length in 0..file.len() {
                let error = decode(ImageTransform::new(), &file[..length]).expect_err("cut");
                assert!([IMAGE_DAMAGED, IMAGE_SIZE].contains(&error.code()), "cut to {length}: {error:?}");
            }
        }
    }

    #[test]
    fn a_header_that_promises_too_much_reserves_nothing() {
        let mut jpeg = JPEG_FILE.to_vec();
        let frame = jpeg.windows(2).position(|bytes| bytes == [0xff, 0xc0]).unwrap();
        jpeg[frame + 5..frame + 9].copy_from_slice(&[0x27, 0x10, 0x27, 0x10]);
        let error = decode(ImageTransform::new(), &jpeg).unwrap_err();
        assert_eq!((error.code(), error.place("size")), (IMAGE_SIZE, Some("10000 x 10000")));
        jpeg[frame + 5..frame + 9].copy_from_slice(&[0xff; 4]);
        let error = decode(ImageTransform::new(), &jpeg).unwrap_err();
        assert_eq!(error.what(), "an image is too large to be decoded");
    }

    #[test]
    fn damage_anywhere_gives_an_image_or_an_error() {
        for file in [PNG_FILE, JPEG_FILE, file!("progressive.jpg"), file!("cmyk.jpg"), file!("palette.png")] {
            for copy in damaged_copies(file, 1500) {
                if let Err(error) = decode(ImageTransform::new().resize(8), &copy) {
                    assert!([IMAGE_DAMAGED, IMAGE_SIZE].contains(&error.code()), "{error:?}");
                }
            }
        }
    }
}
