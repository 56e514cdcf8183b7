//! The program's own image in memory: where its code is, and which build it is.

#[cfg(target_os = "linux")]
use std::ffi::{c_int, c_void};
#[cfg(target_os = "linux")]
use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;
#[cfg(any(target_os = "linux", leyden_portable))]
use std::sync::OnceLock;

/// The main executable, as it lies in this process.
#[cfg(target_os = "linux")]
pub(crate) struct Image {
    /// Where its program headers are; in its file's first page.
    pub(crate) headers: usize,
    code: Vec<Range<usize>>,
    build_id: Option<Vec<u8>>,
}

#[cfg(target_os = "linux")]
impl Image {
    /// The main executable's; libraries have others.
    pub(crate) fn of_the_program() -> Option<&'static Self> {
        static IMAGE: OnceLock<Option<Image>> = OnceLock::new();
        IMAGE
            .get_or_init(|| {
                let mut found = None;
                // SAFETY: `visit` fits the callback's type, and `found` lives until the call returns.
                unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut found).cast()) };
                found
            })
            .as_ref()
    }

    /// Whether the address lies in its code.
    pub(crate) fn has_code_at(&self, address: usize) -> bool {
        self.code.iter().any(|segment| segment.contains(&address))
    }
}

/// What the linker made of the program's content, if it did.
pub(crate) fn linker_build() -> Option<Vec<u8>> {
    #[cfg(target_os = "linux")]
    return Image::of_the_program().and_then(|image| image.build_id.clone());
    #[cfg(not(target_os = "linux"))]
    None
}

/// What tells two builds of a program apart: the linker's build id or, where there is none, which file it is.
pub(crate) fn build() -> Vec<u8> {
    if let Some(id) = linker_build() {
        return id;
    }
    #[cfg(leyden_portable)]
    let facts = FILE.get().copied().flatten();
    #[cfg(not(leyden_portable))]
    let facts = facts_of("/proc/self/exe".as_ref());
    facts.into_iter().flatten().flat_map(u64::to_le_bytes).collect()
}

/// What tells a file from one that takes its place.
type Facts = [u64; 5];

fn facts_of(path: &std::path::Path) -> Option<Facts> {
    let file = std::fs::metadata(path).ok()?;
    Some([file.dev(), file.ino(), file.size(), file.mtime() as u64, file.mtime_nsec() as u64])
}

/// The program's file when the program started.
#[cfg(leyden_portable)]
static FILE: OnceLock<Option<Facts>> = OnceLock::new();

#[cfg(leyden_portable)]
fn file() -> Option<Facts> {
    facts_of(&std::env::current_exe().ok()?)
}

/// Keeps in mind which file the program was started from: its path may lead to another one later.
#[cfg(leyden_portable)]
pub(crate) fn note_file() {
    FILE.get_or_init(file);
}

/// Whether the program's path still leads to the file that it was started from.
#[cfg(leyden_portable)]
pub(crate) fn file_is_unchanged() -> bool {
    file().is_some_and(|now| FILE.get() == Some(&Some(now)))
}

/// How far a function is from a fixed one of this crate: the same in every process of one build, wherever the image
/// was loaded.
pub(crate) fn offset_of(function: usize) -> i64 {
    function.wrapping_sub(anchor as *const () as usize) as i64
}

/// Where the function with this offset is, if that is code of the program.
pub(crate) fn function_at(offset: i64) -> Option<usize> {
    let address = (anchor as *const () as usize).wrapping_add(offset as usize);
    is_in_the_program(address).then_some(address)
}

/// Whether the address is one of the program's code, and of no library's. Where the system does not say, equal builds are
/// all that vouches for it.
pub(crate) fn is_in_the_program(address: usize) -> bool {
    #[cfg(target_os = "linux")]
    return Image::of_the_program().is_some_and(|image| image.has_code_at(address));
    #[cfg(target_vendor = "apple")]
    return image_of(address) == Some(program());
    #[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
    return address != 0;
}

/// Whether the fixed function itself is in the program and not in a library.
pub(crate) fn anchor_is_in_the_program() -> bool {
    function_at(0).is_some()
}

/// Where the image begins that has this address.
#[cfg(target_vendor = "apple")]
fn image_of(address: usize) -> Option<usize> {
    // SAFETY: an all-zero `Dl_info` is an empty one, which dladdr fills if it knows the address.
    unsafe {
        let mut found: libc::Dl_info = std::mem::zeroed();
        let known = libc::dladdr(std::ptr::with_exposed_provenance(address), &mut found) != 0;
        known.then(|| found.dli_fbase.addr())
    }
}

