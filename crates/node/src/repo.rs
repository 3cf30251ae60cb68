//! The repository on disk: where everything lies, who may touch it, and what is checked before anything is read.
//!
//! One process writes, or several read: `repo.lock` is held shared or exclusive while a [`Repo`] lives. The lock is the
//! kernel's, so a killed process leaves none behind; the process id in the file is for messages only.

use std::fs::{self, File, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gemba_pnet::{
    KeyError, KeyFile, KeyFileError, Network, Policy, PolicyError, Replace, SwarmKey,
};
use gemba_segment::{Disk, RealDisk};
use gemba_store::{OpenError, Store, StoreError};
use libp2p_identity::Keypair;

use crate::api::types::Trouble;
use crate::client::ApiFile;
use crate::config::{Config, Origin};
use crate::error::{Code, Fail};
use crate::files;
use crate::meta::Meta;

/// The layout that this program writes, and the newest it reads.
pub const VERSION: u32 = 1;
/// A process id is shorter.
const MAX_LOCK_TEXT: u64 = 32;
/// An identity key is 68 bytes; anything much longer is another file.
const MAX_IDENTITY_BYTES: u64 = 4096;

/// Space that the store keeps taken, so that a collection finds room on a disk that something else has filled.
const BALLAST_BYTES: u64 = 4 << 20;

/// Where the parts of a repository lie (DESIGN §5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The layout below `root`. Nothing is touched.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// `gemba` in the user's data directory: where the repository is when nobody says otherwise.
    ///
    /// # Errors
    /// There is no home directory.
    pub fn default_root() -> Result<PathBuf, Fail> {
        use etcetera::BaseStrategy as _;
        let strategy = etcetera::choose_base_strategy().map_err(|e| {
            Fail::new(Code::Usage, format!("no data directory for this user: {e}"))
                .hint("name the repository with --repo or GEMBA_PATH")
        })?;
        Ok(strategy.data_dir().join("gemba"))
    }

    /// The folder itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `config.toml`
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    /// `swarm.key`: the secret that all members share.
    #[must_use]
    pub fn swarm_key(&self) -> PathBuf {
        self.root.join("swarm.key")
    }

    /// `identity.key`: this node's own secret.
    #[must_use]
    pub fn identity_key(&self) -> PathBuf {
        self.root.join("identity.key")
    }

    /// `version`: written last by `init`, so its presence says that the rest is there.
    #[must_use]
    pub fn version(&self) -> PathBuf {
        self.root.join("version")
    }

    /// `repo.lock`
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.root.join("repo.lock")
    }

    /// `api`: address and token of the running daemon.
    #[must_use]
    pub fn api(&self) -> PathBuf {
        self.root.join("api")
    }

    /// `files.sock`: where open files are handed to the running daemon.
    #[must_use]
    pub fn files_socket(&self) -> PathBuf {
        self.root.join("files.sock")
    }

    /// `pubsub.sequence`: up to where sequence numbers of pubsub are reserved.
    #[must_use]
    pub fn pubsub_sequence(&self) -> PathBuf {
        self.root.join("pubsub.sequence")
    }

    /// `pubsub.authors`: the highest numbers of others, so that a start does not deliver what neighbours still echo.
    #[must_use]
    pub fn pubsub_authors(&self) -> PathBuf {
        self.root.join("pubsub.authors")
    }

    /// `blocks/`: the block store.
    #[must_use]
    pub fn blocks(&self) -> PathBuf {
        self.root.join("blocks")
    }

    /// `meta/`: pins and settings of the machine, in redb.
    #[must_use]
    pub fn meta(&self) -> PathBuf {
        self.root.join("meta")
    }

    /// `log/`: events, and how far their consumers are.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.root.join("log")
    }

    /// `keystore/`: the keys that names belong to.
    #[must_use]
    pub fn keystore(&self) -> PathBuf {
        self.root.join("keystore")
    }

    /// `names.marks`: what was published at least, beside the book, so that a book from a backup is found out.
    #[must_use]
    pub fn names_marks(&self) -> PathBuf {
        self.root.join("names.marks")
    }

    /// Whether `init` was completed here.
    ///
    /// # Errors
    /// The folder may not be read.
    pub fn is_initialised(&self) -> Result<bool, Fail> {
        self.version()
            .try_exists()
            .map_err(|e| Fail::io(self.version(), &e))
    }

    /// Reads this node's key, without taking the lock: it never changes.
    ///
    /// # Errors
    /// [`Code::Permission`] if others may read it, [`Code::Integrity`] if it is damaged.
    pub fn read_identity(&self) -> Result<Keypair, Fail> {
        let path = self.identity_key();
        files::check_private(&path)?;
        let bytes = files::read_limited(&path, MAX_IDENTITY_BYTES)?;
        Keypair::from_protobuf_encoding(&bytes).map_err(|e| {
            Fail::new(Code::Integrity, format!("{} is damaged: it holds no key ({e})", path.display()))
                .hint(format!("restore it from a copy. Without one: move it away, delete {}, and run `gemba init`, which makes a new one and keeps the rest; this node has a new peer id then", self.version().display()))
        })
    }

    /// Whether there is a repository of a version that this program reads. Takes no lock.
    ///
    /// # Errors
    /// [`Code::NotFound`] if there is none, [`Code::Conflict`] if a newer gemba wrote it.
    pub fn check(&self) -> Result<(), Fail> {
        check_version(self)
    }

    /// The facts about swarm key, folder and environment that decide which network this node may join.
    #[must_use]
    pub fn policy(&self, config: &Config) -> Policy {
        let mut policy = KeyFile::in_repo(&self.root).policy();
        let force = config.network.force_private;
        match config.origin("network.force_private") {
            Origin::Flag => policy.force_flag = force,
            _ => policy.force_in_config = force,
        }
        policy
    }

    /// The network this node may join: private with a good key, public only if asked for in so many words (`public_flag` is
    /// `--public-network`, or the setting). `LIBP2P_FORCE_PNET` and the misspelt names of key and variable are honoured.
    ///
    /// # Errors
    /// [`Code::Permission`] with the whole reason, and who set what.
    pub fn network(&self, config: &Config, public_flag: bool) -> Result<Network, Fail> {
        let mut policy = self.policy(config);
        policy.public_network = public_flag || config.network.public_network;
        policy
            .decide()
            .map_err(|e| policy_fail(&e, config, public_flag))
    }
}

