//! One error type for the whole rig: a sentence that a person can act on.
//!
//! Nothing here is recovered from by kind, so there are no variants; what matters is that the sentence names the node, the
//! command and what was expected.

use std::fmt;

/// Why a scenario did not hold.
pub(crate) struct Failure(String);

/// The result of every step of the rig.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// `Failure` itself is no `std::error::Error`, which is what makes this blanket conversion possible.
impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

/// Puts what was being done in front of what went wrong.
pub(crate) trait Context<T> {
    fn context(self, doing: impl FnOnce() -> String) -> Outcome<T>;
}

impl<T, E: Into<Failure>> Context<T> for Result<T, E> {
    fn context(self, doing: impl FnOnce() -> String) -> Outcome<T> {
        self.map_err(|error| Failure(format!("{}: {}", doing(), error.into())))
    }
}

impl<T> Context<T> for Option<T> {
    fn context(self, doing: impl FnOnce() -> String) -> Outcome<T> {
        self.ok_or_else(|| Failure(doing()))
    }
}

/// Ends the scenario with a sentence unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($sentence:tt)+) => {
        if !$condition {
            return Err($crate::failure::Failure::new(format!($($sentence)+)));
        }
    };
}

/// Ends the scenario with a sentence.
macro_rules! fail {
    ($($sentence:tt)+) => {
        return Err($crate::failure::Failure::new(format!($($sentence)+)))
    };
}

pub(crate) use {ensure, fail};
