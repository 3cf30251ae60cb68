//! A tree of files as one stream of bytes: the body of `POST /v1/add` (`docs/api-tree-stream.md`).
//!
//! The command line reads the files and the daemon stores them, so the daemon need not see the caller's folders, and names,
//! links, modes and times arrive as they are, which multipart forms cannot promise. Every length is checked before anything
//! is allocated, and a stream that just stops is told from one that has ended.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};

use gemba_unixfs::Meta;
use gemba_unixfs::dagpb::Mtime;

use super::add::Checked;
use super::folder::TreeVisitor;
use super::io_fail;
use crate::error::{Code, Fail};
use crate::handover::{Giver, LEAST};

/// Content type of the stream.
pub const MEDIA_TYPE: &str = "application/vnd.gemba.tree";
/// What every stream begins with; the digit is the version.
pub const MAGIC: &[u8; 8] = b"GEMBATR1";
/// Largest DATA frame, in bytes of content.
pub const MAX_DATA: usize = 1024 * 1024;
/// Longest name and longest link target, in bytes.
pub const MAX_TEXT: usize = 64 * 1024;
/// Deepest nesting.
pub const MAX_DEPTH: usize = 4096;
/// Size of the DATA frames that are written.
const DATA: usize = 256 * 1024;
/// Longest frame that is not DATA: two texts and at most 40 bytes beside them.
const MAX_HEAD: usize = 2 * MAX_TEXT + 40;

const ENTER_DIR: u8 = 1;
const LEAVE_DIR: u8 = 2;
const FILE: u8 = 3;
const DATA_OF_FILE: u8 = 4;
const END_OF_FILE: u8 = 5;
const SYMLINK: u8 = 6;
const END_OF_TREE: u8 = 7;
const HANDED_FILE: u8 = 8;

const HAS_MODE: u8 = 1;
const HAS_MTIME: u8 = 2;

/// Writes what it hears as frames.
pub struct TreeWriter<'a> {
    out: &'a mut dyn Write,
    buffer: Vec<u8>,
    giver: Option<Giver>,
}

impl<'a> TreeWriter<'a> {
    /// Begins a stream.
    ///
    /// # Errors
    /// The output's.
    pub fn new(out: &'a mut dyn Write) -> Result<Self, Fail> {
        out.write_all(MAGIC).map_err(io_fail)?;
        Ok(Self {
            out,
            buffer: Vec::new(),
            giver: None,
        })
    }

    /// Hands large files over instead of writing their content.
    #[must_use]
    pub fn handing(mut self, giver: Option<Giver>) -> Self {
        self.giver = giver;
        self
    }

    /// Ends the stream; without this the reader refuses the tree.
    ///
    /// # Errors
    /// The output's.
    pub fn finish(mut self) -> Result<(), Fail> {
        self.frame(END_OF_TREE, &[])
    }

    fn frame(&mut self, kind: u8, payload: &[u8]) -> Result<(), Fail> {
        let mut head = Vec::with_capacity(8);
        head.push(kind);
        put_varint(&mut head, payload.len() as u64);
        self.out
            .write_all(&head)
            .and_then(|()| self.out.write_all(payload))
            .map_err(io_fail)
    }

    fn head(&mut self, kind: u8, meta: &Meta, name: &[u8], target: &[u8]) -> Result<(), Fail> {
        if name.len() > MAX_TEXT || target.len() > MAX_TEXT {
            return Err(Fail::new(
                Code::Usage,
                format!("a name or link target is longer than {MAX_TEXT} bytes"),
            ));
        }
        let mut payload = Vec::with_capacity(name.len() + target.len() + 24);
        put_meta(&mut payload, meta);
        put_varint(&mut payload, name.len() as u64);
        payload.extend_from_slice(name);
        payload.extend_from_slice(target);
        self.frame(kind, &payload)
    }
}

