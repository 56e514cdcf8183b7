//! Variables, and values that remember which of them they came from.

use std::collections::BTreeMap;

use crate::codes::{HALF_SET, MASTER_ADDRESS, NOT_A_NUMBER};
use crate::{Error, Result};

/// A value and the variables it came from.
#[derive(Clone, Debug)]
pub(super) struct Known<T> {
    pub(super) value: T,
    pub(super) from: String,
}

impl<T> Known<T> {
    pub(super) fn new(value: T, from: impl Into<String>) -> Self {
        Self { value, from: from.into() }
    }
}

/// The variables that are set, to something.
pub(super) struct Variables(BTreeMap<String, String>);

impl Variables {
    pub(super) fn new(variables: impl Iterator<Item = (String, String)>) -> Self {
        Self(variables.filter(|(_, value)| !value.is_empty()).collect())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    pub(super) fn text(&self, name: &str) -> Option<Known<String>> {
        self.0.get(name).map(|value| Known::new(value.clone(), name))
    }

    /// The first of these that is set.
    pub(super) fn first_text(&self, names: &[&str]) -> Option<Known<String>> {
        names.iter().find_map(|name| self.text(name))
    }

    pub(super) fn number(&self, name: &str) -> Result<Option<Known<usize>>> {
        let Some(value) = self.0.get(name) else { return Ok(None) };
        match value.trim().parse() {
            Ok(number) => Ok(Some(Known::new(number, name))),
            Err(_) => Err(Error::new(NOT_A_NUMBER, format!("the variable {name} is not a number"))
                .at(name, format!("`{}`", value.escape_debug()))
                .why("it says which rank this process is, or how many there are: a whole number from 0")
                .hint(format!("set {name} to a number, or unset it to run without a launcher"))),
        }
    }

    pub(super) fn first_number(&self, names: &[&str]) -> Result<Option<Known<usize>>> {
        for name in names {
            if let Some(number) = self.number(name)? {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }

    /// Two numbers that are set together, or not at all.
    pub(super) fn pair(&self, one: &str, other: &str) -> Result<Option<(Known<usize>, Known<usize>)>> {
        match (self.number(one)?, self.number(other)?) {
            (Some(one), Some(other)) => Ok(Some((one, other))),
            (None, None) => Ok(None),
            (Some(set), None) => Err(half(&set.from, &set.value.to_string(), other)),
            (None, Some(set)) => Err(half(&set.from, &set.value.to_string(), one)),
        }
    }

    /// `MASTER_ADDR`.
    pub(super) fn master_host(&self) -> Result<Option<Known<String>>> {
        let Some(host) = self.text("MASTER_ADDR") else { return Ok(None) };
        let odd = host.value.contains(|c: char| c.is_whitespace() || c == '/') || has_port(&host.value);
        if !odd {
            return Ok(Some(host));
        }
        Err(Error::new(MASTER_ADDRESS, "the variable MASTER_ADDR is not a host")
            .at("MASTER_ADDR", format!("`{}`", host.value.escape_debug()))
            .hint("set MASTER_ADDR to a name or an address alone; the port goes into MASTER_PORT"))
    }

    /// `MASTER_PORT`.
    pub(super) fn master_port(&self) -> Result<Option<Known<u16>>> {
        let Some(text) = self.text("MASTER_PORT") else { return Ok(None) };
        match text.value.trim().parse() {
            Ok(port) if port > 0 => Ok(Some(Known::new(port, text.from))),
            _ => Err(Error::new(MASTER_ADDRESS, "the variable MASTER_PORT is not a port")
                .at("MASTER_PORT", format!("`{}`", text.value.escape_debug()))
                .hint("set MASTER_PORT to a number from 1 to 65535, the same on all ranks")),
        }
    }
}

/// Host and port as one value.
pub(super) fn address(host: Known<String>, port: Known<u16>) -> Known<(String, u16)> {
    Known::new((host.value, port.value), format!("{}, {}", host.from, port.from))
}

/// An error for a variable that needs another.
pub(super) fn half(set: &str, value: &str, missing: &str) -> Error {
    Error::new(HALF_SET, format!("the variable {set} is set, but {missing} is not"))
        .at(set, value)
        .at(missing, "not set")
        .why("a rank without the number of ranks (or the other way round) says nothing")
        .hint(format!("set both, or unset {set} to run without a launcher"))
}

/// `host:29500`, but not an IPv6 address.
fn has_port(host: &str) -> bool {
    host.matches(':').count() == 1
}
