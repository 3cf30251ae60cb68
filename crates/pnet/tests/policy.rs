//! No key, no socket: the decision, and the files it is read from.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use gemba_pnet::{
    KeyError, KeyFile, KeyFileError, Network, Policy, PolicyError, Replace, SwarmKey, Written,
    policy::{FORCE_VARIABLE, ForceSource},
};

const GOOD: &str = "/key/swarm/psk/1.0.0/\n/base16/\nabababababababababababababababababababababababababababababababab\n";

fn decide(
    dir: &Path,
    environment: &[(&str, &str)],
    public_network: bool,
) -> Result<Network, PolicyError> {
    let environment = environment
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .collect();
    let policy = KeyFile::in_repo(dir).policy_without_environment();
    Policy {
        environment,
        public_network,
        ..policy
    }
    .decide()
}

fn put(dir: &Path, name: &str, content: &[u8]) {
    std::fs::write(dir.join(name), content).unwrap();
    set_mode(&dir.join(name), 0o600);
}

#[cfg(unix)]
fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[cfg(not(unix))]
fn set_mode(_: &Path, _: u32) {}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn s0_48_without_key_nothing_starts_and_the_text_says_what_to_do() {
    let dir = folder();
    let error = decide(dir.path(), &[], false).unwrap_err();
    assert!(matches!(error, PolicyError::NoKey { .. }));
    let text = error.to_string();
    for advice in [
        "swarm.key",
        "swarm-key new",
        "swarm-key import",
        "--public-network",
    ] {
        assert!(text.contains(advice), "{text}");
    }
}

#[test]
fn s0_48_the_opt_out_is_explicit() {
    let dir = folder();
    assert!(matches!(
        decide(dir.path(), &[], true),
        Ok(Network::Public(_))
    ));
    assert!(decide(&dir.path().join("not there"), &[], false).is_err());
}

#[test]
fn s0_50_a_misnamed_key_is_named_and_stops_even_the_public_network() {
    for name in [
        "swarm_key",
        "swarm.key.txt",
        "swarmkey",
        "swarm.Key",
        "swarm.key ",
        "swarm-key",
        "SWARM.KEY",
        "swram.key",
        "swarm.kye",
        "swarn.key",
        ".swarm.key",
        "swarm.key.bak",
        "swarm.key~",
        "swarm.psk",
        "swarm.keys",
        "psk",
    ] {
        let dir = folder();
        put(dir.path(), name, GOOD.as_bytes());
        for public in [false, true] {
            let error = decide(dir.path(), &[], public).unwrap_err();
            assert!(
                matches!(error, PolicyError::Misnamed { .. }),
                "{name:?}: {error}"
            );
            assert!(
                error.to_string().contains(&format!("{name:?}"))
                    && error.to_string().contains("`swarm.key`"),
                "{error}"
            );
        }
    }
}

#[test]
fn s0_50_other_files_are_no_near_misses() {
    let dir = folder();
    for name in [
        "config.toml",
        "identity.key",
        "version",
        "repo.lock",
        "api",
        "keys",
        "swarm.log",
        "swarm",
        "key",
        "blocks",
        "swarm.toml",
    ] {
        put(dir.path(), name, b"x");
    }
    assert!(matches!(
        decide(dir.path(), &[], false),
        Err(PolicyError::NoKey { .. })
    ));
}

