//! Open files, handed from the command line to the daemon over a Unix socket, so that the daemon reads a large file itself instead of
//! being sent its bytes: the descriptor travels (`SCM_RIGHTS`, unix(7)), never a path, so the daemon reads nothing that its caller could
//! not open.
//!
//! A caller connects to `files.sock` in the repository, says the API's token and a name, and gives the name to `POST /v1/add`
//! (docs/api-tree-stream.md, frame HANDED_FILE). Where there is no such socket (other systems, paths that are too long for one), files
//! travel as bytes.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::api::Token;
use crate::error::{Code, Fail};

/// Characters of a caller's name, hexadecimal digits.
pub const NAME: usize = 32;
/// What a caller says first: its name and the token.
const HELLO: usize = NAME + 64;
/// The answer to it.
const WELCOME: u8 = b'+';
/// Goes with each descriptor, for a message must not be empty.
const GIVEN: u8 = b'f';
/// Whoever connects says who he is within this.
const HELLO_DEADLINE: Duration = Duration::from_secs(2);
/// A descriptor that was announced comes within this.
const GIVE_DEADLINE: Duration = Duration::from_secs(10);
/// Callers that are there and have not made their request yet.
const MAX_WAITING: usize = 64;
/// They make it within this.
const CLAIM_DEADLINE: Duration = Duration::from_secs(30);
/// Files below this size are sent as bytes: handing one over costs several calls.
pub const LEAST: u64 = 256 * 1024;

pub use os::{Giver, Taker};

/// The daemon's side: callers that came and whose request is still to come.
#[derive(Debug, Default)]
pub struct Desk(Mutex<HashMap<String, (Instant, Taker)>>);

impl Desk {
    /// The connection of the caller of that name, once.
    #[must_use]
    pub fn claim(&self, name: &str) -> Option<Taker> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.remove(name).map(|(_, taker)| taker)
    }

    /// Whether another caller can wait, under a name that nobody has.
    fn has_room_for(&self, name: &str) -> bool {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|_, (since, _)| since.elapsed() < CLAIM_DEADLINE);
        waiting.len() < MAX_WAITING && !waiting.contains_key(name)
    }

    fn keep(&self, name: &str, taker: Taker) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.insert(name.to_owned(), (Instant::now(), taker));
    }
}

/// Opens the desk at `socket` until `ending`. Without one callers send bytes, so a failure is only told.
pub fn open(socket: &Path, token: &Token, desk: &Arc<Desk>, ending: &CancellationToken) -> bool {
    match os::listen(socket) {
        Ok(listener) => {
            let (token, desk, ending) = (token.clone(), Arc::clone(desk), ending.clone());
            tokio::spawn(os::serve(listener, token, desk, ending));
            true
        }
        Err(error) => {
            tracing::debug!(%error, socket = %socket.display(), "files cannot be handed over; their bytes are sent");
            false
        }
    }
}

