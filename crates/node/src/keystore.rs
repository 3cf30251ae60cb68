//! The keys that names belong to: one file each in `keystore/`, mode 0600, and this node's identity as `self`.
//!
//! A file holds the key in the protobuf form of libp2p, which is what `ipfs key export` writes and `ipfs key import` reads. Secrets leave only through
//! [`Keystore::secret`]; nothing here prints them.

use std::path::{Path, PathBuf};

use gemba_names::{Keypair, Name};

use crate::api::types::KeyInfo;
use crate::error::{Code, Fail};
use crate::files;
use crate::repo::Layout;

/// The name of the node's own key.
pub const SELF: &str = "self";
/// What a key's file ends with.
const SUFFIX: &str = ".key";
/// Longest label of a key, in bytes.
const LABEL_BYTES: usize = 64;
/// An RSA key of 4096 bits has about 2.4 KiB.
const MAX_KEY_BYTES: u64 = 8 * 1024;
/// Keys that one keystore may hold: each is in the daemon's memory, and its name in the book.
const KEYS: usize = 512;

/// A key without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// What people call it.
    pub label: String,
    /// The name that it signs for.
    pub name: Name,
}

impl Key {
    /// What is told of it.
    #[must_use]
    pub fn info(&self) -> KeyInfo {
        KeyInfo {
            key: self.label.clone(),
            name: self.name.to_string(),
            id: self.name.to_base58(),
        }
    }
}

/// The keys of one repository. Needs no lock: files are made whole and never changed.
#[derive(Clone, Debug)]
pub struct Keystore {
    layout: Layout,
}

impl Keystore {
    /// The keystore of a repository.
    #[must_use]
    pub fn of(layout: &Layout) -> Self {
        Self {
            layout: layout.clone(),
        }
    }

    /// All keys, `self` first, then by their labels.
    ///
    /// # Errors
    /// One that cannot be read: a key that is overlooked is a name that nobody renews.
    pub fn keys(&self) -> Result<Vec<(Key, Keypair)>, Fail> {
        let mut labels = self.labels()?;
        labels.insert(0, SELF.to_owned());
        let load = |label: String| {
            let keypair = self.load(&label)?;
            let name = Name::of(&keypair.public());
            Ok((Key { label, name }, keypair))
        };
        labels.into_iter().map(load).collect()
    }

