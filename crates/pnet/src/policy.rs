//! May this node open a socket, and into which network? A pure decision that fails closed.
//!
//! A node without a swarm key that goes on joins the public network. That has happened to people by a missing file, a
//! misnamed file, a flag of the wrong spelling. So: no key, no network, unless the operator asks for the public one in
//! so many words; and every near miss is named. The file system is read by [`KeyFile`](crate::KeyFile).

use std::fmt;

use crate::key::{KeyError, SwarmKey};

/// The name a swarm key has in a repository.
pub const KEY_FILE_NAME: &str = "swarm.key";
/// The environment variable of go-libp2p that forbids public operation.
pub const FORCE_VARIABLE: &str = "LIBP2P_FORCE_PNET";
/// How many near misses an error names.
const MAX_NEAR_MISSES: usize = 8;

/// The network a node was allowed to join. There is no transport without one of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Network {
    /// Only peers with this key.
    Private(SwarmKey),
    /// Anyone. Only [`PublicNetwork::asked_for`] makes the value inside.
    Public(PublicNetwork),
}

impl Network {
    /// Whether a swarm key guards it.
    pub fn is_private(&self) -> bool {
        matches!(self, Self::Private(_))
    }

    /// The key, if there is one.
    pub fn key(&self) -> Option<&SwarmKey> {
        match self {
            Self::Private(key) => Some(key),
            Self::Public(_) => None,
        }
    }
}

/// Proof that public operation was asked for and is not forbidden.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicNetwork(());

impl PublicNetwork {
    /// The explicit wish for a network that anyone can join. Refused if private operation is forced.
    pub fn asked_for(force: &Force) -> Result<Self, PolicyError> {
        if force.private {
            return Err(PolicyError::PublicForbidden { by: force.source });
        }
        Ok(Self(()))
    }
}

/// Whether private operation is forced, and who said so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Force {
    /// Public operation is forbidden.
    pub private: bool,
    /// Where the setting comes from.
    pub source: ForceSource,
}

/// Where the force setting comes from, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum ForceSource {
    /// Nobody set it.
    Default,
    /// The configuration file.
    Config,
    /// The environment.
    Environment,
    /// The command line.
    Flag,
}

impl fmt::Display for ForceSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Default => "default",
            Self::Config => "config file",
            Self::Environment => FORCE_VARIABLE,
            Self::Flag => "command line",
        })
    }
}

/// What was found where the swarm key should lie. `Debug` does not show the content.
#[derive(Clone, PartialEq, Eq)]
pub enum KeyFound {
    /// No such name.
    Missing,
    /// A regular file.
    File {
        /// Its content.
        bytes: zeroize::Zeroizing<Vec<u8>>,
        /// Permission bits, on systems that have them.
        mode: Option<u32>,
    },
    /// Something of that name that cannot be read as a file.
    Unreadable {
        /// Why, in the system's words.
        reason: String,
    },
}

impl fmt::Debug for KeyFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("Missing"),
            Self::File { bytes, mode } => f
                .debug_struct("File")
                .field("len", &bytes.len())
                .field("mode", mode)
                .finish_non_exhaustive(),
            Self::Unreadable { reason } => f.debug_tuple("Unreadable").field(reason).finish(),
        }
    }
}

/// Everything the decision depends on.
#[derive(Clone, Debug)]
pub struct Policy {
    /// What lies at `swarm.key`.
    pub key: KeyFound,
    /// Names in the repository folder, for near misses.
    pub entries: Vec<String>,
    /// Where the key was looked for, for the texts.
    pub key_path: String,
    /// The environment, or the part of it that speaks of private networks.
    pub environment: Vec<(String, String)>,
    /// The setting in the configuration file, if there is one.
    pub force_in_config: Option<bool>,
    /// The setting on the command line, if there is one.
    pub force_flag: Option<bool>,
    /// `--public-network` was given.
    pub public_network: bool,
}

impl Default for Policy {
    /// No key, no environment, no wish: [`decide`](Self::decide) refuses.
    fn default() -> Self {
        Self {
            key: KeyFound::Missing,
            entries: Vec::new(),
            key_path: KEY_FILE_NAME.into(),
            environment: Vec::new(),
            force_in_config: None,
            force_flag: None,
            public_network: false,
        }
    }
}

