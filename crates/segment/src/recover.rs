//! Making and opening a file: what is whole is shown, what is an unfinished append is cut, what is damage is reported.

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

use crate::disk::{Disk, DiskFile, Mode, is_full, read_exact_at, write_all_at};
use crate::footer::Footer;
use crate::frame::{FILE_HEADER, HeaderFault, Identity, Kind};
use crate::reader::Reader;
use crate::walk::{Entry, Gap, Step, Walk};
use crate::writer::Writer;

/// Most stretches that a report lists one by one; the rest is only summed up.
pub const MAX_LISTED: usize = 1024;
/// Bytes moved at a time when a tail is written again.
const MOVE: usize = 256 << 10;

/// Makes a new file and its name durable. A file that is there already is overwritten only if it is an unfinished creation:
/// no longer than a file header.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] if a longer file has the name, else as the disk answers.
pub fn create(disk: &dyn Disk, path: &Path, identity: Identity) -> io::Result<Writer> {
    let file = disk.open(path, Mode::Create)?;
    if file.len()? > FILE_HEADER as u64 {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    let header = identity.header();
    write_all_at(file.as_ref(), &mut [IoSlice::new(&header)], 0)?;
    // Header before frames, name before acknowledgement: a file with frames always has both.
    file.sync_data()?;
    disk.sync_dir(path.parent().unwrap_or(Path::new(".")))?;
    Ok(Writer::resume(file, identity, FILE_HEADER as u64))
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing is changed, repaired or flushed.
    Read,
    /// An unfinished tail is cut, the last group is made durable, and the file may be appended to.
    Write,
}

/// An opened file.
#[derive(Debug)]
pub struct Opened {
    /// For reading its frames.
    pub reader: Reader,
    /// What the file is ready for.
    pub state: State,
    /// What was wrong with it.
    pub report: Report,
}

/// What an opened file is ready for.
#[derive(Debug)]
pub enum State {
    /// It has a footer: nothing is appended any more.
    Sealed(Footer),
    /// It ends in order. With [`Access::Write`] there is a writer.
    Open {
        /// Offset behind the last frame.
        end: u64,
        /// Goes on at `end`.
        writer: Option<Writer>,
    },
    /// Its creation never finished: it holds nothing. [`create`] makes it anew.
    Unfinished,
    /// It is damaged or has holes: nothing is appended that would blur what happened. [`Damaged::seal`] gives it a footer.
    Damaged(Damaged),
}

/// A file that is not appended to, except for a footer.
#[derive(Debug)]
pub struct Damaged {
    /// Offset behind the last whole frame.
    pub end: u64,
    durable: u64,
    file: Arc<dyn DiskFile>,
    identity: Identity,
    headless: bool,
}

/// What was wrong with a file. All counts are bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Stretches that were durable once and are not whole now: frames are lost. At most [`MAX_LISTED`].
    pub damage: Vec<Gap>,
    /// Sum of all damage.
    pub damaged_bytes: u64,
    /// Stretches in the last group, before whole frames of it: either an append that never finished, or damage. It cannot be
    /// told which. At most [`MAX_LISTED`].
    pub ambiguous: Vec<Gap>,
    /// Sum of those.
    pub ambiguous_bytes: u64,
    /// What stood behind the last whole frame: an append that never finished (or, if it was the last group before an unclean
    /// stop, its damaged last frames: that cannot be told apart either).
    pub cut: Option<Gap>,
}

impl Report {
    /// Whether there was nothing to report.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        *self == Self::default()
    }

    fn damage(&mut self, gap: Gap) {
        self.damaged_bytes += gap.len;
        if self.damage.len() < MAX_LISTED {
            self.damage.push(gap);
        }
    }

    fn ambiguous(&mut self, gap: Gap) {
        self.ambiguous_bytes += gap.len;
        if self.ambiguous.len() < MAX_LISTED {
            self.ambiguous.push(gap);
        }
    }
}