/// The policy knows of flags only; here it is known which file or variable said what.
fn policy_fail(error: &PolicyError, config: &Config, public_flag: bool) -> Fail {
    let wish = match config.origin("network.public_network") {
        _ if public_flag => "`--public-network`".to_owned(),
        origin => said_by("network.public_network = true", &origin),
    };
    let take_back = if public_flag {
        "leave the flag out".to_owned()
    } else {
        format!("take {wish} back")
    };
    match error {
        PolicyError::KeyAndPublic { path } => Fail::new(
            Code::Permission,
            format!("there is a swarm key at {path}, and {wish} asks for the public network: a node is in one of them"),
        )
        .hint(format!("{take_back}, or move the key out of the repository")),
        PolicyError::PublicForbidden { .. } => {
            let origin = config.origin("network.force_private");
            Fail::new(
                Code::Permission,
                format!(
                    "{wish} asks for the public network, and {} forbids it",
                    said_by("network.force_private = true", &origin)
                ),
            )
            .hint(format!("{take_back}, or take the other back; a private swarm needs neither, only its key: `gemba swarm-key import FILE`"))
        }
        PolicyError::BadKey {
            cause: KeyError::SecondKey | KeyError::Trailing { .. },
            ..
        } => Fail::new(Code::Permission, error)
            .hint("`gemba swarm-key import --replace FILE` takes the right key from a file that holds it alone, and keeps this one beside it"),
        PolicyError::UnknownForceValue { .. } | PolicyError::MisspeltVariable { .. } => {
            Fail::new(Code::Permission, error).hint("correct the variable, or take it out of the environment")
        }
        PolicyError::Exposed { .. } => Fail::new(Code::Permission, error)
            .hint("if others may have read it the swarm needs a new key: `gemba swarm-key new --replace` on one node, `gemba swarm-key import --replace FILE` on the others"),
        PolicyError::Unreadable { .. } => Fail::new(Code::Permission, error)
            .hint("move it away, then `gemba swarm-key import FILE` with the file `swarm.key` of any member"),
        PolicyError::BadKey { .. } => Fail::new(Code::Permission, error)
            .hint("`gemba swarm-key import --replace FILE` takes the key from the file `swarm.key` of any member, and keeps this file beside it"),
        _ => Fail::new(Code::Permission, error),
    }
}