impl Policy {
    /// The decision. With a usable key the answer is private whatever the force setting says (S0.60); a force setting that
    /// cannot be understood then is only a [`warning`](Self::warning). Without a key it is an error.
    pub fn decide(&self) -> Result<Network, PolicyError> {
        match &self.key {
            KeyFound::File { bytes, mode } => self.with_key_file(bytes, *mode),
            // A key that is there and cannot be read is never "no key", not even under --public-network.
            KeyFound::Unreadable { reason } => Err(PolicyError::Unreadable {
                path: self.key_path.clone(),
                reason: reason.clone(),
            }),
            KeyFound::Missing => self.without_key(&self.force()?),
        }
    }

    /// What the operator should be told although the node may start: a force setting that is misspelt and has no effect.
    pub fn warning(&self) -> Option<PolicyError> {
        self.force().err()
    }

    /// The force setting and its origin: command line over environment over file.
    pub fn force(&self) -> Result<Force, PolicyError> {
        let from_environment = force_in(&self.environment)?;
        let set = |value: Option<bool>, source| value.map(|private| Force { private, source });
        Ok(set(self.force_flag, ForceSource::Flag)
            .or(set(from_environment, ForceSource::Environment))
            .or(set(self.force_in_config, ForceSource::Config))
            .unwrap_or(Force {
                private: false,
                source: ForceSource::Default,
            }))
    }

    fn with_key_file(&self, bytes: &[u8], mode: Option<u32>) -> Result<Network, PolicyError> {
        if let Some(mode) = mode.filter(|mode| mode & 0o077 != 0) {
            return Err(PolicyError::Exposed {
                path: self.key_path.clone(),
                mode: mode & 0o777,
            });
        }
        let key = SwarmKey::parse(bytes).map_err(|cause| PolicyError::BadKey {
            path: self.key_path.clone(),
            cause,
        })?;
        if self.public_network {
            return Err(PolicyError::KeyAndPublic {
                path: self.key_path.clone(),
            });
        }
        Ok(Network::Private(key))
    }

    fn without_key(&self, force: &Force) -> Result<Network, PolicyError> {
        let near_misses = near_misses(&self.entries);
        if !near_misses.is_empty() {
            return Err(PolicyError::Misnamed {
                path: self.key_path.clone(),
                found: near_misses,
            });
        }
        if self.public_network {
            return PublicNetwork::asked_for(force).map(Network::Public);
        }
        Err(PolicyError::NoKey {
            path: self.key_path.clone(),
        })
    }
}

/// Why a node may not start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// No key, and nobody asked for the public network.
    #[error(
        "no swarm key at {path}: this node would be open to anyone, so it does not start. \
         First node of a swarm: `gemba swarm-key new`. Joining one: `gemba swarm-key import FILE`, with the file `swarm.key` of any member. \
         To join the public network on purpose: `--public-network`"
    )]
    NoKey {
        /// Where it was looked for.
        path: String,
    },
    /// A file that was surely meant to be the key.
    #[error(
        "no swarm key at {path}, but there is {}: the file must be named `swarm.key`. \
         Rename it, import it with `gemba swarm-key import FILE`, or remove it",
        Names(found)
    )]
    Misnamed {
        /// Where the key was looked for.
        path: String,
        /// The near misses.
        found: Vec<String>,
    },
    /// Others on this machine may read it.
    #[error(
        "the swarm key {path} has mode {mode:03o}: others on this machine may read or change it. Run: chmod 600 '{path}'"
    )]
    Exposed {
        /// The key file.
        path: String,
        /// Its permission bits.
        mode: u32,
    },
    /// It is there and cannot be read.
    #[error("the swarm key {path} cannot be read: {reason}")]
    Unreadable {
        /// The key file.
        path: String,
        /// Why.
        reason: String,
    },
    /// It is there and is no key.
    #[error("the swarm key {path} is not usable: {cause}")]
    BadKey {
        /// The key file.
        path: String,
        /// What is wrong with it.
        #[source]
        cause: KeyError,
    },
    /// The public network was asked for beside a key.
    #[error(
        "there is a swarm key at {path} and `--public-network` was given: drop the flag, or move the key out of the repository"
    )]
    KeyAndPublic {
        /// The key file.
        path: String,
    },
    /// The public network was asked for and is forbidden.
    #[error(
        "`--public-network` was given, but private operation is forced by {by}: take back one of the two"
    )]
    PublicForbidden {
        /// Who forbids it.
        by: ForceSource,
    },
    /// The force variable has a value that is neither yes nor no.
    #[error(
        "{FORCE_VARIABLE} has the value `{value}`: 1, true, yes, on force private operation; 0, false, no, off or nothing do not"
    )]
    UnknownForceValue {
        /// What it holds, cut to a line.
        value: String,
    },
    /// A variable that was surely meant to be the force variable.
    #[error(
        "the environment variable {name} is unknown and has no effect: the name is {FORCE_VARIABLE}"
    )]
    MisspeltVariable {
        /// Its name.
        name: String,
    },
}

