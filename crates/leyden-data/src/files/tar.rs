//! Samples in tar archives.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::Path;

use leyden_macros::Collate;
use leyden_process::{Code, Error, Result};
use serde::{Deserialize, Serialize};
use tar::Archive;

use super::{Indexed, Names, compressed_by};
use crate::codes::{COMBINATION, TAR_DAMAGED, TAR_DUPLICATE, TAR_MISSING, TAR_SPARSE};
use crate::collate::default_collate;
use crate::dataset::{Dataset, SampleCx, out_of_range};
use crate::iterable::{IterableDataset, Stream, StreamCx};

/// Samples in tar archives, in WebDataset's layout: files that lie next to each other and whose paths agree up to the
/// first dot of the base name are one sample, `0042.jpg` and `0042.cls`; what follows the dot tells them apart.
///
/// The archives' headers are read once when they are opened, skipping the data, so that a sample is known by its number
/// and read from its place. [`into_stream`](Self::into_stream) gives the same samples archive by archive instead, which
/// suits disks and networks that dislike jumping about.
///
/// Batches are files as they are; decode them with [`map`](crate::DatasetExt::map):
///
/// ```no_run
/// use leyden_data::{DatasetExt, ImageTransform, SampleCx, TarSample, TarShards};
///
/// let shards = TarShards::open(["train-0000.tar", "train-0001.tar"])?.require(&["jpg", "cls"])?;
/// let train = shards.map(|sample: TarSample, cx: &mut SampleCx| {
///     let image = ImageTransform::new().random_resized_crop(224).decode(sample.file("jpg")?, cx.rng())?;
///     Ok((image, sample.text("cls")?.trim().parse::<i64>()?))
/// });
/// # let _ = train;
/// # Ok::<(), leyden_data::Error>(())
/// ```
///
/// Directories, links, names without a dot and names that begin with `__` are passed over. Names that are not UTF-8 keep
/// samples apart, and appear in keys with replacement characters.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TarShards {
    shards: Vec<Indexed>,
    /// Where the samples of each shard end.
    shard_ends: Vec<usize>,
    /// Where the members of each sample end.
    ends: Vec<usize>,
    names: Names,
    /// Offset and size of each member's data.
    places: Vec<(u64, u64)>,
    ignored: usize,
}

/// A sample of a tar archive.
#[derive(Clone, Debug, PartialEq, Eq, Collate)]
#[collate(crate = "crate", derive(Clone, PartialEq, Eq))]
pub struct TarSample {
    /// The path of its files up to the first dot of the base name.
    pub key: String,
    /// The archive.
    pub shard: String,
    /// Its files, by what follows the dot: `jpg`, `seg.png`.
    pub files: BTreeMap<String, Vec<u8>>,
}

impl TarSample {
    /// The file with this extension.
    ///
    /// # Errors
    /// `L0724` if there is none.
    pub fn file(&self, extension: &str) -> Result<&[u8]> {
        self.files.get(extension).map(Vec::as_slice).ok_or_else(|| {
            let has = self.files.keys().cloned().collect();
            missing(&self.shard, &self.key, extension, has)
        })
    }

    /// The file with this extension, as text.
    ///
    /// # Errors
    /// `L0724` if there is none; that of the conversion if it is not UTF-8.
    pub fn text(&self, extension: &str) -> Result<&str> {
        let of = |error: Error| {
            error.at("file", &self.shard).at("tar sample", &self.key).at("extension", extension)
        };
        std::str::from_utf8(self.file(extension)?).map_err(|error| of(error.into()))
    }
}