/// Where the program's image begins.
#[cfg(target_vendor = "apple")]
fn program() -> usize {
    unsafe extern "C" {
        fn _dyld_get_image_header(number: u32) -> *const std::ffi::c_void;
    }
    // SAFETY: the program is image 0, and there always.
    unsafe { _dyld_get_image_header(0).addr() }
}

/// A fixed place in the image. Never inlined, and not generic, so that there is one.
#[inline(never)]
fn anchor() {
    std::hint::black_box(());
}

#[cfg(target_os = "linux")]
unsafe extern "C" fn visit(info: *mut libc::dl_phdr_info, _: usize, found: *mut c_void) -> c_int {
    // SAFETY: the C library gives a valid `info`; `found` is what `of_the_program` passed.
    let (info, found) = unsafe { (&*info, &mut *found.cast::<Option<Image>>()) };
    // SAFETY: getauxval has no preconditions.
    let headers = unsafe { libc::getauxval(libc::AT_PHDR) };
    if info.dlpi_phdr as usize != headers as usize {
        return 0;
    }
    // SAFETY: the C library says how many headers there are.
    let segments = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    let range = |segment: &libc::Elf64_Phdr| {
        let start = (info.dlpi_addr as usize).wrapping_add(segment.p_vaddr as usize);
        start..start + segment.p_memsz as usize
    };
    let mut image = Image { headers: headers as usize, code: Vec::new(), build_id: None };
    for segment in segments {
        match segment.p_type {
            libc::PT_LOAD if segment.p_flags & libc::PF_X != 0 => image.code.push(range(segment)),
            libc::PT_NOTE => {
                let range = range(segment);
                // SAFETY: a note segment of the program lies in one of its loaded, readable segments, for ever.
                let notes = unsafe {
                    std::slice::from_raw_parts(
                        std::ptr::with_exposed_provenance::<u8>(range.start),
                        range.len(),
                    )
                };
                image.build_id = image.build_id.or_else(|| gnu_build_id(notes, segment.p_align as usize));
            }
            _ => {}
        }
    }
    *found = Some(image);
    1
}

/// The description of the note named `GNU` with type 3.
#[cfg(target_os = "linux")]
fn gnu_build_id(mut notes: &[u8], align: usize) -> Option<Vec<u8>> {
    const NT_GNU_BUILD_ID: usize = 3;
    let align = align.clamp(4, 8);
    while notes.len() >= 12 {
        let word =
            |index: usize| notes[4 * index..][..4].try_into().map(|bytes| u32::from_le_bytes(bytes) as usize);
        let (name, description, kind) = (word(0).ok()?, word(1).ok()?, word(2).ok()?);
        let described = (12 + name).next_multiple_of(align);
        let end = described.checked_add(description)?;
        if kind == NT_GNU_BUILD_ID && notes.get(12..12 + name)? == b"GNU\0" {
            return notes.get(described..end).map(<[u8]>::to_vec);
        }
        notes = notes.get(end.next_multiple_of(align)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_of_the_program_are_found_by_their_offset() {
        let here = functions_of_the_program_are_found_by_their_offset as *const () as usize;
        assert_eq!(function_at(offset_of(here)), Some(here));
        assert!(anchor_is_in_the_program());
        assert_eq!(function_at(i64::MAX / 2), None);
        let on_the_heap = Box::new(0_u8);
        assert_eq!(function_at(offset_of(&raw const *on_the_heap as usize)), None);
    }

    #[test]
    fn the_c_library_is_not_the_program() {
        if cfg!(target_feature = "crt-static") {
            return;
        }
        assert_eq!(function_at(offset_of(libc::getpid as *const () as usize)), None);
    }

    #[test]
    fn a_build_id_is_found_behind_other_notes() {
        let note = |name: &[u8], kind: u32, description: &[u8]| {
            let mut note = Vec::new();
            for word in [name.len() as u32, description.len() as u32, kind] {
                note.extend(word.to_le_bytes());
            }
            note.extend(name);
            note.resize(note.len().next_multiple_of(4), 0);
            note.extend(description);
            note.resize(note.len().next_multiple_of(4), 0);
            note
        };
        let notes =
            [note(b"Linux\0", 3, b"no"), note(b"GNU\0", 1, b"abi"), note(b"GNU\0", 3, b"id id")].concat();
        assert_eq!(gnu_build_id(&notes, 4).as_deref(), Some(&b"id id"[..]));
        assert_eq!(gnu_build_id(&notes[..20], 4), None);
    }
}
