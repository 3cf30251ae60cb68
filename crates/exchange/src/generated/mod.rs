//! Code made from `message.proto` by `cargo xtask`, checked in and compared in CI. Nothing here is written by hand
//! but this file.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    clippy::semicolon_if_nothing_returned
)]

include!("bitswap.rs");