impl TarShards {
    /// Reads the headers of all archives.
    ///
    /// # Errors
    /// `L0701` if an archive cannot be read, `L0721` if it is damaged, cut short or compressed, `L0722` if it has a
    /// sparse file, `L0723` if a sample occurs twice in it; `L0512` if no archives were given.
    pub fn open<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>) -> Result<Self> {
        let mut index = Self {
            shards: Vec::new(),
            shard_ends: Vec::new(),
            ends: Vec::new(),
            names: Names::default(),
            places: Vec::new(),
            ignored: 0,
        };
        for path in paths {
            let (shard, file) = Indexed::open(path.as_ref())?;
            Scan { index: &mut index, shard: &shard, keys: BTreeMap::new(), extensions: BTreeSet::new() }
                .scan(file)?;
            index.shards.push(shard);
            index.shard_ends.push(index.ends.len());
        }
        if index.shards.is_empty() {
            return Err(Error::new(COMBINATION, "no archives were given")
                .hint("give one or more; does the pattern that was to list them match?"));
        }
        Ok(index)
    }

    /// The same, if each sample has files with these extensions.
    ///
    /// # Errors
    /// `L0724` with the first sample that lacks one.
    pub fn require(self, extensions: &[&str]) -> Result<Self> {
        for sample in 0..self.ends.len() {
            let has: Vec<_> = self.members(sample).map(|member| self.split(member).1).collect();
            if let Some(lacks) = extensions.iter().find(|extension| !has.contains(&extension.as_bytes())) {
                let shard = &self.shards[self.shard_of(sample)];
                let has = has.into_iter().map(text).collect();
                let first = self.members(sample).start;
                return Err(missing(
                    &shard.path().display().to_string(),
                    &text(self.split(first).0),
                    lacks,
                    has,
                )
                .at("offset", self.places[first].0));
            }
        }
        Ok(self)
    }

    /// The samples archive by archive, in their order: one shard for each archive.
    pub fn into_stream(self) -> TarStream {
        TarStream { index: self }
    }

    /// How many members are passed over: directories, links, names without a dot.
    pub fn ignored_members(&self) -> usize {
        self.ignored
    }

    fn members(&self, sample: usize) -> std::ops::Range<usize> {
        sample.checked_sub(1).map_or(0, |before| self.ends[before])..self.ends[sample]
    }

    fn shard_of(&self, sample: usize) -> usize {
        self.shard_ends.partition_point(|&end| end <= sample)
    }

    /// Key and extension of a member.
    fn split(&self, member: usize) -> (&[u8], &[u8]) {
        split(self.names.get(member)).unwrap_or_default()
    }

    fn read(&self, sample: usize, shard: &Indexed, file: &File) -> Result<TarSample> {
        let members = self.members(sample);
        let key = text(self.split(members.start).0);
        let read = |member: usize| {
            let (offset, size) = self.places[member];
            let of = |error: Error| error.at("tar sample", &key);
            let mut bytes = shard.room(size).map_err(of)?;
            shard.read_at(file, &mut bytes, offset).map_err(of)?;
            Ok((text(self.split(member).1), bytes))
        };
        let files = members.map(read).collect::<Result<_>>()?;
        shard.unchanged(file)?;
        Ok(TarSample { key, shard: shard.path().display().to_string(), files })
    }
}

impl Dataset for TarShards {
    type Item = TarSample;
    type Batch = TarSampleBatch;

    fn len(&self) -> usize {
        self.ends.len()
    }

    fn get(&self, index: usize, _: &mut SampleCx) -> Result<TarSample> {
        if index >= self.len() {
            return Err(out_of_range(index, self.len()));
        }
        // Opened each time, as there may be more archives than a process may have files.
        let shard = &self.shards[self.shard_of(index)];
        self.read(index, shard, &shard.reopen()?)
    }

    fn collate(&self, items: Vec<TarSample>) -> Result<TarSampleBatch> {
        default_collate(items)
    }

    fn origin(&self) -> Option<String> {
        let (first, others) = self.shards.split_first()?;
        let first = first.path().display();
        Some(if others.is_empty() { first.to_string() } else { format!("{first} and {} more", others.len()) })
    }
}

/// See [`TarShards::into_stream`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TarStream {
    index: TarShards,
}

impl IterableDataset for TarStream {
    type Item = TarSample;
    type Batch = TarSampleBatch;