/// A list of file names in quotes, cut at [`MAX_NEAR_MISSES`].
struct Names<'a>(&'a [String]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, name) in self.0.iter().take(MAX_NEAR_MISSES).enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{name:?}")?;
        }
        Ok(())
    }
}

/// Reads the force setting out of an environment; a near miss of its name is an error, for it would be silently without effect.
fn force_in(environment: &[(String, String)]) -> Result<Option<bool>, PolicyError> {
    let mut force = None;
    for (name, value) in environment {
        if name == FORCE_VARIABLE {
            force = Some(parse_force(value)?);
        } else if is_misspelt_force(name) {
            return Err(PolicyError::MisspeltVariable { name: name.clone() });
        }
    }
    Ok(force)
}

fn parse_force(value: &str) -> Result<bool, PolicyError> {
    match value.trim().to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "" | "0" | "false" | "no" | "off" => Ok(false),
        _ => Err(PolicyError::UnknownForceValue {
            value: value.chars().take(40).collect(),
        }),
    }
}

/// `LIBP2P_FORCE_PRIVATE`, `FORCE_PNET`, `LIBP2P_FORCEPNET`, `libp2p_force_pnet`, `LIBP2P_FORCE_PENT` …, but no variable of
/// somebody else that merely begins alike.
fn is_misspelt_force(name: &str) -> bool {
    const MEANT: [&str; 9] = [
        "LIBP2PFORCEPNET",
        "LIBP2PFORCEPRIVATE",
        "LIBP2PFORCEPRIVATENETWORK",
        "LIBP2PFORCEPSK",
        "LIBP2PPNETFORCE",
        "IPFSFORCEPNET",
        "GEMBAFORCEPNET",
        "FORCEPNET",
        "FORCEPRIVATENETWORK",
    ];
    let letters = letters(name).to_ascii_uppercase();
    MEANT.iter().any(|meant| {
        letters == *meant || (meant.starts_with("LIBP2P") && edits(&letters, meant) <= 2)
    })
}

/// Names that were surely meant to be `swarm.key`.
fn near_misses(entries: &[String]) -> Vec<String> {
    let mut found: Vec<String> = entries
        .iter()
        .filter(|name| is_near_miss(name))
        .cloned()
        .collect();
    found.sort_unstable();
    found.truncate(MAX_NEAR_MISSES);
    found
}

fn is_near_miss(name: &str) -> bool {
    if name == KEY_FILE_NAME {
        return false;
    }
    // `swarm_key`, `Swarm.Key`, `swarm.key `, `swarm-key.txt`, `swarm.key.bak`, `.swarm.key` all reduce to swarmkey… ;
    // transposed or missing letters are caught by distance.
    let letters = letters(name).to_ascii_lowercase();
    let known_end = [
        "", "txt", "bak", "old", "orig", "pem", "new", "tmp", "copy", "1",
    ];
    let stem = |stem: &str| {
        letters
            .strip_prefix(stem)
            .is_some_and(|end| known_end.contains(&end))
    };
    stem("swarmkey")
        || stem("swarmpsk")
        || letters == "psk"
        || letters == "pnetkey"
        || edits(&letters, "swarmkey") <= 1
}

/// Letters and digits only.
fn letters(name: &str) -> String {
    name.chars()
        .filter(char::is_ascii_alphanumeric)
        .take(64)
        .collect()
}

/// Optimal string alignment distance of two short ASCII texts: insertions, deletions, changes, swaps of neighbours.
fn edits(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let changed = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (rows[i - 1][j] + 1)
                .min(row[j - 1] + 1)
                .min(rows[i - 1][j - 1] + changed);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}