impl TreeVisitor for TreeWriter<'_> {
    fn enter_dir(&mut self, name: &[u8], meta: &Meta) -> Result<(), Fail> {
        self.head(ENTER_DIR, meta, name, &[])
    }

    fn leave_dir(&mut self) -> Result<(), Fail> {
        self.frame(LEAVE_DIR, &[])
    }

    fn file(&mut self, name: &[u8], meta: &Meta, reader: &mut dyn Read) -> Result<(), Fail> {
        self.head(FILE, meta, name, &[])?;
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(DATA, 0);
        loop {
            let filled = fill(reader, &mut buffer).map_err(io_fail)?;
            if filled > 0 {
                self.frame(DATA_OF_FILE, &buffer[..filled])?;
            }
            if filled < buffer.len() {
                break;
            }
        }
        self.buffer = buffer;
        self.frame(END_OF_FILE, &[])
    }

    fn open_file(
        &mut self,
        name: &[u8],
        meta: &Meta,
        file: File,
        check: &mut dyn FnMut() -> io::Result<()>,
    ) -> Result<(), Fail> {
        let large = file.metadata().is_ok_and(|found| found.len() >= LEAST);
        if self.giver.is_none() || !large {
            return self.file(name, meta, &mut Checked(file, check));
        }
        self.head(HANDED_FILE, meta, name, &[])?;
        // The daemon takes what it was told of: it must hear of this file before this waits for it to take others.
        self.out.flush().map_err(io_fail)?;
        match &self.giver {
            Some(giver) => giver.give(&file).map_err(io_fail),
            None => Ok(()),
        }
    }

    fn symlink(&mut self, name: &[u8], target: &[u8], meta: &Meta) -> Result<(), Fail> {
        self.head(SYMLINK, meta, name, target)
    }
}

/// Reads a stream and tells `visitor` of the tree in it. `handed` gives the content of the next file that was handed over.
///
/// # Errors
/// [`Code::Usage`] for bytes that are no such stream, or one that stops early; the visitor's; the input's.
pub fn read_tree(
    input: &mut dyn Read,
    visitor: &mut dyn TreeVisitor,
    handed: &mut dyn FnMut() -> Result<Box<dyn Read>, Fail>,
) -> Result<(), Fail> {
    let mut frames = Frames::new(input)?;
    let mut depth = 0usize;
    loop {
        let (kind, len) = frames.next()?;
        match kind {
            ENTER_DIR => {
                let head = frames.head(len)?;
                if depth >= MAX_DEPTH {
                    return Err(refused(format!("folders more than {MAX_DEPTH} deep")));
                }
                depth += 1;
                no_target(&head)?;
                visitor.enter_dir(&head.name, &head.meta)?;
            }
            LEAVE_DIR => {
                frames.empty(len)?;
                depth = depth
                    .checked_sub(1)
                    .ok_or_else(|| refused("the end of a folder that did not begin"))?;
                visitor.leave_dir()?;
            }
            FILE => {
                let head = frames.head(len)?;
                no_target(&head)?;
                let mut content = Content {
                    frames: &mut frames,
                    left: 0,
                    ended: false,
                };
                visitor.file(&head.name, &head.meta, &mut content)?;
                content.skip_rest()?;
            }
            HANDED_FILE => {
                let head = frames.head(len)?;
                no_target(&head)?;
                visitor.file(&head.name, &head.meta, &mut handed()?)?;
            }
            SYMLINK => {
                let head = frames.head(len)?;
                visitor.symlink(&head.name, &head.target, &head.meta)?;
            }
            END_OF_TREE if depth == 0 => return frames.empty(len),
            END_OF_TREE => return Err(refused("the end of the tree inside a folder")),
            DATA_OF_FILE | END_OF_FILE => return Err(refused("content outside of a file")),
            other => return Err(refused(format!("a frame of unknown kind {other}"))),
        }
    }
}

struct Frames<'a> {
    input: BufReader<&'a mut dyn Read>,
}

struct Head {
    meta: Meta,
    name: Vec<u8>,
    target: Vec<u8>,
}