fn lost(error: &std::io::Error) -> Fail {
    match error.kind() {
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => Fail::new(
            Code::Usage,
            format!(
                "the caller announced an open file and did not hand it over within {} s",
                GIVE_DEADLINE.as_secs()
            ),
        ),
        std::io::ErrorKind::UnexpectedEof => Fail::new(Code::Interrupted, "the client went away"),
        _ => Fail::new(
            Code::Failure,
            format!("an open file could not be handed over: {error}"),
        ),
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
mod os {
    use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
    use std::mem::MaybeUninit;
    use std::os::fd::{AsFd as _, OwnedFd};
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::net::UnixStream;

    use rustix::net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    };
    use tokio::io::AsyncReadExt as _;
    use tokio::net::UnixListener;

    use super::{
        Arc, CancellationToken, Code, Desk, Duration, Fail, File, GIVE_DEADLINE, GIVEN, HELLO,
        HELLO_DEADLINE, NAME, Path, Token, WELCOME, lost,
    };

    /// The caller's end.
    #[derive(Debug)]
    pub struct Giver(UnixStream);

    impl Giver {
        /// Connects; `None` where files cannot be handed over.
        #[must_use]
        pub fn connect(socket: &Path, token: &str, name: &str) -> Option<Self> {
            Self::try_connect(socket, token, name).ok()
        }

        fn try_connect(socket: &Path, token: &str, name: &str) -> io::Result<Self> {
            let mut stream = UnixStream::connect(socket)?;
            stream.set_read_timeout(Some(HELLO_DEADLINE))?;
            stream.set_write_timeout(Some(HELLO_DEADLINE))?;
            stream.write_all(format!("{name}{token}").as_bytes())?;
            let mut answer = [0];
            stream.read_exact(&mut answer)?;
            if answer != [WELCOME] {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            // The daemon takes a file when it comes to it, which may be after many others.
            stream.set_write_timeout(None)?;
            Ok(Self(stream))
        }

        /// Hands over an open file, from its beginning. Waits while the daemon has many to take.
        ///
        /// # Errors
        /// The daemon is gone, or has given up.
        pub fn give(&self, file: &File) -> io::Result<()> {
            let files = [file.as_fd()];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            control.push(SendAncillaryMessage::ScmRights(&files));
            let byte = [GIVEN];
            let sent = sendmsg(
                &self.0,
                &[IoSlice::new(&byte)],
                &mut control,
                SendFlags::NOSIGNAL,
            )?;
            match sent {
                1 => Ok(()),
                _ => Err(io::ErrorKind::WriteZero.into()),
            }
        }
    }

    /// The daemon's end.
    #[derive(Debug)]
    pub struct Taker(UnixStream);

    impl Taker {
        /// The next file that the caller handed over.
        ///
        /// # Errors
        /// None comes in time, or something that is no regular file.
        pub fn take(&self) -> Result<File, Fail> {
            let file = File::from(self.receive().map_err(|e| lost(&e))?);
            let kind = file.metadata().map_err(|e| lost(&e))?.file_type();
            if !kind.is_file() {
                return Err(Fail::new(
                    Code::Usage,
                    "what was handed over is no regular file",
                ));
            }
            Ok(file)
        }

        fn receive(&self) -> io::Result<OwnedFd> {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut byte = [0];
            let got = recvmsg(
                &self.0,
                &mut [IoSliceMut::new(&mut byte)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            )?;
            if got.bytes == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            // What does not fit the space for one descriptor was closed by the kernel.
            control
                .drain()
                .find_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(mut files) => files.next(),
                    _ => None,
                })
                .ok_or_else(|| io::ErrorKind::InvalidData.into())
        }
    }

    /// Binds the socket, for its owner alone. One that a killed daemon left is removed first: the caller holds the repository.
    pub(super) fn listen(socket: &Path) -> io::Result<UnixListener> {
        match std::fs::remove_file(socket) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(socket)?;
        std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    }

    pub(super) async fn serve(
        listener: UnixListener,
        token: Token,
        desk: Arc<Desk>,
        ending: CancellationToken,
    ) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = ending.cancelled() => return,
            };
            match accepted {
                // One after the other: each has said who he is in microseconds, or is turned away in two seconds.
                Ok((stream, _)) => drop(admit(stream, &token, &desk).await),
                Err(error) => {
                    tracing::warn!(%error, "a caller with files could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn admit(
        mut stream: tokio::net::UnixStream,
        token: &Token,
        desk: &Desk,
    ) -> io::Result<()> {
        let mut hello = [0; HELLO];
        tokio::time::timeout(HELLO_DEADLINE, stream.read_exact(&mut hello)).await??;
        let (name, offered) = hello.split_at(NAME);
        let text = |bytes| std::str::from_utf8(bytes).map_err(io::Error::other);
        if !token.matches(text(offered)?) {
            tracing::warn!("a caller with files was refused: it has not got the token");
            return Ok(());
        }
        let name = text(name)?.to_owned();
        if !desk.has_room_for(&name) {
            tracing::debug!(
                "too many callers with files wait for their requests; this one sends bytes"
            );
            return Ok(());
        }
        let stream = stream.into_std()?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(GIVE_DEADLINE))?;
        // One byte into an empty socket: this does not wait. Kept first, for the request may come at once.
        let told = stream.try_clone()?;
        desk.keep(&name, Taker(stream));
        io::Write::write_all(&mut &told, &[WELCOME])
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod os {
    use super::*;

    /// Nobody hands files over here.
    #[derive(Debug)]
    pub enum Giver {}

    impl Giver {
        /// `None`: files travel as bytes.
        #[must_use]
        pub fn connect(_: &Path, _: &str, _: &str) -> Option<Self> {
            None
        }

        /// Never called.
        ///
        /// # Errors
        /// None.
        pub fn give(&self, _: &File) -> std::io::Result<()> {
            match *self {}
        }
    }

    /// Nobody hands files over here.
    #[derive(Debug)]
    pub enum Taker {}

    impl Taker {
        /// Never called.
        ///
        /// # Errors
        /// None.
        pub fn take(&self) -> Result<File, Fail> {
            match *self {}
        }
    }

    pub(super) fn listen(_: &Path) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    pub(super) async fn serve(_: (), _: Token, _: Arc<Desk>, _: CancellationToken) {}
}
