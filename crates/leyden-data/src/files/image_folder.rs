//! A folder of images, one folder for each class.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use leyden_image::Decoder;
use leyden_process::{Error, Result};
use serde::{Deserialize, Serialize};

use super::{Names, open, path_bytes, unreadable};
use crate::array::Array;
use crate::codes::NO_IMAGES;
use crate::collate::default_collate;
use crate::dataset::{Dataset, SampleCx, out_of_range};
use crate::image::{Image, ImageTransform};

/// JPEG and PNG files in one folder for each class (torchvision: `ImageFolder`).
///
/// Each folder in the root is a class, numbered in the order of the names' bytes; its images are all files below it whose
/// names end in `.jpg`, `.jpeg` or `.png`, of any case, in the order of their paths. Symbolic links are followed. Batches
/// are images `[n, 3, height, width]`, as the [`ImageTransform`] makes them, and their classes `[n]`.
///
/// The folder is read once, when it is opened; what is serialised is the list of files.
///
/// ```no_run
/// use leyden_data::{DataLoader, ImageFolder, ImageTransform};
///
/// let train = ImageFolder::open("data/train")?.transform(ImageTransform::new().random_resized_crop(224))?;
/// let loader = DataLoader::builder(train).batch_size(64).shuffle(true).build()?;
/// # Ok::<(), leyden_data::Error>(())
/// ```
#[derive(Clone, Serialize, Deserialize)]
pub struct ImageFolder {
    #[serde(with = "path_bytes")]
    root: PathBuf,
    classes: Names,
    /// The files' paths in the folders of their classes, class by class.
    files: Names,
    /// Where the files of each class end.
    ends: Vec<usize>,
    ignored: usize,
    transform: ImageTransform,
    #[serde(skip)]
    scratch: Pool,
}

impl ImageFolder {
    /// Lists the images below `root`, which are left in their own sizes until a [`transform`](Self::transform) is set.
    ///
    /// # Errors
    /// `L0701` if a folder cannot be read, or contains itself by a link; `L0703` if there are no classes, or one has no
    /// images.
    pub fn open(root: impl AsRef<Path>) -> Result<Self> {
        let root = root.as_ref().to_owned();
        let (mut classes, mut files) = (Names::default(), Names::default());
        let (mut ends, mut empty, mut ignored) = (Vec::new(), Vec::new(), 0);
        let top = list(&root)?;
        ignored += top.files.len();
        for class in top.folders {
            let mut found = Walk { root: root.join(&class), ..Walk::default() };
            found.walk(PathBuf::new())?;
            ignored += found.ignored;
            if found.images.is_empty() {
                empty.push(class.display().to_string());
            }
            classes.push(class.as_bytes());
            // Folder by folder in the order of their paths, as torchvision's `sorted(os.walk(..))` is.
            found.images.sort_unstable();
            for (folder, name) in found.images {
                files.push(folder.join(name).as_os_str().as_bytes());
            }
            ends.push(files.len());
        }
        let wrong = |what| {
            Error::new(NO_IMAGES, what)
                .at("folder", root.display())
                .at("looked for", EXTENSIONS.map(|extension| format!(".{extension}")).join(", "))
        };
        if classes.len() == 0 {
            return Err(wrong("a folder of images has no folders of classes")
                .hint("name the folder that holds one folder for each class"));
        }
        if !empty.is_empty() {
            return Err(wrong("classes have no images")
                .at("classes", empty.join(", "))
                .hint("remove the empty folders, or put images in them"));
        }
        let transform = ImageTransform::new();
        Ok(Self { root, classes, files, ends, ignored, transform, scratch: Pool::default() })
    }

    /// What is done to each image; without it, all must be of one size.
    ///
    /// # Errors
    /// `L0706` if an argument of the transform is impossible.
    pub fn transform(mut self, transform: ImageTransform) -> Result<Self> {
        transform.check()?;
        self.transform = transform;
        Ok(self)
    }

    /// The names of the classes; that at *i* has number *i*.
    pub fn classes(&self) -> impl ExactSizeIterator<Item = &OsStr> {
        (0..self.classes.len()).map(|class| OsStr::from_bytes(self.classes.get(class)))
    }

