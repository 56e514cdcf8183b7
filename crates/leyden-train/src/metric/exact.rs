//! `f64` in JSON without loss: for `#[serde(with = "…")]` on fields of saved states.
//!
//! Finite numbers stay JSON numbers (serde_json writes the shortest text that reads back to the same bits); JSON has
//! none for the others, which become the strings `"NaN"`, `"Infinity"` and `"-Infinity"`.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serializer};

pub(crate) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    match non_finite(*value) {
        Some(name) => serializer.serialize_str(name),
        None => serializer.serialize_f64(*value),
    }
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    match Written::deserialize(deserializer)? {
        Written::Number(value) => Ok(value),
        Written::Name(name) => match name.as_str() {
            "NaN" => Ok(f64::NAN),
            "Infinity" => Ok(f64::INFINITY),
            "-Infinity" => Ok(f64::NEG_INFINITY),
            _ => Err(D::Error::custom(format!("`{name}` is not a number"))),
        },
    }
}

/// The JSON name of a value that JSON has no number for.
pub(crate) fn non_finite(value: f64) -> Option<&'static str> {
    match value {
        _ if value.is_finite() => None,
        _ if value.is_nan() => Some("NaN"),
        _ if value > 0.0 => Some("Infinity"),
        _ => Some("-Infinity"),
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Number(f64),
    Name(String),
}

#[cfg(test)]
mod tests {
    use serde::Serialize;

    use super::*;

    #[derive(Serialize, Deserialize)]
    struct Holder(#[serde(with = "super")] f64);

    #[test]
    fn every_value_survives_json_text() {
        let values = [0.1 + 0.2, -0.0, 3.0, f64::MAX, 5e-324, f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
        for value in values {
            let text = serde_json::to_string(&Holder(value)).unwrap();
            let Holder(back) = serde_json::from_str(&text).unwrap();
            assert_eq!(back.to_bits(), value.to_bits(), "{text}");
        }
    }

    #[test]
    fn another_word_is_refused_by_name() {
        let error = serde_json::from_str::<Holder>("\"nine\"").err().unwrap();
        assert_eq!(error.to_string(), "`nine` is not a number");
    }
}
