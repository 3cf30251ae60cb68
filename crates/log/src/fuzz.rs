//! Entry points of the fuzz targets, replayed on stable by this crate's tests. Not part of the API.

use bytes::Bytes;

use crate::batch::UnverifiedBatch;
use crate::description::Description;
use crate::stream::{Pattern, StreamName};

/// `data`: a batch, as it comes from a stranger.
///
/// What is read is canonical dag-cbor, has as many events as it says, and each event's headers are written back byte for byte.
pub fn batch(data: &[u8]) {
    let Ok(read) = UnverifiedBatch::decode(Bytes::copy_from_slice(data)) else {
        return;
    };
    let links = gemba_block::cbor::scan(data).expect("what is read is canonical");
    let block = gemba_block::Block::new(read.cid(), data.to_vec());
    assert!(block.is_ok(), "the CID is that of the bytes");
    let signed = read.clone().verify();
    let batch = read.trust();
    assert!(signed.is_err() || signed == Ok(batch.clone()));
    let own = usize::from(batch.prev().is_some()) + batch.skips().len();
    assert_eq!(links.len(), own, "links stand where they are known");
    let mut count = 0;
    for event in batch.events() {
        let headers = event.headers();
        assert_eq!(headers.is_empty(), !event.has_headers());
        if event.has_headers() {
            let mut out = Vec::new();
            headers.put(&mut out).expect("what is read may be written");
            assert!(event.encoded().ends_with(&out));
        }
        assert_eq!(batch.own(&event).payload, event.payload);
        count += 1;
    }
    assert_eq!(count, batch.count());
    assert_eq!(batch.hashes().count() as u32, count);
}

/// `data`: a name or pattern, or a description.
pub fn texts(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        if let Ok(name) = StreamName::new(text) {
            assert_eq!(name.as_str(), text);
            assert!(Pattern::from(&name).matches(&name));
            assert!(name.is_ours() || Pattern::new("#").is_ok_and(|all| all.matches(&name)));
        }
        if let Ok(pattern) = Pattern::new(text) {
            assert_eq!(pattern.as_str(), text);
        }
    }
    if let Ok(description) = Description::decode(data) {
        let out = description.encode().expect("what is read may be written");
        assert_eq!(Description::decode(&out), Ok(description));
    }
}