    /// The class of a sample, without reading it: for filters, weights and splits.
    ///
    /// # Panics
    /// If `index` is not below `len()`, as indexing does.
    pub fn class_of(&self, index: usize) -> usize {
        assert!(index < self.files.len(), "index {index} of {} images", self.files.len());
        self.ends.partition_point(|&end| end <= index)
    }

    /// Where a sample lies.
    ///
    /// # Panics
    /// As [`class_of`](Self::class_of).
    pub fn path(&self, index: usize) -> PathBuf {
        let class = self.classes.get(self.class_of(index));
        self.root.join(OsStr::from_bytes(class)).join(OsStr::from_bytes(self.files.get(index)))
    }

    /// How many files are no images by their names. A number that is not expected is worth a look: formats other than
    /// JPEG and PNG are not read.
    pub fn ignored_files(&self) -> usize {
        self.ignored
    }

    fn load(&self, path: &Path, cx: &mut SampleCx) -> Result<Image> {
        let mut worker = self.scratch.take();
        worker.file.clear();
        let file = open(path).and_then(|(mut file, _)| file.read_to_end(&mut worker.file));
        file.map_err(|error| unreadable(path, &error))?;
        let image = self.transform.decode_with(&mut worker.image, &worker.file, cx.rng());
        let image = image.map_err(|error| error.at_if_absent("file", path.display()));
        self.scratch.put_back(worker);
        image
    }
}

impl Dataset for ImageFolder {
    type Item = (Image, i64);
    type Batch = (Array<f32>, Array<i64>);

    fn len(&self) -> usize {
        self.files.len()
    }

    fn get(&self, index: usize, cx: &mut SampleCx) -> Result<Self::Item> {
        if index >= self.len() {
            return Err(out_of_range(index, self.len()));
        }
        let class = self.class_of(index);
        let image = self.load(&self.path(index), cx).map_err(|error| {
            error.at_if_absent("class", OsStr::from_bytes(self.classes.get(class)).display())
        })?;
        Ok((image, class as i64))
    }

    fn collate(&self, items: Vec<Self::Item>) -> Result<Self::Batch> {
        default_collate(items)
    }
}

/// Root, numbers and transform; not the files.
impl fmt::Debug for ImageFolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageFolder")
            .field("root", &self.root)
            .field("classes", &self.classes.len())
            .field("images", &self.files.len())
            .field("ignored_files", &self.ignored)
            .field("transform", &self.transform)
            .finish_non_exhaustive()
    }
}

/// The images below the folder of a class.
#[derive(Default)]
struct Walk {
    root: PathBuf,
    /// The folders from the root to here, by device and inode.
    above: Vec<(u64, u64)>,
    images: Vec<(PathBuf, OsString)>,
    ignored: usize,
}

impl Walk {
    /// Looks through `folder`, a path in the root.
    fn walk(&mut self, folder: PathBuf) -> Result<()> {
        let path = self.root.join(&folder);
        let metadata = fs::metadata(&path).map_err(|error| unreadable(&path, &error))?;
        let identity = (metadata.dev(), metadata.ino());
        if self.above.contains(&identity) {
            let error = std::io::Error::other("a symbolic link leads to a folder above it");
            return Err(unreadable(&path, &error));
        }
        self.above.push(identity);
        let listed = list(&path)?;
        for name in listed.files {
            if is_image(&name) {
                self.images.push((folder.clone(), name));
            } else {
                self.ignored += 1;
            }
        }
        for name in listed.folders {
            self.walk(folder.join(name))?;
        }
        self.above.pop();
        Ok(())
    }
}

/// The names in a folder, in the order of their bytes.
#[derive(Default)]
struct Listed {
    folders: Vec<OsString>,
    files: Vec<OsString>,
}

