#![doc = include_str!("../README.md")]

mod config;
mod error;
mod format;
mod guard;
mod index;
mod log;
mod open;
mod packs;
mod store;
mod verify;

pub use config::{Config, VerifyOnRead};
pub use error::{OpenError, StoreError};
pub use guard::Guard;
pub use open::{OpenReport, PackGap};
pub use store::{DeleteReport, PutReport, Stat, Store};
pub use verify::{CorruptBlock, Progress, VerifyReport};
