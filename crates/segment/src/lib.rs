#![doc = include_str!("../README.md")]

mod commit;
mod disk;
mod footer;
mod frame;
mod reader;
mod real;
mod recover;
mod walk;
mod writer;

pub use commit::{GroupCommit, LeaderDied};
pub use disk::{Disk, DiskFile, LockError, LockGuard, Mode, Sharing, is_full, is_unreadable};
pub use footer::{Footer, FooterPage};
pub use frame::{
    FILE_HEADER, FORMAT, FRAME_HEADER, FrameHeader, HeaderFault, Identity, Kind, MAX_PAYLOAD,
    MAX_TAG, frame_len,
};
pub use reader::{ReadError, Reader, StoredFrame};
pub use real::RealDisk;
pub use recover::{Access, Damaged, MAX_LISTED, OpenError, Opened, Report, State, create, open};
pub use walk::{Entry, Gap, Step, Walk};
pub use writer::{EXTEND, Frame, WriteError, Writer};
