//! Opening: lock, version, then every segment in order (specs/log.md §6.5). Full segments are known by the index they end with; the
//! last one is walked. A crash or damage never keeps a log from opening.

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gemba_segment::{
    Access, Disk, Entry, FILE_HEADER, FRAME_HEADER, Gap, HeaderFault, Kind, LockError, LockGuard,
    Mode, Reader, Report, Sharing, State as FileState, Writer, is_unreadable,
};

use crate::batch::{Batch, Sealer};
use crate::config::Config;
use crate::epoch::unused_epoch;
use crate::error::OpenError;
use crate::feed::{Author, FeedKey, Seq};
use crate::format::{
    self, BATCH, DOUBT, FILES, Layout, SPANS, STATE, Span, TAG, TRAILER, TRAILER_LEN, Tag, Take,
    Trailer, Version, take_doubt,
};
use crate::index::{Index, Paged, Resident, Segment};
use crate::reserve::Reserve;
use crate::state::{Closed, State, Tip, branch_key};
use crate::writer::Pen;

/// What opening found besides events. All empty after an orderly stop on a healthy disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OpenReport {
    /// Stretches of segments that were durable once and are not whole now: events are lost here. Fetch them from a replica.
    pub damage: Vec<SegmentGap>,
    /// Stretches in the last group before an unclean stop: an append that never returned, or damage; it cannot be told which. Ask peers.
    pub ambiguous: Vec<SegmentGap>,
    /// What stood behind the last whole batch and was cut off. It cannot be told either whether it had been acknowledged and rotted.
    pub cut: Vec<SegmentGap>,
    /// Whole batches that are not served, because what came before them in their feed stood in an ambiguous stretch.
    pub orphans: u64,
    /// Segments that the disk cannot read. They stay where they are, and what they hold is missing here.
    pub unreadable: Vec<PathBuf>,
    /// The end of our own feeds is in doubt, so that the next events go into new epochs (LOG-5).
    pub new_epochs: bool,
}

impl OpenReport {
    /// Whether there was nothing to report.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        *self == Self::default()
    }
}

/// A stretch of bytes in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentGap {
    /// The segment's number.
    pub segment: u32,
    /// Where the stretch begins.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
}

/// A log that was opened, in parts.
pub(crate) struct Parts {
    pub(crate) state: State,
    pub(crate) pen: Pen,
    pub(crate) layout: Layout,
    pub(crate) salt: u64,
    pub(crate) report: OpenReport,
    pub(crate) lock: Option<Box<dyn LockGuard>>,
}

pub(crate) fn open(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    config: &Config,
    me: Author,
) -> Result<Parts, OpenError> {
    let layout = Layout::new(dir);
    disk.create_dir(dir).map_err(|e| io_error(dir, e))?;
    // The version comes before the lock file is made: a newer log is not touched in any way.
    read_version(disk.as_ref(), &layout)?;
    let lock = take_lock(disk.as_ref(), &layout)?;
    let numbers = list_segments(disk.as_ref(), dir)?;
    let salt = settle_version(disk.as_ref(), &layout, &numbers)?;
    sync_names(disk.as_ref(), dir, numbers.is_empty()).map_err(|e| io_error(dir, e))?;
    let reserve = Reserve::new(disk.as_ref(), layout.reserve(), config.reserve);
    let mut state = State::new(me, config.max_producers);
    state.least_epoch = config.least_epoch;
    let mut opening = Opening {
        disk: disk.as_ref(),
        layout: &layout,
        salt,
        config,
        state,
        report: OpenReport::default(),
        ends: BTreeMap::new(),
        marker: disk.open(&layout.doubt(), Mode::Read).is_ok(),
        in_doubt: false,
    };
    let active = opening.segments(&numbers)?;
    opening.in_doubt |= opening.marker;
    let Opening {
        mut state,
        mut report,
        marker,
        in_doubt,
        ..
    } = opening;
    state.recount();
    // Whoever copied the files has these, too.
    state.sole.clear();
    report.new_epochs = in_doubt && state.feeds.values().any(|feed| feed.tip.id.author == me);
    // A number whose creation never finished is used again.
    let last = numbers.last().copied().unwrap_or(0);
    let is_there =
        state.sizes.contains_key(&last) || report.unreadable.contains(&layout.segment(last));
    let pen = Pen {
        active,
        last_number: last - u32::from(last > 0 && !is_there),
        doubt: None,
        note: in_doubt,
        marker,
        reserve,
        is_full: false,
        sealer: Sealer::default(),
    };
    Ok(Parts {
        state,
        pen,
        layout,
        salt,
        report,
        lock,
    })
}