/// Why a file was not opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The disk refused.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is not the file that was asked for, or of a newer format.
    #[error(transparent)]
    Header(HeaderFault),
}

/// Opens a file and shows every whole frame of the caller's kinds, in order.
///
/// A sealed file is read by its footer. Any other is walked; payloads are checked only where the file does not prove that
/// they were durable (specs/segment.md §5), the rest is left to readers and scrubs.
///
/// # Errors
/// See [`OpenError`]. Damage is no error: it is in the report.
pub fn open(
    disk: &dyn Disk,
    path: &Path,
    identity: Identity,
    access: Access,
    visit: &mut dyn FnMut(Entry),
) -> Result<Opened, OpenError> {
    let mode = match access {
        Access::Read => Mode::Read,
        Access::Write => Mode::Write,
    };
    let file = disk.open(path, mode)?;
    let len = file.len()?;
    let reader = Reader::new(Arc::clone(&file), identity);
    let headless = match check_header(file.as_ref(), &identity, len)? {
        Header::Whole => false,
        Header::Damaged => true,
        Header::Unfinished => {
            // The header is durable before the first frame is written, so no frame was.
            return Ok(Opened {
                reader,
                state: State::Unfinished,
                report: Report::default(),
            });
        }
    };
    let mut report = Report::default();
    if headless {
        report.damage(Gap {
            at: 0,
            len: FILE_HEADER as u64,
        });
    }
    if let Some(footer) = Footer::open(&file, &identity, len)? {
        footer.for_each(&mut |entry| {
            let gap = Gap {
                at: entry.at,
                len: u64::from(entry.len),
            };
            if entry.kind == Kind::HOLE {
                report.damage(gap);
            } else if entry.kind == Kind::DOUBT {
                report.ambiguous(gap);
            } else if !entry.kind.is_internal() {
                visit(entry);
            }
        })?;
        return Ok(Opened {
            reader,
            state: State::Sealed(footer),
            report,
        });
    }
    let survey = survey(&file, &identity, len, headless, &mut report, visit)?;
    let damaged = headless || report.damaged_bytes > 0 || report.ambiguous_bytes > 0;
    if access == Access::Write {
        settle(file.as_ref(), &survey, len, !headless)?;
    }
    let state = if damaged {
        State::Damaged(Damaged {
            end: survey.end,
            durable: survey.durable,
            file,
            identity,
            headless,
        })
    } else {
        let writer = (access == Access::Write).then(|| match survey.closed {
            Some(at) => Writer::resume_closed(file, identity, at, survey.end),
            None => Writer::resume(file, identity, survey.end),
        });
        State::Open {
            end: survey.end,
            writer,
        }
    };
    Ok(Opened {
        reader,
        state,
        report,
    })
}

impl Damaged {
    /// Gives the file a footer that names its whole frames and its holes. Needs the file opened with [`Access::Write`].
    /// Gives the new length, or `None` if its header is damaged: such a file is left exactly as it is.
    ///
    /// # Errors
    /// As the disk answers. The file stays as good as it was.
    pub fn seal(self, report: &Report) -> Result<Option<u64>, crate::WriteError> {
        if self.headless {
            return Ok(None);
        }
        let walk = Walk::new(
            Arc::clone(&self.file),
            self.identity,
            FILE_HEADER as u64,
            self.end,
        );
        let doubt_from = report.ambiguous.first().map_or(u64::MAX, |gap| gap.at);
        let reader = Reader::new(Arc::clone(&self.file), self.identity);
        let writer = Writer::resume(self.file, self.identity, self.end).claiming_only(self.durable);
        writer
            .seal(|push| whole_entries(walk, &reader, doubt_from, push))
            .map(Some)
    }
}

