//! Real folders: importing one, exporting into one. Thin drivers of the cores, for Unix.

// The kernel's types of inode, mode and time have other widths on other platforms.
#![allow(clippy::unnecessary_cast)]

mod confined;
mod export;
mod import;

pub use export::{ExportError, ExportOptions, ExportReport, Symlinks, export, partial_path};
pub use import::{ImportOptions, import};