/// A setting together with whoever set it.
fn said_by(setting: &str, origin: &Origin) -> String {
    match origin {
        Origin::Flag if setting.starts_with("network.force_private") => {
            "`--force-private`".to_owned()
        }
        Origin::Environment(name) => format!("the environment variable {name}"),
        Origin::Default | Origin::File | Origin::Flag => format!("`{setting}` in {origin}"),
    }
}

/// What a command is going to do to the repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Only reads: beside other readers.
    Read,
    /// Writes: alone.
    Write,
}

/// What the lock is wanted for: decides what is advised when somebody else has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A command that a running daemon does for the caller: it came here because none answered.
    Beside,
    /// A command that no daemon does: it must be stopped.
    Alone,
    /// The daemon itself.
    Daemon,
}

/// How a new repository comes to its swarm key.
#[derive(Clone, Debug, Default)]
pub enum KeyChoice {
    /// None yet. The daemon will not start before there is one.
    #[default]
    None,
    /// A fresh one: the first node of a swarm.
    New,
    /// The one of the swarm this device joins.
    Import(PathBuf),
}

/// What `init` is told.
#[derive(Clone, Debug, Default)]
pub struct InitOptions {
    /// Where the swarm key comes from.
    pub key: KeyChoice,
    /// Asks for the public network in so many words; contradicts a key.
    pub public_network: bool,
}

/// An open repository. The lock is held as long as it lives.
#[derive(Debug)]
pub struct Repo {
    /// Where its parts lie.
    pub layout: Layout,
    /// Its settings.
    pub config: Config,
    access: Access,
    disk: Arc<dyn Disk>,
    _lock: Lock,
}

impl Repo {
    /// Makes a new repository: identity, configuration, key if wished, empty store. An `init` that was interrupted may be repeated.
    ///
    /// # Errors
    /// [`Code::Conflict`] if there is one already, or if its lock is held; what is wrong with the key file.
    pub fn init(root: &Path, options: &InitOptions) -> Result<Self, Fail> {
        let layout = Layout::new(root);
        // Before the lock: beside a running daemon the lock is not what is wrong.
        refuse_second_init(&layout)?;
        let key = wanted_key(options)?;
        files::create_private_dir(root)?;
        let lock = Lock::take(&layout, Access::Write, Purpose::Alone)?;
        refuse_second_init(&layout)?;
        if let Some(key) = key {
            KeyFile::in_repo(root)
                .write(&key, Replace::Never)
                .map_err(key_file_fail)?;
        }
        if !layout
            .identity_key()
            .try_exists()
            .map_err(|e| Fail::io(layout.identity_key(), &e))?
        {
            write_identity(&layout)?;
        }
        if !layout
            .config()
            .try_exists()
            .map_err(|e| Fail::io(layout.config(), &e))?
        {
            files::write_new(
                &layout.config(),
                crate::config::initial_text(options.public_network).as_bytes(),
            )?;
        }
        files::create_private_dir(&layout.blocks())?;
        files::create_private_dir(&layout.meta())?;
        Meta::create(&layout.meta())?;
        drop(Store::open(layout.blocks(), gemba_store::Config::default()).map_err(open_fail)?);
        files::write_new(&layout.version(), format!("{VERSION}\n").as_bytes())?;
        let config = Config::load(&layout)?;
        Ok(Self {
            layout,
            config,
            access: Access::Write,
            disk: Arc::new(RealDisk),
            _lock: lock,
        })
    }