/// Shows the frames of a walk, and its gaps as holes or doubts. From the first ambiguous stretch on all is the last group:
/// payloads are checked there as they were when the file was opened, also behind the stretches that the report lists.
fn whole_entries(
    mut walk: Walk,
    reader: &Reader,
    doubt_from: u64,
    push: &mut dyn FnMut(&Entry),
) -> io::Result<()> {
    let doubtful = |at| at >= doubt_from;
    while let Some(step) = walk.next_step()? {
        match step {
            Step::Frame(entry, _) if entry.kind.is_internal() => {}
            Step::Frame(entry, _) if doubtful(entry.at) && !payload_is_whole(reader, &entry)? => {
                push_gap(Kind::DOUBT, entry.at, entry.frame_len(), push);
            }
            Step::Frame(entry, _) => push(&entry),
            Step::Gap(gap) if doubtful(gap.at) => push_gap(Kind::DOUBT, gap.at, gap.len, push),
            Step::Gap(gap) => push_gap(Kind::HOLE, gap.at, gap.len, push),
        }
    }
    Ok(())
}

/// A gap longer than an entry can say becomes several.
fn push_gap(kind: Kind, mut at: u64, mut len: u64, push: &mut dyn FnMut(&Entry)) {
    while len > 0 {
        let part = u32::try_from(len).unwrap_or(u32::MAX);
        push(&Entry {
            at,
            kind,
            tag: Vec::new(),
            len: part,
        });
        at += u64::from(part);
        len -= u64::from(part);
    }
}

enum Header {
    Whole,
    Damaged,
    /// Shorter than a header, or a torn one with nothing behind it.
    Unfinished,
}

fn check_header(file: &dyn DiskFile, identity: &Identity, len: u64) -> Result<Header, OpenError> {
    if len < FILE_HEADER as u64 {
        return Ok(Header::Unfinished);
    }
    let mut bytes = [0; FILE_HEADER];
    read_exact_at(file, &mut bytes, 0)?;
    match identity.check(&bytes) {
        Ok(()) => Ok(Header::Whole),
        Err(HeaderFault::Damaged) if len == FILE_HEADER as u64 => Ok(Header::Unfinished),
        Err(HeaderFault::Damaged) => Ok(Header::Damaged),
        Err(fault) => Err(OpenError::Header(fault)),
    }
}

/// What a walk over an unsealed file found.
struct Survey {
    /// Offset behind the last whole frame.
    end: u64,
    /// Everything before was durable for sure.
    durable: u64,
    /// Where the last whole frame stands, if it says that the writer was closed in order.
    closed: Option<u64>,
}

/// Walks, shows whole frames and sorts gaps into damage, ambiguous ones and the tail.
///
/// Every frame says how much of the file was durable when it was written. What lies before the largest such offset was
/// acknowledged, so a gap there is damage. What lies behind it is the last group: its payloads are checked now.
fn survey(
    file: &Arc<dyn DiskFile>,
    identity: &Identity,
    len: u64,
    headless: bool,
    report: &mut Report,
    visit: &mut dyn FnMut(Entry),
) -> io::Result<Survey> {
    let mut walk = Walk::new(Arc::clone(file), *identity, FILE_HEADER as u64, len);
    // Steps that no later frame has proven durable yet, in order. At most one group, and the tail.
    let mut open: Vec<Step> = Vec::new();
    let mut found = Survey {
        end: FILE_HEADER as u64,
        durable: FILE_HEADER as u64,
        closed: None,
    };
    while let Some(step) = walk.next_step()? {
        if let Step::Frame(_, header) = &step
            && header.durable > found.durable
        {
            found.durable = header.durable;
            let proven = open.partition_point(|step| step_at(step) < header.durable);
            for step in open.drain(..proven) {
                settle_proven(step, &mut found, report, visit);
            }
        }
        open.push(step);
    }
    let reader = Reader::new(Arc::clone(file), *identity);
    let mut gaps: Vec<Gap> = Vec::new();
    for step in open {
        let gap = match step {
            Step::Gap(gap) => gap,
            Step::Frame(entry, _) if !payload_is_whole(&reader, &entry)? => Gap {
                at: entry.at,
                len: entry.frame_len(),
            },
            Step::Frame(entry, _) => {
                for gap in gaps.drain(..) {
                    report.ambiguous(gap);
                }
                show(entry, &mut found, visit);
                continue;
            }
        };
        match gaps.last_mut() {
            Some(last) => last.len += gap.len,
            None => gaps.push(gap),
        }
    }
    if let Some(tail) = gaps.pop() {
        settle_tail(tail, headless, file, report)?;
    }
    Ok(found)
}

