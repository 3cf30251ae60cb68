//! Code made from the `.proto` files by `cargo xtask`, checked in and compared in CI. Nothing here is written by hand
//! but this file.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    clippy::semicolon_if_nothing_returned
)]

include!("bitswap.rs");

/// `site.proto`.
pub mod site {
    include!("site.rs");
}