/// A report: a team put the key where it was not looked for, and its nodes joined the public network without a word.
#[test]
fn t4_twenty_wrong_layouts_are_refused() {
    type Layout = (&'static str, fn(&Path));
    let layouts: &[Layout] = &[
        ("nothing", |_| {}),
        ("swarm_key", |dir| put(dir, "swarm_key", GOOD.as_bytes())),
        ("swarm.key.txt", |dir| {
            put(dir, "swarm.key.txt", GOOD.as_bytes());
        }),
        ("swarmkey", |dir| put(dir, "swarmkey", GOOD.as_bytes())),
        ("swarm.Key", |dir| put(dir, "swarm.Key", GOOD.as_bytes())),
        ("blank at the end", |dir| {
            put(dir, "swarm.key ", GOOD.as_bytes());
        }),
        ("in a folder below", |dir| {
            std::fs::create_dir(dir.join("keys")).unwrap();
            put(&dir.join("keys"), "swarm.key", GOOD.as_bytes());
        }),
        ("a folder of that name", |dir| {
            std::fs::create_dir(dir.join("swarm.key")).unwrap();
        }),
        ("empty", |dir| put(dir, "swarm.key", b"")),
        ("header only", |dir| {
            put(dir, "swarm.key", b"/key/swarm/psk/1.0.0/\n");
        }),
        ("no digits", |dir| {
            put(dir, "swarm.key", b"/key/swarm/psk/1.0.0/\n/base16/\n");
        }),
        ("63 digits", |dir| {
            put(dir, "swarm.key", &GOOD.as_bytes()[..GOOD.len() - 2]);
        }),
        ("digits only", |dir| {
            put(dir, "swarm.key", "ab".repeat(32).as_bytes());
        }),
        ("wrong version", |dir| {
            put(dir, "swarm.key", GOOD.replace("1.0.0", "2.0.0").as_bytes());
        }),
        ("wrong encoding", |dir| {
            put(
                dir,
                "swarm.key",
                GOOD.replace("base16", "base58").as_bytes(),
            );
        }),
        ("BOM", |dir| {
            put(dir, "swarm.key", format!("\u{feff}{GOOD}").as_bytes());
        }),
        ("UTF-16", |dir| {
            put(
                dir,
                "swarm.key",
                &GOOD
                    .encode_utf16()
                    .flat_map(u16::to_le_bytes)
                    .collect::<Vec<_>>(),
            );
        }),
        ("an HTML error page", |dir| {
            put(dir, "swarm.key", b"<!DOCTYPE html><h1>404</h1>");
        }),
        ("hex of something else", |dir| {
            put(dir, "swarm.key", GOOD.replace("abab", "xyxy").as_bytes());
        }),
        ("huge", |dir| {
            put(
                dir,
                "swarm.key",
                format!("{GOOD}{}", "x".repeat(1 << 20)).as_bytes(),
            );
        }),
        #[cfg(unix)]
        ("dangling link", |dir| {
            std::os::unix::fs::symlink(dir.join("gone"), dir.join("swarm.key")).unwrap();
        }),
        #[cfg(unix)]
        ("readable by all", |dir| {
            put(dir, "swarm.key", GOOD.as_bytes());
            set_mode(&dir.join("swarm.key"), 0o644);
        }),
        #[cfg(unix)]
        ("readable by group", |dir| {
            put(dir, "swarm.key", GOOD.as_bytes());
            set_mode(&dir.join("swarm.key"), 0o640);
        }),
        #[cfg(unix)]
        ("writable by others", |dir| {
            put(dir, "swarm.key", GOOD.as_bytes());
            set_mode(&dir.join("swarm.key"), 0o602);
        }),
        #[cfg(target_os = "linux")]
        ("a device", |dir| {
            std::os::unix::fs::symlink("/dev/zero", dir.join("swarm.key")).unwrap();
        }),
    ];
    assert!(layouts.len() >= 20);
    for (name, make) in layouts {
        let dir = folder();
        make(dir.path());
        assert!(decide(dir.path(), &[], false).is_err(), "{name}");
        assert!(
            decide(dir.path(), &[(FORCE_VARIABLE, "1")], true).is_err(),
            "{name}, forced"
        );
        // With anything there that was meant as a key, asking for the public network is an error too.
        let harmless = ["nothing", "in a folder below"].contains(name);
        assert_eq!(
            decide(dir.path(), &[], true).is_ok(),
            harmless,
            "{name}, public"
        );
    }
}

#[cfg(unix)]
#[test]
fn an_exposed_key_is_refused_with_the_command_that_helps() {
    let dir = folder();
    put(dir.path(), "swarm.key", GOOD.as_bytes());
    for mode in [0o640, 0o604, 0o620, 0o660, 0o644, 0o777, 0o601] {
        set_mode(&dir.path().join("swarm.key"), mode);
        let error = decide(dir.path(), &[], false).unwrap_err().to_string();
        assert!(
            error.contains("chmod 600") && error.contains(&format!("{mode:03o}")),
            "{error}"
        );
    }
    for mode in [0o600, 0o400] {
        set_mode(&dir.path().join("swarm.key"), mode);
        assert!(decide(dir.path(), &[], false).is_ok());
    }
}

#[test]
fn s0_55_the_force_variable_in_all_spellings() {
    let dir = folder();
    for value in ["1", "true", "TRUE", "yes", "Yes", "on", "ON", " 1 "] {
        let error = decide(dir.path(), &[(FORCE_VARIABLE, value)], true).unwrap_err();
        assert!(
            matches!(
                error,
                PolicyError::PublicForbidden {
                    by: ForceSource::Environment
                }
            ),
            "{value:?}: {error}"
        );
    }
    for value in ["0", "false", "No", "off", "", " "] {
        assert!(
            decide(dir.path(), &[(FORCE_VARIABLE, value)], true).is_ok(),
            "{value:?}"
        );
    }
    for value in ["2", "tru", "enabled", "ja", "-1", "\u{fffd}"] {
        let error = decide(dir.path(), &[(FORCE_VARIABLE, value)], true).unwrap_err();
        assert!(
            matches!(error, PolicyError::UnknownForceValue { .. }),
            "{value:?}: {error}"
        );
    }
}

#[test]
fn s0_55_misspelt_variables_are_refused_by_name() {
    let dir = folder();
    for name in [
        "LIBP2P_FORCE_PRIVATE",
        "FORCE_PNET",
        "LIBP2P_FORCEPNET",
        "libp2p_force_pnet",
        "LIBP2P-FORCE-PNET",
        "LIBP2P_FORCE_PENT",
        "LIBP2_FORCE_PNET",
        "LIBP2P_PNET_FORCE",
        "LIBP2P_FORCE_PSK",
        "LIP2P_FORCE_PNET",
    ] {
        let error = decide(dir.path(), &[(name, "1")], true).unwrap_err();
        assert!(
            matches!(&error, PolicyError::MisspeltVariable { name: found } if found == name),
            "{name}: {error}"
        );
        assert!(error.to_string().contains(FORCE_VARIABLE));
    }
    for name in [
        "PATH",
        "LIBP2P_TCP_REUSEPORT",
        "LIBP2P_TCP_MUX",
        "FORCE_COLOR",
        "IPFS_PATH",
        "GEMBA_PATH",
        "LIBP2P_SWARM_FD_LIMIT",
    ] {
        assert!(decide(dir.path(), &[(name, "1")], true).is_ok(), "{name}");
    }
}

#[test]
fn s0_55_env_file_and_flag_set_the_same_and_the_source_is_told() {
    let environment = vec![(FORCE_VARIABLE.to_string(), "1".to_string())];
    let source = |policy: &Policy| {
        (
            policy.force().unwrap().private,
            policy.force().unwrap().source,
        )
    };
    let file = Policy {
        force_in_config: Some(true),
        public_network: true,
        ..Policy::default()
    };
    assert_eq!(source(&Policy::default()), (false, ForceSource::Default));
    assert_eq!(source(&file), (true, ForceSource::Config));
    assert!(file.decide().is_err());
    let by_environment = Policy {
        environment,
        force_in_config: Some(false),
        public_network: true,
        ..Policy::default()
    };
    assert_eq!(source(&by_environment), (true, ForceSource::Environment));
    assert!(by_environment.decide().is_err());
    let by_flag = Policy {
        force_flag: Some(false),
        ..by_environment
    };
    assert_eq!(source(&by_flag), (false, ForceSource::Flag));
    assert!(by_flag.decide().is_ok());
}

#[test]
fn s0_60_with_a_key_the_force_setting_changes_nothing() {
    let dir = folder();
    put(dir.path(), "swarm.key", GOOD.as_bytes());
    let plain = decide(dir.path(), &[], false).unwrap();
    assert_eq!(plain, Network::Private(SwarmKey::from_bytes([0xab; 32])));
    for environment in [
        (FORCE_VARIABLE, "1"),
        (FORCE_VARIABLE, "0"),
        (FORCE_VARIABLE, "garbage"),
        ("FORCE_PNET", "1"),
    ] {
        assert_eq!(decide(dir.path(), &[environment], false).unwrap(), plain);
        let both = decide(dir.path(), &[environment], true).unwrap_err();
        assert!(matches!(both, PolicyError::KeyAndPublic { .. }), "{both}");
    }
    let garbage = vec![(FORCE_VARIABLE.to_string(), "garbage".to_string())];
    let policy = Policy {
        environment: garbage,
        ..KeyFile::in_repo(dir.path()).policy_without_environment()
    };
    assert!(matches!(
        policy.warning(),
        Some(PolicyError::UnknownForceValue { .. })
    ));
}

#[test]
fn s0_59_import_makes_this_node_a_member() {
    let (here, stick) = (folder(), folder());
    let key = SwarmKey::generate().unwrap();
    put(stick.path(), "anything.txt", key.to_file_text().as_bytes());
    let imported = KeyFile::read_for_import(&stick.path().join("anything.txt")).unwrap();
    assert_eq!(
        KeyFile::in_repo(here.path())
            .write(&imported, Replace::Never)
            .unwrap(),
        Written::Created
    );
    let Network::Private(found) = decide(here.path(), &[], false).unwrap() else {
        panic!("private")
    };
    assert_eq!(found.fingerprint(), key.fingerprint());
}

#[test]
fn a_different_key_is_never_overwritten_unless_told() {
    let dir = folder();
    let file = KeyFile::in_repo(dir.path());
    let (old, new) = (SwarmKey::from_bytes([1; 32]), SwarmKey::from_bytes([2; 32]));
    assert_eq!(file.write(&old, Replace::Never).unwrap(), Written::Created);
    assert_eq!(
        file.write(&old, Replace::Never).unwrap(),
        Written::AlreadyThere
    );
    let refused = file.write(&new, Replace::Never).unwrap_err();
    assert!(matches!(refused, KeyFileError::DifferentKey { .. }));
    let text = refused.to_string();
    assert!(
        text.contains(&old.fingerprint().to_string())
            && text.contains(&new.fingerprint().to_string())
    );
    assert_eq!(
        decide(dir.path(), &[], false).unwrap(),
        Network::Private(old.clone())
    );
    let name = format!("swarm.key.{}.old", &old.fingerprint().to_string()[..8]);
    let kept = dir.path().join(&name);
    let replaced = |old: &SwarmKey, kept: &Path| Written::Replaced {
        old: Some(old.fingerprint()),
        kept: kept.to_owned(),
    };
    assert_eq!(
        file.write(&new, Replace::Yes).unwrap(),
        replaced(&old, &kept)
    );
    assert_eq!(
        decide(dir.path(), &[], false).unwrap(),
        Network::Private(new.clone())
    );
    let mut names: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(
        names,
        ["swarm.key", &name],
        "no temporary file with the secret stays"
    );

    // The way back and forth again: what is kept already is kept once.
    let back = KeyFile::read_for_import(&kept).unwrap();
    assert_eq!(back, old);
    file.write(&back, Replace::Yes).unwrap();
    assert_eq!(
        file.write(&new, Replace::Yes).unwrap(),
        replaced(&old, &kept)
    );
    // A file of somebody else is not overwritten, and then nothing is.
    file.write(&back, Replace::Yes).unwrap();
    std::fs::write(&kept, "mine").unwrap();
    let refused = file.write(&new, Replace::Yes).unwrap_err();
    assert!(matches!(refused, KeyFileError::KeptNameTaken { .. }));
    assert_eq!(std::fs::read(&kept).unwrap(), b"mine");
    assert_eq!(
        decide(dir.path(), &[], false).unwrap(),
        Network::Private(old)
    );
}

/// Two keys in one file are no key; replaced, they are kept, for one of them is the right one.
#[test]
fn pnet_k6_a_replaced_file_that_is_no_key_is_kept_too() {
    let dir = folder();
    let (one, two) = (SwarmKey::from_bytes([1; 32]), SwarmKey::from_bytes([2; 32]));
    let both = format!("{}{}", *one.to_file_text(), *two.to_file_text());
    put(dir.path(), "swarm.key", both.as_bytes());
    assert!(matches!(
        decide(dir.path(), &[], false),
        Err(PolicyError::BadKey {
            cause: KeyError::SecondKey,
            ..
        })
    ));
    let kept = dir.path().join("swarm.key.notakey.old");
    let written = KeyFile::in_repo(dir.path())
        .write(&two, Replace::Yes)
        .unwrap();
    assert_eq!(
        written,
        Written::Replaced {
            old: None,
            kept: kept.clone()
        }
    );
    assert_eq!(std::fs::read(&kept).unwrap(), both.as_bytes());
    put(dir.path(), "swarm.key", &[b'x'; 5000]);
    assert!(matches!(
        KeyFile::in_repo(dir.path()).write(&two, Replace::Yes),
        Err(KeyFileError::NotAKey { .. })
    ));
}

#[test]
fn something_that_is_no_key_is_not_overwritten_either() {
    let dir = folder();
    put(dir.path(), "swarm.key", b"notes of the team");
    let file = KeyFile::in_repo(dir.path());
    assert!(matches!(
        file.write(&SwarmKey::from_bytes([1; 32]), Replace::Never),
        Err(KeyFileError::NotAKey { .. })
    ));
    assert_eq!(std::fs::read(file.path()).unwrap(), b"notes of the team");
}

#[cfg(unix)]
#[test]
fn s0_53_a_written_key_is_readable_by_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let dir = folder();
    let file = KeyFile::in_repo(dir.path());
    file.write(&SwarmKey::from_bytes([1; 32]), Replace::Never)
        .unwrap();
    let mode = || std::fs::metadata(file.path()).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(), 0o600);
    let replaced = file
        .write(&SwarmKey::from_bytes([2; 32]), Replace::Yes)
        .unwrap();
    let Written::Replaced { kept, .. } = replaced else {
        panic!("{replaced:?}")
    };
    assert_eq!(
        std::fs::metadata(kept).unwrap().permissions().mode() & 0o777,
        0o600
    );
    file.write(&SwarmKey::from_bytes([1; 32]), Replace::Yes)
        .unwrap();
    set_mode(&file.path(), 0o644);
    assert_eq!(
        file.write(&SwarmKey::from_bytes([1; 32]), Replace::Never)
            .unwrap(),
        Written::AlreadyThere
    );
    assert_eq!(mode(), 0o600);
}
