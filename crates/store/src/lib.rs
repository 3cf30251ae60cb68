#![doc = include_str!("../README.md")]

mod ballast;
mod collect;
mod compact;
mod config;
mod error;
mod format;
mod guard;
mod index;
mod keys;
mod kubo;
mod log;
mod open;
mod packs;
mod pages;
mod scrub;
mod store;
mod uses;
mod verify;
mod version;

pub use collect::{Collection, Garbage, Sweep, SweepStep};
pub use compact::{Aim, CompactStep};
pub use config::{Config, VerifyOnRead};
pub use error::{OpenError, StoreError};
pub use format::FORMAT;
pub use guard::Guard;
pub use index::Mark;
pub use keys::{Key, Keys};
pub use kubo::{KuboError, KuboImport, KuboStep, SkipReason, SkippedFile};
pub use open::{OpenReport, PackGap, UnreadablePack};
pub use scrub::{Pace, Scrub, ScrubPoint, ScrubStep};
pub use store::{DeleteReport, PutReport, Stat, Store};
pub use verify::{CorruptBlock, Progress, VerifyReport};
pub use version::Migrated;