    fn shards(&self) -> usize {
        self.index.shards.len()
    }

    fn shard_len(&self, shard: usize) -> Option<usize> {
        let ends = &self.index.shard_ends;
        let start = shard.checked_sub(1).map_or(Some(&0), |before| ends.get(before))?;
        Some(ends.get(shard)? - start)
    }

    fn stream(&self, shard: usize, _: StreamCx) -> Result<Stream<'_, TarSample>> {
        let index = &self.index;
        let archive = index.shards.get(shard).ok_or_else(|| out_of_range(shard, index.shards.len()))?;
        let file = archive.reopen()?;
        let start = shard.checked_sub(1).map_or(0, |before| index.shard_ends[before]);
        Ok(Box::new((start..index.shard_ends[shard]).map(move |sample| index.read(sample, archive, &file))))
    }

    fn collate(&self, items: Vec<TarSample>) -> Result<TarSampleBatch> {
        default_collate(items)
    }
}

/// The scan of one archive.
struct Scan<'a> {
    index: &'a mut TarShards,
    shard: &'a Indexed,
    /// The samples so far, and where their first members are.
    keys: BTreeMap<Vec<u8>, u64>,
    /// Those of the last sample.
    extensions: BTreeSet<Vec<u8>>,
}

impl Scan<'_> {
    fn scan(mut self, file: File) -> Result<()> {
        let packed = compressed_by(&file).map_err(|error| self.unreadable(&error))?;
        let mut archive = Archive::new(file);
        let mut next = 0;
        let entries = archive.entries_with_seek().map_err(|error| self.unreadable(&error))?;
        for entry in entries {
            let mut entry = entry.map_err(|error| self.damaged(next, packed, &error))?;
            let (offset, size) = (entry.raw_file_position(), entry.size());
            let name = entry.path_bytes().into_owned();
            let pax = entry.pax_extensions().map_err(|error| self.damaged(next, packed, &error))?;
            let pax_sparse = pax.is_some_and(|mut keys| {
                keys.any(|key| key.is_ok_and(|key| key.key_bytes().starts_with(b"GNU.sparse.")))
            });
            if pax_sparse || entry.header().entry_type().is_gnu_sparse() {
                return Err(self
                    .error(TAR_SPARSE, "a tar archive has a sparse member", next)
                    .at("member", text(&name))
                    .hint("make the archive again without `--sparse`"));
            }
            let end = offset.checked_add(size).filter(|&end| end <= self.shard.length);
            next = end.ok_or_else(|| {
                self.truncated(next)
                    .at("member", text(&name))
                    .at("expected", format_args!("{size} bytes from offset {offset}"))
            })?;
            next = next.next_multiple_of(BLOCK);
            let kind = entry.header().entry_type();
            self.member(&name, offset, size, kind.is_file() || kind.is_contiguous())?;
        }
        // Two blocks of zeros, of which other programs, too, want to see one only.
        if next.saturating_add(BLOCK) > self.shard.length {
            return Err(self.truncated(next).at("expected", "a member or the mark of the archive's end"));
        }
        Ok(())
    }

    fn member(&mut self, name: &[u8], offset: u64, size: u64, is_file: bool) -> Result<()> {
        let Some((key, extension)) = split(name).filter(|_| is_file) else {
            self.index.ignored += 1;
            return Ok(());
        };
        let samples = self.index.ends.len();
        let first = self.index.shard_ends.last().copied().unwrap_or(0) == samples;
        let goes_on = !first && self.index.split(self.index.names.len() - 1).0 == key;
        if !goes_on {
            self.extensions.clear();
        }
        let before = self.keys.get(key).copied();
        if before.is_some() && !(goes_on && self.extensions.insert(extension.to_vec())) {
            return Err(self
                .error(TAR_DUPLICATE, "a sample occurs twice in a tar archive", offset)
                .at("sample", text(key))
                .at("member", text(name))
                .at("before", format_args!("offset {}", before.unwrap_or(0)))
                .hint("give each sample its own name, and keep its files together: `tar --sort=name`"));
        }
        if !goes_on {
            self.extensions.insert(extension.to_vec());
            self.keys.insert(key.to_vec(), offset);
            self.index.ends.push(self.index.places.len());
        }
        self.index.names.push(name);
        self.index.places.push((offset, size));
        if let Some(end) = self.index.ends.last_mut() {
            *end += 1;
        }
        Ok(())
    }

    fn error(&self, code: Code, what: &str, offset: u64) -> Error {
        Error::new(code, what).at("file", self.shard.path().display()).at("offset", offset)
    }

    fn truncated(&self, offset: u64) -> Error {
        self.error(TAR_DAMAGED, "a tar archive is truncated", offset)
            .at("found", format_args!("the end of the file at {}", self.shard.length))
            .hint("make or download the archive again")
    }

    fn damaged(&self, offset: u64, packed: Option<&str>, error: &io::Error) -> Error {
        let damaged = self.error(TAR_DAMAGED, "a tar archive is damaged", offset).because(error);
        match packed.filter(|_| offset == 0) {
            Some(program) => damaged
                .at("found", format_args!("a file compressed by {program}"))
                .hint("unpack it: the members of a compressed archive cannot be reached one by one"),
            None => damaged.hint("`tar -tvf` checks it; make or download the archive again"),
        }
    }

    fn unreadable(&self, error: &io::Error) -> Error {
        super::unreadable(self.shard.path(), error)
    }
}