    /// Opens a repository.
    ///
    /// # Errors
    /// [`Code::NotFound`] if there is none, [`Code::Conflict`] if another process holds the lock or a newer gemba wrote it, and what is wrong
    /// with the configuration.
    pub fn open(root: impl Into<PathBuf>, access: Access) -> Result<Self, Fail> {
        Self::open_for(root, access, Purpose::Beside)
    }

    /// As [`Repo::open`], with the advice that fits the purpose if another process holds the lock.
    ///
    /// # Errors
    /// As [`Repo::open`].
    pub fn open_for(
        root: impl Into<PathBuf>,
        access: Access,
        purpose: Purpose,
    ) -> Result<Self, Fail> {
        let layout = Layout::new(root);
        layout.check()?;
        let lock = Lock::take(&layout, access, purpose)?;
        let config = Config::load(&layout)?;
        Ok(Self {
            layout,
            config,
            access,
            disk: Arc::new(RealDisk),
            _lock: lock,
        })
    }

    /// Has the blocks on another disk than the operating system's: whatever stands between them and the medium.
    #[must_use]
    pub fn with_disk(mut self, disk: Arc<dyn Disk>) -> Self {
        self.disk = disk;
        self
    }

    /// What it was opened for.
    #[must_use]
    pub fn access(&self) -> Access {
        self.access
    }

    /// This node's key pair.
    ///
    /// # Errors
    /// See [`Layout::read_identity`].
    pub fn identity(&self) -> Result<Keypair, Fail> {
        self.layout.read_identity()
    }

    /// See [`Layout::network`].
    ///
    /// # Errors
    /// [`Code::Permission`] with the whole reason.
    pub fn network(&self, public_network: bool) -> Result<Network, Fail> {
        self.layout.network(&self.config, public_network)
    }

    /// The blocks. With [`Access::Read`] nothing is written, not even a repair.
    ///
    /// # Errors
    /// [`Code::Conflict`] if it is locked or of a newer format, [`Code::Integrity`] for damage that hides the whole store.
    pub fn store(&self) -> Result<Store, Fail> {
        let mut config = gemba_store::Config::default()
            .verify_on_read(self.config.store.verify_on_read)
            .ballast(BALLAST_BYTES);
        if let Some(bytes) = self.config.store.max_size {
            config = config.max_bytes(bytes);
        }
        let disk = Arc::clone(&self.disk);
        let opened = match self.access {
            Access::Write => Store::open_on(disk, self.layout.blocks(), config),
            Access::Read => Store::open_read_only_on(disk, self.layout.blocks(), config),
        };
        opened.map_err(open_fail)
    }

    /// The pins and what else is small and transactional.
    ///
    /// # Errors
    /// Storage that cannot be read, or [`Code::Conflict`] for a newer format.
    pub fn meta(&self) -> Result<Meta, Fail> {
        Meta::open(&self.layout.meta(), self.access)
    }
}

/// What is wrong with a key file, with the code scripts expect.
pub fn key_file_fail(error: KeyFileError) -> Fail {
    let code = match &error {
        KeyFileError::DifferentKey { .. }
        | KeyFileError::NotAKey { .. }
        | KeyFileError::KeptNameTaken { .. } => Code::Conflict,
        KeyFileError::Io { source, .. } => Fail::io("", source).code,
        _ => Code::Permission,
    };
    let fail = Fail::new(code, &error);
    match error {
        KeyFileError::Io { path, source } if source.kind() == std::io::ErrorKind::NotFound => {
            Fail::io(path, &source).hint(
                "the key to take over is the file `swarm.key` in the repository of any member",
            )
        }
        KeyFileError::BadKey { .. } => fail.hint(
            "copy the file `swarm.key` from the repository of any member again, as it is; nothing was changed here",
        ),
        _ => fail,
    }
}

