//! The node: the one place that knows all of gemba's crates. The binary `gemba` is [`cli::main`].
//!
//! - [`repo`]: what lies on disk, the lock, the keys; [`config`]: settings and where each comes from; [`meta`]: the pins;
//! - [`content`]: files in and out of the store, the same code for the command line without a daemon and for the daemon;
//! - [`client`] and [`cli`]: the command line.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod api;
pub mod cli;
pub mod client;
pub mod config;
pub mod content;
pub mod daemon;
pub mod demo;
pub mod error;
pub mod files;
pub mod handover;
pub mod keystore;
pub mod lines;
pub mod log;
pub mod meta;
pub mod metrics;
pub mod names;
pub mod repo;
pub mod text;
pub mod why;

/// The README's example compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExample;