impl<'a> Frames<'a> {
    fn new(input: &'a mut dyn Read) -> Result<Self, Fail> {
        let mut frames = Self {
            input: BufReader::with_capacity(64 * 1024, input),
        };
        let mut magic = [0; MAGIC.len()];
        frames.exact(&mut magic)?;
        if &magic != MAGIC {
            return Err(refused("it does not begin as one").hint(format!(
                "the body of this request is {MEDIA_TYPE}, see docs/api-tree-stream.md"
            )));
        }
        Ok(frames)
    }

    /// Kind and length of the next frame.
    fn next(&mut self) -> Result<(u8, usize), Fail> {
        let kind = self.byte()?;
        let limit = if kind == DATA_OF_FILE {
            MAX_DATA
        } else {
            MAX_HEAD
        };
        let mut len = 0usize;
        // Both limits fit three bytes of seven bits.
        for shift in [0, 7, 14] {
            let byte = self.byte()?;
            len |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                let padded = shift > 0 && byte == 0;
                if len > limit || padded {
                    break;
                }
                return Ok((kind, len));
            }
        }
        Err(refused(format!(
            "a frame of kind {kind} with a length that is none or is over {limit}"
        )))
    }

    fn head(&mut self, len: usize) -> Result<Head, Fail> {
        let mut payload = vec![0; len];
        self.exact(&mut payload)?;
        parse_head(&payload).ok_or_else(|| refused("a frame that contradicts its own lengths"))
    }

    fn empty(&mut self, len: usize) -> Result<(), Fail> {
        if len == 0 {
            Ok(())
        } else {
            Err(refused("bytes in a frame that has none"))
        }
    }

    fn byte(&mut self) -> Result<u8, Fail> {
        let mut byte = [0];
        self.exact(&mut byte)?;
        Ok(byte[0])
    }

    fn exact(&mut self, buffer: &mut [u8]) -> Result<(), Fail> {
        self.input.read_exact(buffer).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => refused("it stops in the middle"),
            _ => io_fail(e),
        })
    }
}

/// The content of the file that is being read: its DATA frames.
struct Content<'a, 'b> {
    frames: &'a mut Frames<'b>,
    left: usize,
    ended: bool,
}

impl Content<'_, '_> {
    /// Whether there are bytes at hand; reads the next frame if the last one is used up.
    fn more(&mut self) -> Result<bool, Fail> {
        while self.left == 0 && !self.ended {
            match self.frames.next()? {
                (DATA_OF_FILE, len) => self.left = len,
                (END_OF_FILE, len) => {
                    self.frames.empty(len)?;
                    self.ended = true;
                }
                _ => return Err(refused("a file that does not end before the next entry")),
            }
        }
        Ok(!self.ended)
    }

    fn skip_rest(&mut self) -> Result<(), Fail> {
        let mut sink = [0; 4096];
        while self.more()? {
            let take = self.left.min(sink.len());
            self.frames.exact(&mut sink[..take])?;
            self.left -= take;
        }
        Ok(())
    }
}

impl Read for Content<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || !self.more().map_err(io::Error::other)? {
            return Ok(0);
        }
        let take = self.left.min(buffer.len());
        let read = self.frames.input.read(&mut buffer[..take])?;
        if read == 0 {
            return Err(io::Error::other(refused("it stops in the middle")));
        }
        self.left -= read;
        Ok(read)
    }
}

fn parse_head(payload: &[u8]) -> Option<Head> {
    let mut rest = payload;
    let meta = take_meta(&mut rest)?;
    let name_len = usize::try_from(take_varint(&mut rest)?).ok()?;
    let (name, target) = rest.split_at_checked(name_len)?;
    let fits = name.len() <= MAX_TEXT && target.len() <= MAX_TEXT;
    fits.then(|| Head {
        meta,
        name: name.to_vec(),
        target: target.to_vec(),
    })
}

fn no_target(head: &Head) -> Result<(), Fail> {
    if head.target.is_empty() {
        Ok(())
    } else {
        Err(refused("a link target on something that is no link"))
    }
}