/// What the store failed with, with the code scripts expect.
pub fn store_fail(error: &StoreError) -> Fail {
    match error {
        StoreError::Corrupt { .. } => Fail::new(Code::Integrity, error)
            .hint("`gemba repo verify` finds all damaged blocks; fetching a block again (`gemba pin add`) repairs it"),
        StoreError::TooLarge { .. } => Fail::new(Code::Usage, error).hint("cut it into smaller blocks: `gemba add` does"),
        StoreError::Io(_) | StoreError::NotDurable(_) => Fail::new(Code::Failure, error)
            .hint("the disk or its cable is at fault: look at the system's log (`dmesg`); what was stored before is not affected"),
        StoreError::Collecting => Fail::new(Code::Conflict, error).hint("two would not be faster"),
        StoreError::NoSpace { .. } => Fail::new(Code::Failure, error)
            .hint("`gemba gc` removes what no pin holds; `store.max_size` is the limit"),
        StoreError::WriterDied | StoreError::TooManyPacks => Fail::internal(error),
        StoreError::Full(_) => Fail::new(Code::Failure, "the disk that holds the repository is full; what was stored before stays")
            .hint("free some space there, or move the repository (--repo) to a larger disk"),
        StoreError::Unlisted { .. } => Fail::new(Code::Failure, error)
            .hint("look at the system's log (`dmesg`); a disk that begins to fail is copied while it still reads"),
        StoreError::Moving { .. } => Fail::new(Code::Failure, error).hint("repeat the command"),
        StoreError::ReadOnly => Fail::internal(error),
        _ => Fail::new(Code::Failure, error).hint("look at the log of the daemon and of the system (`dmesg`)"),
    }
}

/// Added to the number of packs that is noted while one of them is away; more than there ever are.
pub const AWAY: u64 = 1 << 40;

/// How many packs are noted, so that the next start compares pins with what is there if it finds fewer; and also if one was away: when it comes
/// back it may bury what was found meanwhile (specs/store.md, STO-27).
pub fn packs_to_note(store: &Store) -> u64 {
    let stat = store.stat();
    match stat.unreadable_packs {
        0 => stat.packs,
        _ => AWAY + stat.packs,
    }
}

/// For `status`: packs that the disk could not read when the store was opened.
pub fn unreadable_packs(store: &Store) -> Vec<Trouble> {
    let packs = store.open_report().unreadable.iter();
    packs
        .map(|pack| Trouble {
            address: pack.path.display().to_string(),
            peer: None,
            direction: "local".to_owned(),
            kind: "unreadable_pack".to_owned(),
            cause: format!(
                "the disk could not read pack {} ({}): it was set aside, and nothing of it was changed. What pins need of it is fetched again; look at the disk (`dmesg`), and restart when it reads again, or move the file away when `gemba pin ls` shows that all is whole",
                pack.pack, pack.cause
            ),
            age_s: 0,
            count: 1,
            retry_in_s: None,
        })
        .collect()
}

/// Why the store does not open, with the code scripts expect.
pub fn open_fail(error: OpenError) -> Fail {
    match error {
        OpenError::LockHeld { .. } => Fail::new(Code::Conflict, error)
            .hint("end that process, or wait for its end; a running daemon does the work of all commands"),
        OpenError::NewerFormat { .. } => Fail::new(Code::Conflict, error)
            .hint("nothing was changed; `gemba --version` tells which gemba this is"),
        OpenError::ForeignPack { .. } => Fail::new(Code::Integrity, error)
            .hint("nothing was changed; packs are not copied from one repository to another: `gemba dag export` and `gemba dag import` carry blocks over"),
        OpenError::Missing(folder) => Fail::new(
            Code::Integrity,
            format!("{} is missing or holds no block store, though the repository is there", folder.display()),
        )
        .hint("put the folder back; is its disk mounted?"),
        OpenError::Io { path, source } => Fail::io(path, &source),
        other => Fail::new(Code::Integrity, other)
            .hint("nothing was changed; put a copy of the folder blocks/ back, or begin with a new repository: content comes back from the swarm"),
    }
}

