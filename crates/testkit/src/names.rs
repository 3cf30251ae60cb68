//! File names that every medium takes: ext4, APFS and NTFS, and the FAT of a tablet's SD card, which does not tell `A` from `a`.

/// What is wrong with a file name on one of them; `None` if nothing is.
///
/// Lower-case letters, digits, dot, dash and underscore, at most 255 bytes, no dot at the end, and no device of Windows, with
/// whatever extension. Two such names are the same file only if they are the same bytes.
///
/// ```
/// use gemba_testkit::names::not_portable;
///
/// assert_eq!(not_portable("000001.pack"), None);
/// for bad in ["", ".", "Qm", "a:b", "a b", "nul", "com1.pack", "a.", &"a".repeat(256)] {
///     assert!(not_portable(bad).is_some(), "{bad}");
/// }
/// ```
#[must_use]
pub fn not_portable(name: &str) -> Option<&'static str> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-_".contains(c);
    let stem = name.split('.').next().unwrap_or_default();
    let numbered = |device: &str| {
        stem.strip_prefix(device)
            .is_some_and(|n| n.len() == 1 && n != "0" && n.bytes().all(|b| b.is_ascii_digit()))
    };
    if name.is_empty() || name.len() > 255 {
        Some("its length")
    } else if !name.chars().all(plain) {
        Some("a character")
    } else if name.ends_with('.') {
        Some("the dot at its end")
    } else if ["con", "prn", "aux", "nul"].contains(&stem) || numbered("com") || numbered("lpt") {
        Some("it is a device of Windows")
    } else {
        None
    }
}
