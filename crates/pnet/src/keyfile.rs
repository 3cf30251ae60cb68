//! The key file on disk: the only place of this crate that touches `std::fs` for secrets.
//!
//! Reading collects what [`Policy`] decides on and decides nothing. Writing creates with mode 0600 and never follows or overwrites:
//! an existing different key is replaced only when told to.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use crate::{
    key::{Fingerprint, KEY_LEN, KeyError, MAX_KEY_FILE_LEN, SwarmKey},
    policy::{KEY_FILE_NAME, KeyFound, Policy},
};

/// How many names of a repository folder are looked at for near misses.
const MAX_ENTRIES: usize = 4096;

impl SwarmKey {
    /// A fresh key from the operating system's random source. Make one per swarm, and copy it to every device.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut bytes = Zeroizing::new([0; KEY_LEN]);
        getrandom::fill(&mut bytes[..])?;
        Ok(Self::from_bytes(*bytes))
    }
}

/// The swarm key of one repository folder.
#[derive(Clone, Debug)]
pub struct KeyFile {
    dir: PathBuf,
}

impl KeyFile {
    /// The key file of the repository in `dir`. Nothing is opened yet.
    pub fn in_repo(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// `DIR/swarm.key`.
    pub fn path(&self) -> PathBuf {
        self.dir.join(KEY_FILE_NAME)
    }

    /// Collects the facts of folder, file and process environment. The caller adds its flags and calls [`Policy::decide`].
    pub fn policy(&self) -> Policy {
        // Values that are not Unicode cannot be any spelling of yes: they are kept, lossily, so that they are refused.
        let environment = std::env::vars_os()
            .map(|(name, value)| {
                (
                    name.to_string_lossy().into_owned(),
                    value.to_string_lossy().into_owned(),
                )
            })
            .collect();
        Policy {
            environment,
            ..self.policy_without_environment()
        }
    }

    /// As [`policy`](Self::policy), for callers that bring their own environment.
    pub fn policy_without_environment(&self) -> Policy {
        Policy {
            key: self.find(),
            entries: self.entries(),
            key_path: self.path().display().to_string(),
            ..Policy::default()
        }
    }

    /// Writes `key` with mode 0600. The same key again is fine; a different one is refused unless `replace`, and kept then
    /// (PNET-K6): whoever replaced it by mistake has lost a swarm otherwise.
    ///
    /// The file appears whole or not at all, and is durable when this returns.
    pub fn write(&self, key: &SwarmKey, replace: Replace) -> Result<Written, KeyFileError> {
        let at = |source| KeyFileError::Io {
            path: self.path(),
            source,
        };
        let mut outcome = Written::Created;
        match self.find() {
            KeyFound::Missing => {}
            KeyFound::Unreadable { reason } => {
                return Err(KeyFileError::Unreadable {
                    path: self.path(),
                    reason,
                });
            }
            KeyFound::File { bytes, mode } => match (SwarmKey::parse(&bytes), replace) {
                (Ok(present), _) if present == *key => {
                    if mode.is_some_and(|mode| mode & 0o077 != 0) {
                        restrict(&self.path()).map_err(at)?;
                    }
                    return Ok(Written::AlreadyThere);
                }
                (Ok(present), Replace::Never) => {
                    return Err(KeyFileError::DifferentKey {
                        path: self.path(),
                        present: present.fingerprint(),
                        new: key.fingerprint(),
                    });
                }
                (Err(cause), Replace::Never) => {
                    return Err(KeyFileError::NotAKey {
                        path: self.path(),
                        cause,
                    });
                }
                (present, Replace::Yes) => {
                    let old = present.ok().map(|present| present.fingerprint());
                    let kept = self.keep(&bytes, old)?;
                    outcome = Written::Replaced { old, kept };
                }
            },
        }
        let replace = matches!(outcome, Written::Replaced { .. });
        self.place(key.to_file_text().as_bytes(), &self.path(), replace)
            .map_err(at)?;
        Ok(outcome)
    }

    /// Writes what is about to be replaced under a name that tells which key it was; the path.
    fn keep(&self, bytes: &[u8], old: Option<Fingerprint>) -> Result<PathBuf, KeyFileError> {
        // Longer than any key: only its beginning was read, so it cannot be kept.
        if bytes.len() > MAX_KEY_FILE_LEN {
            return Err(KeyFileError::NotAKey {
                path: self.path(),
                cause: KeyError::TooLong { len: bytes.len() },
            });
        }
        let name = old.map_or("notakey".to_owned(), |old| old.to_string()[..8].to_owned());
        let path = self.dir.join(format!("{KEY_FILE_NAME}.{name}.old"));
        match find(&path) {
            KeyFound::Missing => {}
            KeyFound::File { bytes: there, .. } if **there == *bytes => {
                // Kept by an earlier replacement.
                restrict(&path).map_err(|source| KeyFileError::Io {
                    path: path.clone(),
                    source,
                })?;
                return Ok(path);
            }
            _ => return Err(KeyFileError::KeptNameTaken { path }),
        }
        match self.place(bytes, &path, false) {
            Ok(()) => Ok(path),
            Err(source) => Err(KeyFileError::Io { path, source }),
        }
    }

    /// Reads any file that holds a key, for import. Its mode does not matter: it may come from a USB stick.
    pub fn read_for_import(path: &Path) -> Result<SwarmKey, KeyFileError> {
        match find(path) {
            KeyFound::Missing => Err(KeyFileError::Io {
                path: path.into(),
                source: io::Error::from(io::ErrorKind::NotFound),
            }),
            KeyFound::Unreadable { reason } => Err(KeyFileError::Unreadable {
                path: path.into(),
                reason,
            }),
            KeyFound::File { bytes, .. } => {
                SwarmKey::parse(&bytes).map_err(|cause| KeyFileError::BadKey {
                    path: path.into(),
                    cause,
                })
            }
        }
    }

    fn find(&self) -> KeyFound {
        find(&self.path())
    }

    fn entries(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.dir) else {
            // No folder has no near misses either; the missing key is reported by the policy.
            return Vec::new();
        };
        entries
            .flatten()
            .take(MAX_ENTRIES)
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    }

