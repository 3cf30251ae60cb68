//! Files as DAGs without any network: a folder becomes blocks with Kubo's CIDs, travels as one CAR file, and becomes a
//! folder again.
#![allow(clippy::print_stdout)]

use std::collections::HashMap;
use std::fs;
use std::io::Cursor;
use std::ops::ControlFlow;

use gemba_block::{Block, Bytes, Cid};
use gemba_unixfs::Profile;
use gemba_unixfs::car::{CarReader, Dups, export_dag};
use gemba_unixfs::fs::{ExportOptions, ImportOptions, export, import};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("instructions");
    fs::create_dir(&folder)?;
    fs::write(folder.join("step-1.txt"), "Tighten both bolts to 12 Nm.")?;
    fs::write(folder.join("video.bin"), vec![7; 3_000_000])?;

    // A folder becomes blocks; the sink may as well be a disk.
    let mut store: HashMap<Cid, Bytes> = HashMap::new();
    let mut sink = |blocks: Vec<Block>| {
        store.extend(blocks.into_iter().map(Block::into_parts));
        Ok(())
    };
    let root = import(
        &folder,
        &Profile::unixfs_v1_2025(),
        &ImportOptions::default(),
        &mut sink,
    )?
    .cid;
    println!("{} blocks, root {root}", store.len());

    // The blocks travel as one file …
    let mut car = Vec::new();
    export_dag(&mut store, root, &mut car, Dups::Skip)?;
    println!("a CAR of {} bytes", car.len());

    // … and are checked, each against its hash, where they arrive.
    let mut arrived: HashMap<Cid, Bytes> = HashMap::new();
    for block in CarReader::new(Cursor::new(car))? {
        let (cid, data) = block?.into_parts();
        arrived.insert(cid, data);
    }
    let target = dir.path().join("copy");
    export(
        &mut arrived,
        root,
        &target,
        &ExportOptions::default(),
        &mut |_| ControlFlow::Continue(()),
    )?;
    assert_eq!(
        fs::read(target.join("video.bin"))?,
        fs::read(folder.join("video.bin"))?
    );
    println!("{}", fs::read_to_string(target.join("step-1.txt"))?);
    Ok(())
}
