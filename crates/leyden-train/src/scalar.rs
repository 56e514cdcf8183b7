//! A logged number that may still be on a device.

use std::any::Any;
use std::fmt;

use leyden_process::Result;

/// A number that a step made. On the CPU it is read at once; elsewhere it stays on the device until a logger,
/// the progress bar or the epoch's end wants it, so that logging costs no synchronisation a step.
pub enum Scalar {
    /// On the host.
    Host(f64),
    /// On a device.
    Device(Box<dyn DeviceScalar>),
}

/// A number on a device; an engine adapter implements it.
pub trait DeviceScalar: Any + Send {
    /// Waits for the device and reads the value.
    fn read(&self) -> Result<f64>;

    /// This value times `factor`, on the device.
    fn scaled(&self, factor: f64) -> Box<dyn DeviceScalar>;

    /// This value plus `other`, on the device; `None` if `other` is of another kind or device.
    fn plus(&self, other: &dyn DeviceScalar) -> Option<Box<dyn DeviceScalar>>;
}

impl Scalar {
    /// The value; waits for the device if it is there.
    pub fn read(&self) -> Result<f64> {
        match self {
            Self::Host(value) => Ok(*value),
            Self::Device(value) => value.read(),
        }
    }
}

impl fmt::Debug for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(value) => write!(f, "{value}"),
            Self::Device(_) => f.write_str("(on the device)"),
        }
    }
}

macro_rules! from_number {
    ($($kind:ty),*) => {$(
        impl From<$kind> for Scalar {
            fn from(value: $kind) -> Self {
                Self::Host(value as f64)
            }
        }
    )*};
}
from_number!(f32, f64, i32, i64, u32, u64, usize);