    /// The labels of all keys but `self`, in order.
    fn labels(&self) -> Result<Vec<String>, Fail> {
        let dir = self.layout.keystore();
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Fail::io(&dir, &e)),
        };
        let mut labels = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| Fail::io(&dir, &e))?;
            // What is no key, such as the half of one that a power cut left, is not ours to judge.
            let file = entry.file_name();
            let label = file.to_str().and_then(|file| file.strip_suffix(SUFFIX));
            labels.extend(
                label
                    .filter(|label| check_label(label).is_ok())
                    .map(str::to_owned),
            );
        }
        labels.sort_unstable();
        Ok(labels)
    }

    /// One key.
    ///
    /// # Errors
    /// [`Code::NotFound`], [`Code::Permission`] if others may read it, [`Code::Integrity`] if it is damaged.
    pub fn load(&self, label: &str) -> Result<Keypair, Fail> {
        if label == SELF {
            return self.layout.read_identity();
        }
        let path = self.path(label)?;
        if !path.try_exists().map_err(|e| Fail::io(&path, &e))? {
            return Err(self.unknown(label));
        }
        files::check_private(&path)?;
        let bytes = files::read_limited(&path, MAX_KEY_BYTES)?;
        decode(&bytes).map_err(|e| {
            Fail::new(Code::Integrity, format!("{} is damaged: it holds no key ({e})", path.display()))
                .hint("put a copy of it back (`gemba key import`); without one nobody can publish under its name any more: move the file away, and make a new key")
        })
    }

    /// A key by its label or by its name.
    ///
    /// # Errors
    /// As [`Keystore::load`].
    pub fn find(&self, text: &str) -> Result<(Key, Keypair), Fail> {
        if let Ok(name) = text.parse::<Name>() {
            let found = self.keys()?.into_iter().find(|(key, _)| key.name == name);
            return found.ok_or_else(|| {
                Fail::new(
                    Code::NotFound,
                    format!("the key of {name} is not on this device"),
                )
                .hint("`gemba key ls` lists the keys; only the holder of a key publishes under its name")
            });
        }
        let keypair = self.load(text)?;
        let name = Name::of(&keypair.public());
        let label = text.to_owned();
        Ok((Key { label, name }, keypair))
    }

    /// Makes a new Ed25519 key. Durable when this returns.
    ///
    /// # Errors
    /// [`Code::Conflict`] if there is one of this label.
    pub fn create(&self, label: &str) -> Result<(Key, Keypair), Fail> {
        let keypair = Keypair::generate_ed25519();
        self.keep(label, keypair)
    }

    /// Takes over a key from the bytes of its file.
    ///
    /// # Errors
    /// [`Code::Usage`] if they are none; [`Code::Conflict`] if the label or the key is there.
    pub fn import(&self, label: &str, bytes: &[u8]) -> Result<(Key, Keypair), Fail> {
        let keypair = decode(bytes).map_err(|e| {
            Fail::new(Code::Usage, format!("this is no key: {e}"))
                .hint("the file that `gemba key export` or `ipfs key export` wrote is one; a file in PEM form is not read")
        })?;
        let name = Name::of(&keypair.public());
        if let Some((key, _)) = self.keys()?.into_iter().find(|(key, _)| key.name == name) {
            return Err(Fail::new(
                Code::Conflict,
                format!("this key is here already, as `{}`", key.label),
            )
            .hint("nothing was changed; `gemba key ls` lists the keys"));
        }
        self.keep(label, keypair)
    }

    fn keep(&self, label: &str, keypair: Keypair) -> Result<(Key, Keypair), Fail> {
        let path = self.path(label)?;
        if self.labels()?.len() >= KEYS {
            return Err(
                Fail::new(Code::Conflict, format!("there are {KEYS} keys already"))
                    .hint("`gemba key rm` removes one that is no longer needed"),
            );
        }
        files::create_private_dir(&self.layout.keystore())?;
        let bytes = encode(&keypair)?;
        files::write_new(&path, &bytes).map_err(|fail| match fail.code {
            Code::Conflict => Fail::new(Code::Conflict, format!("there is a key `{label}` already"))
                .hint("nothing was changed; choose another label: `gemba key ls` lists those that are taken"),
            _ => fail,
        })?;
        let name = Name::of(&keypair.public());
        let label = label.to_owned();
        Ok((Key { label, name }, keypair))
    }

    /// The bytes of a key's file, secret included.
    ///
    /// # Errors
    /// As [`Keystore::load`].
    pub fn secret(&self, label: &str) -> Result<Vec<u8>, Fail> {
        encode(&self.load(label)?)
    }

    /// Removes a key. Nobody can publish under its name any more, unless there is a copy of it.
    ///
    /// # Errors
    /// [`Code::NotFound`]; [`Code::Usage`] for `self`.
    pub fn remove(&self, label: &str) -> Result<Key, Fail> {
        let path = self.path(label)?;
        // A damaged one may go, too; then nobody knows its name.
        let name = Name::of(&self.load(label)?.public());
        std::fs::remove_file(&path).map_err(|e| Fail::io(&path, &e))?;
        files::sync_parent(&path)?;
        let label = label.to_owned();
        Ok(Key { label, name })
    }

    fn path(&self, label: &str) -> Result<PathBuf, Fail> {
        if label == SELF {
            return Err(Fail::new(
                Code::Usage,
                "`self` is the identity of this node: it is neither made, nor imported, nor removed here",
            )
            .hint("choose another label; `gemba init` in another folder makes a node with another identity"));
        }
        check_label(label).map_err(|cause| {
            Fail::new(Code::Usage, cause)
                .hint("letters, digits, `-`, `_` and `.` make a label, such as app-stable")
        })?;
        Ok(self.layout.keystore().join(format!("{label}{SUFFIX}")))
    }

    fn unknown(&self, label: &str) -> Fail {
        Fail::new(Code::NotFound, format!("there is no key `{label}`")).hint(format!(
            "`gemba key new {label}` makes one; `gemba key ls` lists those there are"
        ))
    }
}