    /// Writes a secret to `target` in the same folder: whole or not at all, and durable.
    fn place(&self, content: &[u8], target: &Path, replace: bool) -> io::Result<()> {
        let mut random = [0u8; 8];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let temporary = self.dir.join(format!(
            ".swarm-{}.part",
            data_encoding::HEXLOWER.encode(&random)
        ));
        let written = write_secret(&temporary, content).and_then(|()| {
            if replace {
                return fs::rename(&temporary, target);
            }
            // A link, unlike a rename, fails if a key has appeared in the meantime. File systems without links (FAT) fall back.
            match fs::hard_link(&temporary, target) {
                Ok(()) => fs::remove_file(&temporary),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(error),
                Err(_) if !target.exists() => fs::rename(&temporary, target),
                Err(error) => Err(error),
            }
        });
        if written.is_err() {
            // The temporary file holds the secret: it must not stay. If that fails too, the first error says more.
            let _ = fs::remove_file(&temporary);
        }
        written.and_then(|()| sync_dir(&self.dir))
    }
}

/// Whether a different key may be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replace {
    /// A different key stays and is an error.
    Never,
    /// The operator said so: this device leaves its swarm.
    Yes,
}

/// What [`KeyFile::write`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// There was none.
    Created,
    /// The same key was there.
    AlreadyThere,
    /// A different one was there.
    Replaced {
        /// Its fingerprint; `None` if the file held no key.
        old: Option<Fingerprint>,
        /// Where the old file is kept.
        kept: PathBuf,
    },
}

/// Why a key file was not read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// Another swarm's key is there.
    #[error(
        "{} already holds the key of another swarm (fingerprint {present}; new one {new}): this device would leave its swarm. \
         To do that on purpose, say so (`--replace`)", path.display()
    )]
    DifferentKey {
        /// The key file.
        path: PathBuf,
        /// Fingerprint of the key on disk.
        present: Fingerprint,
        /// Fingerprint of the key that was to be written.
        new: Fingerprint,
    },
    /// Something that is no key is there.
    #[error("{} exists and is no usable swarm key ({cause}): look at it, then move it away or say `--replace`", path.display())]
    NotAKey {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        cause: KeyError,
    },
    /// The replaced key could not be kept, so nothing was replaced.
    #[error("the old key is to be kept as {}, and something else has that name: nothing was changed; move that file away and repeat", path.display())]
    KeptNameTaken {
        /// The name.
        path: PathBuf,
    },
    /// The file to import is no key.
    #[error("{} is no usable swarm key: {cause}", path.display())]
    BadKey {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        cause: KeyError,
    },
    /// It is there and cannot be read.
    #[error("{} cannot be read: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The file system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

fn find(path: &Path) -> KeyFound {
    let unreadable = |error: io::Error| KeyFound::Unreadable {
        reason: error.to_string(),
    };
    // A dangling link is a key that cannot be read, not a missing one.
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return KeyFound::Missing,
        Err(error) => return unreadable(error),
        Ok(_) => {}
    }
    // Looked at before it is opened: opening a pipe would wait for its writer.
    match fs::metadata(path) {
        Err(error) => return unreadable(error),
        Ok(metadata) if !metadata.is_file() => {
            return KeyFound::Unreadable {
                reason: "it is not a regular file".into(),
            };
        }
        Ok(_) => {}
    }
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) => return unreadable(error),
    };
    let mode = match file.metadata() {
        Ok(metadata) => mode(&metadata),
        Err(error) => return unreadable(error),
    };
    // Full capacity at once: a growing buffer would leave copies of the secret behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_KEY_FILE_LEN + 1));
    match file
        .take(MAX_KEY_FILE_LEN as u64 + 1)
        .read_to_end(&mut bytes)
    {
        Ok(_) => KeyFound::File { bytes, mode },
        Err(error) => unreadable(error),
    }
}

fn write_secret(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

#[cfg(unix)]
fn mode(metadata: &fs::Metadata) -> Option<u32> {
    Some(std::os::unix::fs::PermissionsExt::mode(
        &metadata.permissions(),
    ))
}

#[cfg(not(unix))]
fn mode(_: &fs::Metadata) -> Option<u32> {
    None
}

#[cfg(unix)]
fn restrict(path: &Path) -> io::Result<()> {
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))
}

#[cfg(not(unix))]
fn restrict(_: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(unix)]
fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(not(unix))]
fn sync_dir(_: &Path) -> io::Result<()> {
    Ok(())
}