fn put_meta(out: &mut Vec<u8>, meta: &Meta) {
    out.push(
        if meta.mode.is_some() { HAS_MODE } else { 0 }
            | if meta.mtime.is_some() { HAS_MTIME } else { 0 },
    );
    if let Some(mode) = meta.mode {
        out.extend_from_slice(&mode.to_le_bytes());
    }
    if let Some(mtime) = meta.mtime {
        out.extend_from_slice(&mtime.seconds.to_le_bytes());
        out.extend_from_slice(&mtime.nanos.to_le_bytes());
    }
}

fn take_meta(rest: &mut &[u8]) -> Option<Meta> {
    let [flags] = take(rest)?;
    if flags & !(HAS_MODE | HAS_MTIME) != 0 {
        return None;
    }
    let mut meta = Meta::default();
    if flags & HAS_MODE != 0 {
        meta.mode = Some(u32::from_le_bytes(take(rest)?));
    }
    if flags & HAS_MTIME != 0 {
        let (seconds, nanos) = (
            i64::from_le_bytes(take(rest)?),
            u32::from_le_bytes(take(rest)?),
        );
        meta.mtime = (nanos < 1_000_000_000).then_some(Mtime { seconds, nanos });
        meta.mtime?;
    }
    Some(meta)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (first, after) = rest.split_first_chunk::<N>()?;
    *rest = after;
    Some(*first)
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(0x80 | (value & 0x7f) as u8);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in [0, 7, 14] {
        let [byte] = take(rest)?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return (shift == 0 || byte != 0).then_some(value);
        }
    }
    None
}