fn list(folder: &Path) -> Result<Listed> {
    let of = |error: std::io::Error| unreadable(folder, &error);
    let mut listed = Listed::default();
    for entry in fs::read_dir(folder).map_err(of)? {
        let entry = entry.map_err(of)?;
        let mut kind = entry.file_type().map_err(of)?;
        if kind.is_symlink() {
            let path = entry.path();
            kind = fs::metadata(&path).map_err(|error| unreadable(&path, &error))?.file_type();
        }
        let names = if kind.is_dir() { &mut listed.folders } else { &mut listed.files };
        names.push(entry.file_name());
    }
    listed.folders.sort_unstable();
    listed.files.sort_unstable();
    Ok(listed)
}

fn is_image(name: &OsStr) -> bool {
    let extension = Path::new(name).extension();
    extension.is_some_and(|found| EXTENSIONS.iter().any(|known| found.eq_ignore_ascii_case(known)))
}

/// What workers use again from image to image: as many as worked at the same time.
#[derive(Default)]
struct Pool(Mutex<Vec<Worker>>);

#[derive(Default)]
struct Worker {
    file: Vec<u8>,
    image: Decoder,
}

impl Pool {
    fn take(&self) -> Worker {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    fn put_back(&self, worker: Worker) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(worker);
    }
}

/// A clone has its own.
impl Clone for Pool {
    fn clone(&self) -> Self {
        Self::default()
    }
}

