//! Images as bytes: JPEG and PNG decoded to RGB, cut, scaled, and laid into planes of floats.
//!
//! This is a crate because decoders and resizer are generic: whoever calls them compiles them, which takes most of a minute.
//! All functions here are not, so that `leyden-data`, which has the transforms and data sets, is built without them.
//!
//! Pixels are red, green, blue, row by row; sizes are height and width.

#![forbid(unsafe_code)]

pub mod codes;

use std::io::{self, Cursor};

use fast_image_resize as fir;
use fir::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fir::pixels::U8x3;
use fir::{FilterType, ResizeAlg, ResizeOptions};
use leyden_process::{Error, Result};
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

use crate::codes::{IMAGE_CROP, IMAGE_DAMAGED, IMAGE_SIZE};

/// Numbers of a pixel: red, green, blue.
pub const CHANNELS: usize = 3;
/// The longest side of a JPEG, in pixels, and of whatever is cut or scaled here.
pub const MAX_SIDE: usize = 65_535;
/// The most pixels of an image: where Pillow, too, refuses to decode ("decompression bomb").
pub const MAX_PIXELS: usize = 178_956_970;

/// A part of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Rows above it.
    pub top: usize,
    /// Columns to the left of it.
    pub left: usize,
    /// Its height and width.
    pub size: [usize; 2],
}

impl Cut {
    /// All of an image of this size.
    pub fn whole(size: [usize; 2]) -> Self {
        Self { top: 0, left: 0, size }
    }
}

/// Decodes images, one after the other; its memory is used again from image to image.
#[derive(Default)]
pub struct Decoder {
    /// The newest image's pixels, and perhaps more.
    decoded: Vec<u8>,
    size: [usize; 2],
    resizer: fir::Resizer,
}

impl Decoder {
    /// Decodes a file, JPEG or PNG by its content, and gives the image's size.
    ///
    /// Grey images become three equal channels, transparency is dropped, 16 bits become the upper 8, CMYK becomes RGB; an
    /// orientation in EXIF is ignored, as `PIL.Image.open` does.
    ///
    /// # Errors
    /// `L0704` if it cannot be decoded, `L0705` if it is too large, or promises more than its file can hold.
    pub fn decode(&mut self, file: &[u8]) -> Result<[usize; 2]> {
        self.size = [0, 0];
        let decoded = &mut self.decoded;
        self.size =
            if file.starts_with(PNG) { decode_png(file, decoded)? } else { decode_jpeg(file, decoded)? };
        Ok(self.size)
    }

    /// The pixels of the newest image.
    pub fn pixels(&self) -> &[u8] {
        &self.decoded[..self.size[0] * self.size[1] * CHANNELS]
    }

    /// A part of the newest image, scaled to `size`: bilinear with antialiasing, as PIL does it. No pixel outside of the part
    /// shines in.
    ///
    /// # Errors
    /// `L0704` if the part does not lie in the image or a side is longer than [`MAX_SIDE`].
    pub fn scaled(&mut self, cut: Cut, size: [usize; 2]) -> Result<Vec<u8>> {
        if cut == Cut::whole(self.size) && size == self.size {
            return Ok(self.pixels().to_vec());
        }
        resize(&mut self.resizer, &self.decoded, self.size, cut, size)
    }
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").field("size", &self.size).finish_non_exhaustive()
    }
}

/// The middle of an image of this size (torchvision: `CenterCrop`, which fills up smaller images; here they are an error).
///
/// # Errors
/// `L0707` if the image is smaller than `crop`.
pub fn center_crop(pixels: &[u8], size: [usize; 2], crop: [usize; 2]) -> Result<Vec<u8>> {
    let [height, width] = crop;
    if height > size[0] || width > size[1] {
        return Err(Error::new(IMAGE_CROP, "an image is smaller than the crop asked of it")
            .at("image", format_args!("{} x {}", size[0], size[1]))
            .at("crop", format_args!("{height} x {width}"))
            .hint("`resize` to at least the size of the crop before"));
    }
    let middle = |all: usize, part: usize| ((all - part) as f64 / 2.0).round_ties_even() as usize;
    let [top, left] = [middle(size[0], height), middle(size[1], width)];
    let row = |row: usize| &pixels[((top + row) * size[1] + left) * CHANNELS..][..width * CHANNELS];
    Ok((0..height).flat_map(row).copied().collect())
}

/// Mirrors an image left and right.
pub fn mirror(pixels: &mut [u8], width: usize) {
    for row in pixels.chunks_exact_mut((width * CHANNELS).max(1)) {
        row.as_chunks_mut::<CHANNELS>().0.reverse();
    }
}