/// A label is a file name on every system, and no name: `k51…` would be taken for one.
fn check_label(label: &str) -> Result<(), String> {
    let shown = crate::text::shown(label);
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if label.is_empty() {
        Err("the label of a key is empty".to_owned())
    } else if label.len() > LABEL_BYTES {
        Err(format!(
            "the label of a key has at most {LABEL_BYTES} characters, this one has {}",
            label.len()
        ))
    } else if !label.chars().all(is_plain) || label.starts_with('.') || label.starts_with('-') {
        Err(format!("{shown} is no label of a key"))
    } else if label.parse::<Name>().is_ok() {
        Err(format!("{shown} is a name, and no label of a key"))
    } else {
        Ok(())
    }
}

fn decode(bytes: &[u8]) -> Result<Keypair, String> {
    Keypair::from_protobuf_encoding(bytes).map_err(|e| e.to_string())
}

fn encode(keypair: &Keypair) -> Result<Vec<u8>, Fail> {
    keypair.to_protobuf_encoding().map_err(|e| {
        Fail::new(
            Code::Failure,
            format!("this key has no form to be kept in: {e}"),
        )
    })
}

/// Reads a key file that somebody brought.
///
/// # Errors
/// It is not there, may not be read, or is far too long.
pub fn read_file(path: &Path) -> Result<Vec<u8>, Fail> {
    files::read_limited(path, MAX_KEY_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Keystore) {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("repo"));
        drop(crate::repo::Repo::init(layout.root(), &Default::default()).unwrap());
        (dir, Keystore::of(&layout))
    }

    #[test]
    fn keys_are_private_files_that_survive_and_are_never_overwritten() {
        let (_dir, store) = store();
        let (key, _) = store.create("app-stable").unwrap();
        assert_eq!(store.create("app-stable").unwrap_err().code, Code::Conflict);
        let path = store.layout.keystore().join("app-stable.key");
        let mode = std::os::unix::fs::PermissionsExt::mode(&path.metadata().unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        let labels = |store: &Keystore| -> Vec<String> {
            let keys = store.keys().unwrap();
            keys.into_iter().map(|(key, _)| key.label).collect()
        };
        assert_eq!(labels(&store), [SELF, "app-stable"]);
        assert_eq!(store.find(&key.name.to_string()).unwrap().0, key);
        assert_eq!(store.find("app-stable").unwrap().0, key);
        let secret = store.secret("app-stable").unwrap();
        assert_eq!(
            store.import("other", &secret).unwrap_err().code,
            Code::Conflict
        );
        assert_eq!(store.remove("app-stable").unwrap(), key);
        assert_eq!(labels(&store), [SELF]);
        assert_eq!(store.import("back", &secret).unwrap().0.name, key.name);
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        let path = store.layout.keystore().join("back.key");
        std::fs::set_permissions(path, open).unwrap();
        assert_eq!(store.load("back").unwrap_err().code, Code::Permission);
    }

    #[test]
    fn labels_are_file_names_and_never_names_of_the_network() {
        let (_dir, store) = store();
        let name = Name::of(&Keypair::generate_ed25519().public()).to_string();
        for label in [
            "",
            "..",
            ".hidden",
            "a/b",
            "-x",
            "a b",
            "ä",
            SELF,
            &name,
            &"x".repeat(65),
        ] {
            assert_eq!(
                store.create(label).unwrap_err().code,
                Code::Usage,
                "{label}"
            );
        }
        assert_eq!(store.remove(SELF).unwrap_err().code, Code::Usage);
        assert_eq!(store.load("nothing").unwrap_err().code, Code::NotFound);
        assert_eq!(store.import("x", b"no key").unwrap_err().code, Code::Usage);
    }
}
