//! A walk over files, folders and symbolic links on disk, as events. It follows no link and opens nothing that has no end.

use std::fs::{self, File, Metadata};
use std::io::Read;
use std::path::{Path, PathBuf};

use gemba_unixfs::Meta;
use gemba_unixfs::dagpb::Mtime;

use crate::error::{Code, Fail};
use crate::text;

/// Deepest nesting of folders. PATH_MAX allows about 2,000.
const MAX_DEPTH: usize = 4096;

/// Hears of a tree in the order of a walk. Exactly one thing is told at the top.
pub trait TreeVisitor {
    /// A folder begins.
    ///
    /// # Errors
    /// Ends the walk.
    fn enter_dir(&mut self, name: &[u8], meta: &Meta) -> Result<(), Fail>;

    /// The folder that began last ends.
    ///
    /// # Errors
    /// Ends the walk.
    fn leave_dir(&mut self) -> Result<(), Fail>;

    /// A file, to be read to its end.
    ///
    /// # Errors
    /// Ends the walk.
    fn file(&mut self, name: &[u8], meta: &Meta, reader: &mut dyn Read) -> Result<(), Fail>;

    /// A file that is open, to be read from its beginning; `check` is called between two reads.
    ///
    /// # Errors
    /// Ends the walk.
    fn open_file(
        &mut self,
        name: &[u8],
        meta: &Meta,
        file: File,
        check: &mut dyn FnMut() -> std::io::Result<()>,
    ) -> Result<(), Fail> {
        self.file(name, meta, &mut super::add::Checked(file, check))
    }

    /// A symbolic link.
    ///
    /// # Errors
    /// Ends the walk.
    fn symlink(&mut self, name: &[u8], target: &[u8], meta: &Meta) -> Result<(), Fail>;
}

/// What a walk leaves out, and what it calls between two reads.
pub struct WalkOptions<'a> {
    /// Whether names that begin with a dot are taken, below the top.
    pub hidden: bool,
    /// Called often; an error ends the walk.
    pub check: &'a mut dyn FnMut() -> std::io::Result<()>,
    /// Hears of what was left out.
    pub left_out: &'a mut LeftOut,
}

/// What a walk did not take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Entries whose names begin with a dot; what lies in such a folder is not counted.
    pub hidden: u64,
    /// Sockets, named pipes and devices.
    pub special: u64,
    /// The first hundred of these, and what each is.
    pub named: Vec<(PathBuf, &'static str)>,
}

/// Special files that are named; the others are only counted.
const MAX_NAMED: usize = 100;

impl LeftOut {
    fn special(&mut self, path: &Path, what: &'static str) {
        self.special += 1;
        if self.named.len() < MAX_NAMED {
            self.named.push((path.to_owned(), what));
        }
    }
}

/// Tells `visitor` of everything at `path`, entries of a folder sorted by name. Sockets, named pipes and devices in it are left out.
///
/// # Errors
/// What cannot be read is named; `path` itself must not be a socket, named pipe or device.
pub fn walk(
    path: &Path,
    name: &[u8],
    visitor: &mut dyn TreeVisitor,
    options: &mut WalkOptions<'_>,
) -> Result<(), Fail> {
    let mut open: Vec<std::vec::IntoIter<Child>> = Vec::new();
    let mut next = Some((name.to_vec(), path.to_owned()));
    loop {
        if let Some((name, path)) = next.take() {
            (options.check)().map_err(super::io_fail)?;
            let is_top = open.is_empty();
            if let Some(entries) = visit(&name, &path, is_top, visitor, options)? {
                if open.len() >= MAX_DEPTH {
                    return Err(Fail::new(
                        Code::Usage,
                        format!(
                            "{} lies more than {MAX_DEPTH} folders deep",
                            text::path(&path)
                        ),
                    ));
                }
                open.push(entries.into_iter());
            }
        }
        let Some(level) = open.last_mut() else {
            return Ok(());
        };
        next = level.next();
        if next.is_none() {
            open.pop();
            visitor.leave_dir()?;
            if open.is_empty() {
                return Ok(());
            }
        }
    }
}

/// Name and path of an entry of a folder.
type Child = (Vec<u8>, PathBuf);

/// The total size of all files at `path`, for a progress bar: what cannot be read counts nothing.
#[must_use]
pub fn total_bytes(path: &Path, hidden: bool) -> u64 {
    let mut total = 0;
    let mut open = vec![path.to_owned()];
    while let Some(path) = open.pop() {
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => open.extend(
                list(&path, hidden, &mut LeftOut::default())
                    .unwrap_or_default()
                    .into_iter()
                    .map(|(_, path)| path),
            ),
            Ok(metadata) if metadata.is_file() => total += metadata.len(),
            _ => {}
        }
    }
    total
}