fn wanted_key(options: &InitOptions) -> Result<Option<SwarmKey>, Fail> {
    if options.public_network && !matches!(options.key, KeyChoice::None) {
        return Err(Fail::new(
            Code::Usage,
            "a swarm key and --public-network contradict each other",
        ));
    }
    match &options.key {
        KeyChoice::None => Ok(None),
        KeyChoice::New => generate_key().map(Some),
        KeyChoice::Import(file) => KeyFile::read_for_import(file)
            .map(Some)
            .map_err(key_file_fail),
    }
}

/// A fresh swarm key.
///
/// # Errors
/// The operating system gives no randomness.
pub fn generate_key() -> Result<SwarmKey, Fail> {
    SwarmKey::generate().map_err(|e| {
        Fail::new(
            Code::Failure,
            format!("the operating system gives no random numbers for a key: {e}"),
        )
    })
}

fn write_identity(layout: &Layout) -> Result<(), Fail> {
    let keypair = Keypair::generate_ed25519();
    let bytes = keypair
        .to_protobuf_encoding()
        .map_err(|e| Fail::new(Code::Failure, e))?;
    files::write_new(&layout.identity_key(), &bytes)
}

fn refuse_second_init(layout: &Layout) -> Result<(), Fail> {
    if !layout.is_initialised()? {
        return Ok(());
    }
    let fail = Fail::new(
        Code::Conflict,
        format!("{} already holds a repository", layout.root().display()),
    );
    Err(match layout.swarm_key().symlink_metadata() {
        Ok(_) => fail.hint("nothing was changed; it has a swarm key: `gemba swarm-key show` gives its fingerprint. Another node on this machine needs a folder of its own: --repo DIR"),
        Err(_) => fail.hint("nothing was changed; it has no swarm key yet: `gemba swarm-key new` makes one on the first node of a swarm, `gemba swarm-key import FILE` takes it over on every other"),
    })
}

fn check_version(layout: &Layout) -> Result<(), Fail> {
    let path = layout.version();
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Fail::new(
                Code::NotFound,
                format!("no repository at {}", layout.root().display()),
            )
            .hint("make one with `gemba init`, or name another with --repo or GEMBA_PATH"));
        }
        Err(e) => return Err(Fail::io(path, &e)),
    };
    match text.trim().parse::<u32>() {
        Ok(VERSION) => Ok(()),
        Ok(newer) if newer > VERSION => Err(Fail::new(
            Code::Conflict,
            format!(
                "the repository {} has version {newer}, this gemba ({}) reads up to version {VERSION}",
                layout.root().display(),
                env!("CARGO_PKG_VERSION")
            ),
        )
        .hint("nothing was changed; run the newer gemba that wrote it (`gemba --version` tells which one this is), or another repository: --repo DIR")),
        _ => Err(Fail::new(
            Code::Integrity,
            format!("{} does not hold a version", path.display()),
        )
        .hint(format!("it should hold the line {VERSION}: write that into it if no newer gemba ever ran here"))),
    }
}

/// Stands in `repo.lock` behind the process id of a daemon.
const DAEMON_MARK: &str = "daemon";

/// The kernel's lock on `repo.lock`.
#[derive(Debug)]
struct Lock {
    file: File,
    access: Access,
}

