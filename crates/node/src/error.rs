//! One failure type for everything a person or a script sees: a code, a cause, a hint.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The exit codes of DESIGN §5. Scripts rely on the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// Anything that has no code of its own.
    Failure = 1,
    /// The command line or a value in it is wrong.
    Usage = 2,
    /// The thing asked for is not there.
    NotFound = 3,
    /// Time ran out, or only a part was done.
    Timeout = 4,
    /// No daemon runs on this repository and the command needs one.
    NoDaemon = 5,
    /// Not allowed: file permissions, token, swarm key.
    Permission = 6,
    /// Somebody else holds the lock, or what is there contradicts the command.
    Conflict = 7,
    /// Bytes are not what their hash, checksum or signature says.
    Integrity = 8,
    /// Interrupted by the user.
    Interrupted = 130,
}

impl Code {
    /// The process exit code.
    #[must_use]
    pub fn exit(self) -> u8 {
        self as u8
    }

    /// The HTTP status that the API answers with.
    #[must_use]
    pub fn http(self) -> u16 {
        match self {
            Self::Failure | Self::Integrity | Self::Interrupted => 500,
            Self::Usage => 400,
            Self::NotFound => 404,
            Self::Timeout => 504,
            Self::NoDaemon => 503,
            Self::Permission => 403,
            Self::Conflict => 409,
        }
    }
}

/// Why a command failed, for people and for scripts. `hint` says what to do next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fail {
    /// Becomes the exit code.
    pub code: Code,
    /// What happened, in words an operator can act on.
    pub cause: String,
    /// What to do about it; empty when there is nothing to say.
    #[serde(default)]
    pub hint: String,
}

impl Fail {
    /// A failure with a code and a cause.
    pub fn new(code: Code, cause: impl fmt::Display) -> Self {
        Self {
            code,
            cause: cause.to_string(),
            hint: String::new(),
        }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = hint.to_string();
        self
    }

    /// Puts what was being done in front of the cause.
    #[must_use]
    pub fn during(mut self, doing: impl fmt::Display) -> Self {
        self.cause = format!("{doing}: {}", self.cause);
        self
    }

    /// What cannot be, unless gemba itself is wrong.
    pub fn internal(cause: impl fmt::Display) -> Self {
        Self::new(Code::Failure, cause).hint(
            "this is a mistake in gemba: repeat the command; if it stays, report it with what `gemba -vv …` prints",
        )
    }

    /// The operating system gives no thread, file descriptor or signal.
    pub fn resources(what: &str, error: &std::io::Error) -> Self {
        Self::new(Code::Failure, format!("no {what} from the operating system: {error}")).hint(
            "too many programs or open files: end some, or raise the limits of this user (`ulimit -n`, `ulimit -u`)",
        )
    }

    /// An I/O error on a path, with the code that fits its kind.
    pub fn io(path: impl AsRef<std::path::Path>, error: &std::io::Error) -> Self {
        use std::io::ErrorKind as Kind;
        let code = match error.kind() {
            Kind::NotFound => Code::NotFound,
            Kind::PermissionDenied => Code::Permission,
            Kind::AlreadyExists => Code::Conflict,
            Kind::TimedOut => Code::Timeout,
            _ => Code::Failure,
        };
        let what = match error.kind() {
            Kind::NotFound => "there is no such file or folder".to_owned(),
            Kind::PermissionDenied => "this user may not read or write it".to_owned(),
            Kind::NotADirectory => "something on the way to it is no folder".to_owned(),
            Kind::IsADirectory => "it is a folder".to_owned(),
            Kind::ReadOnlyFilesystem => "its disk can only be read".to_owned(),
            Kind::StorageFull => "its disk is full".to_owned(),
            _ => error.to_string(),
        };
        let fail = Self::new(
            code,
            format!("{}: {what}", crate::text::path(path.as_ref())),
        );
        match error.kind() {
            Kind::StorageFull => fail.hint(
                "free space there; a repository can be moved to a larger disk (--repo names it then)",
            ),
            Kind::PermissionDenied => fail.hint("check the owner and the mode of this path"),
            Kind::NotFound => fail.hint("check the name; names without a `/` before them begin in the current folder"),
            Kind::NotADirectory => fail.hint("check the path: one of the names before its last is a file"),
            Kind::IsADirectory => fail.hint("name a file in it"),
            Kind::ReadOnlyFilesystem => fail.hint(
                "mount it for writing, or name a folder on another disk; a disk that became read-only by itself is failing: look at the system's log (`dmesg`)",
            ),
            Kind::AlreadyExists => fail.hint("name another path, or move away what is there"),
            _ => fail.hint("look at the system's log (`dmesg`) for what the disk reports"),
        }
    }

    /// `{"error":{"code","cause","hint"}}`, the form that `--json` prints on standard error.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({ "error": self })
    }
}

impl fmt::Display for Fail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.cause)?;
        if !self.hint.is_empty() {
            write!(f, "\n  hint: {}", self.hint)?;
        }
        Ok(())
    }
}

impl std::error::Error for Fail {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_the_json_form_of_design_5() {
        let fail = Fail::new(Code::NotFound, "no such thing").hint("look elsewhere");
        assert_eq!(
            fail.to_json().to_string(),
            r#"{"error":{"cause":"no such thing","code":"not_found","hint":"look elsewhere"}}"#
        );
        assert_eq!(Code::Interrupted.exit(), 130);
    }
}