fn missing(shard: &str, key: &str, lacks: &str, has: Vec<String>) -> Error {
    Error::new(TAR_MISSING, "a sample in a tar archive lacks a file")
        .at("file", shard)
        .at("tar sample", key)
        .at("lacks", lacks)
        .at("has", has.join(", "))
}

/// Splits a path at the first dot of its base name; not if nothing stands before or after it.
fn split(name: &[u8]) -> Option<(&[u8], &[u8])> {
    let base = name.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
    let dot = base + name[base..].iter().position(|&byte| byte == b'.')?;
    let is_sample = dot > base && dot + 1 < name.len() && !name[base..].starts_with(b"__");
    is_sample.then(|| (&name[..dot], &name[dot + 1..]))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Headers and data begin at multiples of this.
const BLOCK: u64 = 512;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codes::{FILE_CHANGED, FILE_UNREADABLE};
    use crate::files::{damaged, rewrite};
    use std::path::PathBuf;
    use tar::{Builder, EntryType, Header};

    fn add(archive: &mut Builder<Vec<u8>>, name: &str, bytes: &[u8]) {
        let mut header = Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, bytes).unwrap();
    }

    fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut archive = Builder::new(Vec::new());
        members.iter().for_each(|(name, bytes)| add(&mut archive, name, bytes));
        archive.into_inner().unwrap()
    }

    fn written(archives: &[Vec<u8>]) -> (tempfile::TempDir, Vec<PathBuf>) {
        let dir = tempfile::tempdir().unwrap();
        let paths: Vec<_> =
            (0..archives.len()).map(|shard| dir.path().join(format!("{shard}.tar"))).collect();
        paths.iter().zip(archives).for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());
        (dir, paths)
    }

    fn refused(bytes: Vec<u8>) -> (Error, String) {
        let (_dir, paths) = written(&[bytes]);
        (TarShards::open(&paths).unwrap_err(), paths[0].display().to_string())
    }

    fn get(shards: &TarShards, index: usize) -> TarSample {
        shards.get(index, &mut SampleCx::new(0, 0, index)).unwrap()
    }

    #[test]
    fn samples_are_grouped_by_name_and_read_by_number_or_in_order() {
        let long = format!("{}/x.seg.png", "d".repeat(300));
        let first = archive(&[
            ("a/01.jpg", b"one"),
            ("a/01.cls", b"1"),
            ("README", b"passed over"),
            ("a/02.cls", b""),
            ("a/02.jpg", &[7; 1000]),
        ]);
        let (_dir, paths) =
            written(&[first, archive(&[]), archive(&[("__meta.json", b"{}"), (&long, b"three")])]);
        let shards = TarShards::open(&paths).unwrap();
        let shards: TarShards = postcard::from_bytes(&postcard::to_allocvec(&shards).unwrap()).unwrap();
        assert_eq!((shards.len(), shards.ignored_members()), (3, 2));
        let sample = get(&shards, 1);
        assert_eq!(
            (sample.key.as_str(), sample.file("jpg").unwrap(), sample.text("cls").unwrap()),
            ("a/02", &[7; 1000][..], "")
        );
        assert_eq!(
            (get(&shards, 2).file("seg.png").unwrap(), get(&shards, 2).key.len()),
            (&b"three"[..], 302)
        );
        let batch = shards.collate(vec![get(&shards, 1), get(&shards, 0)]).unwrap();
        assert_eq!(
            (batch.key.join(" ").as_str(), &batch.files["cls"]),
            ("a/02 a/01", &vec![vec![], b"1".to_vec()])
        );
        assert!(shards.get(3, &mut SampleCx::new(0, 0, 3)).is_err());

        let one_by_one: Vec<_> = (0..3).map(|index| get(&shards, index)).collect();
        let stream = shards.into_stream();
        let streamed =
            (0..stream.shards()).flat_map(|shard| stream.stream(shard, StreamCx::new(0, 0, shard)).unwrap());
        assert_eq!(streamed.collect::<Result<Vec<_>>>().unwrap(), one_by_one);
    }

    #[test]
    fn a_sample_that_lacks_a_file_is_named() {
        let (_dir, paths) =
            written(&[archive(&[("1.jpg", b"x"), ("1.cls", b"1"), ("2.jpg", b"y"), ("2.json", b"{}")])]);
        let shards = TarShards::open(&paths).unwrap();
        assert!(shards.clone().require(&["jpg"]).is_ok());
        let expected = format!(
            "error[L0724]: a sample in a tar archive lacks a file\n  file        {}\n  tar sample  2\n  \
             lacks       cls\n  has         jpg, json",
            paths[0].display()
        );
        let error = shards.clone().require(&["jpg", "cls"]).unwrap_err();
        assert_eq!(format!("{error:?}"), format!("{expected}\n  offset      2560"));
        assert_eq!(format!("{:?}", get(&shards, 1).file("cls").unwrap_err()), expected);
        let (_dir, paths) = written(&[archive(&[("1.txt", b"\xff")])]);
        let error = get(&TarShards::open(&paths).unwrap(), 0).text("txt").unwrap_err();
        assert_eq!(error.place("tar sample"), Some("1"));
    }

    #[test]
    fn a_sample_that_occurs_twice_is_refused() {
        for again in
            [&[("1.jpg", &b"x"[..]), ("1.jpg", b"x")][..], &[("1.a", b""), ("2.a", b""), ("1.b", b"")]]
        {
            let (error, _) = refused(archive(again));
            assert_eq!((error.code(), error.place("sample")), (TAR_DUPLICATE, Some("1")), "{error:?}");
            assert_eq!(error.place("before"), Some("offset 512"));
        }
        let (_dir, paths) = written(&[archive(&[("1.a", b"")]), archive(&[("1.a", b"")])]);
        assert_eq!(TarShards::open(&paths).unwrap().len(), 2, "other archives may use the same names");
    }

    #[test]
    fn sparse_members_are_refused() {
        let mut sparse = Header::new_gnu();
        sparse.set_size(0);
        sparse.set_entry_type(EntryType::GNUSparse);
        sparse.set_path("1.npy").unwrap();
        sparse.as_gnu_mut().unwrap().realsize[..12].copy_from_slice(b"00000000000\0");
        sparse.set_cksum();
        let mut archive = Builder::new(Vec::new());
        archive.append(&sparse, &b""[..]).unwrap();
        assert_eq!(refused(archive.into_inner().unwrap()).0.code(), TAR_SPARSE);

        let mut archive = Builder::new(Vec::new());
        archive.append_pax_extensions([("GNU.sparse.major", &b"1"[..])]).unwrap();
        add(&mut archive, "1.npy", b"");
        assert_eq!(refused(archive.into_inner().unwrap()).0.code(), TAR_SPARSE);
    }

    #[test]
    fn compressed_archives_are_refused_by_name() {
        let mut bytes = vec![0x1f, 0x8b, 8];
        bytes.resize(2000, 1);
        let (error, file) = refused(bytes);
        assert_eq!((error.code(), error.place("file")), (TAR_DAMAGED, Some(file.as_str())));
        assert_eq!(error.place("found"), Some("a file compressed by gzip"));
    }

    #[test]
    fn an_archive_cut_short_is_refused_wherever_it_was_cut() {
        let bytes = archive(&[("1.jpg", &[1; 700]), (&"n".repeat(150), b"x"), ("2.jpg", b"y")]);
        let end = bytes.len() - 2 * BLOCK as usize;
        let (_dir, paths) = written(&[Vec::new()]);
        for length in 0..end + BLOCK as usize {
            rewrite(&paths[0], &bytes[..length]);
            let error = TarShards::open(&paths).unwrap_err();
            assert_eq!(error.code(), TAR_DAMAGED, "cut to {length}: {error:?}");
        }
        let (error, file) = refused(bytes[..1000].to_vec());
        let expected = format!(
            "error[L0721]: a tar archive is truncated\n  file      {file}\n  offset    0\n  \
             found     the end of the file at 1000\n  member    1.jpg\n  \
             expected  700 bytes from offset 512\n  fix: make or download the archive again"
        );
        assert_eq!(format!("{error:?}"), expected);
        assert_eq!(TarShards::open([] as [&str; 0]).unwrap_err().code(), COMBINATION);
        assert_eq!(TarShards::open(["absent.tar"]).unwrap_err().code(), FILE_UNREADABLE);
    }

    #[test]
    fn a_loader_without_samples_names_the_archives() {
        let (_dir, paths) = written(&[archive(&[]), archive(&[])]);
        let shards = TarShards::open(&paths).unwrap();
        let error = crate::DataLoader::builder(shards).build().unwrap_err();
        assert_eq!(error.place("read from"), Some(format!("{} and 1 more", paths[0].display()).as_str()));
    }

    #[test]
    fn an_archive_that_changed_since_is_refused() {
        let (_dir, paths) = written(&[archive(&[("1.a", b"x")])]);
        let shards = TarShards::open(&paths).unwrap();
        std::fs::write(&paths[0], archive(&[("1.a", &[0; 20_000])])).unwrap();
        let error = shards.get(0, &mut SampleCx::new(0, 0, 0)).unwrap_err();
        assert_eq!(error.code(), FILE_CHANGED);
        assert_eq!(
            shards.into_stream().stream(0, StreamCx::new(0, 0, 0)).err().unwrap().code(),
            FILE_CHANGED
        );
    }

    #[test]
    fn damage_anywhere_gives_samples_or_an_error() {
        let long = format!("{}.b", "n".repeat(150));
        let bytes = archive(&[("1.jpg", &[1; 700]), ("1.cls", b"x"), (&long, b"y"), ("3.a", b"z")]);
        let (_dir, paths) = written(&[Vec::new()]);
        for copy in damaged(&bytes, 2500) {
            rewrite(&paths[0], &copy);
            match TarShards::open(&paths) {
                Ok(shards) => {
                    (0..shards.len()).for_each(|index| assert!(!get(&shards, index).files.is_empty()))
                }
                Err(error) => {
                    assert!([TAR_DAMAGED, TAR_DUPLICATE, TAR_SPARSE].contains(&error.code()), "{error:?}");
                }
            }
        }
    }
}
