//! Functions that travel inside of data: a data set with a transform, say, sent to worker processes.
//!
//! A plain function and a closure that captures nothing have a type of their own and no bytes: whoever knows the type can
//! call them. So a [`Function`] sends which type it is of, and the other process, which is the same build of the same
//! program, makes the value again of its type alone. Python pickles functions by name, and cannot send lambdas.
//!
//! This goes inside of the argument of a [`Job`](crate::spawn::Job) and nowhere else: not into files, and not to another
//! program or build. It relies on
//!
//! - *equal builds*, which a started process shows before it gets anything (`P0108`): the type is the same code there;
//! - *evidence beside the bytes*: which types were sent is written by this module behind the argument, from values that
//!   it was given, and not by any `Serialize`. A type of which no value was sent is not made, whatever the bytes say;
//! - *[`TypeId`]*, of which 64 bits are compared, and the type's name: two types of one program of one name would have to
//!   collide in them.
//!
//! As for a job's own function, a closure over values without bytes counts as capturing nothing. Should such a value stand
//! for something that was done in this process, it says so in the other one too, where it may not hold.

use std::any::{TypeId, type_name};
use std::cell::RefCell;
use std::fmt;
use std::hash::{Hash as _, Hasher};
use std::ops::Deref;

use serde::de::{self, Deserializer};
use serde::ser::{self, Serializer};
use serde::{Deserialize, Serialize};

use crate::attach;
use crate::codes::ARGUMENT;
use crate::error::{Error, Result};

/// A function, or a closure; it can be sent to processes of this program if it captures nothing.
///
/// ```
/// use leyden_process::function::Function;
///
/// let double = Function::new(|x: u32| 2 * x);
/// assert_eq!(double(4), 8);
/// ```
#[derive(Clone, Copy)]
pub struct Function<F>(F);

impl<F> Function<F> {
    /// This function.
    pub fn new(function: F) -> Self {
        Self(function)
    }
}

impl<F> Deref for Function<F> {
    type Target = F;

    fn deref(&self) -> &F {
        &self.0
    }
}

/// A function has nothing to show but its type.
impl<F> fmt::Debug for Function<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(type_name::<F>())
    }
}

/// Inside of the argument of a job alone.
impl<F: Copy + Send + Sync + 'static> Serialize for Function<F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let refuse = |error: Error| ser::Error::custom(attach::refuse(error));
        if is_pointer::<F>() {
            return Err(refuse(
                refused::<F>()
                    .why("a function pointer may point to any function of its shape, and to elsewhere in another process")
                    .hint("pass the function itself, by its name, and not a variable of the type `fn(..)`"),
            ));
        }
        if size_of::<F>() > 0 {
            return Err(refuse(
                refused::<F>()
                    .why(format!(
                        "a closure that captures something has no counterpart in another process: it captures {} bytes",
                        size_of::<F>()
                    ))
                    .hint("move what it needs into the data set: a field of one of your own, whose `get` does the work")
                    .hint("or use workers that have this process's memory: `Workers::threads`, `Workers::fork`"),
            ));
        }
        let number = SENT.with_borrow_mut(|sent| {
            let sent = sent.as_mut()?;
            let this = Known::of::<F>();
            let number = sent.iter().position(|known| *known == this).unwrap_or(sent.len());
            if number == sent.len() {
                sent.push(this);
            }
            u32::try_from(number).ok()
        });
        number.ok_or_else(|| refuse(refused::<F>().why(ELSEWHERE)))?.serialize(serializer)
    }
}