/// Writes an image as three planes of numbers, red, green, blue: bytes divided by 255, less the mean, divided by the
/// deviation. `place` has three numbers for each pixel.
pub fn planes(pixels: &[u8], mean: [f32; 3], std: [f32; 3], place: &mut [f32]) {
    // 256 numbers a channel, computed as torchvision does: exact, and faster than two divisions a pixel.
    let numbers = |channel: usize| -> [f32; 256] {
        std::array::from_fn(|byte| (byte as f32 / 255.0 - mean[channel]) / std[channel])
    };
    let tables = [0, 1, 2].map(numbers);
    let pixels = pixels.as_chunks::<CHANNELS>().0;
    let (red, rest) = place.split_at_mut(pixels.len());
    let (green, blue) = rest.split_at_mut(pixels.len());
    for (((pixel, red), green), blue) in pixels.iter().zip(red).zip(green).zip(blue) {
        *red = tables[0][usize::from(pixel[0])];
        *green = tables[1][usize::from(pixel[1])];
        *blue = tables[2][usize::from(pixel[2])];
    }
}

/// Fills `decoded` with RGB pixels, and gives height and width.
fn decode_jpeg(file: &[u8], decoded: &mut Vec<u8>) -> Result<[usize; 2]> {
    // Strict: a file that is cut short is an error, and not grey from there on.
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(MAX_SIDE)
        .set_max_height(MAX_SIDE)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(file), options);
    decoder.decode_headers().map_err(|error| damaged(&error))?;
    let (width, height) = decoder.dimensions().unwrap_or_default();
    // Every block of 8 x 8 takes a bit at least.
    room(decoded, [height, width], file.len().saturating_mul(8 * 64))?;
    decoder.decode_into(decoded).map_err(|error| damaged(&error))?;
    // The decoder does not see that the last row of blocks is cut short. Neither marker occurs in what is packed.
    let last = |marker: &[u8; 2]| file.windows(2).rposition(|bytes| bytes == marker);
    if last(END_OF_IMAGE) < last(START_OF_SCAN) {
        return Err(damaged(&io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the end of the image is missing",
        )));
    }
    Ok([height, width])
}

fn decode_png(file: &[u8], decoded: &mut Vec<u8>) -> Result<[usize; 2]> {
    let mut decoder = png::Decoder::new(Cursor::new(file));
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let header = decoder.read_header_info().map_err(|error| damaged(&error))?;
    let [height, width] = [header.height, header.width].map(|side| side as usize);
    // Deflate packs at most 1032 bytes into one, and a byte holds at most 8 pixels.
    room(decoded, [height, width], file.len().saturating_mul(1032 * 8))?;
    let mut reader = decoder.read_info().map_err(|error| damaged(&error))?;
    let pixels = height * width;
    let channels = reader.output_color_type().0.samples();
    if channels == CHANNELS {
        reader.next_frame(decoded).map_err(|error| damaged(&error))?;
    } else {
        let mut other = vec![0; pixels * channels];
        reader.next_frame(&mut other).map_err(|error| damaged(&error))?;
        for (rgb, other) in decoded.as_chunks_mut::<CHANNELS>().0.iter_mut().zip(other.chunks_exact(channels))
        {
            *rgb = if channels < CHANNELS { [other[0]; CHANNELS] } else { [other[0], other[1], other[2]] };
        }
    }
    // The checksum of the image's last part stands behind its last row.
    reader.finish().map_err(|error| damaged(&error))?;
    Ok([height, width])
}

/// Makes `decoded` as long as an image of this size needs, if its file can hold that many pixels at all.
fn room(decoded: &mut Vec<u8>, [height, width]: [usize; 2], at_most: usize) -> Result<()> {
    let pixels = height.saturating_mul(width);
    let what = if pixels > MAX_PIXELS {
        "an image is too large to be decoded"
    } else if pixels > at_most {
        "the header of an image promises more than its file can hold"
    } else {
        decoded.resize(pixels * CHANNELS, 0);
        return Ok(());
    };
    Err(Error::new(IMAGE_SIZE, what)
        .at("size", format_args!("{width} x {height}"))
        .at("at most", format_args!("{} pixels", at_most.min(MAX_PIXELS))))
}

fn damaged(error: &(dyn std::error::Error + 'static)) -> Error {
    Error::new(IMAGE_DAMAGED, "an image cannot be decoded")
        .because(error)
        .hint("look at the file: fetch or convert it again, or remove it")
}

fn resize(
    resizer: &mut fir::Resizer,
    decoded: &[u8],
    source: [usize; 2],
    cut: Cut,
    size: [usize; 2],
) -> Result<Vec<u8>> {
    let failed = |error: &(dyn std::error::Error + 'static)| {
        damaged(error).at("resize", format!("{cut:?} to {size:?}"))
    };
    let inside = |start: usize, part: usize, all: usize| {
        part > 0 && start.checked_add(part).is_some_and(|end| end <= all)
    };
    if !inside(cut.top, cut.size[0], source[0]) || !inside(cut.left, cut.size[1], source[1]) {
        return Err(failed(&io::Error::other("the part does not lie in the image")));
    }
    if [source, size].as_flattened().iter().any(|&side| side > MAX_SIDE) {
        return Err(failed(&io::Error::other("a side is too long")));
    }
    // The typed interface: the other compiles the resizer for all kinds of pixels.
    let [source_height, source_width, height, width] =
        [source[0], source[1], size[0], size[1]].map(|side| side as u32);
    let image =
        TypedImageRef::<U8x3>::from_buffer(source_width, source_height, decoded).map_err(|e| failed(&e))?;
    let [top, left, cut_height, cut_width] =
        [cut.top, cut.left, cut.size[0], cut.size[1]].map(|side| side as u32);
    // Cut, then scaled: no pixel outside shines in.
    let part = TypedCroppedImage::new(image, left, top, cut_width, cut_height).map_err(|e| failed(&e))?;
    let mut pixels = vec![0; size[0] * size[1] * CHANNELS];
    let mut target = TypedImage::<U8x3>::from_buffer(width, height, &mut pixels).map_err(|e| failed(&e))?;
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear));
    resizer.resize_typed(&part, &mut target, &options).map_err(|e| failed(&e))?;
    Ok(pixels)
}