impl Lock {
    fn take(layout: &Layout, access: Access, purpose: Purpose) -> Result<Self, Fail> {
        let path = layout.lock();
        let file = open_lock_file(&path, access)?;
        let taken = match access {
            Access::Read => file.try_lock_shared(),
            Access::Write => file.try_lock(),
        };
        match taken {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Holder::of(layout, file).fail(layout, purpose));
            }
            Err(TryLockError::Error(e)) => return Err(Fail::io(path, &e)),
        }
        let mut lock = Self { file, access };
        if access == Access::Write {
            let mark = if purpose == Purpose::Daemon {
                format!(" {DAEMON_MARK}")
            } else {
                String::new()
            };
            // For messages only, so a failure to write it is no failure.
            let _ = lock.note(&format!("{}{mark}", std::process::id()));
        }
        Ok(lock)
    }

    fn note(&mut self, text: &str) -> std::io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.file.write_all(text.as_bytes())
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if self.access == Access::Write {
            let _ = self.note("");
        }
    }
}

/// Readers must do with a repository on a read-only file system, where the lock file can be locked but not written.
fn open_lock_file(path: &Path, access: Access) -> Result<File, Fail> {
    let opened = files::private_options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path);
    match (opened, access) {
        (Ok(file), _) => Ok(file),
        (Err(_), Access::Read) => File::open(path).map_err(|e| Fail::io(path, &e)),
        (Err(e), Access::Write) => Err(Fail::io(path, &e)),
    }
}

/// Who has the lock, as far as it can be told.
#[derive(Debug, PartialEq, Eq)]
enum Holder {
    /// A daemon that takes commands, or did: its API is open.
    Daemon(u32),
    /// A daemon without an API: it is starting or ending.
    DaemonWithoutApi(u32),
    /// A command that writes.
    Command(u32),
    /// Commands that read, or one that did not say who it is.
    Unknown,
}

impl Holder {
    fn of(layout: &Layout, mut file: File) -> Self {
        // Readers leave no note; what is written there is from a writer that was killed.
        if file.try_lock_shared().is_ok() {
            return Self::Unknown;
        }
        let mut text = String::new();
        let _ = file
            .rewind()
            .and_then(|()| file.take(MAX_LOCK_TEXT).read_to_string(&mut text));
        let mut words = text.split_whitespace();
        let Some(pid) = words.next().and_then(|word| word.parse().ok()) else {
            return Self::Unknown;
        };
        if words.next() != Some(DAEMON_MARK) {
            return Self::Command(pid);
        }
        // A killed daemon leaves its file behind, with its own process id in it.
        match ApiFile::read(&layout.api()) {
            Ok(Some(api)) if api.pid == pid => Self::Daemon(pid),
            _ => Self::DaemonWithoutApi(pid),
        }
    }