/// Inside of the argument of a job alone.
impl<'de, F: Copy + Send + Sync + 'static> Deserialize<'de> for Function<F> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let refuse = |error: Error| de::Error::custom(attach::refuse(error));
        let number = u32::deserialize(deserializer)?;
        CAME.with_borrow(|came| {
            let came = came.as_ref().ok_or_else(|| refuse(refused::<F>().why(ELSEWHERE)))?;
            let known = usize::try_from(number).ok().and_then(|number| came.get(number));
            let known =
                known.ok_or_else(|| refuse(refused::<F>().why("no function of that number came along")))?;
            if *known != Known::of::<F>() || size_of::<F>() > 0 {
                return Err(refuse(refused::<F>().at("came", &known.name).why("another one came along")));
            }
            // SAFETY: the type has no bytes, as was just looked at, and may be copied and used on any thread. It has a value:
            // the sender, a process of the same build, was given one and has said so beside what serde wrote (`CAME` is
            // filled from there alone), and types of one build that are equal in what was compared are the same.
            Ok(Self(unsafe { std::ptr::NonNull::<F>::dangling().read() }))
        })
    }
}

/// Whether the type is that of function pointers: their names begin like no other type's.
fn is_pointer<F>() -> bool {
    let name = type_name::<F>();
    size_of::<F>() == size_of::<fn()>()
        && ["fn(", "unsafe fn(", "extern ", "unsafe extern ", "for<"]
            .iter()
            .any(|start| name.starts_with(start))
}

const ELSEWHERE: &str =
    "functions travel between processes of one program alone, inside of the argument of a job";

fn refused<F>() -> Error {
    Error::new(ARGUMENT, "a function cannot be sent to another process").at("function", type_name::<F>())
}

/// The type of a function that was sent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Known {
    id: u64,
    name: String,
}

impl Known {
    fn of<F: 'static>() -> Self {
        let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
        TypeId::of::<F>().hash(&mut hasher);
        Self { id: hasher.finish(), name: type_name::<F>().to_owned() }
    }
}

/// The same in all processes, where the standard library's is keyed at random.
struct Fnv(u64);

impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

thread_local! {
    /// What the argument that this thread serialises has sent.
    static SENT: RefCell<Option<Vec<Known>>> = const { RefCell::new(None) };
    /// What came with the argument that this thread reads.
    static CAME: RefCell<Option<Vec<Known>>> = const { RefCell::new(None) };
}

/// Runs `work`, which serialises an argument; gives also what to write behind it.
pub(crate) fn sending<T>(work: impl FnOnce() -> T) -> Result<(T, Vec<u8>)> {
    let outer = SENT.replace(Some(Vec::new()));
    let restore = attach::Restore(&SENT, Some(outer));
    let result = work();
    let sent = SENT.take().unwrap_or_default();
    drop(restore);
    let mut evidence = postcard::to_allocvec(&sent)?;
    let length = evidence.len() as u64;
    evidence.extend(length.to_le_bytes());
    Ok((result, evidence))
}