struct Opening<'a> {
    disk: &'a dyn Disk,
    layout: &'a Layout,
    salt: u64,
    config: &'a Config,
    state: State,
    report: OpenReport,
    /// Place behind the last batch of each feed in the segments so far.
    ends: BTreeMap<FeedKey, Seq>,
    /// A file says that the end of own feeds is in doubt.
    marker: bool,
    in_doubt: bool,
}

/// A batch that a walk has found, or the note that own feeds are closed, with the least epoch that may begin.
enum Seen {
    Batch(Tag, u32, u32),
    Close(u64),
}

impl Opening<'_> {
    /// Opens all segments; gives the one to go on with.
    fn segments(&mut self, numbers: &[u32]) -> Result<Option<(u32, Writer)>, OpenError> {
        let mut indexed = BTreeMap::new();
        for number in numbers {
            if let Some(found) = self.indexed(*number)? {
                indexed.insert(*number, found);
            }
        }
        // The last state that is whole: what lies behind it is walked.
        let mut base = 0;
        for (number, (paged, reader, _)) in indexed.iter().rev() {
            let (at, len) = (paged.trailer.state_at(), paged.trailer.state_len as usize);
            let state = reader.read(at, 0, len, true);
            let state = state.ok().filter(|frame| frame.kind == STATE);
            let max = self.config.max_producers;
            if state.is_some_and(|frame| self.state.decode(frame.payload(), max).is_some()) {
                base = *number;
                break;
            }
        }
        let last = numbers.last().copied();
        let mut active = None;
        for number in numbers {
            match indexed.remove(number) {
                Some((paged, _, len)) if *number <= base => self.take_indexed(*number, paged, len),
                _ => active = self.walk(*number, *number > base, last == Some(*number))?,
            }
        }
        Ok(active)
    }

    fn take_indexed(&mut self, number: u32, paged: Paged, len: u64) {
        for span in &paged.spans {
            let end = self.ends.entry(span.key).or_insert(span.end);
            *end = (*end).max(span.end);
        }
        self.state.sizes.insert(number, len);
        let segment = Segment {
            number,
            index: Index::Paged(paged),
        };
        self.state.segments.insert(number, Arc::new(segment));
    }

    /// The index that a full segment ends with, if it is whole.
    fn indexed(&self, number: u32) -> Result<Option<(Paged, Reader, u64)>, OpenError> {
        let path = self.layout.segment(number);
        let file = self
            .disk
            .open(&path, Mode::Read)
            .map_err(|e| io_error(&path, e))?;
        let len = file.len().map_err(|e| io_error(&path, e))?;
        let identity = format::identity(self.salt, number);
        let mut header = [0; FILE_HEADER];
        match file.read_at(&mut header, 0) {
            Ok(FILE_HEADER) if identity.check(&header).is_ok() => {}
            _ => return Ok(None),
        }
        let reader = Reader::new(file, identity);
        let read = |at: Option<u64>, len: usize, kind: Kind| {
            let frame = reader.read(at?, 0, len, true).ok()?;
            (frame.kind == kind).then(|| frame.payload().to_vec())
        };
        let closed_at = len.checked_sub(FRAME_HEADER as u64);
        let trailer_at =
            closed_at.and_then(|at| at.checked_sub((FRAME_HEADER + TRAILER_LEN) as u64));
        let found = || {
            read(closed_at, 0, Kind::CLOSE)?;
            let trailer = Trailer::decode(&read(trailer_at, TRAILER_LEN, TRAILER)?)?;
            let spans = read(Some(trailer.spans_at), trailer.spans_len as usize, SPANS)?;
            let mut take = Take(&spans);
            let spans: Vec<_> = std::iter::from_fn(|| Span::take(&mut take)).collect();
            let entries: u64 = spans.iter().map(|span| u64::from(span.entries)).sum();
            let is_sorted = spans.windows(2).all(|pair| pair[0].key < pair[1].key);
            let is_whole = is_sorted && entries == u64::from(trailer.entries);
            is_whole.then_some(Paged { trailer, spans })
        };
        Ok(found().map(|paged| (paged, reader.clone(), len)))
    }

    /// Walks a segment that has no whole index, and gives the writer if it is the one to go on with. Where it `counts`, what it holds is not
    /// in the state yet.
    fn walk(
        &mut self,
        number: u32,
        counts: bool,
        is_last: bool,
    ) -> Result<Option<(u32, Writer)>, OpenError> {
        let path = self.layout.segment(number);
        let identity = format::identity(self.salt, number);
        let access = if counts { Access::Write } else { Access::Read };
        if counts {
            self.look_first(number)?;
        }
        let mut seen = Vec::new();
        let opened = gemba_segment::open(self.disk, &path, identity, access, &mut |entry| {
            seen.extend(see(&entry));
        });
        let opened = match opened {
            Ok(opened) => opened,
            Err(gemba_segment::OpenError::Io(e)) if is_unreadable(&e) && !self.can_read(number) => {
                self.report.unreadable.push(path);
                if counts {
                    self.in_doubt = true;
                    // It may hold the last one that was drawn.
                    self.state.least_epoch = unused_epoch(self.state.least_epoch);
                }
                return Ok(None);
            }
            Err(gemba_segment::OpenError::Io(e)) => return Err(io_error(&path, e)),
            Err(gemba_segment::OpenError::Header(HeaderFault::Newer(found))) => {
                return Err(OpenError::NewerFormat {
                    path,
                    found: u32::from(found),
                    known: u32::from(gemba_segment::FORMAT),
                });
            }
            Err(other) => {
                return Err(OpenError::Foreign {
                    path,
                    cause: other.to_string(),
                });
            }
        };
        self.note(number, &opened.report);
        let end = match &opened.state {
            FileState::Sealed(footer) => footer.end(),
            FileState::Open { end, .. } => *end,
            FileState::Damaged(damaged) => damaged.end,
            // Nothing is in it: it is made anew under this number, or was left by a crash.
            FileState::Unfinished => return Ok(None),
        };
        self.state.sizes.insert(number, end);
        let doubt_from = opened
            .report
            .ambiguous
            .first()
            .map_or(u64::MAX, |gap| gap.at);
        let segment = Segment::resident(number, Resident::default());
        self.state.segments.insert(number, Arc::new(segment));
        for one in seen {
            self.enter(number, &opened.reader, one, doubt_from, counts);
        }
        match opened.state {
            FileState::Open {
                writer: Some(writer),
                end,
            } if is_last && end < self.config.segment_bytes => Ok(Some((number, writer))),
            FileState::Damaged(damaged) if counts => {
                // Without a footer it is walked again at the next start, and no more than that.
                if let Ok(Some(len)) = damaged.seal(&opened.report) {
                    self.state.sizes.insert(number, len);
                }
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    /// Whether a segment can be read, though the disk refused something. What it refused was a write then: no reason to go on without what is there.
    fn can_read(&self, number: u32) -> bool {
        let path = self.layout.segment(number);
        let identity = format::identity(self.salt, number);
        gemba_segment::open(self.disk, &path, identity, Access::Read, &mut |_| {}).is_ok()
    }

    /// What will be cut off is noted in a file before: once it is gone, nothing else tells that the end of own feeds is in doubt.
    fn look_first(&mut self, number: u32) -> Result<(), OpenError> {
        let path = self.layout.segment(number);
        let identity = format::identity(self.salt, number);
        let looked = gemba_segment::open(self.disk, &path, identity, Access::Read, &mut |_| {});
        let Ok(opened) = looked else {
            // Opening it for good tells why.
            return Ok(());
        };
        let is_new = !matches!(opened.state, FileState::Sealed(_));
        let report = &opened.report;
        if !is_new || report.cut.is_none() && report.ambiguous.is_empty() {
            return Ok(());
        }
        self.in_doubt = true;
        if self.marker {
            return Ok(());
        }
        let path = self.layout.doubt();
        let mark = || -> io::Result<()> {
            self.disk.open(&path, Mode::Create)?.sync_data()?;
            self.disk.sync_dir(&self.layout.dir)
        };
        match mark() {
            Ok(()) => self.marker = true,
            // It is kept in memory, and written with the first append at the latest.
            Err(e) if gemba_segment::is_full(&e) => {}
            Err(e) => return Err(io_error(&path, e)),
        }
        Ok(())
    }

    /// Enters what a walk has found.
    fn enter(&mut self, number: u32, reader: &Reader, seen: Seen, doubt_from: u64, counts: bool) {
        let (tag, at, len) = match seen {
            Seen::Batch(tag, at, len) => (tag, at, len),
            Seen::Close(least) => {
                if counts {
                    self.state.close_own(Closed::All);
                    self.state.least_epoch = self.state.least_epoch.max(least);
                }
                return;
            }
        };
        let end = self.ends.get(&tag.key).copied();
        let follows = end.is_none_or(|end| tag.first <= end);
        if !follows && u64::from(at) > doubt_from {
            self.report.orphans += 1;
            return;
        }
        if counts {
            let new = match self.state.feeds.contains_key(&tag.key) {
                true => None,
                false => match self.new_feed(&tag, reader, at, len, doubt_from) {
                    Some(tip) => Some(tip),
                    None => {
                        self.report.orphans += 1;
                        return;
                    }
                },
            };
            self.state.apply(&tag, len, new.as_ref());
            if tag.has_producers {
                self.producers(&tag, reader, at, len);
            }
        }
        self.ends.insert(tag.key, end.unwrap_or(0).max(tag.end()));
        self.state.index(number, &tag, at, len);
    }

    /// The feed of a batch whose feed is not known yet; `None` if it cannot be told.
    fn new_feed(
        &self,
        tag: &Tag,
        reader: &Reader,
        at: u32,
        len: u32,
        doubt_from: u64,
    ) -> Option<Tip> {
        let batch = stored(tag, reader, at, len)?;
        let id = batch.feed().clone();
        let is_own = id.author == self.state.me;
        let mut tip = Tip::new(id.clone(), is_own);
        tip.next = tag.first;
        tip.number = tag.number;
        if tag.key == id.key() {
            if tag.number > 0 {
                if u64::from(at) > doubt_from {
                    return None;
                }
                // Its beginning is not here, so nobody here can say what skip links would name.
                tip.spine = None;
                tip.closed = is_own;
            }
            return Some(tip);
        }
        tip.branch = Some(tag.digest);
        tip.spine = None;
        (branch_key(&id, &tag.digest) == tag.key).then_some(tip)
    }

    fn producers(&mut self, tag: &Tag, reader: &Reader, at: u32, len: u32) {
        let Some(batch) = stored(tag, reader, at, len) else {
            return;
        };
        let id = batch.feed().clone();
        for event in batch.events().filter(|event| event.has_headers()) {
            if let Some(producer) = event.headers().producer {
                let key = (id.stream.clone(), producer.id);
                self.state
                    .producers
                    .note(key, producer.seq, id.epoch, event.seq);
            }
        }
    }

    fn note(&mut self, segment: u32, found: &Report) {
        let place = |gap: &Gap| SegmentGap {
            segment,
            offset: gap.at,
            len: gap.len,
        };
        self.report.damage.extend(found.damage.iter().map(place));
        self.report
            .ambiguous
            .extend(found.ambiguous.iter().map(place));
        self.report.cut.extend(found.cut.iter().map(place));
    }
}

fn see(entry: &Entry) -> Option<Seen> {
    match entry.kind {
        BATCH => {
            let at = u32::try_from(entry.at).ok()?;
            Some(Seen::Batch(Tag::decode(&entry.tag)?, at, entry.len))
        }
        DOUBT => Some(Seen::Close(take_doubt(&entry.tag))),
        _ => None,
    }
}

fn stored(tag: &Tag, reader: &Reader, at: u32, len: u32) -> Option<Batch> {
    let frame = reader.read(u64::from(at), TAG, len as usize, true).ok()?;
    let (bytes, from) = frame.into_bytes();
    let batch = Batch::from_disk(bytes::Bytes::from(bytes).slice(from..), tag.digest).ok()?;
    (batch.first() == tag.first && batch.count() == tag.count).then_some(batch)
}

fn take_lock(disk: &dyn Disk, layout: &Layout) -> Result<Option<Box<dyn LockGuard>>, OpenError> {
    let path = layout.lock();
    match disk.lock(&path, Sharing::Exclusive) {
        Ok(guard) => Ok(Some(guard)),
        Err(LockError::Held { pid }) => Err(OpenError::LockHeld { path, pid }),
        Err(LockError::Io(e)) => Err(io_error(&path, e)),
        Err(other) => Err(io_error(&path, io::Error::other(other))),
    }
}

fn list_segments(disk: &dyn Disk, dir: &Path) -> Result<Vec<u32>, OpenError> {
    let names = disk.list(dir).map_err(|e| io_error(dir, e))?;
    let mut numbers: Vec<_> = names
        .iter()
        .filter_map(|name| format::segment_number(name))
        .collect();
    numbers.sort_unstable();
    Ok(numbers)
}

fn read_version(disk: &dyn Disk, layout: &Layout) -> Result<(bool, Option<u64>), OpenError> {
    let path = layout.version();
    let file = match disk.open(&path, Mode::Read) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((false, None)),
        Err(e) => return Err(io_error(&path, e)),
    };
    let mut bytes = [0; 256];
    let len = file
        .read_at(&mut bytes, 0)
        .map_err(|e| io_error(&path, e))?;
    match format::parse_version(&String::from_utf8_lossy(&bytes[..len])) {
        Some(Version::Newer(found)) => Err(OpenError::NewerFormat {
            path,
            found,
            known: FILES,
        }),
        Some(Version::Known(salt)) => Ok((true, Some(salt))),
        None => Ok((true, None)),
    }
}

/// The salt of the log. Without a good `version` file it is taken from a segment, and the file is written anew.
fn settle_version(disk: &dyn Disk, layout: &Layout, numbers: &[u32]) -> Result<u64, OpenError> {
    if let (_, Some(salt)) = read_version(disk, layout)? {
        return Ok(salt);
    }
    let from_segment = numbers.iter().find_map(|number| {
        let file = disk.open(&layout.segment(*number), Mode::Read).ok()?;
        let mut header = [0; FILE_HEADER];
        let read = file.read_at(&mut header, 0).ok()?;
        (read == FILE_HEADER).then(|| format::salt_of(&header, *number))?
    });
    let salt = match from_segment {
        Some(salt) => salt,
        // Not a secret; it only must not be known to whoever wrote what is stored.
        None if numbers.is_empty() => RandomState::new().build_hasher().finish(),
        None => return Err(OpenError::BadVersionFile(layout.version())),
    };
    write_version(disk, layout, salt).map_err(|e| io_error(&layout.version(), e))?;
    Ok(salt)
}

/// Writes it whole: it is there with its bytes, or not. Its name is durable after the folder is synced.
fn write_version(disk: &dyn Disk, layout: &Layout, salt: u64) -> io::Result<()> {
    let text = format::version_text(salt);
    let file = disk.open(&layout.version_temporary(), Mode::Create)?;
    file.set_len(0)?;
    let mut at = 0;
    while at < text.len() {
        match file.write_at(&[IoSlice::new(&text.as_bytes()[at..])], at as u64)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            more => at += more,
        }
    }
    file.sync_data()?;
    disk.rename(&layout.version_temporary(), &layout.version())
}

/// Makes durable whatever names are there; before the first segment also the folders above.
fn sync_names(disk: &dyn Disk, dir: &Path, is_new: bool) -> io::Result<()> {
    disk.sync_dir(dir)?;
    if !is_new {
        return Ok(());
    }
    for above in dir.ancestors().skip(1) {
        let above = match above.as_os_str().is_empty() {
            true => Path::new("."),
            false => above,
        };
        match disk.sync_dir(above) {
            // A folder that we may not even open, or on a medium that is not written, was not made by us.
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
                ) =>
            {
                return Ok(());
            }
            other => other?,
        }
    }
    Ok(())
}

fn io_error(path: &Path, source: io::Error) -> OpenError {
    OpenError::Io {
        path: path.to_path_buf(),
        source,
    }
}
