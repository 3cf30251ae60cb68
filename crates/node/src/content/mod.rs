//! Content in and out of the node: synchronous functions over a [`BlockSource`] or the store, shared by the command line
//! without a daemon and by the daemon's API (on blocking threads).
//!
//! Nothing here prints, knows a socket or waits for a clock. Every failure becomes a [`Fail`] with the code that scripts rely on.

pub mod add;
pub mod blocks;
pub mod car;
pub mod collect;
pub mod compare;
pub mod dag;
pub mod folder;
pub mod kubo;
pub mod kubo_connector;
pub mod kubo_pins;
pub mod pin_list;
pub mod pin_sync;
pub mod pins;
pub mod read;
pub mod room;
pub mod tree_stream;

use cid::Cid;
use gemba_block::Block;
use gemba_store::Store;
use gemba_unixfs::car::{CarReadError, WalkError};
use gemba_unixfs::dagpb::Kind;
use gemba_unixfs::{BlockSource, BoxError, DriveError, ImportError, ReadError, SourceError};

use crate::error::{Code, Fail};
use crate::repo::store_fail;
use crate::text;

/// Most blocks of one durable write.
pub(crate) const BATCH_BLOCKS: usize = 256;
/// Most bytes of one durable write.
pub(crate) const BATCH_BYTES: usize = 8 * 1024 * 1024;

/// The blocks that are on this device.
#[derive(Clone, Debug)]
pub struct StoreSource(pub Store);

impl BlockSource for StoreSource {
    fn get(&mut self, cid: &Cid) -> Result<Block, SourceError> {
        match self.0.get(cid) {
            // The store compared the bytes with their checksum, and hashed them when they came.
            Ok(Some(data)) => Ok(Block::danger_unchecked(*cid, data)),
            Ok(None) => Err(SourceError::missing(cid)),
            Err(e) => Err(SourceError::failed(cid, store_fail(&e))),
        }
    }
}

/// A CID as it is typed, with or without `/ipfs/` before it.
///
/// # Errors
/// [`Code::Usage`]: no CID, more than a CID, or one whose content nobody can check.
pub fn parse_cid(text: &str) -> Result<Cid, Fail> {
    let bare = text.strip_prefix("/ipfs/").unwrap_or(text);
    let cid = gemba_block::parse_cid(bare).map_err(|e| {
        let fail = |cause: String| Fail::new(Code::Usage, cause);
        let shown = text::shown(text);
        match (bare.split_once('/'), e) {
            (Some((root, _)), _) if gemba_block::parse_cid(root).is_ok() => {
                fail(format!("{shown} is a path: this command takes a CID alone"))
                    .hint("`gemba ls` shows the CID of everything in a folder")
            }
            (_, gemba_block::ParseCidError::Trailing(_)) => {
                fail(format!("{shown} is a CID with something behind it"))
                    .hint("it was copied together with what follows: a CID ends where its letters and digits end")
            }
            _ => fail(format!("{shown} is no CID"))
                .hint("a CID begins with bafy…, bafk… or Qm…; was it copied as a whole? `gemba add` and `gemba pin ls` print them"),
        }
    })?;
    gemba_block::check_cid(&cid).map_err(|e| Fail::new(Code::Usage, format!("{text}: {e}")))?;
    Ok(cid)
}

/// A failure that travelled through a crate as a boxed error, or one made of its text.
pub(crate) fn unboxed(error: BoxError, code: Code) -> Fail {
    match error.downcast::<Fail>() {
        Ok(fail) => *fail,
        Err(error) => match error.downcast::<std::io::Error>() {
            Ok(error) => io_fail(*error),
            Err(error) => Fail::new(code, error),
        },
    }
}

/// An I/O error without a path; one that wraps a [`Fail`] gives it back.
pub(crate) fn io_fail(error: std::io::Error) -> Fail {
    let kind = error.kind();
    match error.into_inner() {
        Some(inner) => match inner.downcast::<Fail>() {
            Ok(fail) => *fail,
            Err(inner) => Fail::new(Code::Failure, inner),
        },
        None => Fail::new(Code::Failure, std::io::Error::from(kind)),
    }
}

/// What a source of blocks failed with.
pub fn source_fail(error: SourceError) -> Fail {
    match error {
        SourceError::Missing(cid) => {
            Fail::new(Code::NotFound, format!("block {cid} is not on this device"))
                .hint("start the daemon (`gemba daemon`) and repeat the command: it is fetched from the swarm then")
        }
        SourceError::Failed { source, .. } => unboxed(source, Code::Failure),
        other => Fail::new(Code::Failure, other),
    }
}

/// Why a DAG cannot be read.
pub fn read_fail(error: &ReadError) -> Fail {
    match error {
        ReadError::NotFound { .. } => {
            Fail::new(Code::NotFound, error).hint("`gemba ls` shows what is there")
        }
        // A shard that is none is damage of the folder; all else is the caller asking for the wrong thing.
        ReadError::WrongKind { cid, kind, wanted }
            if matches!(*wanted, "a file" | "a directory") =>
        {
            let (is, hint) = match kind {
                Kind::Directory | Kind::HamtShard => (
                    "a folder",
                    "`gemba ls` lists it, `gemba get` writes it to disk",
                ),
                Kind::Symlink => (
                    "a symbolic link",
                    "`gemba ls --long` on its folder shows where it points",
                ),
                _ => (
                    "a file",
                    "`gemba cat` prints it, `gemba get` writes it to disk",
                ),
            };
            Fail::new(Code::Usage, format!("{cid} is {is}")).hint(hint)
        }
        ReadError::Codec { .. } => {
            Fail::new(Code::Usage, error).hint("`gemba dag get` reads blocks that are not files")
        }
        ReadError::WrongBlock { .. } => Fail::new(Code::Failure, error),
        _ => Fail::new(Code::Integrity, error).hint(
            "it was made wrong, and is refused everywhere: whoever made it has to add it again",
        ),
    }
}

/// Why a driver of unixfs stopped.
pub fn drive_fail(error: DriveError) -> Fail {
    match error {
        DriveError::Read(e) => read_fail(&e),
        DriveError::Source(e) => source_fail(e),
        DriveError::Output(e) => unboxed(e, Code::Failure),
        other => Fail::new(Code::Failure, other),
    }
}

/// Why a walk over a whole DAG stopped.
pub fn walk_fail(error: WalkError) -> Fail {
    match error {
        WalkError::Read(e) => read_fail(&e),
        WalkError::Source(e) => source_fail(e),
        WalkError::Output(e) => io_fail(e),
        WalkError::Links { .. } => Fail::new(Code::Integrity, error),
        other => Fail::new(Code::Failure, other),
    }
}

/// Why an import of files stopped.
pub fn import_fail(error: ImportError) -> Fail {
    match error {
        ImportError::Sink(e) => unboxed(e, Code::Failure),
        ImportError::Read { path, source } if path.as_os_str().is_empty() => io_fail(source),
        ImportError::Read { path, source } => Fail::io(path, &source),
        ImportError::Special { .. } | ImportError::DuplicateName(_) | ImportError::BadName(_) => {
            Fail::new(Code::Usage, error)
        }
        other => Fail::new(Code::Failure, other),
    }
}

/// Why an archive cannot be read: damage is [`Code::Integrity`].
pub fn car_fail(error: CarReadError) -> Fail {
    match error {
        CarReadError::Io(e) => io_fail(e),
        CarReadError::Car(e) => Fail::new(Code::Integrity, e)
            .hint("blocks before that place were kept; get the archive again"),
        other => Fail::new(Code::Failure, other),
    }
}