/// Tells of one entry; the entries of a folder are returned.
fn visit(
    name: &[u8],
    path: &Path,
    is_top: bool,
    visitor: &mut dyn TreeVisitor,
    options: &mut WalkOptions<'_>,
) -> Result<Option<Vec<Child>>, Fail> {
    let metadata = fs::symlink_metadata(path).map_err(|e| Fail::io(path, &e))?;
    let kind = metadata.file_type();
    if kind.is_dir() {
        refuse_repository(path)?;
        visitor.enter_dir(name, &meta(&metadata))?;
        return list(path, options.hidden, options.left_out).map(Some);
    }
    if kind.is_symlink() {
        let target = fs::read_link(path).map_err(|e| Fail::io(path, &e))?;
        visitor.symlink(name, &bytes_of(target.as_os_str()), &meta(&metadata))?;
        return Ok(None);
    }
    if !kind.is_file() && is_top {
        return Err(Fail::new(
            Code::Usage,
            format!(
                "{} is a {}: it has no end",
                text::path(path),
                special(&metadata)
            ),
        )
        .hint("files, folders and symbolic links can be added; what comes through a pipe is added with `gemba add -`"));
    }
    if !kind.is_file() {
        options.left_out.special(path, special(&metadata));
        return Ok(None);
    }
    let file = File::open(path).map_err(|e| Fail::io(path, &e))?;
    visitor
        .open_file(name, &meta(&metadata), file, options.check)
        .map_err(|fail| named(fail, path))?;
    Ok(None)
}

/// A repository holds the swarm's key and the node's identity: whoever adds it by mistake would publish both.
fn refuse_repository(path: &Path) -> Result<(), Fail> {
    let holds = |name: &str| path.join(name).symlink_metadata().is_ok();
    if holds("identity.key") && holds("repo.lock") {
        return Err(Fail::new(
            Code::Usage,
            format!(
                "{} is a gemba repository with its secret keys; it is not added",
                text::path(path)
            ),
        )
        .hint("add the folders beside it, or move the repository elsewhere (--repo)"));
    }
    Ok(())
}

/// A failure while a file was read says which one.
fn named(fail: Fail, path: &Path) -> Fail {
    match fail.code {
        Code::Failure if !fail.cause.contains(&text::path(path)) => fail.during(text::path(path)),
        _ => fail,
    }
}

fn list(path: &Path, hidden: bool, left_out: &mut LeftOut) -> Result<Vec<Child>, Fail> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(path).map_err(|e| Fail::io(path, &e))? {
        let entry = entry.map_err(|e| Fail::io(path, &e))?;
        let name = bytes_of(&entry.file_name());
        if hidden || !name.starts_with(b".") {
            entries.push((name, entry.path()));
        } else {
            left_out.hidden += 1;
        }
    }
    entries.sort_unstable();
    Ok(entries)
}

/// The name under which `path` is added: its last part, also for `.` and `dir/..`.
///
/// # Errors
/// There is no such path, or it has no name (the root of the file system).
pub fn name_of(path: &Path) -> Result<Vec<u8>, Fail> {
    if let Some(name) = path.file_name() {
        return Ok(bytes_of(name));
    }
    let whole = fs::canonicalize(path).map_err(|e| Fail::io(path, &e))?;
    match whole.file_name() {
        Some(name) => Ok(bytes_of(name)),
        None => Err(
            Fail::new(Code::Usage, format!("{} has no name", text::path(path)))
                .hint("add the folders in it"),
        ),
    }
}

#[cfg(unix)]
fn bytes_of(text: &std::ffi::OsStr) -> Vec<u8> {
    std::os::unix::ffi::OsStrExt::as_bytes(text).to_vec()
}

#[cfg(not(unix))]
fn bytes_of(text: &std::ffi::OsStr) -> Vec<u8> {
    text.to_string_lossy().replace('\\', "/").into_bytes()
}

#[cfg(unix)]
fn meta(metadata: &Metadata) -> Meta {
    use std::os::unix::fs::MetadataExt as _;
    let nanos = u32::try_from(metadata.mtime_nsec()).unwrap_or(0);
    Meta {
        mode: Some(metadata.mode() & 0xfff),
        mtime: Some(Mtime {
            seconds: metadata.mtime(),
            nanos,
        }),
    }
}

#[cfg(not(unix))]
fn meta(_: &Metadata) -> Meta {
    Meta::default()
}

