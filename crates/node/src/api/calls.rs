//! The requests that are open: each has a [`Call`], by which those who work for it learn that nobody needs the answer any more, and
//! by which the caller learns what he waits for (`GET /v1/waiting/{request}`).

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::HeaderMap;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::client::{PATIENCE, REQUEST_ID};
use crate::daemon::Call;

/// Requests whose names are known at a time: more than there can be connections. Beyond it a request is served without its name.
const KNOWN: usize = 1024;
/// Longest name of a request, in bytes.
const ID_BYTES: usize = 64;

/// The open requests by name.
#[derive(Default)]
pub(super) struct Calls(Mutex<HashMap<String, Weak<Call>>>);

impl Calls {
    /// A request came in.
    pub(super) fn begin(&self, headers: &HeaderMap, ending: &CancellationToken) -> Arc<Call> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let id = text(REQUEST_ID).filter(|id| id.len() <= ID_BYTES);
        let patience = text(PATIENCE)
            .and_then(|text| text.parse().ok())
            .map(Duration::from_millis);
        let id = id.unwrap_or_default().to_owned();
        let call = Call::new(id, patience, ending);
        if !call.id.is_empty() {
            let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if known.len() >= KNOWN {
                known.retain(|_, call| call.strong_count() > 0);
            }
            if known.len() < KNOWN {
                known.insert(call.id.clone(), Arc::downgrade(&call));
            }
        }
        call
    }

    /// The open request of that name.
    pub(super) fn of(&self, id: &str) -> Option<Arc<Call>> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let call = known.get(id)?.upgrade();
        if call.is_none() {
            known.remove(id);
        }
        call
    }
}

/// The answer, with which the call ends: sent, given up by the client, or cut off.
pub(super) fn ends_with(response: Response, guard: DropGuard) -> Response {
    response.map(|body| {
        Body::new(Guarded {
            body,
            _guard: guard,
        })
    })
}

struct Guarded {
    body: Body,
    _guard: DropGuard,
}

impl HttpBody for Guarded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::daemon::Wait;

    fn named(id: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, id.parse().unwrap());
        headers
    }

    #[test]
    fn open_requests_are_known_by_name_and_bounded() {
        let (calls, ending) = (Calls::default(), CancellationToken::new());
        let call = calls.begin(&named("a"), &ending);
        let cid = *gemba_block::Block::raw("x").unwrap().cid();
        let waiting = call.waits_for(Wait::Block(cid));
        assert_eq!(
            calls.of("a").unwrap().waiting().unwrap().0,
            Wait::Block(cid)
        );
        drop(waiting);
        assert!(calls.of("a").unwrap().waiting().is_none());
        drop(call);
        assert!(calls.of("a").is_none());
        assert!(calls.begin(&named(&"x".repeat(65)), &ending).id.is_empty());
        let open: Vec<_> = (0..2 * KNOWN)
            .map(|n| calls.begin(&named(&n.to_string()), &ending))
            .collect();
        assert!(calls.0.lock().unwrap().len() <= KNOWN);
        drop(open);
        // Names of requests that are over make room.
        let _new = calls.begin(&named("new"), &ending);
        assert!(calls.of("new").is_some());
    }

    #[test]
    fn a_call_ends_with_its_answer_and_with_the_daemon() {
        let ending = CancellationToken::new();
        let calls = Calls::default();
        let call = calls.begin(&HeaderMap::new(), &ending);
        let answer = ends_with(Response::new(Body::empty()), call.token().drop_guard());
        assert!(call.check().is_ok());
        drop(answer);
        assert!(call.check().unwrap_err().cause.contains("went away"));
        let call = calls.begin(&HeaderMap::new(), &ending);
        ending.cancel();
        assert!(call.check().unwrap_err().cause.contains("is ending"));
    }
}
