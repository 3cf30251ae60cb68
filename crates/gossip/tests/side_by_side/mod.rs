//! One script of RPCs played to two engines: what it is made of, the stage, and where the answers may differ.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    reason = "part of a test program"
)]

pub mod play;
pub mod script;
pub mod table;

pub use play::{Ours, Stock, play};
pub use script::{Act, Difference, Id, Script, Seen, Step, Who, Word, differences};
pub use table::{Cause, Row, causes, explain};