#[cfg(unix)]
fn special(metadata: &Metadata) -> &'static str {
    use std::os::unix::fs::FileTypeExt as _;
    let kind = metadata.file_type();
    match () {
        () if kind.is_socket() => "socket",
        () if kind.is_fifo() => "named pipe",
        () => "device",
    }
}

#[cfg(not(unix))]
fn special(_: &Metadata) -> &'static str {
    "special file"
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes down what it hears.
    #[derive(Default)]
    struct Notes(Vec<String>);

    impl TreeVisitor for Notes {
        fn enter_dir(&mut self, name: &[u8], _: &Meta) -> Result<(), Fail> {
            self.0.push(format!("{}/", String::from_utf8_lossy(name)));
            Ok(())
        }

        fn leave_dir(&mut self) -> Result<(), Fail> {
            self.0.push("..".into());
            Ok(())
        }

        fn file(&mut self, name: &[u8], _: &Meta, reader: &mut dyn Read) -> Result<(), Fail> {
            let mut text = String::new();
            reader
                .read_to_string(&mut text)
                .map_err(super::super::io_fail)?;
            self.0
                .push(format!("{}={text}", String::from_utf8_lossy(name)));
            Ok(())
        }

        fn symlink(&mut self, name: &[u8], target: &[u8], _: &Meta) -> Result<(), Fail> {
            self.0.push(format!(
                "{}->{}",
                String::from_utf8_lossy(name),
                String::from_utf8_lossy(target)
            ));
            Ok(())
        }
    }

    fn notes(path: &Path, hidden: bool) -> Result<Vec<String>, Fail> {
        noted(path, hidden).map(|(notes, _)| notes)
    }

    fn noted(path: &Path, hidden: bool) -> Result<(Vec<String>, LeftOut), Fail> {
        let mut notes = Notes::default();
        let mut left_out = LeftOut::default();
        let mut options = WalkOptions {
            hidden,
            check: &mut || Ok(()),
            left_out: &mut left_out,
        };
        walk(path, b"top", &mut notes, &mut options)?;
        Ok((notes.0, left_out))
    }

    #[cfg(unix)]
    #[test]
    fn a_walk_is_sorted_follows_no_link_and_leaves_hidden_names_out() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("b/empty")).unwrap();
        fs::write(at("b/x"), "1").unwrap();
        fs::write(at("a"), "2").unwrap();
        fs::write(at(".hidden"), "3").unwrap();
        std::os::unix::fs::symlink("/etc", at("c")).unwrap();
        assert_eq!(
            notes(dir.path(), false).unwrap(),
            [
                "top/", "a=2", "b/", "empty/", "..", "x=1", "..", "c->/etc", ".."
            ]
        );
        assert!(
            notes(dir.path(), true)
                .unwrap()
                .contains(&".hidden=3".to_owned())
        );
        assert_eq!(notes(&at("a"), false).unwrap(), ["top=2"]);
        assert_eq!(notes(&at("c"), false).unwrap(), ["top->/etc"]);
        assert_eq!(notes(&at("none"), false).unwrap_err().code, Code::NotFound);
        assert_eq!(total_bytes(dir.path(), false), 2);
    }

    #[cfg(unix)]
    #[test]
    fn what_has_no_end_is_left_out_and_named_and_refused_at_the_top() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let _socket = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        fs::write(dir.path().join("a"), "1").unwrap();
        fs::write(dir.path().join(".b"), "2").unwrap();
        let (notes_of_all, left_out) = noted(dir.path(), false).unwrap();
        assert_eq!(notes_of_all, ["top/", "a=1", ".."]);
        assert_eq!(
            left_out,
            LeftOut {
                hidden: 1,
                special: 1,
                named: vec![(socket.clone(), "socket")],
            }
        );
        for (path, what) in [
            (socket.as_path(), "socket"),
            (Path::new("/dev/null"), "device"),
        ] {
            let fail = notes(path, false).unwrap_err();
            assert!(
                fail.code == Code::Usage && fail.cause.contains(what),
                "{fail}"
            );
        }
    }

    #[test]
    fn names_come_from_the_path_or_from_where_it_leads() {
        assert_eq!(name_of(Path::new("a/b")).unwrap(), b"b");
        assert_eq!(name_of(Path::new("a/b/")).unwrap(), b"b");
        let here = std::env::current_dir().unwrap();
        assert_eq!(
            name_of(Path::new(".")).unwrap(),
            bytes_of(here.file_name().unwrap())
        );
        assert_eq!(name_of(Path::new("/")).unwrap_err().code, Code::Usage);
    }
}