const START_OF_SCAN: &[u8; 2] = b"\xff\xda";
const END_OF_IMAGE: &[u8; 2] = b"\xff\xd9";
/// How a PNG file begins.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

#[cfg(test)]
mod tests {
    use super::*;

    /// An image whose pixels are their place, as a PNG file. What other encoders write is decoded in the tests of
    /// `leyden-data`, which compare it with Pillow.
    fn file([height, width]: [usize; 2]) -> (Vec<u8>, Vec<u8>) {
        let pixels: Vec<u8> = (0..height)
            .flat_map(|y| (0..width).flat_map(move |x| [y as u8, x as u8, (3 * x + 5 * y) as u8]))
            .collect();
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, width as u32, height as u32);
        encoder.set_color(png::ColorType::Rgb);
        encoder.write_header().unwrap().write_image_data(&pixels).unwrap();
        (file, pixels)
    }

    #[test]
    fn an_image_is_decoded_and_its_memory_used_again_for_a_smaller_one() {
        let mut decoder = Decoder::default();
        for size in [[9, 7], [3, 2], [1, 1]] {
            let (file, pixels) = file(size);
            assert_eq!(decoder.decode(&file).unwrap(), size);
            assert_eq!(decoder.pixels(), pixels);
            assert_eq!(decoder.scaled(Cut::whole(size), size).unwrap(), pixels);
        }
        assert_eq!(decoder.decode(b"neither").unwrap_err().code(), IMAGE_DAMAGED);
        assert_eq!(decoder.pixels(), []);
    }

    #[test]
    fn a_part_is_cut_before_it_is_scaled() {
        let mut decoder = Decoder::default();
        decoder.decode(&file([8, 8]).0).unwrap();
        let part = decoder.scaled(Cut { top: 2, left: 4, size: [2, 2] }, [2, 2]).unwrap();
        assert_eq!(part, [2, 4, 22, 2, 5, 25, 3, 4, 27, 3, 5, 30]);
        let pixel = decoder.scaled(Cut { top: 2, left: 4, size: [2, 2] }, [1, 1]).unwrap();
        assert!(pixel[1] == 4 || pixel[1] == 5, "nothing outside shines in: {pixel:?}");
    }

    #[test]
    fn parts_outside_of_the_image_and_absurd_sizes_are_errors() {
        let mut decoder = Decoder::default();
        decoder.decode(&file([4, 4]).0).unwrap();
        for cut in [
            Cut { top: 1, left: 0, size: [4, 4] },
            Cut { top: 0, left: 5, size: [1, 1] },
            Cut { top: usize::MAX, left: 0, size: [1, 1] },
            Cut { top: 0, left: 0, size: [0, 4] },
        ] {
            assert_eq!(decoder.scaled(cut, [2, 2]).unwrap_err().code(), IMAGE_DAMAGED, "{cut:?}");
        }
        assert!(decoder.scaled(Cut::whole([4, 4]), [MAX_SIDE + 1, 1]).is_err());
        assert_eq!(center_crop(&[0; 12], [2, 2], [3, 1]).unwrap_err().code(), IMAGE_CROP);
    }

    #[test]
    fn mirrors_and_lays_into_planes() {
        let mut pixels = file([1, 3]).1;
        mirror(&mut pixels, 3);
        assert_eq!(pixels, [0, 2, 6, 0, 1, 3, 0, 0, 0]);
        let mut place = [0.0; 9];
        planes(&pixels, [0.0, 1.0, 0.0], [1.0, 2.0, 1.0 / 255.0], &mut place);
        let green = |byte: f32| (byte / 255.0 - 1.0) / 2.0;
        assert_eq!(place[..6], [0.0, 0.0, 0.0, green(2.0), green(1.0), green(0.0)]);
        assert!((place[6] - 6.0).abs() < 1e-6 && place[8] == 0.0, "{place:?}");
    }

    #[test]
    fn a_file_cut_short_is_an_error_wherever_it_was_cut() {
        let (file, _) = file([5, 6]);
        let mut decoder = Decoder::default();
        for length in 0..file.len() {
            let error = decoder.decode(&file[..length]).expect_err("cut");
            assert!([IMAGE_DAMAGED, IMAGE_SIZE].contains(&error.code()), "cut to {length}: {error:?}");
        }
    }
}