fn step_at(step: &Step) -> u64 {
    match step {
        Step::Frame(entry, _) => entry.at,
        Step::Gap(gap) => gap.at,
    }
}

fn settle_proven(
    step: Step,
    found: &mut Survey,
    report: &mut Report,
    visit: &mut dyn FnMut(Entry),
) {
    match step {
        Step::Frame(entry, _) => show(entry, found, visit),
        Step::Gap(gap) => report.damage(gap),
    }
}

fn show(entry: Entry, found: &mut Survey, visit: &mut dyn FnMut(Entry)) {
    found.end = entry.end();
    found.closed = (entry.kind == Kind::CLOSE).then_some(entry.at);
    if !entry.kind.is_internal() {
        visit(entry);
    }
}

fn payload_is_whole(reader: &Reader, entry: &Entry) -> io::Result<bool> {
    match reader.read(entry.at, entry.tag.len(), entry.len as usize, true) {
        Ok(_) => Ok(true),
        Err(crate::ReadError::Io(e)) => Err(e),
        Err(crate::ReadError::Damaged { .. }) => Ok(false),
    }
}

/// Zeros behind the last frame are length that was set ahead; anything else there is an unfinished append. Without a header
/// nothing is proven, so it counts as damage.
fn settle_tail(
    tail: Gap,
    headless: bool,
    file: &Arc<dyn DiskFile>,
    report: &mut Report,
) -> io::Result<()> {
    let written = last_written(file.as_ref(), tail)?;
    if written == 0 {
        return Ok(());
    }
    let gap = Gap {
        at: tail.at,
        len: written,
    };
    if headless {
        report.damage(gap);
    } else {
        report.cut = Some(gap);
    }
    Ok(())
}

/// Bytes of the stretch up to its last byte that is not zero.
fn last_written(file: &dyn DiskFile, gap: Gap) -> io::Result<u64> {
    let mut buffer = vec![0; MOVE];
    let mut left = gap.len;
    while left > 0 {
        let part = left.min(MOVE as u64);
        let buffer = &mut buffer[..part as usize];
        read_exact_at(file, buffer, gap.at + left - part)?;
        if let Some(last) = buffer.iter().rposition(|b| *b != 0) {
            return Ok(left - part + last as u64 + 1);
        }
        left -= part;
    }
    Ok(0)
}

/// Makes what was found durable before anybody relies on it.
///
/// The last group may stand only in the kernel's cache: the process died before its flush, or its flush failed, after which
/// the kernel holds the pages for clean. So its bytes are written once more as they are, and then flushed.
fn settle(file: &dyn DiskFile, survey: &Survey, len: u64, cut: bool) -> io::Result<()> {
    if survey.closed.is_some() && survey.end == len {
        return Ok(());
    }
    if cut && len > survey.end {
        file.set_len(survey.end)?;
    }
    let mut buffer = vec![0; MOVE];
    // Before the first proof the header itself may be one of those bytes.
    let mut at = if survey.durable > FILE_HEADER as u64 {
        survey.durable
    } else {
        0
    };
    while at < survey.end {
        let part = (survey.end - at).min(MOVE as u64) as usize;
        let buffer = &mut buffer[..part];
        read_exact_at(file, buffer, at)?;
        match write_all_at(file, &mut [IoSlice::new(buffer)], at) {
            Ok(()) => at += part as u64,
            // A file system that copies on write, and is full: a file must open all the same. Only what a failed flush left
            // behind is then not written again, and that was cut off when the flush failed.
            Err(e) if is_full(&e) => break,
            Err(e) => return Err(e),
        }
    }
    file.sync_data()
}
