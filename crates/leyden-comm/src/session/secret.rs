//! What the ranks of a run know and nobody else does, and how one shows another that it knows it: by what HMAC-SHA256 makes
//! of it and of a number of each side, so that it is never sent, and what was overheard is of no use a second time.
//!
//! It proves who somebody is when a connection begins. What is sent afterwards is neither encrypted nor signed.

use std::fmt;

use hmac::{Hmac, Mac as _};
use leyden_process::{Error, Result};
use sha2::Sha256;

use crate::codes::SESSION_TOKEN;

/// A number that is used once.
pub(crate) type Nonce = [u8; 32];

/// Known to the ranks of one run.
#[derive(Clone)]
pub(crate) struct Secret([u8; 32]);

impl Secret {
    /// That of a run, from what the user gave to all its ranks.
    pub(crate) fn of_token(token: &str, session: &Nonce) -> Self {
        Self(mac(token.as_bytes(), &[b"leyden session", session]))
    }

    /// One that the ranks of a host hand to each other.
    pub(crate) fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// What only somebody who has the secret can make of both sides' numbers, for this purpose (who speaks to whom).
    pub(crate) fn proof(&self, purpose: &str, nonces: [&Nonce; 2]) -> [u8; 32] {
        mac(&self.0, &[purpose.as_bytes(), &[0], nonces[0], nonces[1]])
    }

    /// Whether that is it; takes the same time wherever it is wrong.
    pub(crate) fn is_proof(&self, proof: &[u8; 32], purpose: &str, nonces: [&Nonce; 2]) -> bool {
        keyed(&self.0, &[purpose.as_bytes(), &[0], nonces[0], nonces[1]]).verify_slice(proof).is_ok()
    }
}

/// It does not get into a log.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A number that nobody can guess.
///
/// # Errors
/// `D0220` if the system has no randomness.
pub(crate) fn nonce() -> Result<Nonce> {
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce)
        .map_err(|error| Error::new(SESSION_TOKEN, "the system gives no random numbers").why(error))?;
    Ok(nonce)
}

fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    keyed(key, parts).finalize().into_bytes().into()
}

fn keyed(key: &[u8], parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key may have any length");
    parts.iter().for_each(|part| mac.update(part));
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_holds_for_its_secret_purpose_and_numbers_alone() {
        let (one, other) = (nonce().unwrap(), nonce().unwrap());
        let secret = Secret::of_token("a token of a run", &one);
        let proof = secret.proof("to the server", [&one, &other]);
        assert!(secret.is_proof(&proof, "to the server", [&one, &other]));
        assert!(!secret.is_proof(&proof, "to the client", [&one, &other]));
        assert!(!secret.is_proof(&proof, "to the server", [&other, &one]));
        assert!(!Secret::of_token("another token", &one).is_proof(&proof, "to the server", [&one, &other]));
        assert!(!Secret::of_token("a token of a run", &other).is_proof(
            &proof,
            "to the server",
            [&one, &other]
        ));
        let mut damaged = proof;
        damaged[31] ^= 1;
        assert!(!secret.is_proof(&damaged, "to the server", [&one, &other]));
        assert_eq!(format!("{secret:?}"), "Secret(..)");
    }
}