/// Runs `work`, which reads an argument, with that argument: `bytes` without what [`sending`] gave, which is their end.
///
/// # Errors
/// `P0105` if there is no such end.
pub(crate) fn receiving<T>(bytes: &[u8], work: impl FnOnce(&[u8]) -> T) -> Result<T> {
    let split = || {
        let (rest, length) = bytes.split_last_chunk::<8>()?;
        let start = rest.len().checked_sub(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
        let (argument, evidence) = rest.split_at(start);
        Some((argument, postcard::from_bytes(evidence).ok()?))
    };
    let (argument, came) =
        split().ok_or_else(|| Error::new(ARGUMENT, "the argument of a job came without its end"))?;
    let outer = CAME.replace(Some(came));
    let _restore = attach::Restore(&CAME, Some(outer));
    Ok(work(argument))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cross<A: Serialize, B: for<'de> Deserialize<'de>>(value: &A) -> Result<B> {
        let (body, evidence) = sending(|| postcard::to_allocvec(value))?;
        let told = |error: postcard::Error| attach::refusal().unwrap_or_else(|| error.into());
        let bytes = [body.map_err(told)?, evidence].concat();
        receiving(&bytes, |argument| postcard::from_bytes(argument).map_err(told))?
    }

    fn like<F>(_: &F, function: Result<F>) -> Result<F> {
        function
    }

    fn double(x: u32) -> u32 {
        2 * x
    }

    #[test]
    fn functions_and_closures_that_capture_nothing_cross() {
        let both = (Function::new(double), Function::new(|x: u32| x + 1), Function::new(double));
        let back = like(&both, cross(&both)).unwrap();
        assert_eq!((back.0(4), back.1(4), back.2(5)), (8, 5, 10));
    }

    #[test]
    fn what_captures_is_refused_with_how_much() {
        let (seven, three) = (7_u32, 3_u32);
        let capturing = Function::new(move |x: u32| x * seven + three);
        assert_eq!(capturing(2), 17);
        let error = like(&capturing, cross(&capturing)).unwrap_err();
        assert_eq!((error.code(), error.what()), (ARGUMENT, "a function cannot be sent to another process"));
        assert!(error.reasons()[0].ends_with("it captures 8 bytes"), "{error:?}");
        assert!(error.place("function").unwrap().contains("closure"), "{error:?}");
        assert!(error.hints()[0].contains("into the data set"), "{error:?}");
    }

    #[test]
    fn a_function_pointer_is_called_one() {
        let pointer = Function::new(double as fn(u32) -> u32);
        let error = like(&pointer, cross(&pointer)).unwrap_err();
        assert!(error.reasons()[0].starts_with("a function pointer"), "{error:?}");
        assert!(error.hints()[0].contains("the function itself"), "{error:?}");
        let borrowing = Function::new(str::len as for<'a> fn(&'a str) -> usize);
        let error = like(&borrowing, cross(&borrowing)).unwrap_err();
        assert!(error.reasons()[0].starts_with("a function pointer"), "{error:?}");
    }

    #[test]
    fn another_function_than_was_sent_is_refused_with_both_names() {
        let sent = Function::new(double);
        let wanted = Function::new(|x: u32| 3 * x);
        assert_eq!(wanted(1), 3);
        let error = like(&wanted, cross(&sent)).unwrap_err();
        assert_eq!(error.reasons(), ["another one came along"]);
        assert!(error.place("came").unwrap().ends_with("double"), "{error:?}");
        assert!(error.place("function").unwrap().ends_with("{{closure}}"), "{error:?}");
    }

    /// Nobody has a value of it.
    #[derive(Clone, Copy, Debug)]
    enum Never {}

    #[test]
    fn bytes_alone_make_no_value() {
        let error = cross::<u32, Function<Never>>(&0).unwrap_err();
        assert_eq!(error.reasons(), ["no function of that number came along"]);
        let error = cross::<_, (Function<fn(u32) -> u32>, u32)>(&(Function::new(double), 0_u32)).unwrap_err();
        assert_eq!(error.reasons(), ["another one came along"]);
        // What its sender writes as numbers stays numbers: the evidence is not among them.
        let forged = postcard::to_allocvec(&[Known::of::<Never>()][..]).unwrap();
        assert!(cross::<_, (Vec<u8>, Function<Never>)>(&(forged, 0_u32)).is_err());
    }

    #[test]
    fn elsewhere_functions_do_not_travel() {
        let function = Function::new(double);
        assert!(postcard::to_allocvec(&function).is_err());
        assert_eq!(attach::refusal().unwrap().reasons(), [ELSEWHERE]);
        assert!(like(&function, Ok(postcard::from_bytes(&[0]).map_err(|_| ()).unwrap_or(function))).is_ok());
        assert_eq!(attach::refusal().unwrap().reasons(), [ELSEWHERE]);
        let _ = std::panic::catch_unwind(|| sending(|| panic!("while it serialises")));
        assert!(postcard::to_allocvec(&function).is_err());
    }

    #[test]
    fn an_argument_without_its_end_is_an_error() {
        for bytes in [&[][..], &[1; 7], &[0xff; 20], &[0, 9, 0, 0, 0, 0, 0, 0, 0]] {
            assert_eq!(receiving(bytes, <[u8]>::len).unwrap_err().code(), ARGUMENT);
        }
    }
}
