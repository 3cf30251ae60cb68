//! How fast content becomes blocks: `cargo run --release -p gemba-unixfs --example import_speed [MiB]`.
//!
//! Nothing is stored: the sink drops the blocks, so that reading, chunking and hashing alone are seen. On a busy machine
//! the column per CPU second is the one to compare.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::io::Read;
use std::time::Instant;

use gemba_unixfs::{Block, Meta, Profile, TreeImporter, import_reader};

/// `left` bytes that differ from place to place; making them costs about as much as reading from a warm cache.
struct Content {
    left: u64,
    page: Vec<u8>,
}

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let take = buffer
            .len()
            .min(self.page.len())
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let stamp = self.left.to_le_bytes();
        self.page[..8].copy_from_slice(&stamp);
        buffer[..take].copy_from_slice(&self.page[..take]);
        self.left -= take as u64;
        Ok(take)
    }
}

fn main() {
    let mib: u64 = std::env::args()
        .nth(1)
        .map_or(1024, |text| text.parse().unwrap());
    let mut drop_all = |_: Vec<Block>| Ok(());
    for (name, profile) in [
        ("unixfs-v1-2025", Profile::unixfs_v1_2025()),
        ("unixfs-v0-2015", Profile::unixfs_v0_2015()),
    ] {
        for workers in [1, 2] {
            let content = Content {
                left: mib << 20,
                page: vec![0x5a; 64 * 1024],
            };
            let (start, cpu) = (Instant::now(), cpu_seconds());
            let part = import_reader(content, &profile, workers, &mut drop_all).unwrap();
            let (seconds, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - cpu);
            println!(
                "{name}  {workers} threads  {:5.0} MiB/s  {seconds:6.2} s  {:5.0} MiB/CPU s  {}",
                mib as f64 / seconds,
                mib as f64 / cpu,
                part.cid
            );
        }
    }
    for workers in [1, 2] {
        let file = vec![0x5a; 1024];
        let (start, cpu) = (Instant::now(), cpu_seconds());
        let mut importer = TreeImporter::new(&Profile::default(), workers);
        importer
            .enter_dir(b"", &Meta::default(), &mut drop_all)
            .unwrap();
        for index in 0..2000u32 {
            let name = format!("{index:04}");
            let stamp = index.to_le_bytes();
            let mut content = Read::chain(&stamp[..], &file[4..]);
            importer
                .file(
                    name.as_bytes(),
                    &Meta::default(),
                    &mut content,
                    &mut drop_all,
                )
                .unwrap();
        }
        importer.leave_dir(&mut drop_all).unwrap();
        importer.finish(&mut drop_all).unwrap();
        println!(
            "2000 x 1 KiB    {workers} threads  {:6.1} ms, {:4.0} ms of CPU",
            start.elapsed().as_secs_f64() * 1000.0,
            (cpu_seconds() - cpu) * 1000.0
        );
    }
    #[cfg(all(feature = "fs", unix))]
    folder();
}

/// CPU seconds of all threads of this process, in hundredths (Linux; elsewhere 0).
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let behind_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = behind_name.split_whitespace().skip(11).take(2);
    ticks
        .filter_map(|ticks| ticks.parse::<f64>().ok())
        .sum::<f64>()
        / 100.0
}

/// The same 2000 files from a real folder, opened and read.
#[cfg(all(feature = "fs", unix))]
fn folder() {
    use gemba_unixfs::fs::{ImportOptions, import};
    let dir = tempfile::tempdir().unwrap();
    for index in 0..2000u32 {
        let mut content = vec![0x5a; 1024];
        content[..4].copy_from_slice(&index.to_le_bytes());
        std::fs::write(dir.path().join(format!("{index:04}")), content).unwrap();
    }
    for workers in [1, 2] {
        let mut drop_all = |_: Vec<Block>| Ok(());
        let options = ImportOptions {
            workers,
            ..ImportOptions::default()
        };
        let (start, cpu) = (Instant::now(), cpu_seconds());
        import(dir.path(), &Profile::default(), &options, &mut drop_all).unwrap();
        println!(
            "2000 x 1 KiB from a folder  {workers} threads  {:6.1} ms, {:4.0} ms of CPU",
            start.elapsed().as_secs_f64() * 1000.0,
            (cpu_seconds() - cpu) * 1000.0
        );
    }
}