const EXTENSIONS: [&str; 3] = ["jpg", "jpeg", "png"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codes::{FILE_UNREADABLE, IMAGE_DAMAGED, RAGGED};
    use std::os::unix::fs::symlink;

    const PNG: &[u8] = include_bytes!("../../tests/images/rgb.png");
    const JPEG: &[u8] = include_bytes!("../../tests/images/rgb.jpg");

    fn folder(files: &[(&[u8], &[u8])]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, bytes) in files {
            let path = dir.path().join(OsStr::from_bytes(path));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        dir
    }

    fn get(images: &ImageFolder, index: usize) -> Result<(Image, i64)> {
        images.get(index, &mut SampleCx::new(1, 0, index))
    }

    #[test]
    fn classes_and_files_have_the_order_of_their_bytes_and_need_not_be_text() {
        let dir = folder(&[
            (b"dog/b.JPG", JPEG),
            (b"dog/a/z.png", PNG),
            (b"dog/\xff.jpeg", JPEG),
            (b"dog/readme.txt", b"dogs"),
            (b"\xfe/c.png", PNG),
            (b"Cat/1.png", PNG),
            (b"list.csv", b""),
        ]);
        let images = ImageFolder::open(dir.path()).unwrap();
        assert_eq!(images.classes().map(OsStr::as_bytes).collect::<Vec<_>>(), [&b"Cat"[..], b"dog", b"\xfe"]);
        let paths: Vec<_> =
            (0..images.len()).map(|i| images.path(i).strip_prefix(dir.path()).unwrap().to_owned()).collect();
        let expected = [&b"Cat/1.png"[..], b"dog/b.JPG", b"dog/\xff.jpeg", b"dog/a/z.png", b"\xfe/c.png"];
        assert_eq!(paths, expected.map(|path| PathBuf::from(OsStr::from_bytes(path))));
        assert_eq!((0..5).map(|index| images.class_of(index)).collect::<Vec<_>>(), [0, 1, 1, 1, 2]);
        assert_eq!(images.ignored_files(), 2);

        let back: ImageFolder = postcard::from_bytes(&postcard::to_allocvec(&images).unwrap()).unwrap();
        let batch = |images: &ImageFolder| {
            images.collate((0..5).map(|index| get(images, index).unwrap()).collect()).unwrap()
        };
        let (pixels, labels) = batch(&back);
        assert_eq!((pixels.shape(), &labels[..]), (&[5, 3, 47, 61][..], &[0, 1, 1, 1, 2][..]));
        assert_eq!(batch(&images), (pixels, labels));
    }

    #[test]
    fn randomness_is_the_samples_own() {
        let dir = folder(&[(b"a/1.png", PNG), (b"a/2.jpg", JPEG)]);
        let transform = ImageTransform::new().random_resized_crop(16).horizontal_flip(0.5);
        let images = ImageFolder::open(dir.path()).unwrap().transform(transform).unwrap();
        assert_eq!(get(&images, 1).unwrap(), get(&images.clone(), 1).unwrap());
        let other_epoch = images.get(1, &mut SampleCx::new(1, 1, 1)).unwrap();
        assert_ne!(get(&images, 1).unwrap(), other_epoch);
    }

    #[test]
    fn no_classes_and_empty_classes_are_refused() {
        let error = ImageFolder::open(folder(&[(b"1.png", PNG)]).path()).unwrap_err();
        assert_eq!((error.code(), error.what()), (NO_IMAGES, "a folder of images has no folders of classes"));
        let dir = folder(&[(b"a/1.png", PNG), (b"b/readme", b""), (b"c/d/e.gif", b"")]);
        let error = ImageFolder::open(dir.path()).unwrap_err();
        let expected = format!(
            "error[L0703]: classes have no images\n  folder      {}\n  looked for  .jpg, .jpeg, .png\n  \
             classes     b, c\n  fix: remove the empty folders, or put images in them",
            dir.path().display()
        );
        assert_eq!(format!("{error:?}"), expected);
    }

    #[test]
    fn links_are_followed_but_not_in_circles() {
        let dir = folder(&[(b"a/1.png", PNG), (b"far/2.png", PNG)]);
        symlink(dir.path().join("far"), dir.path().join("a/near")).unwrap();
        assert_eq!(ImageFolder::open(dir.path()).unwrap().len(), 3);
        symlink(dir.path().join("a"), dir.path().join("far/back")).unwrap();
        let error = ImageFolder::open(dir.path()).unwrap_err();
        assert_eq!(error.code(), FILE_UNREADABLE);
        assert_eq!(error.reasons(), ["a symbolic link leads to a folder above it"]);
        fs::remove_file(dir.path().join("far/back")).unwrap();
        symlink("nowhere.png", dir.path().join("a/broken.png")).unwrap();
        let error = ImageFolder::open(dir.path()).unwrap_err();
        assert!(error.place("file").unwrap().ends_with("a/broken.png"), "{error:?}");
        assert_eq!(ImageFolder::open(dir.path().join("absent")).unwrap_err().code(), FILE_UNREADABLE);
    }

    #[test]
    fn errors_name_file_and_class() {
        let dir = folder(&[
            (b"a/1.png", PNG),
            (b"a/2.png", &PNG[..200]),
            (b"b/3.jpg", b"<html>"),
            (b"b/4.png", PNG),
        ]);
        let images = ImageFolder::open(dir.path()).unwrap();
        fs::remove_file(images.path(3)).unwrap();
        for (index, class, code) in
            [(1, "a", IMAGE_DAMAGED), (2, "b", IMAGE_DAMAGED), (3, "b", FILE_UNREADABLE)]
        {
            let error = get(&images, index).unwrap_err();
            assert_eq!((error.code(), error.place("class")), (code, Some(class)), "{error:?}");
            assert_eq!(error.place("file"), Some(images.path(index).display().to_string().as_str()));
        }
        assert!(get(&images, 0).is_ok(), "the others are unharmed");
        assert!(get(&images, 4).is_err());
    }

    #[test]
    fn a_device_among_the_images_is_an_error_of_its_sample() {
        let dir = folder(&[(b"a/1.png", PNG)]);
        symlink("/dev/zero", dir.path().join("a/2.png")).unwrap();
        let images = ImageFolder::open(dir.path()).unwrap();
        assert_eq!(get(&images, 1).unwrap_err().code(), FILE_UNREADABLE);
        assert!(get(&images, 0).is_ok());
    }

    #[test]
    fn images_of_different_sizes_are_refused_with_both() {
        let dir = folder(&[(b"a/1.png", PNG), (b"a/2.png", include_bytes!("../../tests/images/alpha.png"))]);
        let images = ImageFolder::open(dir.path()).unwrap();
        let error = images.collate(vec![get(&images, 0).unwrap(), get(&images, 1).unwrap()]).unwrap_err();
        assert_eq!(error.code(), RAGGED);
        assert_eq!((error.place("item 0"), error.place("item 1")), (Some("47 x 61"), Some("16 x 20")));
    }
}