    fn fail(&self, layout: &Layout, purpose: Purpose) -> Fail {
        let root = layout.root().display();
        let held = |by: String| {
            Fail::new(
                Code::Conflict,
                format!("the repository {root} is in use by {by}"),
            )
        };
        match (self, purpose) {
            (Self::Daemon(pid) | Self::DaemonWithoutApi(pid), Purpose::Daemon) => Fail::new(
                Code::Conflict,
                format!("a daemon runs on the repository {root} already (process {pid})"),
            )
            .hint("`gemba status` tells how it is; a second node on this machine needs a repository and addresses of its own: `gemba --repo DIR daemon --listen /ip4/0.0.0.0/tcp/0 --api 127.0.0.1:0`"),
            (Self::Daemon(pid), Purpose::Alone) => held(format!("the daemon (process {pid})"))
                .hint(format!("this command needs the repository for itself: stop the daemon first (Ctrl-C where it runs, or `kill {pid}`), then repeat the command")),
            (Self::Daemon(pid), Purpose::Beside) => held(format!("the daemon (process {pid}), whose API does not answer"))
                .hint(format!("repeat the command; if that does not help look at the daemon's log, and stop it with `kill {pid}`")),
            (Self::DaemonWithoutApi(pid), _) => held(format!("the daemon (process {pid}), which is starting or ending"))
                .hint("repeat the command in a few seconds; the daemon prints `ready` when it takes commands"),
            (Self::Command(pid), _) => held(format!("another gemba command (process {pid})"))
                .hint("wait until it is done, or end it; beside a running daemon commands do not wait for each other"),
            (Self::Unknown, _) => held("other gemba commands".to_owned())
                .hint("wait until they are done; beside a running daemon commands do not wait for each other"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(root: &Path, purpose: Purpose) -> Fail {
        let fail = Repo::open_for(root, Access::Write, purpose).unwrap_err();
        assert_eq!(fail.code, Code::Conflict);
        fail
    }

    /// A pack that the disk does not give back is told in `status`, and pins that need it are not called whole.
    #[test]
    fn an_unreadable_pack_is_told_and_its_pins_are_struck_out() {
        use gemba_block::Block;
        use gemba_testkit::disk::{Call, SimDisk};
        let sim = SimDisk::new(1);
        let open = || {
            let disk = std::sync::Arc::new(sim.clone());
            Store::open_on(disk, "/blocks", gemba_store::Config::default()).unwrap()
        };
        let block = Block::raw("content").unwrap();
        open().put_many(std::slice::from_ref(&block)).unwrap();
        let store = (1..20)
            .find_map(|nth| {
                sim.fail(Call::Read, nth, 1);
                let disk = std::sync::Arc::new(sim.clone());
                let store = Store::open_on(disk, "/blocks", gemba_store::Config::default());
                sim.heal();
                store.ok().filter(|store| store.stat().unreadable_packs > 0)
            })
            .unwrap();
        let told = unreadable_packs(&store);
        assert_eq!(told.len(), 1);
        assert!(
            told[0].address.ends_with("000001.pack")
                && told[0].cause.contains("set aside")
                && told[0].cause.contains("dmesg"),
            "{told:?}"
        );
        let presence =
            crate::content::pins::presence(&store, block.cid(), gemba_pins::Kind::Recursive);
        assert!(!presence.unwrap().is_whole());
        drop(store);
        assert!(unreadable_packs(&open()).is_empty());
    }

    /// Whoever finds the repository locked is told by whom, and what to do about that one.
    #[test]
    fn the_holder_of_the_lock_is_named_for_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("repo");
        let own = std::process::id().to_string();
        drop(Repo::init(&root, &InitOptions::default()).unwrap());

        let command = Repo::open(&root, Access::Write).unwrap();
        let fail = refusal(&root, Purpose::Beside);
        assert!(
            fail.cause.contains("another gemba command") && fail.cause.contains(&own),
            "{fail}"
        );
        drop(command);

        // A note that a killed daemon left says nothing of the readers of today.
        fs::write(root.join("repo.lock"), "4711 daemon").unwrap();
        let reader = Repo::open(&root, Access::Read).unwrap();
        let fail = refusal(&root, Purpose::Beside);
        assert!(
            fail.cause.contains("other gemba commands") && !fail.cause.contains("4711"),
            "{fail}"
        );
        drop(reader);

        let daemon = Repo::open_for(&root, Access::Write, Purpose::Daemon).unwrap();
        let fail = refusal(&root, Purpose::Beside);
        assert!(
            fail.cause.contains("starting or ending") && fail.hint.contains("few seconds"),
            "{fail}"
        );
        let api = |pid: u32| {
            let text = format!("{{\"address\":\"127.0.0.1:1\",\"token\":\"t\",\"pid\":{pid}}}");
            fs::write(root.join("api"), text).unwrap();
        };
        // Of a daemon that was killed before.
        api(4711);
        assert!(
            refusal(&root, Purpose::Alone)
                .cause
                .contains("starting or ending")
        );
        api(std::process::id());
        let fail = refusal(&root, Purpose::Alone);
        assert!(
            fail.hint.contains("stop the daemon") && fail.hint.contains(&format!("kill {own}")),
            "{fail}"
        );
        assert!(
            refusal(&root, Purpose::Beside)
                .cause
                .contains("does not answer")
        );
        assert!(
            refusal(&root, Purpose::Daemon)
                .cause
                .contains("a daemon runs")
        );
        drop(daemon);
        Repo::open(&root, Access::Write).unwrap();
    }
}