/// Reads until the buffer is full or the input ends.
fn fill(reader: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

fn refused(cause: impl std::fmt::Display) -> Fail {
    Fail::new(
        Code::Usage,
        format!("the stream of files is refused: {cause}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use gemba_testkit::Rng;

    #[derive(Clone, Debug, PartialEq)]
    enum Event {
        Enter(Vec<u8>, Meta),
        Leave,
        File(Vec<u8>, Meta, Vec<u8>),
        Link(Vec<u8>, Vec<u8>, Meta),
    }

    #[derive(Default)]
    struct Record(Vec<Event>);

    impl TreeVisitor for Record {
        fn enter_dir(&mut self, name: &[u8], meta: &Meta) -> Result<(), Fail> {
            self.0.push(Event::Enter(name.into(), *meta));
            Ok(())
        }

        fn leave_dir(&mut self) -> Result<(), Fail> {
            self.0.push(Event::Leave);
            Ok(())
        }

        fn file(&mut self, name: &[u8], meta: &Meta, reader: &mut dyn Read) -> Result<(), Fail> {
            let mut content = Vec::new();
            reader.read_to_end(&mut content).map_err(io_fail)?;
            self.0.push(Event::File(name.into(), *meta, content));
            Ok(())
        }

        fn symlink(&mut self, name: &[u8], target: &[u8], meta: &Meta) -> Result<(), Fail> {
            self.0.push(Event::Link(name.into(), target.into(), *meta));
            Ok(())
        }
    }

    fn sample() -> Vec<Event> {
        let meta = Meta {
            mode: Some(0o755),
            mtime: Some(Mtime {
                seconds: -5,
                nanos: 7,
            }),
        };
        let mtime = Meta {
            mode: None,
            mtime: meta.mtime,
        };
        vec![
            Event::Enter(b"top".into(), meta),
            Event::File(b"empty".into(), Meta::default(), vec![]),
            Event::File(b"one piece and a bit".into(), meta, vec![7; DATA + 1]),
            Event::File(b"exactly one".into(), mtime, vec![9; DATA]),
            Event::Enter(b"\xff\x01".into(), Meta::default()),
            Event::Leave,
            Event::Link(b"l".into(), b"../x".into(), meta),
            Event::Leave,
        ]
    }

    fn encode(events: &[Event]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut writer = TreeWriter::new(&mut out).unwrap();
        for event in events {
            match event {
                Event::Enter(name, meta) => writer.enter_dir(name, meta),
                Event::Leave => writer.leave_dir(),
                Event::File(name, meta, content) => {
                    writer.file(name, meta, &mut content.as_slice())
                }
                Event::Link(name, target, meta) => writer.symlink(name, target, meta),
            }
            .unwrap();
        }
        writer.finish().unwrap();
        out
    }

    fn decode(mut bytes: &[u8]) -> Result<Vec<Event>, Fail> {
        let mut record = Record::default();
        read_tree(&mut bytes, &mut record, &mut || {
            Err(refused("a file that nobody handed over"))
        })?;
        Ok(record.0)
    }

    #[test]
    fn a_tree_arrives_as_it_was_sent() {
        assert_eq!(decode(&encode(&sample())).unwrap(), sample());
        assert_eq!(decode(&encode(&sample()[1..2])).unwrap(), &sample()[1..2]);
    }

    #[test]
    fn a_stream_that_stops_anywhere_is_refused() {
        let small: Vec<Event> = sample()
            .into_iter()
            .filter(|e| !matches!(e, Event::File(_, _, c) if c.len() > 9))
            .collect();
        let whole = encode(&small);
        for cut in 0..whole.len() {
            let fail = decode(&whole[..cut]).unwrap_err();
            assert_eq!(fail.code, Code::Usage, "cut at {cut}: {fail}");
        }
    }

    /// Row H7 and the rule of limits before allocation: hostile bytes end in an error, never in a panic or a large allocation.
    #[test]
    fn hostile_bytes_are_refused() {
        let frame = |kind: u8, rest: &[u8]| [MAGIC.as_slice(), &[kind], rest].concat();
        for (bytes, said) in [
            (b"GEMBATR2".to_vec(), "does not begin"),
            (frame(9, &[0]), "unknown kind 9"),
            (frame(LEAVE_DIR, &[0]), "did not begin"),
            (frame(LEAVE_DIR, &[1, 0]), "has none"),
            (frame(DATA_OF_FILE, &[0]), "outside of a file"),
            (frame(ENTER_DIR, &[0xff, 0xff, 0xff, 0xff, 0x0f]), "over"),
            (frame(ENTER_DIR, &[0xff, 0xff, 0x7f]), "over"),
            (frame(FILE, &[0x80, 0x00]), "over"),
            (frame(FILE, &[2, 0, 5]), "contradicts"),
            (frame(FILE, &[2, 4, 0]), "contradicts"),
            (frame(FILE, &[0]), "contradicts"),
            (frame(FILE, &[3, 0, 1, b'a', LEAVE_DIR, 0]), "does not end"),
            (frame(FILE, &[4, 0, 1, b'a', b'b']), "no link"),
            (
                frame(ENTER_DIR, &[3, 0, 1, b'a', END_OF_TREE, 0]),
                "inside a folder",
            ),
        ] {
            let fail = decode(&bytes).unwrap_err();
            assert!(
                fail.code == Code::Usage && fail.cause.contains(said),
                "{said}: {fail}"
            );
        }
        let deep = [
            MAGIC.as_slice(),
            &[ENTER_DIR, 3, 0, 1, b'a'].repeat(MAX_DEPTH + 1),
        ]
        .concat();
        assert!(decode(&deep).unwrap_err().cause.contains("deep"));
    }

    #[test]
    fn flipped_bytes_never_panic() {
        let whole = encode(&sample()[5..7]);
        let whole = [&whole[..8], &[ENTER_DIR, 3, 0, 1, b'a'], &whole[8..]].concat();
        let mut rng = Rng::new(7);
        for _ in 0..20_000 {
            let mut bytes = whole.clone();
            for _ in 0..1 + rng.below(3) {
                let at = rng.below(bytes.len() as u64) as usize;
                bytes[at] = rng.below(256) as u8;
            }
            let _ = decode(&bytes);
        }
    }
}
